package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// saveResult stores a result with blobs of the texts.
func saveResult(t testing.TB, s *Store, name string, texts ...string) {
	t.Helper()
	if err := makeResult(s, name, texts...); err != nil {
		t.Fatal(err)
	}
}

func makeResult(s *Store, name string, texts ...string) error {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	var err error
	if m.Config, err = s.Put([]byte("config of "+name), text); err != nil {
		return err
	}
	for _, data := range texts {
		d, err := s.Put([]byte(data), text)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	d, err := s.Put(data, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	return s.SetRef("result", name, d)
}

// age makes files of the store last used so long ago.
func age(t testing.TB, ago time.Duration, paths ...string) {
	t.Helper()
	for _, p := range paths {
		then := time.Now().Add(-ago)
		if err := os.Chtimes(p, then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// ageAll makes everything last used so long ago.
func ageAll(t testing.TB, s *Store, ago time.Duration) {
	t.Helper()
	for _, pattern := range []string{"blobs/sha256/*", "refs/*/*", "partial/*", "cache/indexes/*", "tmp/*"} {
		paths, err := filepath.Glob(s.path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		age(t, ago, paths...)
	}
}

func collect(t testing.TB, s *Store, p Policy) *Report {
	t.Helper()
	p.Now = time.Now()
	r, err := s.Collect(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func names(t testing.TB, s *Store, kind string) []string {
	t.Helper()
	got, err := s.Refs(kind)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// texts are the contents of all blobs that are no manifests, sorted.
func texts(t testing.TB, s *Store) []string {
	t.Helper()
	var all []string
	files, err := os.ReadDir(s.BlobDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(s.BlobDir(), f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if data[0] != '{' {
			all = append(all, string(data))
		}
	}
	slices.Sort(all)
	return all
}

const day = 24 * time.Hour

func TestCollectByAge(t *testing.T) {
	s := open(t)
	saveResult(t, s, "old", "shared", "only old")
	saveResult(t, s, "new", "shared", "only new")
	put(t, s, "old download")
	ageAll(t, s, 40*day)
	put(t, s, "new download")
	if _, err := s.Ref("result", "new"); err != nil { // its use
		t.Fatal(err)
	}
	old := filepath.Join(s.PartialDir(), "old")
	for _, name := range []string{old, s.path("tmp/left"), filepath.Join(s.PartialDir(), "new")} {
		if err := os.WriteFile(name, []byte("12345"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	age(t, 40*day, old, s.path("tmp/left"))
	if err := os.MkdirAll(s.CacheDir("indexes"), 0o755); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(s.CacheDir("indexes"), "x.packages")
	if err := os.WriteFile(index, []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	age(t, 40*day, index)

	want := map[string]int{"result": 1, blobKind: 1, partialKind: 1, indexKind: 1, leftoverKind: 1}
	for _, dryRun := range []bool{true, false} {
		before := texts(t, s)
		r := collect(t, s, Policy{MaxAge: 30 * day, DryRun: dryRun})
		got := map[string]int{}
		for kind, tally := range r.Freed {
			got[kind] = tally.Count
		}
		if !maps.Equal(got, want) || r.Total.Count != 5 || r.Users != 0 {
			t.Errorf("dry run %t: got %v, %+v, want %v", dryRun, got, r, want)
		}
		if after := texts(t, s); dryRun != slices.Equal(after, before) {
			t.Errorf("dry run %t: there were %q, now %q", dryRun, before, after)
		}
	}
	wantTexts := []string{"config of new", "new download", "only new", "shared"}
	if got := texts(t, s); !slices.Equal(got, wantTexts) {
		t.Errorf("got %q, want %q", got, wantTexts)
	}
	if got := names(t, s, "result"); !slices.Equal(got, []string{"new"}) {
		t.Errorf("got %q", got)
	}
	if data, err := os.ReadFile(s.path("index.json")); err != nil || strings.Contains(string(data), "result-old") || !strings.Contains(string(data), "result-new") {
		t.Errorf("index.json: %s, %v", data, err)
	}
	var size int64
	for _, d := range []string{"blobs", "partial", "cache"} {
		n, err := Size(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		size += n
	}
	if r := collect(t, s, Policy{MaxAge: 30 * day}); r.Total.Count != 0 || r.Kept != size {
		t.Errorf("again: %+v, want nothing freed and %d kept", r, size)
	}
}

func TestCollectBySize(t *testing.T) {
	s := open(t)
	big := strings.Repeat("x", 1000)
	for i := range 6 {
		name := fmt.Sprint("r", i)
		saveResult(t, s, name, name+big)
	}
	ageAll(t, s, 40*day)
	for i, days := range []time.Duration{3, 1, 5, 2, 6, 4} {
		age(t, days*day, s.path("refs/result", fmt.Sprint("r", i)))
	}
	var removed []time.Duration
	others := []Item{{Kind: "other", Used: time.Now().Add(-7 * day), Size: 3000, Remove: func(time.Time) (bool, error) {
		removed = append(removed, 7)
		return true, nil
	}}}
	size, err := Size(s.BlobDir())
	if err != nil {
		t.Fatal(err)
	}
	r := collect(t, s, Policy{MaxSize: size / 2, Others: others})
	if got, want := names(t, s, "result"), []string{"r0", "r1", "r3"}; !slices.Equal(got, want) || len(removed) != 1 {
		t.Errorf("got %q, %d others removed, want %q", got, len(removed), want)
	}
	if r.Kept > size/2 || r.Total.Bytes != size+3000-r.Kept || r.Freed["result"].Count != 3 {
		t.Errorf("got %+v of %d", r, size)
	}
	if left := collect(t, s, Policy{MaxSize: 1}); left.Kept != 0 || len(texts(t, s)) != 0 {
		t.Errorf("%+v is left: %q", left, texts(t, s))
	}
}

// TestCollectBesideOthers has a second process hold the store: what was used
// since it began stays, whatever its age.
func TestCollectBesideOthers(t *testing.T) {
	s := open(t)
	saveResult(t, s, "unused", "unused")
	saveResult(t, s, "used", "used")
	other, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	ageAll(t, s, 40*day)
	age(t, 20*day, other.user.Name()) // it has run for long
	age(t, 19*day, s.path("refs/result/used"))
	if r := collect(t, s, Policy{MaxSize: 1}); r.Users != 1 || !slices.Equal(names(t, s, "result"), []string{"used"}) {
		t.Errorf("got %+v, %q", r, names(t, s, "result"))
	}
	if err := other.Waive(); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, s, Policy{MaxSize: 1}); r.Users != 0 || len(names(t, s, "result")) != 0 {
		t.Errorf("after Waive: got %+v, %q", r, names(t, s, "result"))
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.path("users")); err != nil || len(left) != 1 {
		t.Errorf("users: %v, %v", left, err)
	}
}

// TestCollectAfterKill finds that a process which is gone does not count.
func TestCollectAfterKill(t *testing.T) {
	s := open(t)
	gone := s.path("users", "user-gone")
	if err := os.WriteFile(gone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	age(t, 40*day, gone)
	put(t, s, "x")
	ageAll(t, s, day)
	if r := collect(t, s, Policy{MaxAge: time.Hour}); r.Users != 0 || len(texts(t, s)) != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", gone, err)
	}
}

// TestCollectMeanwhile uses things between the moment when Collect looks and
// that when it removes.
func TestCollectMeanwhile(t *testing.T) {
	s := open(t)
	saveResult(t, s, "a", "blob a")
	d := put(t, s, "download")
	ageAll(t, s, 40*day)
	c := &collection{s: s, p: Policy{MaxSize: 1, Now: time.Now()}, report: &Report{Freed: map[string]*Tally{}}}
	var err error
	if c.horizon, _, err = s.horizon(c.p.Now); err != nil {
		t.Fatal(err)
	}
	if err := c.scan(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ref("result", "a"); err != nil || !s.Reuse(d) {
		t.Fatal(err)
	}
	if err := c.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := texts(t, s), []string{"blob a", "config of a", "download"}; !slices.Equal(got, want) || c.report.Total.Count != 0 {
		t.Errorf("got %q, freed %+v, want %q", got, c.report, want)
	}
}

// TestCollectLeavesLocked leaves a download that somebody is at.
func TestCollectLeavesLocked(t *testing.T) {
	s := open(t)
	path := filepath.Join(s.PartialDir(), "x")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	age(t, 40*day, path)
	if r := collect(t, s, Policy{MaxAge: day}); r.Total.Count != 0 {
		t.Errorf("%+v", r)
	}
}

// TestMain runs the tests, or what a process of TestCollectHard runs.
func TestMain(m *testing.M) {
	if dir := os.Getenv("KOFARM_TEST_COLLECT"); dir != "" {
		if err := useStore(dir, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// useStore makes results, finds them again and reads them, for as long as its
// input is open.
func useStore(dir string, input io.Reader) error {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, input) // it ends when the test closes it
		close(done)
	}()
	for {
		select {
		case <-done:
			return nil
		default:
		}
		s, err := Open(dir)
		if err != nil {
			return err
		}
		for range 5 {
			err = errors.Join(err, useOrMake(s, fmt.Sprint("r", rand.IntN(40))))
		}
		if err := errors.Join(err, s.Close()); err != nil {
			return err
		}
	}
}

// useOrMake looks a result up, as a build does, and makes it where it is not
// there. Then all of it must be there.
func useOrMake(s *Store, name string) error {
	d, err := s.Ref("result", name)
	if errors.Is(err, ErrNotFound) {
		if err = makeResult(s, name, "of all", "of "+name); err == nil {
			d, err = s.Ref("result", name)
		}
	}
	if err != nil {
		return err
	}
	data, err := s.Get(d.Digest, maxRefManifest)
	if err != nil {
		return err
	}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	for _, b := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if _, err := s.Get(b.Digest, b.Size); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// TestCollectHard collects everything again and again while other processes use
// the store, and removes all that it may, at once.
func TestCollectHard(t *testing.T) {
	s := open(t)
	var workers sync.WaitGroup
	var inputs []io.Closer
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "KOFARM_TEST_COLLECT="+s.Dir())
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, in)
		workers.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	freed := 0
	for round := 0; round < 150 || freed < 10 && round < 5000; round++ {
		// A file's time comes from a clock that ticks 100 to 1000 times a second.
		r, err := s.collect(t.Context(), Policy{MaxSize: 1, Now: time.Now()}, 20*time.Millisecond)
		if err != nil {
			t.Error(err)
			break
		}
		freed += r.Total.Count
	}
	for _, in := range inputs {
		in.Close()
	}
	workers.Wait()
	if freed == 0 {
		t.Error("nothing was ever freed")
	}
	t.Logf("%d freed", freed)
}

func TestCollectInterrupted(t *testing.T) {
	s := open(t)
	saveResult(t, s, "a", "b")
	ageAll(t, s, 40*day)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Collect(ctx, Policy{MaxSize: 1, Now: time.Now()}); !errors.Is(err, context.Canceled) || len(texts(t, s)) != 2 {
		t.Errorf("%v, %q", err, texts(t, s))
	}
}
