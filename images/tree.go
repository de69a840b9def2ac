package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"
)

// PackTree writes a folder as a tar that depends on nothing but what DirSource
// and OpenHeaders take from it: paths, contents, links and whether a file can be
// executed, without what they leave out.
func PackTree(w io.Writer, dir string, without ...string) (err error) {
	e, err := openDir(dir, within(dir, without))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	tw := tar.NewWriter(w)
	err = each(e, func(h *tar.Header, r io.Reader) error {
		out := &tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: 0o644, ModTime: time.Unix(0, 0)}
		switch {
		case h.Typeflag == tar.TypeReg:
			out.Size = h.Size
			if h.Mode&0o111 != 0 {
				out.Mode = 0o755
			}
		case h.Typeflag == tar.TypeDir:
			out.Name, out.Mode = h.Name+"/", 0o755
		}
		if err := tw.WriteHeader(out); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	})
	if err != nil {
		return fmt.Errorf("packing %s: %w", dir, err)
	}
	return tw.Close()
}

// UnpackTree writes what PackTree has packed below root, which nothing in it can
// leave.
func UnpackTree(r io.Reader, root *os.Root) error {
	e := tarEntries{tar.NewReader(r), func() error { return nil }}
	left, n := int64(maxSourceBytes), 0
	return each(e, func(h *tar.Header, r io.Reader) error {
		if left, n = left-h.Size, n+1; left < 0 || n > maxSourceEntries {
			return fmt.Errorf("a folder may have %d entries and %d bytes", maxSourceEntries, int64(maxSourceBytes))
		}
		if err := unpackEntry(root, h, r); err != nil {
			return fmt.Errorf("unpacking %q: %w", h.Name, err)
		}
		return nil
	})
}

func unpackEntry(root *os.Root, h *tar.Header, r io.Reader) error {
	if dir := path.Dir(h.Name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(h.Name, 0o755)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, h.Name)
	case tar.TypeReg:
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
	}
	return errors.New("it is no file, folder or symbolic link")
}
