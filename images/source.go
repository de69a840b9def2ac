package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/store"
)

// Limits on a module's source.
const (
	maxSourceEntries = 500_000
	maxSourceBytes   = 8 << 30
	maxConf          = 1 << 20
	maxSourceName    = 4096
)

// ErrNoConf says that a source has no dkms.conf.
var ErrNoConf = errors.New("it has no dkms.conf")

// Source is a module's source at one version: the tree that DKMS expects as
// /usr/src/<name>-<version>.
type Source struct {
	// Name and Version are what the source says itself: the deb's path, or
	// literal assignments in dkms.conf. They are empty where it says nothing
	// that can be read without running it.
	Name, Version string
	// Digest is the sha256 in hex of the deb or tarball, or of a folder's
	// canonical tar.
	Digest string
	// Conf is dkms.conf as it is.
	Conf []byte
	// Code is how many bytes of C it has (*.c): a measure of what its build takes.
	Code int64
	// Depends is a deb's Depends field.
	Depends string
	// Epoch is the time of dkms.conf in the deb or tarball; of a folder, whose
	// times say nothing, the time that layers have.
	Epoch time.Time
	// Package is the archive's package that the source is; nil for all other
	// sources. Whoever finds it sets it.
	Package *apt.Package

	dir  string          // of a folder
	left map[string]bool // what is left out of it
	root string          // of the tree in the entries; "" for the entries' own root
	open func() (entries, error)
	hash func() (string, error) // makes Digest
}

// fileSource is a source in one file, which open opens.
func fileSource(file string, open func(string) (entries, error)) *Source {
	return &Source{open: func() (entries, error) { return open(file) }, hash: func() (string, error) { return hashFile(file) }}
}

// read takes Digest, and what dkms.conf says, from a source whose dkms.conf is
// the uppermost for which ok holds.
func (s *Source) read(ok func(name string) bool) (err error) {
	if err = s.findConf(ok); err != nil {
		return err
	}
	s.literals()
	s.Digest, err = s.hash()
	return err
}

// unchanged tells, after the source has been read, whether that was what
// Digest says: a folder may be edited while it is built from.
func (s *Source) unchanged() error {
	digest, err := s.hash()
	if err == nil && digest != s.Digest {
		err = errors.New("the source has changed since it was first read; run again")
	}
	return err
}

// DebSource reads a *-dkms package, whose tree is the /usr/src/<name>-<version>
// that holds a dkms.conf.
func DebSource(file string) (*Source, error) {
	s := fileSource(file, openDeb)
	err := s.read(func(name string) bool { return path.Dir(path.Dir(name)) == "usr/src" })
	if err == nil {
		s.Depends, err = debDepends(file)
	}
	if err != nil {
		return nil, err
	}
	dir := path.Base(s.root)
	if s.Name == "" || s.Version == "" || dir != s.Name+"-"+s.Version {
		s.Name, s.Version = splitDir(dir, s.Name, s.Version)
	}
	return s, nil
}

// splitDir tells name and version from <name>-<version>, where the one or the
// other may be known; else the version begins at the last hyphen before a digit.
func splitDir(dir, name, version string) (string, string) {
	if v, ok := strings.CutPrefix(dir, name+"-"); ok && name != "" {
		return name, v
	}
	if n, ok := strings.CutSuffix(dir, "-"+version); ok && version != "" {
		return n, version
	}
	if m := nameVersion.FindStringSubmatch(dir); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

var nameVersion = regexp.MustCompile(`^(.+)-(\d[^-]*(?:-.*)?)$`)

// TarSource reads a tarball: plain, gz, xz, zst or bz2. Its tree is where the
// uppermost dkms.conf is.
func TarSource(file string) (*Source, error) {
	s := fileSource(file, openTar)
	if err := s.read(func(string) bool { return true }); err != nil {
		return nil, err
	}
	return s, nil
}

// DirSource reads a folder. Left out of it are .git, what has a name that only
// kofarm gives, and those of the files and folders without that lie in it.
func DirSource(dir string, without ...string) (*Source, error) {
	s := folder(dir, without)
	if err := s.read(func(name string) bool { return name == "dkms.conf" }); err != nil {
		return nil, err
	}
	s.Epoch = layerTime
	return s, nil
}

func folder(dir string, without []string) *Source {
	s := &Source{dir: dir, left: within(dir, without)}
	s.open = func() (entries, error) { return openDir(dir, s.left) }
	s.hash = s.hashTree
	return s
}

// Holds says whether a file of that path is part of the source, or would be: of a
// folder that it lies in, and that does not leave it out.
func (s *Source) Holds(file string) bool {
	if s.dir == "" {
		return false
	}
	in := within(s.dir, []string{file})
	for name := range in {
		for ; name != "."; name = path.Dir(name) {
			if s.left[name] || neverSource(path.Base(name)) {
				return false
			}
		}
	}
	return len(in) > 0
}

// Walk calls f for every entry of the tree, with names relative to it.
func (s *Source) Walk(f func(h *tar.Header, r io.Reader) error) error {
	return s.all(func(h *tar.Header, r io.Reader) error {
		name, ok := s.inside(h.Name)
		if !ok || name == "." {
			return nil
		}
		c := *h
		c.Name = name
		if h.Typeflag == tar.TypeLink {
			if c.Linkname, ok = s.inside(h.Linkname); !ok {
				return fmt.Errorf("%q is a hard link out of the source", h.Name)
			}
		}
		return f(&c, r)
	})
}

func (s *Source) inside(name string) (string, bool) {
	if s.root == "" || s.root == "." {
		return name, true
	}
	if name == s.root {
		return ".", true
	}
	return strings.CutPrefix(name, s.root+"/")
}

// all goes through all entries, with limits.
func (s *Source) all(f func(h *tar.Header, r io.Reader) error) (err error) {
	e, err := s.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	left := int64(maxSourceBytes)
	for n := 0; ; n++ {
		h, err := e.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if left -= h.Size; left < 0 || n > maxSourceEntries {
			return fmt.Errorf("a source may have %d entries and %d bytes", maxSourceEntries, int64(maxSourceBytes))
		}
		if err := f(h, e); err != nil {
			return err
		}
	}
}

// findConf finds the uppermost dkms.conf for which ok holds, and counts Code.
func (s *Source) findConf(ok func(name string) bool) error {
	depth := -1
	err := s.all(func(h *tar.Header, r io.Reader) error {
		if path.Ext(h.Name) == ".c" && h.Typeflag == tar.TypeReg {
			s.Code += h.Size
		}
		if path.Base(h.Name) != "dkms.conf" || !ok(h.Name) {
			return nil
		}
		if d := strings.Count(h.Name, "/"); depth >= 0 && d >= depth {
			return nil
		}
		switch {
		case h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink:
			return fmt.Errorf("%s is a link to %s: put the file itself in its place", h.Name, h.Linkname)
		case h.Typeflag != tar.TypeReg || h.Size > maxConf:
			return fmt.Errorf("%s is no file of at most %d bytes", h.Name, maxConf)
		}
		data, err := io.ReadAll(io.LimitReader(r, maxConf))
		s.Conf, s.root, depth = data, path.Dir(h.Name), strings.Count(h.Name, "/")
		s.Epoch = h.ModTime.UTC()
		return err
	})
	if err == nil && depth < 0 {
		err = ErrNoConf
	}
	return err
}

var literal = regexp.MustCompile(`(?m)^[ \t]*PACKAGE_(NAME|VERSION)=(?:"([^"$` + "`" + `\\]*)"|'([^']*)'|([^\s"'$` + "`" + `\\;#&|()]+))[ \t]*\r?(?:#.*)?$`)

// literals takes name and version from dkms.conf where each is assigned once
// and literally. The file is a script, which is only ever run in a container.
func (s *Source) literals() {
	found := map[string][]string{}
	for _, m := range literal.FindAllStringSubmatch(string(s.Conf), -1) {
		found[m[1]] = append(found[m[1]], m[2]+m[3]+m[4])
	}
	if len(found["NAME"]) == 1 && strings.Count(string(s.Conf), "PACKAGE_NAME=") == 1 {
		s.Name = found["NAME"][0]
	}
	if len(found["VERSION"]) == 1 && strings.Count(string(s.Conf), "PACKAGE_VERSION=") == 1 {
		s.Version = found["VERSION"][0]
	}
}

// Unpack writes the tree below root, which nothing in it can leave. Files get
// mode 0644 or 0755.
func (s *Source) Unpack(root *os.Root) error {
	err := s.Walk(func(h *tar.Header, r io.Reader) error {
		if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			return root.MkdirAll(h.Name, 0o755)
		case tar.TypeSymlink:
			return root.Symlink(h.Linkname, h.Name)
		case tar.TypeLink:
			return root.Link(h.Linkname, h.Name)
		}
		mode := fs.FileMode(0o644)
		if h.Mode&0o111 != 0 {
			mode = 0o755
		}
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Chmod(mode), f.Close())
	})
	if err != nil {
		return err
	}
	return s.unchanged()
}

// hashTree gives the sha256 of the tree in canonical form.
func (s *Source) hashTree() (string, error) {
	sum := sha256.New()
	err := s.Walk(func(h *tar.Header, r io.Reader) error {
		fmt.Fprintf(sum, "%q %c %t %q %d\n", h.Name, h.Typeflag, h.Mode&0o111 != 0 && h.Typeflag == tar.TypeReg, h.Linkname, h.Size)
		_, err := io.Copy(sum, r)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

// sourceLayer makes the layer with the tree at /usr/src/<name>-<version>, and
// whatever else a deb brings at its own place.
func sourceLayer(s *store.Store, src *Source) (*store.Layer, error) {
	home := "usr/src/" + src.Name + "-" + src.Version
	sum := sha256.Sum256(fmt.Appendf(nil, "kofarm layer %d source\n%s\n%s", LayerFormat, home, src.Digest))
	return makeLayer(s, "source-"+hex.EncodeToString(sum[:]), func(w *layerWriter) error {
		err := src.all(func(h *tar.Header, r io.Reader) error {
			h, err := src.placed(h, home)
			if h == nil || err != nil {
				return err
			}
			return w.add(h, r)
		})
		if err != nil {
			return err
		}
		return src.unchanged()
	})
}

// placed gives an entry with the path that it has in the layer, nil for one
// that is left out.
func (s *Source) placed(h *tar.Header, home string) (*tar.Header, error) {
	name, inTree := s.inside(h.Name)
	isDeb := strings.HasPrefix(s.root, "usr/src/")
	switch {
	case !inTree && (!isDeb || skipped.MatchString(h.Name)):
		return nil, nil
	case !inTree:
		return h, nil
	}
	c := *h
	c.Name = path.Join(home, name)
	if h.Typeflag == tar.TypeLink {
		target, ok := s.inside(h.Linkname)
		if !ok {
			return nil, fmt.Errorf("%q is a hard link out of the source", h.Name)
		}
		c.Linkname = path.Join(home, target)
	}
	return &c, nil
}
