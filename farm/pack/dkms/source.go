package dkms

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
)

// File is a file, folder or symbolic link of a module's source.
type File struct {
	// Path is relative to the top of the source, with slashes (fs.ValidPath).
	Path string
	// Mode gives the type, and for a file whether it is executable.
	Mode fs.FileMode
	// Size in bytes of what Open gives; files only.
	Size int64
	// Link is the target of a symbolic link.
	Link string
	// Open is called once while the tarball is written; files only.
	Open func() (io.ReadCloser, error)
}

// Validate refuses what has no place in an archive that root unpacks: a path or
// a link that leaves the tree, and all that is neither file, folder nor link.
func (f File) Validate() error {
	if !fs.ValidPath(f.Path) {
		return fmt.Errorf("path %q leaves the tree, or is not in its shortest form", f.Path)
	}
	if strings.ContainsRune(f.Path, 0) {
		return fmt.Errorf("path %q", f.Path)
	}
	switch f.Mode.Type() {
	case fs.ModeDir:
		return nil
	case fs.ModeSymlink:
		return checkLink(f.Path, f.Link)
	case 0:
		if f.Size < 0 || f.Open == nil {
			return fmt.Errorf("file %q of %d bytes cannot be read", f.Path, f.Size)
		}
		return nil
	}
	return fmt.Errorf("%q is neither file, folder nor link (%v)", f.Path, f.Mode.Type())
}

// maxSourceFiles bounds the entries of a source; the whole kernel has 90,000.
const maxSourceFiles = 250_000

// SourceFS gives everything below the top of a file system, dotfiles too.
// The dkms.conf at the top has [UnixLines].
// Links are given as they are and never followed; a file system that has them
// must be an [fs.ReadLinkFS], as os.DirFS and os.Root.FS are.
func SourceFS(fsys fs.FS) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || name == "." {
				return err
			}
			f, err := sourceFile(fsys, name, d)
			if err != nil {
				return err
			}
			if !yield(f, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(File{}, err)
		}
	}
}

func sourceFile(fsys fs.FS, name string, d fs.DirEntry) (File, error) {
	st, err := d.Info()
	if err != nil {
		return File{}, err
	}
	f := File{Path: name, Mode: st.Mode()}
	switch st.Mode().Type() {
	case fs.ModeSymlink:
		f.Link, err = fs.ReadLink(fsys, name)
	case 0:
		f.Size = st.Size()
		f.Open = func() (io.ReadCloser, error) { return fsys.Open(name) }
		if name == confName && f.Size <= maxConfSize {
			return f, f.unixLines()
		}
	}
	return f, err
}

// UnixLines is a dkms.conf without carriage returns at the ends of its lines,
// which dkms 3.0.10 takes for a part of each value.
func UnixLines(conf []byte) []byte { return bytes.ReplaceAll(conf, []byte("\r\n"), []byte("\n")) }

func (f *File) unixLines() error {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxConfSize))
	if err != nil {
		return err
	}
	data = UnixLines(data)
	f.Size, f.Open = int64(len(data)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return nil
}
