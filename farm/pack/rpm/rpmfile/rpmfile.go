// Package rpmfile writes RPM package files: the lead, the signature header, the
// header and a compressed cpio archive, as rpmbuild 4.18 writes them. The same
// input gives the same bytes: nothing comes from the clock, the host's name or
// the order of a map, and the compressors run single-threaded.
//
// It is written by hand because google/rpmpack, the library that there is, can
// write neither source packages (it always sets SOURCERPM, by whose absence rpm
// knows one) nor Supplements and Enhances, adds none of the rpmlib(…)
// dependencies by which an old rpm refuses what it cannot read, has no MD5 or
// SHA1 digest for rpm before 4.14, and holds every file and the payload in
// memory.
//
// The format is described in rpm's docs/manual/format_*.md; tags and flags are
// those of rpm's include/rpm/rpmtag.h and rpmds.h.
package rpmfile

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Package is what a package says of itself. Name, Version, Release, Arch,
// Summary, Description, License and BuildTime must be set.
type Package struct {
	Name, Version, Release string
	Arch                   string // as rpm has it: x86_64, aarch64, noarch
	Summary                string // one line
	Description            string
	License                string
	Group                  string // empty: "Unspecified", as rpmbuild has it
	URL                    string
	Packager               string // name and mail address; empty: none
	// Change is the one entry of the changelog; empty: none. It needs Packager.
	Change string
	// BuildHost is what stands where rpmbuild puts the machine's name.
	BuildHost string
	// BuildTime also dates every file, in whole seconds.
	BuildTime time.Time
	// SourceRPM is the file name of the package's source package. Empty: it is
	// one itself. Then File.Name has no slash, and Arch is that of the machine
	// it was made on, which means nothing.
	SourceRPM string

	Provides, Requires, Supplements, Enhances []Dependency

	// Scriptlets for /bin/sh; empty: none.
	Post, PreUn, PostUn, PostTrans string
}

// EVR is the version with the release, as a dependency has it.
func (p *Package) EVR() string { return p.Version + "-" + p.Release }

// FileName is the name of the package's file.
func (p *Package) FileName() string {
	arch := p.Arch
	if p.SourceRPM == "" {
		arch = "src"
	}
	return p.Name + "-" + p.EVR() + "." + arch + ".rpm"
}

// What rpmbuild accepts (rpmCharCheck in build/parsePreamble.c), except macros.
var (
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*$`)
	versionPattern = regexp.MustCompile(`^[A-Za-z0-9._+~^]+$`)
	archPattern    = regexp.MustCompile(`^[a-z0-9_]+$`)
)

// maxFileName is what a directory entry of Linux holds.
const maxFileName = 255

// CheckName refuses what is no name of a package.
func CheckName(name string) error { return check("package name", name, namePattern) }

// CheckVersion refuses what is no version or release of a package.
func CheckVersion(version string) error { return check("version", version, versionPattern) }

func check(what, value string, pattern *regexp.Regexp) error {
	if !pattern.MatchString(value) {
		return fmt.Errorf("%s %q does not match %s, which rpm wants", what, value, pattern)
	}
	if strings.Contains(value, "..") {
		return fmt.Errorf("%s %q has two dots in a row, which rpm refuses", what, value)
	}
	return nil
}

func (p *Package) validate() error {
	errs := []error{CheckName(p.Name), CheckVersion(p.Version), CheckVersion(p.Release), check("arch", p.Arch, archPattern)}
	if n := p.FileName(); len(n) > maxFileName {
		errs = append(errs, fmt.Errorf("file name %.40q… of %d characters, at most %d fit", n, len(n), maxFileName))
	}
	for _, s := range []struct{ what, value string }{{"summary", p.Summary}, {"license", p.License}} {
		if s.value == "" || strings.ContainsAny(s.value, "\n\x00") {
			errs = append(errs, fmt.Errorf("%s %q, want one line", s.what, s.value))
		}
	}
	if p.Description == "" {
		errs = append(errs, errors.New("no description"))
	}
	for _, s := range []string{p.Description, p.Group, p.URL, p.Packager, p.Change, p.BuildHost, p.Post, p.PreUn, p.PostUn, p.PostTrans} {
		if strings.ContainsRune(s, 0) {
			errs = append(errs, fmt.Errorf("a NUL in %.40q", s))
		}
	}
	if s := p.BuildTime.Unix(); s < 0 || s >= 1<<32 {
		errs = append(errs, fmt.Errorf("epoch %d, want seconds from 0 to 2^32", s))
	}
	for _, deps := range [][]Dependency{p.Provides, p.Requires, p.Supplements, p.Enhances} {
		for _, d := range deps {
			errs = append(errs, d.validate())
		}
	}
	return errors.Join(errs...)
}
