package boot

import (
	"bufio"
	"context"
	"encoding/binary"
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
)

// tinyGuest is a guest that reports one line, "here", and then waits forever. Its
// kernel is one by the Multiboot specification (0.6.96), which qemu loads.
func tinyGuest(t *testing.T) guest {
	t.Helper()
	const load, size, magic, flags = 0x100000, 64, 0x1BADB002, 1 << 16
	var k []byte
	for _, word := range []uint32{magic, flags, -(magic + flags) & 0xffffffff, load, load, load + size, load + size, load + 32} {
		k = binary.LittleEndian.AppendUint32(k, word)
	}
	k = append(k, 0x66, 0xba, 0xf8, 0x02) // mov dx, 0x2f8: the second serial port
	k = append(k, 0xbe)                   // mov esi, the line
	k = binary.LittleEndian.AppendUint32(k, load+53)
	k = append(k, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8) // next: lodsb; test al, al; jz end; out dx, al; jmp next
	k = append(k, 0xfa, 0xf4, 0xeb, 0xfd)                         // end: cli; again: hlt; jmp again
	k = append(k, "here\n\x00"...)
	k = append(k, make([]byte, size-len(k))...)
	dir := t.TempDir()
	g := guest{machine: machines["x86_64"], accel: TCG, memory: 32 << 20, first: time.Minute, idle: time.Minute, whole: time.Minute,
		kernel: filepath.Join(dir, "kernel"), initramfs: filepath.Join(dir, "initramfs")}
	for name, data := range map[string][]byte{g.kernel: k, g.initramfs: []byte("nothing")} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// children are a process's.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for f := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}

// TestProcess looks at qemu while its guest runs.
func TestProcess(t *testing.T) {
	t.Setenv("KOFARM_PASSPHRASE", "secret")
	var environ, status, limits, score string
	out, err := tinyGuest(t).run(t.Context(), func(string, int) reply {
		for _, pid := range children(t, os.Getpid()) {
			for name, into := range map[string]*string{"environ": &environ, "status": &status, "limits": &limits, "oom_score_adj": &score} {
				data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
				if err != nil {
					t.Error(err)
				}
				*into = string(data)
			}
		}
		return last
	})
	if err != nil || out.ending != complete {
		t.Fatalf("%s: %v: %s", out.ending, err, out.stderr)
	}
	if strings.Contains(environ, "PASSPHRASE") {
		t.Errorf("qemu's environment is %q", environ)
	}
	user := os.Getuid()
	if user == 0 {
		user = nobody
	}
	for _, want := range []string{
		fmt.Sprintf("\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", user), "\nGroups:\t \n",
	} {
		if user == nobody && !strings.Contains(status, want) {
			t.Errorf("qemu's status lacks %q:\n%s", want, status)
		}
	}
	if want := fmt.Sprintf("Max data size             %-20d", 32<<20+ownMemory); !strings.Contains(limits, want) {
		t.Errorf("qemu's limits lack %q:\n%s", want, limits)
	}
	if strings.TrimSpace(score) != "500" {
		t.Errorf("qemu's oom_score_adj is %s", score)
	}
}

// TestKilled kills a process that runs a guest, whose qemu has to end.
func TestKilled(t *testing.T) {
	if os.Getenv("KOFARM_TEST_GUEST") != "" {
		_, err := tinyGuest(t).run(t.Context(), func(line string, _ int) reply {
			fmt.Println(line)
			return noted
		})
		t.Fatal(err) // it runs until it is killed
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "KOFARM_TEST_GUEST=1")
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan() && lines.Text() != "here"; {
	}
	qemu := children(t, cmd.Process.Pid)
	if len(qemu) != 1 {
		t.Fatalf("%d processes run the guest", len(qemu))
	}
	fd, err := unix.PidfdOpen(qemu[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	n, err := 0, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) { // by a signal of Go's own
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
	}
	if n != 1 || err != nil {
		_ = syscall.Kill(qemu[0], syscall.SIGKILL)
		t.Errorf("qemu runs on: %v", err)
	}
}

// TestBootAgain boots twice, as an ordinary user, from files that are written anew.
func TestBootAgain(t *testing.T) {
	if os.Geteuid() == 0 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestBootAgain$")
		cmd.Dir, cmd.Env = "/", append(os.Environ(), "TMPDIR=/tmp") // root's may be closed to others
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	g := tinyGuest(t)
	for range 2 {
		if err := os.WriteFile(g.initramfs, []byte("nothing"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := g.run(t.Context(), func(string, int) reply { return last }); err != nil || out.ending != complete {
			t.Fatalf("%s: %v: %s", out.ending, err, out.stderr)
		}
	}
}
