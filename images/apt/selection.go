package apt

import (
	"slices"
	"strings"
)

// selection is the set of packages that a pass has chosen, with what they provide and exclude.
type selection struct {
	chosen   map[string]*Package
	base     map[*Package]bool
	reason   map[*Package]reason
	provided map[string][]Provider
	excluded map[string][]exclusion
}

// reason is why a package was chosen; free where there were packages of other names to choose.
type reason struct {
	want want
	free bool
}

// exclusion is one package's Conflicts or Breaks.
type exclusion struct {
	by       *Package
	relation Relation
}

// conflict says that a package cannot stand beside a chosen one.
type conflict struct {
	with *Package
	text string
}

func newSelection(base []*Package) *selection {
	sel := &selection{chosen: map[string]*Package{}, base: map[*Package]bool{}, reason: map[*Package]reason{},
		provided: map[string][]Provider{}, excluded: map[string][]exclusion{}}
	for _, p := range base {
		sel.base[p] = true
		sel.register(p)
	}
	return sel
}

// add chooses a package and returns what it depends on.
func (sel *selection) add(p *Package, w want, free bool) []want {
	sel.reason[p] = reason{w, free}
	sel.register(p)
	wants := make([]want, 0, len(p.PreDepends)+len(p.Depends))
	for _, deps := range [][]Dependency{p.PreDepends, p.Depends} {
		for _, d := range deps {
			wants = append(wants, want{p, d})
		}
	}
	return wants
}

func (sel *selection) register(p *Package) {
	sel.chosen[p.Name] = p
	for _, r := range p.Provides {
		sel.provided[r.Name] = append(sel.provided[r.Name], Provider{p, r.Version})
	}
	eachExclusion(p, func(r Relation) {
		sel.excluded[r.Name] = append(sel.excluded[r.Name], exclusion{p, r})
	})
}

func eachExclusion(p *Package, f func(Relation)) {
	for _, deps := range [][]Dependency{p.Conflicts, p.Breaks} {
		for _, d := range deps {
			for _, r := range d {
				f(r)
			}
		}
	}
}

// conflict finds a chosen package that p cannot stand beside, by either one's Conflicts or Breaks.
// A package never excludes itself, so what it provides it may exclude of others (Policy 7.6.2).
func (sel *selection) conflict(p *Package) *conflict {
	var found *conflict
	eachExclusion(p, func(r Relation) {
		if found != nil {
			return
		}
		if other := sel.chosen[r.Name]; other != nil && other.Name != p.Name && r.accepts(other.Version) {
			found = &conflict{other, r.String()}
		}
		for _, other := range sel.provided[r.Name] {
			if other.Package.Name != p.Name && excludesProvided(r, other.Version) {
				found = &conflict{other.Package, r.String()}
			}
		}
	})
	if found != nil {
		return found
	}
	for _, x := range sel.excluded[p.Name] {
		if x.by.Name != p.Name && x.relation.accepts(p.Version) {
			return &conflict{x.by, x.by.Name + ", which excludes " + x.relation.String()}
		}
	}
	for _, r := range p.Provides {
		for _, x := range sel.excluded[r.Name] {
			if x.by.Name != p.Name && excludesProvided(x.relation, r.Version) {
				return &conflict{x.by, x.by.Name + ", which excludes " + x.relation.String()}
			}
		}
	}
	return nil
}

func excludesProvided(r Relation, version string) bool {
	return r.Op == "" || version != "" && r.accepts(version)
}

// why tells the chain from a root to a chosen package.
func (sel *selection) why(p *Package) string {
	if sel.base[p] {
		return "it is in the base"
	}
	var chain []string
	for p != nil {
		w := sel.reason[p].want
		if w.owner == nil {
			chain = append(chain, w.dep.String()+" is asked for")
		} else {
			chain = append(chain, w.String())
		}
		p = w.owner
	}
	slices.Reverse(chain)
	return strings.Join(chain, ", ")
}

// closure lists what was chosen beyond the base.
func (sel *selection) closure() Closure {
	all := make(Closure, 0, len(sel.reason))
	for p := range sel.reason {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Package) int { return strings.Compare(a.Name, b.Name) })
	return all
}
