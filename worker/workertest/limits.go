package workertest

import (
	"bytes"
	"testing"
	"time"

	"github.com/kofarm/kofarm/worker"
)

// limited is one task that a limit ends or stops.
type limited struct {
	name   string
	limit  func(*worker.Limits)
	script string
	want   worker.Ending
}

func (s *suite) limits(t *testing.T) {
	t.Run("memory", s.memory)
	t.Run("processes", s.processes)
	t.Run("disk", s.disk)
	t.Run("none", s.unlimited)
	tests := []limited{
		{"timeout", func(l *worker.Limits) { l.Timeout = 300 * time.Millisecond }, "sleep 1000", worker.TimedOut},
		{"timeout, busy", func(l *worker.Limits) { l.Timeout = 300 * time.Millisecond }, "trap '' TERM; while :; do :; done", worker.TimedOut},
		{"timeout, forking", func(l *worker.Limits) { l.Timeout = 300 * time.Millisecond; l.Processes = 64 },
			"f() { f & f & wait; }; f 2> /dev/null & while :; do :; done", worker.TimedOut},
		{"output", func(l *worker.Limits) { l.Output = 1000 }, "yes", worker.TooMuchOutput},
		{"output, then sleep", func(l *worker.Limits) { l.Output = 1000 }, "seq 1 1000; sleep 1000", worker.TooMuchOutput},
		{"log", func(l *worker.Limits) { l.Log = 1000 }, "yes >&2", worker.TooMuchOutput},
		{"output at its limit", func(l *worker.Limits) { l.Output = 1000 }, "head -c 1000 /dev/zero", worker.Exited},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limits := roomy
			tt.limit(&limits)
			d := s.run(t, s.task(tt.name, limits, shell(tt.script)...))
			if d.Ending != tt.want {
				t.Errorf("got %q, want %q; exit status %d, log %.500q", d.Ending, tt.want, d.ExitCode, d.log)
			}
			if limits.Output == 1000 && len(d.out) != 1000 {
				t.Errorf("%d bytes of output, want 1000", len(d.out))
			}
			if limits.Log == 1000 && len(d.log) != 1000 {
				t.Errorf("%d bytes of log, want 1000", len(d.log))
			}
		})
	}
}

// memory is exceeded by a process, by files, and by many processes. Without a
// cgroup only the first of these is bounded, and the process sees an error.
func (s *suite) memory(t *testing.T) {
	limits := roomy
	limits.Memory, limits.Disk = 96<<20, 1<<30
	hog := "x=0123456789abcdef; while :; do x=$x$x; done"
	d := s.run(t, s.task("memory", limits, shell(hog)...))
	switch {
	case s.NoCgroup:
		if d.Ending != worker.Exited || d.ExitCode == 0 {
			t.Errorf("a process: got %q, exit status %d, want a failure", d.Ending, d.ExitCode)
		}
		return
	case d.Ending != worker.OutOfMemory:
		t.Errorf("a process: got %q, exit status %d, want %q", d.Ending, d.ExitCode, worker.OutOfMemory)
	}
	for _, tt := range []struct{ name, script string }{
		{"files", "dd if=/dev/zero of=/tmp/x bs=1M count=500 || exit 3"},
		{"many processes", "for i in 1 2 3 4 5 6 7 8; do sh -c '" + hog + "' & done; wait; exit 3"},
		{"a child", "sh -c '" + hog + "' || exit 3"},
	} {
		if d := s.run(t, s.task(tt.name, limits, shell(tt.script)...)); d.Ending != worker.OutOfMemory {
			t.Errorf("%s: got %q, exit status %d, want %q; log %.500q", tt.name, d.Ending, d.ExitCode, worker.OutOfMemory, d.log)
		}
	}
	d = s.run(t, s.task("survived", limits, shell("sh -c '"+hog+"'; exit 0")...))
	if d.Ending != worker.Exited || d.ExitCode != 0 || !d.MemoryFull {
		t.Errorf("a child that is not missed: got %q, exit status %d, MemoryFull %v", d.Ending, d.ExitCode, d.MemoryFull)
	}
	d = s.run(t, s.task("below", limits, shell("dd if=/dev/zero of=/tmp/x bs=1M count=30")...))
	if d.Ending != worker.Exited || d.ExitCode != 0 || d.MemoryFull {
		t.Errorf("below the limit: got %q, exit status %d, log %q", d.Ending, d.ExitCode, d.log)
	}
	if !s.NoPeak && (d.MemoryPeak < 30<<20 || d.MemoryPeak > limits.Memory) {
		t.Errorf("the peak is %d MiB, want 30 to %d", d.MemoryPeak>>20, limits.Memory>>20)
	}
}

func (s *suite) processes(t *testing.T) {
	limits := roomy
	limits.Processes = 40
	spawn := "i=0; while [ $i -lt %COUNT% ]; do sleep 1000 & i=$((i + 1)); done; echo enough"
	run := func(count string) done {
		return s.run(t, s.task("processes", limits, shell(string(bytes.ReplaceAll([]byte(spawn), []byte("%COUNT%"), []byte(count))))...))
	}
	if d := run("200"); d.Ending != worker.Exited || d.ExitCode == 0 || d.out != "" {
		t.Errorf("200 processes of 40: got %q, exit status %d, output %q", d.Ending, d.ExitCode, d.out)
	}
	if d := run("38"); d.Ending != worker.Exited || d.ExitCode != 0 || d.out != "enough\n" {
		t.Errorf("39 processes of 40: got %q, exit status %d, log %q", d.Ending, d.ExitCode, d.log)
	}
}

func (s *suite) disk(t *testing.T) {
	limits := roomy
	limits.Disk = 8 << 20
	for _, dir := range worker.Scratch() {
		d := s.run(t, s.task("disk", limits, shell("dd if=/dev/zero of="+dir+"/x bs=64k count=1000")...))
		if d.Ending != worker.Exited || d.ExitCode == 0 || !d.DiskFull {
			t.Errorf("%s: got %q, exit status %d, DiskFull %v", dir, d.Ending, d.ExitCode, d.DiskFull)
		}
	}
	d := s.run(t, s.task("disk", limits, shell("dd if=/dev/zero of=/tmp/x bs=64k count=64 && dd if=/dev/zero of=/var/lib/dkms/x bs=64k count=64")...))
	if d.ExitCode != 0 || d.DiskFull {
		t.Errorf("half full: exit status %d, DiskFull %v, log %q", d.ExitCode, d.DiskFull, d.log)
	}
	d = s.run(t, s.task("files", limits, shell("i=0; while [ $i -lt 20000 ] && : > /tmp/$i; do i=$((i + 1)); done; exit $((i == 20000 ? 0 : 1))")...))
	if d.ExitCode == 0 || !d.DiskFull {
		t.Errorf("20000 files: exit status %d, DiskFull %v", d.ExitCode, d.DiskFull)
	}
}

// unlimited runs a task whose limits are all zero.
func (s *suite) unlimited(t *testing.T) {
	d := s.run(t, s.task("unlimited", worker.Limits{}, shell("dd if=/dev/zero of=/tmp/x bs=1M count=20 && seq 1 100000")...))
	if d.Ending != worker.Exited || d.ExitCode != 0 || len(d.out) < 500_000 {
		t.Errorf("got %q, exit status %d, %d bytes, log %q", d.Ending, d.ExitCode, len(d.out), d.log)
	}
}
