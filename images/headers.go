package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/store"
)

// maxSymvers bounds a Module.symvers in bytes (Debian's 6.12 has 2.3 MB).
const maxSymvers = 64 << 20

// ErrNoSymvers says that a kernel's headers hold no Module.symvers.
var ErrNoSymvers = errors.New("the headers hold no Module.symvers")

// Headers are the headers of a kernel of one's own: folders, .deb or .rpm
// files, one upon the other.
type Headers struct {
	Release string // kernel release
	Digests []string
	parts   []headerPart
	build   string // folder of the build tree, relative to the root
	symvers bool   // whether a Module.symvers is there
}

type headerPart struct {
	*Source
	path string
	tree bool // a bare build tree, without a place of its own
}

// OpenHeaders reads the headers of a kernel of one's own, and finds the build
// tree in them, which is for that release. Of folders it leaves out what DirSource
// does.
func OpenHeaders(release string, paths []string, without ...string) (*Headers, error) {
	h := &Headers{Release: release}
	for _, p := range paths {
		if err := h.addPart(p, without); err != nil {
			return nil, fmt.Errorf("reading kernel headers %s: %w", p, err)
		}
	}
	if err := h.find(); err != nil {
		return nil, fmt.Errorf("reading kernel headers %s: %w", strings.Join(paths, ", "), err)
	}
	return h, nil
}

func (h *Headers) addPart(p string, without []string) error {
	part := headerPart{path: p}
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	switch {
	case fi.IsDir():
		part.tree, part.Source = true, folder(p, without)
	case strings.HasSuffix(p, ".deb"):
		part.Source = fileSource(p, openDeb)
	case strings.HasSuffix(p, ".rpm"):
		part.Source = fileSource(p, openRPM)
	default:
		return errors.New("headers are a folder, a .deb or a .rpm")
	}
	if part.Digest, err = part.hash(); err != nil {
		return err
	}
	h.Digests = append(h.Digests, part.Digest)
	h.parts = append(h.parts, part)
	return nil
}

// each calls f for every entry of all parts, a bare tree's under the place that
// distributions use.
func (h *Headers) each(f func(*tar.Header, io.Reader) error) error {
	for _, p := range h.parts {
		err := p.all(func(e *tar.Header, r io.Reader) error {
			c := *e
			if p.tree {
				c.Name = path.Join("usr/src/linux-headers-"+h.Release, e.Name)
			}
			return f(&c, r)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	}
	return nil
}

// releaseFiles say which kernel a build tree is for. In Debian's 6.1 only the
// first, which a module's vermagic comes from, has the whole release.
var releaseFiles = []struct {
	path    string
	release *regexp.Regexp
}{
	{"/include/generated/utsrelease.h", regexp.MustCompile(`(?m)^#define UTS_RELEASE "([^"\n]+)"`)},
	{"/include/config/kernel.release", regexp.MustCompile(`^(\S+)\s*$`)},
}

// maxReleaseFile bounds what is read of one of them, in bytes.
const maxReleaseFile = 64 << 10

// find looks for the build tree and its Module.symvers.
func (h *Headers) find() error {
	symvers := map[string]bool{} // folders that have one
	other := map[string]bool{}
	err := h.each(func(e *tar.Header, r io.Reader) error {
		if e.Typeflag != tar.TypeReg {
			return nil
		}
		if path.Base(e.Name) == "Module.symvers" {
			symvers[path.Dir(e.Name)] = true
		}
		for _, f := range releaseFiles {
			dir, ok := strings.CutSuffix(e.Name, f.path)
			if !ok {
				continue
			}
			data, err := io.ReadAll(io.LimitReader(r, maxReleaseFile))
			if err != nil {
				return err
			}
			if m := f.release.FindSubmatch(data); m != nil && string(m[1]) == h.Release {
				h.build = dir
			} else if m != nil {
				other[string(m[1])] = true
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case h.build == "" && len(other) > 0:
		return fmt.Errorf("they are of kernel %q, not %q", sortedKeys(other), h.Release)
	case h.build == "":
		return errors.New("they hold neither include/generated/utsrelease.h nor include/config/kernel.release: not a built kernel's headers")
	}
	h.symvers = symvers[h.build]
	return nil
}

// Symvers reads the kernel's Module.symvers. The error is ErrNoSymvers where
// there is none.
func (h *Headers) Symvers() (data []byte, err error) {
	if !h.symvers {
		return nil, ErrNoSymvers
	}
	err = h.each(func(e *tar.Header, r io.Reader) (err error) {
		if e.Name == h.build+"/Module.symvers" && e.Typeflag == tar.TypeReg {
			data, err = readSymvers(e, r)
		}
		return err
	})
	return data, err
}

func readSymvers(h *tar.Header, r io.Reader) ([]byte, error) {
	if h.Size > maxSymvers {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", h.Name, h.Size, int64(maxSymvers))
	}
	return io.ReadAll(r)
}

func (h *Headers) layerName() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "kofarm layer %d headers\n%s\n%q", LayerFormat, h.Release, h.Digests))
	return "headers-" + hex.EncodeToString(sum[:])
}

func (h *Headers) layer(s *store.Store) func() (*store.Layer, error) {
	return func() (*store.Layer, error) {
		return makeLayer(s, h.layerName(), func(w *layerWriter) error {
			if err := h.each(w.add); err != nil {
				return err
			}
			for _, p := range h.parts {
				if err := p.unchanged(); err != nil {
					return fmt.Errorf("%s: %w", p.path, err)
				}
			}
			link := "usr/lib/modules/" + h.Release + "/build"
			if w.seen[link] {
				return nil
			}
			return w.link(link, "/"+usrMerged(h.build))
		})
	}
}

// Symvers reads the Module.symvers of a cell's kernel from its headers. The
// error is ErrNoSymvers where they hold none.
func (a *Assembler) Symvers(ctx context.Context, in Inputs, release string) ([]byte, error) {
	if in.Custom != nil {
		return in.Custom.Symvers()
	}
	for _, p := range in.Headers {
		if p.Name == "linux-headers-"+release {
			return a.packageSymvers(ctx, p, "usr/src/linux-headers-"+release+"/Module.symvers")
		}
	}
	return nil, fmt.Errorf("kernel %s: %w", release, ErrNoSymvers)
}

const (
	// symversRef is the kind of ref that names a package's Module.symvers by the
	// package's sha256.
	symversRef = "symvers"
	// symversType is a Module.symvers compressed by zstd, to about a seventh:
	// reading it takes a tenth of what the package takes.
	symversType types.MediaType = "application/vnd.kofarm.symvers.v1+zstd"
)

// packageSymvers reads a package's Module.symvers from the store, which keeps it
// once it was read out of the package.
func (a *Assembler) packageSymvers(ctx context.Context, p *apt.Package, name string) ([]byte, error) {
	if data, err := a.storedSymvers(p.SHA256); err == nil {
		return data, nil
	}
	file, err := a.Fetcher.Package(ctx, p)
	if err != nil {
		return nil, err
	}
	data, err := symversOf(file, name)
	if err != nil {
		return nil, err
	}
	return data, a.storeSymvers(p.SHA256, data)
}

func (a *Assembler) storedSymvers(key string) ([]byte, error) {
	d, err := a.Store.Ref(symversRef, key)
	if err != nil {
		return nil, err
	}
	packed, err := a.Store.Get(d.Digest, maxSymvers)
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSymvers))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(packed, nil)
}

func (a *Assembler) storeSymvers(key string, data []byte) error {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	d, err := a.Store.Put(w.EncodeAll(data, nil), symversType)
	if err != nil {
		return err
	}
	return a.Store.SetRef(symversRef, key, d)
}

// symversOf reads a file out of a .deb.
func symversOf(file, name string) (data []byte, err error) {
	src := Source{open: func() (entries, error) { return openDeb(file) }}
	err = src.all(func(h *tar.Header, r io.Reader) (err error) {
		if h.Name == name && h.Typeflag == tar.TypeReg {
			data, err = readSymvers(h, r)
		}
		return err
	})
	if err == nil && data == nil {
		err = fmt.Errorf("%s: %w", file, ErrNoSymvers)
	}
	return data, err
}
