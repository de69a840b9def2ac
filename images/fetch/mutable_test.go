package fetch

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	signal.Ignore(syscall.SIGXFSZ) // see limitFileSize
	os.Exit(m.Run())
}

// tagged serves *body with an ETag that follows it and counts the answers 200 and 304.
func tagged(body *atomic.Value, full, unchanged *atomic.Int32) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b := body.Load().(string)
		tag := `"` + hexSum([]byte(b)) + `"`
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			unchanged.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		full.Add(1)
		_, _ = w.Write([]byte(b)) // the client's side checks
	}
}

func TestMutable(t *testing.T) {
	var body atomic.Value
	var full, unchanged atomic.Int32
	body.Store("one")
	url := serve(t, tagged(&body, &full, &unchanged))
	c := newClient(t)
	get := func(want string) {
		t.Helper()
		got, err := c.Mutable(t.Context(), []string{url}, "debian/sid/InRelease", 100, nil)
		if err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	get("one")
	get("one")
	body.Store("two\nlines")
	get("two\nlines")
	get("two\nlines")
	if full.Load() != 2 || unchanged.Load() != 2 {
		t.Errorf("got %d full answers and %d unchanged, want 2 and 2", full.Load(), unchanged.Load())
	}
	checkEmptyDir(t, c.Partial)
	c.Offline = true
	get("two\nlines")
	if _, err := c.Mutable(t.Context(), []string{url}, "another", 100, nil); !errors.Is(err, ErrOffline) {
		t.Errorf("got %v, want %v", err, ErrOffline)
	}
}

// What the check refuses is not kept, and the next mirror is asked.
func TestMutableCheck(t *testing.T) {
	bad, good := serve(t, serveBytes([]byte("portal page"))), serve(t, serveBytes([]byte("good")))
	errCheck := errors.New("not signed")
	check := func(b []byte) error {
		if string(b) != "good" {
			return errCheck
		}
		return nil
	}
	c := newClient(t)
	_, err := c.Mutable(t.Context(), []string{bad}, "f", 100, check)
	if !errors.Is(err, errCheck) || !strings.Contains(err.Error(), bad) {
		t.Errorf("got %v, want %v from %s", err, errCheck, bad)
	}
	for _, urls := range [][]string{{bad, good}, {bad, good}} {
		got, err := c.Mutable(t.Context(), urls, "f", 100, check)
		if err != nil || string(got) != "good" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, err := c.Mutable(t.Context(), []string{bad}, "f", 100, check); err == nil {
		t.Error("the kept copy hid that the only mirror is wrong")
	}
	c.Offline = true
	if got, err := c.Mutable(t.Context(), nil, "f", 100, check); err != nil || string(got) != "good" {
		t.Errorf("offline: got %q, %v", got, err)
	}
}

// A transfer that breaks off, or an answer that does not come, is no reason to give up.
func TestMutableAgain(t *testing.T) {
	want := content(5000)
	for name, first := range map[string]http.HandlerFunc{"broken off": truncated(want, 1000), "hangs": hang(t)} {
		var asked atomic.Int32
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				first(w, r)
				return
			}
			_, _ = w.Write(want)
		})
		got, err := newImpatient(t).Mutable(t.Context(), []string{url}, "f", 5000, nil)
		if err != nil || !bytes.Equal(got, want) || asked.Load() != 2 {
			t.Errorf("%s: %d bytes after %d requests, %v", name, len(got), asked.Load(), err)
		}
	}
}

func TestMutableErrors(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		is      error
	}{
		{"not found", status(404), ErrNotFound},
		{"error", status(500), ErrUnavailable},
		{"too large", serveBytes(make([]byte, 101)), ErrTooLarge},
		{"304 unasked", status(304), ErrUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newClient(t).Mutable(t.Context(), []string{serve(t, tt.handler)}, "f", 100, nil); !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %v", err, tt.is)
			}
		})
	}
}

func TestMutableDamagedCopy(t *testing.T) {
	c := newClient(t)
	url := serve(t, serveBytes([]byte("new")))
	path, err := c.mutablePath("f")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.Kept, dirMode); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("no json"), fileMode); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Mutable(t.Context(), []string{url}, "f", 100, nil); err != nil || string(got) != "new" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestMutableBadNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", strings.Repeat("x", 300)} {
		if _, err := newClient(t).Mutable(t.Context(), nil, name, 1, nil); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}
