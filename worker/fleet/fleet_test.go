package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kofarm/kofarm/worker"
)

var errDown = errors.New("connection refused")

// host is a daemon on a machine that can be switched off. A task on it takes a
// minute.
type host struct {
	name  string
	cores int
	hangs bool // a task does not end with its context

	mu      sync.Mutex
	down    bool
	off     chan struct{} // closed when it goes down
	running int
	most    int
	done    int
}

func newHost(name string, cores int) *host {
	return &host{name: name, cores: cores, off: make(chan struct{})}
}

func (h *host) set(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down = down; down {
		close(h.off)
	} else {
		h.off = make(chan struct{})
	}
}

func (h *host) Ping(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return errDown
	}
	return nil
}

func (h *host) Capacity(ctx context.Context) (worker.Capacity, error) {
	return worker.Capacity{ID: h.name, Cores: h.cores, Memory: 64 << 30}, h.Ping(ctx)
}

func (h *host) Close(ctx context.Context) error { return h.Ping(ctx) }

func (h *host) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	h.mu.Lock()
	off := h.off
	h.running++
	h.most = max(h.most, h.running)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.running--
	}()
	ended := ctx.Done()
	if h.hangs {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 50*time.Second)
		defer cancel()
		ended, off = late.Done(), nil
	}
	select {
	case <-time.After(time.Minute):
	case <-off:
		return worker.Result{}, errDown
	case <-ended:
		_, err := io.WriteString(task.Output, "late")
		return worker.Result{}, errors.Join(ctx.Err(), err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done++
	_, err := io.WriteString(task.Output, h.name)
	return worker.Result{}, err
}

func (h *host) member() Member {
	return Member{Name: h.name, Open: func(ctx context.Context) (Daemon, error) { return h, h.Ping(ctx) }}
}

// world is a fleet of hosts under test.
type world struct {
	*Fleet
	mu   sync.Mutex
	said []string
}

func (w *world) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said)
}

func openFleet(t *testing.T, parallel int, hosts ...*host) *world {
	t.Helper()
	w := &world{}
	cfg := Config{Parallel: parallel, Say: func(line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said = append(w.said, line)
	}}
	for _, h := range hosts {
		cfg.Members = append(cfg.Members, h.member())
	}
	f, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Fleet = f
	t.Cleanup(func() {
		if err := f.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// runs runs n tasks, as a caller does that runs lost ones again, and gives the
// errors that remain.
func (w *world) runs(ctx context.Context, n int) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for {
				var out strings.Builder
				_, err := w.Run(ctx, worker.Task{Name: fmt.Sprint("task ", i), Output: &out})
				if errors.Is(err, worker.ErrLost) {
					continue
				}
				errs[i] = err
				return
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// TestSpread counts tasks on a large and a small daemon.
func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		name         string
		parallel     int
		large, small int // at a time
		took         time.Duration
	}{
		{"as many as cores", 0, 6, 2, 2 * time.Minute},
		{"fewer", 4, 6, 2, 2 * time.Minute}, // the caller's limit, not the fleet's
		{"twice as many", 16, 12, 4, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("small", 2), newHost("large", 6)
				w := openFleet(t, tt.parallel, a, b)
				begun := time.Now()
				if errs := w.runs(t.Context(), 16); len(errs) > 0 {
					t.Fatal(errs)
				}
				if a.most != tt.small || b.most != tt.large || time.Since(begun) != tt.took {
					t.Errorf("%d and %d at a time, in %s", a.most, b.most, time.Since(begun))
				}
				if got, want := w.Cores(), []int{2, 6}; !slices.Equal(got, want) {
					t.Errorf("cores %d, want %d", got, want)
				}
			})
		})
	}
}

func TestShare(t *testing.T) {
	for _, tt := range []struct {
		capacity worker.Capacity
		want     int
	}{
		{worker.Capacity{Cores: 8}, 8},
		{worker.Capacity{Cores: 8, Memory: 64 << 30}, 8},
		{worker.Capacity{Cores: 8, Memory: 2 << 30}, 4},
		{worker.Capacity{Cores: 8, Memory: 100 << 20}, 1},
		{worker.Capacity{}, 1},
	} {
		if got := (&member{capacity: tt.capacity}).slots(); got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.capacity, got, tt.want)
		}
	}
}

// TestLost has a daemon die and come back.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", 2), newHost("b", 2)
		w := openFleet(t, 0, a, b)
		time.AfterFunc(30*time.Second, func() { b.set(true) })
		time.AfterFunc(150*time.Second, func() { b.set(false) })
		if errs := w.runs(t.Context(), 16); len(errs) > 0 {
			t.Fatal(errs)
		}
		if a.done+b.done != 16 || b.done == 0 || a.most > 2 {
			t.Errorf("a ran %d, at most %d at a time, b %d", a.done, a.most, b.done)
		}
		said := w.lines()
		if len(said) != 2 || !strings.HasPrefix(said[0], "b is lost with 2 builds, which run again elsewhere: connection refused") || said[1] != "b answers, and is used" {
			t.Errorf("said %q", said)
		}
	})
}

// TestSilent has a daemon that neither answers nor ends its tasks: what it
// writes later does not arrive.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", 1), newHost("b", 1)
		b.hangs = true
		w := openFleet(t, 0, a, b)
		if _, _, err := w.place(t.Context()); err != nil { // a is taken
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { b.set(true) })
		var out strings.Builder
		begun := time.Now()
		_, err := w.Run(t.Context(), worker.Task{Name: "x", Output: &out})
		if took := time.Since(begun); !errors.Is(err, worker.ErrLost) || took < grace || took > time.Minute {
			t.Errorf("got %v after %s", err, took)
		}
		time.Sleep(2 * time.Hour)
		if out.Len() > 0 {
			t.Errorf("%q has arrived", &out)
		}
	})
}

// TestAllLost waits for a while, and then names each daemon's own error.
func TestAllLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", 1), newHost("b", 1)
		w := openFleet(t, 0, a, b)
		a.set(true)
		b.set(true)
		begun := time.Now()
		errs := w.runs(t.Context(), 3)
		if took := time.Since(begun); took < patience || took > 2*patience {
			t.Errorf("after %s", took)
		}
		if len(errs) != 3 {
			t.Fatalf("%d errors", len(errs))
		}
		for _, want := range []string{"none of 2 daemons answers", "a: connection refused", "b: connection refused"} {
			if !strings.Contains(errs[0].Error(), want) {
				t.Errorf("error %q lacks %q", errs[0], want)
			}
		}
		begun = time.Now()
		if _, err := w.Run(t.Context(), worker.Task{}); err == nil || time.Since(begun) != 0 {
			t.Errorf("got %v after %s, want an error at once", err, time.Since(begun))
		}
		a.set(false)
		time.Sleep(mostWait)
		if errs := w.runs(t.Context(), 2); len(errs) > 0 {
			t.Error(errs)
		}
	})
}

// TestOpen is about daemons that do not answer at first, or are one.
func TestOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", 3), newHost("b", 4)
		b.set(true)
		w := openFleet(t, 0, a, b)
		if got, want := w.Cores(), []int{3, 3}; !slices.Equal(got, want) {
			t.Errorf("cores %d, want %d", got, want)
		}
		b.set(false)
		time.Sleep(mostWait)
		if errs := w.runs(t.Context(), 7); len(errs) > 0 || b.done != 4 {
			t.Errorf("%v, b ran %d", errs, b.done)
		}
		if said := w.lines(); len(said) != 2 || !strings.HasPrefix(said[0], "b does not answer") || said[1] != "b answers, and is used" {
			t.Errorf("said %q", said)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := newHost("a", 1)
		twin := a.member()
		twin.Name = "twin"
		_, err := Open(t.Context(), Config{Members: []Member{a.member(), twin}})
		if err == nil || !strings.Contains(err.Error(), "a and twin are the same daemon") {
			t.Errorf("got %v", err)
		}
		a.set(true)
		if _, err := Open(t.Context(), Config{Members: []Member{a.member()}}); !errors.Is(err, errDown) {
			t.Errorf("got %v", err)
		}
	})
}

// TestCancel ends a task that waits for a place.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := openFleet(t, 0, newHost("a", 1))
		if _, _, err := w.place(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := w.Run(ctx, worker.Task{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
