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

// silence measures how long a guest has not reported. The time that qemu has
// waited for a processor of a busy machine is not the guest's, and does not count.
type silence struct {
	pid  int
	mu   sync.Mutex
	most time.Duration
	last time.Time
	wait time.Duration // that qemu's threads had waited then
}

func newSilence(pid int, most time.Duration) *silence {
	return &silence{pid: pid, most: most, last: time.Now(), wait: waited(pid)}
}

// heard begins anew.
func (s *silence) heard(most time.Duration) {
	wait := waited(s.pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most, s.last, s.wait = most, time.Now(), wait
}

// over says whether the silence lasts too long.
func (s *silence) over() bool {
	wait := waited(s.pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last)-max(0, wait-s.wait) > s.most
}

// run ends a guest that is silent for too long.
func (s *silence) run(ctx context.Context, end context.CancelCauseFunc) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if s.over() {
				end(errSilent)
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
