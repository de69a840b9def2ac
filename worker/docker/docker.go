// Package docker runs tasks in containers of a Docker daemon.
//
// A task's image goes to the daemon layer by layer: the Runner offers it on
// loopback by the registry protocol, and the daemon pulls the layers that it
// lacks. A daemon that does not reach this machine's loopback (rootless, in a
// virtual machine, elsewhere) is sent them, without those that it has below.
//
//	Runner ──registry on loopback──▶ daemon: image by digest
//	   │ ──create, attach, start───▶ container ──stdout, stderr: one stream──▶ Runner
//	   └ ──inspect, remove─────────▶
//
// Containers carry the labels of package worker. Those that a run has left which
// was killed are removed by the next Open on the same folder. Images, which all
// share, are tagged kofarm:<digest>-<day>, and removed when they were not used for
// a week.
//
// What a container has used is gone when it has ended, so that it must be looked
// at before, and only root on the daemon's machine can look well: whether a
// scratch file system was full ([worker.Result.DiskFull]) is known there only, and
// the peak of memory use, which is read every 20 ms there, is sampled by the
// daemon every second elsewhere.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sync/singleflight"

	"github.com/kofarm/kofarm/worker"
)

const (
	// answerTime is how long the daemon may take for its first answer.
	answerTime = 10 * time.Second
	// callTime is how long it may take for anything that is not the task's own
	// doing, on a machine that is busy.
	callTime = 2 * time.Minute
)

// Config says which daemon to use.
type Config struct {
	// Host is the daemon's address: unix:///path or tcp://host:port. Empty: that
	// of DOCKER_HOST, else of the Docker context that DOCKER_CONTEXT or the
	// Docker configuration names, else the usual socket.
	Host string
	// TLS is for a tcp address. The zero value: as DOCKER_TLS_VERIFY and
	// DOCKER_CERT_PATH say.
	TLS TLS
	// Dir is a folder for the marks of who owns what.
	Dir string
	Log *slog.Logger
}

// Runner runs tasks in containers of one daemon. Open makes one.
type Runner struct {
	client   *client.Client
	claim    *worker.Claim
	registry *registry
	log      *slog.Logger
	day      string // of Open
	bringing singleflight.Group
	sends    atomic.Bool  // the daemon does not reach the registry
	sent     counter      // bytes of images that were sent
	tasks    atomic.Int64 // counted for their containers' names

	mu   sync.Mutex
	left []string // ids of containers that could not be removed
}

var _ worker.Runner = (*Runner)(nil)

// Open connects to a daemon and removes what killed runs have left there. It
// fails where the daemon does not answer. Close releases the Runner.
func Open(ctx context.Context, cfg Config) (_ *Runner, err error) {
	c, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	r := &Runner{client: c, log: cfg.Log, day: time.Now().UTC().Format(dayFormat)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	if err := r.Ping(ctx); err != nil {
		return nil, err
	}
	if r.claim, err = worker.NewClaim(cfg.Dir); err != nil {
		return nil, fmt.Errorf("preparing Docker: %w", err)
	}
	if r.registry, err = newRegistry(r.claim.Run); err != nil {
		return nil, err
	}
	if err := r.sweep(ctx); err != nil {
		r.log.Warn("what an earlier run has left in Docker cannot be removed", "err", err)
	}
	return r, nil
}

// Ping fails where the daemon does not answer.
func (r *Runner) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	p, err := r.client.Ping(ctx)
	if err != nil {
		return fmt.Errorf("the Docker daemon at %s: %w", r.client.DaemonHost(), err)
	}
	if p.OSType != "" && p.OSType != "linux" {
		return fmt.Errorf("the Docker daemon at %s runs containers of %s, not of Linux", r.client.DaemonHost(), p.OSType)
	}
	return nil
}

// Capacity asks what the daemon's machine has.
func (r *Runner) Capacity(ctx context.Context) (worker.Capacity, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	info, err := r.client.Info(ctx)
	if err != nil {
		return worker.Capacity{}, fmt.Errorf("asking what the Docker daemon's machine has: %w", err)
	}
	id := info.ID + " " + info.DockerRootDir // daemons of one machine may share their ID
	return worker.Capacity{ID: id, Cores: info.NCPU, Memory: info.MemTotal}, nil
}

// Close releases the Runner. No task may be running.
func (r *Runner) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	return errors.Join(lost(r.removeLeft(ctx)), r.release())
}

func (r *Runner) release() error {
	var errs []error
	if r.registry != nil {
		errs = append(errs, r.registry.close())
	}
	if r.claim != nil {
		errs = append(errs, r.claim.Close())
	}
	return errors.Join(append(errs, r.client.Close())...)
}

// Run implements [worker.Runner].
func (r *Runner) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	_ = r.removeLeft(ctx)
	image, err := r.ensure(ctx, task.Image)
	if err != nil {
		return worker.Result{}, fmt.Errorf("%s: %w", task.Name, lost(err))
	}
	result, err := r.run(ctx, task, image)
	if err != nil {
		return result, fmt.Errorf("running %s: %w", task.Name, lost(err))
	}
	return result, ctx.Err()
}

// run makes a container, sees it through and removes it. What makes and starts
// it does not end with ctx: the daemon would go on, and nobody would know.
func (r *Runner) run(ctx context.Context, task worker.Task, image string) (_ worker.Result, err error) {
	name := fmt.Sprintf("kofarm-%s-%d", r.claim.Run, r.tasks.Add(1))
	steady := context.WithoutCancel(ctx)
	config, host, err := r.describe(task, image)
	if err != nil {
		return worker.Result{}, err
	}
	id := name // until the daemon has given one
	defer func() { err = errors.Join(err, r.remove(steady, id)) }()
	call, cancel := context.WithTimeout(steady, callTime)
	defer cancel()
	created, err := r.client.ContainerCreate(call, config, host, nil, nil, name)
	if err != nil {
		return worker.Result{}, fmt.Errorf("making the container: %w", err)
	}
	id = created.ID
	streams, err := r.client.ContainerAttach(call, id, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return worker.Result{}, fmt.Errorf("attaching to the container: %w", err)
	}
	defer streams.Close()
	if err := ctx.Err(); err != nil {
		return worker.Result{}, err
	}
	return r.see(ctx, task, id, streams.Reader)
}

// see starts the container, when it is the task's turn, and waits for its end.
func (r *Runner) see(ctx context.Context, task worker.Task, id string, streams io.Reader) (worker.Result, error) {
	steady, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	exited, failed := r.client.ContainerWait(steady, id, container.WaitConditionNextExit)
	watch, live := worker.NewWatch(ctx)
	defer watch.Stop()
	copied := make(chan error, 1)
	go func() {
		_, err := stdcopy.StdCopy(watch.Sink(task.Output, task.Limits.Output), watch.Sink(task.Log, task.Limits.Log), streams)
		copied <- err
	}()
	ended, err := task.Begin(live)
	if err != nil {
		return watch.Outcome(ctx, worker.Result{}, err)
	}
	defer ended()
	probe, err := r.start(steady, id)
	defer func() { probe.Close() }()
	if err != nil {
		return worker.Result{}, fmt.Errorf("starting the container: %w", err)
	}
	peak := r.peakOf(steady, id)
	defer peak()
	defer watch.Deadline(task.Limits.Timeout)()
	if err := r.await(live, steady, id, exited, failed); err != nil {
		return worker.Result{}, err
	}
	ended()
	full, most := probe.Full(), peak()
	if err := drained(copied); err != nil {
		return worker.Result{}, err
	}
	result, err := r.result(steady, id, live.Err() == nil, task.Limits.Memory > 0 && most >= task.Limits.Memory-batch)
	result.DiskFull, result.MemoryPeak = full, most
	return watch.Outcome(ctx, result, err)
}

// start starts the container, and meanwhile looks for its scratch file systems.
func (r *Runner) start(ctx context.Context, id string) (worker.ScratchProbe, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	found := r.lookFor(id)
	err := r.client.ContainerStart(ctx, id, container.StartOptions{})
	return found(), err
}

// await waits until the container has ended, which it does when live ends.
func (r *Runner) await(live, steady context.Context, id string, exited <-chan container.WaitResponse, failed <-chan error) error {
	done := live.Done()
	var late <-chan time.Time
	for {
		select {
		case <-exited:
			return nil
		case err := <-failed:
			return fmt.Errorf("waiting for the container: %w", cut(err))
		case <-late:
			return errors.New("the container does not end")
		case <-done:
			done, late = nil, time.After(callTime)
			call, cancel := context.WithTimeout(steady, callTime)
			err := r.client.ContainerKill(call, id, "KILL")
			cancel()
			if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) { // it has ended
				return fmt.Errorf("ending the container: %w", err)
			}
		}
	}
}

// drained waits for the rest of the streams, which end soon after the container.
func drained(copied <-chan error) error {
	select {
	case err := <-copied:
		if err != nil {
			return fmt.Errorf("reading the container's output: %w", cut(err))
		}
		return nil
	case <-time.After(callTime):
		return errors.New("the container's output does not end")
	}
}

// result asks the daemon how the container has ended. That nothing here has ended
// it is itself, that its memory was used up is full.
func (r *Runner) result(ctx context.Context, id string, itself, full bool) (worker.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	info, err := r.client.ContainerInspect(ctx, id)
	killed := err == nil && itself && info.State.ExitCode == killedCode
	if killed && !full {
		info, err = r.awaitOOM(ctx, info)
	}
	if err != nil {
		return worker.Result{}, fmt.Errorf("asking how the container has ended: %w", err)
	}
	s := info.State
	oom := s.OOMKilled || killed && full // a busy daemon may never hear of it
	result := worker.Result{Ending: worker.Exited, ExitCode: s.ExitCode, Duration: between(s.StartedAt, s.FinishedAt), MemoryFull: oom}
	if oom && s.ExitCode != 0 {
		result.Ending = worker.OutOfMemory
	}
	if s.Error != "" {
		return result, fmt.Errorf("the container: %s", s.Error)
	}
	return result, nil
}

const (
	// killedCode is the exit status of a container whose first process was
	// killed: by the kernel, as nothing in it can do that.
	killedCode = 128 + 9
	// batch is how much less than its limit a container's memory may be when the
	// kernel refuses it more, in bytes: it counts 64 pages at a time.
	batch = 64 * 4096
	// oomTime is how long the daemon may take to hear why.
	oomTime = 3 * time.Second
)

// awaitOOM asks again until the daemon knows that a container was out of memory:
// it hears of that and of the end one by one, in either order.
func (r *Runner) awaitOOM(ctx context.Context, info container.InspectResponse) (container.InspectResponse, error) {
	var err error
	for end := time.Now().Add(oomTime); err == nil && !info.State.OOMKilled && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		info, err = r.client.ContainerInspect(ctx, info.ID)
	}
	return info, err
}

// between is the time between two of the daemon's times, at least 1 ns.
func between(start, end string) time.Duration {
	a, errA := time.Parse(time.RFC3339Nano, start)
	b, errB := time.Parse(time.RFC3339Nano, end)
	if errA != nil || errB != nil {
		return 1
	}
	return max(b.Sub(a), 1)
}

// remove removes a container by its id, whatever it is doing, with what the
// daemon has forgotten of it. Where that fails, it is tried again later.
func (r *Runner) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := r.client.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if errdefs.IsNotFound(err) {
		err = nil
	}
	if err == nil && r.looks() {
		err = worker.EndCgroup(groups(id)...)
	}
	if err == nil {
		return nil
	}
	r.mu.Lock()
	r.left = append(r.left, id)
	r.mu.Unlock()
	return fmt.Errorf("removing the container: %w", err)
}

// removeLeft tries again to remove containers.
func (r *Runner) removeLeft(ctx context.Context) error {
	r.mu.Lock()
	ids := r.left
	r.left = nil
	r.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, r.remove(ctx, id))
	}
	return errors.Join(errs...)
}

// sweep removes the containers of killed runs, and images that nobody uses.
func (r *Runner) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list, err := r.client.ContainerList(ctx, container.ListOptions{All: true,
		Filters: filters.NewArgs(filters.Arg("label", worker.StoreLabel+"="+r.claim.Store))})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	var errs []error
	for _, c := range list {
		if r.claim.Dead(c.Labels[worker.RunLabel]) {
			errs = append(errs, r.remove(ctx, c.ID))
		}
	}
	return errors.Join(append(errs, r.sweepImages(ctx))...)
}
