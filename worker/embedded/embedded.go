// Package embedded runs tasks in containers without a daemon, on runc's
// libcontainer.
//
// A task's container is set up by a process of its own, the stage: kofarm
// executed again in a new user and mount namespace. The stage mounts the
// overlay of the unpacked layers where only it can see it, starts the
// container from there and waits for it. So there is one way for root and for
// an ordinary user, and no mount exists outside the stage's namespace: when the
// processes are gone, whatever ended them, the mounts are gone too.
//
//	Runner ──config, go──▶ stage (user+mount namespace, overlay) ──▶ container init ──▶ command
//	   ▲                     │
//	   └──ready, status──────┘        stdout, stderr: pipes straight from the command
//
// The stage's end of the config pipe stays open: when it closes, because the
// Runner wants the task to end or because kofarm itself has died, the stage
// kills the container and leaves.
//
// Root also gets a cgroup for each task, with limits on memory and processes.
// An ordinary user's limits are rlimits, the scratch file systems' sizes and
// the deadline.
package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kofarm/kofarm/worker"
)

// killGrace is how long a stage may take to end its container before it is
// killed itself.
const killGrace = 10 * time.Second

// Runner runs tasks in containers of its own. Open makes one.
type Runner struct {
	layers *layers
	groups *groups // nil without a cgroup
	lock   *os.File
}

var _ worker.Runner = (*Runner)(nil)

// Open makes a Runner that keeps unpacked layers and run-time state in dir. It
// removes what an earlier run that was killed left there, unless another one is
// still alive. It warns where root cannot make cgroups. Close releases it.
func Open(dir string, log *slog.Logger) (*Runner, error) {
	for _, d := range []string{layersDir(dir), emptyDir(dir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("preparing the embedded runtime: %w", err)
		}
	}
	lock, alone, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("locking the embedded runtime's folder %s: %w", dir, err)
	}
	r := &Runner{layers: newLayers(dir), lock: lock}
	if alone {
		r.layers.sweep()
		groupsOf(dir).sweep()
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", lock.Name(), err), lock.Close())
	}
	// With the lock, as who closes a runner and is alone removes the cgroups' parent.
	if r.groups, err = openGroups(dir); err != nil {
		log.Warn("tasks run without a cgroup: each process's data is limited, not a task's memory", "err", err)
	}
	return r, nil
}

// Close releases the runner's folder. No task may be running.
func (r *Runner) Close() error {
	if syscall.Flock(int(r.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil { // nobody else is here
		r.groups.remove()
	}
	return r.lock.Close()
}

// Limited reports whether tasks get a cgroup with memory and process limits.
func (r *Runner) Limited() bool { return r.groups != nil }

// lockDir takes dir's lock, and says whether nobody else holds it.
func lockDir(dir string) (f *os.File, alone bool, err error) {
	f, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, false, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	return f, err == nil, nil
}

// Run implements [worker.Runner].
func (r *Runner) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	dirs, err := r.layers.unpacked(ctx, task.Image)
	if err != nil {
		return worker.Result{}, fmt.Errorf("%s: %w", task.Name, err)
	}
	result, err := r.run(ctx, task, dirs)
	if err != nil {
		return result, fmt.Errorf("running %s: %w", task.Name, err)
	}
	return result, ctx.Err()
}

// run starts a stage and sees it through.
func (r *Runner) run(ctx context.Context, task worker.Task, layerDirs []string) (worker.Result, error) {
	s, err := r.start(task, layerDirs)
	if err != nil {
		return worker.Result{}, err
	}
	watch, live := worker.NewWatch(ctx)
	defer watch.Stop()
	go func() {
		<-live.Done()
		s.end()
	}()

	var copies sync.WaitGroup
	var outErr, logErr error
	copies.Go(func() { outErr = drain(watch.Sink(task.Output, task.Limits.Output), s.stdout) })
	copies.Go(func() { logErr = drain(watch.Sink(task.Log, task.Limits.Log), s.stderr) })
	status, err := s.see(live, task, watch)
	watch.Stop()
	err = errors.Join(err, s.leave())
	copies.Wait()
	result := worker.Result{Ending: worker.Exited, ExitCode: status.ExitCode, DiskFull: status.DiskFull,
		Duration: status.Duration}
	result.MemoryPeak, result.MemoryFull = s.group.finish()
	if result.MemoryFull && (err != nil || status.ExitCode != 0) {
		result.Ending, err = worker.OutOfMemory, nil
	}
	return watch.Outcome(ctx, result, errors.Join(err, outErr, logErr))
}

// drain copies a stream of the task to its end.
func drain(to io.Writer, from io.ReadCloser) error {
	defer from.Close()
	_, err := io.Copy(to, from)
	return err
}

// running is a started stage.
type running struct {
	cmd            *exec.Cmd
	control        *os.File // its closing ends the task
	status         *json.Decoder
	statusPipe     *os.File
	stdout, stderr *os.File
	group          *group
	closeControl   sync.Once
	kill           *time.Timer // set once control is closed
}

// end asks the stage to end, and kills it if that takes too long.
func (s *running) end() {
	s.closeControl.Do(func() {
		s.control.Close()
		s.kill = time.AfterFunc(killGrace, func() { _ = s.cmd.Process.Kill() })
	})
}

// see sees the container through: when it is ready it waits for the task's turn,
// and then for the command's end. It stays, until leave has been called.
func (s *running) see(live context.Context, task worker.Task, watch *worker.Watch) (stageStatus, error) {
	if status, err := s.hear(); err != nil {
		return status, err
	}
	ended, err := task.Begin(live)
	if err != nil {
		return stageStatus{}, err
	}
	defer ended()
	defer watch.Deadline(task.Limits.Timeout)()
	if err := json.NewEncoder(s.control).Encode(stageGo{}); err != nil {
		return stageStatus{}, fmt.Errorf("starting the command: %w", err)
	}
	return s.hear()
}

// hear gives what the stage says next.
func (s *running) hear() (stageStatus, error) {
	var status stageStatus
	if err := s.status.Decode(&status); err != nil {
		return status, fmt.Errorf("the container's supervisor said nothing: %w", err)
	}
	if status.Err != "" {
		return status, errors.New(status.Err)
	}
	return status, nil
}

// leave ends the container, if it has not ended, and waits for the stage. The
// error is why that did not go well.
func (s *running) leave() error {
	s.end()
	var last stageStatus
	err := s.status.Decode(&last)
	s.statusPipe.Close()
	if werr := s.cmd.Wait(); werr != nil {
		err = fmt.Errorf("the container's supervisor ended early: %w", werr)
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	s.kill.Stop()
	if last.Err != "" {
		err = errors.New(last.Err)
	}
	return err
}

// maxStatus bounds the bytes of a stage's messages.
const maxStatus = 64 << 10

// start starts a stage for the task: four pipes, a cgroup, the config.
func (r *Runner) start(task worker.Task, layerDirs []string) (*running, error) {
	var p pipes
	defer p.closeTheirs()
	configR, configW := p.pipe(false)
	statusR, statusW := p.pipe(true)
	outR, outW := p.pipe(true)
	errR, errW := p.pipe(true)
	if p.err != nil {
		return nil, p.closeAll(fmt.Errorf("making pipes: %w", p.err))
	}
	cmd := exec.Command("/proc/self/exe", stageArg)
	cmd.Args[0] = "kofarm"
	cmd.Env = []string{"GOMAXPROCS=2"} // it has little to do, and each thread counts
	cmd.Dir = r.layers.dir
	cmd.Stdout, cmd.Stderr = outW, errW
	cmd.ExtraFiles = []*os.File{configR, statusW}
	cmd.SysProcAttr = stageAttr()
	if err := cmd.Start(); err != nil {
		return nil, p.closeAll(fmt.Errorf("starting the container's supervisor: %w%s", err, hintUserNamespace(err)))
	}
	s := &running{cmd: cmd, control: configW, statusPipe: statusR, stdout: outR, stderr: errR,
		status: json.NewDecoder(io.LimitReader(statusR, maxStatus))}
	var err error
	s.group, err = r.groups.create(cmd.Process.Pid, task.Limits)
	if err == nil {
		err = json.NewEncoder(configW).Encode(stageConfig{
			Name: task.Name, Layers: layerDirs, Empty: emptyDir(".."), Args: task.Args, Env: task.Env,
			Limits: task.Limits, Cgroup: s.group != nil,
		})
	}
	if err != nil {
		werr := s.leave()
		s.group.finish()
		return nil, errors.Join(fmt.Errorf("preparing the container: %w", err), werr, outR.Close(), errR.Close())
	}
	return s, nil
}

func hintUserNamespace(err error) string {
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EACCES) {
		return " (no user namespace can be made: not in a chroot, nor where /proc/sys/user/max_user_namespaces or kernel.unprivileged_userns_clone forbid it)"
	}
	return ""
}

// pipes makes pipes and remembers which ends are the child's.
type pipes struct {
	ours, theirs []*os.File
	err          error
}

// pipe makes a pipe; weRead says whose the read end is.
func (p *pipes) pipe(weRead bool) (r, w *os.File) {
	if p.err != nil {
		return nil, nil
	}
	r, w, p.err = os.Pipe()
	if p.err != nil {
		return nil, nil
	}
	if weRead {
		p.ours, p.theirs = append(p.ours, r), append(p.theirs, w)
	} else {
		p.ours, p.theirs = append(p.ours, w), append(p.theirs, r)
	}
	return r, w
}

func (p *pipes) closeTheirs() {
	for _, f := range p.theirs {
		f.Close()
	}
}

func (p *pipes) closeAll(err error) error {
	for _, f := range p.ours {
		f.Close()
	}
	return err
}

// stageAttr puts the stage into a user namespace that knows one user, its
// root, and a mount namespace.
func stageAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		GidMappingsEnableSetgroups: false,
		Setsid:                     true,
	}
}

func layersDir(dir string) string { return filepath.Join(dir, "layers") }
func emptyDir(dir string) string  { return filepath.Join(dir, "empty") }

// cgroupName makes a name for dir's cgroups that another store does not use.
func cgroupName(dir string) string {
	return "kofarm-" + strings.Trim(hashPath(dir), "=")
}
