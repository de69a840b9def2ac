// Package seccomp has the one list of system calls that a task may make, for
// all backends.
//
// It is the field's usual list without what no build needs: each call that is
// left out is code of the kernel that a hostile source cannot reach, or a count
// that the kernel keeps for a user and not for a container, so that one task
// could use up the others' share of it.
package seccomp

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// refused are system calls of the usual list that tasks do not get.
var refused = []string{
	// Other processes' memory.
	"process_vm_readv", "process_vm_writev", "ptrace",
	// Counted for each user: inotify's 128 instances, bytes of message queues.
	"inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
	"mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
	"mq_timedsend_time64", "mq_unlink",
	// Memory that is nobody's file and cannot be taken back.
	"memfd_secret", "mlock", "mlock2", "mlockall", "remap_file_pages",
	// The clock, file handles, asynchronous I/O, other segments than the flat one.
	"adjtimex", "clock_adjtime", "clock_adjtime64", "fanotify_mark", "io_cancel", "io_destroy", "io_getevents",
	"io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "modify_ldt", "name_to_handle_at",
	// Calls that hide their arguments from a filter.
	"ipc", "socketcall",
}

// families are the kinds of sockets that a task may make. Its network is a
// loopback of its own.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// profile is the list in the form that depends on a machine's kind and kernel:
// for programs of the machine's own kind only. Without the 32-bit calls it
// compiles in a third of the time, which is most of what a small task costs.
func profile() *seccomp.Seccomp {
	p := seccomp.DefaultProfile()
	p.ArchMap = nil
	var kept []*seccomp.Syscall
	for _, s := range p.Syscalls {
		s.Names = slices.DeleteFunc(s.Names, func(name string) bool { return name == "socket" || slices.Contains(refused, name) })
		if len(s.Names) > 0 {
			kept = append(kept, s)
		}
	}
	for _, family := range families {
		kept = append(kept, &seccomp.Syscall{LinuxSyscall: specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}}}})
	}
	p.Syscalls = kept
	return p
}

// Docker gives the list as a Docker daemon takes it, which fits it to its
// machine.
func Docker() (string, error) {
	data, err := json.Marshal(profile())
	if err != nil {
		return "", fmt.Errorf("seccomp: %w", err)
	}
	return string(data), nil
}

// Profile gives the list for this machine and a task without capabilities.
func Profile() (*specs.LinuxSeccomp, error) {
	body, err := Docker()
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
	p, err := seccomp.LoadProfile(body, spec)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	return p, nil
}
