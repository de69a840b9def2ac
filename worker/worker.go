package worker

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Task is one command to run in a container of its own.
//
// Every backend gives the command the same surroundings: a read-only root made
// of the image's layers, size-limited temporary file systems at [Scratch], no
// network, host name [Hostname], umask 022, user and group 0, no standard
// input, and exactly the environment in Env, which should hold HOME and PATH.
// The image holds the folders that something is mounted on: those of Scratch,
// with their [ScratchMode], /dev and /proc.
type Task struct {
	// Name labels the task's container, cgroup and errors. It need not be
	// unique.
	Name string
	// Image holds the root file system.
	Image v1.Image
	// Args is the command, Args[0] an absolute path in the image.
	Args []string
	// Env holds KEY=value pairs.
	Env []string
	// Limits bound what the task may use.
	Limits Limits
	// Output receives the standard output, Log the standard error. Both are
	// written by one goroutine each.
	Output, Log io.Writer
	// Turn, which may be nil, is asked when the container is ready; the command
	// starts when it returns, and ended is called once when the command has ended,
	// before the container is removed. So what surrounds a command costs the
	// commands of other tasks nothing. An error ends the task.
	Turn func(ctx context.Context) (ended func(), err error)
}

// Begin waits for the task's turn, for backends. What it gives must be called
// when the command has ended, and may be called again.
func (t Task) Begin(ctx context.Context) (ended func(), err error) {
	if t.Turn == nil {
		return func() {}, ctx.Err()
	}
	ended, err = t.Turn(ctx)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(ended), nil
}

// Limits bound one task. A zero field means no limit of that kind.
type Limits struct {
	// Memory is in bytes and includes what is written to the scratch file
	// systems. Without a cgroup of its own (an ordinary user) a backend bounds
	// the private writable memory of each process by it, or by 256 MiB if that
	// is more: RLIMIT_DATA.
	Memory int64
	// Processes is the number of processes and threads alive at a time.
	Processes int64
	// Disk is the size in bytes of each scratch file system.
	Disk int64
	// Output and Log are the bytes accepted on standard output and error.
	Output, Log int64
	// Timeout is the wall-clock time from the start of the command.
	Timeout time.Duration
}

// Hostname is the host name that every task sees.
const Hostname = "kofarm"

// Scratch lists the writable directories of a task, each a file system of its
// own of Limits.Disk bytes. /var/lib/dkms is where DKMS builds.
func Scratch() []string {
	return []string{"/var/lib/dkms", "/tmp", "/var/tmp", "/run", "/root"}
}

// Ending says what ended a task.
type Ending string

// The ways for a task to end.
const (
	// Exited: the command ended by itself, Result.ExitCode is its status.
	Exited Ending = "exited"
	// TimedOut: Limits.Timeout passed.
	TimedOut Ending = "timeout"
	// OutOfMemory: the kernel killed a process at the memory limit.
	OutOfMemory Ending = "out of memory"
	// TooMuchOutput: Limits.Output or Limits.Log was exceeded.
	TooMuchOutput Ending = "too much output"
)

// Result says how a task ended.
type Result struct {
	Ending   Ending
	ExitCode int // valid if Ending is Exited; 128+n for signal n
	// Duration is the wall-clock time of the command.
	Duration time.Duration
	// MemoryPeak is the highest memory use in bytes, 0 if unknown.
	MemoryPeak int64
	// DiskFull tells that a scratch file system was full at the end.
	DiskFull bool
	// MemoryFull tells that the kernel killed a process of the task at the memory
	// limit, which a command may survive.
	MemoryFull bool
}

// Runner runs tasks. Run returns an error only for what is not the task's own
// doing: the context's end, or an infrastructure fault worth another try. It
// returns when every process of the task is gone.
type Runner interface {
	Run(ctx context.Context, task Task) (Result, error)
}

// LimitWriter writes to W until N bytes have passed, then returns
// [ErrTooMuchOutput] and calls Exceeded once, which may be nil.
type LimitWriter struct {
	W        io.Writer
	N        int64 // bytes left; negative: no limit
	Exceeded func()

	over bool
}

// ErrTooMuchOutput is what a LimitWriter returns past its limit.
var ErrTooMuchOutput = fmt.Errorf("more output than the limit allows")

func (l *LimitWriter) Write(p []byte) (int, error) {
	if l.over {
		return 0, ErrTooMuchOutput
	}
	if l.N < 0 {
		return l.W.Write(p)
	}
	if int64(len(p)) <= l.N {
		n, err := l.W.Write(p)
		l.N -= int64(n)
		return n, err
	}
	n, err := l.W.Write(p[:l.N])
	l.N -= int64(n)
	if err != nil {
		return n, err
	}
	l.over = true
	if l.Exceeded != nil {
		l.Exceeded()
	}
	return n, ErrTooMuchOutput
}
