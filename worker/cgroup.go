package worker

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups is where control groups are: with version 1 each hierarchy has a
// folder of its own there, with version 2 all are one.
const cgroups = "/sys/fs/cgroup"

// endTime is how long processes that were killed may take to end.
const endTime = 5 * time.Second

// EndCgroup kills what is left in the control group of a container that its
// daemon has no more, and removes the group, which has one of those names below
// its hierarchy. A daemon that is killed between making a container's first
// process and noting that has forgotten it, and the process waits for its start
// for ever: so it is with containerd 1.6 and Docker 20.10. What this process may
// not end stays.
func EndCgroup(names ...string) error {
	dirs := cgroupDirs(names)
	for until := time.Now().Add(endTime); ; time.Sleep(10 * time.Millisecond) {
		dirs = slices.DeleteFunc(dirs, func(dir string) bool {
			killIn(dir)
			return unix.Rmdir(dir) != unix.EBUSY // it has processes
		})
		if len(dirs) == 0 {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("control group %s does not end", dirs[0])
		}
	}
}

// cgroupDirs lists the folders of control groups, those of all hierarchies.
func cgroupDirs(names []string) []string {
	var dirs []string
	for _, n := range names {
		for _, pattern := range []string{filepath.Join(cgroups, n), filepath.Join(cgroups, "*", n)} {
			found, _ := filepath.Glob(pattern)
			dirs = append(dirs, found...)
		}
	}
	return dirs
}

// CgroupProcesses lists the processes in the control group of that folder, as
// this process numbers them. Of one that is not there it lists none.
func CgroupProcesses(dir string) []int {
	data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	var pids []int
	for field := range bytes.FieldsSeq(data) {
		if pid, err := strconv.Atoi(string(field)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killIn kills the processes of a control group. A process is held before it is
// looked for again in the group, so that none is hit that has got the number of
// one that has ended.
func killIn(dir string) {
	for _, pid := range CgroupProcesses(dir) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if slices.Contains(CgroupProcesses(dir), pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}
