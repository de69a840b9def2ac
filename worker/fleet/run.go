package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/kofarm/kofarm/worker"
)

// grace is how long the end of a task on a daemon that does not answer is
// waited for.
const grace = 10 * time.Second

// Run implements [worker.Runner]. An error that is [worker.ErrLost] says that the
// task was with a daemon that went away: what it has written so far is of no
// use, and it may run again.
func (f *Fleet) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	m, lost, err := f.place(ctx)
	if err != nil {
		return worker.Result{}, fmt.Errorf("%s: %w", task.Name, err)
	}
	defer f.leave(m)
	result, err := m.run(ctx, task, lost)
	if err == nil || ctx.Err() != nil {
		return result, err
	}
	err = fmt.Errorf("%s: %w", m.Name, err)
	silent := m.daemon.Ping(ctx)
	if ctx.Err() != nil {
		return result, ctx.Err()
	}
	if silent != nil {
		f.lose(m, silent)
		if !errors.Is(err, worker.ErrLost) {
			err = fmt.Errorf("%w: %w", worker.ErrLost, err)
		}
	}
	return result, err
}

// place waits for a place for a task, and gives with it what is closed when the
// daemon is lost. Each place has to be left.
func (f *Fleet) place(ctx context.Context) (*member, <-chan struct{}, error) {
	for {
		m, changed, wait, err := f.take()
		if err != nil {
			return nil, nil, err
		}
		if m != nil {
			return m, changed, nil
		}
		if err := await(ctx, changed, wait); err != nil {
			return nil, nil, err
		}
	}
}

// take takes a place, with what is closed when its daemon is lost. Where there
// is none it gives what is closed when that changes, and how long to wait for
// it, negative for ever. It fails where no daemon has answered for long.
func (f *Fleet) take() (m *member, change <-chan struct{}, wait time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.choose(); m != nil {
		m.running++
		return m, m.lost, 0, nil
	}
	if f.empty.IsZero() {
		return nil, f.changed, -1, nil
	}
	if wait = patience - time.Since(f.empty); wait <= 0 {
		return nil, nil, 0, f.nobody()
	}
	return nil, f.changed, wait, nil
}

// await waits for a change, for the time unless it is negative, or for the end
// of ctx, which is an error.
func await(ctx context.Context, changed <-chan struct{}, wait time.Duration) error {
	var late <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-changed:
	case <-late:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// choose gives the member where a further task takes the least share, nil where
// all have enough.
func (f *Fleet) choose() *member {
	total := 0
	for _, m := range f.members {
		if m.daemon != nil {
			total += m.slots()
		}
	}
	var best *member
	for _, m := range f.members {
		if m.err != nil || m.running >= limit(m.slots(), total, f.parallel) {
			continue
		}
		if best == nil || (m.running+1)*best.slots() < (best.running+1)*m.slots() {
			best = m
		}
	}
	return best
}

func (f *Fleet) leave(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m.running--
	f.change()
}

// change wakes tasks that wait for a place.
func (f *Fleet) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// run runs a task until it ends or the daemon is lost.
func (m *member) run(ctx context.Context, task worker.Task, lost <-chan struct{}) (worker.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	output, log := &gate{w: task.Output}, &gate{w: task.Log}
	defer output.shut()
	defer log.shut()
	task.Output, task.Log = output, log
	type end struct {
		worker.Result
		err error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := m.daemon.Run(ctx, task)
		ended <- end{r, err}
	}()
	select {
	case e := <-ended:
		return e.Result, e.err
	case <-lost:
	}
	cancel()
	select {
	case e := <-ended:
		if e.err == nil {
			return e.Result, nil
		}
		return e.Result, fmt.Errorf("%w: %w", worker.ErrLost, e.err)
	case <-time.After(grace):
		return worker.Result{}, fmt.Errorf("%s: %w", task.Name, worker.ErrLost)
	}
}

// gate passes on what is written until it is shut: a backend that waits for a
// lost daemon may write later than its caller expects.
type gate struct {
	mu   sync.Mutex
	w    io.Writer
	over bool
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over || g.w == nil {
		return len(p), nil
	}
	return g.w.Write(p)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
}
