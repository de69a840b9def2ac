// Package workertest is one conformance suite for all backends of
// [worker.Runner]: what a task sees, what it may use, how it ends, and that
// nothing of it is left.
//
// A backend's own test calls [Run]. The tasks' image is made in the test.
package workertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker"
)

// Backend is a backend under test.
type Backend struct {
	// Open gives a runner, which the backend closes when the test ends.
	Open func(t testing.TB) worker.Runner
	// NoCgroup tells that Limits.Memory bounds the address space of each process
	// instead of the task's memory, as worker.Limits says.
	NoCgroup bool
	// NoPeak tells that Result.MemoryPeak is not known.
	NoPeak bool
	// Left names what tasks have left behind on this machine: mounts, cgroups,
	// containers, temporary files. It may be nil.
	Left func(t testing.TB) []string
}

// Run runs the suite on a backend.
func Run(t *testing.T, b Backend) {
	s := &suite{Backend: b, runner: b.Open(t), image: Image(t)}
	t.Run("exit", s.exits)
	t.Run("output", s.output)
	t.Run("surroundings", s.surroundings)
	t.Run("refused", s.refused)
	t.Run("limits", s.limits)
	t.Run("cancel", s.cancel)
	t.Run("turn", s.turn)
	t.Run("parallel", s.parallel)
	t.Run("background", s.background)
	t.Run("image", s.images)
	if b.Left != nil {
		if left := b.Left(t); len(left) > 0 {
			t.Errorf("the tasks have left\n%s", strings.Join(left, "\n"))
		}
	}
}

type suite struct {
	Backend
	runner worker.Runner
	image  v1.Image
}

// roomy are limits that no task of the suite reaches by accident.
var roomy = worker.Limits{Memory: 1 << 30, Processes: 256, Disk: 64 << 20, Output: 64 << 20, Log: 64 << 20, Timeout: 2 * time.Minute}

// env is the least that a task is given: HOME and PATH, which some runtimes
// would add if they were not there.
var env = []string{"HOME=/root", "PATH=/bin"}

// done is how a task went.
type done struct {
	worker.Result
	out, log string
}

// shell is the command line of a shell script.
func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

func (s *suite) task(name string, limits worker.Limits, args ...string) worker.Task {
	return worker.Task{Name: name, Image: s.image, Args: args, Env: env, Limits: limits}
}

// run runs a task to its end, which must not be an error.
func (s *suite) run(t testing.TB, task worker.Task) done {
	t.Helper()
	var out, log bytes.Buffer
	task.Output, task.Log = &out, &log
	res, err := s.runner.Run(t.Context(), task)
	if err != nil {
		t.Fatalf("%v\noutput: %.2000q\nlog: %.2000q", err, out.String(), log.String())
	}
	return done{res, out.String(), log.String()}
}

// sh runs a shell script that must succeed, and gives its output.
func (s *suite) sh(t testing.TB, script string) string {
	t.Helper()
	d := s.run(t, s.task("script", roomy, shell(script)...))
	if d.Ending != worker.Exited || d.ExitCode != 0 {
		t.Errorf("%s: %s, exit status %d\noutput: %.2000q\nlog: %.2000q", script, d.Ending, d.ExitCode, d.out, d.log)
	}
	return d.out
}

func (s *suite) exits(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want int
	}{
		{"success", shell("exit 0"), 0},
		{"failure", shell("exit 1"), 1},
		{"a number", shell("exit 42"), 42},
		{"the largest", shell("exit 255"), 255},
		{"a signal of its own", []string{crasher}, 128 + 11},
		{"a child's signal", shell("sh -c 'kill -9 $$'; exit $?"), 128 + 9},
		{"all its children killed", shell("kill -9 -1; exit 7"), 7},
		{"no such command", shell("/bin/none"), 127},
		{"a command of its own", []string{Busybox, "false"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := s.run(t, s.task(tt.name, roomy, tt.args...))
			if d.Ending != worker.Exited || d.ExitCode != tt.want {
				t.Errorf("got %q, exit status %d, want %d", d.Ending, d.ExitCode, tt.want)
			}
			if d.Duration <= 0 {
				t.Errorf("duration %v", d.Duration)
			}
		})
	}
	t.Run("an image without the command", func(t *testing.T) {
		_, err := s.runner.Run(t.Context(), s.task("absent", roomy, "/bin/absent"))
		if err == nil || !strings.Contains(err.Error(), "/bin/absent") {
			t.Errorf("got error %v, want one that names /bin/absent", err)
		}
	})
}

func (s *suite) output(t *testing.T) {
	sum := func(data string) string { return fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(data))) }
	t.Run("10 MB in order", func(t *testing.T) {
		d := s.run(t, s.task("order", roomy, shell("seq 1 1300000 >&2; echo end; seq 1300001 1400000 >&2")...))
		var want bytes.Buffer
		for i := range 1_400_000 {
			want.Write(strconv.AppendInt(nil, int64(i+1), 10))
			want.WriteByte('\n')
		}
		if d.log != want.String() {
			t.Errorf("the log has %d bytes, want %d, or their order differs", len(d.log), want.Len())
		}
		if d.out != "end\n" {
			t.Errorf("output %q", d.out)
		}
	})
	t.Run("binary", func(t *testing.T) {
		d := s.run(t, s.task("binary", roomy, shell("head -c 9000001 /dev/urandom > /tmp/x; cat /tmp/x; sha256sum < /tmp/x >&2")...))
		if got := sum(d.out); len(d.out) != 9000001 || d.log != got {
			t.Errorf("%d bytes with sum %q, want 9000001 with %q", len(d.out), got, d.log)
		}
	})
	t.Run("one long line", func(t *testing.T) {
		got := s.sh(t, `head -c 5000000 /dev/zero | tr '\000' a`)
		if got != strings.Repeat("a", 5000000) {
			t.Errorf("got %d bytes", len(got))
		}
	})
	t.Run("no writers", func(t *testing.T) {
		res, err := s.runner.Run(t.Context(), s.task("no writers", roomy, shell("echo out; echo log >&2; exit 3")...))
		if err != nil || res.ExitCode != 3 {
			t.Errorf("exit status %d, error %v", res.ExitCode, err)
		}
	})
	t.Run("a writer that fails", func(t *testing.T) {
		task := s.task("fails", roomy, shell("yes; sleep 1000")...)
		task.Output = failing{}
		if _, err := s.runner.Run(t.Context(), task); !errors.Is(err, errFailing) {
			t.Errorf("got error %v, want the writer's", err)
		}
	})
}

var errFailing = errors.New("no room for output")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }

// onWrite does something when it is first written to.
type onWrite struct {
	once sync.Once
	do   func()
}

func (w *onWrite) Write(p []byte) (int, error) {
	w.once.Do(w.do)
	return len(p), nil
}

func (s *suite) cancel(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		task := s.task("before", roomy, shell("echo ran")...)
		var out bytes.Buffer
		task.Output = &out
		if _, err := s.runner.Run(ctx, task); !errors.Is(err, context.Canceled) || out.Len() > 0 {
			t.Errorf("got error %v and output %q", err, out.String())
		}
	})
	for _, tt := range []struct{ name, script string }{
		{"while it sleeps", "echo started; exec sleep 1000"},
		{"while it ignores signals", "trap '' TERM INT HUP; echo started; while :; do :; done"},
		{"while it writes", "yes"},
		{"while it forks", "echo started; while :; do sleep 1000 & done"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			task := s.task("cancelled", roomy, shell(tt.script)...)
			task.Output = &onWrite{do: cancel}
			if _, err := s.runner.Run(ctx, task); !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v, want %v", err, context.Canceled)
			}
		})
	}
	t.Run("by its deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := s.runner.Run(ctx, s.task("deadline", roomy, shell("sleep 1000")...)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

// turn has commands that wait for their turn, with containers that are ready.
func (s *suite) turn(t *testing.T) {
	t.Run("taken and given back", func(t *testing.T) {
		task := s.task("turn", roomy, shell("echo started; exit 3")...)
		var started, early atomic.Bool
		task.Output = &onWrite{do: func() { started.Store(true) }}
		task.Limits.Timeout = 10 * time.Second // more than the command's end takes to be heard of on a busy machine
		var begun, ended atomic.Int32
		task.Turn = func(context.Context) (func(), error) {
			begun.Add(1)
			time.Sleep(task.Limits.Timeout + time.Second) // not the command's time
			early.Store(started.Load())
			return func() { ended.Add(1) }, nil
		}
		res, err := s.runner.Run(t.Context(), task)
		if err != nil || res.Ending != worker.Exited || res.ExitCode != 3 {
			t.Errorf("%+v, error %v", res, err)
		}
		if !started.Load() || early.Load() || begun.Load() != 1 || ended.Load() != 1 {
			t.Errorf("started %t, before its turn %t; %d turns were taken, %d given back", started.Load(), early.Load(), begun.Load(), ended.Load())
		}
	})
	refuse := func(name string, turn func(context.Context, context.CancelFunc) error, want error) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			task := s.task("no turn", roomy, shell("echo started")...)
			task.Output = &out
			task.Turn = func(ctx context.Context) (func(), error) { return nil, turn(ctx, cancel) }
			if _, err := s.runner.Run(ctx, task); !errors.Is(err, want) || out.Len() > 0 {
				t.Errorf("error %v, want %v; output %q", err, want, out.String())
			}
		})
	}
	refuse("refused", func(context.Context, context.CancelFunc) error { return errFailing }, errFailing)
	refuse("never taken", func(ctx context.Context, cancel context.CancelFunc) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}, context.Canceled)
}

// parallel runs tasks at the same time: each has file systems of its own, sees
// nobody else, and writes to its own writers.
func (s *suite) parallel(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			want := fmt.Sprintf("%d\n", i)
			got := s.sh(t, fmt.Sprintf(`ls -A /tmp /run /root /var/tmp /var/lib/dkms | grep -v : | tr -d '\n'
				echo %d > /tmp/x; sleep 0.2; set -- /proc/[0-9]*; [ $# -lt 4 ] && cat /tmp/x`, i))
			if got != want {
				t.Errorf("task %d: output %q", i, got)
			}
		})
	}
	wg.Wait()
}

// background leaves processes of all kinds behind, some of which hold the
// output open.
func (s *suite) background(t *testing.T) {
	mark := fmt.Sprintf("1%d.%d", os.Getpid(), time.Now().UnixNano()%1000)
	d := s.run(t, s.task("background", roomy, shell(fmt.Sprintf(`
		sleep %[1]s & setsid sleep %[1]s & (trap '' HUP TERM; exec sleep %[1]s) & (sh -c 'sleep %[1]s & sleep %[1]s') &
		(setsid sh -c 'sleep %[1]s' > /dev/null 2>&1 < /dev/null &)
		while [ $(ps | grep -c '[s]leep') -lt 6 ]; do sleep 0.01; done
		echo done`, mark))...))
	if d.out != "done\n" || d.Ending != worker.Exited || d.ExitCode != 0 {
		t.Errorf("got %+v", d)
	}
	if left := Processes(t, mark); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
}

// Processes gives the command lines of this machine's processes with mark among
// their arguments.
func Processes(t testing.TB, mark string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		if args := strings.Split(string(data), "\x00"); slices.Contains(args, mark) {
			found = append(found, strings.Join(args, " "))
		}
	}
	return found
}

func (s *suite) images(t *testing.T) {
	t.Run("layers", func(t *testing.T) {
		task := s.task("layers", roomy, shell("cat /a /b /c/d; stat -c '%a %u %g %Y' /b /c; readlink /l")...)
		task.Image = Image(t,
			Layer(t, Entry{Name: "a", Data: "low "}, Entry{Name: "b", Data: "low "}, Entry{Name: "c/", Mode: 0o755}, Entry{Name: "c/d", Data: "low\n"}),
			Layer(t, Entry{Name: "b", Data: "high ", Mode: 0o640}, Entry{Name: "l", Type: '2', Data: "/no/where"}))
		want := "low high low\n640 0 0 0\n755 0 0 0\n/no/where\n"
		for i := range 2 {
			if d := s.run(t, task); d.out != want {
				t.Errorf("run %d: got %q, want %q; log %q", i, d.out, want, d.log)
			}
		}
	})
	t.Run("a layer that is not what its diffID says", func(t *testing.T) {
		task := s.task("lying", roomy, shell("cat /x")...)
		truth := "truth " + rand.Text() // which no earlier test has left anywhere
		task.Image = Image(t, lying{Layer(t, Entry{Name: "x", Data: truth})})
		var out bytes.Buffer
		task.Output = &out
		if _, err := s.runner.Run(t.Context(), task); err == nil || out.Len() > 0 {
			t.Errorf("it ran: error %v, output %q", err, out.String())
		}
		task.Image = Image(t, Layer(t, Entry{Name: "x", Data: truth}))
		if d := s.run(t, task); d.out != truth {
			t.Errorf("afterwards: output %q, log %q", d.out, d.log)
		}
	})
}

// Trivial runs a task that does nothing, with the usual limits, for benchmarks.
func Trivial(t testing.TB, r worker.Runner) {
	t.Helper()
	s := &suite{runner: r, image: Image(t)}
	if d := s.run(t, s.task("trivial", roomy, shell("exit 0")...)); d.ExitCode != 0 {
		t.Fatalf("exit status %d", d.ExitCode)
	}
}
