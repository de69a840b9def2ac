package matrix

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	maxProcesses = 1 << 22 // the kernel's PID_MAX_LIMIT on 64 bit
	maxParallel  = 1 << 16
	maxRetries   = 100
)

// DefaultKeyring is where Debian's package debian-archive-keyring has its keys.
const DefaultKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// defaultArchives are the archives that are known without the file: Debian's own mirrors.
func defaultArchives() map[string]Archive {
	return map[string]Archive{
		defaultDistribution: {
			Mirrors:         []string{"http://deb.debian.org/debian"},
			SecurityMirrors: []string{"http://deb.debian.org/debian-security"},
			Components:      []string{"main"},
			Keyring:         DefaultKeyring,
		},
	}
}

// archives reads what the file says by distribution, over what is there.
func (d *decoder) archives(n *yaml.Node, archives map[string]Archive) {
	if n.Kind != yaml.MappingNode {
		d.wrongKind(n, "archives", "a mapping by distribution")
		return
	}
	for key, value := range d.pairs(n) {
		if err := checkDistribution(key.Value); err != nil {
			d.invalid(key, "distribution", err)
			continue
		}
		archive, known := archives[key.Value]
		if !known {
			archive.Components = []string{"main"}
		}
		d.archive(value, &archive, known)
		archives[key.Value] = archive
	}
}

func (d *decoder) archive(n *yaml.Node, a *Archive, known bool) {
	given := d.mapping(n, "archive", fields{
		"mirrors":            func(n *yaml.Node) { a.Mirrors = Texts(d.someWords(n, "mirrors", checkURL)) },
		"security-mirrors":   func(n *yaml.Node) { a.SecurityMirrors = Texts(d.words(n, "security-mirrors", checkURL)) },
		"fallbacks":          func(n *yaml.Node) { a.Fallbacks = Texts(d.words(n, "fallbacks", checkURL)) },
		"security-fallbacks": func(n *yaml.Node) { a.SecurityFallbacks = Texts(d.words(n, "security-fallbacks", checkURL)) },
		"components":         func(n *yaml.Node) { a.Components = Texts(d.someWords(n, "components", checkComponent)) },
		"keyring":            func(n *yaml.Node) { a.Keyring, a.KeyringPos = d.str(n, "keyring", checkPath).Text, posOf(n) },
		"allow-expired":      func(n *yaml.Node) { a.AllowExpired = Texts(d.words(n, "allow-expired", checkSuite)) },
	})
	if given == nil || known {
		return
	}
	d.required(n, given, "mirrors", "no distribution but debian has built-in ones")
	d.required(n, given, "keyring", "indexes are verified with it")
}

// knownArchives reports distributions that are used but have no archive.
func (d *decoder) knownArchives(f *Farm) {
	reported := make(map[string]bool)
	for _, use := range f.uses() {
		if _, ok := f.Archives[use.distribution]; ok || use.distribution == "" || reported[use.distribution] || d.full() {
			continue
		}
		reported[use.distribution] = true
		known := slices.Sorted(maps.Keys(f.Archives))
		hint := DidYouMean(use.distribution, known)
		if hint == "" {
			hint = fmt.Sprintf("give archives.%s with mirrors and keyring", clip(use.distribution))
		}
		d.fail(use.pos, use.distribution, fmt.Sprintf("distribution %s has no archive", quote(use.distribution)), hint)
	}
}

func defaultLimits() Limits {
	return Limits{
		Memory: 4 * GiB, Processes: 1024, Disk: 4 * GiB, Log: 64 * MiB, Output: 1 * GiB, Timeout: 30 * time.Minute,
	}
}

func (d *decoder) limits(n *yaml.Node, l *Limits) {
	d.mapping(n, "limits", fields{
		"memory":    func(n *yaml.Node) { d.size(n, "memory", &l.Memory) },
		"disk":      func(n *yaml.Node) { d.size(n, "disk", &l.Disk) },
		"log":       func(n *yaml.Node) { d.size(n, "log", &l.Log) },
		"output":    func(n *yaml.Node) { d.size(n, "output", &l.Output) },
		"processes": func(n *yaml.Node) { d.integer(n, "processes", 1, maxProcesses, &l.Processes) },
		"timeout":   func(n *yaml.Node) { d.duration(n, "timeout", &l.Timeout) },
	})
}

func (d *decoder) build(n *yaml.Node, b *Build) {
	d.mapping(n, "build", fields{
		"parallel": func(n *yaml.Node) { d.integer(n, "parallel", 0, maxParallel, &b.Parallel) },
		"retries":  func(n *yaml.Node) { d.integer(n, "retries", 0, maxRetries, &b.Retries) },
		"runtime":  func(n *yaml.Node) { b.Runtime = d.word(n, "runtime", Runtimes()) },
		"docker":   func(n *yaml.Node) { b.Docker = d.daemons(n, "docker", d.docker) },
		"containerd": func(n *yaml.Node) {
			b.Containerd = d.daemons(n, "containerd", d.containerd)
		},
	})
	d.runtime(n, b)
}
