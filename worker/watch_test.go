package worker

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// short fails after n bytes.
type short struct {
	n   int
	err error
}

func (s *short) Write(p []byte) (int, error) {
	if len(p) > s.n {
		return 0, s.err
	}
	s.n -= len(p)
	return len(p), nil
}

func TestWatch(t *testing.T) {
	full := errors.New("full")
	cause := errors.New("the daemon is gone")
	tests := []struct {
		name string
		do   func(w *Watch, cancel context.CancelFunc)
		want Ending
		err  error
	}{
		{"nothing", func(*Watch, context.CancelFunc) {}, Exited, nil},
		{"stopped", func(w *Watch, _ context.CancelFunc) { w.Stop() }, Exited, nil},
		{"cancelled", func(_ *Watch, cancel context.CancelFunc) { cancel() }, Exited, context.Canceled},
		{"the first reason counts", func(w *Watch, cancel context.CancelFunc) {
			w.End(TimedOut)
			w.End(TooMuchOutput)
			w.Fail(full)
			cancel()
		}, TimedOut, nil},
		{"a fault", func(w *Watch, _ context.CancelFunc) { w.Fail(cause); w.End(TimedOut) }, Exited, cause},
		{"output at its limit", func(w *Watch, _ context.CancelFunc) { write(t, w, nil, 10, "0123456789") }, Exited, nil},
		{"output past its limit", func(w *Watch, _ context.CancelFunc) { write(t, w, nil, 10, "01234567", "89a", "more") }, TooMuchOutput, nil},
		{"output without a limit", func(w *Watch, _ context.CancelFunc) { write(t, w, nil, 0, strings.Repeat("x", 1000)) }, Exited, nil},
		{"a writer that fails", func(w *Watch, _ context.CancelFunc) { write(t, w, &short{4, full}, 10, "0123", "4", "56") }, Exited, full},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w, live := NewWatch(ctx)
			defer w.Stop()
			tt.do(w, cancel)
			got, err := w.Outcome(ctx, Result{Ending: Exited}, nil)
			if got.Ending != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v, want %q, %v", got.Ending, err, tt.want, tt.err)
			}
			if ended := live.Err() != nil; ended != (tt.want != Exited || tt.err != nil || tt.name == "stopped") {
				t.Errorf("the task's context has ended: %v", ended)
			}
		})
	}
}

// write writes to a sink, which takes everything.
func write(t *testing.T, w *Watch, to *short, limit int64, parts ...string) {
	var b bytes.Buffer
	sink := w.Sink(&b, limit)
	if to != nil {
		sink = w.Sink(to, limit)
	}
	for _, p := range parts {
		if n, err := sink.Write([]byte(p)); n != len(p) || err != nil {
			t.Errorf("writing %q: %d, %v", p, n, err)
		}
	}
	if want := strings.Join(parts, ""); to == nil && limit > 0 && b.String() != want[:min(int(limit), len(want))] {
		t.Errorf("%q arrived", b.String())
	}
}

func TestWatchDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, live := NewWatch(t.Context())
		cancel := w.Deadline(time.Minute)
		w.Deadline(0)()
		time.Sleep(time.Minute - 1)
		synctest.Wait()
		if live.Err() != nil {
			t.Error("it ended early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if why, _ := w.Why(); why != TimedOut || live.Err() == nil {
			t.Errorf("got %q", why)
		}
		cancel()
	})
}
