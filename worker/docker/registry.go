package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry serves images to a daemon on this machine, by the part of the OCI
// distribution API that a pull by digest takes. It knows an image only while
// that is being pulled, below a name that cannot be guessed.
type registry struct {
	name     string // of the one repository
	listener net.Listener
	server   *http.Server

	mu    sync.Mutex
	pulls map[*pull]bool

	bytes atomic.Int64 // of blobs that were sent
}

// newRegistry listens on a free port of loopback, from where Docker pulls
// without TLS.
func newRegistry(name string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serving images on loopback: %w", err)
	}
	r := &registry{name: name, listener: l, pulls: map[*pull]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/{name}/manifests/{digest}", r.blob)
	mux.HandleFunc("GET /v2/{name}/blobs/{digest}", r.blob)
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = r.server.Serve(l) }()
	return r, nil
}

func (r *registry) close() error { return r.server.Close() }

// pull is one image that is offered.
type pull struct {
	blobs map[string]blob // by digest, manifest and configuration too
	fail  context.CancelCauseFunc
	seen  atomic.Bool // the daemon has asked for something
}

type blob struct {
	mediaType types.MediaType
	size      int64
	open      func() (io.ReadCloser, error)
}

// offer serves an image until the function that it gives is called. A fault in
// reading the image calls fail.
func (r *registry) offer(img *image, fail context.CancelCauseFunc) (p *pull, done func()) {
	p = &pull{blobs: img.blobs, fail: fail}
	r.mu.Lock()
	r.pulls[p] = true
	r.mu.Unlock()
	return p, func() {
		r.mu.Lock()
		delete(r.pulls, p)
		r.mu.Unlock()
	}
}

// reference names an image in the registry.
func (r *registry) reference(img *image) string {
	return fmt.Sprintf("%s/%s@%s", r.listener.Addr(), r.name, img.manifest)
}

// find looks a blob up among what is offered, and marks the offers as seen.
func (r *registry) find(digest string) (b blob, of []*pull) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pulls {
		if found, ok := p.blobs[digest]; ok {
			p.seen.Store(true)
			b, of = found, append(of, p)
		}
	}
	return b, of
}

func (r *registry) blob(w http.ResponseWriter, req *http.Request) {
	digest := req.PathValue("digest")
	b, of := r.find(digest)
	if req.PathValue("name") != r.name || of == nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", string(b.mediaType))
	w.Header().Set("Content-Length", strconv.FormatInt(b.size, 10))
	w.Header().Set("Docker-Content-Digest", digest)
	if req.Method == http.MethodHead {
		return
	}
	if err := r.send(w, digest, b); err != nil {
		for _, p := range of {
			p.fail(err)
		}
		panic(http.ErrAbortHandler) // cuts the connection
	}
}

// errPeer marks that the daemon went away, which is not the image's fault.
var errPeer = errors.New("the daemon has closed the connection")

// peer is the writer to the daemon.
type peer struct{ w io.Writer }

func (p peer) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil {
		err = errPeer
	}
	return n, err
}

// send sends a blob and gives an error where it is not what it should be: the
// daemon would find that out too, but try it again and again.
func (r *registry) send(w io.Writer, digest string, b blob) error {
	rc, err := b.open()
	if err != nil {
		return fmt.Errorf("reading %s: %w", digest, err)
	}
	defer rc.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, peer{w}), io.LimitReader(rc, b.size))
	r.bytes.Add(n)
	if errors.Is(err, errPeer) {
		return nil // it asks again, or the pull ends with the daemon's own error
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", digest, err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("%s: its content has digest %s", digest, got)
	}
	return nil
}

// image is a task's image as a daemon gets it: with the same layers and a
// configuration that says nothing else.
type image struct {
	layers           []v1.Layer
	diffIDs          []v1.Hash
	config, manifest v1.Hash
	blobs            map[string]blob
}

// newImage describes an image of the layers of img, marked as ours.
func newImage(img v1.Image) (*image, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the image's layers: %w", err)
	}
	i := &image{layers: layers, blobs: map[string]blob{}}
	config := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Labels: map[string]string{imageLabel: "1"}}}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		diffID, err := l.DiffID()
		if err != nil {
			return nil, fmt.Errorf("reading a layer's diffID: %w", err)
		}
		d, err := describe(l)
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", diffID, err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		manifest.Layers = append(manifest.Layers, d)
		i.blobs[d.Digest.String()] = blob{d.MediaType, d.Size, l.Compressed}
	}
	if manifest.Config, err = i.add(config, types.OCIConfigJSON); err != nil {
		return nil, err
	}
	m, err := i.add(manifest, types.OCIManifestSchema1)
	i.diffIDs = config.RootFS.DiffIDs
	i.config, i.manifest = manifest.Config.Digest, m.Digest
	return i, err
}

func describe(l v1.Layer) (v1.Descriptor, error) {
	digest, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	mediaType, err := l.MediaType()
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, err
}

// add adds a JSON document to the blobs.
func (i *image) add(v any, mediaType types.MediaType) (v1.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(data)), Digest: sha256Of(data)}
	i.blobs[d.Digest.String()] = blob{mediaType, d.Size, func() (io.ReadCloser, error) { return io.NopCloser(newReader(data)), nil }}
	return d, nil
}
