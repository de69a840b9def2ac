package containerd_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/containerd"
	"github.com/kofarm/kofarm/worker/workertest"
)

// address is the containerd that `ci/setup daemons` starts.
const address = "/run/kofarm-test/containerd.sock"

func open(t testing.TB, dir string) *containerd.Runner {
	t.Helper()
	r, err := containerd.Open(t.Context(), containerd.Config{Address: address, Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("%v\n(run `ci/setup daemons` as root)", err)
	}
	t.Cleanup(func() {
		if err := r.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// store is a folder that outlives tests, so that what they leave in the daemon
// on purpose, images, is found and removed in a week. One test has it at a time.
func store(t testing.TB) string {
	t.Helper()
	if os.Getenv(workertest.VictimVar) == "" {
		rig.Lock(t, "runner-containerd")
	}
	return rig.Cache(t, "runner-containerd")
}

func TestConformance(t *testing.T) { workertest.Run(t, backend(t)) }

func TestIsolation(t *testing.T) { workertest.Isolation(t, backend(t)) }

func backend(t testing.TB) workertest.Backend {
	dir := store(t)
	return workertest.Backend{
		Open: func(t testing.TB) worker.Runner { return open(t, dir) },
		Left: func(t testing.TB) []string { return left(t, dir) },
	}
}

func TestKilled(t *testing.T) {
	workertest.Killed(t, store(t), func(t testing.TB, dir string) worker.Runner { return open(t, dir) }, left)
}

// left lists what tasks have left of dir's store in containerd and here.
func left(t testing.TB, dir string) []string {
	t.Helper()
	c, err := worker.NewClaim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	found := lines(t, "containers", "ls", "-q", "labels."+`"`+worker.StoreLabel+`"==`+c.Store)
	for _, line := range lines(t, "snapshots", "ls") {
		if strings.HasPrefix(line, "kofarm-") || strings.HasPrefix(line, "extract-") {
			found = append(found, "snapshot "+line)
		}
	}
	run := strings.Repeat("?", len(c.Run)) + "-*"
	for _, pattern := range []string{dir + "/fifos-*/*", "/sys/fs/cgroup/kofarm-" + run, "/sys/fs/cgroup/*/kofarm-" + run} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	return found
}

// lines gives the lines that the ctr command prints.
func lines(t testing.TB, args ...string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ctr", append([]string{"--address", address, "--namespace", containerd.Namespace}, args...)...).Output()
	if err != nil {
		t.Fatalf("ctr %q: %v", args, err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
}

func BenchmarkTrivialTask(b *testing.B) {
	r := open(b, store(b))
	workertest.Trivial(b, r)
	for b.Loop() {
		workertest.Trivial(b, r)
	}
}
