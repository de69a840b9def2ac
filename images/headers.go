package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

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
	symvers []byte
}

type headerPart struct {
	path string
	open func() (entries, error)
	tree bool // a bare build tree, without a place of its own
}

// OpenHeaders reads the headers of a kernel of one's own, and finds the build
// tree in them: the folder whose include/config/kernel.release is the release.
func OpenHeaders(release string, paths []string) (*Headers, error) {
	h := &Headers{Release: release}
	for _, p := range paths {
		if err := h.addPart(p); err != nil {
			return nil, fmt.Errorf("reading kernel headers %s: %w", p, err)
		}
	}
	if err := h.find(); err != nil {
		return nil, fmt.Errorf("reading kernel headers %s: %w", strings.Join(paths, ", "), err)
	}
	return h, nil
}

func (h *Headers) addPart(p string) error {
	part := headerPart{path: p}
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	switch {
	case fi.IsDir():
		part.tree, part.open = true, func() (entries, error) { return openDir(p) }
		src := Source{open: part.open}
		digest, err := src.hashTree()
		h.Digests = append(h.Digests, digest)
		h.parts = append(h.parts, part)
		return err
	case strings.HasSuffix(p, ".deb"):
		part.open = func() (entries, error) { return openDeb(p) }
	case strings.HasSuffix(p, ".rpm"):
		part.open = func() (entries, error) { return openRPM(p) }
	default:
		return errors.New("headers are a folder, a .deb or a .rpm")
	}
	digest, err := hashFile(p)
	h.Digests = append(h.Digests, digest)
	h.parts = append(h.parts, part)
	return err
}

// each calls f for every entry of all parts, a bare tree's under the place that
// distributions use.
func (h *Headers) each(f func(*tar.Header, io.Reader) error) error {
	for _, p := range h.parts {
		src := Source{open: p.open}
		err := src.all(func(e *tar.Header, r io.Reader) error {
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

// find looks for the build tree and its Module.symvers.
func (h *Headers) find() error {
	symvers := map[string][]byte{}
	var other []string
	err := h.each(func(e *tar.Header, r io.Reader) error {
		switch {
		case e.Typeflag != tar.TypeReg:
		case strings.HasSuffix(e.Name, "/include/config/kernel.release"):
			data, err := io.ReadAll(io.LimitReader(r, 1024))
			if got := string(bytes.TrimSpace(data)); got == h.Release {
				h.build = strings.TrimSuffix(e.Name, "/include/config/kernel.release")
			} else {
				other = append(other, got)
			}
			return err
		case path.Base(e.Name) == "Module.symvers" && e.Size <= maxSymvers:
			data, err := io.ReadAll(r)
			symvers[path.Dir(e.Name)] = data
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if h.build == "" && len(other) > 0 {
		return fmt.Errorf("they are of kernel %s, not %s", strings.Join(other, ", "), h.Release)
	}
	if h.build == "" {
		return errors.New("they hold no include/config/kernel.release: not a built kernel's headers")
	}
	h.symvers = symvers[h.build]
	return nil
}

// Symvers gives the kernel's Module.symvers.
func (h *Headers) Symvers() ([]byte, error) {
	if h.symvers == nil {
		return nil, ErrNoSymvers
	}
	return h.symvers, nil
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
		if p.Name != "linux-headers-"+release {
			continue
		}
		file, err := a.Fetcher.Package(ctx, p)
		if err != nil {
			return nil, err
		}
		return symversOf(file, "usr/src/linux-headers-"+release+"/Module.symvers")
	}
	return nil, fmt.Errorf("kernel %s: %w", release, ErrNoSymvers)
}

// symversOf reads a file out of a .deb.
func symversOf(file, name string) (data []byte, err error) {
	src := Source{open: func() (entries, error) { return openDeb(file) }}
	err = src.all(func(h *tar.Header, r io.Reader) (err error) {
		if h.Name == name && h.Typeflag == tar.TypeReg && h.Size <= maxSymvers {
			data, err = io.ReadAll(r)
		}
		return err
	})
	if err == nil && data == nil {
		err = fmt.Errorf("%s: %w", file, ErrNoSymvers)
	}
	return data, err
}
