package docker_test

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/docker"
	"github.com/kofarm/kofarm/worker/workertest"
)

// host is the daemon that `ci/setup daemons` starts.
const host = "unix:///run/kofarm-test/docker.sock"

func open(t testing.TB, dir string) *docker.Runner {
	t.Helper()
	r, err := docker.Open(t.Context(), docker.Config{Host: host, Dir: dir, Log: slog.New(slog.DiscardHandler)})
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
		rig.Lock(t, "runner-docker")
	}
	return rig.Cache(t, "runner-docker")
}

func TestConformance(t *testing.T) { workertest.Run(t, backend(t)) }

func TestIsolation(t *testing.T) { workertest.Isolation(t, backend(t)) }

func backend(t testing.TB) workertest.Backend {
	dir := store(t)
	return workertest.Backend{
		Open:   func(t testing.TB) worker.Runner { return open(t, dir) },
		NoPeak: true,
		Left:   func(t testing.TB) []string { return containers(t, dir) },
	}
}

func TestKilled(t *testing.T) {
	workertest.Killed(t, store(t), func(t testing.TB, dir string) worker.Runner { return open(t, dir) }, containers)
}

// containers lists the containers of dir's store.
func containers(t testing.TB, dir string) []string {
	t.Helper()
	c, err := worker.NewClaim(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return lines(t, "ps", "-a", "--filter", "label="+worker.StoreLabel+"="+c.Store, "--format", "{{.ID}} {{.Names}} {{.Status}}")
}

// lines gives the lines that the docker command prints.
func lines(t testing.TB, args ...string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", append([]string{"--host", host}, args...)...).Output()
	if err != nil {
		t.Fatalf("docker %q: %v", args, err)
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

// BenchmarkDockerRun is the docker command, for the same task and image.
func BenchmarkDockerRun(b *testing.B) {
	r := open(b, store(b))
	workertest.Trivial(b, r) // brings the image
	image := lines(b, "images", "--quiet", "--filter", "label=dev.kofarm.image")[0]
	for b.Loop() {
		lines(b, "run", "--rm", "--network", "none", image, "/bin/sh", "-c", "exit 0")
	}
}
