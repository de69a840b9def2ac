// Package deb writes Debian packages of kernel modules: [Modules] for one
// kernel, [Meta] that follows a flavor's newest kernel, [DKMS] with the source
// (and its Debian source package), and [Tools] for what a module's build makes
// for user space.
//
// The same input gives the same bytes: the archives are written here, without
// dpkg-deb, sorted, owned by root, dated with the caller's epoch and of normal
// modes, and the compressors run single-threaded with fixed settings.
//
// A package is installed by root and its scripts run as root, so all that goes
// into a script, a control field or a path is checked against a pattern.
// Modules have to be checked (package kmod) before they come here.
package deb

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// Info is what all packages have in common. Module, ModuleVersion, Licenses (or
// Copyright) and Epoch must be set; the zero values of the others mean what
// their comments say.
type Info struct {
	// Module and ModuleVersion are those of dkms.conf.
	Module, ModuleVersion string
	// Name is what the package's name begins with. Empty: Name(Module).
	Name string
	// Version is the package's. Empty: derived from ModuleVersion, see [Version].
	Version string
	// Arch is Debian's name of it: amd64, never x86_64. Of no meaning for
	// [DKMS], whose packages are for all.
	Arch string
	// Summary says in a few words what the modules are for; may be empty.
	Summary string
	// Description says more: paragraphs, an empty line between them, lines that
	// begin with a space are kept as they are. May be empty.
	Description string
	Homepage    string // URL; empty: none
	Maintainer  string // "name <address>"; empty: DefaultMaintainer
	Section     string // empty: kernel, or non-free/kernel for proprietary modules
	Priority    string // empty: optional
	// Licenses are the modules' MODULE_LICENSE strings, in any order. They make
	// the copyright file, with Authors (MODULE_AUTHOR strings).
	Licenses, Authors []string
	// Copyright is a whole copyright file in place of that; nil: made.
	Copyright []byte
	// Relations are more control fields that relate to other packages, by name:
	// Conflicts, Recommends and so on.
	Relations map[string]string
	// Epoch dates every entry and the changelog, in whole seconds. The zero time
	// is refused: someone forgot to set it.
	Epoch time.Time
	// Compression is that of control.tar and data.tar; empty: XZ. dpkg reads
	// Zstd from 1.21.18 (Debian bookworm) on.
	Compression Compression
}

// DefaultMaintainer is the maintainer of packages that name none.
const DefaultMaintainer = "kofarm <kofarm@users.noreply.github.com>"

// Limits of what is written into fields; long before them something is wrong.
const (
	maxNameLen    = 128 // of a package; its file name has to fit in 255
	maxVersionLen = 100
	maxLineLen    = 1000
	maxTextSize   = 1 << 20 // Description, Copyright
	maxStrings    = 1000    // Licenses, Authors
	maxConfSize   = 1 << 20
)

var (
	namePattern        = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`) // Debian policy 5.6.1
	versionPattern     = regexp.MustCompile(`^([0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]*$`)
	archPattern        = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)
	modulePattern      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`) // as package dkms has it
	kernelPattern      = regexp.MustCompile(`^[0-9][A-Za-z0-9._+~-]*$`)
	filePattern        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*\.ko$`)
	machinePattern     = regexp.MustCompile(`^[a-z0-9_]+$`)
	compressionPattern = regexp.MustCompile(`^(gz|xz|zst)$`)
	sectionPattern     = regexp.MustCompile(`^([a-z-]+/)?[a-z-]+$`)
	homepagePattern    = regexp.MustCompile(`^https?://[!-~]+$`)
	maintainerPattern  = regexp.MustCompile(`^[^<>,]+ <[^<>@\s,]+@[^<>@\s,]+>$`)
)

var (
	priorities = []string{"required", "important", "standard", "optional", "extra"}
	relations  = []string{"Recommends", "Suggests", "Enhances", "Breaks", "Conflicts", "Replaces"}
)

// base is the name that the package's begins with.
func (i Info) base() (string, error) {
	if i.Name == "" {
		return Name(i.Module)
	}
	return i.Name, checkName(i.Name)
}

// version is the package's version, with the kernel's appended where there is one.
func (i Info) version(kernel string) (string, error) {
	switch {
	case i.Version != "":
		return i.Version, CheckVersion(i.Version)
	case kernel != "":
		return WithKernel(i.ModuleVersion, kernel)
	}
	return Version(i.ModuleVersion)
}

func (i Info) withDefaults() Info {
	i.Maintainer = cmp.Or(i.Maintainer, DefaultMaintainer)
	i.Priority = cmp.Or(i.Priority, "optional")
	i.Compression = cmp.Or(i.Compression, XZ)
	if i.Section == "" {
		i.Section = "kernel"
		if slices.Contains(i.Licenses, "Proprietary") {
			i.Section = "non-free/kernel"
		}
	}
	return i
}

// validate checks what has defaults; names and versions are checked where they
// are made.
func (i Info) validate() error {
	errs := []error{
		check("module name", i.Module, modulePattern, maxNameLen),
		check("module version", i.ModuleVersion, modulePattern, maxVersionLen),
		check("maintainer", i.Maintainer, maintainerPattern, maxLineLen),
		check("section", i.Section, sectionPattern, maxNameLen),
		checkLine("maintainer", i.Maintainer),
		checkLine("summary", i.Summary),
		checkText("description", i.Description),
		checkText("copyright file", string(i.Copyright)),
		i.checkRelations(),
		i.checkLicense(),
	}
	if i.Homepage != "" {
		errs = append(errs, check("homepage", i.Homepage, homepagePattern, maxLineLen))
	}
	if !slices.Contains(priorities, i.Priority) {
		errs = append(errs, fmt.Errorf("priority %q, known are %v", i.Priority, priorities))
	}
	if !slices.Contains(Compressions(), i.Compression) {
		errs = append(errs, fmt.Errorf("compression %q, known are %v", i.Compression, Compressions()))
	}
	// What a tar header holds in 11 octal digits.
	if s := i.Epoch.Unix(); s < 0 || s >= 1<<33 {
		errs = append(errs, fmt.Errorf("epoch %d, want seconds from 0 to 2^33", s))
	}
	return errors.Join(errs...)
}

// checkArch is for packages of one architecture. A name that others have for it
// is an easy mistake.
func (i Info) checkArch() error {
	if want, ok := kernel.DebianArch(i.Arch); ok && want != i.Arch {
		return fmt.Errorf("architecture %q is called %q by Debian", i.Arch, want)
	}
	if i.Arch == "all" || i.Arch == "any" || i.Arch == "source" {
		return fmt.Errorf("architecture %q, want the one that the package is for", i.Arch)
	}
	return check("architecture", i.Arch, archPattern, 32)
}

func (i Info) checkRelations() error {
	var errs []error
	for _, name := range sortedKeys(i.Relations) {
		if !slices.Contains(relations, name) {
			errs = append(errs, fmt.Errorf("relation %q, known are %v", name, relations))
		}
		errs = append(errs, checkRelation(name, i.Relations[name]))
	}
	return errors.Join(errs...)
}

func (i Info) checkLicense() error {
	if i.Copyright != nil {
		return nil
	}
	if len(i.Licenses) > maxStrings || len(i.Authors) > maxStrings {
		return fmt.Errorf("%d licenses and %d authors, want at most %d", len(i.Licenses), len(i.Authors), maxStrings)
	}
	if len(i.Licenses) == 0 || slices.Contains(i.Licenses, "") {
		return errors.New("no license: give one, as the module has no MODULE_LICENSE")
	}
	var errs []error
	for _, s := range i.Licenses {
		errs = append(errs, checkLine("license", s))
	}
	for _, s := range i.Authors {
		errs = append(errs, checkLine("author", s))
	}
	return errors.Join(errs...)
}

// relationPattern takes what a dependency field is made of.
var relationPattern = regexp.MustCompile(`^[a-z0-9][A-Za-z0-9+.~:()<>=|, -]*$`)

func checkRelation(field, value string) error {
	return check(field, value, relationPattern, 1<<16)
}

// check matches a value against a pattern and a length.
func check(what, value string, pattern *regexp.Regexp, most int) error {
	if len(value) > most {
		return fmt.Errorf("%s %.20q… is longer than %d characters", what, value, most)
	}
	if !pattern.MatchString(value) {
		return fmt.Errorf("%s %q does not match %s", what, value, pattern)
	}
	return nil
}

// checkLine takes printable text without a line break.
func checkLine(what, s string) error {
	if len(s) > maxLineLen {
		return fmt.Errorf("%s %.20q… is longer than %d characters", what, s, maxLineLen)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s %q is not a line of printable text", what, s)
	}
	return nil
}

// checkText takes printable text of several lines.
func checkText(what, s string) error {
	if len(s) > maxTextSize {
		return fmt.Errorf("%s of %d bytes, want at most %d", what, len(s), maxTextSize)
	}
	odd := func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' && r != '\f' }
	if !utf8.ValidString(s) || strings.ContainsFunc(s, odd) {
		return fmt.Errorf("%s is not printable text in UTF-8", what)
	}
	return nil
}

// binary is a package that is ready to be written.
type binary struct {
	info    Info
	name    string
	version string
	arch    string
	fields  []field  // Depends and the like
	about   []string // paragraphs, the first is the synopsis
	news    string   // the changelog's line
	tree    tree
	scripts map[string][]byte // maintainer scripts by name
}

// fileName is the name that dpkg-deb and apt give a package's file: the
// version comes without its epoch.
func fileName(name, version, arch string) string {
	return name + "_" + withoutEpoch(version) + "_" + arch + ".deb"
}

// write adds what every package has, and writes it.
func (b binary) write(w io.Writer) error {
	if err := b.docs(); err != nil {
		return err
	}
	data, control := &spool{}, &spool{}
	defer data.Close()
	defer control.Close()
	sums, size, err := writeTar(data, b.tree, b.info.Compression, b.info.Epoch)
	if err != nil {
		return err
	}
	members, err := b.control(sums, size)
	if err != nil {
		return err
	}
	if _, _, err := writeTar(control, members, b.info.Compression, b.info.Epoch); err != nil {
		return err
	}
	return writeAr(w, b.info.Epoch, []member{
		{"debian-binary", strings.NewReader("2.0\n"), 4},
		{"control.tar" + b.info.Compression.suffix(), control.reader(), control.size},
		{"data.tar" + b.info.Compression.suffix(), data.reader(), data.size},
	})
}

// wrap says which package an error is about.
func wrap(kind string, info Info, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s package of %s-%s: %w", kind, info.Module, info.ModuleVersion, err)
}
