package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	cgroupsv1 "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/manager"

	"github.com/kofarm/kofarm/worker"
)

// groups makes a cgroup for each task below one parent that is this store's.
// A nil *groups makes none: an ordinary user has no right to.
type groups struct{ parent string }

// groupsOf gives nil to an ordinary user.
func groupsOf(dir string) *groups {
	if os.Geteuid() != 0 {
		return nil
	}
	return &groups{parent: "/" + cgroupName(dir)}
}

// openGroups gives nil to an ordinary user, and an error where root cannot make
// cgroups either.
func openGroups(dir string) (*groups, error) {
	g := groupsOf(dir)
	if g == nil {
		return nil, nil
	}
	probe, err := g.manager(groupName(0), worker.Limits{})
	if err != nil {
		return nil, err
	}
	if err := probe.Apply(-1); err != nil { // makes the folders, moves nobody
		return nil, errors.Join(err, probe.Destroy())
	}
	_ = patiently(probe.Destroy)
	return g, nil
}

// groupName names the cgroup of one of this process's stages.
func groupName(stage int) string { return fmt.Sprintf("%d-%d", os.Getpid(), stage) }

// manager describes a cgroup. Of the hierarchies of cgroup v1 it takes only
// those that have a limit: each costs time.
func (g *groups) manager(name string, limits worker.Limits) (cgroups.Manager, error) {
	c := &cgroups.Cgroup{Path: g.parent + "/" + name, Resources: resources(limits)}
	if cgroups.IsCgroup2UnifiedMode() {
		return manager.New(c)
	}
	paths := map[string]string{}
	for _, hierarchy := range []string{"memory", "pids"} {
		mount, err := cgroups.FindCgroupMountpoint("", hierarchy)
		if err != nil {
			return nil, fmt.Errorf("cgroup hierarchy %s: %w", hierarchy, err)
		}
		paths[hierarchy] = filepath.Join(mount, c.Path)
	}
	return cgroupsv1.NewManager(c, paths)
}

// supervisors is the number of threads that a stage and the container's first
// process before it executes the command have at most, beside the task's.
const supervisors = 24

func resources(limits worker.Limits) *cgroups.Resources {
	res := &cgroups.Resources{Memory: limits.Memory, SkipDevices: true}
	if limits.Memory > 0 {
		res.MemorySwap = limits.Memory
	}
	if limits.Processes > 0 {
		n := limits.Processes + supervisors
		res.PidsLimit = &n
	}
	return res
}

// create makes a cgroup and moves a stage into it.
func (g *groups) create(stage int, limits worker.Limits) (*group, error) {
	if g == nil {
		return nil, nil
	}
	m, err := g.manager(groupName(stage), limits)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	if err := m.Apply(stage); err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup: %w", err), m.Destroy())
	}
	grp := &group{m}
	if err := m.Set(resources(limits)); err != nil {
		return grp, fmt.Errorf("setting the cgroup's limits: %w", err)
	}
	return grp, nil
}

// sweep removes the cgroups that a killed run has left. Those of processes
// which are still alive stay.
func (g *groups) sweep() { g.removeDirs("/*-*") }

// remove removes the parent, where nothing is in it.
func (g *groups) remove() { g.removeDirs("") }

// removeDirs removes folders below the parent, in every hierarchy.
func (g *groups) removeDirs(pattern string) {
	if g == nil {
		return
	}
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(hierarchy + g.parent + pattern)
		for _, d := range found {
			_ = patiently(func() error { return os.Remove(d) }) // refused while anything is in it
		}
	}
}

// group is one task's cgroup. All its methods accept nil.
type group struct{ m cgroups.Manager }

// finish removes the cgroup. It tells the peak of memory use in bytes, and
// whether the kernel killed a process for want of memory.
func (g *group) finish() (peak int64, killed bool) {
	if g == nil {
		return 0, false
	}
	if stats, err := g.m.GetStats(); err == nil {
		peak = int64(stats.MemoryStats.Usage.MaxUsage)
	}
	n, err := g.m.OOMKillCount()
	killed = err == nil && n > 0
	_ = patiently(g.m.Destroy)
	return peak, killed
}

// patiently tries to remove a cgroup for two seconds: the last process may be
// a moment in leaving.
func patiently(remove func() error) (err error) {
	for range 200 {
		if err = remove(); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
