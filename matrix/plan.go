package matrix

import (
	"encoding/json"
	"fmt"
	"iter"
)

// Kernel is one kernel of the catalogue.
type Kernel struct {
	Release      string
	Flavor       string // "" is filled in from the release
	Arch         string // any name that kernel.CanonicalArch knows; canonical in a Plan
	Distribution string
	Suite        string // as the farm file calls it: of a security pocket the suite that it belongs to
	// Package and Version are the header package and its version in the archive; "" of a kernel of one's own.
	Package, Version string
	Custom           *CustomKernel // nil for a kernel of an archive
	// Locked says that the catalogue has of its suite only what was chosen once, by the same farm file: what
	// is missing there is no mistake of the file.
	Locked bool
}

// Plan is an expanded farm. Nothing in it is to be changed.
type Plan struct {
	Versions []*ModuleVersion // those of the farm, in its order
	// Kernels are those that have cells, each (release, arch) once, sorted: distributions and suites in the
	// order in which the farm file first names them, then by kernel.Compare of the release, then by arch.
	Kernels []*Kernel
	// Cells are sorted as Versions, those of one version as Kernels.
	Cells []Cell
}

// Cell is one module version for one kernel.
type Cell struct {
	Module   *ModuleVersion
	Kernel   *Kernel
	Excluded bool
	// Why says with FILE:LINE:COLUMN which selector, exclude or include put the cell there or took it out.
	Why string
}

// Row is a cell as JSON has it. Its fields are stable.
type Row struct {
	Module       string `json:"module"`
	Version      string `json:"version"`
	Release      string `json:"release"`
	Flavor       string `json:"flavor"`
	Arch         string `json:"arch"`
	Distribution string `json:"distribution"`
	Suite        string `json:"suite"`
	Excluded     bool   `json:"excluded"`
	Why          string `json:"why"`
	// BuiltUpon are the module versions that are built before, as MODULE/VERSION, each after what it needs itself.
	BuiltUpon []string `json:"builtUpon,omitzero"`
}

// Selector chooses the cell on a command line.
func (r Row) Selector() string {
	return r.Module + "/" + r.Version + "@" + r.Release + "/" + r.Arch
}

// Name is how messages name the cell: module/version on a kernel.
func (r Row) Name() string {
	return fmt.Sprintf("%s/%s on %s (%s)", r.Module, r.Version, r.Release, r.Arch)
}

// Row returns the cell's row.
func (c *Cell) Row() Row {
	var upon []string
	for _, n := range c.Module.Needs {
		upon = append(upon, n.Name+"/"+n.Version)
	}
	return Row{
		Module:       c.Module.Name,
		Version:      c.Module.Version,
		Release:      c.Kernel.Release,
		Flavor:       c.Kernel.Flavor,
		Arch:         c.Kernel.Arch,
		Distribution: c.Kernel.Distribution,
		Suite:        c.Kernel.Suite,
		Excluded:     c.Excluded,
		Why:          c.Why,
		BuiltUpon:    upon,
	}
}

// MarshalJSON encodes the cell's Row.
func (c Cell) MarshalJSON() ([]byte, error) { return json.Marshal(c.Row()) }

// Included iterates over the cells that are not excluded.
func (p *Plan) Included() iter.Seq[*Cell] {
	return func(yield func(*Cell) bool) {
		for i := range p.Cells {
			if !p.Cells[i].Excluded && !yield(&p.Cells[i]) {
				return
			}
		}
	}
}
