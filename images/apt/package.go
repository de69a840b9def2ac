package apt

import (
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/kofarm/kofarm/images/fetch"
)

// Package is one binary package of an archive.
type Package struct {
	Name          string
	Version       string
	Arch          string // Debian's name, or "all"
	Source        string // name of the source package
	SourceVersion string
	MultiArch     string // "", "no", "same", "foreign" or "allowed"
	Priority      string // as in the control file: "required", "optional", …
	Essential     bool

	Depends, PreDepends []Dependency
	Conflicts, Breaks   []Dependency // each of one relation
	Provides            []Relation   // with "=" and a version, or without

	Filename string   // path below the mirror
	Size     int64    // bytes of the .deb
	SHA256   string   // of the .deb, lower-case hex
	URLs     []string // of the .deb, one for each mirror

	Distribution string // from the Source
	Suite        string // from the Source

	rank int // apt's priority of the release that it is from
}

// String names the package as apt does: name=version.
func (p *Package) String() string { return p.Name + "=" + p.Version }

// File is the package's .deb for the fetcher.
func (p *Package) File() fetch.File {
	return fetch.File{URLs: p.URLs, SHA256: p.SHA256, Size: p.Size}
}

// parsePackage reads a stanza of a Packages index.
func parsePackage(stanza []byte) (*Package, error) {
	p := &Package{Size: -1}
	err := eachField(stanza, func(name, value string) error {
		if err := p.setField(name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err == nil {
		err = p.complete()
	}
	if err != nil {
		return nil, fmt.Errorf("package %q: %w", p.Name, err)
	}
	return p, nil
}

func (p *Package) setField(name, value string) (err error) {
	switch name {
	case "Package":
		p.Name = value
		err = checkName(value)
	case "Version":
		p.Version = value
		err = CheckVersion(value)
	case "Architecture":
		p.Arch = value
	case "Source":
		p.Source, p.SourceVersion, err = parseSource(value)
	case "Multi-Arch":
		p.MultiArch = value
	case "Priority":
		p.Priority = value
	case "Essential":
		p.Essential = isYes(value)
	case "Depends":
		p.Depends, err = ParseDependencies(value)
	case "Pre-Depends":
		p.PreDepends, err = ParseDependencies(value)
	case "Conflicts":
		p.Conflicts, err = ParseDependencies(value)
	case "Breaks":
		p.Breaks, err = ParseDependencies(value)
	case "Provides":
		p.Provides, err = parseProvides(value)
	case "Filename":
		p.Filename = value
		err = checkFilename(value)
	case "Size":
		p.Size, err = strconv.ParseInt(value, 10, 64)
	case "SHA256":
		p.SHA256 = value
	}
	return err
}

// complete fills in what a stanza leaves out and refuses one that lacks what is needed.
func (p *Package) complete() error {
	for _, f := range []struct{ name, value string }{{"Package", p.Name}, {"Version", p.Version},
		{"Architecture", p.Arch}, {"Filename", p.Filename}, {"SHA256", p.SHA256}} {
		if f.value == "" {
			return fmt.Errorf("it has no %s", f.name)
		}
	}
	if p.Size < 0 {
		return fmt.Errorf("it has no valid Size")
	}
	if p.Source == "" {
		p.Source = p.Name
	}
	if p.SourceVersion == "" {
		p.SourceVersion = p.Version
	}
	return nil
}

// parseSource reads "name" or "name (version)".
func parseSource(value string) (name, version string, err error) {
	name, version, _ = strings.Cut(value, " (")
	version = strings.TrimSuffix(version, ")")
	return name, version, checkName(name)
}

func parseProvides(value string) ([]Relation, error) {
	all, err := ParseDependencies(value)
	if err != nil {
		return nil, err
	}
	provides := make([]Relation, 0, len(all))
	for _, d := range all {
		if len(d) != 1 || d[0].Op != "" && d[0].Op != "=" {
			return nil, fmt.Errorf("%q is not a name with an exact version or none", d)
		}
		provides = append(provides, d[0])
	}
	return provides, nil
}

// checkFilename takes a path that stays below the mirror.
func checkFilename(name string) error {
	if name == "" || path.IsAbs(name) || path.Clean("/"+name) != "/"+strings.TrimPrefix(name, "./") || strings.ContainsAny(name, "?#\\\n") {
		return fmt.Errorf("%q is not a plain path below the mirror", name)
	}
	return nil
}

// URLs returns the addresses of a path below each mirror.
func URLs(mirrors []string, name string) []string { return joinURLs(mirrors, name) }

// joinURLs returns the addresses of a path below each mirror.
func joinURLs(mirrors []string, name string) []string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	escaped := strings.Join(parts, "/")
	urls := make([]string, len(mirrors))
	for i, m := range mirrors {
		urls[i] = strings.TrimRight(m, "/") + "/" + escaped
	}
	return urls
}
