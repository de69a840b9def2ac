package farm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/worker"
)

// storeCache is a Cache in another store: as a registry would, it knows
// manifests and blobs, and not what is in them.
type storeCache struct {
	own, shared *store.Store
	fail        error // of all that it is asked

	mu     sync.Mutex
	asked  int
	pushed []string
}

func (c *storeCache) note() error { c.mu.Lock(); defer c.mu.Unlock(); c.asked++; return c.fail }

func (c *storeCache) Has(_ context.Context, key string) (bool, error) {
	if err := c.note(); err != nil {
		return false, err
	}
	_, err := c.shared.Ref(resultRef, key)
	return err == nil, nil
}

func (c *storeCache) Pull(_ context.Context, key string) error {
	if err := c.note(); err != nil {
		return err
	}
	return copyResult(c.shared, c.own, key)
}

func (c *storeCache) Push(_ context.Context, key string) error {
	if err := c.note(); err != nil {
		return err
	}
	c.mu.Lock()
	c.pushed = append(c.pushed, key)
	c.mu.Unlock()
	return copyResult(c.own, c.shared, key)
}

// copyResult copies a result between stores.
func copyResult(from, to *store.Store, key string) error {
	d, err := from.Ref(resultRef, key)
	if err != nil {
		return err
	}
	rec, err := records{from}.load(key)
	if err != nil {
		return err
	}
	blobs := rec.layers()
	data, err := from.Get(d.Digest, maxManifest)
	if err != nil {
		return err
	}
	var m struct{ Config struct{ Digest string } }
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	config, err := from.Get(Blob{SHA256: strings.TrimPrefix(m.Config.Digest, "sha256:")}.hash(), maxManifest)
	if err != nil {
		return err
	}
	for _, b := range blobs {
		content, err := from.Get(b.Digest, maxModule)
		if err == nil {
			_, err = to.Put(content, b.MediaType)
		}
		if err != nil {
			return err
		}
	}
	if _, err := to.Put(config, recordType); err != nil {
		return err
	}
	if _, err := to.Put(data, d.MediaType); err != nil {
		return err
	}
	return to.SetRef(resultRef, key, d)
}

// cachedRun builds cells, of which the third fails, on a store with a cache. It
// tells how many were built, and what was warned of.
func cachedRun(t *testing.T, s *store.Store, c Cache, cells []*Cell) (built int, warnings string) {
	t.Helper()
	good := goodModule(t)
	var mu sync.Mutex
	b, o := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
		mu.Lock()
		built++
		mu.Unlock()
		if task.Name == cells[2].Name() {
			return exits, output(task.Output, worker.Failed, nil)
		}
		return exits, output(task.Output, worker.Built, map[string][]byte{"x": good})
	})
	var log bytes.Buffer
	b.Cache, b.Log = c, slog.New(slog.NewTextHandler(&log, nil))
	results, err := b.Build(t.Context(), cells)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Cell != cells[i] || r.Outcome != Built && i != 2 {
			t.Errorf("%s: %s", cells[i].Name(), r.Outcome)
		}
	}
	if o.finished != len(cells) {
		t.Errorf("%d of %d cells finished", o.finished, len(cells))
	}
	return built, log.String()
}

func TestCache(t *testing.T) {
	cells := testCells(t, 6)
	a, b, shared := openStore(t), openStore(t), openStore(t)
	out := &storeCache{own: a, shared: shared}
	if built, warnings := cachedRun(t, a, out, cells[:5]); built != 5 || warnings != "" || len(out.pushed) != 4 {
		t.Errorf("first: %d built, %d pushed, %s", built, len(out.pushed), warnings)
	}
	in := &storeCache{own: b, shared: shared}
	if built, warnings := cachedRun(t, b, ReadOnly{in}, cells); built != 2 || warnings != "" || len(in.pushed) != 0 {
		t.Errorf("another store: %d built, %d pushed, %s; want the failed one and the new one built", built, len(in.pushed), warnings)
	}
	// What the store held before it had a cache is offered as well.
	in.pushed = nil
	if built, _ := cachedRun(t, b, in, cells); built != 1 || len(in.pushed) != 1 || in.pushed[0] != cells[5].Key {
		t.Errorf("readwrite: %d built, pushed %q", built, in.pushed)
	}
}

func TestCacheFaults(t *testing.T) {
	cells := testCells(t, 20)
	tests := []struct {
		name            string
		err             error
		warnings        int
		asked, askedMax int
	}{
		{"unreachable", errors.New("connection refused"), maxFaults, maxFaults, maxFaults + cellsAtOnce},
		{"damaged", fmt.Errorf("blob: %w", store.ErrDamaged), 39, 39, 39}, // pulls and pushes
		{"empty", store.ErrNotFound, 0, 39, 39},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &storeCache{fail: tt.err}
			built, warnings := cachedRun(t, openStore(t), c, cells)
			if n := strings.Count(warnings, "level=WARN"); built != 20 || n != tt.warnings || c.asked < tt.asked || c.asked > tt.askedMax {
				t.Errorf("%d built, asked %d times, %d warnings, want %d:\n%s", built, c.asked, n, tt.warnings, warnings)
			}
		})
	}
}

// TestHostileRecord has a cache hold records that no build has made.
func TestHostileRecord(t *testing.T) {
	cells := testCells(t, 3)
	tests := []struct {
		name   string
		change func(*Record)
		key    string // of the manifest; "": the cell's
	}{
		{"a name that leaves", func(r *Record) { r.Modules[0].Name = "../../x.ko" }, ""},
		{"no module", func(r *Record) { r.Modules[0].Name = "x" }, ""},
		{"a hidden name", func(r *Record) { r.Modules[0].Name = ".x.ko" }, ""},
		{"a blob that is not there", func(r *Record) { r.Modules[0].SHA256 = strings.Repeat("0", 64) }, ""},
		{"no digest", func(r *Record) { r.Log.SHA256 = "../../lock" }, ""},
		{"what a terminal acts on", func(r *Record) { r.Message = "\x1b]52;c;cm0gLXJm\x07" }, ""},
		{"another cell's", func(*Record) {}, strings.Repeat("0", 64)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			cachedRun(t, s, nil, cells)
			rec, err := records{s}.load(cells[0].Key)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(rec)
			key := tt.key
			if key == "" {
				key = cells[0].Key
			}
			if err := (records{s}).save(key, rec); err != nil {
				t.Fatal(err)
			}
			if tt.key != "" {
				d, err := s.Ref(resultRef, key)
				if err == nil {
					err = s.SetRef(resultRef, cells[0].Key, d)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, err := (records{s}).load(cells[0].Key); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("it was loaded: %v", err)
			}
			if built, _ := cachedRun(t, s, nil, cells); built != 2 {
				t.Errorf("%d built, want it and the failed one", built)
			}
		})
	}
}
