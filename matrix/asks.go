package matrix

import (
	"fmt"
	"slices"
	"strings"
)

// Ask is what one selector of kernels, or one rule of include that adds kernels, asks of a suite for one
// architecture. As long as a suite is asked for the same, the kernels that were once chosen from it are an
// answer.
type Ask struct {
	Distribution, Suite, Arch string
	Text                      string // the same for the same question, wherever it stands in the file
	Pos                       Pos
}

// Asks returns what the farm asks the archives' suites for, in the order of Indexes, and of each suite in
// the order of the file.
func (f *Farm) Asks() []Ask {
	var list []Ask
	for _, ix := range f.Indexes() {
		if !ix.Kernels {
			continue
		}
		for _, arch := range ix.Archs {
			list = append(list, f.asksOf(ix, arch)...)
		}
	}
	return list
}

func (f *Farm) asksOf(ix Index, arch string) []Ask {
	var list []Ask
	ask := func(text string, pos Pos) {
		list = append(list, Ask{ix.Distribution, ix.Suite, arch, text, pos})
	}
	for _, entry := range f.Kernels {
		set := entry.Set
		if set == nil || set.Distribution != ix.Distribution || !wordSet(set.Suites)[ix.Suite] || !wordSet(set.Arch)[arch] {
			continue
		}
		for _, s := range set.Releases {
			text := s.String()
			if len(set.Flavors) > 0 {
				text += " of flavors " + strings.Join(Texts(set.Flavors), ", ")
			}
			ask(text, s.Pos)
		}
	}
	for _, r := range f.Include {
		if len(r.Release) == 0 || !anyMatch(compile(r.Suite, newPattern), ix.Suite) ||
			!anyMatch(compile(r.Distribution, newPattern), ix.Distribution) || !anyMatch(compile(r.Arch, newPattern), arch) {
			continue
		}
		text := "include " + strings.Join(Texts(r.Release), ", ")
		if len(r.Flavor) > 0 {
			text += " of flavors " + strings.Join(Texts(r.Flavor), ", ")
		}
		ask(text, r.Pos)
	}
	return list
}

// Selection is the kernels that a farm chooses, before they are crossed with its modules.
type Selection struct {
	// Kernels are those of a plan, sorted likewise.
	Kernels []*Kernel
	// Twins are chosen as well, but not used: there is a kernel of that release and arch from elsewhere.
	Twins []*Kernel

	choices []*choice
	rules   []*rule
}

// Choose does what Expand does about kernels. The names of modules need not be known; rules that match
// nothing are not reported.
func Choose(f *Farm, catalogue []Kernel) (*Selection, []Warning, error) {
	e, err := newExpander(f, catalogue)
	if err != nil {
		return nil, nil, err
	}
	rules := e.chooseAll()
	choices := e.sorted()
	for _, r := range rules {
		r.mark(choices)
	}
	warnings, err := e.result()
	if err != nil {
		return nil, warnings, err
	}
	s := &Selection{Twins: e.twins, choices: choices, rules: rules}
	for _, c := range choices {
		s.Kernels = append(s.Kernels, c.Kernel)
	}
	return s, warnings, nil
}

// Excluded says whether the module version is not built for the kernel, one of s.Kernels.
func (s *Selection) Excluded(m *ModuleVersion, k *Kernel) bool {
	i := slices.IndexFunc(s.choices, func(c *choice) bool { return c.Kernel == k })
	if i < 0 {
		return true
	}
	excludes, includes := rulesOf(m, s.rules)
	cell, ok := decide(m, s.choices[i], i, excludes, includes)
	return !ok || cell.Excluded
}

// String names the suite as farm.lock does.
func (a Ask) String() string { return fmt.Sprintf("%s %s %s", a.Distribution, a.Suite, a.Arch) }
