package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	dockerimage "github.com/docker/docker/api/types/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker"
)

// tagPrefix begins the tags of our images, kofarm:<digest>-<day>. The day of
// the last use lets [Runner.sweepImages] find those that nobody needs.
const tagPrefix = "kofarm:"

// keepImages is how long an image is kept that is not used.
const keepImages = 7 * 24 * time.Hour

// imageLabel marks images as ours.
const imageLabel = "dev.kofarm.image"

const dayFormat = "20060102"

func sha256Of(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func newReader(data []byte) io.Reader { return bytes.NewReader(data) }

// ensure gives the daemon's id of a task's image, which is brought there unless
// it is there.
func (r *Runner) ensure(ctx context.Context, source v1.Image) (string, error) {
	img, err := newImage(source)
	if err != nil {
		return "", err
	}
	key := img.config.String()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		id, err, shared := r.bringing.Do(key, func() (any, error) { return r.bring(ctx, img) })
		cancelled := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		if shared && cancelled { // it was another task's end
			continue
		}
		if err != nil {
			return "", fmt.Errorf("bringing the image into Docker: %w", err)
		}
		return id.(string), nil
	}
}

func (r *Runner) bring(ctx context.Context, img *image) (string, error) {
	id, err := r.inspect(ctx, img)
	if errdefs.IsNotFound(err) {
		if err := r.transfer(ctx, img); err != nil {
			return "", err
		}
		id, err = r.inspect(ctx, img)
	}
	if err != nil {
		return "", err
	}
	tag := tagPrefix + img.config.Hex[:32] + "-" + r.day
	if err := r.client.ImageTag(ctx, id, tag); err != nil {
		return "", err
	}
	// The name by which it was pulled means nothing after this run.
	_, err = r.client.ImageRemove(ctx, r.registry.reference(img), dockerimage.RemoveOptions{})
	if errdefs.IsNotFound(err) {
		err = nil
	}
	return id, err
}

// inspect looks for the image under both names that daemons have for it: a
// store of layers calls it by its configuration's digest, containerd's by its
// manifest's.
func (r *Runner) inspect(ctx context.Context, img *image) (string, error) {
	found, err := r.client.ImageInspect(ctx, img.config.String())
	if errdefs.IsNotFound(err) {
		found, err = r.client.ImageInspect(ctx, img.manifest.String())
	}
	return found.ID, err
}

// transfer lets the daemon pull the image, of which it takes the layers that it
// lacks. To a daemon that cannot reach us all of it is sent.
func (r *Runner) transfer(ctx context.Context, img *image) error {
	if !r.sends.Load() {
		reached, err := r.pull(ctx, img)
		if err == nil || reached || ctx.Err() != nil {
			return err
		}
		if silent := r.Ping(ctx); silent != nil { // it reaches nobody
			return fmt.Errorf("%w: %w", worker.ErrLost, silent)
		}
		r.log.Warn("the Docker daemon does not reach this machine's loopback: it is sent images, without the layers that it has", "err", err)
		r.sends.Store(true)
	}
	return r.send(ctx, img)
}

// pull tells also whether the daemon has reached our registry.
func (r *Runner) pull(ctx context.Context, img *image) (reached bool, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p, done := r.registry.offer(img, fail)
	defer done()
	rc, err := r.client.ImagePull(ctx, r.registry.reference(img), dockerimage.PullOptions{})
	if err == nil {
		err = errors.Join(readProgress(rc), rc.Close())
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return p.seen.Load(), err
}

// maxProgress bounds the messages of one transfer.
const maxProgress = 64 << 20

// readProgress reads the daemon's messages to their end, or to an error's.
func readProgress(r io.Reader) error {
	dec := json.NewDecoder(io.LimitReader(r, maxProgress))
	for {
		var message struct {
			Error string `json:"error"`
		}
		err := dec.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the daemon's messages: %w", cut(err))
		case message.Error != "":
			return errors.New(message.Error)
		}
	}
}

// send sends the image as an archive of the form of `docker save`, without the
// layers below that the daemon has: it looks for a layer before it reads it.
// Where that does not do, as a daemon with containerd's store of images wants
// them all, it is sent whole.
func (r *Runner) send(ctx context.Context, img *image) error {
	known, err := r.known(ctx, img)
	if err != nil {
		return err
	}
	if known > 0 {
		if err := r.load(ctx, img, known); err == nil || ctx.Err() != nil || errors.Is(err, errContent) {
			return err
		}
	}
	return r.load(ctx, img, 0)
}

// known gives how many of the image's layers, from below, are those of an image
// of ours that the daemon has.
func (r *Runner) known(ctx context.Context, img *image) (int, error) {
	list, err := r.images(ctx)
	if err != nil {
		return 0, err
	}
	most := 0
	for _, other := range list {
		found, err := r.client.ImageInspect(ctx, other.ID)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("inspecting image %s: %w", other.ID, err)
		}
		most = max(most, common(img.diffIDs, found.RootFS.Layers))
	}
	return most, nil
}

// common gives how many of two images' layers are the same, from below.
func common(a []v1.Hash, b []string) int {
	for i := range a {
		if i == len(b) || a[i].String() != b[i] {
			return i
		}
	}
	return len(a)
}

// load sends the image without so many layers from below.
func (r *Runner) load(ctx context.Context, img *image, without int) error {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := writeArchive(io.MultiWriter(pw, &r.sent), img, without)
		pw.CloseWithError(err)
		written <- err
	}()
	resp, err := r.client.ImageLoad(ctx, pr)
	if err == nil {
		err = errors.Join(readProgress(resp.Body), resp.Body.Close())
	}
	pr.CloseWithError(io.ErrClosedPipe)
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return werr
	}
	return err
}

// counter counts the bytes that are written to it.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// Moved gives the bytes of images that went to the daemon so far.
func (r *Runner) Moved() int64 { return r.registry.bytes.Load() + r.sent.Load() }

// errContent marks a fault of the image's content.
var errContent = errors.New("the image cannot be read")

// writeArchive writes an archive as the Docker image specification 1.2 has it,
// without so many layers from below.
func writeArchive(w io.Writer, img *image, without int) error {
	tw := tar.NewWriter(w)
	index := struct {
		Config string
		Layers []string
	}{Config: img.config.Hex + ".json"}
	if err := addBlob(tw, index.Config, img.config, img.blobs[img.config.String()]); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, l := range img.layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		name := digest.Hex + ".tar.gz"
		index.Layers = append(index.Layers, name)
		if i < without || seen[name] {
			continue
		}
		seen[name] = true
		if err := addBlob(tw, name, digest, img.blobs[digest.String()]); err != nil {
			return err
		}
	}
	data, err := json.Marshal([]any{index})
	if err != nil {
		return err
	}
	manifest := blob{size: int64(len(data)), open: func() (io.ReadCloser, error) { return io.NopCloser(newReader(data)), nil }}
	if err := addBlob(tw, "manifest.json", sha256Of(data), manifest); err != nil {
		return err
	}
	return tw.Close()
}

// addBlob writes a file whose content must have the digest.
func addBlob(tw *tar.Writer, name string, want v1.Hash, b blob) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: b.size}); err != nil {
		return err
	}
	rc, err := b.open()
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errContent, want, err)
	}
	defer rc.Close()
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(sum, tw), io.LimitReader(rc, b.size))
	if errors.Is(err, io.ErrClosedPipe) { // the daemon takes no more
		return err
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errContent, want, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: %s: its content has sha256 %s", errContent, want, got)
	}
	return nil
}

// images lists those of any store's: the same images serve all.
func (r *Runner) images(ctx context.Context) ([]dockerimage.Summary, error) {
	list, err := r.client.ImageList(ctx, dockerimage.ListOptions{
		Filters: filters.NewArgs(filters.Arg("label", imageLabel))})
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	return list, nil
}

// sweepImages removes those that were not used for a week.
func (r *Runner) sweepImages(ctx context.Context) error {
	list, err := r.images(ctx)
	if err != nil {
		return err
	}
	oldest := time.Now().Add(-keepImages).UTC().Format(dayFormat)
	var errs []error
	for _, img := range list {
		if last := lastUse(img.RepoTags); last >= oldest {
			continue
		}
		_, err := r.client.ImageRemove(ctx, img.ID, dockerimage.RemoveOptions{Force: true, PruneChildren: true})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			errs = append(errs, fmt.Errorf("removing image %s: %w", img.ID, err))
		}
	}
	return errors.Join(errs...)
}

// lastUse gives the newest day among an image's tags, "" if there is none.
func lastUse(tags []string) string {
	var days []string
	for _, t := range tags {
		if i := strings.LastIndex(t, "-"); strings.HasPrefix(t, tagPrefix) && i > 0 {
			days = append(days, t[i+1:])
		}
	}
	if len(days) == 0 {
		return ""
	}
	return slices.Max(days)
}
