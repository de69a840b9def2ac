// Package deb reads Debian binary packages (.deb, format 2.0; see deb(5)): the control fields and
// the files, without dpkg.
//
// A package is hostile input. Nothing here touches the file system: names come out cleaned and
// relative, what could leave the tree (absolute names, "..", hard links out of it) or is not a file,
// directory or link (devices, pipes) is an error, and every size has a limit. Targets of symbolic
// links are handed on as they are, since they mean something only inside an image; who unpacks must
// not follow them (os.Root).
package deb

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Limits on a package. A zero field means the default.
type Limits struct {
	ControlBytes int64 // uncompressed control.tar, default 64 MiB
	DataBytes    int64 // uncompressed data.tar, default 16 GiB (debug packages of kernels have some 6)
	Entries      int   // of either tar, default 1,000,000 (a header package has some 20,000)
	NameBytes    int   // a name or link target, default 4096 (PATH_MAX)
}

// Defaults of Limits, and limits that no caller sets.
const (
	defaultControlBytes = 64 << 20
	defaultDataBytes    = 16 << 30
	defaultEntries      = 1_000_000
	defaultNameBytes    = 4096
	maxControlFile      = 16 << 20 // one member of control.tar that is read into memory
	maxFormatMember     = 64       // debian-binary, "2.0\n"
)

func (l Limits) withDefaults() Limits {
	fill(&l.ControlBytes, defaultControlBytes)
	fill(&l.DataBytes, defaultDataBytes)
	fill(&l.Entries, defaultEntries)
	fill(&l.NameBytes, defaultNameBytes)
	return l
}

func fill[T int | int64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Errors that a caller may branch on.
var (
	ErrFormat      = errors.New("not a Debian package of format 2")
	ErrLimit       = errors.New("over the limit")
	ErrUnsafe      = errors.New("unsafe entry")
	ErrUnsupported = errors.New("unsupported compression")
	ErrNoFile      = errors.New("no such control file")
)

// Package is an opened .deb. It holds no resources besides the reader that it was given, and its
// methods may be called concurrently if that reader allows it.
type Package struct {
	control, data member
	limits        Limits
}

// Open reads the outline of the .deb of the given size in r, with default limits.
func Open(r io.ReaderAt, size int64) (*Package, error) {
	return OpenLimited(r, size, Limits{})
}

// OpenLimited is Open with limits of the caller's.
func OpenLimited(r io.ReaderAt, size int64, limits Limits) (*Package, error) {
	p := &Package{limits: limits.withDefaults()}
	ar, err := newArReader(r, size)
	if err != nil {
		return nil, err
	}
	if err := checkFormat(ar); err != nil {
		return nil, err
	}
	if p.control, err = nextTar(ar, "control.tar"); err != nil {
		return nil, err
	}
	if p.data, err = nextTar(ar, "data.tar"); err != nil {
		return nil, err
	}
	return p, nil
}

// checkFormat reads the first member, whose content is the version of the format.
func checkFormat(ar *arReader) error {
	m, err := ar.next()
	if err == io.EOF {
		return fmt.Errorf("%w: the archive is empty", ErrFormat)
	}
	if err != nil {
		return err
	}
	if m.name != "debian-binary" {
		return fmt.Errorf("%w: the first member is %q, not debian-binary", ErrFormat, m.name)
	}
	version, err := io.ReadAll(io.LimitReader(m.open(), maxFormatMember))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(version), "2.") {
		return fmt.Errorf("%w: debian-binary says %q", ErrFormat, version)
	}
	return nil
}

// nextTar returns the next member, which must be called base plus a suffix. Members that begin with
// an underscore are for others to read, says deb(5).
func nextTar(ar *arReader, base string) (member, error) {
	for {
		m, err := ar.next()
		if errors.Is(err, io.EOF) {
			return m, fmt.Errorf("%w: there is no %s", ErrFormat, base)
		}
		if err != nil {
			return m, err
		}
		if strings.HasPrefix(m.name, "_") {
			continue
		}
		if !strings.HasPrefix(m.name, base) {
			return m, fmt.Errorf("%w: member %q where %s should be", ErrFormat, m.name, base)
		}
		return m, nil
	}
}

// Data iterates over the package's files. The caller closes it.
func (p *Package) Data() (*Entries, error) {
	return newEntries(p.data, "data.tar", p.limits, p.limits.DataBytes)
}

// Entries iterates over a tar. Use: Next until io.EOF, and Read for the content of the current entry.
type Entries struct {
	tar    *tar.Reader
	rest   io.Reader // what tar reads from
	closer io.Closer
	limits Limits
	name   string // of the member, for errors
	n      int
}

func newEntries(m member, base string, limits Limits, bytes int64) (*Entries, error) {
	r, err := decompress(m, strings.TrimPrefix(m.name, base))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	limited := bufio.NewReaderSize(&limitReader{r: r, left: bytes}, 64<<10)
	return &Entries{tar: tar.NewReader(limited), rest: limited, closer: r, limits: limits, name: m.name}, nil
}

// Next returns the next file, directory, symbolic or hard link. Its name is clean and relative, such
// as "usr/src/x" (the root itself is left out), and so is the target of a hard link; Linkname of a
// symbolic link is as written. Fields beyond name, type, size, mode, owner and mtime are dropped. At
// the end, which is io.EOF, the compressed stream has been read whole, so its own checksum held.
func (e *Entries) Next() (*tar.Header, error) {
	for {
		h, err := e.tar.Next()
		if err == io.EOF {
			if _, err := io.Copy(io.Discard, e.rest); err != nil {
				return nil, fmt.Errorf("%s: %w", e.name, err)
			}
			return nil, io.EOF
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		if e.n++; e.n > e.limits.Entries {
			return nil, fmt.Errorf("%s: %w of %d entries", e.name, ErrLimit, e.limits.Entries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		clean, err := cleanHeader(h, e.limits)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		if clean.Name != "." {
			return clean, nil
		}
	}
}

// Read reads from the current entry.
func (e *Entries) Read(p []byte) (int, error) {
	n, err := e.tar.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", e.name, err)
	}
	return n, err
}

// Close releases the decompressor.
func (e *Entries) Close() error { return e.closer.Close() }

// cleanHeader returns what is allowed of h.
func cleanHeader(h *tar.Header, limits Limits) (*tar.Header, error) {
	name, err := cleanName(h.Name, limits)
	if err != nil {
		return nil, err
	}
	clean := &tar.Header{Typeflag: h.Typeflag, Name: name, Size: h.Size, Mode: h.Mode & 0o7777,
		Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir:
	case tar.TypeSymlink:
		clean.Linkname, err = h.Linkname, checkLength(h.Linkname, limits)
	case tar.TypeLink:
		if clean.Linkname, err = cleanName(h.Linkname, limits); clean.Linkname == "." {
			err = fmt.Errorf("%w: a hard link to the root", ErrUnsafe)
		}
	default:
		return nil, fmt.Errorf("%w: %q is of type %q", ErrUnsafe, h.Name, h.Typeflag)
	}
	if err != nil {
		return nil, fmt.Errorf("link %q: %w", h.Name, err)
	}
	if name == "." && h.Typeflag != tar.TypeDir {
		return nil, fmt.Errorf("%w: the root is of type %q", ErrUnsafe, h.Typeflag)
	}
	return clean, nil
}

// cleanName returns "usr/src" for "./usr/src/".
func cleanName(name string, limits Limits) (string, error) {
	if err := checkLength(name, limits); err != nil {
		return "", err
	}
	clean := path.Clean(name)
	switch {
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("%w: name %q is absolute", ErrUnsafe, name)
	case clean == "..", strings.HasPrefix(clean, "../"):
		return "", fmt.Errorf("%w: name %q leaves the tree", ErrUnsafe, name)
	}
	return clean, nil
}

func checkLength(name string, limits Limits) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a name or target is empty", ErrUnsafe)
	case len(name) > limits.NameBytes:
		return fmt.Errorf("name of %d bytes: %w of %d", len(name), ErrLimit, limits.NameBytes)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("%w: name %q has a NUL", ErrUnsafe, name)
	}
	return nil
}
