package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

// Tested is what became of a cell's modules in their kernel.
type Tested struct {
	OK       bool         `json:"ok"`                // the verdict is as expected
	Verdict  boot.Verdict `json:"verdict,omitzero"`  // none where there is none
	Expected string       `json:"expected,omitzero"` // by the farm file; else loaded and refused are right
	// Required says that modules which are not OK are not packed.
	Required bool         `json:"required"`
	Signed   bool         `json:"signed,omitzero"` // the modules were, and the kernel loads no others
	Why      string       `json:"why,omitzero"`    // why there is no verdict
	Kernel   []PackageRef `json:"kernel,omitzero"` // what was booted
	Cached   bool         `json:"cached"`          // not booted anew in this run
	Report   *boot.Report `json:"report,omitzero"`

	Err error `json:"-"` // an infrastructure fault: the kernel does not boot, or there is no qemu
}

// proven says whether the modules may be packed where a proof is required: a
// verdict that is expected fails nothing, but makes no module load.
func (t *Tested) proven() bool {
	return t.OK && (t.Verdict == boot.Loaded || t.Verdict == boot.Refused)
}

// Wrong says whether the cell's modules are not as expected, or not proven where
// they have to be.
func (t *Tested) Wrong() bool {
	return t != nil && !t.OK && (t.Verdict != "" || t.Required || t.Err != nil)
}

// Summary tells in one line what was found.
func (t *Tested) Summary() string {
	switch {
	case t.Why != "":
		return "not tested: " + t.Why
	case t.Report == nil:
		return string(t.Verdict)
	}
	var parts []string
	for _, m := range t.Report.Modules {
		if m.Verdict == boot.Loaded {
			continue
		}
		p := m.Module + ": " + string(m.Verdict)
		if m.Reason != "" {
			p += " (" + m.Reason + ")"
		}
		if m.Step != "" && m.Step != "load" {
			p += " at " + m.Step
		}
		parts = append(parts, p)
	}
	if s := t.Report.Script; s != nil {
		if s.Reason != "" {
			parts = append(parts, s.Reason+" during its test script")
		}
		if s.Status != 0 {
			parts = append(parts, fmt.Sprintf("its test script ended with status %d", s.Status))
		}
	}
	if !t.OK && t.Expected != "" {
		parts = append(parts, "expected was "+t.Expected)
	}
	if len(parts) == 0 {
		return string(t.Verdict)
	}
	return string(t.Verdict) + ": " + strings.Join(parts, "; ")
}

// mostEvidence is how many of the lines of one kind Evidence has.
const mostEvidence = 12

// Evidence is what the kernel and the test script have said where the verdict is
// not as expected, in lines, and what else is worth to know of the test.
func (t *Tested) Evidence() []string {
	if t == nil || t.Report == nil {
		return nil
	}
	lines := slices.Clone(t.Report.Notes)
	for _, m := range t.Report.Modules {
		if m.Kept != "" {
			lines = append(lines, m.Module+" could not be unloaded: "+m.Kept)
		}
		if !t.OK && m.Verdict != boot.Loaded && m.Verdict != boot.Refused {
			lines = append(lines, m.Messages[:min(len(m.Messages), mostEvidence)]...)
			lines = more(lines, "more lines", len(m.Messages)-mostEvidence)
		}
	}
	if s := t.Report.Script; s != nil && !t.OK {
		lines = append(lines, s.Messages[:min(len(s.Messages), mostEvidence)]...)
		lines = more(lines, "more lines", len(s.Messages)-mostEvidence)
		from := max(0, len(s.Output)-mostEvidence) // its end says what was wrong
		lines = more(lines, "lines of the script before", from)
		for _, line := range s.Output[from:] {
			lines = append(lines, "script: "+line)
		}
	}
	return lines
}

// more says how many lines there are beside, if there are.
func more(lines []string, what string, n int) []string {
	if n <= 0 {
		return lines
	}
	return append(lines, fmt.Sprintf("… %d %s (--json has them)", n, what))
}

// Tests boots what was built.
type Tests struct {
	Tester   *boot.Tester
	Store    *store.Store
	Parallel int // boots at a time; 0: one for each core
	// Required says that modules which are not OK are not packed.
	Required bool
	// ModuleKey signs the modules before they are booted; nil: they are booted as
	// they were built. Kernels says which hash it signs.
	ModuleKey *modsign.Key
	Kernels   Kernels

	farm    *matrix.Farm
	scripts map[*matrix.ModuleVersion][]byte
}

// maxScript bounds a user's test script in bytes.
const maxScript = 1 << 20

// NewTests makes the tests of a farm whose paths are relative to dir. The error
// is of type *matrix.Error where a script cannot be read.
func NewTests(f *matrix.Farm, dir string, s *store.Store, t *boot.Tester) (*Tests, error) {
	tests := &Tests{Tester: t, Store: s, Parallel: f.Build.Parallel, farm: f, scripts: map[*matrix.ModuleVersion][]byte{}}
	if f.Test != nil {
		tests.Required = f.Test.Require == matrix.RequireLoaded
	}
	var errs []error
	for _, m := range f.Modules {
		if m.Test == nil || m.Test.Script.Text == "" {
			continue
		}
		data, err := readScript(m.Test.Script.Text, dir)
		if err != nil {
			at := m.Test.Script
			errs = append(errs, f.Mistake(at.Pos, at.Text, "script: "+err.Error(), ""))
		}
		tests.scripts[m] = data
	}
	return tests, errors.Join(errs...)
}

func readScript(name, dir string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	switch fi, err := os.Stat(name); {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxScript+1))
	if err == nil && len(data) > maxScript {
		err = fmt.Errorf("%s has more than %d bytes", name, maxScript)
	}
	if len(bytes.TrimSpace(data)) == 0 && err == nil {
		err = fmt.Errorf("%s is empty", name)
	}
	return data, err
}

// Run tests the results whose modules fit their kernels by what is known without
// booting them, and sets Test of each. finished is told of each, from several
// goroutines, unless it is nil. The error is the context's or the disk's.
func (t *Tests) Run(ctx context.Context, results []*Result, finished func(*Result)) error {
	groups, err := t.group(ctx, results)
	if err != nil {
		return err
	}
	parallel := t.Parallel
	if parallel <= 0 {
		parallel = runtime.NumCPU()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, group := range groups {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			_, err := t.Tester.Test(ctx, group.kernel, group.units, func(i int, r boot.Result) {
				res := group.results[i]
				res.Test = t.tested(res.Cell, r)
				if finished != nil {
					finished(res)
				}
			})
			return err
		})
	}
	return g.Wait()
}

// Known sets Test of results from the verdicts that the store has.
func (t *Tests) Known(ctx context.Context, results []*Result) error {
	groups, err := t.group(ctx, results)
	if err != nil {
		return err
	}
	for _, g := range groups {
		for i, u := range g.units {
			res := g.results[i]
			if r := t.Tester.Stored(g.kernel, u); r != nil {
				res.Test = t.tested(res.Cell, boot.Result{Report: r, Cached: true})
				continue
			}
			res.Test = &Tested{Required: t.Required, Why: "`kofarm test` has not booted it yet"}
		}
	}
	return nil
}

// tested judges a verdict by what the farm file expects.
func (t *Tests) tested(c *Cell, r boot.Result) *Tested {
	out := &Tested{Required: t.Required, Signed: t.ModuleKey != nil, Cached: r.Cached, Report: r.Report, Err: r.Err, Kernel: packageRefs(c.Boot)}
	out.Expected, _ = c.Expected()
	if r.Err != nil {
		out.Why = r.Err.Error()
		return out
	}
	out.Verdict = r.Report.Verdict
	if out.Expected != "" {
		out.OK = string(out.Verdict) == out.Expected
	} else {
		out.OK = out.Verdict == boot.Loaded || out.Verdict == boot.Refused
	}
	return out
}

// kernelGroup are the results that share a kernel.
type kernelGroup struct {
	kernel  boot.Kernel
	units   []*boot.Unit
	results []*Result
}

// group puts results together that share boots, and says of the others why they
// are not booted.
func (t *Tests) group(ctx context.Context, results []*Result) ([]*kernelGroup, error) {
	var groups []*kernelGroup
	at := map[*matrix.Kernel]*kernelGroup{}
	for _, r := range results {
		if !r.Fits() {
			continue
		}
		if len(r.Cell.Boot) == 0 {
			r.Test = &Tested{Required: t.Required, Why: noBoot(r.Cell)}
			continue
		}
		unit, err := t.unit(ctx, r)
		if errors.Is(err, store.ErrNotFound) {
			r.Test = &Tested{Required: t.Required, Why: err.Error() + "; `kofarm build` makes it"}
			continue
		}
		if err != nil {
			return nil, err
		}
		g := at[r.Cell.Kernel]
		if g == nil {
			g = &kernelGroup{kernel: boot.Kernel{Release: r.Cell.Kernel.Release, Arch: r.Cell.Kernel.Arch, Packages: r.Cell.Boot}}
			at[r.Cell.Kernel] = g
			groups = append(groups, g)
		}
		g.units, g.results = append(g.units, unit), append(g.results, r)
	}
	return groups, nil
}

func noBoot(c *Cell) string {
	if c.Kernel.Custom != nil {
		return "of a kernel of one's own there are only headers; where require: loaded keeps its modules from being packed, give it a farm file without"
	}
	return "the archive has no image of kernel " + c.Kernel.Release
}

// unit is a result's modules as they are booted, after those that they are built
// upon: these have verdicts of their own, too.
func (t *Tests) unit(ctx context.Context, r *Result) (*boot.Unit, error) {
	u := &boot.Unit{Name: r.Cell.Name(), Version: r.Cell.Module.Name + "/" + r.Cell.Module.Version, Script: t.scripts[r.Cell.Module]}
	for _, n := range r.Cell.Needs {
		rec, err := records{t.Store}.load(n.Key)
		if err != nil {
			return nil, fmt.Errorf("%s/%s, which it is built upon: %w", n.Module.Name, n.Module.Version, err)
		}
		t.add(ctx, u, &Result{Cell: n, Record: rec})
	}
	given := t.add(ctx, u, r)
	test := r.Cell.Module.Test
	if test == nil {
		return u, nil
	}
	for _, key := range slices.Sorted(maps.Keys(test.Parameters)) {
		if !given[key] {
			return nil, t.farm.Mistake(test.Pos, key, fmt.Sprintf("parameters: %s makes no module %s", r.Cell.Name(), key),
				"it makes "+strings.Join(moduleFiles(r.Record), ", "))
		}
	}
	return u, nil
}

// add adds a result's modules to a unit, and tells which of the farm file's
// parameters are for any.
func (t *Tests) add(ctx context.Context, u *boot.Unit, r *Result) (given map[string]bool) {
	given = map[string]bool{}
	test := r.Cell.Module.Test
	for _, m := range r.Record.Modules {
		module := t.module(ctx, r, m)
		if test != nil {
			for key, parameters := range test.Parameters {
				if sameModule(key, strings.TrimSuffix(m.Name, ".ko")) {
					module.Parameters, given[key] = parameters, true
				}
			}
		}
		u.Modules = append(u.Modules, module)
	}
	if test != nil {
		u.First = append(u.First, test.First...)
	}
	return given
}

// module is a module as it is booted: as it was built, or signed.
func (t *Tests) module(ctx context.Context, r *Result, m Module) boot.Module {
	if t.ModuleKey == nil {
		return boot.Module{File: m.Name, SHA256: m.SHA256, Open: func() ([]byte, error) { return records{t.Store}.module(m) }}
	}
	s := &signing{key: t.ModuleKey, hash: t.farm.Output.SignModules.Hash, records: records{t.Store}, kernels: t.Kernels}
	return boot.Module{File: m.Name, SHA256: s.name(r, m), Open: func() ([]byte, error) {
		plain, trailer, err := s.signed(ctx, r, m)
		return append(plain, trailer...), err
	}}
}

func moduleFiles(rec *Record) []string {
	var names []string
	for _, m := range rec.Modules {
		names = append(names, m.Name)
	}
	return names
}

// sameModule compares names of modules as the kernel does.
func sameModule(a, b string) bool {
	return strings.ReplaceAll(a, "-", "_") == strings.ReplaceAll(b, "-", "_")
}

// bootPackages gives the packages that a boot of the kernel needs, once: the
// lock's, or else the archive's. There are none of a kernel of one's own.
func (s *prepared) bootPackages(ctx context.Context, k *matrix.Kernel, at matrix.Pos) ([]*apt.Package, error) {
	if k.Custom != nil {
		return nil, nil
	}
	if known, ok := s.boots[k]; ok {
		return known, nil
	}
	pkgs, err := s.findBoot(ctx, k, at)
	if err == nil {
		s.boots[k] = pkgs
	}
	return pkgs, err
}

func (s *prepared) findBoot(ctx context.Context, k *matrix.Kernel, at matrix.Pos) ([]*apt.Package, error) {
	if pinned := s.pinned(k); pinned.Pinned() {
		if s.bootable(k, pinned.Image) {
			return s.pins.aptList(s.farm, k.Distribution, pinned.Image), nil
		}
		s.pins.note(lock.Drift{Pos: at, Line: pinned.Line, Msg: fmt.Sprintf("the lock does not say what boots kernel %s", k.Release)})
	}
	suite, err := s.suite(ctx, suiteKey{k.Distribution, k.Suite, k.Arch})
	if err != nil {
		return nil, err
	}
	return suite.Image(debian.Kernel{Release: k.Release, Package: k.Package, Version: k.Version}, s.firmware(k)...)
}

// firmware names the package of the firmware that a kernel boots by, if it does.
func (s *prepared) firmware(k *matrix.Kernel) []string {
	if name := boot.Firmware(k.Arch); name != "" && s.farm.Test.Enforces() {
		return []string{name}
	}
	return nil
}

// bootable says whether the lock has all that boots a kernel.
func (s *prepared) bootable(k *matrix.Kernel, pinned []*lock.Package) bool {
	for _, name := range append(s.firmware(k), debian.Busybox) {
		if !slices.ContainsFunc(pinned, func(p *lock.Package) bool { return p.Name == name }) {
			return false
		}
	}
	return true
}
