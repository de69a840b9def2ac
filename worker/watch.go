package worker

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Watch sees one task through, for backends: it remembers the first reason to
// end it, and says so by the end of a context.
type Watch struct {
	stop context.CancelFunc

	mu  sync.Mutex
	why Ending
	err error
}

// NewWatch makes a Watch and the context that ends when the task shall, whose
// parent's end is a reason, too. Stop releases it.
func NewWatch(ctx context.Context) (*Watch, context.Context) {
	ctx, stop := context.WithCancel(ctx)
	return &Watch{stop: stop}, ctx
}

// Stop ends the context without a reason.
func (w *Watch) Stop() { w.stop() }

// End ends the task for a reason of its own doing.
func (w *Watch) End(why Ending) { w.end(why, nil) }

// Fail ends the task for a fault that is not its doing.
func (w *Watch) Fail(err error) { w.end("", err) }

func (w *Watch) end(why Ending, err error) {
	w.mu.Lock()
	if w.why == "" && w.err == nil {
		w.why, w.err = why, err
	}
	w.mu.Unlock()
	w.stop()
}

// Why gives the first reason to end the task: an Ending, an error, or neither.
func (w *Watch) Why() (Ending, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why, w.err
}

// Outcome puts the reason to end the task, ctx's own end among them, over what a
// backend saw of that end.
func (w *Watch) Outcome(ctx context.Context, result Result, err error) (Result, error) {
	why, fault := w.Why()
	switch {
	case fault != nil:
		return result, fault
	case why != "":
		result.Ending = why
		return result, nil
	case ctx.Err() != nil:
		return result, ctx.Err()
	}
	return result, err
}

// Deadline ends the task when limit has passed from now, if it is not zero.
// The function it gives takes that back.
func (w *Watch) Deadline(limit time.Duration) (cancel func()) {
	if limit <= 0 {
		return func() {}
	}
	timer := time.AfterFunc(limit, func() { w.End(TimedOut) })
	return func() { timer.Stop() }
}

// Sink is the near end of one of the task's streams. It writes to to, which may
// be nil, until limit bytes have passed (0: no limit) or a write fails, either
// of which ends the task. It takes what comes after that too, and throws it
// away, so that a stream is never blocked.
func (w *Watch) Sink(to io.Writer, limit int64) io.Writer {
	if to == nil {
		to = io.Discard
	}
	if limit <= 0 {
		limit = -1
	}
	return &sink{watch: w, to: &LimitWriter{W: to, N: limit, Exceeded: func() { w.End(TooMuchOutput) }}}
}

type sink struct {
	watch  *Watch
	to     *LimitWriter
	closed bool
}

func (s *sink) Write(p []byte) (int, error) {
	if s.closed {
		return len(p), nil
	}
	if _, err := s.to.Write(p); err != nil {
		s.closed = true
		if !errors.Is(err, ErrTooMuchOutput) {
			s.watch.Fail(err)
		}
	}
	return len(p), nil
}
