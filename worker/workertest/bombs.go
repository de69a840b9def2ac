package workertest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/worker"
)

func (s *isolation) killing(t *testing.T) {
	s.tried(t, "still here\n", "killing")
	s.look(t, "attack=1; kill -9 -1; kill -STOP -1; kill -9 1; kill -STOP 1; echo looked")
}

// forks makes ten times the processes that it may, without an end.
func (s *isolation) forks(t *testing.T) {
	limits := small
	limits.Memory = 256 << 20
	if d := s.attack(t, limits, attackProgram, "forks", "400"); d.out != "processes refused\n" {
		t.Errorf("%s, exit status %d, output %q, log %q", d.Ending, d.ExitCode, d.out, d.log)
	}
	limits.Timeout = time.Second
	if d := s.attack(t, limits, attackProgram, "bomb"); d.Ending != worker.TimedOut {
		t.Errorf("%s, exit status %d, log %.200q", d.Ending, d.ExitCode, d.log)
	}
}

func (s *isolation) threads(t *testing.T) { s.tried(t, "threads refused\n", "threads", "400") }

// memoryBombs take ten times the memory, of each kind. Without a cgroup only
// private memory is bounded, and only of each process.
func (s *isolation) memoryBombs(t *testing.T) {
	for _, kind := range []string{"private", "shared", "memfd", "segments"} {
		t.Run(kind, func(t *testing.T) {
			d := s.attack(t, small, attackProgram, "memory", kind, "640")
			refused := d.Ending == worker.OutOfMemory || d.out == kind+" refused\n"
			if !refused && !(s.NoCgroup && kind != "private") {
				t.Errorf("%s, exit status %d, output %q, log %q", d.Ending, d.ExitCode, d.out, d.log)
			}
		})
	}
	t.Run("many processes", func(t *testing.T) {
		script := "for i in 0 1 2 3 4 5 6 7 8 9; do attack memory private 64 & done; wait; exit 3"
		d := s.attack(t, small, shell("PATH=/usr/bin:/bin; "+script)...)
		if d.Ending != worker.OutOfMemory && !s.NoCgroup {
			t.Errorf("%s, exit status %d, output %q", d.Ending, d.ExitCode, d.out)
		}
	})
}

// diskBombs write ten times what each place may hold. /dev may hold more with
// Docker, which has no say about its size: as all, it counts as memory.
func (s *isolation) diskBombs(t *testing.T) {
	limits := small
	limits.Memory = 512 << 20
	d := s.attack(t, limits, append([]string{attackProgram, "fill"}, writable()...)...)
	seen := 0
	for line := range strings.Lines(d.out) {
		dir, size, _ := strings.Cut(strings.TrimSpace(line), " ")
		megabytes, err := strconv.Atoi(size)
		if err != nil || megabytes > 4 && dir != "/dev" {
			t.Errorf("%s holds %s MiB, want at most 4", dir, size)
		}
		seen++
	}
	if seen != len(writable()) || !d.DiskFull {
		t.Errorf("%s, exit status %d, DiskFull %v, output %q, log %q", d.Ending, d.ExitCode, d.DiskFull, d.out, d.log)
	}
	if s.NoCgroup {
		return
	}
	limits.Memory, limits.Disk = 16<<20, 0 // nothing but the memory's
	for _, dir := range writable() {
		d := s.attack(t, limits, attackProgram, "fill", dir)
		if d.Ending != worker.OutOfMemory && d.out != dir+" 0\n" {
			t.Errorf("%s without limit: %s, exit status %d, output %q", dir, d.Ending, d.ExitCode, d.out)
		}
	}
}

// inodes makes ten times the files that each place may hold: one for each 4 KiB.
func (s *isolation) inodes(t *testing.T) {
	limits := small
	limits.Memory = 256 << 20
	dirs := slices.DeleteFunc(writable(), func(dir string) bool { return dir == "/dev" }) // bounded by the memory
	var want strings.Builder
	for _, dir := range dirs {
		fmt.Fprintf(&want, "%s refused\n", dir)
	}
	if d := s.attack(t, limits, append([]string{attackProgram, "inodes"}, dirs...)...); d.out != want.String() || !d.DiskFull {
		t.Errorf("DiskFull %v, got\n%swant\n%s", d.DiskFull, d.out, want.String())
	}
}

// objects takes ten times the descriptors, signals and timers that Rlimits has,
// and what pipes hold.
func (s *isolation) objects(t *testing.T) {
	limits := small
	limits.Memory = 512 << 20
	want := "descriptors refused\nsignals refused\ntimers refused\n"
	d := s.attack(t, limits, attackProgram, "objects")
	if d.out != want {
		t.Errorf("%s, exit status %d, got\n%swant\n%s", d.Ending, d.ExitCode, d.out, want)
	}
}

// sparse makes files that are larger than the machine, and outputs one.
func (s *isolation) sparse(t *testing.T) {
	d := s.attack(t, small, shell("truncate -s 1000G /var/lib/dkms/x && echo made; truncate -s 1000G /tmp/y; cp /var/lib/dkms/x /tmp/z; exec cat /var/lib/dkms/x")...)
	if d.Ending != worker.TooMuchOutput || int64(len(d.out)) != small.Output || !strings.HasPrefix(d.out, "made\n") {
		t.Errorf("%s, %d bytes, log %q", d.Ending, len(d.out), d.log)
	}
}

// logs are endless, with and without lines, and on both streams.
func (s *isolation) logs(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"endless lines", "yes >&2"},
		{"one endless line", "cat /dev/zero >&2"},
		{"by many", "for i in 1 2 3 4 5 6 7 8; do yes $i >&2 & done; wait"},
		{"its end is ignored", "trap '' PIPE TERM; while :; do echo x >&2; done"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := s.attack(t, small, shell(tt.script)...)
			if d.Ending != worker.TooMuchOutput || int64(len(d.log)) != small.Log || d.out != "" {
				t.Errorf("%s, exit status %d, %d bytes of log", d.Ending, d.ExitCode, len(d.log))
			}
		})
	}
	t.Run("output", func(t *testing.T) {
		d := s.attack(t, small, shell("cat /dev/zero")...)
		if d.Ending != worker.TooMuchOutput || int64(len(d.out)) != small.Output {
			t.Errorf("%s, exit status %d, %d bytes of output", d.Ending, d.ExitCode, len(d.out))
		}
	})
}

// outliving leaves daemons behind, whatever the task's own end.
func (s *isolation) outliving(t *testing.T) {
	s.tried(t, "left behind\n", "daemonise", s.mark)
	for want, script := range map[worker.Ending]string{
		worker.TimedOut:      "attack daemonise x; exec attack linger",
		worker.TooMuchOutput: "attack daemonise x; exec yes",
	} {
		limits := small
		if want == worker.TimedOut {
			limits.Timeout = time.Second
		}
		if d := s.attack(t, limits, shell("PATH=/bin:/usr/bin; "+script)...); d.Ending != want {
			t.Errorf("%s: %s, exit status %d, output %.100q, log %q", script, d.Ending, d.ExitCode, d.out, d.log)
		}
		if left := marked(t, s.mark); len(left) > 0 {
			t.Errorf("%s: alive: %q", script, left)
		}
	}
}

// deadline sleeps, stops and loops for ten times its time, and more.
func (s *isolation) deadline(t *testing.T) {
	limits := small
	limits.Timeout = time.Second
	for _, script := range []string{
		"exec sleep 1000",
		"trap '' TERM HUP INT ALRM; while :; do sleep 1000; done",
		"exec attack stopped",
		"attack stopped & wait; while :; do :; done",
		"sh -c 'kill -STOP $$' & kill -STOP 1; exec sleep 1000",
	} {
		if d := s.attack(t, limits, shell("PATH=/bin:/usr/bin; "+script)...); d.Ending != worker.TimedOut || d.Duration > patience {
			t.Errorf("%s: %s after %v, exit status %d, log %q", script, d.Ending, d.Duration, d.ExitCode, d.log)
		}
	}
}
