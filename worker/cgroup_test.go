package worker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
)

// TestEndCgroup ends a process that nobody waits for any more, in each kind of
// hierarchy that this machine has.
func TestEndCgroup(t *testing.T) {
	name := "kofarm-test-" + strconv.Itoa(os.Getpid())
	var dirs []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			dirs = append(dirs, filepath.Join(root, name))
		}
	}
	if len(dirs) == 0 {
		t.Fatal("this machine has no control groups")
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		if pids := worker.CgroupProcesses(dir); len(pids) != 1 || pids[0] != cmd.Process.Pid {
			t.Errorf("%s has the processes %v, want %d", dir, pids, cmd.Process.Pid)
		}
	}
	if err := worker.EndCgroup("kofarm-test-no-other", name); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v", err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := worker.EndCgroup(name); err != nil {
		t.Errorf("of a group that is not there: %v", err)
	}
}
