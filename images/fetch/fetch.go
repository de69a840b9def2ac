package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

const (
	// DefaultMaxSize is the most bytes taken for a file whose size and limit are unknown.
	DefaultMaxSize = 4 << 30
	// resumes is how often one mirror is asked again after a transfer that broke off with progress.
	resumes = 5

	dirMode  = 0o755
	fileMode = 0o644
)

// Client downloads into a cache on disk that several processes may share. It is safe for
// concurrent use; its fields are not changed after the first call.
type Client struct {
	Dir     string                // finished files, named by their sha256 in hex
	Kept    string                // copies of mutable files
	Partial string                // unfinished files, on the same file system as Dir
	HTTP    *retryablehttp.Client // nil: NewHTTP(Stall)
	Stall   time.Duration         // how long a server may send nothing; zero: DefaultStall
	Offline bool                  // never use the network
	Log     *slog.Logger          // nil: silent
	// Use is told of a file that is there before it is relied on, and fails where
	// the file has been removed meanwhile. nil: nobody removes any.
	Use func(path string) error

	once    sync.Once
	client  *retryablehttp.Client
	failing sync.Map // when a host has failed that has not delivered since

	mu      sync.Mutex
	running []*transfer // oldest first
}

// File is a file to download.
type File struct {
	URLs    []string // tried in order
	SHA256  string   // lower-case hex
	Size    int64    // bytes; -1 where unknown
	MaxSize int64    // most bytes taken where Size is unknown; zero: DefaultMaxSize
}

// limit is the most bytes that the file may have.
func (f File) limit() int64 {
	switch {
	case f.Size >= 0:
		return f.Size
	case f.MaxSize > 0:
		return f.MaxSize
	}
	return DefaultMaxSize
}

// name is what errors call the file: the last element of its first URL.
func (f File) name() string {
	if len(f.URLs) == 0 {
		return f.SHA256
	}
	return f.URLs[0][strings.LastIndexByte(f.URLs[0], '/')+1:]
}

func (c *Client) http() *retryablehttp.Client {
	c.once.Do(func() {
		if c.client = c.HTTP; c.client == nil {
			c.client = NewHTTP(c.stall())
		}
	})
	return c.client
}

func (c *Client) stall() time.Duration {
	if c.Stall > 0 {
		return c.Stall
	}
	return DefaultStall
}

func (c *Client) log() *slog.Logger {
	if c.Log != nil {
		return c.Log
	}
	return slog.New(slog.DiscardHandler)
}

// Fetch returns the path of the file, downloading it unless it is there. The errors are ErrOffline,
// a *MirrorsError (see there for ErrNotFound, ErrChecksum, ErrTooLarge, ErrUnavailable), the
// context's, or one of the local file system.
func (c *Client) Fetch(ctx context.Context, f File) (string, error) {
	if err := checkHex(f.SHA256); err != nil {
		return "", fmt.Errorf("fetching %s: %w", f.name(), err)
	}
	if path, ok := c.Have(f); ok {
		return path, nil
	}
	if c.Offline {
		return "", fmt.Errorf("fetching %s (sha256 %s): %w", f.name(), f.SHA256, ErrOffline)
	}
	path, err := c.download(ctx, f)
	if local, ok := errors.AsType[*localError](err); ok {
		return "", fmt.Errorf("fetching %s: %w", f.name(), local.err)
	}
	return path, err
}

// Have returns the path of the file if it is in the cache. A file of another size than the known
// one (a disk that lost data in a power cut) does not count.
func (c *Client) Have(f File) (string, bool) {
	path := filepath.Join(c.Dir, f.SHA256)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || f.Size >= 0 && info.Size() != f.Size {
		return "", false
	}
	return path, c.Usable(path)
}

// Usable reports whether a file that was there a moment ago can be relied on.
func (c *Client) Usable(path string) bool { return c.Use == nil || c.Use(path) == nil }

// download holds the partial file's lock while it tries the mirrors.
func (c *Client) download(ctx context.Context, f File) (string, error) {
	for _, dir := range []string{c.Dir, c.Partial} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return "", &localError{err}
		}
	}
	part, err := OpenLocked(ctx, filepath.Join(c.Partial, f.SHA256))
	if err != nil {
		return "", err
	}
	defer part.Close()             // releases the lock; the data was synced before its rename
	if path, ok := c.Have(f); ok { // another process was faster
		_ = os.Remove(part.Name()) // ours, and empty; nobody else can hold its lock
		return path, nil
	}
	c.log().Debug("downloading", "file", f.name(), "bytes", f.Size)
	err = c.tryMirrors(ctx, f.name(), f.URLs, func(url string) error { return c.tryMirror(ctx, f, url, part) })
	if err != nil {
		return "", err
	}
	return c.finish(f, part)
}

// finish gives a verified partial file its final name.
func (c *Client) finish(f File, part *os.File) (string, error) {
	path := filepath.Join(c.Dir, f.SHA256)
	if err := part.Sync(); err != nil {
		return "", &localError{err}
	}
	now := time.Now() // it may have been complete for long
	if err := errors.Join(os.Chtimes(part.Name(), now, now), os.Rename(part.Name(), path)); err != nil {
		return "", &localError{err}
	}
	return path, nil
}

// tryMirror fills part from one mirror. It goes on where a broken transfer stopped as long as each
// one brings something, and starts anew once if what was resumed turns out wrong: then the fault
// may lie in the bytes from before.
func (c *Client) tryMirror(ctx context.Context, f File, url string, part *os.File) error {
	for range resumes {
		start, err := part.Seek(0, io.SeekEnd)
		if err != nil {
			return &localError{err}
		}
		err = c.transferInto(ctx, f, url, part)
		if err == nil {
			return nil
		}
		end, serr := part.Seek(0, io.SeekEnd)
		if serr != nil {
			return &localError{serr}
		}
		resumedWrong := start > 0 && end == 0
		if !resumedWrong && (end <= start || !errors.Is(err, ErrUnavailable)) {
			return err
		}
	}
	return fmt.Errorf("%w: the transfer broke off %d times", ErrUnavailable, resumes)
}

// transferInto makes one request and appends its body to part, or replaces part by it where the
// server does not resume. Content that is wrong is emptied out of part.
func (c *Client) transferInto(ctx context.Context, f File, url string, part *os.File) error {
	sum, have, err := hashPartial(part, f)
	if err != nil {
		return &localError{err}
	}
	if f.Size < 0 || have < f.Size || have == 0 {
		if have, err = c.request(ctx, f, url, part, sum, have); err != nil {
			return err
		}
	}
	if f.Size >= 0 && have < f.Size {
		return fmt.Errorf("%w: the transfer ended at %d of %d bytes", ErrUnavailable, have, f.Size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return errors.Join(fmt.Errorf("%w: want sha256 %s, got %s", ErrChecksum, f.SHA256, got), emptied(part))
	}
	return nil
}

// request asks for what follows the first have bytes and returns how many there are then.
func (c *Client) request(ctx context.Context, f File, url string, part *os.File, sum hash.Hash, have int64) (int64, error) {
	header := http.Header{}
	if have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	t, err := c.get(ctx, url, header)
	if err != nil {
		return have, err
	}
	defer t.Close() // only ever read from
	resumed := have > 0 && t.StatusCode == http.StatusPartialContent
	switch {
	case resumed && strings.HasPrefix(t.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
	case resumed, have > 0 && t.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return have, errors.Join(fmt.Errorf("%w: it does not resume at byte %d", ErrUnavailable, have), emptied(part))
	case t.StatusCode == http.StatusOK:
		if err := emptied(part); err != nil {
			return have, err
		}
		sum.Reset()
		have = 0
	default:
		return have, statusError(t.Response)
	}
	n, err := copyLimited(io.MultiWriter(localWriter{part}, sum), t, f.limit()-have)
	have += n
	if errors.Is(err, ErrTooLarge) {
		if f.Size >= 0 {
			err = fmt.Errorf("%w: want %d bytes, got more", ErrChecksum, f.Size)
		}
		err = errors.Join(err, emptied(part))
	}
	if err == nil && have < f.Size && t.ContentLength >= 0 { // it sent all that it said it would
		err = errors.Join(fmt.Errorf("%w: want %d bytes, got %d", ErrChecksum, f.Size, have), emptied(part))
	}
	return have, err
}

// copyLimited copies at most limit bytes; one more is ErrTooLarge.
func copyLimited(w io.Writer, r io.Reader, limit int64) (int64, error) {
	n, err := io.Copy(w, io.LimitReader(r, limit))
	if err != nil || n < limit {
		return n, err
	}
	var one [1]byte
	switch k, err := io.ReadFull(r, one[:]); {
	case k > 0:
		return n, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	case err != io.EOF:
		return n, err
	}
	return n, nil
}

// localWriter marks the errors of writing to disk, so that no other mirror is asked.
type localWriter struct{ f *os.File }

func (w localWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		return n, &localError{err}
	}
	return n, nil
}

// hashPartial hashes what part holds and leaves its offset at the end. A part that is longer than
// the file can be is emptied.
func hashPartial(part *os.File, f File) (hash.Hash, int64, error) {
	info, err := part.Stat()
	if err != nil {
		return nil, 0, err
	}
	if info.Size() > f.limit() {
		if err := emptied(part); err != nil {
			return nil, 0, err
		}
	}
	if _, err := part.Seek(0, io.SeekStart); err != nil {
		return nil, 0, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, part)
	return sum, n, err
}

// emptied truncates part and returns the error of that, if any, as a local one.
func emptied(part *os.File) error {
	if err := part.Truncate(0); err != nil {
		return &localError{err}
	}
	if _, err := part.Seek(0, io.SeekStart); err != nil {
		return &localError{err}
	}
	return nil
}

// checkHex says whether s can be a sha256, so that it is also a safe file name.
func checkHex(s string) error {
	if len(s) != hex.EncodedLen(sha256.Size) || strings.Trim(s, "0123456789abcdef") != "" {
		return fmt.Errorf("sha256 %q is not %d lower-case hex digits", s, hex.EncodedLen(sha256.Size))
	}
	return nil
}
