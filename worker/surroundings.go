package worker

// ScratchMode is the mode of a directory of [Scratch].
func ScratchMode(dir string) uint32 {
	switch dir {
	case "/tmp", "/var/tmp":
		return 0o1777
	case "/root":
		return 0o700
	}
	return 0o755
}

// MaskedPaths are the files and folders that tasks find empty: what the kernel
// says about this machine and its memory, some of it to every user 0, with or
// without capabilities.
func MaskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms",
		"/proc/kmsg", "/proc/interrupts", "/proc/cmdline", "/proc/modules", "/proc/iomem", "/proc/ioports",
		"/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/mtrr", "/proc/pagetypeinfo", "/proc/pressure",
		"/proc/slabinfo", "/proc/vmallocinfo", "/sys"}
}

// OOMScore is a task's oom_score_adj: where this machine runs out of memory, a
// task is killed before anything else.
const OOMScore = 500

// Rlimit is a limit on each process, by the name that setrlimit(2) has for it
// without RLIMIT_, in lower case.
type Rlimit struct {
	Name       string
	Soft, Hard uint64
}

// Rlimits are the limits on each process of a task. The kernel counts signals
// that wait, and bytes in message queues, for a user and not for a container.
func Rlimits() []Rlimit {
	return []Rlimit{{Name: "core"}, {"nofile", 1024, 4096}, {"sigpending", 1024, 1024}, {Name: "msgqueue"}}
}

// ReadonlyPaths are those below which nothing can be written.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
