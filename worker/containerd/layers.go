package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kofarm/kofarm/worker"
)

// rootLabel keeps a snapshot from containerd's collection of garbage.
const rootLabel = "containerd.io/gc.root"

// unpacked gives the name of the snapshot of the image's layers, unpacking
// those that are not there yet.
func (r *Runner) unpacked(ctx context.Context, img v1.Image) (string, error) {
	ctx = leases.WithLease(namespaces.WithNamespace(ctx, Namespace), r.lease.ID)
	layers, err := img.Layers()
	if err != nil {
		return "", fmt.Errorf("reading the image's layers: %w", err)
	}
	var below []digest.Digest
	for _, l := range layers {
		diffID, err := l.DiffID()
		if err != nil {
			return "", fmt.Errorf("reading a layer's diffID: %w", err)
		}
		if err := r.ensure(ctx, below, digest.Digest(diffID.String()), l); err != nil {
			return "", fmt.Errorf("unpacking layer %s: %w", diffID, err)
		}
		below = append(below, digest.Digest(diffID.String()))
	}
	return chainID(below), nil
}

// chainID names the snapshot of layers on top of each other.
func chainID(layers []digest.Digest) string {
	return identity.ChainID(append([]digest.Digest(nil), layers...)).String()
}

// ensure unpacks a layer on top of those below unless that is there. Where
// tasks want it at the same time one unpacks it; when that one is cancelled, the
// next takes over.
func (r *Runner) ensure(ctx context.Context, below []digest.Digest, diffID digest.Digest, l v1.Layer) error {
	key := chainID(append(below[:len(below):len(below)], diffID))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, ok := r.ready.Load(key); ok {
			return nil
		}
		_, err, shared := r.unpacking.Do(key, func() (any, error) { return nil, r.unpack(ctx, key, below, diffID, l) })
		cancelled := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsCanceled(err)
		if shared && cancelled {
			continue
		}
		if err == nil {
			r.ready.Store(key, true)
		}
		return err
	}
}

func (r *Runner) unpack(ctx context.Context, key string, below []digest.Digest, diffID digest.Digest, l v1.Layer) error {
	_, err := r.snapshots.Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		err = r.apply(ctx, below, diffID, l)
	}
	if err != nil {
		return err
	}
	labels := map[string]string{rootLabel: r.day, worker.UsedLabel: r.day}
	_, err = r.snapshots.Update(ctx, snapshots.Info{Name: key, Labels: labels}, "labels."+rootLabel, "labels."+worker.UsedLabel)
	return err
}

// apply brings a layer's blob into the content store, which checks its digest,
// and unpacks it, where its diffID is checked.
func (r *Runner) apply(ctx context.Context, below []digest.Digest, diffID digest.Digest, l v1.Layer) error {
	blob, err := describe(l)
	if err != nil {
		return err
	}
	err = r.client.LeasesService().AddResource(ctx, r.lease, leases.Resource{ID: blob.Digest.String(), Type: "content"})
	if err != nil {
		return fmt.Errorf("leasing: %w", err)
	}
	if err := r.write(ctx, blob, l); err != nil {
		return err
	}
	layer := rootfs.Layer{Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID}, Blob: blob}
	_, err = rootfs.ApplyLayerWithOpts(ctx, layer, below[:len(below):len(below)], r.snapshots, r.client.DiffService(),
		[]snapshots.Opt{snapshots.WithLabels(r.labels())}, nil)
	return err
}

func describe(l v1.Layer) (ocispec.Descriptor, error) {
	d, err := l.Digest()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	mediaType, err := l.MediaType()
	return ocispec.Descriptor{MediaType: string(mediaType), Digest: digest.Digest(d.String()), Size: size}, err
}

// write writes a blob to the content store unless it is there.
func (r *Runner) write(ctx context.Context, blob ocispec.Descriptor, l v1.Layer) (err error) {
	store := r.client.ContentStore()
	if _, err := store.Info(ctx, blob.Digest); !errdefs.IsNotFound(err) {
		return err
	}
	rc, err := l.Compressed()
	if err != nil {
		return fmt.Errorf("reading %s: %w", blob.Digest, err)
	}
	defer rc.Close()
	ref := "kofarm-" + r.claim.Run + "-" + blob.Digest.String()
	if err := content.WriteBlob(ctx, store, ref, rc, blob); err != nil {
		abort := store.Abort(context.WithoutCancel(ctx), ref)
		if errdefs.IsNotFound(abort) {
			abort = nil
		}
		return errors.Join(fmt.Errorf("writing %s to the content store: %w", blob.Digest, err), abort)
	}
	return nil
}
