package matrix

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// chooser is the work on one KernelSet.
type chooser struct {
	*expander
	set      *KernelSet
	flavors  []pattern
	releases []pattern // of set.Releases; unused where Text is empty
	hits     []int     // kernels that each of set.Releases chose
	suites   map[string]int
	archs    map[string]int
}

// chooseSet takes the kernels that the set chooses, and reports what in it chooses nothing.
func (e *expander) chooseSet(set *KernelSet) {
	c := &chooser{
		expander: e,
		set:      set,
		flavors:  compile(set.Flavors, newPattern),
		hits:     make([]int, len(set.Releases)),
		suites:   make(map[string]int),
		archs:    make(map[string]int),
	}
	for _, s := range set.Releases {
		c.releases = append(c.releases, newReleasePattern(s.Text))
	}
	whole := c.whole()
	for _, suite := range set.Suites {
		for _, arch := range set.Arch {
			c.suite(suite.Text, arch.Text, whole)
		}
	}
	if c.axes(whole) {
		c.selectors(whole)
		c.idle()
	}
}

// whole returns the catalogue's kernels of the set's suites and archs, whatever their flavor.
func (c *chooser) whole() []entry {
	suites, archs := wordSet(c.set.Suites), wordSet(c.set.Arch)
	var list []entry
	for _, k := range c.catalogue {
		if k.Distribution == c.set.Distribution && suites[k.Suite] && archs[k.Arch] {
			list = append(list, k)
		}
	}
	return list
}

func wordSet(words []Word) map[string]bool {
	set := make(map[string]bool, len(words))
	for _, w := range words {
		set[w.Text] = true
	}
	return set
}

// suite takes the kernels of one suite and arch.
func (c *chooser) suite(suite, arch string, whole []entry) {
	var candidates []entry
	for _, k := range whole {
		if k.Suite == suite && k.Arch == arch && anyMatch(c.flavors, k.Flavor) {
			candidates = append(candidates, k)
		}
	}
	for i, s := range c.set.Releases {
		chosen := c.matching(i, candidates)
		if s.Latest > 0 {
			chosen = latest(chosen, s.Latest)
		}
		why := fmt.Sprintf("selected by %s (%s)", s, c.place(s.Pos))
		for _, k := range chosen {
			c.add(k, why)
		}
		c.hits[i] += len(chosen)
		c.suites[suite] += len(chosen)
		c.archs[arch] += len(chosen)
	}
}

// matching returns the candidates whose release the i-th selector's text matches.
func (c *chooser) matching(i int, candidates []entry) []entry {
	if c.set.Releases[i].Text == "" {
		return candidates
	}
	var list []entry
	for _, k := range candidates {
		if c.releases[i].matchRelease(k.release) {
			list = append(list, k)
		}
	}
	return list
}

// latest returns the n newest kernels of each flavor.
func latest(candidates []entry, n int) []entry {
	sorted := slices.Clone(candidates)
	slices.SortStableFunc(sorted, func(a, b entry) int { return -kernel.Compare(a.release, b.release) })
	count := make(map[string]int)
	return slices.DeleteFunc(sorted, func(k entry) bool {
		count[k.Flavor]++
		return count[k.Flavor] > n
	})
}

// axes reports suites, archs and flavors that the catalogue does not have, and says whether there were none.
func (c *chooser) axes(whole []entry) bool {
	if slices.ContainsFunc(whole, func(k entry) bool { return k.Locked }) {
		return true
	}
	before := len(c.errs)
	ours := wordSet(c.set.Suites)
	var distribution, suites []entry
	for _, k := range c.catalogue {
		if k.Distribution == c.set.Distribution {
			distribution = append(distribution, k)
			if ours[k.Suite] {
				suites = append(suites, k)
			}
		}
	}
	c.missing(c.set.Suites, distribution, c.set.Distribution+" has no kernels in suite %s", func(k entry) string { return k.Suite })
	if len(c.errs) > before {
		return false
	}
	in := strings.Join(Texts(c.set.Suites), ", ")
	c.missing(c.set.Arch, suites, "no kernel has arch %s in "+in, func(k entry) string { return k.Arch })
	if len(whole) > 0 {
		c.missing(c.set.Flavors, whole, "no kernel has flavor %s in "+in, func(k entry) string { return k.Flavor })
	}
	return len(c.errs) == before
}

// missing reports words that match no entry's value; of msg %s is the word.
func (c *chooser) missing(words []Word, list []entry, msg string, value func(entry) string) {
	known := values(list, value)
	for _, w := range words {
		if !slices.ContainsFunc(known, newPattern(w.Text).match) && !c.full() {
			c.fail(w.Pos, w.Text, fmt.Sprintf(msg, quote(w.Text)), oneOf(w.Text, known))
		}
	}
}

// values returns the distinct values of the entries, sorted.
func values(list []entry, value func(entry) string) []string {
	seen := make(map[string]bool)
	for _, k := range list {
		seen[value(k)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// selectors reports selectors that chose nothing.
func (c *chooser) selectors(whole []entry) {
	for i, s := range c.set.Releases {
		if c.hits[i] == 0 && !c.full() {
			c.fail(s.Pos, s.Text, fmt.Sprintf("no kernel matches %s in %s", s, strings.Join(Texts(c.set.Suites), ", ")), c.elsewhere(i, whole))
		}
	}
}

// elsewhere is the hint for the i-th selector: a flavor or arch that is left out, or the nearest releases.
func (c *chooser) elsewhere(i int, whole []entry) string {
	if found := c.matching(i, whole); len(found) > 0 {
		return fmt.Sprintf("flavors leaves out %s", found[0].Release)
	}
	var candidates []entry
	for _, k := range whole {
		if anyMatch(c.flavors, k.Flavor) {
			candidates = append(candidates, k)
		}
	}
	return nearestReleases(c.releases[i], candidates)
}

// nearestReleases names the releases nearest to one, or for a range or glob the ends of what there is.
func nearestReleases(p pattern, list []entry) string {
	if len(list) == 0 {
		return ""
	}
	if p.rng == nil && !p.glob {
		releases := values(list, func(k entry) string { return k.Release })
		if words := nearest(p.text, releases, 3); len(words) > 0 {
			return "nearest: " + strings.Join(words, ", ")
		}
	}
	older := func(a, b entry) int { return kernel.Compare(a.release, b.release) }
	return fmt.Sprintf("there are %s to %s", slices.MinFunc(list, older).Release, slices.MaxFunc(list, older).Release)
}

// idle warns of suites and archs that the catalogue has but no selector chose anything of.
func (c *chooser) idle() {
	for _, w := range c.set.Suites {
		if c.suites[w.Text] == 0 {
			c.warn(w.Pos, w.Text, fmt.Sprintf("no kernel of suite %s is chosen", quote(w.Text)), "")
		}
	}
	for _, w := range c.set.Arch {
		if c.archs[w.Text] == 0 {
			c.warn(w.Pos, w.Text, fmt.Sprintf("no kernel of arch %s is chosen", quote(w.Text)), "")
		}
	}
}
