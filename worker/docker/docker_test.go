package docker_test

import (
	"log/slog"
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

func TestConformance(t *testing.T) {
	dir := rig.Cache(t, "runner-docker")
	workertest.Run(t, workertest.Backend{
		Open:   func(t testing.TB) worker.Runner { return open(t, dir) },
		NoPeak: true,
		Left:   func(t testing.TB) []string { return containers(t, dir) },
	})
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
