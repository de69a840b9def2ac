package farm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/kernel"
)

// Package is one file that a farm puts out.
type Package struct {
	Name     string // file name
	Cells    []*Cell
	Warnings []string // what a user of the package has to know
	// Key is the sha256 in hex of all that the package's bytes depend on.
	Key   string
	Write func(ctx context.Context, w io.Writer) error

	Kind    string         // format and kind, as "dkms full" or "deb modules"
	Options map[string]any // what the farm file says about such packages
	Holds   Holds
}

// Holds says what is in a package, in bits.
type Holds int

// What a package may hold. One that holds nothing only depends on others.
const (
	HoldsModules Holds = 1 << iota // of all its cells
	HoldsTools                     // user-space files that the build has made
	HoldsSource
)

// holdsModules is HoldsModules where the package carries prebuilt tarballs.
func holdsModules(prebuilt bool) Holds {
	if prebuilt {
		return HoldsModules
	}
	return 0
}

// Kernels knows the kernels that cells are built for.
type Kernels interface {
	// Symvers is a kernel's Module.symvers.
	Symvers(ctx context.Context, in images.Inputs, release string) ([]byte, error)
	// ModuleCompression tells how a kernel's own modules are compressed: "" for
	// not at all, gz, xz or zst.
	ModuleCompression(ctx context.Context, in images.Inputs, release string) (string, error)
	// ModuleHash names the hash that a kernel's own modules are signed with, as
	// sha256; "" where that is not known.
	ModuleHash(ctx context.Context, in images.Inputs, release string) (string, error)
}

// material is what packages of every format are made from.
type material struct {
	records records
	output  *matrix.Output
	epoch   *time.Time // SOURCE_DATE_EPOCH; nil: each source's own
	kernels Kernels
	signing *signing // nil: modules are not signed
	// stored makes sure that the store has a package, and says where.
	stored func(ctx context.Context, p Package) (Blob, error)
}

// epochOf dates the packages of a source.
func (m *material) epochOf(src *images.Source) time.Time {
	if m.epoch != nil {
		return *m.epoch
	}
	return src.Epoch
}

// packageKey begins a package's key with what tells its kind.
func (m *material) packageKey(format int, kind string, src *images.Source, options ...any) hash.Hash {
	h := sha256.New()
	fmt.Fprintf(h, "kofarm package %d %s\n%d\n%s\n%q\n%q\n", format, kind, m.epochOf(src).Unix(), src.Digest, src.Name, src.Version)
	for _, o := range options {
		fmt.Fprintf(h, "%q\n", fmt.Sprint(o))
	}
	return h
}

// addResult adds what a result's modules are to a key.
func addResult(h hash.Hash, r *Result) {
	fmt.Fprintf(h, "%s\n", r.Cell.Key)
	for _, m := range r.Record.Modules {
		fmt.Fprintf(h, "%s %s\n", m.Name, m.SHA256)
	}
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// modules are a result's modules for the packers, signed where they shall be.
func (m *material) modules(r *Result) ([]dkms.Module, error) {
	var list []dkms.Module
	for _, ko := range r.Record.Modules {
		packed := dkms.Module{Dest: ko.Name, Size: ko.Size, Open: func() (io.ReadCloser, error) { return m.records.s.Open(ko.hash()) }}
		if m.signing != nil {
			var err error
			if packed.Size, packed.Open, err = m.signing.module(r, ko); err != nil {
				return nil, err
			}
		}
		list = append(list, packed)
	}
	return list, nil
}

// read reads a result's modules.
func (m *material) read(r *Result) ([]*kmod.Module, error) {
	var list []*kmod.Module
	for _, ko := range r.Record.Modules {
		k, err := m.records.parsed(ko)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	return list, nil
}

// compression tells how a result's modules are stored in a package: "" for
// plain, gz, xz or zst.
func (m *material) compression(ctx context.Context, r *Result) (string, error) {
	switch m.output.Modules {
	case matrix.Plain:
		return "", nil
	case matrix.KernelsOwn:
		return m.kernels.ModuleCompression(ctx, r.Cell.Inputs, r.Cell.Kernel.Release)
	}
	return string(m.output.Modules), nil
}

// withTree unpacks a source into a temporary folder for the time of use.
func (m *material) withTree(src *images.Source, use func(*os.Root) error) (err error) {
	dir, err := os.MkdirTemp(m.records.s.TempDir(), "source-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := src.Unpack(root); err != nil {
		return fmt.Errorf("unpacking the source: %w", err)
	}
	return use(root)
}

// byVersion groups the packable results by module version, which stand together.
func byVersion(results []*Result) [][]*Result {
	var groups [][]*Result
	var last *matrix.ModuleVersion
	for _, r := range results {
		if !r.Packable() {
			continue
		}
		if r.Cell.Module != last {
			groups, last = append(groups, nil), r.Cell.Module
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], r)
	}
	return groups
}

// newest picks the result for the newest kernel of each flavor and arch, in the
// order in which those come first.
func newest(results []*Result) []*Result {
	type axis struct{ flavor, arch string }
	var picked []*Result
	at := map[axis]int{}
	for _, r := range results {
		a := axis{r.Cell.Kernel.Flavor, r.Cell.Kernel.Arch}
		i, ok := at[a]
		switch {
		case !ok:
			at[a] = len(picked)
			picked = append(picked, r)
		case kernel.Compare(kernel.Release(picked[i].Cell.Kernel.Release), kernel.Release(r.Cell.Kernel.Release)) < 0:
			picked[i] = r
		}
	}
	return picked
}

func cellsOf(results []*Result) []*Cell {
	cells := make([]*Cell, len(results))
	for i, r := range results {
		cells[i] = r.Cell
	}
	return cells
}

// wants reports whether a kind of package is asked for.
func wants(kinds []matrix.PackageKind, kind matrix.PackageKind) bool {
	return slices.Contains(kinds, kind)
}

// firstOf gives the first error and the number of others: where one kernel's
// release does not fit a format, a hundred others do not either.
func firstOf(errs []error) error {
	var first error
	more := 0
	for _, err := range errs {
		switch {
		case err == nil:
		case first == nil:
			first = err
		default:
			more++
		}
	}
	if more > 0 {
		return fmt.Errorf("%w (and %d more)", first, more)
	}
	return first
}

// clash finds packages that users cannot tell apart: files of one name, and
// packages of one name from modules of two, which may become one where a format
// knows fewer letters; the one with the higher version would replace the other.
func clash(packages []Package) error {
	files, names := map[string]*Package{}, map[string]*Package{}
	for i := range packages {
		p := &packages[i]
		if old, ok := files[p.Name]; ok {
			return &NameError{Name: p.Name, First: old.Cells[0], Second: p.Cells[0]}
		}
		files[p.Name] = p
		name := packageName(p.Name)
		old, ok := names[name]
		if ok && old.Cells[0].Inputs.Source.Name != p.Cells[0].Inputs.Source.Name {
			return &NameError{Name: name, First: old.Cells[0], Second: p.Cells[0]}
		}
		names[name] = p
	}
	return nil
}

// packageName is a file's name without its version and architecture, with the
// format's suffix: what is one package for apt and dnf.
func packageName(file string) string {
	if name, ok := strings.CutSuffix(file, ".rpm"); ok {
		for range 2 { // -version and -release.arch
			name = name[:max(0, strings.LastIndexByte(name, '-'))]
		}
		return name + ".rpm"
	}
	name, _, _ := strings.Cut(file, "_")
	switch suffix := path.Ext(file); suffix {
	case ".deb", ".dsc":
		return name + suffix
	}
	return file
}

// NameError says that two cells would make packages of one name.
type NameError struct {
	Name          string
	First, Second *Cell
}

func (e *NameError) Error() string {
	return fmt.Sprintf("%s and %s would both make the package %s; rename or exclude one of them", e.First.Name(), e.Second.Name(), e.Name)
}

// LicenseError says that a package lacks a license, as its module has none.
type LicenseError struct {
	Cell *Cell
}

func (e *LicenseError) Error() string {
	return fmt.Sprintf("a module of %s says no license (MODULE_LICENSE); give the module's entry in the farm file a license, or exclude it", e.Cell.Name())
}
