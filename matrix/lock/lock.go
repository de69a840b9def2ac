// Package lock is farm.lock: everything that a farm file's cells are built
// from, pinned. It says which kernels the file's selectors have chosen, and of
// each package its version, its place in the archive, its size and its sha256.
//
// A lock is made for review: one line for each package, which kernels then name,
// so that it stays small with hundreds of kernels; and always in the same order.
// The package reads, writes and compares locks. It resolves nothing and knows no
// network.
package lock

import (
	"cmp"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/matrix"
)

// Lock is a whole lock. What it points to is shared, and not to be changed.
type Lock struct {
	File    string    // as messages call it
	Modules []*Module // in the order of the farm file
	Suites  []*Suite  // likewise
}

// Module is the source of a module version.
type Module struct {
	Source string   // SourceName
	SHA256 string   // of the file, or of a folder's tree
	Deb    *Package // nil unless the source is one
	Needs  []string // what the deb depends on, less dkms: dependencies as in a Depends field
	Line   int
}

// Suite is a suite of an archive, with all pockets, for one architecture.
type Suite struct {
	Distribution, Name, Arch string
	Asks                     []string // of matrix.Farm.Asks: what Kernels is the answer to
	Kernels                  []*Kernel
	Line                     int

	moved []string // names and globs of packages whose versions are not kept
}

// String names the suite.
func (s *Suite) String() string { return s.Distribution + " " + s.Name + " " + s.Arch }

// Kernel is a chosen kernel, or a kernel of one's own that takes its toolchain
// from the suite. One that has no toolchain is chosen and not built for: another
// suite's comes first, or all its cells are excluded.
type Kernel struct {
	Release   string // kernel release
	Own       *Own   // nil for a kernel of the archive
	Headers   []*Package
	Image     []*Package // the kernel itself, for a boot test
	Toolchain []*Package
	Extras    []Extra // beyond the toolchain
	Line      int

	// Stale says that the packages are to be resolved anew.
	Stale bool
}

// Own pins what a farm file says of a kernel of one's own.
type Own struct {
	Packages []string // of the toolchain, as the farm file has them
	Headers  []string // sha256 of each of its headers
}

// Extra is what build packages need beside the toolchain.
type Extra struct {
	Build    string // the dependencies, joined by ", "
	Packages []*Package
}

// Package is one package of an archive.
type Package struct {
	Name, Version, Arch string
	Size                int64  // bytes
	SHA256              string // lower-case hex
	Pocket              string // the archive's suite that it was found in, such as bookworm-security
	Date                string // when it was there, as 20260711T101637Z
	Path                string // below the mirror
}

// Same says whether both are the same file.
func (p *Package) Same(q *Package) bool {
	return p.Name == q.Name && p.Version == q.Version && p.Arch == q.Arch && p.SHA256 == q.SHA256 && p.Size == q.Size
}

// FileName is the lock of a farm file: beside it, with the ending .lock.
func FileName(farm string) string {
	return strings.TrimSuffix(farm, filepath.Ext(farm)) + ".lock"
}

// SourceName names a source in a lock.
func SourceName(s matrix.Source) string {
	if s.Deb != "" {
		return s.String() + " (" + s.Distribution + " " + s.Suite + ")"
	}
	return s.String()
}

// Module finds a source, nil where it is not there. A nil lock has none.
func (l *Lock) Module(s matrix.Source) *Module {
	if l == nil {
		return nil
	}
	name := SourceName(s)
	i := slices.IndexFunc(l.Modules, func(m *Module) bool { return m.Source == name })
	if i < 0 {
		return nil
	}
	return l.Modules[i]
}

// Suite finds a suite, nil where it is not there. A nil lock has none.
func (l *Lock) Suite(distribution, name, arch string) *Suite {
	if l == nil {
		return nil
	}
	for _, s := range l.Suites {
		if s.Distribution == distribution && s.Name == name && s.Arch == arch {
			return s
		}
	}
	return nil
}

// Kernel finds a kernel of the archive, nil where it is not there. A nil suite
// has none.
func (s *Suite) Kernel(release string, own bool) *Kernel {
	if s == nil {
		return nil
	}
	for _, k := range s.Kernels {
		if k.Release == release && (k.Own != nil) == own {
			return k
		}
	}
	return nil
}

// Pinned says whether the kernel's packages can be used.
func (k *Kernel) Pinned() bool { return k != nil && !k.Stale && len(k.Toolchain) > 0 }

// Extra finds what build packages need; ok is false where the lock does not say.
func (k *Kernel) Extra(build []string) (pkgs []*Package, ok bool) {
	if len(build) == 0 {
		return nil, true
	}
	name := strings.Join(build, ", ")
	for _, e := range k.Extras {
		if e.Build == name {
			return e.Packages, true
		}
	}
	return nil, false
}

// all calls f for every package that the kernel names, some more than once.
func (k *Kernel) all(f func(*Package)) {
	for _, list := range [][]*Package{k.Headers, k.Image, k.Toolchain} {
		for _, p := range list {
			f(p)
		}
	}
	for _, e := range k.Extras {
		for _, p := range e.Packages {
			f(p)
		}
	}
}

// Packages lists the suite's packages, each once, by name and version.
func (s *Suite) Packages() []*Package {
	seen := map[*Package]bool{}
	var list []*Package
	for _, k := range s.Kernels {
		k.all(func(p *Package) {
			if !seen[p] {
				seen[p] = true
				list = append(list, p)
			}
		})
	}
	slices.SortStableFunc(list, func(a, b *Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.SHA256, b.SHA256))
	})
	return slices.CompactFunc(list, (*Package).Same)
}

// Versions gives, by the names of packages of an architecture (Debian's name) or of all, the versions that are
// to be kept where the suite still has them: also those that kernels of other architectures are built with. A
// nil lock has none.
func (l *Lock) Versions(distribution, suite, arch string) map[string][]string {
	versions := map[string][]string{}
	if l == nil {
		return versions
	}
	for _, s := range l.Suites {
		if s.Distribution != distribution || s.Name != suite {
			continue
		}
		for _, p := range s.Packages() {
			if (p.Arch == arch || p.Arch == "all") && !matchesAny(s.moved, p.Name) {
				versions[p.Name] = append(versions[p.Name], p.Version)
			}
		}
	}
	return versions
}

// Without gives a lock that no longer pins what each word names: a source (by
// its whole name, or the last part of it), a suite, a kernel release or a package.
// Words may be globs. unknown are those that name nothing.
func (l *Lock) Without(words []string) (_ *Lock, unknown []string) {
	out := &Lock{File: l.File, Modules: slices.Clone(l.Modules)}
	for _, s := range l.Suites {
		out.Suites = append(out.Suites, s.copy())
	}
	for _, w := range words {
		if !out.release(w) {
			unknown = append(unknown, w)
		}
	}
	return out, unknown
}

func (s *Suite) copy() *Suite {
	c := *s
	c.Kernels, c.moved = nil, slices.Clone(s.moved)
	for _, k := range s.Kernels {
		kc := *k
		c.Kernels = append(c.Kernels, &kc)
	}
	return &c
}

// release lets go of what a word names, and says whether that was anything.
func (l *Lock) release(word string) bool {
	before := len(l.Modules)
	l.Modules = slices.DeleteFunc(l.Modules, func(m *Module) bool { return m.called(word) })
	found := len(l.Modules) < before
	for _, s := range l.Suites {
		if matches(word, s.Name) {
			found = true
			s.Asks, s.moved = nil, append(s.moved, "*")
			for _, k := range s.Kernels {
				k.Stale = true
			}
			continue
		}
		if s.releasePackages(word) {
			found = true
		}
	}
	return found
}

// releasePackages makes the kernels stale that are called so, or use packages
// that are.
func (s *Suite) releasePackages(word string) bool {
	found := false
	for _, k := range s.Kernels {
		hit := matches(word, k.Release)
		if hit {
			for _, p := range k.Headers {
				s.moved = append(s.moved, p.Name)
			}
		}
		k.all(func(p *Package) { hit = hit || matches(word, p.Name) })
		k.Stale = k.Stale || hit
		found = found || hit
	}
	if found {
		s.moved = append(s.moved, word)
	}
	return found
}

// called says whether a word names the source: its whole name, the deb's or
// folder's own one, or that without a -dkms.
func (m *Module) called(word string) bool {
	_, rest, _ := strings.Cut(m.Source, " ")
	rest, _, _ = strings.Cut(rest, " (")
	base := path.Base(rest)
	return matches(word, m.Source) || matches(word, rest) || matches(word, base) || matches(word, strings.TrimSuffix(base, "-dkms"))
}

func matches(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return pattern == s || ok && err == nil
}

func matchesAny(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, s) })
}
