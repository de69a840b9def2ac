package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// silence measures how long a guest has not reported, and how long it lasts. The
// time that qemu has waited for a processor of a busy machine is not the guest's,
// and does not count.
type silence struct {
	pid    int
	whole  limit
	mu     sync.Mutex
	report limit
}

// limit is a span of time that began at some moment.
type limit struct {
	most  time.Duration
	begun time.Time
	wait  time.Duration // that qemu's threads had waited then
}

// patience is how many times a limit may last, however busy the machine is.
const patience = 10

// over says whether the limit is over, for threads that have waited until now.
func (l limit) over(wait time.Duration) bool {
	d := time.Since(l.begun)
	return d-max(0, wait-l.wait) > l.most || d > patience*l.most
}

// newSilence expects the first report after a time, and the end after another.
func newSilence(pid int, first, whole time.Duration) *silence {
	now, wait := time.Now(), waited(pid)
	return &silence{pid: pid, whole: limit{whole, now, wait}, report: limit{first, now, wait}}
}

// heard expects the next report after a time.
func (s *silence) heard(most time.Duration) {
	l := limit{most, time.Now(), waited(s.pid)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report = l
}

// over says why the guest is to be ended, if it is.
func (s *silence) over() error {
	wait := waited(s.pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.report.over(wait):
		return errSilent
	case s.whole.over(wait):
		return errLate
	}
	return nil
}

// run ends a guest that takes too long.
func (s *silence) run(ctx context.Context, end context.CancelCauseFunc) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := s.over(); err != nil {
				end(err)
				return
			}
		}
	}
}

// waited adds up how long a process's threads were ready to run and did not: the
// second number of schedstat (Documentation/scheduler/sched-stats.rst), in
// nanoseconds. It is 0 where the kernel does not count.
func waited(pid int) time.Duration {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0
	}
	var total time.Duration
	for _, name := range files {
		data, err := os.ReadFile(name)
		if f := strings.Fields(string(data)); err == nil && len(f) > 1 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			total += time.Duration(n)
		}
	}
	return total
}
