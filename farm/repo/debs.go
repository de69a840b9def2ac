package repo

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/deb"
)

// archAll is the architecture of packages that fit every machine.
const archAll = "all"

var (
	debName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,199}$`) // Debian Policy 5.6.7
	debArch = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,99}$`)
)

// debFile is a .deb that the repository is to hold.
type debFile struct {
	digest
	from                        string // where it is now
	control                     stanza
	name, version, arch, source string
	path                        string // in the repository
}

// identity is what apt tells packages apart by.
func (d *debFile) identity() string { return identity(d.name, d.version, d.arch) }

func identity(name, version, arch string) string { return name + " " + version + " " + arch }

// readDeb reads a package's control file and its digest.
func readDeb(file string) (*debFile, error) {
	f, size, err := openFile(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	d, err := describeDeb(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	d.from = file
	return d, nil
}

func describeDeb(r io.ReaderAt, size int64) (*debFile, error) {
	pkg, err := deb.Open(r, size)
	if err != nil {
		return nil, err
	}
	text, err := pkg.ControlFile("control")
	if err != nil {
		return nil, err
	}
	d := &debFile{}
	if d.control, err = parseStanza(text); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if err := d.setIdentity(); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	d.digest, err = digestReader(io.NewSectionReader(r, 0, size))
	return d, err
}

func (d *debFile) setIdentity() error {
	d.name, d.version, d.arch = d.control.get("Package"), d.control.get("Version"), d.control.get("Architecture")
	d.source = d.name
	if words := strings.Fields(d.control.get("Source")); len(words) > 0 { // "name (version)" where that differs
		d.source = words[0]
	}
	for _, n := range []string{d.name, d.source} {
		if !debName.MatchString(n) {
			return fmt.Errorf("%w: package name %q", ErrFormat, n)
		}
	}
	if err := apt.CheckVersion(d.version); err != nil {
		return err
	}
	if !debArch.MatchString(d.arch) {
		return fmt.Errorf("%w: architecture %q", ErrFormat, d.arch)
	}
	for _, n := range []string{"Filename", "Size", "SHA256"} {
		if d.control.has(n) {
			return fmt.Errorf("%w: a package has no field %s", ErrFormat, n)
		}
	}
	return nil
}

// dir is where Debian's own archive would have the package.
func (d *debFile) dir(component string) string {
	letter := d.source[:1]
	if strings.HasPrefix(d.source, "lib") && len(d.source) > 3 {
		letter = d.source[:4]
	}
	return path.Join("pool", component, letter, d.source)
}

// base is the file's name, without the version's epoch, as Debian has it.
func (d *debFile) base() string {
	version := d.version
	if _, rest, ok := strings.Cut(version, ":"); ok {
		version = rest
	}
	return d.name + "_" + version + "_" + d.arch + ".deb"
}

// entry is the package's stanza in an index.
func (d *debFile) entry() []byte {
	e := slices.Clone(d.control)
	e.add("Filename", d.path)
	e.add("Size", strconv.FormatInt(d.size, 10))
	e.add("SHA256", d.sha256)
	return e.bytes()
}

// copyFrom writes a file's content.
func copyFrom(file string) func(io.Writer) error {
	return func(w io.Writer) error {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close() // only read
		_, err = io.Copy(w, f)
		return err
	}
}

// packages is the index of an architecture.
func packages(debs []*debFile, arch string) []byte {
	var b bytes.Buffer
	for _, d := range debs {
		if d.arch != arch && d.arch != archAll {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.Write(d.entry())
	}
	return b.Bytes()
}

// sortDebs orders the packages of an index.
func sortDebs(debs []*debFile) {
	slices.SortFunc(debs, func(a, b *debFile) int {
		return cmp.Or(strings.Compare(a.name, b.name), apt.CompareVersions(a.version, b.version),
			strings.Compare(a.version, b.version), strings.Compare(a.arch, b.arch))
	})
}
