package matrix

import (
	"fmt"
	"slices"
)

// rule is a compiled Rule.
type rule struct {
	*Rule
	include bool
	adds    bool // an include that names a release: it adds kernels of the catalogue
	why     string

	module, version, release, flavor, suite, distribution, arch []pattern

	kernels []bool // by the plan's kernels
	hits    int    // cells that it matches
	changed bool   // it added a cell or brought one back
}

// compileRules compiles exclude and include, in this order.
func (e *expander) compileRules() []*rule {
	var rules []*rule
	for i := range e.farm.Exclude {
		r := e.compileRule(&e.farm.Exclude[i])
		r.why = "excluded" + r.why
		rules = append(rules, r)
	}
	for i := range e.farm.Include {
		r := e.compileRule(&e.farm.Include[i])
		r.include, r.adds, r.why = true, len(r.Release) > 0, "included"+r.why
		rules = append(rules, r)
	}
	return rules
}

func (e *expander) compileRule(source *Rule) *rule {
	why := fmt.Sprintf(" by rule (%s)", e.place(source.Pos))
	if source.Reason != "" {
		why = fmt.Sprintf(": %s (%s)", source.Reason, e.place(source.Pos))
	}
	return &rule{
		Rule:         source,
		why:          why,
		module:       compile(source.Module, newPattern),
		version:      compile(source.Version, newPattern),
		release:      compile(source.Release, newReleasePattern),
		flavor:       compile(source.Flavor, newPattern),
		suite:        compile(source.Suite, newPattern),
		distribution: compile(source.Distribution, newPattern),
		arch:         compile(source.Arch, newPattern),
	}
}

func (r *rule) matchModule(m *ModuleVersion) bool {
	return anyMatch(r.module, m.Name) && anyMatch(r.version, m.Version)
}

func (r *rule) matchKernel(k entry) bool {
	return anyMatch(r.flavor, k.Flavor) && anyMatch(r.suite, k.Suite) && anyMatch(r.distribution, k.Distribution) &&
		anyMatch(r.arch, k.Arch) && anyMatchRelease(r.release, k.release)
}

// mark notes which of the plan's kernels the rule matches.
func (r *rule) mark(choices []*choice) {
	r.kernels = make([]bool, len(choices))
	for i, c := range choices {
		r.kernels[i] = r.matchKernel(c.entry)
	}
}

// rulesOf returns the rules that match the module version.
func rulesOf(m *ModuleVersion, rules []*rule) (excludes, includes []*rule) {
	for _, r := range rules {
		switch {
		case !r.matchModule(m):
		case r.include:
			includes = append(includes, r)
		default:
			excludes = append(excludes, r)
		}
	}
	return excludes, includes
}

// judge reports rules that name what the farm file does not, match no cell or change nothing. An exclude that
// matches none is harmless: kernels, flavors and the versions of debs come and go.
func (e *expander) judge(rules []*rule, choices []*choice) {
	plan := make([]entry, len(choices))
	for i, c := range choices {
		plan[i] = c.entry
	}
	for _, r := range rules {
		switch {
		case e.full(), e.unknownNames(r):
		case r.include && r.hits == 0:
			e.fail(r.Pos, "", "include matches no kernel", e.miss(r, slices.Concat(plan, e.catalogue)))
		case r.include && !r.changed:
			e.warn(r.Pos, "", "include changes nothing: its cells are there and not excluded", "")
		case r.hits == 0:
			e.warn(r.Pos, "", "exclude matches no cell", e.miss(r, plan))
		}
	}
}

// unknownNames reports names in the rule that are those of nothing in the farm file, whatever archives hold.
func (e *expander) unknownNames(r *rule) bool {
	var suites, distributions []string
	for _, ix := range e.farm.Indexes() {
		suites = union(suites, []string{ix.Suite})
		distributions = union(distributions, []string{ix.Distribution})
	}
	unknown := false
	for _, axis := range []struct {
		name     string
		words    []Word
		patterns []pattern
		known    []string
	}{{"module", r.Module, r.module, e.moduleNames()}, {"suite", r.Suite, r.suite, suites}, {"distribution", r.Distribution, r.distribution, distributions}} {
		for i, w := range axis.words {
			if !slices.ContainsFunc(axis.known, axis.patterns[i].match) {
				e.fail(w.Pos, w.Text, "no "+axis.name+" "+quote(w.Text), oneOf(w.Text, axis.known))
				unknown = true
			}
		}
	}
	return unknown
}

func (e *expander) moduleNames() []string {
	var names []string
	for _, m := range e.farm.Modules {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// miss says which axis of a rule that matches nothing is to blame, and what would match.
func (e *expander) miss(r *rule, kernels []entry) string {
	var versions []string
	for _, m := range e.farm.Modules {
		if anyMatch(r.module, m.Name) {
			versions = append(versions, m.Version)
		}
	}
	for _, axis := range []struct {
		name     string
		words    []Word
		patterns []pattern
		values   []string
	}{
		{"version", r.Version, r.version, versions},
		{"distribution", r.Distribution, r.distribution, values(kernels, func(k entry) string { return k.Distribution })},
		{"suite", r.Suite, r.suite, values(kernels, func(k entry) string { return k.Suite })},
		{"arch", r.Arch, r.arch, values(kernels, func(k entry) string { return k.Arch })},
		{"flavor", r.Flavor, r.flavor, values(kernels, func(k entry) string { return k.Flavor })},
	} {
		if !slices.ContainsFunc(axis.values, func(v string) bool { return anyMatch(axis.patterns, v) }) && len(axis.words) > 0 {
			return missed(axis.name, axis.words[0].Text, axis.values)
		}
	}
	if !slices.ContainsFunc(kernels, func(k entry) bool { return anyMatchRelease(r.release, k.release) }) && len(r.release) > 0 {
		return fmt.Sprintf("no kernel has release %s; %s", quote(r.Release[0].Text), nearestReleases(r.release[0], kernels))
	}
	return "its axes match, but not together"
}

func missed(axis, text string, known []string) string {
	hint := oneOf(text, known)
	if hint != "" {
		hint = "; " + hint
	}
	return fmt.Sprintf("nothing has %s %s%s", axis, quote(text), hint)
}
