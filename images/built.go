package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kofarm/kofarm/images/store"
)

// Built is a module version that was built before for the same kernel. An image
// that is made upon it has its source, and what DKMS keeps of the build.
type Built struct {
	Source       *Source
	Kernel, Arch string // kernel release; DKMS's name
	Files        []BuiltFile
	Tree         *BuiltFile // a tar of more files, below the same folder; nil: none
}

// BuiltFile is a file that a build has left.
type BuiltFile struct {
	Name   string // below DKMS's folder of the build, such as module/zfs.ko
	SHA256 string // in hex
	Size   int64  // bytes
	Open   func() (io.ReadCloser, error)
}

// BuiltDir is where an image has what Built says, as NAME/VERSION/KERNEL/ARCH.
// DKMS's own folder is a file system of the container's: the recipe copies it there.
const BuiltDir = "usr/lib/kofarm/dkms"

// dir is where an image has the files.
func (b Built) dir() string {
	return path.Join(BuiltDir, b.Source.Name, b.Source.Version, b.Kernel, b.Arch)
}

// layerName names the layer by all that makes it.
func (b Built) layerName() string {
	h := sha256.New()
	fmt.Fprintf(h, "kofarm layer %d built\n%s\n", LayerFormat, b.dir())
	for _, f := range b.Files {
		fmt.Fprintf(h, "%q %s\n", f.Name, f.SHA256)
	}
	if b.Tree != nil {
		fmt.Fprintf(h, "tree %s\n", b.Tree.SHA256)
	}
	return "built-" + hex.EncodeToString(h.Sum(nil))
}

func (b Built) layer(s *store.Store) (*store.Layer, error) {
	return makeLayer(s, b.layerName(), func(w *layerWriter) error {
		if err := w.dir(b.dir()); err != nil { // there may be no file
			return err
		}
		for _, f := range b.Files {
			err := f.read(func(r io.Reader) error {
				return w.add(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(b.dir(), f.Name), Size: f.Size}, r)
			})
			if err != nil {
				return err
			}
		}
		if b.Tree == nil {
			return nil
		}
		return b.Tree.read(func(r io.Reader) error { return w.unpack(b.dir(), r) })
	})
}

func (f BuiltFile) read(use func(io.Reader) error) (err error) {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return use(r)
}

// unpack adds what a tar has, below dir.
func (l *layerWriter) unpack(dir string, r io.Reader) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // to its end, where its digest is checked
			return err
		}
		if err != nil {
			return err
		}
		if name := strings.TrimSuffix(h.Name, "/"); !fs.ValidPath(name) || h.Typeflag == tar.TypeLink || Sparse(h) {
			return fmt.Errorf("%q is no plain path, a hard link, or sparse", h.Name)
		}
		h.Name = path.Join(dir, h.Name)
		if err := l.add(h, t); err != nil {
			return err
		}
	}
}

// Sparse tells whether a file in a tar has more bytes than the tar has for it:
// nothing that kofarm writes, and of any size in a few bytes.
func Sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}
