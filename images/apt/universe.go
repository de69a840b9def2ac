package apt

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Universe joins the suites that packages may come from, such as a suite with its updates, security
// and backports. It is safe for concurrent use.
type Universe struct {
	indexes   []*Index
	pins      map[string]string
	preferred map[string][]string

	mu        sync.Mutex
	named     map[string][]*Package
	providers map[string][]Provider
}

// Provider is a package that provides a name.
type Provider struct {
	Package *Package
	Version string // of the provided name; empty where the package does not say
}

// NewUniverse joins indexes of one architecture. Where two have the same version of a package, the
// earlier index's is taken. pins (nil: none) maps names of packages to the suite whose versions
// come before all others.
func NewUniverse(pins map[string]string, indexes ...*Index) (*Universe, error) {
	for _, ix := range indexes[min(1, len(indexes)):] {
		if got, want := ix.Source.Arch, indexes[0].Source.Arch; got != want {
			return nil, fmt.Errorf("suite %s is for %s, suite %s for %s: one universe has one architecture",
				indexes[0].Source.Suite, want, ix.Source.Suite, got)
		}
	}
	return &Universe{indexes: indexes, pins: pins, named: map[string][]*Package{}, providers: map[string][]Provider{}}, nil
}

// Prefer makes versions of packages, by their names, come before all others. It is called before the first
// look-up.
func (u *Universe) Prefer(versions map[string][]string) { u.preferred = versions }

// Arch is the universe's architecture, Debian's name; empty where there is no index.
func (u *Universe) Arch() string {
	if len(u.indexes) == 0 {
		return ""
	}
	return u.indexes[0].Source.Arch
}

// Suites names the suites, in order.
func (u *Universe) Suites() []string {
	suites := make([]string, len(u.indexes))
	for i, ix := range u.indexes {
		suites[i] = ix.Source.Suite
	}
	return suites
}

// Lookup returns the versions of a package, best first: those preferred, of the pinned suite, then by the priority of
// the release (backports come after all others), then by version. The first one is what apt calls
// the candidate. The packages are shared and must not be changed.
func (u *Universe) Lookup(name string) ([]*Package, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.lookup(name)
}

func (u *Universe) lookup(name string) ([]*Package, error) {
	if all, ok := u.named[name]; ok {
		return all, nil
	}
	var all []*Package
	for _, ix := range u.indexes {
		found, err := ix.named(name)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			all = merge(all, p)
		}
	}
	pin := u.pins[name]
	pinned := func(p *Package) bool { return pin != "" && p.Suite == pin }
	preferred := func(p *Package) int { return btoi(slices.Contains(u.preferred[name], p.Version)) }
	slices.SortStableFunc(all, func(a, b *Package) int {
		if c := cmp.Compare(preferred(b), preferred(a)); c != 0 {
			return c
		}
		if pinned(a) != pinned(b) {
			return cmp.Compare(btoi(pinned(b)), btoi(pinned(a)))
		}
		return cmp.Or(cmp.Compare(b.rank, a.rank), CompareVersions(b.Version, a.Version))
	})
	u.named[name] = all
	return all, nil
}

// Find returns the best version of the package that a relation names which the relation accepts, nil where
// there is none. It does not look at the relation's qualifier, nor at what provides the name.
func (u *Universe) Find(r Relation) (*Package, error) {
	all, err := u.Lookup(r.Name)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(p *Package) bool { return r.accepts(p.Version) })
	if i < 0 {
		return nil, nil
	}
	return all[i], nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// merge adds p to all, unless that version is there: then p's mirrors are further ones for the same
// file. A different file of the same version is left out.
func merge(all []*Package, p *Package) []*Package {
	for _, old := range all {
		if old.Version != p.Version {
			continue
		}
		if old.SHA256 == p.SHA256 {
			for _, url := range p.URLs {
				if !slices.Contains(old.URLs, url) {
					old.URLs = append(old.URLs, url)
				}
			}
			old.rank = max(old.rank, p.rank)
		}
		return all
	}
	return append(all, p)
}

// Providers returns the packages that provide a name, other than those called so: the candidate of
// each package before older ones, then essential before others, then by priority field, then by name.
func (u *Universe) Providers(name string) ([]Provider, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if all, ok := u.providers[name]; ok {
		return all, nil
	}
	var owners []string
	for _, ix := range u.indexes {
		ix.providerNames(name, func(owner string) { owners = append(owners, owner) })
	}
	slices.Sort(owners)
	var all []Provider
	candidate := map[*Package]bool{}
	for _, owner := range slices.Compact(owners) {
		packages, err := u.lookup(owner)
		if err != nil {
			return nil, err
		}
		for i, p := range packages {
			candidate[p] = i == 0
			if version, ok := p.provides(name); ok && p.Name != name {
				all = append(all, Provider{p, version})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Provider) int {
		return cmp.Or(cmp.Compare(btoi(candidate[b.Package]), btoi(candidate[a.Package])),
			cmp.Compare(btoi(b.Package.Essential), btoi(a.Package.Essential)),
			cmp.Compare(importance(a.Package.Priority), importance(b.Package.Priority)))
	})
	u.providers[name] = all
	return all, nil
}

// importance orders the values of the Priority field (Policy 2.5).
func importance(priority string) int {
	order := []string{"required", "important", "standard", "optional", "extra"}
	if i := slices.Index(order, priority); i >= 0 {
		return i
	}
	return len(order)
}

// provides returns the version in which p provides a name.
func (p *Package) provides(name string) (version string, ok bool) {
	for _, r := range p.Provides {
		if r.Name == name {
			return r.Version, true
		}
	}
	return "", false
}

// Names iterates in order over the names of packages that begin with prefix.
func (u *Universe) Names(prefix string) iter.Seq[string] {
	return func(yield func(string) bool) {
		var names []string
		for _, ix := range u.indexes {
			for _, t := range ix.tables {
				for i, _ := t.find(prefix); i < len(t.entries) && strings.HasPrefix(t.entries[i].name, prefix); i++ {
					names = append(names, t.entries[i].name)
				}
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !yield(name) {
				return
			}
		}
	}
}

// Essential returns the names of the packages whose candidate is marked Essential, in order.
func (u *Universe) Essential() ([]string, error) {
	var marked, names []string
	for _, ix := range u.indexes {
		for _, t := range ix.tables {
			marked = append(marked, t.essential...)
		}
	}
	slices.Sort(marked)
	for _, name := range slices.Compact(marked) {
		all, err := u.Lookup(name)
		if err != nil {
			return nil, err
		}
		if len(all) > 0 && all[0].Essential {
			names = append(names, name)
		}
	}
	return names, nil
}
