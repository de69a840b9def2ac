// Package containerd runs tasks in containers of a containerd, through its own
// interface, in a namespace of its own.
//
// An image's layers that containerd lacks are written to its content store,
// under a lease that lasts as long as the Runner, and unpacked by a snapshotter.
// The snapshots are kept for the next run; a task gets a read-only view of them.
// Its OCI specification is the Runner's own, so nothing is added to what package
// worker promises.
//
//	Runner ──missing layers──▶ content store ──▶ snapshots ──view──▶ container
//	   ▲                                                                │
//	   └──────────────── stdout, stderr: FIFOs in Config.Dir ───────────┘
//
// All that a Runner makes there carries the labels of package worker. What a run
// that was killed has left is removed by the next Open. containerd must be on
// this machine, and the user must be root.
package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kofarm/kofarm/worker"
)

const (
	// Namespace is where all is kept.
	Namespace = "kofarm"
	// defaultAddress is where distributions have containerd's socket.
	defaultAddress = "/run/containerd/containerd.sock"
	snapshotter    = "overlayfs"
	runtime        = "io.containerd.runc.v2"

	// answerTime is how long containerd may take for its first answer.
	answerTime = 10 * time.Second
	// callTime is how long it may take for anything that is not the task's own
	// doing, on a machine that is busy.
	callTime = 2 * time.Minute
	// leaseTime ends the lease of a run that was killed and has no successor.
	leaseTime = 7 * 24 * time.Hour
)

// Config says which containerd to use.
type Config struct {
	// Address is its socket. Empty: CONTAINERD_ADDRESS, else the usual one.
	Address string
	// Dir is a folder for the marks of who owns what, and for FIFOs.
	Dir string
	Log *slog.Logger
}

// Socket gives the path of the socket that Open would use.
func (cfg Config) Socket() string {
	return strings.TrimPrefix(cmp.Or(cfg.Address, os.Getenv("CONTAINERD_ADDRESS"), defaultAddress), "unix://")
}

// Runner runs tasks in one containerd. Open makes one.
type Runner struct {
	client    *client.Client
	address   string
	claim     *worker.Claim
	snapshots snapshots.Snapshotter
	lease     leases.Lease
	fifos     string
	day       string // of Open
	unpacking singleflight.Group
	ready     sync.Map     // chain IDs of snapshots that are known to be there
	tasks     atomic.Int64 // counted for their containers' names

	mu   sync.Mutex
	left []string // ids of containers that could not be removed
}

var _ worker.Runner = (*Runner)(nil)

// Open connects to containerd and removes what killed runs have left there. It
// fails where containerd does not answer. Close releases the Runner.
func Open(ctx context.Context, cfg Config) (_ *Runner, err error) {
	address := cfg.Socket()
	c, err := connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	r := &Runner{client: c, address: address, snapshots: c.SnapshotService(snapshotter), day: time.Now().UTC().Format(dayFormat)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.release())
		}
	}()
	if r.claim, err = worker.NewClaim(cfg.Dir); err != nil {
		return nil, fmt.Errorf("preparing containerd: %w", err)
	}
	if r.fifos, err = filepath.Abs(filepath.Join(cfg.Dir, fifosPrefix+r.claim.Run)); err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, Namespace)
	if err := r.sweep(ctx, cfg.Dir); err != nil {
		cfg.Log.Warn("what an earlier run has left in containerd cannot be removed", "err", err)
	}
	r.lease, err = c.LeasesService().Create(ctx, leases.WithID("kofarm-"+r.claim.Run), leases.WithLabels(r.labels()),
		leases.WithExpiration(leaseTime))
	if err != nil {
		return nil, fmt.Errorf("leasing from containerd: %w", err)
	}
	return r, nil
}

// connect gives a client of a containerd that has answered.
func connect(ctx context.Context, address string) (*client.Client, error) {
	if err := unix.Access(address, unix.R_OK|unix.W_OK); err != nil {
		return nil, err
	}
	c, err := client.New(address, client.WithDefaultNamespace(Namespace), client.WithTimeout(answerTime))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if _, err := c.Version(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Ping fails where containerd does not answer.
func (r *Runner) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if _, err := r.client.Version(ctx); err != nil {
		return fmt.Errorf("containerd at %s: %w", r.address, err)
	}
	return nil
}

// Capacity tells what containerd's machine has, which is this one.
func (r *Runner) Capacity(ctx context.Context) (worker.Capacity, error) {
	ctx, cancel := r.call(ctx)
	defer cancel()
	server, err := r.client.Server(ctx)
	if err != nil {
		return worker.Capacity{}, fmt.Errorf("asking who containerd is: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return worker.Capacity{}, fmt.Errorf("asking for this machine's memory: %w", err)
	}
	return worker.Capacity{ID: server.UUID, Cores: goruntime.NumCPU(), Memory: int64(info.Totalram) * int64(info.Unit)}, nil
}

func (r *Runner) labels() map[string]string {
	return map[string]string{worker.StoreLabel: r.claim.Store, worker.RunLabel: r.claim.Run}
}

// Close releases the Runner. No task may be running.
func (r *Runner) Close(ctx context.Context) error {
	ctx, cancel := r.call(context.WithoutCancel(ctx))
	defer cancel()
	err := r.removeLeft(ctx)
	if lerr := r.client.LeasesService().Delete(ctx, r.lease); lerr != nil && !errdefs.IsNotFound(lerr) {
		err = errors.Join(err, fmt.Errorf("giving the lease back: %w", lerr))
	}
	return errors.Join(lost(err), r.release())
}

func (r *Runner) release() error {
	var errs []error
	if r.fifos != "" {
		errs = append(errs, os.RemoveAll(r.fifos))
	}
	if r.claim != nil {
		errs = append(errs, r.claim.Close())
	}
	return errors.Join(append(errs, r.client.Close())...)
}

// call is a context for calls that are not the task's own doing.
func (r *Runner) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(ctx, Namespace), callTime)
}

// Run implements [worker.Runner].
func (r *Runner) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	_ = r.removeLeft(ctx)
	chain, err := r.unpacked(ctx, task.Image)
	if err != nil {
		return worker.Result{}, fmt.Errorf("%s: bringing the image into containerd: %w", task.Name, lost(err))
	}
	result, err := r.run(ctx, task, chain)
	if err != nil {
		return result, fmt.Errorf("running %s: %w", task.Name, lost(err))
	}
	return result, ctx.Err()
}

// lost marks errors of a containerd that has gone.
func lost(err error) error {
	if err == nil || errors.Is(err, worker.ErrLost) || (!errdefs.IsUnavailable(err) && status.Code(err) != codes.Unavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", worker.ErrLost, err)
}

// run makes a container, sees it through and removes it. What makes it does not
// end with ctx: containerd would go on, and nobody would know.
func (r *Runner) run(ctx context.Context, task worker.Task, chain string) (_ worker.Result, err error) {
	id := nameOf(r.claim.Run, r.tasks.Add(1))
	spec, err := specification(task, id)
	if err != nil {
		return worker.Result{}, err
	}
	steady := namespaces.WithNamespace(context.WithoutCancel(ctx), Namespace)
	defer func() { err = errors.Join(err, r.remove(steady, id)) }()
	call, cancel := r.call(leases.WithLease(steady, r.lease.ID))
	defer cancel()
	labels := r.labels()
	if _, err := r.snapshots.View(call, id, chain, snapshots.WithLabels(labels)); err != nil {
		r.ready.Clear()
		return worker.Result{}, fmt.Errorf("making the root file system: %w", err)
	}
	container, err := r.client.NewContainer(call, id, client.WithSpec(spec), client.WithSnapshotter(snapshotter),
		client.WithSnapshot(id), client.WithRuntime(runtime, nil), client.WithContainerLabels(labelled(labels, task.Name)))
	if err != nil {
		return worker.Result{}, fmt.Errorf("making the container: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return worker.Result{}, err
	}
	return r.see(ctx, task, container)
}

// maxLabel is containerd's limit on a label's key and value together.
const maxLabel = 4096

func labelled(labels map[string]string, name string) map[string]string {
	if len(name)+len(worker.TaskLabel) <= maxLabel {
		labels[worker.TaskLabel] = name
	}
	return labels
}

// see starts the container's process, when it is the task's turn, and waits for
// its end. Between its making and its start the container is complete, and can be
// looked at.
func (r *Runner) see(ctx context.Context, task worker.Task, container client.Container) (worker.Result, error) {
	watch, live := worker.NewWatch(ctx)
	defer watch.Stop()
	steady, release := context.WithCancel(namespaces.WithNamespace(context.WithoutCancel(ctx), Namespace))
	defer release()
	call, cancel := context.WithTimeout(steady, callTime)
	defer cancel()
	streams := cio.WithStreams(nil, watch.Sink(task.Output, task.Limits.Output), watch.Sink(task.Log, task.Limits.Log))
	process, err := container.NewTask(call, cio.NewCreator(streams, cio.WithFIFODir(r.fifos)))
	if err != nil {
		return worker.Result{}, fmt.Errorf("making the container's process: %w", err)
	}
	defer func() { process.IO().Cancel(); process.IO().Close() }()
	probe := worker.OpenScratch(int(process.Pid()))
	defer probe.Close()
	exited, err := process.Wait(steady)
	if err != nil {
		return worker.Result{}, fmt.Errorf("waiting for the container: %w", err)
	}
	ended, err := task.Begin(live)
	if err != nil {
		return watch.Outcome(ctx, worker.Result{}, err)
	}
	defer ended()
	start := time.Now()
	if err := begin(steady, process); err != nil {
		return worker.Result{}, fmt.Errorf("starting the container: %w", err)
	}
	defer watch.Deadline(task.Limits.Timeout)()
	status, err := await(live, steady, process, exited)
	if err != nil {
		return worker.Result{}, err
	}
	ended()
	result := worker.Result{Ending: worker.Exited, ExitCode: int(status.ExitCode()),
		Duration: max(status.ExitTime().Sub(start), 1), DiskFull: probe.Full()}
	result.MemoryPeak, result.MemoryFull = memory(container.ID())
	if result.MemoryFull && result.ExitCode != 0 {
		result.Ending = worker.OutOfMemory
	}
	return watch.Outcome(ctx, result, drained(process.IO()))
}

// begin starts the process.
func begin(ctx context.Context, process client.Task) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return process.Start(ctx)
}

// await waits until the process has ended, which it does when live ends.
func await(live, steady context.Context, process client.Task, exited <-chan client.ExitStatus) (client.ExitStatus, error) {
	done := live.Done()
	var late <-chan time.Time
	for {
		select {
		case status := <-exited:
			if err := status.Error(); err != nil {
				return status, fmt.Errorf("waiting for the container: %w", err)
			}
			return status, nil
		case <-late:
			return client.ExitStatus{}, errors.New("the container does not end")
		case <-done:
			done, late = nil, time.After(callTime)
			call, cancel := context.WithTimeout(steady, callTime)
			err := process.Kill(call, unix.SIGKILL, client.WithKillAll)
			cancel()
			if err != nil && !errdefs.IsNotFound(err) { // it has ended
				return client.ExitStatus{}, fmt.Errorf("ending the container: %w", err)
			}
		}
	}
}

// drained waits for the rest of the streams, which end soon after the process.
func drained(streams cio.IO) error {
	done := make(chan struct{})
	go func() { streams.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(callTime):
		return errors.New("the container's output does not end")
	}
}
