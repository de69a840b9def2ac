package docker

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/seccomp"
)

// describe describes a task's container. The umask is not among what a daemon
// can be told: runc's is 022 where it is told nothing.
func (r *Runner) describe(task worker.Task, image string) (*container.Config, *container.HostConfig, error) {
	filter, err := seccomp.Docker()
	if err != nil {
		return nil, nil, err
	}
	config := &container.Config{
		Hostname: worker.Hostname, User: "0:0", WorkingDir: "/", Image: image,
		Entrypoint: task.Args[:1], Cmd: task.Args[1:], Env: environment(task.Env),
		AttachStdout: true, AttachStderr: true, NetworkDisabled: true,
		Labels: map[string]string{worker.StoreLabel: r.claim.Store, worker.RunLabel: r.claim.Run, worker.TaskLabel: task.Name},
	}
	no := false
	host := &container.HostConfig{
		ReadonlyRootfs: true, NetworkMode: "none", IpcMode: "private", CgroupnsMode: "private",
		CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges", "seccomp=" + filter},
		LogConfig: container.LogConfig{Type: "none"}, Init: &no,
		DNS: []string{"127.0.0.1"}, DNSSearch: []string{"."}, // not the host's
		Tmpfs: tmpfs(task.Limits.Disk), OomScoreAdj: worker.OOMScore,
		MaskedPaths: worker.MaskedPaths(), ReadonlyPaths: worker.ReadonlyPaths(),
		Resources: resources(task.Limits),
	}
	return config, host, nil
}

// environment is env without what Docker adds: an entry without a = takes a
// variable away.
func environment(env []string) []string {
	env = slices.Clone(env)
	for _, name := range []string{"HOSTNAME", "PATH"} {
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			env = append(env, name)
		}
	}
	return env
}

func tmpfs(disk int64) map[string]string {
	size := ""
	if disk > 0 {
		size = fmt.Sprintf(",size=%d,nr_inodes=%d", disk, max(disk/4096, 1024))
	}
	mounts := map[string]string{"/dev/shm": "noexec,nosuid,nodev,mode=1777" + size} // Docker's own has no limit on files
	for _, dir := range worker.Scratch() {
		mounts[dir] = fmt.Sprintf("exec,nosuid,nodev,mode=%o", worker.ScratchMode(dir)) + size
	}
	return mounts
}

func resources(limits worker.Limits) container.Resources {
	res := container.Resources{
		Memory: limits.Memory, MemorySwap: limits.Memory,
	}
	for _, l := range worker.Rlimits() {
		res.Ulimits = append(res.Ulimits, &units.Ulimit{Name: l.Name, Soft: int64(l.Soft), Hard: int64(l.Hard)})
	}
	if limits.Processes > 0 {
		res.PidsLimit = &limits.Processes
	}
	return res
}

// lookFor looks for the scratch file systems of a container that is being
// started: the daemon has its first process ready, in its cgroup and with its
// mounts, before it lets that execute the command. The function that it gives
// ends the search, and tells what it has found.
func (r *Runner) lookFor(id string) (found func() worker.ScratchProbe) {
	if !r.looks() {
		return func() worker.ScratchProbe { return nil }
	}
	started, result := make(chan struct{}), make(chan worker.ScratchProbe, 1)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for last := false; ; {
			if p := scratchOf(id); p != nil || last {
				result <- p
				return
			}
			select {
			case <-started:
				last = true
			case <-tick.C:
			}
		}
	}()
	return func() worker.ScratchProbe { close(started); return <-result }
}

// looks tells whether the Runner can see containers from outside: on this
// machine, as root.
func (r *Runner) looks() bool { return local(r.client.DaemonHost()) && os.Geteuid() == 0 }

// local tells whether a daemon's address is of this machine.
func local(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "tcp" {
		return err == nil && u.Scheme == "unix"
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || (ip != nil && ip.IsLoopback())
}

// scratchOf opens the scratch file systems of a container by its cgroup's
// processes.
func scratchOf(id string) worker.ScratchProbe {
	for _, pid := range processes(id) {
		if p := worker.OpenScratch(pid); p != nil {
			return p
		}
	}
	return nil
}

// processes lists those of a container, by where daemons put its cgroup with
// either driver and either version of cgroups.
func processes(id string) []int {
	for _, hierarchy := range []string{"", "pids/", "memory/"} {
		for _, group := range groups(id) {
			if pids := worker.CgroupProcesses("/sys/fs/cgroup/" + hierarchy + group); len(pids) > 0 {
				return pids
			}
		}
	}
	return nil
}

// containerID is a container's whole id. Whoever listens on a port of this machine
// may say what it likes.
var containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// groups gives where a container's cgroup is in a hierarchy, with either driver.
func groups(id string) []string {
	if !containerID.MatchString(id) {
		return nil
	}
	return []string{"docker/" + id, "system.slice/docker-" + id + ".scope"}
}
