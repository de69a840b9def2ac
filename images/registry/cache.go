package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/images/store"
)

// Limits on a registry.
const (
	maxBlob     = 1 << 30 // bytes
	connectTime = 10 * time.Second
	answerTime  = time.Minute // until an answer begins
	stallTime   = time.Minute // between two pieces of a blob
	blobsAtOnce = 4           // of one result
)

// userAgent says who asks.
const userAgent = "kofarm"

// Cache finds the results of a store's cells in a repository of a registry, and
// puts them there. A cell's key is its tag. It is safe for concurrent use.
//
// Credentials are those of the Docker config and its helpers. The registry's
// requests are tried three times.
type Cache struct {
	store  *store.Store
	kind   string
	repo   name.Repository
	puller *remote.Puller
	pusher *remote.Pusher
}

// NewCache makes a cache of the refs of a kind in a repository,
// host[:port]/path. Insecure allows plain HTTP where the host is not this one.
func NewCache(s *store.Store, kind, repository string, insecure bool) (*Cache, error) {
	host, path, _ := strings.Cut(repository, "/")
	var strict []name.Option
	if insecure {
		strict = append(strict, name.Insecure)
	}
	reg, err := name.NewRegistry(host, strict...)
	if err != nil {
		return nil, fmt.Errorf("cache.registry: %w", err)
	}
	options := []remote.Option{
		remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(roundTripper()),
		remote.WithUserAgent(userAgent), remote.WithJobs(blobsAtOnce),
	}
	c := &Cache{store: s, kind: kind, repo: reg.Repo(path)} // NewRepository takes a host without a dot for a user of Docker Hub
	if c.puller, err = remote.NewPuller(options...); err != nil {
		return nil, fmt.Errorf("cache.registry: %w", err)
	}
	if c.pusher, err = remote.NewPusher(options...); err != nil {
		return nil, fmt.Errorf("cache.registry: %w", err)
	}
	return c, nil
}

// roundTripper gives up on a registry that does not answer.
func roundTripper() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: connectTime, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = answerTime
	return t
}

// String names the repository.
func (c *Cache) String() string { return c.repo.Name() }

// Has tells whether the registry has a result.
func (c *Cache) Has(ctx context.Context, key string) (bool, error) {
	_, err := c.puller.Head(ctx, c.repo.Tag(key))
	if notFound(err) {
		return false, nil
	}
	return err == nil, c.wrap("asking", err)
}

// Pull brings a result into the store, blobs first, each checked against its
// size and digest. The error is [store.ErrNotFound] where the registry has none,
// and [store.ErrDamaged] where what it has is not what it should be.
func (c *Cache) Pull(ctx context.Context, key string) error {
	d, err := c.puller.Get(ctx, c.repo.Tag(key))
	if notFound(err) {
		return fmt.Errorf("%s: %w", c.repo.Tag(key), store.ErrNotFound)
	}
	if err != nil {
		return c.wrap("asking", err)
	}
	m, err := manifestOf(d.Manifest)
	if err != nil {
		return fmt.Errorf("%s: %w", c.repo.Tag(key), err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(blobsAtOnce)
	for _, blob := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		g.Go(func() error { return c.pullBlob(gctx, blob) })
	}
	if err := g.Wait(); err != nil {
		return c.wrap("pulling "+key+" from", err)
	}
	desc, err := c.store.Put(d.Manifest, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	return c.store.SetRef(c.kind, key, desc)
}

// manifestOf reads a manifest from a registry. What its blobs hold is for their
// reader to judge.
func manifestOf(data []byte) (*v1.Manifest, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("%w: the manifest has %d bytes, more than %d", store.ErrDamaged, len(data), maxManifest)
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: reading the manifest: %w", store.ErrDamaged, err)
	}
	if m.MediaType != types.OCIManifestSchema1 {
		return nil, fmt.Errorf("%w: %q is no result", store.ErrDamaged, m.MediaType)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Size < 0 || d.Size > maxBlob || d.Digest.Algorithm != "sha256" {
			return nil, fmt.Errorf("%w: blob %s of %d bytes", store.ErrDamaged, d.Digest, d.Size)
		}
	}
	return m, nil
}

// pullBlob brings a blob into the store, unless it is there.
func (c *Cache) pullBlob(ctx context.Context, d v1.Descriptor) error {
	if c.store.Reuse(d) {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l, err := c.puller.Layer(ctx, c.repo.Digest(d.Digest.String()))
	if err != nil {
		return err
	}
	r, err := l.Compressed()
	if notFound(err) {
		return fmt.Errorf("%w: the registry has lost blob %s", store.ErrDamaged, d.Digest)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	watch := &watched{r: r, timer: time.AfterFunc(stallTime, func() { cancel(errStalled) })}
	defer watch.timer.Stop()
	if err := c.store.Ingest(d, watch); err != nil {
		return errors.Join(err, stalled(ctx))
	}
	return nil
}

var errStalled = fmt.Errorf("the registry has sent nothing for %s", stallTime)

func stalled(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return nil
}

// watched pushes a deadline on with each piece that is read. An error that is
// not the network's is that of the client's check of the digest.
type watched struct {
	r     io.Reader
	timer *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.timer.Reset(stallTime)
	if err != nil && !errors.Is(err, io.EOF) && !broken(err) {
		err = fmt.Errorf("%w: %w", store.ErrDamaged, err)
	}
	return n, err
}

// broken tells a transfer that broke off.
func broken(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled)
}

// Push puts a result of the store into the registry: the blobs that it lacks,
// then the manifest, so that the result is there when all of it is.
func (c *Cache) Push(ctx context.Context, key string) error {
	d, err := c.store.Ref(c.kind, key)
	if err != nil {
		return err
	}
	img, err := c.stored(d)
	if err != nil {
		return err
	}
	return c.wrap("pushing "+key+" to", c.pusher.Push(ctx, c.repo.Tag(key), img))
}

// stored is a result as the image that a registry takes it for.
type stored struct {
	store       *store.Store
	manifest    *v1.Manifest
	raw, config []byte
}

var _ partial.CompressedImageCore = (*stored)(nil)

func (r *stored) RawManifest() ([]byte, error)        { return r.raw, nil }
func (r *stored) RawConfigFile() ([]byte, error)      { return r.config, nil }
func (r *stored) MediaType() (types.MediaType, error) { return r.manifest.MediaType, nil }
func (r *stored) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range append([]v1.Descriptor{r.manifest.Config}, r.manifest.Layers...) {
		if d.Digest == h {
			return &storedBlob{r.store, d}, nil
		}
	}
	return nil, fmt.Errorf("blob %s: %w", h, store.ErrNotFound)
}

// storedBlob is a blob as the layer that a registry takes it for.
type storedBlob struct {
	store *store.Store
	desc  v1.Descriptor
}

func (b *storedBlob) Digest() (v1.Hash, error)            { return b.desc.Digest, nil }
func (b *storedBlob) Size() (int64, error)                { return b.desc.Size, nil }
func (b *storedBlob) MediaType() (types.MediaType, error) { return b.desc.MediaType, nil }
func (b *storedBlob) Compressed() (io.ReadCloser, error)  { return b.store.Open(b.desc.Digest) }

// notFound tells a registry's "there is none" from a fault. A repository that
// nothing has been pushed to yet is unknown as a whole.
func notFound(err error) bool {
	var e *transport.Error
	return errors.As(err, &e) && e.StatusCode == http.StatusNotFound
}

// ErrDenied says that a registry wants other credentials.
var ErrDenied = errors.New("access denied")

// wrap says which registry an error is of, and what to do about it.
func (c *Cache) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	var e *transport.Error
	if errors.As(err, &e) && (e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("%s the cache %s: %w: the registry answers %d %s; log in with `docker login %s`",
			doing, c, ErrDenied, e.StatusCode, http.StatusText(e.StatusCode), c.repo.RegistryStr())
	}
	return fmt.Errorf("%s the cache %s: %w", doing, c, err)
}
