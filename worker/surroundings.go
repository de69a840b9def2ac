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

// MaskedPaths are the files and folders that tasks find empty.
func MaskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms",
		"/proc/kmsg", "/proc/interrupts", "/proc/cmdline", "/proc/modules", "/sys/firmware"}
}

// ReadonlyPaths are those below which nothing can be written.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
