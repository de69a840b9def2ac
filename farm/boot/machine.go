package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Acceleration is how qemu runs a guest's instructions.
type Acceleration string

// The accelerations. Auto is KVM where a kernel boots with it, else TCG.
const (
	Auto Acceleration = "auto"
	KVM  Acceleration = "kvm"
	TCG  Acceleration = "tcg" // software emulation
)

// Limits on what a guest may write.
const (
	maxConsole = 1 << 20  // bytes kept, the last ones
	maxReport  = 64 << 20 // bytes of reports read
	maxLine    = 64 << 10 // bytes of one line of them
)

// machine is a virtual machine's outline for an architecture.
type machine struct {
	qemu    string   // the program
	deb     string   // and Debian's package of it
	host    string   // Go's name of the architecture whose KVM runs it; "": it is emulated everywhere
	args    []string // its machine, processor and second serial port; the port's chardev is "report"
	console string   // Linux's name of the first serial port
	port    string   // and of the second
	command string   // what the kernel's command line has beside the usual
	uefi    *uefi    // how it boots from UEFI firmware; nil: not by this version
}

// uefi is a machine that starts the kernel by UEFI firmware.
type uefi struct {
	deb             string // Debian's package of the firmware
	code, variables string // its files
	args            []string
	memory          int64 // bytes that it needs beside the kernel's
}

// machines are by DKMS's name of the architecture. Of x86's the processor is
// qemu's oldest for 64 bits, which every Debian kernel runs on; of arm64's a plain
// one, as emulating all that qemu knows (max) takes three times as long. arm64's
// board has one serial port: the other is on its PCI bus, whose driver is part of
// Debian's kernels, as virtio's is not.
var machines = map[string]machine{
	"x86_64": {
		qemu: "qemu-system-x86_64", deb: "qemu-system-x86", host: "amd64",
		args:    []string{"-machine", "pc", "-cpu", "qemu64", "-device", "isa-serial,chardev=report,index=1"},
		console: "ttyS0", port: "ttyS1",
		// The first spares a check of timers that emulation fails when it is slow, the second a
		// rewrite of the kernel's code.
		command: "no_timer_check noreplace-smp",
		uefi: &uefi{
			deb: "ovmf", code: "usr/share/OVMF/OVMF_CODE_4M.fd", variables: "usr/share/OVMF/OVMF_VARS_4M.fd",
			args:   []string{"-machine", "q35", "-cpu", "qemu64", "-device", "isa-serial,chardev=report,index=1"},
			memory: 128 << 20,
		},
	},
	"aarch64": {
		qemu: "qemu-system-aarch64", deb: "qemu-system-arm",
		args:    []string{"-machine", "virt", "-cpu", "cortex-a57", "-device", "pci-serial,chardev=report"},
		console: "ttyAMA0", port: "ttyS0",
	},
}

// native says whether this machine's KVM may run it.
func (m machine) native() bool { return m.host == runtime.GOARCH }

// commandLine is what kernels of all architectures are told: to end at the first
// fault, to spare what takes time and finds nothing here, and to keep files in
// memory without tmpfs's limit of half of it.
const commandLine = "rootfstype=ramfs loglevel=4 panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=5 log_buf_len=1M " +
	"cryptomgr.notests=1 rcupdate.rcu_expedited=1"

// guest is one boot.
type guest struct {
	machine
	kernel, initramfs string // files
	code, variables   string // the firmware's; "": the kernel is entered without
	accel             Acceleration
	memory            int64  // bytes
	append            string // to the command line
	// idle is how long each step of the plan may take, first how long it may be
	// until the first, and whole how long all may last.
	idle, first, whole time.Duration
}

// ending is how a boot ended.
type ending string

const (
	ended    ending = "ended"    // by itself, before its plan did: a panic, or a fault of the machine
	complete ending = "complete" // its plan is carried out
	silent   ending = "silent"   // it has not reported for too long
	late     ending = "late"     // the whole lasts too long
	strayed  ending = "strayed"  // its report is not what its plan makes
)

// outcome is what a boot has given.
type outcome struct {
	ending  ending
	console string // the kernel's, or its end
	total   int    // bytes that it had
	stderr  string // qemu's
	cpu     time.Duration
}

// run boots, and hands each line of the reports to report, which says what it is
// to the plan. The error is of the host.
func (g guest) run(ctx context.Context, report func(line string, console int) reply) (outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return outcome{}, err
	}
	defer consoleR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return outcome{}, errors.Join(err, consoleW.Close())
	}
	defer reportR.Close()
	runtime.LockOSThread() // qemu ends with the thread that starts it
	defer runtime.UnlockOSThread()
	var stderr tail
	cmd, err := g.start(ctx, &stderr, consoleW, reportW)
	err = errors.Join(err, consoleW.Close(), reportW.Close())
	if err != nil {
		return outcome{}, fmt.Errorf("starting %s: %w", g.qemu, err)
	}
	var console tail
	var readers sync.WaitGroup
	readers.Go(func() { _, _ = io.Copy(&console, consoleR) })
	result := outcome{ending: ended}
	watch := newSilence(cmd.Process.Pid, g.first, g.whole)
	readers.Go(func() { watch.run(ctx, cancel) })
	readers.Go(func() {
		lines := lineReader{r: io.LimitReader(reportR, maxReport)}
		for {
			line, ok := lines.next()
			if !ok {
				return
			}
			switch report(line, console.total()) {
			case onward:
				watch.heard(g.idle)
			case last:
				result.ending = complete
				cancel(errComplete)
				return
			case astray:
				result.ending = strayed
				cancel(errComplete)
				return
			}
		}
	})
	err = cmd.Wait()
	cause := context.Cause(ctx)
	cancel(nil)
	readers.Wait()
	result.console, result.total, result.stderr = console.String(), console.total(), stderr.String()
	if cmd.ProcessState != nil {
		result.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	switch {
	case result.ending != ended:
		return result, nil
	case errors.Is(cause, errSilent):
		result.ending = silent
		return result, nil
	case errors.Is(cause, errLate):
		result.ending = late
		return result, nil
	case cause != nil:
		return result, cause
	case err != nil:
		return result, fmt.Errorf("%s: %w: %s", g.qemu, err, strings.TrimSpace(result.stderr))
	}
	return result, nil
}

var (
	errSilent   = errors.New("the guest is silent")
	errLate     = errors.New("the guest takes too long")
	errComplete = errors.New("the guest has done its work")
)

// arguments are qemu's. The guest has neither a disk nor a network, and qemu no
// way to start a program.
func (g guest) arguments() []string {
	line := []string{"console=" + g.machine.console, g.command, commandLine}
	if g.append != "" {
		line = append(line, g.append)
	}
	args := []string{"-accel", string(g.accel)}
	if g.code != "" {
		flash := func(file, more string) string {
			return "if=pflash,format=raw," + more + ",file=" + strings.ReplaceAll(file, ",", ",,")
		}
		args = append(args, g.uefi.args...)
		args = append(args, "-drive", flash(g.code, "unit=0,readonly=on"), "-drive", flash(g.variables, "unit=1"))
	} else {
		args = append(args, g.args...)
	}
	return append(args, "-smp", "1", "-m", strconv.FormatInt(g.memory>>20, 10), "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "file,id=console,path=/dev/fd/3", "-serial", "chardev:console",
		"-chardev", "file,id=report,path=/dev/fd/4",
		"-kernel", g.kernel, "-initrd", g.initramfs, "-append", strings.Join(line, " "))
}

// tail keeps the last bytes of what is written to it.
type tail struct {
	mu   sync.Mutex
	data []byte
	n    int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n += len(p)
	t.data = append(t.data, p...)
	if len(t.data) > 2*maxConsole {
		t.data = append(t.data[:0], t.data[len(t.data)-maxConsole:]...)
	}
	return len(p), nil
}

// total is how many bytes were written.
func (t *tail) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}

// lineReader reads lines, of which it cuts what is longer than maxLine.
type lineReader struct {
	r   io.Reader
	buf []byte
	in  [4096]byte
}

func (l *lineReader) next() (line string, ok bool) {
	for {
		if i := bytes.IndexByte(l.buf, '\n'); i >= 0 {
			line = string(bytes.TrimSuffix(l.buf[:min(i, maxLine)], []byte("\r")))
			l.buf = l.buf[i+1:]
			return line, true
		}
		if len(l.buf) > 2*maxLine { // keep the line's beginning, and look for its end
			l.buf = l.buf[:maxLine]
		}
		n, err := l.r.Read(l.in[:])
		l.buf = append(l.buf, l.in[:n]...)
		if n == 0 && err != nil {
			return "", false
		}
	}
}
