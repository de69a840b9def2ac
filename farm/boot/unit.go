package boot

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	"github.com/kofarm/kofarm/farm/kmod"
)

// Unit is what is tested together: the modules of one module version.
type Unit struct {
	Name    string // for messages
	Version string // of which module, and which: NAME/VERSION, for reports on others in the same boot
	Modules []Module
	First   []string // modules or aliases of the kernel's own to load before
	// Script is run by busybox's sh when the modules are loaded, in an empty
	// folder; MODULES has their names. A status other than 0 fails the unit.
	Script []byte
}

// Module is a module under test.
type Module struct {
	File       string // its name, with .ko
	SHA256     string // hex: of its content, or of all that makes it
	Parameters []string
	Open       func() ([]byte, error) // gives it, plain
}

//go:embed init.sh
var initScript []byte

// modprobe is what the kernel calls when it wants a module: its last argument is
// the name. What it asks for is loaded in the next boot (see session.asked).
var modprobe = []byte(`#!/bin/sh
for name; do :; done
echo "$name" >>/tmp/requests
exit 1
`)

// verdictFormat numbers how verdicts are found. Those of another are found anew.
const verdictFormat = 4

// key names the verdict on a unit: by all that it depends on. The time limit is not
// part of it: a verdict that it has made is not kept.
func (t *Tester) key(k Kernel, u *Unit) string {
	h := sha256.New()
	part := func(format string, args ...any) { fmt.Fprintf(h, format+"\n", args...) }
	part("kofarm verdict %d", verdictFormat)
	part("%s", k.digest())
	part("%x %q", sha256.Sum256(initScript), modprobe)
	m := machines[k.Arch]
	part("%q %q %q %x", commandLine, m.command, t.Options, sha256.Sum256(t.Trust))
	if part("%q %d", m.args, cmp.Or(t.Memory, DefaultMemory)); k.uefi() != nil {
		part("%q %d", m.uefi.args, m.uefi.memory)
	}
	for _, m := range u.Modules {
		part("%q %s %q", m.File, m.SHA256, m.Parameters)
	}
	part("%q %q", u.First, u.Script)
	return hex.EncodeToString(h.Sum(nil))
}

// loading is a unit that is ready for an initramfs.
type loading struct {
	*Unit
	files   map[string]Module // Modules, by the names that the kernel has for them
	needs   map[string]ownModule
	size    int64    // bytes of Modules
	order   []string // in which modules are loaded: names, and own
	names   []string // of Modules
	own     []string // the kernel's own modules
	asked   []string // those of them that the kernel has asked for, which nothing told before
	unknown []string // names that the kernel does not have
	// unreadable are modules that are none, by name.
	unreadable map[string]error
}

// load reads the unit's modules and finds out what they need.
func (u *Unit) load(ix *index) (*loading, error) {
	l := &loading{Unit: u, files: map[string]Module{}, needs: map[string]ownModule{}, unreadable: map[string]error{}}
	var names []string
	for _, m := range u.Modules {
		data, err := m.Open()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.File, err)
		}
		name := moduleName(m.File)
		ko, err := kmod.ReadAt(bytes.NewReader(data), int64(len(data)), kmod.Limits{PlainOnly: true})
		if err != nil {
			l.unreadable[name], ko = err, &kmod.Module{}
		}
		if _, taken := l.files[ko.Name]; !taken && kernelName.MatchString(ko.Name) {
			name = ko.Name
		}
		l.files[name], l.needs[name] = m, needs(ko)
		l.size += int64(len(data))
		names = append(names, name)
	}
	l.arrange(ix, slices.Concat(u.First, names))
	return l, nil
}

// kernelName is what a module may say that its name is: DKMS may have given its
// file another.
var kernelName = regexp.MustCompile(`^[A-Za-z0-9_]{1,55}$`)

// arrange finds the order in which modules are loaded: those that are wanted, in
// their order, each after all that it needs. Where the unit has a module of the
// kernel's own, it is loaded in its stead, before what of the kernel's needs it.
func (l *loading) arrange(ix *index, wanted []string) {
	l.order, l.unknown = ix.closure(wanted, l.needs)
	l.names, l.own = nil, nil
	for _, name := range l.order {
		if _, ok := l.files[name]; ok {
			l.names = append(l.names, name)
		} else {
			l.own = append(l.own, name)
		}
	}
}

// batches puts units together that share a boot, in their order, as places in
// units. What one leaves behind may be what another needs to load, or what keeps
// it from loading: two units of which one has a module that the other has, too,
// or needs of the kernel's own, do not share a boot. So of several versions of a
// module each is in another batch.
func batches(units []*loading, most int) [][]int {
	type batch struct {
		units      []int
		size       int64
		names, own map[string]bool
	}
	fits := func(b *batch, u *loading) bool {
		theirs := func(name string) bool { return b.names[name] }
		return len(b.units) < most && b.size+u.size <= maxModules && !slices.ContainsFunc(u.names, theirs) && !slices.ContainsFunc(u.own, theirs) &&
			!slices.ContainsFunc(u.names, func(name string) bool { return b.own[name] })
	}
	var all []*batch
	for i, u := range units {
		at := slices.IndexFunc(all, func(b *batch) bool { return fits(b, u) })
		if at < 0 {
			at, all = len(all), append(all, &batch{names: map[string]bool{}, own: map[string]bool{}})
		}
		b := all[at]
		b.units, b.size = append(b.units, i), b.size+u.size
		for _, name := range u.names {
			b.names[name] = true
		}
		for _, name := range u.own {
			b.own[name] = true
		}
	}
	var places [][]int
	for _, b := range all {
		places = append(places, b.units)
	}
	return places
}

// applets are the programs that init.sh and tests find.
var applets = []string{"sh", "mount", "dmesg", "insmod", "rmmod", "cat", "head", "sed", "usleep", "sleep", "uname", "timeout",
	"mkdir", "rm", "ls", "grep", "test", "[", "echo", "printf", "true", "false", "ln", "cp", "mv", "dd", "od", "wc", "tr", "cut",
	"sort", "uniq", "find", "stat", "mknod", "chmod", "awk", "tail", "cmp", "seq", "ip", "losetup", "umount", "sync", "expr", "env", "kill", "ps", "tee", "touch", "md5sum", "sha256sum", "hexdump", "basename", "dirname", "readlink", "lsmod", "modinfo", "id", "date", "xargs"}

// initramfs writes what the kernel unpacks: busybox, the script and its plan, and
// modules.
func initramfs(w io.Writer, busybox, plan []byte, units []*loading, own map[string][]byte) error {
	c := newCPIO(w)
	for _, dir := range []string{"dev", "proc", "sys", "tmp"} {
		c.dir(dir)
	}
	c.file("init", 0o755, initScript)
	c.file("bin/busybox", 0o755, busybox)
	c.file("bin/modprobe", 0o755, modprobe)
	for _, a := range applets {
		c.link("bin/"+a, "busybox")
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		c.file("own/"+name+".ko", 0o644, own[name])
	}
	for i, u := range units {
		for _, name := range u.names {
			data, err := u.files[name].Open()
			if err != nil {
				return fmt.Errorf("%s: %w", u.files[name].File, err)
			}
			c.file(fmt.Sprintf("unit/%d/%s.ko", i, name), 0o644, data)
		}
		if u.Script != nil {
			c.file(fmt.Sprintf("unit/%d/script", i), 0o755, u.Script)
		}
	}
	c.file("plan", 0o644, plan)
	return c.close()
}
