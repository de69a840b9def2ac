package backends_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
)

const (
	killModules, killFlavors = 10, 3
	killCells                = killModules * killFlavors
)

// killFolder holds a farm of 30 cells of about a second.
func killFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var farm strings.Builder
	farm.WriteString("modules:\n")
	for i := range killModules {
		name := fmt.Sprintf("tiny%d", i)
		rig.Write(t, dir, name+"/dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME="+name+"\nDEST_MODULE_LOCATION=/updates\n")
		rig.Write(t, dir, name+"/Makefile", "obj-m += "+name+".o\n")
		rig.Write(t, dir, name+"/"+name+".c", "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
		farm.WriteString("  - source: {dir: " + name + "}\n")
	}
	rig.Write(t, dir, "farm.yaml", farm.String()+`
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64, rt-amd64]
`)
	return dir
}

// run is a run of that farm on daemons, in another process.
type run struct {
	dir, store string
	cmd        *exec.Cmd
	stderr     *rig.Buffer
	ended      chan error
}

// prepare makes a store that has the downloads and layers, and no result.
func prepare(t *testing.T) *run {
	t.Helper()
	r := &run{dir: killFolder(t), stderr: new(rig.Buffer)}
	common := rig.Store(t)
	rig.Kofarm(t, 0, r.dir, common, "build")
	r.store = filepath.Join(r.dir, "store")
	rig.Clone(t, common, r.store, "blobs", "cache", "refs/layer")
	if err := os.RemoveAll(filepath.Join(r.dir, "dist")); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *run) start(t *testing.T, daemons ...*daemon) {
	t.Helper()
	args := []string{"build"}
	for _, d := range daemons {
		args = append(args, "--"+d.kind, d.address)
	}
	r.cmd = exec.Command(rig.Binary(t), args...)
	r.cmd.Dir, r.cmd.Env = r.dir, append(os.Environ(), "KOFARM_STORE="+r.store)
	r.cmd.Stdout, r.cmd.Stderr = r.stderr, r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.ended = make(chan error, 1)
	go func() { r.ended <- r.cmd.Wait() }()
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
}

func (r *run) built() int { return strings.Count("\n"+r.stderr.String(), "\nbuilt ") }

// await waits for a moment of the run.
func (r *run) await(t *testing.T, what string, come func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !come(); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-r.ended:
			t.Fatalf("the run has ended (%v) before %s\n%s", err, what, r.stderr.String())
		default:
		}
		if time.Now().After(until) {
			t.Fatalf("waiting for %s\n%s", what, r.stderr.String())
		}
	}
}

// midst waits until some cells are built and others run on a daemon.
func (r *run) midst(t *testing.T, d *daemon) {
	t.Helper()
	r.await(t, "its midst", func() bool { return r.built() >= 6 })
	r.await(t, "a container", func() bool { return d.running() > 0 })
}

// running counts the containers that run.
func (d *daemon) running() int {
	args := []string{"ps", "-q"}
	if d.kind == "containerd" {
		args = []string{"tasks", "ls", "-q"}
	}
	lines, _ := d.cli(args...)
	return len(lines)
}

// completes waits for the end, which must be a good one.
func (r *run) completes(t *testing.T) {
	t.Helper()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Fatalf("%v\n%s", err, r.stderr.String())
		}
	case <-time.After(patience):
		t.Fatalf("the run does not end\n%s", r.stderr.String())
	}
	if want := strconv.Itoa(killCells) + " built"; !strings.Contains(r.stderr.String(), want) {
		t.Errorf("want %q\n%s", want, r.stderr.String())
	}
	if found, _ := filepath.Glob(filepath.Join(r.dir, "dist", "*.tar.gz")); len(found) != killCells {
		t.Errorf("%d packages, want %d", len(found), killCells)
	}
	for _, pattern := range []string{"run/*/*.lock", "run/*/fifos-*", "tmp/*"} {
		if found, _ := filepath.Glob(filepath.Join(r.store, pattern)); len(found) > 0 {
			t.Errorf("the run has left %q", found)
		}
	}
}

// says checks what the run has told of a daemon.
func (r *run) says(t *testing.T, d *daemon, words ...string) {
	t.Helper()
	for _, w := range words {
		if want := d.kind + " " + d.address + " " + w; !strings.Contains(r.stderr.String(), want) {
			t.Errorf("it does not say %q\n%s", want, r.stderr.String())
		}
	}
}

// TestDaemonKilled kills a daemon in the midst of a run and starts it again.
func TestDaemonKilled(t *testing.T) {
	for _, kind := range []string{"docker", "containerd"} {
		t.Run(kind, func(t *testing.T) {
			r, d := prepare(t), own(t, kind, "a")
			r.start(t, d)
			r.midst(t, d)
			d.kill(t)
			d.start(t)
			r.completes(t)
			r.says(t, d, "is lost", "answers")
			d.clean(t)
		})
	}
}

// TestOneOfTwoKilled kills one of two daemons for good.
func TestOneOfTwoKilled(t *testing.T) {
	r, a, b := prepare(t), own(t, "docker", "a"), own(t, "docker", "b")
	r.start(t, a, b)
	r.midst(t, b)
	b.kill(t)
	r.completes(t)
	r.says(t, b, "is lost", "does not answer: what is left there")
	a.clean(t)
}

// TestOneOfTwoReturns kills one of two daemons and starts it again.
func TestOneOfTwoReturns(t *testing.T) {
	r, a, b := prepare(t), own(t, "docker", "a"), own(t, "docker", "b")
	r.start(t, a, b)
	r.midst(t, b)
	b.kill(t)
	b.start(t)
	r.completes(t)
	r.says(t, b, "is lost", "answers")
	starts := b.lines(t, "events", "--since", "10m", "--until", "0s", "--filter", "event=start") // a daemon's events end with it
	if len(starts) == 0 {
		t.Errorf("the daemon that came back was not used\n%s", r.stderr.String())
	}
	a.clean(t)
	b.clean(t)
}

// TestAllKilled kills the run together with its daemon. The next run removes
// what they have left.
func TestAllKilled(t *testing.T) {
	r, d := prepare(t), own(t, "docker", "a")
	r.start(t, d)
	r.midst(t, d)
	if err := r.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	d.kill(t)
	d.start(t)
	if left := d.lines(t, "ps", "-a", "-q", "--filter", "label=dev.kofarm.store"); len(left) == 0 {
		t.Error("nothing was left to remove")
	}
	r.stderr = new(rig.Buffer)
	r.start(t, d)
	r.completes(t)
	d.clean(t)
}
