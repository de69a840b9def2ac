package matrix

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// MaxCells is the largest matrix, module versions × kernels, that Expand makes.
const MaxCells = 1_000_000

// Expand crosses the farm's module versions with the kernels that its entries choose, in this order:
//
//  1. Every entry of kernels chooses from the catalogue, or is a kernel itself. Of several kernels with one
//     release and arch the first counts, by the order of entries, suites and catalogue.
//  2. A rule of include that names a release adds the kernels of the catalogue which it matches, for the
//     modules that it matches.
//  3. A rule of exclude takes cells out, unless a rule of include matches them as well.
//  4. A cell whose kernel lacks a cell that it is built upon, or has it excluded, is excluded.
//
// The catalogue holds the archives' kernels (those with Custom are ignored: the farm has them); of several
// with one distribution, suite, release and arch the first counts. Every name and version of f.Modules must
// be known. All errors come at once, as from Parse.
func Expand(f *Farm, catalogue []Kernel) (*Plan, []Warning, error) {
	e, err := newExpander(f, catalogue)
	if err != nil {
		return nil, nil, err
	}
	e.checkModules()
	e.resolveDepends()
	rules := e.chooseAll()
	choices := e.sorted()
	plan := &Plan{Versions: f.Modules}
	if len(f.Modules)*len(choices) > MaxCells {
		e.fail(Pos{}, "", fmt.Sprintf("%d module versions × %d kernels are more than %d cells", len(f.Modules), len(choices), MaxCells), "split the farm file")
	} else {
		plan.Kernels, plan.Cells = e.cells(choices, rules)
		e.judge(rules, choices)
		e.judgeExpectations(plan.Kernels)
	}
	warnings, err := e.result()
	if err != nil {
		return nil, warnings, err
	}
	return plan, warnings, nil
}

func newExpander(f *Farm, catalogue []Kernel) (*expander, error) {
	e := &expander{reports: reports{file: f.File}, farm: f, chosen: make(map[kernelKey]*choice)}
	return e, e.index(catalogue)
}

// chooseAll chooses the kernels, and returns the farm's rules.
func (e *expander) chooseAll() []*rule {
	for i := range e.farm.Kernels {
		e.choose(e.farm.Kernels[i])
	}
	rules := e.compileRules()
	e.addIncluded(rules)
	return rules
}

// expander is the state of one Expand.
type expander struct {
	reports
	farm      *Farm
	catalogue []entry
	chosen    map[kernelKey]*choice
	order     []*choice // as they were chosen
	twins     []*Kernel // chosen after another of the same release and arch
}

// entry is a kernel of the catalogue, prepared.
type entry struct {
	*Kernel
	release kernel.Release
}

// kernelKey tells kernels apart in a plan.
type kernelKey struct{ release, arch string }

func (e entry) key() kernelKey { return kernelKey{e.Release, e.Arch} }

// choice is a kernel of the plan.
type choice struct {
	entry
	why string // which selector chose it; "" where only rules of include did
}

// place is FILE:LINE:COLUMN, without the folder: it goes into results.json, which
// is the same wherever the farm file lies.
func (e *expander) place(at Pos) string {
	return fmt.Sprintf("%s:%d:%d", filepath.Base(e.file), at.Line, at.Column)
}

// checkModules reports names and versions that are not known, not safe, or twice there.
func (e *expander) checkModules() {
	for _, m := range e.farm.Modules {
		for _, part := range []struct{ what, value string }{{"name", m.Name}, {"version", m.Version}} {
			if part.value == "" {
				e.fail(m.Pos, "", fmt.Sprintf("the %s of the module from %s is not known", part.what, clip(m.Source.String())),
					fmt.Sprintf("its source does not tell: give %s", part.what))
			} else if err := CheckName(part.value); err != nil {
				e.fail(m.Pos, part.value, fmt.Sprintf("%s %s: %v", part.what, quote(part.value), err), "")
			}
		}
	}
	e.duplicateModules(e.farm.Modules)
}

// index prepares the catalogue.
func (e *expander) index(catalogue []Kernel) error {
	type key struct{ distribution, suite, release, arch string }
	seen := make(map[key]bool, len(catalogue))
	kernels := slices.Clone(catalogue)
	for i := range kernels {
		k := &kernels[i]
		if k.Custom != nil {
			continue
		}
		release, err := kernel.Parse(k.Release)
		if err != nil {
			return fmt.Errorf("reading the catalogue of kernels: package %q: %w", k.Package, err)
		}
		arch, ok := kernel.CanonicalArch(k.Arch)
		if !ok {
			return fmt.Errorf("reading the catalogue of kernels: %s: unknown architecture %q", k.Release, k.Arch)
		}
		k.Arch, k.Flavor = arch, cmp.Or(k.Flavor, release.Flavor())
		id := key{k.Distribution, k.Suite, k.Release, k.Arch}
		if !seen[id] {
			seen[id] = true
			e.catalogue = append(e.catalogue, entry{k, release})
		}
	}
	return nil
}

// choose takes the kernels of one entry of the farm file.
func (e *expander) choose(k KernelEntry) {
	if k.Set != nil {
		e.chooseSet(k.Set)
	}
	if k.Custom != nil {
		own := entry{&Kernel{
			Release:      k.Custom.Release,
			Flavor:       kernel.Release(k.Custom.Release).Flavor(),
			Arch:         k.Custom.Arch,
			Distribution: k.Custom.Toolchain.Distribution,
			Suite:        k.Custom.Toolchain.Suite,
			Custom:       k.Custom,
		}, kernel.Release(k.Custom.Release)}
		if first := e.chosen[own.key()]; first != nil {
			e.warn(k.Custom.Pos, own.Release, fmt.Sprintf("kernel %s of %s is not used: there is one already", own.Release, own.Arch), first.why)
			return
		}
		e.add(own, fmt.Sprintf("kernel of one's own (%s)", e.place(k.Custom.Pos)))
	}
}

// add adds a kernel to the plan, unless it is there.
func (e *expander) add(k entry, why string) {
	first := e.chosen[k.key()]
	switch {
	case first == nil:
		c := &choice{k, why}
		e.chosen[k.key()] = c
		e.order = append(e.order, c)
	case first.Kernel != k.Kernel && !slices.Contains(e.twins, k.Kernel):
		e.twins = append(e.twins, k.Kernel)
	}
}

// addIncluded adds the kernels that rules of include name and no entry chose.
func (e *expander) addIncluded(rules []*rule) {
	for _, r := range rules {
		if !r.adds {
			continue
		}
		for _, k := range e.catalogue {
			if r.matchKernel(k) {
				e.add(k, "")
			}
		}
	}
}

// sorted returns the plan's kernels in its order.
func (e *expander) sorted() []*choice {
	distributions, suites := e.ranks()
	rank := func(c *choice) (int, int) {
		return rankOf(distributions, c.Distribution), rankOf(suites, c.Suite)
	}
	slices.SortStableFunc(e.order, func(a, b *choice) int {
		distributionA, suiteA := rank(a)
		distributionB, suiteB := rank(b)
		return cmp.Or(
			cmp.Compare(distributionA, distributionB), cmp.Compare(a.Distribution, b.Distribution),
			cmp.Compare(suiteA, suiteB), cmp.Compare(a.Suite, b.Suite),
			kernel.Compare(a.release, b.release), cmp.Compare(a.Arch, b.Arch),
		)
	})
	return e.order
}

// ranks returns where the farm file first names each distribution and suite.
func (e *expander) ranks() (distributions, suites map[string]int) {
	distributions, suites = make(map[string]int), make(map[string]int)
	for _, index := range e.farm.Indexes() {
		if _, ok := distributions[index.Distribution]; !ok {
			distributions[index.Distribution] = len(distributions)
		}
		if _, ok := suites[index.Suite]; !ok {
			suites[index.Suite] = len(suites)
		}
	}
	return distributions, suites
}

func rankOf(ranks map[string]int, name string) int {
	if rank, ok := ranks[name]; ok {
		return rank
	}
	return math.MaxInt
}

// cells makes the cells in order, and counts what each rule did.
func (e *expander) cells(choices []*choice, rules []*rule) ([]*Kernel, []Cell) {
	for _, r := range rules {
		r.mark(choices)
	}
	cells := make([]Cell, 0, len(e.farm.Modules)*len(choices))
	used := make([]bool, len(choices))
	for _, m := range e.farm.Modules {
		excludes, includes := rulesOf(m, rules)
		for i, c := range choices {
			if cell, ok := decide(m, c, i, excludes, includes); ok {
				cells = append(cells, cell)
				used[i] = true
			}
		}
	}
	e.excludeUpon(cells)
	var kernels []*Kernel
	for i, c := range choices {
		if used[i] {
			kernels = append(kernels, c.Kernel)
		}
	}
	return kernels, cells
}

// decide makes the cell of a module version and the i-th kernel; ok is false where there is none.
func decide(m *ModuleVersion, c *choice, i int, excludes, includes []*rule) (cell Cell, ok bool) {
	cell = Cell{Module: m, Kernel: c.Kernel, Why: c.why}
	adding := firstOf(includes, func(r *rule) bool { return r.adds && r.kernels[i] })
	if c.why == "" && adding == nil {
		return Cell{}, false
	}
	for _, r := range excludes {
		if r.kernels[i] {
			r.hits++
			if !cell.Excluded {
				cell.Excluded, cell.Why = true, r.why
			}
		}
	}
	including := firstOf(includes, func(r *rule) bool { return r.kernels[i] })
	changed := c.why == "" || cell.Excluded
	for _, r := range includes {
		if r.kernels[i] {
			r.hits++
			r.changed = r.changed || changed
		}
	}
	if including != nil && changed {
		cell.Excluded, cell.Why = false, including.why
	}
	if c.why == "" {
		cell.Why = adding.why
	}
	return cell, true
}

func firstOf(rules []*rule, ok func(*rule) bool) *rule {
	if i := slices.IndexFunc(rules, ok); i >= 0 {
		return rules[i]
	}
	return nil
}
