package boot

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const kvmDevice = "/dev/kvm"

// nobody is the user that qemu runs as where kofarm is root.
const nobody = 65534

// start starts qemu, which writes the guest's console and reports to pipes. It
// gets nothing of kofarm's environment, which may hold passphrases, and ends with
// the thread that has started it. Where root may not become another user, as in
// some containers, it stays root.
func (g guest) start(ctx context.Context, stderr io.Writer, console, report *os.File) (*exec.Cmd, error) {
	files := []*os.File{console, report} // 3 and 4
	qemu, err := exec.LookPath(g.qemu)
	if err != nil {
		return nil, err
	}
	read, err := g.open(3 + len(files))
	if err != nil {
		return nil, err
	}
	defer closeAll(read)
	for _, f := range files { // which qemu opens anew, by their descriptors' names
		if err := f.Chmod(0o666); err != nil {
			return nil, err
		}
	}
	for user := g.user(); ; user = nil {
		cmd := exec.CommandContext(ctx, "/bin/sh", append(append(g.limits(), qemu), g.arguments()...)...)
		cmd.Env, cmd.Dir = []string{}, "/"
		cmd.ExtraFiles, cmd.Stderr = append(files, read...), stderr
		cmd.WaitDelay = 5 * time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: user}
		if err := cmd.Start(); err == nil || user == nil {
			return cmd, err
		}
	}
}

// open opens the files that qemu reads, and puts in the place of their names those
// of their descriptors, from first on: another user does not reach their folder. Who
// runs kofarm may still write to them, for the next boot.
func (g *guest) open(first int) ([]*os.File, error) {
	var files []*os.File
	for _, f := range []struct {
		name *string
		flag int
		mode os.FileMode
	}{{&g.kernel, os.O_RDONLY, 0o644}, {&g.initramfs, os.O_RDONLY, 0o644}, {&g.code, os.O_RDONLY, 0o644}, {&g.variables, os.O_RDWR, 0o666}} {
		if *f.name == "" {
			continue
		}
		file, err := os.OpenFile(*f.name, f.flag, 0)
		if err == nil {
			files = append(files, file)
			err = file.Chmod(f.mode)
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
		*f.name = fmt.Sprintf("/dev/fd/%d", first+len(files)-1)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// user is whom qemu runs as; nil for who runs kofarm. That is so of root, too,
// where root alone may use KVM, which qemu opens by its name.
func (g guest) user() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	user := &syscall.Credential{Uid: nobody, Gid: nobody}
	if g.accel != KVM {
		return user
	}
	var kvm unix.Stat_t
	switch err := unix.Stat(kvmDevice, &kvm); {
	case err != nil:
		return nil
	case kvm.Mode&0o006 == 0o006:
		return user
	case kvm.Mode&0o060 == 0o060 && kvm.Gid != 0:
		user.Groups = []uint32{kvm.Gid}
		return user
	}
	return nil
}

// ownMemory is what qemu may take beside the guest's memory, in bytes: TCG keeps
// up to 1 GiB of translated code.
const ownMemory = 2 << 30

// oomScore is qemu's oom_score_adj: a task's, of package worker.
const oomScore = 500

// limited executes a program with at most $0 KiB of private memory, and as what
// ends first where this machine has none left. A shell sets limits that other
// processes may only be given with CAP_SYS_RESOURCE.
const limited = `ulimit -c 0; ulimit -d "$0"; echo "$1" >/proc/self/oom_score_adj; shift; exec "$@"`

// limits are the words before qemu's command.
func (g guest) limits() []string {
	return []string{"-c", limited, strconv.FormatInt((g.memory+ownMemory)>>10, 10), strconv.Itoa(oomScore)}
}
