package embedded_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/embedded"
	"github.com/kofarm/kofarm/worker/workertest"
)

// Names of variables by which a test tells the test binary, executed again,
// what to do.
const (
	victimVar = "KOFARM_TEST_VICTIM" // TestKilled: be what is killed, and how
	openerVar = "KOFARM_TEST_OPENER" // TestOpenBesideClose: the folder
	userVar   = "KOFARM_TEST_USER"   // TestConformance: this is the ordinary user
)

// user is the id of an ordinary user that the system need not know.
const user = 4242

func TestMain(m *testing.M) {
	embedded.Reexec()
	os.Exit(m.Run())
}

// open opens a runner in dir, closed when the test ends.
func open(t testing.TB, dir string) *embedded.Runner {
	t.Helper()
	r, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func backend(dir string) workertest.Backend {
	return workertest.Backend{
		Open: func(t testing.TB) worker.Runner { return open(t, dir) },
		Left: func(t testing.TB) []string { return append(left(t, dir), children(t)...) },
	}
}

// left lists what tasks have left of themselves in dir and in the system.
func left(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{dir + "/layers/.*", dir + "/empty/*", "/sys/fs/cgroup/kofarm-*/*-*", "/sys/fs/cgroup/*/kofarm-*/*-*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if fi, err := os.Stat(n); err == nil && fi.IsDir() && (strings.HasPrefix(n, dir) || ours(n)) {
				found = append(found, n)
			}
		}
	}
	for _, f := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		data, _ := os.ReadFile(f)
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, dir) {
				found = append(found, "mount: "+line)
			}
		}
	}
	return found
}

// ours tells whether a cgroup belongs to this test's processes: its name begins
// with the process's id.
func ours(cgroup string) bool {
	return strings.HasPrefix(filepath.Base(cgroup), fmt.Sprintf("%d-", os.Getpid()))
}

// children lists the processes whose parent is this one, zombies too.
func children(t testing.TB) []string {
	t.Helper()
	var found []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		if strings.HasPrefix(rest[1:], fmt.Sprintf(" %d ", os.Getpid())) {
			found = append(found, "process: "+string(data))
		}
	}
	return found
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs to run as root")
	}
}

// TestConformance runs the suite as root or, where TestConformanceAsUser has
// started it, as an ordinary user; and so does TestIsolation.
func TestConformance(t *testing.T) { workertest.Run(t, whose(t)) }

func TestIsolation(t *testing.T) { workertest.Isolation(t, whose(t)) }

func whose(t *testing.T) workertest.Backend {
	b := backend(t.TempDir())
	if os.Getenv(userVar) != "" {
		b.NoCgroup = true
	} else {
		needRoot(t)
	}
	return b
}

func TestConformanceAsUser(t *testing.T) { asUser(t, "TestConformance") }

func TestIsolationAsUser(t *testing.T) { asUser(t, "TestIsolation") }

// asUser runs a test in a copy of this test binary as an ordinary user.
func asUser(t *testing.T, test string) {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "kofarm-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "embedded.test")
	if err := errors.Join(os.WriteFile(binary, exe, 0o755), os.Chown(dir, user, user)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^"+test+"$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, userVar + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as user %d: %v\n%s", user, err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+test+" ")) {
		t.Errorf("as user %d the suite did not pass:\n%.4000s", user, out)
	}
	repeat(t, test, string(out))
}

// repeat makes tests of this one out of those that another process has reported
// below a test, so that they are counted.
func repeat(t *testing.T, test, out string) {
	t.Helper()
	reported := regexp.MustCompile(`(?m)^ *--- ([A-Z]+): `+test+`/(\S+) `).FindAllStringSubmatch(out, -1)
	for _, m := range reported {
		verdict, name := m[1], m[2]
		if slices.ContainsFunc(reported, func(other []string) bool { return strings.HasPrefix(other[2], name+"/") }) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if verdict != "PASS" {
				t.Error(verdict)
			}
		})
	}
}

// counted counts how often a layer is read.
type counted struct {
	v1.Layer
	reads *atomic.Int64
}

func (c counted) Uncompressed() (io.ReadCloser, error) {
	c.reads.Add(1)
	return c.Layer.Uncompressed()
}

func trivial(img v1.Image) worker.Task {
	return worker.Task{Name: "trivial", Image: img, Args: []string{workertest.Busybox, "true"}, Env: []string{"HOME=/root", "PATH=/bin"},
		Limits: worker.Limits{Memory: 1 << 30, Processes: 64, Disk: 1 << 20, Timeout: time.Minute}}
}

// run runs a task that must succeed.
func run(t testing.TB, r *embedded.Runner, task worker.Task) string {
	t.Helper()
	var out, log strings.Builder
	task.Output, task.Log = &out, &log
	res, err := r.Run(t.Context(), task)
	if err != nil || res.Ending != worker.Exited || res.ExitCode != 0 {
		t.Errorf("%+v, error %v, log %q", res, err, log.String())
	}
	return out.String()
}

func TestLayersAreUnpackedOnce(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var reads atomic.Int64
	layer := counted{workertest.Layer(t, workertest.Entry{Name: "f", Data: "x"}), &reads}
	img, again := workertest.Image(t, layer), workertest.Image(t, layer, workertest.Layer(t, workertest.Entry{Name: "g"}))
	r := open(t, dir)
	done := make(chan struct{})
	for i := range 6 {
		go func() {
			run(t, r, trivial([]v1.Image{img, again}[i%2]))
			done <- struct{}{}
		}()
	}
	for range 6 {
		<-done
	}
	run(t, open(t, dir), trivial(img))
	if n := reads.Load(); n != 1 {
		t.Errorf("the layer was read %d times, want once", n)
	}
}

// TestHostileLayers has layers that try to leave their folder, or hold what no
// layer of kofarm's does. Each is refused and leaves nothing.
func TestHostileLayers(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	type entries = []workertest.Entry
	const link, hard = tar.TypeSymlink, tar.TypeLink
	tests := []struct {
		name    string
		entries entries
		want    string
	}{
		{"a path that leaves", entries{{Name: "../../outside/x", Data: "x"}}, "leaves the layer"},
		{"an inner path that leaves", entries{{Name: "a/../../../outside/x", Data: "x"}}, "leaves the layer"},
		{"a relative link that leaves", entries{{Name: "a", Type: link, Data: "../../outside"}, {Name: "a/x", Data: "x"}}, "escapes"},
		{"an absolute link that leaves", entries{{Name: "a", Type: link, Data: outside}, {Name: "a/x", Data: "x"}}, "escapes"},
		{"a chain of links", entries{{Name: "a", Type: link, Data: "b/.."}, {Name: "b", Type: link, Data: ".."}, {Name: "a/outside/x", Data: "x"}}, ""},
		{"a link in place of a folder", entries{{Name: "a", Type: link, Data: outside}, {Name: "a/", Mode: 0o777}}, ""},
		{"a folder's mode through a link", entries{{Name: "a/"}, {Name: "b", Type: link, Data: "../../outside"}, {Name: "b/"}}, ""},
		{"a hard link that leaves", entries{{Name: "a", Type: hard, Data: "../../outside/secret"}}, "escapes"},
		{"a hard link through a link", entries{{Name: "a", Type: link, Data: outside}, {Name: "b", Type: hard, Data: "a/secret"}}, "escapes"},
		{"writing through a link", entries{{Name: "a", Type: link, Data: "../../outside/secret"}, {Name: "a", Data: "x"}}, "exists"},
		{"a file twice", entries{{Name: "a", Data: "x"}, {Name: "a", Data: "y"}}, "exists"},
		{"a file over a folder", entries{{Name: "a/"}, {Name: "a", Data: "y"}}, "exists"},
		{"a device", entries{{Name: "sda", Type: tar.TypeBlock}}, "files, folders and links"},
		{"a FIFO", entries{{Name: "p", Type: tar.TypeFifo}}, "files, folders and links"},
		{"a whiteout", entries{{Name: "etc/.wh.passwd"}}, "whiteout"},
		{"an opaque folder", entries{{Name: "etc/.wh..wh..opq"}}, "whiteout"},
	}
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	r := open(t, store)
	run(t, r, trivial(workertest.Image(t)))
	good, _ := os.ReadDir(filepath.Join(store, "layers"))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := r.Run(t.Context(), trivial(workertest.Image(t, workertest.Layer(t, tt.entries...))))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
			if now, _ := os.ReadDir(filepath.Join(store, "layers")); len(now) != len(good) {
				t.Errorf("%d entries in the folder of layers, want %d", len(now), len(good))
			}
		})
	}
	names, _ := filepath.Glob(outside + "/*")
	fi, err := os.Stat(outside)
	if data, _ := os.ReadFile(secret); string(data) != "secret" || len(names) != 1 || err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("a layer has reached out: %q, %q, %v", data, names, fi.Mode())
	}
}

func TestTruncatedLayer(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	whole := workertest.Layer(t, workertest.Entry{Name: "f", Data: strings.Repeat("x", 10000)})
	r := open(t, dir)
	if _, err := r.Run(t.Context(), trivial(workertest.Image(t, truncated{whole}))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got error %v, want %v", err, io.ErrUnexpectedEOF)
	}
	run(t, r, trivial(workertest.Image(t, whole)))
	if l := left(t, dir); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
}

type truncated struct{ v1.Layer }

func (l truncated) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Uncompressed()
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(rc, 5000), rc}, err
}

// TestNoRoomToUnpack unpacks into a file system that is too small.
func TestNoRoomToUnpack(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := syscall.Mount("small", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	r, err := embedded.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := workertest.Layer(t, workertest.Entry{Name: "big", Data: strings.Repeat("x", 8<<20)})
	for range 2 {
		if _, err := r.Run(t.Context(), trivial(workertest.Image(t, big))); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("got error %v, want %v", err, syscall.ENOSPC)
		}
	}
	run(t, r, trivial(workertest.Image(t)))
	if l, _ := filepath.Glob(dir + "/layers/.*"); len(l) > 0 {
		t.Errorf("left: %q", l)
	}
}

// TestNothingLeaks compares descriptors and goroutines after tasks that end in
// every way.
func TestNothingLeaks(t *testing.T) {
	needRoot(t)
	r := open(t, t.TempDir())
	img := workertest.Image(t)
	sh := func(limits worker.Limits, script string) {
		task := trivial(img)
		task.Limits, task.Args = limits, []string{"/bin/sh", "-c", script}
		_, _ = r.Run(t.Context(), task)
	}
	all := func() {
		run(t, r, trivial(img))
		sh(worker.Limits{Timeout: 100 * time.Millisecond}, "sleep 1000")
		sh(worker.Limits{Output: 10}, "yes")
		sh(worker.Limits{Memory: 32 << 20}, "x=0123456789abcdef; while :; do x=$x$x; done")
		task := trivial(img)
		task.Args = []string{"/no/such/program"}
		if _, err := r.Run(t.Context(), task); err == nil {
			t.Error("no error")
		}
		task.Image = workertest.Image(t, workertest.Layer(t, workertest.Entry{Name: "..", Data: "x"}))
		if _, err := r.Run(t.Context(), task); err == nil {
			t.Error("no error")
		}
	}
	all()
	fds, routines := descriptors(t), runtime.NumGoroutine()
	for range 3 {
		all()
	}
	if got := descriptors(t); got > fds {
		t.Errorf("%d descriptors are open, %d before", got, fds)
	}
	for range 6000 { // a goroutine may be about to end
		if runtime.NumGoroutine() <= routines {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), routines)
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestMasked reads what this backend hides beyond the contract: facts about the
// machine that would find their way into a build.
func TestMasked(t *testing.T) {
	needRoot(t)
	r := open(t, t.TempDir())
	task := trivial(workertest.Image(t))
	task.Args = []string{"/bin/sh", "-c", `cat /proc/cmdline /proc/modules /proc/kallsyms /proc/interrupts; sed 's/^[^/]*//' /proc/self/cgroup | sort -u;
		ls /sys; readlink /proc/1/exe`}
	if got, want := run(t, r, task), "/\n/bin/busybox\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestKilled kills a process with SIGKILL in the middle of its work. What it
// was running vanishes, and the next one clears up.
func TestKilled(t *testing.T) {
	needRoot(t)
	if args := strings.Fields(os.Getenv(victimVar)); len(args) > 0 {
		victim(t, args[0], args[1], args[2])
	}
	for _, what := range []string{"running", "unpacking"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			mark := fmt.Sprintf("2%d.%d", os.Getpid(), time.Now().UnixNano()%1000)
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
			cmd.Env = append(os.Environ(), victimVar+"="+what+" "+dir+" "+mark)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Fatalf("the victim did not begin: %v", err)
			}
			if what == "running" {
				eventually(t, "its processes are there", func() bool { return len(workertest.Processes(t, mark)) >= 3 })
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "its processes are gone", func() bool { return len(workertest.Processes(t, mark)) == 0 })
			eventually(t, "its stage is gone", func() bool { return len(stages(dir)) == 0 })
			r := open(t, dir)
			if l := append(left(t, dir), cgroupsOf(cmd.Process.Pid)...); len(l) > 0 {
				t.Errorf("left: %q", l)
			}
			run(t, r, trivial(workertest.Image(t)))
		})
	}
}

// TestOpenBesideClose: processes open and close runners of one folder: none finds
// that it cannot make cgroups because another removes them.
func TestOpenBesideClose(t *testing.T) {
	needRoot(t)
	if dir := os.Getenv(openerVar); dir != "" {
		for range 300 {
			var log bytes.Buffer
			r, err := embedded.Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			if !r.Limited() {
				t.Error(log.String())
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		return
	}
	dir := t.TempDir()
	var openers sync.WaitGroup
	for range 4 {
		openers.Go(func() {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestOpenBesideClose$")
			cmd.Env = append(os.Environ(), openerVar+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	openers.Wait()
}

// eventually waits for something that happens soon, unless the machine is busy.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not true after a long while: %s", what)
}

// stages lists the processes that work in dir.
func stages(dir string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && strings.HasPrefix(target, dir) {
			found = append(found, l)
		}
	}
	return found
}

// cgroupsOf lists the cgroups that a process has made.
func cgroupsOf(pid int) []string {
	a, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/kofarm-*/%d-*", pid))
	b, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/kofarm-*/%d-*", pid))
	return append(a, b...)
}

// victim runs a task, or unpacks a layer, until it is killed. It writes a byte
// to standard output when it is in the middle of that.
func victim(t *testing.T, what, dir, mark string) {
	task := trivial(workertest.Image(t))
	switch what {
	case "running":
		script := fmt.Sprintf("sleep %[1]s & setsid sleep %[1]s & sleep 0.1; echo; sleep %[1]s", mark)
		task.Args, task.Output = []string{"/bin/sh", "-c", script}, os.Stdout
	case "unpacking":
		task.Image = workertest.Image(t, stuck{workertest.Layer(t, workertest.Entry{Name: "a/"},
			workertest.Entry{Name: "a/b", Data: strings.Repeat("x", 1<<20)})})
	}
	_, err := open(t, dir).Run(t.Context(), task)
	t.Fatalf("the task has ended: %v", err)
}

// stuck is a layer of which only the first half can be read.
type stuck struct{ v1.Layer }

func (l stuck) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Uncompressed()
	return io.NopCloser(io.MultiReader(io.LimitReader(rc, 1<<19), block{})), err
}

// block tells that it is read, and never returns.
type block struct{}

func (block) Read([]byte) (int, error) {
	fmt.Println()
	select {}
}

func BenchmarkTrivialTask(b *testing.B) {
	needRoot(b)
	r := open(b, b.TempDir())
	task := trivial(workertest.Image(b))
	run(b, r, task)
	for b.Loop() {
		run(b, r, task)
	}
}
