// Package farm coordinates: it turns a farm file into cells with everything
// pinned, builds those that the store does not hold, checks what came out, and
// writes packages and a report.
//
//	Prepare: farm file ──▶ Plan (cells, keys)        reads indexes and sources, builds nothing
//	Build:   Plan ──▶ Results                        cache · image · run · check, in parallel
//	Collect: Results ──▶ dist/                       packages, logs, results.json
package farm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
)

// Outcome says how a cell ended.
type Outcome string

// The outcomes of a cell.
const (
	Built          Outcome = worker.Built
	Excluded       Outcome = worker.Excluded // by dkms.conf or by the farm file
	Failed         Outcome = worker.Failed
	Infrastructure Outcome = "infrastructure" // not the module's fault; tried again in vain
)

// Cell is one module version for one kernel, with everything that its build
// depends on.
type Cell struct {
	*matrix.Cell
	// Key is the sha256 in hex of all that the build's result depends on. It is
	// empty for a cell that the farm file excludes.
	Key    string
	Inputs images.Inputs
	// Needs are the cells that it is built upon, of the same kernel, each after
	// those that it needs itself.
	Needs []*Cell
	// Timeout bounds the build's run.
	Timeout time.Duration
	// Boot are the packages that boot its kernel, for a test; nil unless the plan
	// is for one, or where there are none.
	Boot []*apt.Package

	packages string // digest of the inputs' packages
}

// Name is how messages name the cell.
func (c *Cell) Name() string { return c.Row().Name() }

// build says what the recipe shall do.
func (c *Cell) build(jobs int) worker.Build {
	return worker.Build{Module: c.Module.Name, Version: c.Module.Version, Kernel: c.Kernel.Release,
		Arch: c.Kernel.Arch, Jobs: jobs, Install: c.install(), MakeArgs: c.Module.MakeArgs}
}

// install is the command that installs user-space files, or "".
func (c *Cell) install() string {
	if c.Module.Userspace == nil {
		return ""
	}
	return c.Module.Userspace.Install
}

// keyFormat numbers the encoding of a key.
const keyFormat = 1

// key hashes what the cell's result depends on, each part with its length. The
// number of jobs, limits, mirrors, the runtime, checks and packaging are left
// out: they do not change what is built. What it is built upon is in it by its
// key, which therefore has to be known.
func (c *Cell) key() string {
	h := sha256.New()
	part := func(s string) { fmt.Fprintf(h, "%d:%s\n", len(s), s) }
	part(fmt.Sprintf("kofarm key %d layers %d", keyFormat, images.LayerFormat))
	part(c.Kernel.Release)
	part(c.Kernel.Arch)
	part(c.Module.Name)
	part(c.Module.Version)
	part(c.Inputs.Source.Digest)
	part(sha256hex(c.Inputs.Program.Data))
	part(c.packages)
	if c.Inputs.Custom != nil {
		part(fmt.Sprintf("%q", c.Inputs.Custom.Digests))
	}
	part(fmt.Sprintf("%q", c.Module.MakeArgs))
	part(c.install())
	for _, n := range c.Needs {
		part("upon " + n.Key)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// digestPackages hashes lists of packages: name, version, arch and sha256 of
// each.
func digestPackages(lists ...[]*apt.Package) string {
	h := sha256.New()
	for _, pkgs := range lists {
		fmt.Fprintf(h, "packages %d\n", len(pkgs))
		for _, p := range pkgs {
			fmt.Fprintf(h, "%q %q %q %q\n", p.Name, p.Version, p.Arch, p.SHA256)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
