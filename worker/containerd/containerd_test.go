package containerd_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
	note(t, dir)
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

// left lists what tasks have left of dir's store in containerd and here: others
// may use the same daemon.
func left(t testing.TB, dir string) []string {
	t.Helper()
	c, err := worker.NewClaim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	note(t, dir)
	found := lines(t, "containers", "ls", "-q", "labels."+`"`+worker.StoreLabel+`"==`+c.Store)
	for _, line := range lines(t, "snapshots", "ls") {
		key := strings.Fields(line)[0]
		if strings.HasPrefix(key, "kofarm-") || strings.HasPrefix(key, "extract-") {
			// Where it has gone meanwhile it is not this test's, which waits.
			info := try(t, "snapshots", "info", key)
			if strings.Contains(info, c.Store) {
				found = append(found, "snapshot "+line)
			}
		}
	}
	fifos, err := filepath.Glob(dir + "/fifos-*/*")
	if err != nil {
		t.Fatal(err)
	}
	return append(append(found, fifos...), cgroups(t)...)
}

// runs are the names of runs of the tests' store, alive or not, which are in
// those of their cgroups.
var runs sync.Map

// note notes the runs of dir's store that are alive.
func note(t testing.TB, dir string) {
	t.Helper()
	locks, err := filepath.Glob(dir + "/*.lock")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range locks {
		runs.Store(strings.TrimSuffix(filepath.Base(l), ".lock"), true)
	}
}

func cgroups(t testing.TB) (found []string) {
	t.Helper()
	for run := range runs.Range {
		for _, pattern := range []string{"/sys/fs/cgroup/kofarm-", "/sys/fs/cgroup/*/kofarm-"} {
			names, err := filepath.Glob(pattern + run.(string) + "-*")
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, names...)
		}
	}
	return found
}

// try gives what the ctr command prints, or nothing where it fails.
func try(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ctr", append([]string{"--address", address, "--namespace", containerd.Namespace}, args...)...).Output()
	if err != nil {
		return ""
	}
	return string(out)
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
