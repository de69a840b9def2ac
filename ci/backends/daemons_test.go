package backends_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kofarm/kofarm/ci/rig"
)

// patience only bounds a failing test.
const patience = 10 * time.Minute

// daemon is a dockerd, with the containerd that it starts, or a containerd, of
// a test's own. Its images outlive the test, all else is below run.
type daemon struct {
	kind, address string
	run, socket   string // run is short: a socket's path has at most 107 bytes
	data          string
	command       []string
	process       *exec.Cmd
}

// own describes a daemon of that name, which no other test has meanwhile, starts
// it with more arguments, and ends it with the test.
func own(t *testing.T, kind, name string, more ...string) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test starts daemons: run it as root")
	}
	rig.Lock(t, "kill-"+kind+"-"+name)
	run, err := os.MkdirTemp("/tmp", "kofarm-"+name)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{kind: kind, run: run, socket: filepath.Join(run, "sock"), data: rig.Cache(t, "kill-"+kind, name)}
	switch kind {
	case "docker":
		d.address = "unix://" + d.socket
		d.command = []string{"dockerd", "--host", d.address, "--data-root", d.data, "--exec-root", filepath.Join(run, "exec"),
			"--pidfile", filepath.Join(run, "pid"), "--bridge", "none", "--iptables=false", "--ip-forward=false"}
	case "containerd":
		d.address = d.socket
		config := rig.Write(t, run, "containerd.toml", fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
`, d.data, filepath.Join(run, "state"), d.socket))
		d.command = []string{"containerd", "--config", config}
	}
	d.command = append(d.command, more...)
	adopt(t)
	t.Cleanup(func() { d.end(t) })
	d.start(t)
	d.forget(t)
	return d
}

// forget removes the containers of a daemon that a test has left dead.
func (d *daemon) forget(t *testing.T) {
	t.Helper()
	if d.kind != "docker" {
		return
	}
	if ids := d.lines(t, "ps", "-a", "-q"); len(ids) > 0 {
		d.lines(t, append([]string{"rm", "-f"}, ids...)...)
	}
}

// adopt makes this process the parent of processes whose parents die, and so the
// one that can see off a containerd that was killed after its dockerd: that is
// not gone before, which the next dockerd waits for.
func adopt(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

// cli runs the daemon's command-line client, and gives the lines that it prints.
func (d *daemon) cli(args ...string) ([]string, error) {
	name, flags := "docker", []string{"--host", d.address}
	if d.kind == "containerd" {
		name, flags = "ctr", []string{"--address", d.address, "--namespace", "kofarm"}
	}
	out, err := exec.Command(name, append(flags, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w\n%s", name, args, err, out)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), nil
}

func (d *daemon) lines(t *testing.T, args ...string) []string {
	t.Helper()
	lines, err := d.cli(args...)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// start starts the daemon and waits until it answers.
func (d *daemon) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(d.run, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	_ = os.Remove(filepath.Join(d.run, "pid")) // of one that was killed
	d.process = exec.Command(d.command[0], d.command[1:]...)
	d.process.Stdout, d.process.Stderr = log, log
	if err := d.process.Start(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		_, err := d.cli("version")
		if err == nil {
			return
		}
		if time.Now().After(until) {
			data, _ := os.ReadFile(log.Name())
			t.Fatalf("%v\n%s", err, data[max(0, len(data)-4000):])
		}
	}
}

// kill kills the daemon, and the containerd of a dockerd: not the shims, which
// hold the containers.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	killed := []int{d.process.Process.Pid} // first, as a dockerd starts its containerd again
	for pid, args := range d.processes() {
		if filepath.Base(args[0]) == "containerd" && pid != killed[0] {
			killed = append(killed, pid)
		}
	}
	for _, pid := range killed {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = d.process.Wait()
	for _, pid := range killed[1:] {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// processes lists the daemon's processes with their arguments: those that name
// its folder. Containers' own processes are not among them.
func (d *daemon) processes() map[int][]string {
	found := map[int][]string{}
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		data, _ := os.ReadFile(name)
		if !bytes.Contains(data, []byte(d.run)) {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		base := filepath.Base(args[0])
		if base != "dockerd" && !strings.HasPrefix(base, "containerd") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil {
			found[pid] = args
		}
	}
	return found
}

// end ends the daemon, and what one that was killed for good has left.
func (d *daemon) end(t *testing.T) {
	t.Helper()
	if d.process.ProcessState == nil {
		_ = d.process.Process.Signal(syscall.SIGTERM)
		_ = d.process.Wait()
	}
	d.endContainers(t)
	for _, m := range d.mounts() {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
	if err := os.RemoveAll(d.run); err != nil {
		t.Error(err)
	}
}

// endContainers kills shims and the processes below them.
func (d *daemon) endContainers(t *testing.T) {
	t.Helper()
	for pid := range d.processes() {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for child := range strings.FieldsSeq(string(children)) {
			var n int
			if _, err := fmt.Sscan(child, &n); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for until := time.Now().Add(patience); len(d.processes()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Errorf("processes are left: %v", d.processes())
			return
		}
	}
}

// mounts lists the mounts below the daemon's folder and of its containers.
func (d *daemon) mounts() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], d.run+"/") || f[4] == d.data) { // dockerd mounts its data upon itself
			found = append(found, f[4])
		}
	}
	slices.Reverse(found) // from the top
	return found
}

func hasChildren(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	return slices.ContainsFunc(files, func(f string) bool {
		children, _ := os.ReadFile(f)
		return len(bytes.TrimSpace(children)) > 0
	})
}

// left lists what runs have left in a daemon that is alive: all but images, and
// of these those that no other run can find.
func (d *daemon) left(t *testing.T) []string {
	t.Helper()
	var left []string
	add := func(what string, lines []string) {
		for _, l := range lines {
			left = append(left, what+" "+l)
		}
	}
	if d.kind == "docker" {
		add("container", d.lines(t, "ps", "-a", "--format", "{{.ID}} {{.Names}} {{.Status}}"))
		for _, l := range d.lines(t, "images", "-a", "--format", "{{.Repository}}:{{.Tag}}") {
			if !strings.HasPrefix(l, "kofarm:") {
				add("image", []string{l})
			}
		}
	} else {
		add("container", d.lines(t, "containers", "ls", "-q"))
		add("task", d.lines(t, "tasks", "ls", "-q"))
		add("lease", d.lines(t, "leases", "ls", "-q"))
		for _, l := range d.lines(t, "snapshots", "ls") {
			if strings.HasPrefix(l, "kofarm-") || strings.HasPrefix(l, "extract-") {
				add("snapshot", []string{l})
			}
		}
	}
	for pid, args := range d.processes() {
		// A shim without a child, of no container that the daemon knows, is
		// containerd's own: it was killed between starting it and noting that.
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && hasChildren(pid) {
			add("process", []string{strings.Join(args, " ")})
		}
	}
	for _, m := range d.mounts() {
		if strings.HasSuffix(m, "/rootfs") || strings.HasSuffix(m, "/shm") {
			add("mount", []string{m})
		}
	}
	return left
}

// clean waits until nothing of a run is left, as daemons tidy up on their own
// time, or fails the test.
func (d *daemon) clean(t *testing.T) {
	t.Helper()
	var left []string
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if left = d.left(t); len(left) == 0 {
			return
		}
	}
	t.Errorf("%s %s: the run has left\n%s", d.kind, d.address, strings.Join(left, "\n"))
}
