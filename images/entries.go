package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/kofarm/kofarm/images/deb"
)

// entries iterates over an archive or a folder. Names are clean and relative.
type entries interface {
	Next() (*tar.Header, error)
	io.Reader
	io.Closer
}

func hashFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

type debEntries struct {
	*deb.Entries
	f *os.File
}

func (d debEntries) Close() error { return errors.Join(d.Entries.Close(), d.f.Close()) }

func openDebFile(file string) (*deb.Package, *os.File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	pkg, err := deb.Open(f, fi.Size())
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return pkg, f, nil
}

func openDeb(file string) (entries, error) {
	p, f, err := openDebFile(file)
	if err != nil {
		return nil, err
	}
	e, err := p.Data()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return debEntries{e, f}, nil
}

// debPostinst gives a package's postinst script, nil where it has none.
func debPostinst(file string) ([]byte, error) {
	p, f, err := openDebFile(file)
	if err != nil {
		return nil, err
	}
	script, err := p.ControlFile("postinst")
	if errors.Is(err, deb.ErrNoFile) {
		err = nil
	}
	return script, errors.Join(err, f.Close())
}

func debDepends(file string) (string, error) {
	p, f, err := openDebFile(file)
	if err != nil {
		return "", err
	}
	c, err := p.Control()
	return c["Depends"], errors.Join(err, f.Close())
}

// tarEntries iterates over a tarball of a source.
type tarEntries struct {
	*tar.Reader
	close func() error
}

func (t tarEntries) Close() error { return t.close() }

// Next gives the next file, folder or link. A path that leaves the archive,
// or an entry of another kind, is an error.
func (t tarEntries) Next() (*tar.Header, error) {
	for {
		h, err := t.Reader.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("it is no tarball, or a broken one: %w", err)
		}
		if err != nil {
			return nil, err
		}
		switch h.Typeflag {
		case tar.TypeXGlobalHeader:
			continue
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
		case tar.TypeLink:
			if h.Linkname, err = cleanPath(h.Linkname); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%q is no file, folder or link (tar type %q)", h.Name, h.Typeflag)
		}
		if h.Name, err = cleanPath(h.Name); err != nil {
			return nil, err
		}
		return h, nil
	}
}

func cleanPath(name string) (string, error) {
	clean := path.Clean(name)
	if !filepath.IsLocal(clean) || len(name) > maxSourceName || strings.ContainsAny(name, "\x00\n") {
		return "", fmt.Errorf("the path %q leaves the archive", name)
	}
	return clean, nil
}

func openTar(file string) (entries, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	r, closeDecoder, err := decompress(bufio.NewReader(f))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return tarEntries{tar.NewReader(r), func() error {
		closeDecoder()
		return f.Close()
	}}, nil
}

// decompress tells the compression by the first bytes.
func decompress(r *bufio.Reader) (io.Reader, func(), error) {
	magic, _ := r.Peek(6)
	nothing := func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(r, xz.DefaultDictMax) // 64 MiB, what xz -9 uses
		return z, nothing, err
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, nothing, err
		}
		return z, z.Close, nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2.NewReader(r), nothing, nil
	}
	return r, nothing, nil
}

// dirEntries iterates over a folder, in the order of its paths.
type dirEntries struct {
	root  *os.Root
	names []string
	file  *os.File
}

// openDir opens a folder, without the paths that are left out of it, and without
// the folders that hold nothing else: whether those are there makes no difference.
func openDir(dir string, left map[string]bool) (entries, error) {
	if left["."] {
		return nil, errors.New("kofarm writes its own files there: give the output, or the store, a folder of its own")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d := &dirEntries{root: root}
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case (left[name] || neverSource(e.Name())) && e.IsDir():
			return fs.SkipDir
		case left[name] || neverSource(e.Name()):
			return nil
		case len(d.names) >= maxSourceEntries:
			return fmt.Errorf("more than %d files", maxSourceEntries)
		}
		d.names = append(d.names, name)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	d.prune(left)
	return d, nil
}

// prune takes out the folders that hold nothing but what is left out.
func (d *dirEntries) prune(left map[string]bool) {
	above := map[string]bool{}
	for name := range left {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			above[dir] = true
		}
	}
	for i := len(d.names) - 1; i >= 0; i-- { // the first thing in a folder is right behind it
		if above[d.names[i]] && (i+1 == len(d.names) || !strings.HasPrefix(d.names[i+1], d.names[i]+"/")) {
			d.names = slices.Delete(d.names, i, i+1)
		}
	}
}

func (d *dirEntries) Next() (*tar.Header, error) {
	d.closeFile()
	if len(d.names) == 0 {
		return nil, io.EOF
	}
	name := d.names[0]
	d.names = d.names[1:]
	fi, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	target := ""
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		if target, err = d.root.Readlink(name); err != nil {
			return nil, err
		}
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file, folder or link", name)
	}
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return nil, err
	}
	h.Name = name
	if fi.Mode().IsRegular() {
		d.file, err = d.root.Open(name)
	}
	return h, err
}

func (d *dirEntries) Read(p []byte) (int, error) {
	if d.file == nil {
		return 0, io.EOF
	}
	return d.file.Read(p)
}

func (d *dirEntries) closeFile() {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
}

func (d *dirEntries) Close() error {
	d.closeFile()
	return d.root.Close()
}
