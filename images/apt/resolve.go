package apt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxPasses bounds the search: each pass but the last rules out a package or narrows a version.
const maxPasses = 500

// ErrUnmet is wrapped by errors about dependencies that cannot be met.
var ErrUnmet = errors.New("unmet dependency")

// Request says what Resolve shall find.
type Request struct {
	// Roots are dependencies as in a Depends field, one each: "gcc-12", "make (>= 4)", "a | b".
	Roots []string
	// Base are packages that are there already, with all that they need. They meet dependencies
	// and are never replaced.
	Base []*Package
	// Omit (nil: nothing) tells names to leave out with all that only they need: a dependency
	// with such an alternative counts as met.
	Omit func(name string) bool
}

// Closure is what Resolve found, sorted by name, without the base.
type Closure []*Package

// Resolve returns the packages that the roots need, as apt would choose on a fresh system without
// recommendations: of alternatives the one that is chosen for another reason anyway, else the first
// that can be had; a package before those that provide its name; the candidate before other
// versions. Where apt would give up because a candidate does not fit, other versions and alternatives
// are tried. The result depends on nothing but the universe and the request. Errors wrap ErrUnmet and
// name the chain of dependencies.
func Resolve(u *Universe, req Request) (Closure, error) {
	roots := make([]Dependency, len(req.Roots))
	for i, text := range req.Roots {
		d, err := ParseDependency(text)
		if err != nil {
			return nil, err
		}
		roots[i] = d
	}
	s := &solver{universe: u, req: req, roots: roots, arch: u.Arch(),
		need: map[string][]need{}, banned: map[*Package]string{}}
	for range maxPasses {
		closure, again, err := s.pass()
		if err != nil || !again {
			return closure, err
		}
	}
	return nil, fmt.Errorf("%w: no solution for %s after %d attempts", ErrUnmet, strings.Join(req.Roots, ", "), maxPasses)
}

// solver keeps what the passes have learned.
type solver struct {
	universe *Universe
	req      Request
	roots    []Dependency
	arch     string

	need   map[string][]need   // what the version of a package must meet
	banned map[*Package]string // why a package cannot be chosen
}

// need is a relation that a package's version must meet, and who asks for that.
type need struct {
	relation Relation
	by       string
}

// want is a dependency to meet; owner is nil for a root.
type want struct {
	owner *Package
	dep   Dependency
}

func (w want) String() string {
	if w.owner == nil {
		return w.dep.String()
	}
	return fmt.Sprintf("%s (%s) depends on %s", w.owner.Name, w.owner.Version, w.dep)
}

// pass chooses packages from the roots on. Dependencies that leave no choice of a name come first,
// so that they can meet those that do. A dead end teaches the solver something and asks for another
// pass.
func (s *solver) pass() (closure Closure, again bool, err error) {
	sel := newSelection(s.req.Base)
	queue := make([]want, 0, len(s.roots))
	for _, d := range s.roots {
		queue = append(queue, want{dep: d})
	}
	var choices []want
	for len(queue)+len(choices) > 0 {
		var w want
		free := len(queue) == 0
		if free {
			w, choices = choices[0], choices[1:]
		} else {
			w, queue = queue[0], queue[1:]
		}
		if s.met(sel, w.dep) {
			continue
		}
		found, err := s.candidates(sel, w.dep)
		if err != nil {
			return nil, false, err
		}
		switch {
		case len(found) == 0:
			err := s.learn(sel, w)
			return nil, err == nil, err
		case !free && !oneName(found):
			choices = append(choices, w)
		default:
			queue = append(queue, sel.add(found[0], w, free)...)
		}
	}
	return sel.closure(), false, nil
}

func oneName(packages []*Package) bool {
	return !slices.ContainsFunc(packages, func(p *Package) bool { return p.Name != packages[0].Name })
}

// met reports whether the selection meets a dependency already.
func (s *solver) met(sel *selection, dep Dependency) bool {
	for _, r := range dep {
		if s.req.Omit != nil && s.req.Omit(r.Name) {
			return true
		}
		if p := sel.chosen[r.Name]; p != nil && s.matches(r, p) {
			return true
		}
		for _, p := range sel.provided[r.Name] {
			if s.matchesProvided(r, p.Package, p.Version) {
				return true
			}
		}
	}
	return false
}

// matches reports whether p, which has the relation's name, meets it.
func (s *solver) matches(r Relation, p *Package) bool {
	return s.qualifies(r, p) && r.accepts(p.Version)
}

// matchesProvided does so for a provided name: without a version it meets no versioned relation.
func (s *solver) matchesProvided(r Relation, p *Package, version string) bool {
	return s.qualifies(r, p) && (r.Op == "" || version != "" && r.accepts(version))
}

// qualifies judges the architecture qualifier. All packages here are of the native architecture or
// of all, so Multi-Arch same and foreign change nothing; only "name:any" asks for something.
func (s *solver) qualifies(r Relation, p *Package) bool {
	switch r.Qual {
	case "", "native", s.arch:
		return true
	case "any":
		return p.MultiArch == "allowed"
	}
	return p.Arch == r.Qual
}

// candidates lists the packages that could meet a dependency, in the order of preference: as apt
// would try them, then other versions than the candidates.
func (s *solver) candidates(sel *selection, dep Dependency) ([]*Package, error) {
	var first, others []*Package
	for _, r := range dep {
		named, err := s.universe.Lookup(r.Name)
		if err != nil {
			return nil, err
		}
		best := s.best(named)
		for _, p := range named {
			if s.matches(r, p) && s.free(sel, p) {
				first, others = place(first, others, p, p == best)
			}
		}
		providers, err := s.universe.Providers(r.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range providers {
			if s.matchesProvided(r, p.Package, p.Version) && s.free(sel, p.Package) {
				siblings, err := s.universe.Lookup(p.Package.Name)
				if err != nil {
					return nil, err
				}
				first, others = place(first, others, p.Package, p.Package == s.best(siblings))
			}
		}
	}
	return append(first, others...), nil
}

func place(first, others []*Package, p *Package, best bool) (_, _ []*Package) {
	if best {
		return append(first, p), others
	}
	return first, append(others, p)
}

// best is the version that is chosen where nothing else is asked for; nil where none is left.
func (s *solver) best(named []*Package) *Package {
	i := slices.IndexFunc(named, s.allowed)
	if i < 0 {
		return nil
	}
	return named[i]
}

// allowed reports whether nothing that was learned speaks against p.
func (s *solver) allowed(p *Package) bool {
	if _, no := s.banned[p]; no {
		return false
	}
	return !slices.ContainsFunc(s.need[p.Name], func(n need) bool { return !s.matches(n.relation, p) })
}

// free reports whether p can be added to the selection.
func (s *solver) free(sel *selection, p *Package) bool {
	return s.allowed(p) && sel.chosen[p.Name] == nil && sel.conflict(p) == nil
}

// learn draws the conclusion from a dependency that nothing can meet in this selection: that another
// version should have been chosen of a package it names, that a package chosen freely was the wrong
// one, or that the owner cannot be had. For a root it is an error.
func (s *solver) learn(sel *selection, w want) error {
	for _, r := range w.dep {
		ok, err := s.narrow(sel, w, r)
		if err != nil || ok {
			return err
		}
	}
	wrong, err := s.wrongChoice(sel, w.dep)
	if err != nil {
		return err
	}
	if wrong != nil {
		s.banned[wrong] = "it conflicts with what else is needed"
		return nil
	}
	why, err := s.explain(sel, w)
	if err != nil {
		return err
	}
	if w.owner == nil {
		return fmt.Errorf("%w: %s", ErrUnmet, why)
	}
	s.banned[w.owner] = why
	return nil
}

// narrow asks for another version of r's package in the next pass, if one fits all that is asked.
func (s *solver) narrow(sel *selection, w want, r Relation) (bool, error) {
	p := sel.chosen[r.Name]
	known := func(n need) bool { return n.relation == r }
	if p == nil || sel.base[p] || slices.ContainsFunc(s.need[r.Name], known) {
		return false, nil
	}
	named, err := s.universe.Lookup(r.Name)
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(named, func(p *Package) bool { return s.allowed(p) && s.matches(r, p) }) {
		return false, nil
	}
	s.need[r.Name] = append(s.need[r.Name], need{r, w.String()})
	return true, nil
}

// wrongChoice finds a chosen package that keeps out one that would meet dep, and for which there
// were others to choose.
func (s *solver) wrongChoice(sel *selection, dep Dependency) (*Package, error) {
	for _, r := range dep {
		named, err := s.universe.Lookup(r.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range named {
			if !s.matches(r, p) || !s.allowed(p) || sel.chosen[p.Name] != nil {
				continue
			}
			if c := sel.conflict(p); c != nil && sel.reason[c.with].free {
				return c.with, nil
			}
		}
	}
	return nil, nil
}

// explain says why w cannot be met, with the chain below it.
func (s *solver) explain(sel *selection, w want) (string, error) {
	var reasons []string
	for _, r := range w.dep {
		reason, err := s.explainRelation(sel, r)
		if err != nil {
			return "", err
		}
		reasons = append(reasons, reason)
	}
	return w.String() + ": " + strings.Join(reasons, "; "), nil
}

func (s *solver) explainRelation(sel *selection, r Relation) (string, error) {
	if p := sel.chosen[r.Name]; p != nil {
		return fmt.Sprintf("%s is %s, because %s", p.Name, p.Version, sel.why(p)), nil
	}
	named, err := s.universe.Lookup(r.Name)
	if err != nil {
		return "", err
	}
	providers, err := s.universe.Providers(r.Name)
	if err != nil {
		return "", err
	}
	suites := strings.Join(s.universe.Suites(), ", ")
	if len(named)+len(providers) == 0 {
		return "not available in " + suites, nil
	}
	var versions []string
	for _, p := range named {
		if !s.matches(r, p) {
			versions = append(versions, p.Version)
		} else if reason := s.obstacle(sel, p); reason != "" {
			return reason, nil
		}
	}
	for _, p := range providers {
		if !s.matchesProvided(r, p.Package, p.Version) {
			versions = append(versions, strings.TrimSpace(p.Version+" of "+p.Package.Name))
		} else if reason := s.obstacle(sel, p.Package); reason != "" {
			return reason, nil
		}
	}
	return fmt.Sprintf("%s have %s only", suites, strings.Join(versions, ", ")), nil
}

// obstacle says what keeps a package out that would fit.
func (s *solver) obstacle(sel *selection, p *Package) string {
	if why, ok := s.banned[p]; ok {
		return why
	}
	for _, n := range s.need[p.Name] {
		if !s.matches(n.relation, p) {
			return "but " + n.by
		}
	}
	if c := sel.conflict(p); c != nil {
		return fmt.Sprintf("%s (%s) excludes %s, which is there because %s", p.Name, p.Version, c.text, sel.why(c.with))
	}
	if other := sel.chosen[p.Name]; other != nil {
		return fmt.Sprintf("%s is %s, because %s", p.Name, other.Version, sel.why(other))
	}
	return ""
}
