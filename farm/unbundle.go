package farm

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
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

// Limits on a bundle.
const (
	maxBundleEntries = 1 << 20
	maxBundleTable   = 64 << 20 // bytes of the index or a manifest
)

// ErrNoBundle says that a file is no bundle.
var ErrNoBundle = errors.New("it is no bundle of kofarm's")

// Bundle is an opened bundle. Nothing in it has been verified but its index and
// manifests.
type Bundle struct {
	f         *os.File
	blobs     map[string]section // by sha256
	index     section
	manifest  *v1.Manifest
	manifests []v1.Descriptor // of the index
	cut       bool            // the file ends before its tar does
}

// section is a part of the file.
type section struct{ offset, size int64 }

// OpenBundle reads what a bundle says it holds. One that is cut off after its
// manifest can be opened, and [Bundle.Verify] names what it lacks.
func OpenBundle(name string) (*Bundle, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening the bundle: %w", err)
	}
	b := &Bundle{f: f, blobs: map[string]section{}}
	if err = b.scan(); err == nil {
		err = b.tables()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bundle %s: %w", name, err), f.Close())
	}
	return b, nil
}

// Close closes the file.
func (b *Bundle) Close() error { return b.f.Close() }

var blobName = regexp.MustCompile(`^` + blobPrefix + `([0-9a-f]{64})$`)

// scan finds where the entries are. Their content is not read.
func (b *Bundle) scan() error {
	fi, err := b.f.Stat()
	if err != nil {
		return err
	}
	tr := tar.NewReader(b.f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			b.cut = true
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", ErrNoBundle, err)
		case n >= maxBundleEntries:
			return fmt.Errorf("%w: more than %d entries", ErrNoBundle, maxBundleEntries)
		}
		offset, err := b.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if err := b.entry(h, section{offset, h.Size}); err != nil {
			return err
		}
		if offset+h.Size > fi.Size() {
			b.cut = true
			return nil
		}
	}
}

func (b *Bundle) entry(h *tar.Header, s section) error {
	name := strings.TrimPrefix(h.Name, "./")
	blob := blobName.FindStringSubmatch(name)
	switch {
	case h.Typeflag == tar.TypeDir && (name == "" || strings.HasPrefix(blobPrefix, path.Clean(name)+"/")):
		return nil
	case h.Typeflag != tar.TypeReg:
		return fmt.Errorf("%w: %q is no plain file", ErrNoBundle, clip(h.Name))
	case name == layoutFile:
		return nil
	case name == indexFile && b.index.size == 0:
		b.index = s
		return nil
	case blob == nil:
		return fmt.Errorf("%w: it has a file %q", ErrNoBundle, clip(h.Name))
	}
	if _, twice := b.blobs[blob[1]]; twice {
		return fmt.Errorf("%w: %s is there twice", ErrNoBundle, name)
	}
	b.blobs[blob[1]] = s
	return nil
}

// tables reads the index and the bundle's manifest.
func (b *Bundle) tables() error {
	if b.index.size == 0 && b.cut {
		return fmt.Errorf("%w: the file is cut off before its %s", ErrNoBundle, indexFile)
	}
	if b.index.size == 0 {
		return fmt.Errorf("%w: it has no %s", ErrNoBundle, indexFile)
	}
	data, err := b.small(b.index)
	if err != nil {
		return fmt.Errorf("%s: %w", indexFile, err)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoBundle, indexFile, err)
	}
	b.manifests = index.Manifests
	for _, d := range index.Manifests {
		if d.Annotations[refName] != bundleRef {
			continue
		}
		if b.manifest, err = b.readManifest(d); err != nil {
			return err
		}
	}
	if b.manifest == nil || b.manifest.Config.MediaType != bundleType {
		return fmt.Errorf("%w: its index names none", ErrNoBundle)
	}
	return nil
}

func (b *Bundle) small(s section) ([]byte, error) {
	if s.size > maxBundleTable {
		return nil, fmt.Errorf("it has %d bytes; at most %d are read", s.size, maxBundleTable)
	}
	data, err := io.ReadAll(b.section(s))
	if err == nil && int64(len(data)) != s.size {
		err = errors.New("the file is cut off in it")
	}
	return data, err
}

func (b *Bundle) section(s section) io.Reader { return io.NewSectionReader(b.f, s.offset, s.size) }

// get reads a small blob, and verifies it.
func (b *Bundle) get(d v1.Descriptor) ([]byte, error) {
	s, ok := b.blobs[d.Digest.Hex]
	if !ok {
		return nil, fmt.Errorf("%s is missing", blobTitle(d))
	}
	data, err := b.small(s)
	if err == nil && (int64(len(data)) != d.Size || sha256hex(data) != d.Digest.Hex) {
		err = store.ErrDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", blobTitle(d), err)
	}
	return data, nil
}

func (b *Bundle) readManifest(d v1.Descriptor) (*v1.Manifest, error) {
	data, err := b.get(d)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNoBundle, blobTitle(d), err)
	}
	return m, nil
}

// BundleReport is what Verify has found. A sound bundle has no problem.
type BundleReport struct {
	Blobs    int      `json:"blobs"` // that are there and right
	Bytes    int64    `json:"bytes"`
	Missing  []string `json:"missing"`
	Damaged  []string `json:"damaged"`
	Problems []string `json:"problems"` // all else
}

// OK says whether the bundle is sound and complete.
func (r *BundleReport) OK() bool { return len(r.Missing)+len(r.Damaged)+len(r.Problems) == 0 }

// Verify reads the whole bundle: every blob that it names has to be there, with
// its size and digest, and so has everything that its lock names.
func (b *Bundle) Verify(ctx context.Context) (*BundleReport, error) {
	r := &BundleReport{Missing: []string{}, Damaged: []string{}, Problems: []string{}}
	if b.cut {
		r.Problems = append(r.Problems, "the file is cut off")
	}
	named := map[string]bool{}
	check := func(d v1.Descriptor) error {
		if named[d.Digest.Hex] {
			return nil
		}
		named[d.Digest.Hex] = true
		return b.verifyBlob(ctx, d, r)
	}
	all := append([]v1.Descriptor{b.manifest.Config}, b.manifest.Layers...)
	for _, d := range b.manifests {
		all = append(all, d)
		m, err := b.readManifest(d)
		if err == nil {
			all = append(append(all, m.Config), m.Layers...)
		}
	}
	for _, d := range all {
		if err := check(d); err != nil {
			return nil, err
		}
	}
	for _, hex := range sortedKeys(b.blobs) {
		if !named[hex] {
			r.Problems = append(r.Problems, "blob sha256 "+hex+" is named by nothing")
		}
	}
	r.Missing = append(r.Missing, b.lacking()...)
	return r, nil
}

func (b *Bundle) verifyBlob(ctx context.Context, d v1.Descriptor, r *BundleReport) error {
	s, ok := b.blobs[d.Digest.Hex]
	if !ok || d.Digest.Algorithm != "sha256" {
		r.Missing = append(r.Missing, blobTitle(d))
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, b.section(s))
	if err != nil {
		return err
	}
	got := hex.EncodeToString(sum.Sum(nil))
	switch {
	case n < s.size:
		r.Missing = append(r.Missing, fmt.Sprintf("%s: the file is cut off after %d of its %d bytes", blobTitle(d), n, s.size))
	case n != d.Size || got != d.Digest.Hex:
		r.Damaged = append(r.Damaged, fmt.Sprintf("%s: it has sha256 %s and %d bytes, want %d", blobTitle(d), got, n, d.Size))
	default:
		r.Blobs++
		r.Bytes += n
	}
	return nil
}

// lacking names what the bundle's farm file and lock ask for and its manifest
// does not list.
func (b *Bundle) lacking() []string {
	f, l, _, err := b.farm()
	if err != nil {
		return []string{err.Error()}
	}
	listed := map[string]bool{}
	for _, d := range b.manifest.Layers {
		listed[d.Digest.Hex] = true
		listed[d.Annotations[titleKey]] = true
	}
	var missing []string
	for _, p := range lockedPackages(f, l) {
		if !listed[p.SHA256] {
			missing = append(missing, fmt.Sprintf("%s (sha256 %s), which the lock names", p.Filename, p.SHA256))
		}
	}
	for _, m := range f.Modules {
		if name := m.Source.Dir + m.Source.File(); name != "" && !listed[name] {
			missing = append(missing, fmt.Sprintf("the source %s", name))
		}
	}
	return missing
}

// farm reads the bundle's farm file and lock.
func (b *Bundle) farm() (*matrix.Farm, *lock.Lock, []matrix.Warning, error) {
	var f *matrix.Farm
	var l *lock.Lock
	var warnings []matrix.Warning
	for _, d := range b.manifest.Layers {
		if d.MediaType != farmType && d.MediaType != lockType {
			continue
		}
		data, err := b.get(d)
		if err != nil {
			return nil, nil, nil, err
		}
		name := filepath.Base(d.Annotations[titleKey])
		if d.MediaType == farmType {
			f, warnings, err = matrix.Parse(name, data)
		} else {
			l, err = lock.Parse(name, data)
		}
		if err != nil {
			return nil, nil, warnings, fmt.Errorf("in the bundle: %w", err)
		}
	}
	if f == nil || l == nil {
		return nil, nil, nil, fmt.Errorf("%w: it holds no farm file, or no lock", ErrNoBundle)
	}
	return f, l, warnings, nil
}

// Unbundled is what a farm is built from out of a bundle.
type Unbundled struct {
	Farm     *matrix.Farm
	Lock     *lock.Lock
	Warnings []matrix.Warning
	Files    map[string]string // for a Preparer
}

// Unbundle brings what the bundle holds into the store, each blob verified, and
// unpacks sources below dir. The error names everything that is missing.
func (b *Bundle) Unbundle(ctx context.Context, s *store.Store, dir string) (*Unbundled, error) {
	f, l, warnings, err := b.farm()
	if err != nil {
		return nil, err
	}
	out := &Unbundled{Farm: f, Lock: l, Warnings: warnings, Files: map[string]string{}}
	missing := b.lacking()
	for i, d := range b.manifest.Layers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if d.MediaType == farmType || d.MediaType == lockType {
			continue
		}
		if err := b.ingest(s, d); err != nil {
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged) {
				missing = append(missing, err.Error())
				continue
			}
			return nil, err
		}
		if err := out.place(s, d, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return nil, fmt.Errorf("%s: %w", blobTitle(d), err)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("the bundle is not complete; `kofarm bundle verify` looks at all of it:\n%s", strings.Join(missing, "\n"))
	}
	for _, m := range f.Modules {
		if m.Test != nil && out.Files[m.Test.Script.Text] != "" {
			m.Test.Script.Text = out.Files[m.Test.Script.Text]
		}
	}
	return out, nil
}

// ingest brings a blob into the store, unless it is there.
func (b *Bundle) ingest(s *store.Store, d v1.Descriptor) error {
	if s.Reuse(d) {
		return nil
	}
	at, ok := b.blobs[d.Digest.Hex]
	if !ok || d.Digest.Algorithm != "sha256" {
		return fmt.Errorf("%s is missing: %w", blobTitle(d), store.ErrNotFound)
	}
	if err := s.Ingest(d, b.section(at)); err != nil {
		return fmt.Errorf("%s: %w", blobTitle(d), err)
	}
	return nil
}

// place puts a source where a build can read it: a folder unpacked, a file under
// a name with its ending, as that tells what it is.
func (u *Unbundled) place(s *store.Store, d v1.Descriptor, dir string) error {
	title := d.Annotations[titleKey]
	switch d.MediaType {
	case treeType:
		u.Files[title] = dir
		return unpackTree(s, d, dir)
	case sourceType:
		if strings.Contains(title, "://") {
			return nil // found in the store by its sha256
		}
		u.Files[title] = filepath.Join(dir, "file"+filepath.Ext(title))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		return os.Symlink(filepath.Join(s.BlobDir(), d.Digest.Hex), u.Files[title])
	}
	return nil
}

func unpackTree(s *store.Store, d v1.Descriptor, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	r, err := s.Open(d.Digest)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	return images.UnpackTree(r, root)
}

// BundleCache takes results out of a bundle.
type BundleCache struct {
	Bundle *Bundle
	Store  *store.Store
}

// Pull implements Cache.
func (c BundleCache) Pull(_ context.Context, key string) error {
	for _, d := range c.Bundle.manifests {
		if d.Annotations[refName] != resultRef+"-"+key {
			continue
		}
		m, err := c.Bundle.readManifest(d)
		if err != nil {
			return fmt.Errorf("%w (%w)", store.ErrDamaged, err)
		}
		for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if err := c.Bundle.ingest(c.Store, blob); err != nil {
				return err
			}
		}
		if err := c.Bundle.ingest(c.Store, d); err != nil {
			return err
		}
		return c.Store.SetRef(resultRef, key, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: d.Digest, Size: d.Size})
	}
	return fmt.Errorf("result %s: %w", key, store.ErrNotFound)
}

// Has implements Cache: nothing need be pushed.
func (c BundleCache) Has(context.Context, string) (bool, error) { return true, nil }

// Push implements Cache, and does nothing.
func (c BundleCache) Push(context.Context, string) error { return nil }
