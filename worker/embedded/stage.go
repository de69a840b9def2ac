package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the container's namespaces before Go starts
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/seccomp"
)

// stageArg is the argument that makes kofarm a stage.
const stageArg = "embedded-stage"

// The descriptors that a stage inherits.
const (
	controlFD = 3
	statusFD  = 4
)

// stageConfig is what the Runner tells its stage.
type stageConfig struct {
	Name   string        `json:"name"`
	Layers []string      `json:"layers"` // lowest first, relative to the working directory
	Empty  string        `json:"empty"`  // an empty folder, relative likewise
	Args   []string      `json:"args"`
	Env    []string      `json:"env"`
	Limits worker.Limits `json:"limits"`
	Cgroup bool          `json:"cgroup"`
}

// stageGo lets the stage, which is ready, start the command.
type stageGo struct{}

// stageStatus is what the stage tells its Runner: an empty one when the container
// is ready, one when the command has ended, and after an error no more.
type stageStatus struct {
	ExitCode int           `json:"exitCode"`
	Duration time.Duration `json:"duration"`
	DiskFull bool          `json:"diskFull,omitempty"`
	Err      string        `json:"err,omitempty"`
}

// Reexec must be called first in main, and in TestMain of tests that run
// containers: where this process was started to be a container's stage or its
// first process, Reexec does that work and exits.
func Reexec() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case "init":
		if os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
			libcontainer.Init()
			os.Exit(1)
		}
	case stageArg:
		runStage()
		os.Exit(0)
	}
}

func runStage() {
	logrus.SetOutput(io.Discard) // standard error is the task's log
	status := json.NewEncoder(os.NewFile(statusFD, "status"))
	unix.CloseOnExec(statusFD)
	unix.CloseOnExec(controlFD)
	if err := stage(os.NewFile(controlFD, "control"), status); err != nil {
		_ = status.Encode(stageStatus{Err: err.Error()})
	}
}

// stage sets the container up, lets it run the command, and removes it.
func stage(control io.Reader, status *json.Encoder) (err error) {
	var cfg stageConfig
	dec := json.NewDecoder(control)
	if err := dec.Decode(&cfg); err != nil {
		return fmt.Errorf("reading the task: %w", err)
	}
	rootfs, state, err := mountRoot(cfg)
	if err != nil {
		return err
	}
	config, err := containerConfig(cfg, rootfs)
	if err != nil {
		return err
	}
	c, err := libcontainer.Create(state, "task", config)
	if err != nil {
		return fmt.Errorf("creating the container: %w", err)
	}
	defer func() { err = errors.Join(err, c.Destroy()) }()
	process := &libcontainer.Process{
		Args: cfg.Args, Env: cfg.Env, Cwd: "/", Init: true,
		Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if err := c.Start(process); err != nil {
		return fmt.Errorf("starting the container: %w", err)
	}
	err = status.Encode(stageStatus{})
	if err == nil {
		err = dec.Decode(&stageGo{})
	}
	if err != nil {
		_ = c.Signal(unix.SIGKILL)
		_, _ = process.Wait()
		return fmt.Errorf("waiting for the command's turn: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, control) // until the runner closes it
		_ = c.Signal(unix.SIGKILL)
	}()
	s, err := await(c, process)
	if err != nil {
		return err
	}
	return status.Encode(s)
}

// await lets a container's first process, which is ready, execute the command,
// and waits for its end. What it looks at in the end it has opened before, as a
// short command may be over at once.
func await(c *libcontainer.Container, process *libcontainer.Process) (stageStatus, error) {
	probe := openScratch(process)
	defer probe.Close()
	start := time.Now()
	if err := c.Exec(); err != nil {
		_ = c.Signal(unix.SIGKILL)
		_, _ = process.Wait()
		return stageStatus{}, fmt.Errorf("executing the command: %w", err)
	}
	ps, err := process.Wait()
	s := stageStatus{Duration: time.Since(start), DiskFull: probe.Full()}
	if ps == nil {
		return s, fmt.Errorf("waiting for the container: %w", err)
	}
	s.ExitCode = ps.ExitCode()
	if ws := ps.Sys().(syscall.WaitStatus); ws.Signaled() {
		s.ExitCode = 128 + int(ws.Signal())
	}
	return s, nil
}

// mountRoot mounts the overlay of the layers, and a small file system for the
// container's state, in this process's own mount namespace.
func mountRoot(cfg stageConfig) (rootfs, state string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", "", fmt.Errorf("making the mount namespace private: %w", err)
	}
	empty, err := filepath.Abs(cfg.Empty)
	if err != nil {
		return "", "", err
	}
	layersDir, err := os.Getwd()
	if err != nil {
		return "", "", err
	}
	if err := unix.Mount("kofarm", empty, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,mode=700"); err != nil {
		return "", "", fmt.Errorf("mounting the container's state: %w", err)
	}
	rootfs, state = filepath.Join(empty, "root"), filepath.Join(empty, "state")
	lowest := filepath.Join(empty, "none")
	for _, d := range []string{rootfs, state, lowest} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", "", err
		}
	}
	if err := mountOverlay(layersDir, cfg.Layers, lowest, rootfs); err != nil {
		return "", "", fmt.Errorf("mounting the overlay of %d layers: %w", len(cfg.Layers), err)
	}
	return rootfs, state, protectCgroups()
}

// mountOverlay stacks the layers read-only. Overlayfs wants two folders at
// least, so an empty one lies below. Names are relative, as mount takes one
// page of options.
func mountOverlay(dir string, layers []string, lowest, target string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	var lower []string
	for i := len(layers) - 1; i >= 0; i-- {
		lower = append(lower, layers[i])
	}
	lower = append(lower, lowest)
	options := "userxattr,lowerdir=" + strings.Join(lower, ":")
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("too many layers")
	}
	return unix.Mount("overlay", target, "overlay", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, options)
}

// cgroupDir is where systems have their cgroups, and where libcontainer wants
// to see some.
const cgroupDir = "/sys/fs/cgroup"

// protectCgroups makes the host's cgroups read-only for this namespace: the
// Runner has made the task's, and libcontainer, which takes a refusal for
// "rootless", shall make none.
func protectCgroups() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	err := unix.MountSetattr(unix.AT_FDCWD, cgroupDir, unix.AT_RECURSIVE, &attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted there, or there is no /sys
		err = standInCgroups()
	}
	if err != nil {
		return fmt.Errorf("making %s read-only: %w", cgroupDir, err)
	}
	return nil
}

// standInCgroups mounts a cgroup namespace's own, empty view, read-only: behind
// `ip netns exec`, say, there are no cgroups.
func standInCgroups() error {
	runtime.LockOSThread() // a namespace is a thread's
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	if _, err := os.Stat(cgroupDir); errors.Is(err, fs.ErrNotExist) {
		if err := unix.Mount("kofarm", "/sys", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=1m,mode=755"); err != nil {
			return err
		}
		if err := os.MkdirAll(cgroupDir, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("kofarm", cgroupDir, "cgroup2", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// containerConfig describes the container: all namespaces but the user's own,
// which the stage has made, no capability, a network of nothing but lo.
func containerConfig(cfg stageConfig, rootfs string) (*configs.Config, error) {
	profile, err := seccomp.Profile()
	if err != nil {
		return nil, err
	}
	filter, err := specconv.SetupSeccomp(profile)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	umask, oomScore := uint32(0o022), worker.OOMScore
	return &configs.Config{
		Rootfs:            rootfs,
		Readonlyfs:        true,
		Umask:             &umask,
		Hostname:          worker.Hostname,
		ParentDeathSignal: int(unix.SIGKILL),
		NoNewPrivileges:   true,
		OomScoreAdj:       &oomScore,
		NoNewKeyring:      false,
		Capabilities:      &configs.Capabilities{},
		Namespaces: configs.Namespaces{
			{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWNET},
			{Type: configs.NEWIPC}, {Type: configs.NEWUTS}, {Type: configs.NEWCGROUP},
		},
		Networks:        []*configs.Network{{Type: "loopback"}},
		Mounts:          mounts(cfg.Limits.Disk),
		Devices:         specconv.AllowedDevices,
		MaskPaths:       worker.MaskedPaths(),
		ReadonlyPaths:   worker.ReadonlyPaths(),
		Seccomp:         filter,
		Rlimits:         rlimits(cfg),
		RootlessCgroups: true,
		Cgroups:         &cgroups.Cgroup{Name: "task", Rootless: true, Resources: &cgroups.Resources{}},
	}, nil
}

// minData is the least limit on a process's data: the container's first process
// is Go's run-time system until it executes the command.
const minData = 256 << 20

// rlimits are the same for everyone; without a cgroup they also stand in for
// its limits. RLIMIT_DATA counts private writable memory since Linux 4.7.
// RLIMIT_AS would also count what Go reserves and does not use.
func rlimits(cfg stageConfig) []configs.Rlimit {
	types := map[string]int{"core": unix.RLIMIT_CORE, "nofile": unix.RLIMIT_NOFILE, "sigpending": unix.RLIMIT_SIGPENDING, "msgqueue": unix.RLIMIT_MSGQUEUE}
	var limits []configs.Rlimit
	for _, l := range worker.Rlimits() {
		limits = append(limits, configs.Rlimit{Type: types[l.Name], Soft: l.Soft, Hard: l.Hard})
	}
	if cfg.Cgroup {
		return limits
	}
	if n := uint64(cfg.Limits.Processes); n > 0 {
		n += supervisors
		limits = append(limits, configs.Rlimit{Type: unix.RLIMIT_NPROC, Soft: n, Hard: n})
	}
	if n := uint64(cfg.Limits.Memory); n > 0 {
		n = max(n, minData)
		limits = append(limits, configs.Rlimit{Type: unix.RLIMIT_DATA, Soft: n, Hard: n})
	}
	return limits
}

func mounts(disk int64) []*configs.Mount {
	size := ""
	if disk > 0 {
		size = fmt.Sprintf(",size=%d,nr_inodes=%d", disk, max(disk/4096, 1024))
	}
	ms := []*configs.Mount{
		{Device: "proc", Source: "proc", Destination: "/proc", Flags: unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV},
		{Device: "tmpfs", Source: "tmpfs", Destination: "/dev", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=64k"},
		{Device: "devpts", Source: "devpts", Destination: "/dev/pts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620"},
		{Device: "tmpfs", Source: "shm", Destination: "/dev/shm", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "mode=1777" + size},
	}
	for _, dir := range worker.Scratch() {
		mode := fmt.Sprintf("mode=%o", worker.ScratchMode(dir))
		ms = append(ms, &configs.Mount{Device: "tmpfs", Source: "tmpfs", Destination: dir,
			Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: mode + size})
	}
	return ms
}

func openScratch(p *libcontainer.Process) worker.ScratchProbe {
	pid, err := p.Pid()
	if err != nil {
		return nil
	}
	return worker.OpenScratch(pid)
}
