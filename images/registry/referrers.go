package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/images/store"
)

// referrerKind is the kind of the refs to manifests about other manifests:
// <digest of the other, in hex>-<what> → the manifest.
const referrerKind = "referrer"

// referrers are what a store has about a manifest, in the order of their names.
func referrers(s *store.Store, subject v1.Hash) ([]v1.Descriptor, error) {
	names, err := s.Refs(referrerKind)
	if err != nil {
		return nil, err
	}
	prefix := subject.Hex + "-"
	first, _ := slices.BinarySearch(names, prefix)
	all := []v1.Descriptor{}
	for _, name := range names[first:] {
		if !strings.HasPrefix(name, prefix) {
			break
		}
		if d, err := s.Ref(referrerKind, name); err == nil { // else it is gone
			all = append(all, d)
		}
	}
	return all, nil
}

// referrers lists what refers to a manifest (distribution-spec v1.1, "Listing
// Referrers"): nothing, where nobody knows it.
func (h Handler) referrers(w http.ResponseWriter, r *http.Request, reference string) error {
	digest, err := v1.NewHash(reference)
	if err != nil {
		return &apiError{http.StatusBadRequest, "DIGEST_INVALID", "that is no digest"}
	}
	list, err := referrers(h.Store, digest)
	if err != nil {
		return err
	}
	if want := r.URL.Query().Get("artifactType"); want != "" {
		list = slices.DeleteFunc(list, func(d v1.Descriptor) bool { return d.ArtifactType != want })
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	body, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: list})
	if err != nil {
		return err
	}
	send(w, http.StatusOK, string(types.OCIImageIndex), body)
	return nil
}

// Attach puts what the store has about a result into the registry, as OCI
// referrers, unless the registry has another result of that key.
func (c *Cache) Attach(ctx context.Context, key string) error {
	subject, err := c.store.Ref(c.kind, key)
	if err != nil {
		return err
	}
	there, err := c.puller.Head(ctx, c.repo.Tag(key))
	if notFound(err) || err == nil && there.Digest != subject.Digest {
		return nil
	}
	if err != nil {
		return c.wrap("asking", err)
	}
	list, err := referrers(c.store, subject.Digest)
	if err != nil {
		return err
	}
	for _, d := range list { // one after the other: an old registry has one list, which each changes
		if err := c.attach(ctx, d); err != nil {
			return c.wrap("pushing what is about "+key+" to", err)
		}
	}
	return nil
}

func (c *Cache) attach(ctx context.Context, d v1.Descriptor) error {
	ref := c.repo.Digest(d.Digest.String())
	if _, err := c.puller.Head(ctx, ref); err == nil {
		return nil
	}
	img, err := c.stored(d)
	if err != nil {
		return err
	}
	return c.pusher.Push(ctx, ref, img)
}

// stored is a manifest of the store with its blobs.
func (c *Cache) stored(d v1.Descriptor) (v1.Image, error) {
	data, err := c.store.Get(d.Digest, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := manifestOf(data)
	if err != nil {
		return nil, err
	}
	config, err := c.store.Get(m.Config.Digest, maxManifest)
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&stored{store: c.store, manifest: m, raw: data, config: config})
}
