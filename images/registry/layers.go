package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/images/store"
)

// Layers finds the layers of images in a cache's repository, and puts them
// there, each as an image of its own whose tag is the layer's name. Whatever
// goes wrong is a warning, and after a few the registry is not asked again: a
// layer can be made anew. It is safe for concurrent use.
type Layers struct {
	cache  *Cache
	write  bool
	log    *slog.Logger
	faults atomic.Int32
}

const (
	// maxFaults is how many layers may fail before the registry is given up.
	maxFaults = 3
	// maxUnpacked bounds a layer that is unpacked for its diffID, in bytes.
	maxUnpacked = 16 << 30
)

// Layers are those of the cache. Only where write is set it is given any.
func (c *Cache) Layers(write bool, log *slog.Logger) *Layers {
	return &Layers{cache: c, write: write, log: log}
}

// Find brings a layer into the store, and reports whether it is there now.
func (l *Layers) Find(ctx context.Context, name string) bool {
	return l.usable() && l.judge(ctx, name, l.pull(ctx, name))
}

// Offer gives the registry a layer of the store that it lacks.
func (l *Layers) Offer(ctx context.Context, name string) {
	if !l.write || !l.usable() {
		return
	}
	has, err := l.cache.Has(ctx, name)
	if err == nil && !has {
		err = l.push(ctx, name)
	}
	l.judge(ctx, name, err)
}

func (l *Layers) usable() bool { return l.faults.Load() < maxFaults }

func (l *Layers) judge(ctx context.Context, name string, err error) bool {
	switch {
	case err == nil || errors.Is(err, store.ErrNotFound) || ctx.Err() != nil:
	case errors.Is(err, store.ErrDamaged):
		l.log.Warn("the shared cache holds a damaged layer, which is not used; have it removed there", "layer", name, "err", err)
	case l.faults.Add(1) < maxFaults:
		l.log.Warn("the shared cache cannot be used", "layer", name, "err", err)
	default:
		l.log.Warn("the shared cache cannot be used, and is not asked for layers again in this run", "layer", name, "err", err)
	}
	return err == nil
}

// pull brings a layer into the store. The errors are those of [Cache.Pull].
func (l *Layers) pull(ctx context.Context, name string) error {
	c := l.cache
	d, err := c.puller.Get(ctx, c.repo.Tag(name))
	if notFound(err) {
		return fmt.Errorf("%s: %w", c.repo.Tag(name), store.ErrNotFound)
	}
	if err != nil {
		return c.wrap("asking", err)
	}
	m, err := manifestOf(d.Manifest)
	if err == nil && len(m.Layers) != 1 {
		err = fmt.Errorf("%w: it has %d layers, want 1", store.ErrDamaged, len(m.Layers))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.repo.Tag(name), err)
	}
	blob := m.Layers[0]
	if err := c.pullBlob(ctx, blob); err != nil {
		return c.wrap("pulling "+name+" from", err)
	}
	diffID, err := l.unpacked(blob)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", c.repo.Tag(name), store.ErrDamaged, err)
	}
	_, err = c.store.NewLayer(name, blob.Digest, blob.Size, diffID)
	return err
}

// unpacked gives the layer's diffID, from its bytes rather than from what the
// registry says of it.
func (l *Layers) unpacked(d v1.Descriptor) (v1.Hash, error) {
	blob, err := l.cache.store.Open(d.Digest)
	if err != nil {
		return v1.Hash{}, err
	}
	defer blob.Close()
	zip, err := gzip.NewReader(blob)
	if err != nil {
		return v1.Hash{}, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(zip, maxUnpacked+1))
	if err == nil && n > maxUnpacked {
		err = fmt.Errorf("unpacked it has more than %d bytes", int64(maxUnpacked))
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, err
}

// push puts a layer of the store into the registry.
func (l *Layers) push(ctx context.Context, name string) error {
	layer, err := l.cache.store.Layer(name)
	if err != nil {
		return err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return err
	}
	return l.cache.wrap("pushing "+name+" to", l.cache.pusher.Push(ctx, l.cache.repo.Tag(name), img))
}
