package embedded

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// tmpPrefix marks a folder that is being unpacked.
const tmpPrefix = ".unpacking-"

// whiteout begins the name of an entry that takes something of a lower layer
// away (OCI image-spec, layer.md).
const whiteout = ".wh."

// Limits on one layer, so that an image from elsewhere cannot fill the disk.
const (
	maxLayerEntries = 2_000_000
	maxLayerBytes   = 32 << 30
)

// layers keeps unpacked layers, each in a folder named by its diffID's hex
// form. A folder with such a name is complete.
type layers struct {
	dir   string
	group singleflight.Group
}

func newLayers(dir string) *layers { return &layers{dir: layersDir(dir)} }

// sweep removes what a killed run has left half unpacked.
func (l *layers) sweep() {
	entries, _ := os.ReadDir(l.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			_ = removeAll(filepath.Join(l.dir, e.Name()))
		}
	}
}

// unpacked gives the folders' names of the image's layers, lowest first,
// unpacking those that are not there yet.
func (l *layers) unpacked(ctx context.Context, img v1.Image) ([]string, error) {
	ls, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the image's layers: %w", err)
	}
	names := make([]string, len(ls))
	for i, layer := range ls {
		diffID, err := layer.DiffID()
		if err != nil {
			return nil, fmt.Errorf("reading a layer's diffID: %w", err)
		}
		names[i] = diffID.Hex
		if err := l.ensure(ctx, diffID.Hex, layer); err != nil {
			return nil, fmt.Errorf("unpacking layer %s: %w", diffID, err)
		}
	}
	return names, nil
}

// ensure unpacks a layer unless it is there. Where tasks want it at the same
// time one unpacks it; when that one is cancelled, the next takes over.
func (l *layers) ensure(ctx context.Context, name string, layer v1.Layer) error {
	final := filepath.Join(l.dir, name)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if there, err := l.use(name); err != nil || there {
			return err
		}
		_, err, shared := l.group.Do(name, func() (any, error) {
			if there, err := l.use(name); err != nil || there { // since it was looked for
				return nil, err
			}
			return nil, l.unpack(ctx, final, name, layer)
		})
		cancelled := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		if !shared || !cancelled {
			return err
		}
	}
}

// unpack writes the layer to a folder beside final and renames it when its
// content has proved to be what the diffID says.
func (l *layers) unpack(ctx context.Context, final, want string, layer v1.Layer) (err error) {
	tmp, err := os.MkdirTemp(l.dir, tmpPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(tmp))
		}
	}()
	rc, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	sum := sha256.New()
	if err := unpackTar(ctx, tmp, rc, sum); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return fmt.Errorf("its content has sha256 %s", got)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	err = os.Rename(tmp, final)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return removeAll(tmp) // another process was faster
	}
	return err
}

// unpackTar extracts a layer below dir, which no entry can leave, and feeds
// every byte of the archive to sum.
func unpackTar(ctx context.Context, dir string, r io.Reader, sum hash.Hash) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	counted := io.TeeReader(&ctxReader{ctx, r}, sum)
	tr := tar.NewReader(counted)
	x := extractor{root: root, left: maxLayerBytes}
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n >= maxLayerEntries {
			return fmt.Errorf("more than %d entries", maxLayerEntries)
		}
		if err := x.extract(h, tr); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return err
	}
	return x.finish()
}

// ctxReader stops reading when its context ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// extractor writes entries below root. Folders get their times last, as
// writing into them changes these.
type extractor struct {
	root *os.Root
	left int64
	dirs []*tar.Header
}

func (x *extractor) extract(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "/"))
	if !filepath.IsLocal(name) {
		return errors.New("the path leaves the layer")
	}
	if strings.HasPrefix(path.Base(name), whiteout) {
		return errors.New("a whiteout: the embedded runtime takes layers that only add")
	}
	mode := h.FileInfo().Mode().Perm()
	if h.Typeflag != tar.TypeDir && name != "." {
		if err := x.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		x.dirs = append(x.dirs, h)
		return x.root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
		return x.file(name, mode, h, r)
	case tar.TypeSymlink:
		return x.symlink(name, h)
	case tar.TypeLink:
		return x.root.Link(path.Clean(strings.TrimPrefix(h.Linkname, "/")), name)
	default:
		return fmt.Errorf("a layer holds files, folders and links, not type %q", h.Typeflag)
	}
}

func (x *extractor) file(name string, mode fs.FileMode, h *tar.Header, r io.Reader) (err error) {
	if x.left -= h.Size; x.left < 0 {
		return fmt.Errorf("more than %d bytes", int64(maxLayerBytes))
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	ts := []unix.Timespec{unix.NsecToTimespec(h.ModTime.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
	return unix.UtimesNanoAt(int(f.Fd()), "", ts, unix.AT_EMPTY_PATH)
}

// symlink gives a link its time as well: make compares it where it is told to.
func (x *extractor) symlink(name string, h *tar.Header) error {
	if err := x.root.Symlink(h.Linkname, name); err != nil {
		return err
	}
	parent, err := x.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	ts := []unix.Timespec{unix.NsecToTimespec(h.ModTime.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
	return unix.UtimesNanoAt(int(parent.Fd()), path.Base(name), ts, unix.AT_SYMLINK_NOFOLLOW)
}

func (x *extractor) finish() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		h := x.dirs[i]
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if err := x.root.Chmod(name, h.FileInfo().Mode().Perm()|0o700); err != nil {
			return err
		}
		if err := x.root.Chtimes(name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a tree even where its folders are read-only.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

func hashPath(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	sum := sha256.Sum256([]byte(abs))
	return hex.EncodeToString(sum[:6])
}
