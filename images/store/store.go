// Package store keeps everything a farm makes or downloads in one OCI image
// layout on disk: package files, layers, images and build records are blobs
// named by their sha256.
//
// Beside the blobs stand refs, small files that give a blob a name: which
// layer was made from these packages, which record holds the result of this
// cell. A blob or a ref appears by a rename when it is complete, so a run may
// be killed at any moment, and several may share a store.
//
//	oci-layout, index.json        the OCI layout (image-spec v1.1); the index lists images and records
//	blobs/sha256/<hex>            content
//	refs/<kind>/<name>            a descriptor in JSON
//	partial/, cache/<name>/       unfinished downloads; what can be made again
//	tmp/, lock                    what is being written; locked, shared, by everyone who has the store open
//	users/, use.lock              who has the store open since when, for Collect
package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrNotFound says that a blob or ref is not in the store.
var ErrNotFound = errors.New("not in the store")

// ErrDamaged says that content is not what its digest says.
var ErrDamaged = errors.New("damaged")

// Store is a store on disk. It is safe for concurrent use, also by several
// processes.
type Store struct {
	dir  string
	lock *os.File
	user *os.File // in users/, locked; nil after Waive
}

// Open opens the store in dir, and makes it where there is none. Where nobody
// else has it open, temporary files that a killed run has left are removed.
// Close ends its use.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", dir, err)
	}
	s := &Store{dir: abs}
	for _, d := range []string{s.BlobDir(), s.PartialDir(), s.path("refs"), s.path("tmp"), s.path("users")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("opening the store %s: %w", dir, err)
		}
	}
	err = s.share()
	if err != nil {
		return nil, fmt.Errorf("opening the store %s: %w", dir, err)
	}
	err = errors.Join(
		s.register(),
		s.ensure("oci-layout", `{"imageLayoutVersion":"1.0.0"}`),
		s.ensure("index.json", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", dir, err), s.Close())
	}
	return s, nil
}

// share takes the store's lock together with everyone who has the store open.
// Whoever has it alone for a moment sweeps.
func (s *Store) share() error {
	lock, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		err = s.sweep()
	}
	if err = errors.Join(err, syscall.Flock(int(lock.Fd()), syscall.LOCK_SH)); err != nil {
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// sweep removes files which a run that was killed has left.
func (s *Store) sweep() (err error) {
	for _, dir := range []string{"tmp", "users"} {
		entries, rerr := os.ReadDir(s.path(dir))
		err = errors.Join(err, rerr)
		for _, e := range entries {
			err = errors.Join(err, os.RemoveAll(s.path(dir, e.Name())))
		}
	}
	return err
}

// Close ends the use of the store.
func (s *Store) Close() error { return errors.Join(s.unregister(), s.lock.Close()) }

// Dir is the store's folder, an absolute path.
func (s *Store) Dir() string { return s.dir }

// BlobDir holds the blobs, each under its sha256 in hex.
func (s *Store) BlobDir() string { return s.path("blobs", "sha256") }

// PartialDir holds unfinished downloads.
func (s *Store) PartialDir() string { return s.path("partial") }

// TempDir holds what is being made; a later Open removes what is left there.
func (s *Store) TempDir() string { return s.path("tmp") }

// CacheDir gives a folder for files that can be made again from blobs.
func (s *Store) CacheDir(name string) string { return s.path("cache", name) }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) ensure(name, content string) error {
	if _, err := os.Stat(s.path(name)); err == nil {
		return nil
	}
	return s.writeFile(s.path(name), []byte(content))
}

// writeFile writes a whole file under a temporary name and renames it.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(s.path("tmp"), "file-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return finish(f, path, err)
}

// finish gives a temporary file its final name, or removes it after an error.
// It is not synced: what a power cut leaves behind has not the size or the
// digest that it should, and is made again.
func finish(f *os.File, path string, err error) error {
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Writer writes a blob. Commit or Abort ends it.
type Writer struct {
	s    *Store
	f    *os.File
	sum  hash.Hash
	size int64
}

// Create begins a blob.
func (s *Store) Create() (*Writer, error) {
	f, err := os.CreateTemp(s.path("tmp"), "blob-")
	if err != nil {
		return nil, fmt.Errorf("writing a blob: %w", err)
	}
	return &Writer{s: s, f: f, sum: sha256.New()}, nil
}

func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// Commit gives the blob its name, and returns its digest and its size in bytes.
func (w *Writer) Commit() (v1.Hash, int64, error) {
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.sum.Sum(nil))}
	if err := finish(w.f, w.s.blobPath(h), nil); err != nil {
		return v1.Hash{}, 0, fmt.Errorf("writing blob %s: %w", h, err)
	}
	return h, w.size, nil
}

// Abort throws the blob away.
func (w *Writer) Abort() error { return errors.Join(w.f.Close(), os.Remove(w.f.Name())) }

// Put stores data as a blob of the media type. A blob that is there, but
// damaged, is replaced.
func (s *Store) Put(data []byte, mediaType types.MediaType) (v1.Descriptor, error) {
	sum := sha256.Sum256(data)
	d := v1.Descriptor{MediaType: mediaType, Size: int64(len(data)),
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	if s.Reuse(d) && s.verify(d.Digest) == nil {
		return d, nil
	}
	if err := s.writeFile(s.blobPath(d.Digest), data); err != nil {
		return d, fmt.Errorf("writing blob %s: %w", d.Digest, err)
	}
	return d, nil
}

// Write stores what write writes as a blob of the media type.
func (s *Store) Write(mediaType types.MediaType, write func(io.Writer) error) (v1.Descriptor, error) {
	w, err := s.Create()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if err := write(w); err != nil {
		return v1.Descriptor{}, errors.Join(err, w.Abort())
	}
	digest, size, err := w.Commit()
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, err
}

func (s *Store) blobPath(h v1.Hash) string { return filepath.Join(s.BlobDir(), h.Hex) }

// Has reports whether the blob is there with that size in bytes.
func (s *Store) Has(h v1.Hash, size int64) bool {
	fi, err := os.Stat(s.blobPath(h))
	return err == nil && h.Algorithm == "sha256" && hexDigest.MatchString(h.Hex) && fi.Mode().IsRegular() && fi.Size() == size
}

// Reuse reports whether the blob is there, with that size, and marks it as used.
func (s *Store) Reuse(d v1.Descriptor) bool {
	return s.Has(d.Digest, d.Size) && s.Use(s.blobPath(d.Digest)) == nil
}

// Ingest stores what r holds as the blob of a descriptor, which comes from
// elsewhere: its size and its digest have to be right.
func (s *Store) Ingest(d v1.Descriptor, r io.Reader) error {
	w, err := s.Create()
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, d.Size+1))
	if got := hex.EncodeToString(w.sum.Sum(nil)); err == nil && (w.size != d.Size || got != d.Digest.Hex) {
		err = fmt.Errorf("%w: want %s of %d bytes, got sha256 %s of %d", ErrDamaged, d.Digest, d.Size, got, w.size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("blob %s: %w", d.Digest, err), w.Abort())
	}
	_, _, err = w.Commit()
	return err
}

// OpenFile opens a blob for reading at any place. Nothing checks its content.
func (s *Store) OpenFile(h v1.Hash) (*os.File, error) { return s.open(h) }

// Open opens a blob for reading. Its content is checked against the digest
// before its last byte is given: a reader that has seen all of its bytes has
// seen a verified blob.
func (s *Store) Open(h v1.Hash) (io.ReadCloser, error) { return s.openVerifier(h) }

func (s *Store) openVerifier(h v1.Hash) (*verifier, error) {
	f, err := s.open(h)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &verifier{f: f, want: h, sum: sha256.New(), left: info.Size()}, nil
}

// OpenVerified opens a blob for reading at any place, after it was read and
// checked against the digest.
func (s *Store) OpenVerified(h v1.Hash) (*os.File, error) {
	v, err := s.openVerifier(h)
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(io.Discard, v); err == nil {
		_, err = v.f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v.f, nil
}

func (s *Store) open(h v1.Hash) (*os.File, error) {
	if h.Algorithm != "sha256" || !hexDigest.MatchString(h.Hex) {
		return nil, fmt.Errorf("%q is no sha256 digest", h.String())
	}
	f, err := os.Open(s.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", h, ErrNotFound)
	}
	return f, err
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// verifier checks a blob while it is read.
type verifier struct {
	f    *os.File
	want v1.Hash
	sum  hash.Hash
	left int64 // bytes
}

// Read reads. A blob that turns out to be damaged is removed: it is worth
// nothing, and what made it can make it again.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.sum.Write(p[:n])
	if v.left -= int64(n); v.left <= 0 || errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want.Hex {
			err = fmt.Errorf("blob %s is damaged: its content has sha256 %s; it is removed, run again to make it anew", v.want, got)
			return 0, errors.Join(err, os.Remove(v.f.Name()))
		}
	}
	return n, err
}

// verify reads a whole blob.
func (s *Store) verify(h v1.Hash) error {
	f, err := s.OpenVerified(h)
	if err != nil {
		return err
	}
	return f.Close()
}

func (v *verifier) Close() error { return v.f.Close() }

// Get reads and verifies a whole blob of at most limit bytes.
func (s *Store) Get(h v1.Hash, limit int64) ([]byte, error) {
	r, err := s.Open(h)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("blob %s has more than %d bytes", h, limit)
	}
	return data, err
}

// ErrControl marks a document with control characters in a text.
var ErrControl = errors.New("control characters in a text")

// GetJSON reads a JSON document of at most limit bytes into v. It may be anyone's,
// and its texts are shown on terminals: one that has control characters, but for
// tabs, is an ErrControl.
func (s *Store) GetJSON(h v1.Hash, limit int64, v any) error {
	data, err := s.Get(h, limit)
	if err != nil {
		return err
	}
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("blob %s: %w", h, err)
		}
		text, _ := token.(string)
		if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
			return fmt.Errorf("blob %s: %w: %.80q", h, ErrControl, text)
		}
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("blob %s: %w", h, err)
	}
	return nil
}

// maxRef bounds a ref's file in bytes.
const maxRef = 64 << 10

var refName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)

func (s *Store) refPath(kind, name string) (string, error) {
	if !refName.MatchString(kind) || !refName.MatchString(name) {
		return "", fmt.Errorf("%q, %q is no name for a ref", kind, name)
	}
	return s.path("refs", kind, name), nil
}

// Ref looks a name up, and marks it as used. The error is ErrNotFound where it
// is not there, or where its file is damaged: what it named can be made again.
func (s *Store) Ref(kind, name string) (d v1.Descriptor, err error) {
	path, err := s.refPath(kind, name)
	if err != nil {
		return d, err
	}
	err = s.using(func() error {
		if d, err = s.readRef(kind, name); err != nil {
			return err
		}
		return touch(path)
	})
	return d, err
}

// readRef looks a name up without a mark.
func (s *Store) readRef(kind, name string) (v1.Descriptor, error) {
	var d v1.Descriptor
	path, err := s.refPath(kind, name)
	if err != nil {
		return d, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("%s %s: %w", kind, name, ErrNotFound)
	}
	if err != nil {
		return d, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxRef)).Decode(&d); err != nil {
		return d, fmt.Errorf("%s %s is damaged (%w): %w", kind, name, err, ErrNotFound)
	}
	return d, nil
}

// SetRef names a blob, which must be there.
func (s *Store) SetRef(kind, name string, d v1.Descriptor) error {
	path, err := s.refPath(kind, name)
	if err != nil {
		return err
	}
	if !s.Has(d.Digest, d.Size) {
		return fmt.Errorf("naming %s %s: blob %s: %w", kind, name, d.Digest, ErrNotFound)
	}
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err = s.using(func() error {
		if err := touch(s.blobPath(d.Digest)); err != nil {
			return err
		}
		return s.writeFile(path, data)
	})
	if err != nil {
		return fmt.Errorf("naming %s %s: %w", kind, name, err)
	}
	return nil
}

// Refs lists the names of a kind, sorted.
func (s *Store) Refs(kind string) ([]string, error) {
	if !refName.MatchString(kind) {
		return nil, fmt.Errorf("%q is no kind of refs", kind)
	}
	entries, err := os.ReadDir(s.path("refs", kind))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if refName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// indexed are the kinds of refs that index.json lists.
var indexed = []string{"image", "result", "referrer"}

// WriteIndex writes index.json from the refs, so that other tools which read
// OCI layouts find the images and records.
func (s *Store) WriteIndex() error {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for _, kind := range indexed {
		names, err := s.Refs(kind)
		if err != nil {
			return fmt.Errorf("writing index.json: %w", err)
		}
		for _, name := range names {
			d, err := s.readRef(kind, name)
			if err != nil {
				continue
			}
			d.Annotations = map[string]string{"org.opencontainers.image.ref.name": kind + "-" + name}
			index.Manifests = append(index.Manifests, d)
		}
	}
	data, err := json.Marshal(index)
	if err == nil {
		err = s.writeFile(s.path("index.json"), data)
	}
	if err != nil {
		return fmt.Errorf("writing index.json: %w", err)
	}
	return nil
}
