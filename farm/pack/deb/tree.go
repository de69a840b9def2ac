package deb

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

// entry is one member of an archive.
type entry struct {
	name     string // "./…", of a folder with a slash at the end
	typeflag byte
	mode     int64
	size     int64 // in bytes, of what open gives
	link     string
	open     func() (io.ReadCloser, error) // nil: no content
	compress Compression                   // of the content, as a module; empty: none
}

// content gives what is to be stored, and its size.
func (e entry) content() (io.ReadCloser, int64, error) {
	r, err := e.open()
	if err != nil || e.compress == "" || e.compress == None {
		return r, e.size, err
	}
	defer r.Close()
	plain, err := io.ReadAll(io.LimitReader(r, e.size+1))
	if err != nil {
		return nil, 0, err
	}
	if int64(len(plain)) != e.size {
		return nil, 0, fmt.Errorf("content is not of the %d bytes announced", e.size)
	}
	data, err := e.compress.module(plain)
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), err
}

// tree collects entries by path: relative, without "./".
type tree map[string]entry

func newTree() tree { return tree{".": {name: "./", typeflag: tar.TypeDir, mode: 0o755}} }

// sorted lists the entries, a folder before what is in it.
func (t tree) sorted() []entry {
	entries := make([]entry, 0, len(t))
	for _, e := range t {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries
}

// file adds a file that is in memory.
func (t tree) file(name string, mode int64, data []byte) error {
	return t.add(name, entry{
		typeflag: tar.TypeReg, mode: mode, size: int64(len(data)),
		open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	})
}

// add puts an entry at a path and the folders above it. A path that is taken,
// or leads through something that is no folder, is an error.
func (t tree) add(name string, e entry) error {
	if err := t.folder(path.Dir(name)); err != nil {
		return err
	}
	if old, ok := t[name]; ok {
		if old.typeflag == tar.TypeDir && e.typeflag == tar.TypeDir {
			return nil
		}
		return fmt.Errorf("%q is there twice", name)
	}
	e.name = "./" + name
	if e.typeflag == tar.TypeDir {
		e.name += "/"
	}
	t[name] = e
	return nil
}

// folder makes sure that there is a folder at a path.
func (t tree) folder(name string) error {
	if old, ok := t[name]; ok {
		if old.typeflag != tar.TypeDir {
			return fmt.Errorf("%q is not a folder, but something is inside", name)
		}
		return nil
	}
	return t.add(name, entry{typeflag: tar.TypeDir, mode: 0o755})
}

// maxFiles bounds the entries of a package; the whole kernel has 90,000.
const maxFiles = 250_000

// files adds files below a folder, but those that skip says.
func (t tree) files(dir string, files iter.Seq2[dkms.File, error], skip func(dkms.File) bool) error {
	for f, err := range files {
		if err != nil {
			return err
		}
		if err := f.Validate(); err != nil {
			return err
		}
		// dpkg's lists of files have one name a line.
		if strings.ContainsFunc(f.Path+f.Link, unicode.IsControl) {
			return fmt.Errorf("path %q or its link has a control character", f.Path)
		}
		if skip != nil && skip(f) {
			continue
		}
		if len(t) > maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		if err := t.add(path.Join(dir, f.Path), fileEntry(f)); err != nil {
			return err
		}
	}
	return nil
}

// fileEntry decides how a file is stored: of the mode only the execute bit is
// kept, so nothing is setuid.
func fileEntry(f dkms.File) entry {
	switch {
	case f.Mode.IsDir():
		return entry{typeflag: tar.TypeDir, mode: 0o755}
	case f.Mode.Type() == fs.ModeSymlink:
		return entry{typeflag: tar.TypeSymlink, mode: 0o777, link: f.Link}
	}
	mode := int64(0o644)
	if f.Mode&0o111 != 0 {
		mode = 0o755
	}
	return entry{typeflag: tar.TypeReg, mode: mode, size: f.Size, open: f.Open}
}
