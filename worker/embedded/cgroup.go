package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"github.com/kofarm/kofarm/worker"
)

// groups makes a cgroup for each task below one parent that is this store's.
// A nil *groups makes none: an ordinary user has no right to.
type groups struct{ parent string }

// openGroups gives nil where cgroups cannot be made.
func openGroups(dir string) *groups {
	if os.Geteuid() != 0 {
		return nil
	}
	g := &groups{parent: "/" + cgroupName(dir)}
	probe, err := g.manager("probe", worker.Limits{})
	if err != nil {
		return nil
	}
	if err := probe.Apply(-1); err != nil { // makes the folders, moves nobody
		return nil
	}
	_ = probe.Destroy()
	return g
}

func (g *groups) manager(name string, limits worker.Limits) (cgroups.Manager, error) {
	return manager.New(&cgroups.Cgroup{Path: g.parent + "/" + name, Resources: resources(limits)})
}

func resources(limits worker.Limits) *cgroups.Resources {
	res := &cgroups.Resources{Memory: limits.Memory, SkipDevices: true}
	if limits.Memory > 0 {
		res.MemorySwap = limits.Memory
	}
	if limits.Processes > 0 {
		res.PidsLimit = &limits.Processes
	}
	return res
}

// create makes a cgroup and moves the process into it.
func (g *groups) create(name string, pid int, limits worker.Limits) (*group, error) {
	if g == nil {
		return nil, nil
	}
	m, err := g.manager(name, limits)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	if err := m.Apply(pid); err != nil {
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
func (g *groups) sweep() {
	if g == nil {
		return
	}
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(pattern + g.parent + "/*-*")
		dirs = append(dirs, found...)
	}
	for _, d := range dirs {
		if strings.Count(strings.TrimPrefix(d, "/sys/fs/cgroup"), "/") <= 4 {
			_ = os.Remove(d)
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
	for range 50 { // the last process may be a moment in leaving
		if err = g.m.Destroy(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return peak, killed
}
