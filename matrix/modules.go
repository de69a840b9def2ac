package matrix

import (
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// moduleEntry is an entry of modules, or of a module's versions.
type moduleEntry struct {
	name, version string
	source        Source // its Pos is zero where none is given
	packages      []Word
	depends       []Word
	makeArgs      []string
	timeout       time.Duration
	license       string
	userspace     *Userspace
	test          *ModuleTest
	pos           Pos
}

// modules reads the list of modules, a ModuleVersion for each version.
func (d *decoder) modules(n *yaml.Node) []*ModuleVersion {
	var list []*ModuleVersion
	d.list(n, "modules", func(element *yaml.Node) { list = append(list, d.module(element)...) })
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(posOf(n), "", "modules: the list is empty", "list what to build")
	}
	return list
}

func (d *decoder) module(n *yaml.Node) []*ModuleVersion {
	m := moduleEntry{pos: posOf(n)}
	var versions []moduleEntry
	f := d.moduleFields(&m)
	f["name"] = func(n *yaml.Node) { m.name = d.str(n, "name", CheckName).Text }
	f["versions"] = func(n *yaml.Node) {
		d.list(n, "versions", func(element *yaml.Node) { versions = append(versions, d.version(element)) })
		if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
			d.fail(posOf(n), "", "versions: the list is empty", "give at least one or remove the key")
		}
	}
	given := d.mapping(n, "module", f)
	if given == nil {
		return nil
	}
	if given["versions"] == nil {
		return d.sourced([]*ModuleVersion{m.with(moduleEntry{pos: m.pos})})
	}
	if version := given["version"]; version != nil {
		d.fail(posOf(version), version.Value, "both version and versions", "give the version in the list")
	}
	var list []*ModuleVersion
	for _, v := range versions {
		list = append(list, m.with(v))
	}
	return d.sourced(list)
}

func (d *decoder) version(n *yaml.Node) moduleEntry {
	v := moduleEntry{pos: posOf(n)}
	d.mapping(n, "version", d.moduleFields(&v))
	return v
}

// moduleFields are the keys that a module and one of its versions share.
func (d *decoder) moduleFields(m *moduleEntry) fields {
	return fields{
		"version":        func(n *yaml.Node) { m.version = d.str(n, "version", CheckName).Text },
		"source":         func(n *yaml.Node) { m.source = d.source(n) },
		"build-packages": func(n *yaml.Node) { m.packages = d.words(n, "build-packages", checkPackage) },
		"build-depends":  func(n *yaml.Node) { m.depends = d.words(n, "build-depends", checkModule) },
		"make-args":      func(n *yaml.Node) { m.makeArgs = d.strs(n, "make-args", nil) },
		"timeout":        func(n *yaml.Node) { d.duration(n, "timeout", &m.timeout) },
		"userspace":      func(n *yaml.Node) { m.userspace = d.userspace(n) },
		"license":        func(n *yaml.Node) { m.license = d.str(n, "license", checkLicense).Text },
		"test":           func(n *yaml.Node) { m.test = d.moduleTest(n) },
	}
}

func (d *decoder) userspace(n *yaml.Node) *Userspace {
	u := &Userspace{}
	given := d.mapping(n, "userspace", fields{
		"install":     func(n *yaml.Node) { u.Install = d.str(n, "install", nil).Text },
		"deb-depends": func(n *yaml.Node) { u.DebDepends = Texts(d.words(n, "deb-depends", nil)) },
	})
	if given != nil {
		d.required(n, given, "install", "a command that installs below $DESTDIR")
	}
	return u
}

// with returns the module's entry as one of its versions changes it: lists grow, the rest is replaced.
func (m moduleEntry) with(v moduleEntry) *ModuleVersion {
	out := &ModuleVersion{
		Name:          m.name,
		Version:       m.version,
		Source:        m.source,
		BuildPackages: unionWords(slices.Clip(m.packages), v.packages),
		BuildDepends:  append(slices.Clip(m.depends), v.depends...),
		MakeArgs:      append(slices.Clip(m.makeArgs), v.makeArgs...),
		Timeout:       m.timeout,
		License:       m.license,
		Userspace:     m.userspace,
		Test:          m.test,
		Pos:           v.pos,
	}
	if v.version != "" {
		out.Version = v.version
	}
	if v.source.Pos != (Pos{}) {
		out.Source = v.source
	}
	if v.timeout != 0 {
		out.Timeout = v.timeout
	}
	if v.license != "" {
		out.License = v.license
	}
	if v.userspace != nil {
		out.Userspace = v.userspace
	}
	if v.test != nil {
		out.Test = v.test
	}
	return out
}

// sourced reports module versions without a source.
func (d *decoder) sourced(list []*ModuleVersion) []*ModuleVersion {
	for _, m := range list {
		if m.Source.Pos == (Pos{}) {
			d.fail(m.Pos, m.Name, "source is missing", "give {deb: …}, {tarball: …}, {dir: …} or {rpm: …}")
		}
	}
	return list
}

func (d *decoder) source(n *yaml.Node) Source {
	s := Source{Pos: posOf(n)}
	given := d.mapping(n, "source", fields{
		"deb":          func(n *yaml.Node) { s.Deb = d.str(n, "deb", checkDeb).Text },
		"distribution": func(n *yaml.Node) { s.Distribution = d.str(n, "distribution", checkDistribution).Text },
		"suite":        func(n *yaml.Node) { s.Suite = d.str(n, "suite", checkSuite).Text },
		"tarball":      func(n *yaml.Node) { s.Tarball = d.str(n, "tarball", checkTarball).Text },
		"sha256":       func(n *yaml.Node) { s.SHA256 = strings.ToLower(d.str(n, "sha256", checkSHA256).Text) },
		"dir":          func(n *yaml.Node) { s.Dir = d.str(n, "dir", checkPath).Text },
		"rpm":          func(n *yaml.Node) { s.RPM = d.str(n, "rpm", checkTarball).Text },
	})
	if given != nil {
		d.oneSource(n, given, s)
	}
	return s
}

// oneSource reports none or several sources in one, and keys that do not go with the one.
func (d *decoder) oneSource(n *yaml.Node, given map[string]*yaml.Node, s Source) {
	var kinds []string
	for _, kind := range []string{"deb", "tarball", "dir", "rpm"} {
		if given[kind] != nil {
			kinds = append(kinds, kind)
		}
	}
	switch {
	case len(kinds) == 0:
		d.fail(posOf(n), "", "source: none of deb, tarball, dir and rpm is given", "")
		return
	case len(kinds) > 1:
		d.fail(posOf(n), "", "source: "+sentence(kinds, "and")+" in one", "give one of them")
		return
	case s.Remote() && given["sha256"] == nil:
		n := given[kinds[0]]
		d.fail(posOf(n), n.Value, kinds[0]+" "+quote(n.Value)+": sha256 is missing", "what is downloaded needs its checksum")
	}
	for _, key := range []string{"distribution", "suite", "sha256"} {
		owners := []string{"deb"}
		if key == "sha256" {
			owners = []string{"tarball", "rpm"}
		}
		if given[key] != nil && !slices.Contains(owners, kinds[0]) {
			d.fail(posOf(given[key]), given[key].Value, key+" goes with "+sentence(owners, "or")+", not with "+kinds[0], "remove it")
		}
	}
}
