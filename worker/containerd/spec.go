package containerd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/seccomp"
)

// specification describes a task's container: all namespaces, no capability, a
// network of nothing but lo, and a cgroup with the container's id for a name.
func specification(task worker.Task, id string) (*specs.Spec, error) {
	umask, oomScore := uint32(0o022), worker.OOMScore
	spec := &specs.Spec{
		Version:  "1.0.2",
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: worker.Hostname,
		Process: &specs.Process{
			User: specs.User{Umask: &umask}, Args: task.Args, Env: task.Env, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true, OOMScoreAdj: &oomScore,
			Rlimits: rlimits(),
		},
		Mounts: mounts(task.Limits.Disk),
		Linux: &specs.Linux{
			CgroupsPath: "/" + id,
			Resources:   resources(task.Limits),
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: worker.MaskedPaths(), ReadonlyPaths: worker.ReadonlyPaths(),
		},
	}
	var err error
	spec.Linux.Seccomp, err = seccomp.Profile()
	return spec, err
}

func rlimits() (all []specs.POSIXRlimit) {
	for _, l := range worker.Rlimits() {
		all = append(all, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: l.Soft, Hard: l.Hard})
	}
	return all
}

func mounts(disk int64) []specs.Mount {
	var size []string
	if disk > 0 {
		size = []string{fmt.Sprintf("size=%d", disk), fmt.Sprintf("nr_inodes=%d", max(disk/4096, 1024))}
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"nosuid", "noexec", "nodev", "mode=1777"}, size...)},
	}
	for _, dir := range worker.Scratch() {
		mode := fmt.Sprintf("mode=%o", worker.ScratchMode(dir))
		ms = append(ms, specs.Mount{Destination: dir, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "nodev", mode}, size...)})
	}
	return ms
}

func resources(limits worker.Limits) *specs.LinuxResources {
	res := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if limits.Memory > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &limits.Memory, Swap: &limits.Memory}
	}
	if limits.Processes > 0 {
		res.Pids = &specs.LinuxPids{Limit: &limits.Processes}
	}
	return res
}

// memory tells a container's peak of memory use in bytes, 0 if unknown, and
// whether the kernel killed a process of it for want of memory. It is asked
// while the container is still there.
func memory(id string) (peak int64, killed bool) {
	for _, v := range []struct{ dir, peak, events string }{
		{"/sys/fs/cgroup/memory/", "memory.max_usage_in_bytes", "memory.oom_control"},
		{"/sys/fs/cgroup/", "memory.peak", "memory.events"},
	} {
		events, err := os.ReadFile(v.dir + id + "/" + v.events)
		if err != nil {
			continue
		}
		data, _ := os.ReadFile(v.dir + id + "/" + v.peak)
		peak, _ = strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
		return peak, counted(string(events), "oom_kill")
	}
	return 0, false
}

// counted tells whether a file of counters has one that is not zero.
func counted(file, name string) bool {
	for line := range strings.Lines(file) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			return f[1] != "0"
		}
	}
	return false
}
