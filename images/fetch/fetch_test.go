package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// newClient waits for a server for as long as a busy machine may take.
func newClient(t *testing.T) *Client { return client(t, time.Minute) }

// newImpatient is for servers that hang.
func newImpatient(t *testing.T) *Client { return client(t, 2*time.Second) }

func client(t *testing.T, stall time.Duration) *Client {
	t.Helper()
	dir := t.TempDir()
	h := NewHTTP(stall)
	h.RetryWaitMin, h.RetryWaitMax = time.Millisecond, 5*time.Millisecond
	return &Client{Dir: filepath.Join(dir, "files"), Kept: filepath.Join(dir, "kept"), Partial: filepath.Join(dir, "partial"), HTTP: h, Stall: stall}
}

func content(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = r.Read(b) // never fails
	return b
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// serve starts a server and returns the URL of a file on it.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL + "/pool/thing.deb"
}

func serveBytes(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(b))
	}
}

// truncated declares all of b and sends the first n bytes of what was asked for.
func truncated(b []byte, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = w.Write(b[:n]) // the server then closes the connection, which is the point
	}
}

func hang(t *testing.T) http.HandlerFunc {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) }) // runs before the server's Close, which waits for handlers
	return func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-done:
		case <-r.Context().Done():
		}
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
}

func checkFetched(t *testing.T, c *Client, f File, want []byte) {
	t.Helper()
	path, err := c.Fetch(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := path, filepath.Join(c.Dir, f.SHA256); got != want {
		t.Errorf("path: got %s, want %s", got, want)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("content: got %d bytes with sha256 %s", len(got), hexSum(got))
	}
	checkEmptyDir(t, c.Partial)
}

func checkEmptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if len(entries) > 0 {
		t.Errorf("%s is left with %v", dir, entries)
	}
}

func TestFetch(t *testing.T) {
	want := content(200_000)
	wrong := bytes.Repeat([]byte("x"), len(want))
	short := want[:1000]
	tests := []struct {
		name    string
		servers func(t *testing.T) []http.HandlerFunc
		size    int64
	}{
		{"plain", func(*testing.T) []http.HandlerFunc { return []http.HandlerFunc{serveBytes(want)} }, int64(len(want))},
		{"size unknown", func(*testing.T) []http.HandlerFunc { return []http.HandlerFunc{serveBytes(want)} }, -1},
		{"500s, then well", func(*testing.T) []http.HandlerFunc {
			var n atomic.Int32
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) < 3 {
					status(500)(w, r)
					return
				}
				serveBytes(want)(w, r)
			}}
		}, int64(len(want))},
		{"not found, next mirror", func(*testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{status(404), serveBytes(want)}
		}, int64(len(want))},
		{"wrong bytes, next mirror", func(*testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{serveBytes(wrong), serveBytes(want)}
		}, int64(len(want))},
		{"too long, next mirror", func(*testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{serveBytes(append(wrong, "more"...)), serveBytes(want)}
		}, int64(len(want))},
		{"too short, next mirror", func(*testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{serveBytes(short), serveBytes(want)}
		}, int64(len(want))},
		{"hangs before the header, next mirror", func(t *testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{hang(t), serveBytes(want)}
		}, int64(len(want))},
		{"hangs within the body, next mirror resumes", func(t *testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					_, _ = w.Write(want[:100_000])
					w.(http.Flusher).Flush()
				}
				hang(t)(w, r)
			}, serveBytes(want)}
		}, int64(len(want))},
		{"breaks off, resumes at the same mirror", func(*testing.T) []http.HandlerFunc {
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") == "" {
					truncated(want, 70_000)(w, r)
					return
				}
				serveBytes(want)(w, r)
			}}
		}, -1},
		{"resume refused, starts anew", func(*testing.T) []http.HandlerFunc {
			var n atomic.Int32
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				switch {
				case n.Add(1) == 1:
					truncated(want, 70_000)(w, r)
				case r.Header.Get("Range") != "":
					status(416)(w, r)
				default:
					serveBytes(want)(w, r)
				}
			}}
		}, int64(len(want))},
		{"answers a Range with another one", func(*testing.T) []http.HandlerFunc {
			var n atomic.Int32
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				switch {
				case n.Add(1) == 1:
					truncated(want, 70_000)(w, r)
				case r.Header.Get("Range") != "":
					r.Header.Set("Range", "bytes=5-")
					fallthrough
				default:
					serveBytes(want)(w, r)
				}
			}}
		}, int64(len(want))},
		{"ignores Range", func(*testing.T) []http.HandlerFunc {
			var n atomic.Int32
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) == 1 {
					truncated(want, 70_000)(w, r)
					return
				}
				r.Header.Del("Range")
				serveBytes(want)(w, r)
			}}
		}, int64(len(want))},
		{"first half from a mirror that lies", func(*testing.T) []http.HandlerFunc {
			var n atomic.Int32
			return []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) == 1 {
					truncated(wrong, 70_000)(w, r)
					return
				}
				serveBytes(want)(w, r)
			}}
		}, int64(len(want))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := File{SHA256: hexSum(want), Size: tt.size}
			for _, h := range tt.servers(t) {
				f.URLs = append(f.URLs, serve(t, h))
			}
			c := newClient(t)
			if strings.HasPrefix(tt.name, "hangs") {
				c = newImpatient(t)
			}
			checkFetched(t, c, f, want)
		})
	}
}

func TestFetchErrors(t *testing.T) {
	want := content(5000)
	tests := []struct {
		name    string
		handler func(t *testing.T) http.HandlerFunc
		size    int64
		is, not error
		text    string
	}{
		{"not found", func(*testing.T) http.HandlerFunc { return status(404) }, 5000, ErrNotFound, ErrUnavailable, "404"},
		{"gone", func(*testing.T) http.HandlerFunc { return status(410) }, 5000, ErrNotFound, ErrUnavailable, "410"},
		{"forbidden", func(*testing.T) http.HandlerFunc { return status(403) }, 5000, ErrUnavailable, ErrNotFound, "403"},
		{"always 503", func(*testing.T) http.HandlerFunc { return status(503) }, 5000, ErrUnavailable, ErrNotFound, "503"},
		{"wrong bytes", func(*testing.T) http.HandlerFunc { return serveBytes(make([]byte, 5000)) }, 5000, ErrChecksum, ErrUnavailable, "want sha256 " + hexSum(want) + ", got " + hexSum(make([]byte, 5000))},
		{"too long", func(*testing.T) http.HandlerFunc { return serveBytes(make([]byte, 5001)) }, 5000, ErrChecksum, ErrUnavailable, "want 5000 bytes"},
		{"too short", func(*testing.T) http.HandlerFunc { return serveBytes(want[:4000]) }, 5000, ErrChecksum, ErrUnavailable, "want 5000 bytes, got 4000"},
		{"over the limit", func(*testing.T) http.HandlerFunc { return serveBytes(make([]byte, 5001)) }, -1, ErrTooLarge, ErrUnavailable, "more than 5000 bytes"},
		{"always broken off", func(*testing.T) http.HandlerFunc { return truncated(want, 100) }, 5000, ErrUnavailable, ErrChecksum, "EOF"},
		{"hangs", hang, 5000, ErrUnavailable, ErrNotFound, "timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t)
			if tt.name == "hangs" {
				c = newImpatient(t)
			}
			url := serve(t, tt.handler(t))
			_, err := c.Fetch(t.Context(), File{URLs: []string{url}, SHA256: hexSum(want), Size: tt.size, MaxSize: 5000})
			if !errors.Is(err, tt.is) || errors.Is(err, tt.not) {
				t.Errorf("got %v, want %v and not %v", err, tt.is, tt.not)
			}
			if err != nil && (!strings.Contains(err.Error(), url) || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("got %q, want it to name %q and %q", err, url, tt.text)
			}
			checkEmptyDir(t, c.Dir)
		})
	}
}

func TestAllMirrorsFail(t *testing.T) {
	f := File{URLs: []string{serve(t, status(404)), serve(t, status(503))}, SHA256: hexSum(nil), Size: 0}
	_, err := newClient(t).Fetch(t.Context(), f)
	if errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v: one mirror could not say, so the file may exist", err)
	}
	if got := strings.Count(fmt.Sprint(err), "\n"); got != 2 {
		t.Errorf("got %q, want one line for each mirror", err)
	}
}

func TestRefusedConnection(t *testing.T) {
	srv := httptest.NewServer(status(404))
	srv.Close()
	_, err := newClient(t).Fetch(t.Context(), File{URLs: []string{srv.URL}, SHA256: hexSum(nil)})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
}

func TestOffline(t *testing.T) {
	want := content(100)
	f := File{URLs: []string{serve(t, serveBytes(want))}, SHA256: hexSum(want), Size: 100}
	c := newClient(t)
	c.Offline = true
	if _, err := c.Fetch(t.Context(), f); !errors.Is(err, ErrOffline) {
		t.Errorf("got %v, want %v", err, ErrOffline)
	}
	c.Offline = false
	checkFetched(t, c, f, want)
	c.Offline = true
	checkFetched(t, c, f, want)
}

// A file that lost its data (a power cut) has the wrong size and is fetched again.
func TestDamagedFileIsReplaced(t *testing.T) {
	want := content(100)
	c := newClient(t)
	f := File{URLs: []string{serve(t, serveBytes(want))}, SHA256: hexSum(want), Size: 100}
	checkFetched(t, c, f, want)
	if err := os.Truncate(filepath.Join(c.Dir, f.SHA256), 0); err != nil {
		t.Fatal(err)
	}
	checkFetched(t, c, f, want)
}

func TestResumesAfterRestart(t *testing.T) {
	want := content(10_000)
	var ranges atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		ranges.Store(r.Header.Get("Range"))
		serveBytes(want)(w, r)
	})
	c := newClient(t)
	if err := os.MkdirAll(c.Partial, dirMode); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Partial, hexSum(want)), want[:6000], fileMode); err != nil {
		t.Fatal(err)
	}
	checkFetched(t, c, File{URLs: []string{url}, SHA256: hexSum(want), Size: 10_000}, want)
	if got := ranges.Load(); got != "bytes=6000-" {
		t.Errorf("Range: got %q", got)
	}
}

func TestConcurrentFetchesDownloadOnce(t *testing.T) {
	want := content(300_000)
	var n atomic.Int32
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		serveBytes(want)(w, r)
	})
	a := newClient(t)
	b := &Client{Dir: a.Dir, Partial: a.Partial, HTTP: a.HTTP}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := []*Client{a, b}[i%2]
			if _, err := c.Fetch(context.Background(), File{URLs: []string{url}, SHA256: hexSum(want), Size: -1}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := n.Load(); got != 1 {
		t.Errorf("got %d downloads, want 1", got)
	}
	checkEmptyDir(t, a.Partial)
}

func TestLockWaitEndsWithContext(t *testing.T) {
	c := newClient(t)
	if err := os.MkdirAll(c.Partial, dirMode); err != nil {
		t.Fatal(err)
	}
	f, err := OpenLocked(t.Context(), filepath.Join(c.Partial, hexSum(nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Fetch(ctx, File{URLs: []string{"http://127.0.0.1:1/"}, SHA256: hexSum(nil), Size: -1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

// A write that fails (here: a limit on the size of files, as a full disk would) is this machine's
// fault: no further mirror is asked, no final file appears, and the next run goes on.
func TestWriteFails(t *testing.T) {
	want := content(1 << 20)
	var asked atomic.Int32
	second := serve(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	c := newClient(t)
	f := File{URLs: []string{serve(t, serveBytes(want)), second}, SHA256: hexSum(want), Size: 1 << 20}

	restore := limitFileSize(t, 64<<10)
	_, err := c.Fetch(t.Context(), f)
	restore()

	if !errors.Is(err, unix.EFBIG) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want %v", err, unix.EFBIG)
	}
	if asked.Load() > 0 {
		t.Error("another mirror was asked")
	}
	checkEmptyDir(t, c.Dir)
	checkFetched(t, c, f, want)
}

// limitFileSize sets this process's soft limit until restore is called. The Go runtime ignores
// SIGXFSZ's default action only where it is ignored explicitly, which the test's main does.
func limitFileSize(t *testing.T, n uint64) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadSHA256(t *testing.T) {
	for _, sum := range []string{"", "../../etc/passwd", strings.Repeat("A", 64), strings.Repeat("a", 63)} {
		if _, err := newClient(t).Fetch(t.Context(), File{URLs: []string{"http://127.0.0.1:1/"}, SHA256: sum}); err == nil {
			t.Errorf("%q: no error", sum)
		}
	}
}

func TestRetryAfterIsCapped(t *testing.T) {
	resp := &http.Response{StatusCode: 503, Header: http.Header{"Retry-After": {"86400"}}}
	if got := cappedBackoff(time.Second, 2*time.Second, 0, resp); got != 2*time.Second {
		t.Errorf("got %s", got)
	}
}

// TestFailingMirrorIsAskedLast has a mirror that fails once: then the other is
// asked first, until it fails as well.
func TestFailingMirrorIsAskedLast(t *testing.T) {
	data := content(1000)
	var asked []string
	mirror := func(name string, down *bool) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(asked) == 0 || asked[len(asked)-1] != name { // each try once
				asked = append(asked, name)
			}
			if *down {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			serveBytes(data)(w, r)
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	firstDown, secondDown := true, false
	first, second := mirror("first", &firstDown), mirror("second", &secondDown)
	c := newClient(t)
	var log bytes.Buffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	fetch := func(want ...string) {
		t.Helper()
		asked = nil
		path, err := c.Fetch(t.Context(), File{URLs: []string{first + "/x", second + "/x"}, SHA256: hexSum(data), Size: int64(len(data))})
		if err := errors.Join(err, os.Remove(path)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(asked, want) {
			t.Errorf("asked %q, want %q", asked, want)
		}
	}
	fetch("first", "second")
	fetch("second")
	firstDown, secondDown = false, true
	fetch("second", "first")
	fetch("first")
	secondDown = false
	fetch("first")
	if got := strings.Count(log.String(), "a mirror fails"); got != 2 {
		t.Errorf("told %d times of a failing mirror, want once for each:\n%s", got, log.String())
	}
}

// TestFailingMirrorRests: what comes after the mirrors may be fallbacks, which are
// not to be asked first for ever.
func TestFailingMirrorRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Client
		urls := []string{"http://near/x", "http://far/x"}
		c.heard(urls[0], ErrUnavailable, true)
		time.Sleep(rest - time.Second)
		if got := c.ordered(urls); got[0] != urls[1] {
			t.Errorf("soon after: got %q", got)
		}
		time.Sleep(time.Second)
		if got := c.ordered(urls); !slices.Equal(got, urls) {
			t.Errorf("later: got %q", got)
		}
	})
}

// TestDownloads looks at a download half-way.
func TestDownloads(t *testing.T) {
	data := content(100 << 10)
	half, seen := make(chan struct{}), make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:40<<10])
		_ = http.NewResponseController(w).Flush()
		close(half)
		<-seen
		_, _ = w.Write(data[40<<10:])
	})
	c := newClient(t)
	c.Stall = time.Minute
	fetched := make(chan error, 1)
	go func() {
		_, err := c.Fetch(t.Context(), File{URLs: []string{url}, SHA256: hexSum(data), Size: int64(len(data))})
		fetched <- err
	}()
	<-half
	want := []Download{{Name: "thing.deb", Bytes: 40 << 10, Size: 100 << 10}}
	for until := time.Now().Add(time.Minute); !slices.Equal(c.Downloads(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("got %v, want %v", c.Downloads(), want)
		}
	}
	close(seen)
	if err := <-fetched; err != nil || len(c.Downloads()) > 0 {
		t.Errorf("got %v, and then %v", err, c.Downloads())
	}
	for path, want := range map[string]string{
		"/debian/pool/main/a/a_1_all.deb":                              "a_1_all.deb",
		"/debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/0a1b": "bookworm/main/binary-amd64",
		"/debian/dists/bookworm-updates/InRelease":                     "bookworm-updates/InRelease",
	} {
		if got := label(path); got != want {
			t.Errorf("label(%q) = %q, want %q", path, got, want)
		}
	}
}
