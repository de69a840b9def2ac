package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/kofarm/kofarm/worker"
)

// keepSnapshots is how long an image's snapshots are kept that are not used.
const keepSnapshots = 7 * 24 * time.Hour

const (
	dayFormat   = "20060102"
	fifosPrefix = "fifos-"
)

// nameOf is the id of a run's container, snapshot and control group.
func nameOf(run string, task int64) string { return fmt.Sprintf("kofarm-%s-%d", run, task) }

// containerID is what nameOf gives: a container that says it is a killed run's may
// have another's name, such as one of a control group of the machine's own.
var containerID = regexp.MustCompile(`^kofarm-[a-z0-9]{16}-[0-9]+$`)

// remove removes a container, whatever it is doing, with what containerd has
// forgotten of it, and its root file system. Where that fails, it is tried again
// later.
func (r *Runner) remove(ctx context.Context, id string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	err := r.removeContainer(ctx, id)
	if err == nil && containerID.MatchString(id) {
		err = worker.EndCgroup(id)
	}
	if err == nil {
		err = ignoreAbsent(r.snapshots.Remove(ctx, id))
	}
	if err == nil {
		return nil
	}
	r.mu.Lock()
	r.left = append(r.left, id)
	r.mu.Unlock()
	return fmt.Errorf("removing the container: %w", err)
}

func (r *Runner) removeContainer(ctx context.Context, id string) error {
	c, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		return ignoreAbsent(err)
	}
	process, err := c.Task(ctx, nil)
	if err == nil {
		_, err = process.Delete(ctx, client.WithProcessKill)
	}
	if err := ignoreAbsent(err); err != nil {
		return err
	}
	return ignoreAbsent(c.Delete(ctx))
}

func ignoreAbsent(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
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

// sweep removes what killed runs have left: containers, their file systems,
// leases, FIFOs. Of snapshots it removes those that nobody uses.
func (r *Runner) sweep(ctx context.Context, dir string) error {
	ctx, cancel := r.call(ctx)
	defer cancel()
	return errors.Join(r.sweepContainers(ctx), r.sweepLeases(ctx), r.sweepSnapshots(ctx), r.sweepFIFOs(dir))
}

func (r *Runner) ofStore() string {
	return fmt.Sprintf("labels.%q==%s", worker.StoreLabel, r.claim.Store)
}

func (r *Runner) sweepContainers(ctx context.Context) error {
	list, err := r.client.ContainerService().List(ctx, r.ofStore())
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	var errs []error
	for _, c := range list {
		if r.claim.Dead(c.Labels[worker.RunLabel]) {
			errs = append(errs, r.remove(ctx, c.ID))
		}
	}
	return errors.Join(errs...)
}

func (r *Runner) sweepLeases(ctx context.Context) error {
	list, err := r.client.LeasesService().List(ctx, r.ofStore())
	if err != nil {
		return fmt.Errorf("listing leases: %w", err)
	}
	var errs []error
	for _, l := range list {
		if r.claim.Dead(l.Labels[worker.RunLabel]) {
			errs = append(errs, ignoreAbsent(r.client.LeasesService().Delete(ctx, l)))
		}
	}
	return errors.Join(errs...)
}

// sweepSnapshots removes the views of this store's killed runs, and images'
// layers of any store, which share them, that were not used for a week: from the
// top, as one with another on it cannot go.
func (r *Runner) sweepSnapshots(ctx context.Context) error {
	oldest := time.Now().Add(-keepSnapshots).UTC().Format(dayFormat)
	var names []string
	err := r.snapshots.Walk(ctx, func(_ context.Context, s snapshots.Info) error {
		used, layer := s.Labels[worker.UsedLabel]
		if (layer && used < oldest) || (!layer && s.Labels[worker.StoreLabel] == r.claim.Store && r.claim.Dead(s.Labels[worker.RunLabel])) {
			names = append(names, s.Name)
		}
		return nil
	}, r.ofStore(), fmt.Sprintf("labels.%q", worker.UsedLabel))
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	for len(names) > 0 {
		var stay []string
		var errs []error
		for _, n := range names {
			if err := ignoreAbsent(r.snapshots.Remove(ctx, n)); err != nil {
				stay = append(stay, n)
				if !errdefs.IsFailedPrecondition(err) {
					errs = append(errs, fmt.Errorf("removing snapshot %s: %w", n, err))
				}
			}
		}
		if len(stay) == len(names) {
			return errors.Join(errs...)
		}
		names = stay
	}
	return nil
}

func (r *Runner) sweepFIFOs(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, fifosPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range found {
		if r.claim.Dead(strings.TrimPrefix(filepath.Base(d), fifosPrefix)) {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	return errors.Join(errs...)
}
