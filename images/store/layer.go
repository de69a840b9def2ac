package store

import (
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// diffIDKey is the annotation of a layer's descriptor that holds its diffID.
const diffIDKey = "dev.kofarm.diffid"

// Layer is a gzip-compressed layer in the store.
type Layer struct {
	s      *Store
	desc   v1.Descriptor
	diffID v1.Hash
}

var _ v1.Layer = (*Layer)(nil)

// NewLayer gives the layer that a committed blob holds, and names it, so that
// Layer finds it again by that name.
func (s *Store) NewLayer(name string, digest v1.Hash, size int64, diffID v1.Hash) (*Layer, error) {
	d := v1.Descriptor{MediaType: types.OCILayer, Digest: digest, Size: size,
		Annotations: map[string]string{diffIDKey: diffID.String()}}
	if err := s.SetRef("layer", name, d); err != nil {
		return nil, err
	}
	return &Layer{s: s, desc: d, diffID: diffID}, nil
}

// Layer finds a layer by its name. The error is ErrNotFound where there is
// none.
func (s *Store) Layer(name string) (*Layer, error) {
	d, err := s.Ref("layer", name)
	if err != nil {
		return nil, err
	}
	diffID, err := v1.NewHash(d.Annotations[diffIDKey])
	if err != nil || !s.Has(d.Digest, d.Size) {
		return nil, fmt.Errorf("layer %s: %w", name, ErrNotFound)
	}
	return &Layer{s: s, desc: d, diffID: diffID}, nil
}

// Digest implements v1.Layer.
func (l *Layer) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

// DiffID implements v1.Layer.
func (l *Layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size implements v1.Layer: compressed, in bytes.
func (l *Layer) Size() (int64, error) { return l.desc.Size, nil }

// MediaType implements v1.Layer.
func (l *Layer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// Compressed implements v1.Layer.
func (l *Layer) Compressed() (io.ReadCloser, error) { return l.s.Open(l.desc.Digest) }

// Uncompressed implements v1.Layer. Like Open it checks the blob at its end.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	blob, err := l.s.Open(l.desc.Digest)
	if err != nil {
		return nil, err
	}
	zr, err := gzip.NewReader(blob)
	if err != nil {
		return nil, errors.Join(l.damaged(err), blob.Close())
	}
	return &gunzipped{zr, blob, l}, nil
}

// damaged tells whether the blob is to blame for an error of reading it.
func (l *Layer) damaged(err error) error {
	if verr := l.s.verify(l.desc.Digest); verr != nil && !errors.Is(verr, ErrNotFound) {
		err = verr
	}
	return fmt.Errorf("layer %s: %w", l.desc.Digest, err)
}

type gunzipped struct {
	zip   *gzip.Reader
	blob  io.Closer
	layer *Layer
}

func (g *gunzipped) Read(p []byte) (int, error) {
	n, err := g.zip.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = g.layer.damaged(err)
	}
	return n, err
}

func (g *gunzipped) Close() error { return errors.Join(g.zip.Close(), g.blob.Close()) }

// PutImage stores an image's config and manifest, whose layers must be in the
// store, and names it.
func (s *Store) PutImage(name string, img v1.Image) (v1.Descriptor, error) {
	config, err := img.RawConfigFile()
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("storing image %s: %w", name, err)
	}
	if _, err := s.Put(config, types.OCIConfigJSON); err != nil {
		return v1.Descriptor{}, fmt.Errorf("storing image %s: %w", name, err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("storing image %s: %w", name, err)
	}
	d, err := s.Put(manifest, types.OCIManifestSchema1)
	if err != nil {
		return d, fmt.Errorf("storing image %s: %w", name, err)
	}
	return d, s.SetRef("image", name, d)
}
