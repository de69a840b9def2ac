package farm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
)

// patience is how long a killed run may take to vanish. It only bounds a
// failing test.
const patience = time.Minute

// moment is a time in a run's life.
type moment struct {
	name string
	soak bool     // only in the long test
	gone []string // what the run's store lacks
	// come tells whether the moment has come, by the store and the run's
	// descendants.
	come func(store string, run int) bool
}

func moments() []moment {
	return []moment{
		{"download", false, []string{"blobs", "cache", "refs", "run"}, func(store string, _ int) bool {
			return anyFile(filepath.Join(store, "partial", "*"), 64<<10)
		}},
		{"assembly", true, []string{"refs", "run"}, func(store string, _ int) bool {
			return anyFile(filepath.Join(store, "tmp", "blob-*"), 4<<20)
		}},
		{"unpacking", false, []string{"refs/result", "refs/pack", "run"}, func(store string, _ int) bool {
			return anyFile(filepath.Join(store, "run", "layers", ".unpacking-*", "usr"), 0)
		}},
		{"build", false, []string{"refs/result", "refs/pack"}, func(_ string, run int) bool {
			return descends(run, "make")
		}},
	}
}

func anyFile(pattern string, size int64) bool {
	found, _ := filepath.Glob(pattern)
	for _, f := range found {
		if fi, err := os.Stat(f); err == nil && fi.Size() >= size {
			return true
		}
	}
	return false
}

// descends tells whether a program of that name runs below the process.
func descends(pid int, name string) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, _ := os.ReadFile(task)
		for child := range strings.FieldsSeq(string(data)) {
			comm, _ := os.ReadFile("/proc/" + child + "/comm")
			if string(bytes.TrimSpace(comm)) == name {
				return true
			}
			if n, err := strconv.Atoi(child); err == nil && descends(n, name) {
				return true
			}
		}
	}
	return false
}

// TestKill ends runs in the midst of their work, and then lets them go on.
func TestKill(t *testing.T) {
	store, want := reference(t)
	adopt(t)
	for _, m := range moments() {
		if m.soak {
			continue
		}
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
			t.Run(fmt.Sprintf("%s/%s", m.name, sig), func(t *testing.T) {
				dir := rig.Folder(t)
				lose(t, store, m.gone)
				r := start(t, dir, store)
				for !m.come(store, r.cmd.Process.Pid) {
					if !r.alive() {
						t.Fatalf("the run ended before its %s was seen\n%s", m.name, r.stderr.String())
					}
					time.Sleep(time.Millisecond)
				}
				r.end(t, sig)
				again(t, dir, store, want)
			})
		}
	}
}

// lose removes parts of a store.
func lose(t *testing.T, store string, parts []string) {
	t.Helper()
	for _, p := range parts {
		if err := os.RemoveAll(filepath.Join(store, p)); err != nil {
			t.Fatal(err)
		}
	}
}

// again lets a killed run go on, and compares what it makes.
func again(t *testing.T, dir, store, want string) {
	t.Helper()
	rig.Kofarm(t, 0, dir, store, "build")
	noTemporaries(t, store, filepath.Join(dir, "dist"))
	noCgroups(t, store)
	dist.Same(t, filepath.Join(dir, "dist"), want)
}

// adopt makes this process the parent of every process whose parents die, so
// that it sees them all.
func adopt(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

// run is a run of the small farm.
type run struct {
	cmd    *exec.Cmd
	store  string
	stderr *rig.Buffer
}

func start(t *testing.T, dir, store string) *run {
	t.Helper()
	rig.Write(t, dir, "farm.yaml", smallFarm)
	r := &run{cmd: exec.Command(rig.Binary(t), "build"), store: store, stderr: &rig.Buffer{}}
	r.cmd.Dir, r.cmd.Env = dir, append(os.Environ(), "KOFARM_STORE="+store)
	r.cmd.Stderr = r.stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// alive tells whether the run goes on.
func (r *run) alive() bool {
	var si unix.Siginfo
	err := unix.Waitid(unix.P_PID, r.cmd.Process.Pid, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && si.Signo == 0
}

// end sends the signal, and checks that nothing of the run is left.
func (r *run) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	watchdog := time.AfterFunc(patience, func() { _ = r.cmd.Process.Kill() })
	defer watchdog.Stop()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	_ = r.cmd.Wait()
	if sig != syscall.SIGKILL {
		if code := r.cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit status %d, want 130", code)
		}
		if !strings.Contains(r.stderr.String(), "interrupted") {
			t.Errorf("it does not say that it was interrupted:\n%s", r.stderr.String())
		}
		noTemporaries(t, r.store, filepath.Join(r.cmd.Dir, "dist"))
		noCgroups(t, r.store)
	}
	noProcesses(t)
	noMounts(t, r.store)
}

// noProcesses waits for the processes that this one has adopted.
func noProcesses(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(patience); ; {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			return
		case pid > 0:
		case time.Now().After(until):
			out, _ := exec.Command("ps", "-ef", "--forest").Output()
			t.Fatalf("processes are left:\n%s", out)
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// noMounts looks into every mount namespace for a mount of the store's.
func noMounts(t *testing.T, store string) {
	t.Helper()
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		data, _ := os.ReadFile(table) // its process may have gone
		if bytes.Contains(data, []byte(store)) {
			t.Errorf("%s has a mount of %s", table, store)
		}
	}
}

// noCgroups looks for cgroups of the store's.
func noCgroups(t *testing.T, store string) {
	t.Helper()
	sum := sha256.Sum256([]byte(filepath.Join(store, "run")))
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		if left, _ := filepath.Glob(pattern + "kofarm-" + hex.EncodeToString(sum[:6])); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	}
}
