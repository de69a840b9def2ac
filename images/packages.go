package images

import (
	"archive/tar"
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
	"github.com/kofarm/kofarm/images/store"
)

// Fetcher brings a package's file to the local disk, verified.
type Fetcher interface {
	Package(ctx context.Context, p *apt.Package) (path string, err error)
}

// skipped are folders of a package that no build reads. Copyright files stay.
var skipped = regexp.MustCompile(`^usr/share/((man|info|locale|lintian|bug)(/|$)|doc/[^/]+/([^c]|c[^o]))`)

// packageLayer makes one layer of packages, unpacked without their maintainer
// scripts. The links that these would have made with update-alternatives are
// made here, from what the scripts say.
func packageLayer(ctx context.Context, s *store.Store, f Fetcher, pkgs []*apt.Package) (*store.Layer, error) {
	return makeLayer(s, packagesName("packages", pkgs), func(w *layerWriter) (err error) {
		begun := make([]*unpacking, 0, len(pkgs))
		defer func() {
			for _, u := range begun {
				err = errors.Join(err, u.Close())
			}
		}()
		alts := alternatives{}
		for i, p := range pkgs {
			for len(begun) < min(len(pkgs), i+aheadPackages()) {
				begun = append(begun, unpack(ctx, f, pkgs[len(begun)]))
			}
			if err := begun[i].add(w, alts); err != nil {
				return fmt.Errorf("unpacking %s %s: %w", p.Name, p.Version, err)
			}
		}
		return alts.link(w)
	})
}

// unpacking is a package that is being fetched and decompressed.
type unpacking struct {
	*ahead
	open     func() (entries, error) // once more
	postinst []byte                  // valid at the end of the entries
}

// unpack begins to fetch and decompress a package.
func unpack(ctx context.Context, f Fetcher, p *apt.Package) *unpacking {
	u := &unpacking{}
	u.ahead = readAhead(ctx, func(ctx context.Context) (entries, error) {
		file, err := f.Package(ctx, p)
		if err != nil {
			return nil, err
		}
		if err := VerifyFile(file, p.SHA256); err != nil {
			return nil, err
		}
		if u.postinst, err = debPostinst(file); err != nil {
			return nil, err
		}
		u.open = func() (entries, error) { return openDeb(file) }
		return u.open()
	})
	return u
}

// VerifyFile checks a file against its sha256 in hex before it is used. One
// that a disk has damaged is removed, so that it is fetched again.
func VerifyFile(file, want string) error {
	got, err := hashFile(file)
	if err != nil || got == want {
		return err
	}
	return errors.Join(fmt.Errorf("%s is damaged: its content has sha256 %s, not %s; it is removed, run again to fetch it anew", file, got, want),
		os.Remove(file))
}

// add adds the package's files to the layer, and its alternatives to alts.
func (u *unpacking) add(w *layerWriter, alts alternatives) error {
	lost := map[string][]string{}
	err := each(u, func(h *tar.Header, r io.Reader) error {
		switch {
		case skipped.MatchString(h.Name):
			return nil
		case h.Typeflag == tar.TypeLink && skipped.MatchString(h.Linkname):
			lost[h.Linkname] = append(lost[h.Linkname], h.Name)
			return nil
		}
		return w.add(h, r)
	})
	if err == nil && len(lost) > 0 {
		err = u.restore(w, lost)
	}
	alts.read(u.postinst)
	return err
}

// restore adds the files that have hard links to what is skipped.
func (u *unpacking) restore(w *layerWriter, lost map[string][]string) (err error) {
	e, err := u.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return each(e, func(h *tar.Header, r io.Reader) error {
		for i, name := range lost[h.Name] {
			c := *h
			c.Name = name
			if i > 0 {
				c.Typeflag, c.Linkname, c.Size = tar.TypeLink, lost[h.Name][0], 0
			}
			if err := w.add(&c, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// each calls f for every entry.
func each(e entries, f func(h *tar.Header, r io.Reader) error) error {
	for {
		h, err := e.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(h, e); err != nil {
			return err
		}
	}
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
