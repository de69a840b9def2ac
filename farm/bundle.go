package farm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

// A bundle is an OCI image layout (image-spec v1.1) in a tar, with all that a
// farm is built from. Its index names one manifest of bundleType, whose layers
// are the farm file, the lock, the sources and the packages, and the manifests
// of results. The index and the manifests come first, so that a reader of the
// stream knows what has to follow.
const (
	bundleType  types.MediaType = "application/vnd.kofarm.bundle.v1+json"
	farmType    types.MediaType = "application/vnd.kofarm.farm.v1+yaml"
	lockType    types.MediaType = "application/vnd.kofarm.lock.v1+yaml"
	treeType    types.MediaType = "application/vnd.kofarm.tree.v1+tar"
	sourceType  types.MediaType = "application/vnd.kofarm.source.v1"
	packageType types.MediaType = "application/vnd.debian.binary-package"
)

const (
	refName      = "org.opencontainers.image.ref.name"
	bundleRef    = "bundle"
	layoutFile   = "oci-layout"
	indexFile    = "index.json"
	blobPrefix   = "blobs/sha256/"
	layoutText   = `{"imageLayoutVersion":"1.0.0"}`
	bundleConfig = `{"version":1}`
	fetchesAhead = 4 // of packages that the store lacks, at a time
)

// Bundler writes bundles.
type Bundler struct {
	Store *store.Store
	Fetch *fetch.Client
	// Dir is the farm file's folder, which its paths are relative to.
	Dir string
	// Own is the Preparer's.
	Own []string
}

// BundleInput is what goes into a bundle beside packages and sources.
type BundleInput struct {
	Farm    *matrix.Farm
	Name    string // the farm file's name, without a folder
	Text    []byte // the farm file
	Lock    *lock.Lock
	Plan    *Plan // of the farm and the lock, without drift
	Results bool  // whether the store's results of the plan's cells go in, too
}

// BundleSummary says what a bundle holds.
type BundleSummary struct {
	Packages int `json:"packages"`
	Sources  int `json:"sources"`
	// Results are of the plan's cells; those that the store does not hold are
	// Missing.
	Results int   `json:"results"`
	Missing int   `json:"missing"`
	Bytes   int64 `json:"bytes"` // of all blobs
}

// blobSource is one blob of a bundle, and where it is read from.
type blobSource struct {
	v1.Descriptor
	open func() (io.ReadCloser, error)
}

// bundle is a bundle that is being put together.
type bundle struct {
	*Bundler
	in      BundleInput
	layers  []blobSource // of the bundle's manifest, in its order
	results []blobSource // manifests
	more    []blobSource // blobs of results
	summary BundleSummary
}

// Write fetches what the store lacks, and then writes the bundle. The same
// inputs give the same bytes.
func (b *Bundler) Write(ctx context.Context, w io.Writer, in BundleInput) (*BundleSummary, error) {
	made := &bundle{Bundler: b, in: in}
	made.layers = append(made.layers, memory(farmType, in.Name, in.Text), memory(lockType, lock.FileName(in.Name), in.Lock.Bytes()))
	for _, add := range []func(context.Context) error{made.addSources, made.addPackages, made.addResults} {
		if err := add(ctx); err != nil {
			return nil, fmt.Errorf("making the bundle: %w", err)
		}
	}
	if err := made.write(ctx, w); err != nil {
		return nil, fmt.Errorf("writing the bundle: %w", err)
	}
	return &made.summary, nil
}

// memory is a small blob.
func memory(t types.MediaType, title string, data []byte) blobSource {
	d := v1.Descriptor{MediaType: t, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: sha256hex(data)}}
	if title != "" {
		d.Annotations = map[string]string{titleKey: title}
	}
	return blobSource{d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// file is a blob in a file whose sha256 and size are known.
func file(t types.MediaType, title, path, digest string, size int64) blobSource {
	d := v1.Descriptor{MediaType: t, Size: size, Digest: v1.Hash{Algorithm: "sha256", Hex: digest}, Annotations: map[string]string{titleKey: title}}
	return blobSource{d, func() (io.ReadCloser, error) { return os.Open(path) }}
}

func (b *bundle) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(b.Dir, p)
}

// addSources adds what the farm file names by path or URL.
func (b *bundle) addSources(ctx context.Context) error {
	seen := map[string]bool{}
	local := func(p string) error {
		if p == "" || seen[p] {
			return nil
		}
		seen[p] = true
		return b.addLocal(p)
	}
	for _, m := range b.in.Farm.Modules {
		src := m.Source
		if m.Test != nil {
			if err := local(m.Test.Script.Text); err != nil {
				return err
			}
		}
		if !src.Remote() {
			if err := local(src.Dir + src.File()); err != nil {
				return err
			}
			continue
		}
		if seen[src.SHA256] {
			continue
		}
		seen[src.SHA256] = true
		path, err := b.Fetch.Fetch(ctx, remoteFile(src))
		if err == nil {
			err = b.addFile(src.File(), path, src.SHA256)
		}
		if err != nil {
			return err
		}
	}
	for _, entry := range b.in.Farm.Kernels {
		if entry.Custom == nil {
			continue
		}
		for _, p := range entry.Custom.Headers {
			if err := local(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// addLocal adds a folder or a file.
func (b *bundle) addLocal(p string) error {
	fi, err := os.Stat(b.path(p))
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		digest, err := hashFile(b.path(p))
		if err != nil {
			return err
		}
		return b.addFile(p, b.path(p), digest)
	}
	d, err := b.Store.Write(treeType, func(w io.Writer) error { return images.PackTree(w, b.path(p), b.Own...) })
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{titleKey: p}
	b.layers = append(b.layers, b.stored(d))
	b.summary.Sources++
	return nil
}

func (b *bundle) addFile(title, path, digest string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	b.layers = append(b.layers, file(sourceType, title, path, digest, fi.Size()))
	b.summary.Sources++
	return nil
}

// stored is a blob of the store.
func (b *bundle) stored(d v1.Descriptor) blobSource {
	return blobSource{d, func() (io.ReadCloser, error) { return b.Store.OpenFile(d.Digest) }}
}

// addPackages adds every package that the lock names, but for the kernels
// themselves where nothing boots them.
func (b *bundle) addPackages(ctx context.Context) error {
	pkgs := lockedPackages(b.in.Farm, b.in.Lock)
	paths := make([]string, len(pkgs))
	fetcher := Packages{b.Fetch}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchesAhead)
	for i, p := range pkgs {
		g.Go(func() (err error) {
			paths[i], err = fetcher.Package(gctx, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, p := range pkgs {
		b.layers = append(b.layers, file(packageType, p.Filename, paths[i], p.SHA256, p.Size))
	}
	b.summary.Packages = len(pkgs)
	return nil
}

// lockedPackages lists what builds, and boots if the farm file asks for them,
// take from the archives, each file once, by
// its sha256.
func lockedPackages(f *matrix.Farm, l *lock.Lock) []*apt.Package {
	p := newPins()
	var pkgs []*apt.Package
	seen := map[string]bool{}
	add := func(distribution string, list ...*lock.Package) {
		for _, pinned := range list {
			if !seen[pinned.SHA256] {
				seen[pinned.SHA256] = true
				pkgs = append(pkgs, p.aptOf(f, distribution, pinned))
			}
		}
	}
	for _, m := range f.Modules {
		if pinned := l.Module(m.Source); pinned != nil && pinned.Deb != nil {
			add(m.Source.Distribution, pinned.Deb)
		}
	}
	for _, s := range l.Suites {
		for _, k := range s.Kernels {
			add(s.Distribution, k.Toolchain...)
			add(s.Distribution, k.Headers...)
			if f.Test != nil {
				add(s.Distribution, k.Image...)
			}
			for _, e := range k.Extras {
				add(s.Distribution, e.Packages...)
			}
		}
	}
	slices.SortFunc(pkgs, func(a, b *apt.Package) int { return bytes.Compare([]byte(a.SHA256), []byte(b.SHA256)) })
	return pkgs
}

// addResults adds the results that the store holds, as they are there.
func (b *bundle) addResults(context.Context) error {
	if !b.in.Results {
		return nil
	}
	r := records{b.Store}
	keys := map[string]bool{}
	for _, c := range b.in.Plan.Cells {
		if !c.Excluded {
			keys[c.Key] = true
		}
	}
	for _, key := range sortedKeys(keys) {
		rec, err := r.load(key)
		if err != nil || rec.Outcome == Failed {
			b.summary.Missing++
			continue
		}
		d, err := b.Store.Ref(resultRef, key)
		if err != nil {
			return err
		}
		data, err := b.Store.Get(d.Digest, maxManifest)
		if err != nil {
			return err
		}
		m, err := v1.ParseManifest(bytes.NewReader(data))
		if err != nil {
			return err
		}
		result := memory(types.OCIManifestSchema1, "", data)
		result.Annotations = map[string]string{refName: resultRef + "-" + key}
		b.results = append(b.results, result)
		for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			b.more = append(b.more, b.stored(blob))
		}
		b.summary.Results++
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// write writes the tar: the layout, the index, the manifests, and then all else.
func (b *bundle) write(ctx context.Context, w io.Writer) error {
	config := memory(bundleType, "", []byte(bundleConfig))
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config.Descriptor}
	for _, l := range b.layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	manifest := memory(types.OCIManifestSchema1, "", data)
	manifest.Annotations = map[string]string{refName: bundleRef}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest.Descriptor}}
	for _, r := range b.results {
		index.Manifests = append(index.Manifests, r.Descriptor)
	}
	if data, err = json.Marshal(index); err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{{layoutFile, []byte(layoutText)}, {indexFile, data}} {
		if err := writeEntry(tw, f.name, memory("", "", f.data)); err != nil {
			return err
		}
	}
	written := map[string]bool{}
	for _, blob := range slices.Concat([]blobSource{manifest, config}, b.results, b.layers, b.more) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if written[blob.Digest.Hex] {
			continue
		}
		written[blob.Digest.Hex] = true
		if err := writeEntry(tw, blobPrefix+blob.Digest.Hex, blob); err != nil {
			return err
		}
		b.summary.Bytes += blob.Size
	}
	return tw.Close()
}

// writeEntry copies a blob into the tar, and checks it on the way.
func writeEntry(tw *tar.Writer, name string, blob blobSource) error {
	r, err := blob.open()
	if err != nil {
		return err
	}
	defer r.Close() // only read
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: blob.Size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if blob.Size >= 8<<30 {
		h.Format = tar.FormatPAX // USTAR's size ends there
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(tw, sum), io.LimitReader(r, blob.Size))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != blob.Size || got != blob.Digest.Hex {
		return fmt.Errorf("%s: it has sha256 %s and %d bytes, want %s and %d", blob.title(), got, n, blob.Digest.Hex, blob.Size)
	}
	return nil
}

// title is how messages call a blob.
func (b blobSource) title() string { return blobTitle(b.Descriptor) }

func blobTitle(d v1.Descriptor) string {
	for _, key := range []string{titleKey, refName} {
		if t := d.Annotations[key]; t != "" {
			return clip(t) + " (sha256 " + d.Digest.Hex + ")"
		}
	}
	return "blob sha256 " + d.Digest.Hex
}

// remoteFile is a source that has to be downloaded.
func remoteFile(src matrix.Source) fetch.File {
	return fetch.File{URLs: []string{src.File()}, SHA256: src.SHA256, Size: -1}
}
