package workertest

import (
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
)

// refusals are the errors of system calls that are not simply forbidden: EPERM.
var refusals = map[string][]string{
	"clone3":             {"ENOSYS"},          // so that a libc takes clone, whose arguments can be looked at
	"setpriority":        {"EACCES"},          // the kernel's
	"setuid":             {"EPERM", "EINVAL"}, // no such user in a user namespace
	"setgid":             {"EPERM", "EINVAL"},
	"setresuid":          {"EPERM", "EINVAL"},
	"chown":              {"EPERM", "EINVAL"},
	"open_tree_attr":     {"EPERM", "ENOSYS"}, // newer than the runtime, which says so
	"sched_setscheduler": {"EPERM"},
}

// called are the system calls that must have been tried, one of each kind.
var called = strings.Fields(`init_module finit_module delete_module mount umount2 pivot_root chroot fsopen open_tree move_mount
	mount_setattr swapon unshare clone clone3 setns sethostname keyctl add_key request_key bpf perf_event_open userfaultfd
	io_uring_setup io_setup fanotify_init inotify_init1 memfd_secret mq_open kexec_load reboot settimeofday clock_settime
	adjtimex acct syslog name_to_handle_at open_by_handle_at ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp
	setuid setgroups chown prlimit64 setpriority`)

func (s *isolation) systemCalls(t *testing.T) {
	d := s.attack(t, small, attackProgram, "calls")
	if d.Ending != worker.Exited || d.ExitCode != 0 {
		t.Errorf("%s, exit status %d, log %q", d.Ending, d.ExitCode, d.log)
	}
	missing := slices.Clone(called)
	for line := range strings.Lines(d.out) {
		call, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		want := refusals[call]
		if want == nil {
			want = []string{"EPERM"}
		}
		if !slices.Contains(want, got) {
			t.Errorf("%s: %s, want %s", call, got, want)
		}
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == call })
	}
	if len(missing) > 0 {
		t.Errorf("not tried: %q", missing)
	}
}

// foreignCalls makes system calls by the numbers of other kinds of programs,
// where the machine has such, past a list that knows one kind.
func (s *isolation) foreignCalls(t *testing.T) {
	d := s.attack(t, small, attackProgram, "abi")
	for line := range strings.Lines(d.out) {
		kind, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		if got != "SIGSYS" && got != "SIGSEGV" && got != "ENOSYS" && got != "EPERM" { // a kernel may be without such
			t.Errorf("%s: %s", kind, got)
		}
	}
	if d.ExitCode != 0 {
		t.Errorf("exit status %d, log %q", d.ExitCode, d.log)
	}
}

func (s *isolation) devices(t *testing.T) {
	d := s.attack(t, small, attackProgram, "devices")
	for line := range strings.Lines(d.out) {
		switch strings.TrimSpace(strings.TrimPrefix(line, "device ")) {
		case "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts/ptmx":
		default:
			t.Error(line)
		}
	}
	if !strings.Contains(d.out, "device /dev/null\n") {
		t.Errorf("exit status %d, output %q, log %q", d.ExitCode, d.out, d.log)
	}
	s.tried(t, "", append([]string{"nodes"}, writable()...)...)
}

// setuid runs programs with the bits set, of the image and of its own making.
func (s *isolation) setuid(t *testing.T) {
	status := "grep -E '^(Cap|NoNewPrivs)' /proc/self/status"
	plain := s.sh(t, status)
	for _, dir := range []string{"/tmp", "/var/lib/dkms"} {
		own := "cp /bin/busybox " + dir + "/busybox && chmod 6755 " + dir + "/busybox; " + dir + "/busybox "
		if got := s.sh(t, own+status); got != plain {
			t.Errorf("in %s: got\n%swant\n%s", dir, got, plain)
		}
	}
	d := s.attack(t, small, "/usr/bin/setuid", "calls")
	if e := s.attack(t, small, attackProgram, "calls"); d.out != e.out || d.out == "" {
		t.Errorf("with the bits set\n%swithout\n%s", d.out, e.out)
	}
}
