package rpmfile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Flags of a dependency: the comparison, and what the dependency is for.
type Flags uint32

// The comparisons, which may be joined, and scriptlets that need the other
// package while they run.
const (
	Less     Flags = 1 << 1
	Greater  Flags = 1 << 2
	Equal    Flags = 1 << 3
	ForPost  Flags = 1 << 10
	ForPreUn Flags = 1 << 11

	interpreter Flags = 1 << 8
	forPostUn   Flags = 1 << 12
	postTrans   Flags = 1 << 5
	forRPM      Flags = 1 << 24
)

// Dependency is a name, and where Flags compare, a version. A name in
// parentheses is a rich dependency.
type Dependency struct {
	Name    string
	Flags   Flags
	Version string
}

func (d Dependency) validate() error {
	compares := d.Flags&(Less|Greater|Equal) != 0
	if d.Name == "" || strings.ContainsFunc(d.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }) && d.Name[0] != '(' {
		return fmt.Errorf("dependency name %q", d.Name)
	}
	if strings.ContainsAny(d.Name, "\x00\n") {
		return fmt.Errorf("dependency name %q", d.Name)
	}
	if !compares {
		if d.Version != "" {
			return fmt.Errorf("dependency %s has a version and no comparison", d.Name)
		}
		return nil
	}
	if err := CheckEVR(d.Version); err != nil {
		return fmt.Errorf("dependency %s: %w", d.Name, err)
	}
	return nil
}

// ErrHyphens says that a version has more than the one hyphen that divides
// version from release.
var ErrHyphens = errors.New("rpm takes one hyphen in a dependency's version")

// CheckEVR refuses what rpm does not take as the version of a dependency; with
// [ErrHyphens] one that has two hyphens ("double separator" in rpmbuild).
func CheckEVR(evr string) error {
	parts := strings.Split(evr, "-")
	if len(parts) > 2 {
		return fmt.Errorf("version %q: %w", evr, ErrHyphens)
	}
	for _, part := range parts {
		if err := CheckVersion(part); err != nil {
			return err
		}
	}
	return nil
}

// sorted returns dependencies in rpm's order, each once.
func sorted(deps []Dependency) []Dependency {
	deps = slices.Clone(deps)
	slices.SortFunc(deps, func(a, b Dependency) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version), cmp.Compare(a.Flags, b.Flags))
	})
	return slices.Compact(deps)
}

// isa is what rpm calls an architecture in a dependency (%_isa).
var isa = map[string]string{
	"x86_64": "(x86-64)", "aarch64": "(aarch-64)", "ppc64le": "(ppc-64)", "s390x": "(s390-64)", "riscv64": "(riscv-64)",
	"armv7hl": "(armv7hl-32)", "armv6hl": "(armv6hl-32)", "i686": "(x86-32)",
}

// provides adds what every package provides: itself, and a binary one for an
// architecture once more with that.
func (p *Package) provides() []Dependency {
	deps := append(slices.Clip(p.Provides), Dependency{p.Name, Equal, p.EVR()})
	if suffix := isa[p.Arch]; suffix != "" && p.SourceRPM != "" {
		deps = append(deps, Dependency{p.Name + suffix, Equal, p.EVR()})
	}
	return sorted(deps)
}

// requires adds the scriptlets' shell, and the features that an rpm must know
// to read the package.
func (p *Package) requires(c Compression) []Dependency {
	deps := slices.Clip(p.Requires)
	for _, s := range p.scripts() {
		if s.body != "" {
			deps = append(deps, Dependency{"/bin/sh", interpreter | s.flag, ""})
		}
	}
	feature := func(name, version string) {
		deps = append(deps, Dependency{"rpmlib(" + name + ")", forRPM | Less | Equal, version})
	}
	feature("CompressedFileNames", "3.0.4-1")
	feature("FileDigests", "4.6.0-1")
	if p.SourceRPM != "" {
		feature("PayloadFilesHavePrefix", "4.0-1")
	}
	switch c {
	case XZ:
		feature("PayloadIsXz", "5.2-1")
	case Zstd:
		feature("PayloadIsZstd", "5.4.18-1")
	}
	if p.anyVersion("~") {
		feature("TildeInVersions", "4.10.0-1")
	}
	if p.anyVersion("^") {
		feature("CaretInVersions", "4.15.0-1")
	}
	if p.anyRich() {
		feature("RichDependencies", "4.12.0-1")
	}
	return sorted(deps)
}

// anyVersion says whether a version has the character in it.
func (p *Package) anyVersion(char string) bool {
	has := func(d Dependency) bool { return strings.Contains(d.Version, char) }
	return strings.Contains(p.EVR(), char) || slices.ContainsFunc(p.Provides, has) || slices.ContainsFunc(p.Requires, has)
}

func (p *Package) anyRich() bool {
	rich := func(d Dependency) bool { return d.Name[0] == '(' }
	return slices.ContainsFunc(p.Requires, rich) || slices.ContainsFunc(p.Supplements, rich) || slices.ContainsFunc(p.Enhances, rich)
}

// script is one scriptlet and the tags that hold it.
type script struct {
	body       string
	tag, shell int
	flag       Flags
}

func (p *Package) scripts() []script {
	return []script{
		{p.Post, tagPostIn, tagPostInProg, ForPost},
		{p.PreUn, tagPreUn, tagPreUnProg, ForPreUn},
		{p.PostUn, tagPostUn, tagPostUnProg, forPostUn},
		{p.PostTrans, tagPostTrans, tagPostTransProg, postTrans},
	}
}
