package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// maxFiles bounds the files of one package; the whole kernel has 90,000.
const maxFiles = 250_000

// file is a member of a package. The zero mode means a plain file of 0644.
type file struct {
	mode  uint16
	flags uint32
	link  string
	open  func() (io.ReadCloser, int64, error) // gives the size too; files only
}

func folder() file { return file{mode: rpmfile.TypeDir | 0o755} }

// content is a file that is in memory.
func content(data string) file {
	return file{open: func() (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader(data)), int64(len(data)), nil
	}}
}

// tree holds a package's files by path.
type tree map[string]file

// add puts a file at a path that is free.
func (t tree) add(name string, f file) error {
	if _, ok := t[name]; ok {
		return fmt.Errorf("%q is there twice", name)
	}
	if len(t) >= maxFiles {
		return fmt.Errorf("more than %d files", maxFiles)
	}
	t[name] = f
	return nil
}

// folders puts folders at dir and above, below top, where there are none.
func (t tree) folders(top, dir string) error {
	for ; dir != top; dir = path.Dir(dir) {
		if old, ok := t[dir]; ok {
			if old.mode&rpmfile.TypeDir == 0 {
				return fmt.Errorf("%q is not a folder, but something is inside", dir)
			}
			return nil
		}
		if err := t.add(dir, folder()); err != nil {
			return err
		}
	}
	return nil
}

// source adds a module's source below top, which gets a folder too: of modes
// only the execute bit is kept.
func (t tree) source(top string, files iter.Seq2[dkms.File, error]) error {
	t[top] = folder()
	for f, err := range files {
		if err == nil {
			err = f.Validate()
		}
		if err != nil {
			return fmt.Errorf("adding the source: %w", err)
		}
		name := path.Join(top, f.Path)
		if !utf8.ValidString(f.Path) || slices.ContainsFunc([]rune(f.Path), unicode.IsControl) {
			return fmt.Errorf("adding the source: file name %q, rpm wants UTF-8 without control characters", f.Path)
		}
		if err := t.folders(top, path.Dir(name)); err != nil {
			return fmt.Errorf("adding the source: %w", err)
		}
		if old, ok := t[name]; ok && f.Mode.IsDir() && old.mode&rpmfile.TypeDir != 0 {
			continue
		}
		if err := t.add(name, sourceFile(f)); err != nil {
			return fmt.Errorf("adding the source: %w", err)
		}
	}
	return nil
}

func sourceFile(f dkms.File) file {
	switch f.Mode.Type() {
	case fs.ModeDir:
		return folder()
	case fs.ModeSymlink:
		return file{mode: rpmfile.TypeSymlink | 0o777, link: f.Link}
	}
	mode := rpmfile.TypeFile | 0o644
	if f.Mode&0o111 != 0 {
		mode = rpmfile.TypeFile | 0o755
	}
	return file{mode: mode, open: func() (io.ReadCloser, int64, error) {
		r, err := f.Open()
		return r, f.Size, err
	}}
}

// payload makes the payload of a package. Close it.
func (t tree) payload(info Info) (*rpmfile.Payload, error) {
	p, err := rpmfile.NewPayload(info.Payload, info.Epoch)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if err := t[name].addTo(p, name); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

func (f file) addTo(p *rpmfile.Payload, name string) (err error) {
	out := rpmfile.File{Name: name, Mode: cmp.Or(f.mode, rpmfile.TypeFile|0o644), Flags: f.flags, Link: f.link}
	if f.open != nil {
		r, size, err := f.open()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		out.Size, out.Body = size, r
	}
	return p.Add(out)
}
