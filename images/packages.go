package images

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/deb"
	"github.com/kofarm/kofarm/images/store"
)

// Fetcher brings a package's file to the local disk, verified.
type Fetcher interface {
	Package(ctx context.Context, p *apt.Package) (path string, err error)
}

// skipped are folders of a package that no build reads. Copyright files stay.
var skipped = regexp.MustCompile(`^usr/share/(man|info|locale|lintian|bug|doc/[^/]+/[^c]|doc/[^/]+/c[^o])`)

// packageLayer makes one layer of packages, unpacked without their maintainer
// scripts. The links that these would have made with update-alternatives are
// made here, from what the scripts say.
func packageLayer(ctx context.Context, s *store.Store, f Fetcher, pkgs []*apt.Package) (*store.Layer, error) {
	return makeLayer(s, packagesName("packages", pkgs), func(w *layerWriter) error {
		alts := alternatives{}
		for _, p := range pkgs {
			if err := ctx.Err(); err != nil {
				return err
			}
			file, err := f.Package(ctx, p)
			if err != nil {
				return err
			}
			if err := addDeb(w, file, alts); err != nil {
				return fmt.Errorf("unpacking %s %s: %w", p.Name, p.Version, err)
			}
		}
		return alts.link(w)
	})
}

// packagesName names a layer by the packages that are in it.
func packagesName(kind string, pkgs []*apt.Package) string {
	h := sha256.New()
	fmt.Fprintf(h, "kofarm layer %d %s\n", LayerFormat, kind)
	for _, p := range pkgs {
		fmt.Fprintf(h, "%s %s %s %s\n", p.Name, p.Version, p.Arch, p.SHA256)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil))
}

// addDeb adds a package's files to the layer, and its alternatives to alts.
func addDeb(w *layerWriter, file string, alts alternatives) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	pkg, err := deb.Open(f, fi.Size())
	if err != nil {
		return err
	}
	if err := addFiles(w, pkg); err != nil {
		return err
	}
	postinst, err := pkg.ControlFile("postinst")
	if errors.Is(err, deb.ErrNoFile) {
		return nil
	}
	alts.read(postinst)
	return err
}

func addFiles(w *layerWriter, pkg *deb.Package) (err error) {
	entries, err := pkg.Data()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if skipped.MatchString(h.Name) {
			continue
		}
		if err := w.add(h, entries); err != nil {
			return err
		}
	}
}

// alternatives are the links of update-alternatives(1), by the link's path.
type alternatives map[string]alternative

type alternative struct {
	target   string
	priority int
}

var installAlternative = regexp.MustCompile(`update-alternatives\s(?:\s*--(?:quiet|force))*\s*--install\s+(/\S+)\s+\S+\s+(/\S+)\s+(\d+)`)

// read finds the literal calls of `update-alternatives --install LINK NAME
// PATH PRIORITY` in a maintainer script. Of several paths for one link the
// highest priority wins, then the first.
func (a alternatives) read(script []byte) {
	script = bytes.ReplaceAll(script, []byte("\\\n"), []byte(" "))
	lines := bufio.NewScanner(bytes.NewReader(script))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for _, m := range installAlternative.FindAllStringSubmatch(lines.Text(), -1) {
			priority, err := strconv.Atoi(m[3])
			if err != nil || strings.ContainsAny(m[1]+m[2], "$`\"'") {
				continue
			}
			if old, ok := a[m[1]]; !ok || priority > old.priority {
				a[m[1]] = alternative{m[2], priority}
			}
		}
	}
}

// link adds the links for the targets that are there.
func (a alternatives) link(w *layerWriter) error {
	var names []string
	for name := range a {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if w.seen[usrMerged(name)] || !w.seen[usrMerged(a[name].target)] {
			continue
		}
		if err := w.link(usrMerged(name), a[name].target); err != nil {
			return err
		}
	}
	return nil
}
