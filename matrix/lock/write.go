package lock

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// version numbers the form of a lock.
const version = 1

// Bytes writes the lock. The same lock always gives the same bytes.
func (l *Lock) Bytes() []byte {
	w := &writer{}
	w.line(0, "# Every input of the farm file's cells, pinned. Written by kofarm lock; to be reviewed, not edited.")
	w.line(0, "version: %d", version)
	w.list(0, "modules", len(l.Modules))
	for _, m := range l.Modules {
		w.module(m)
	}
	w.list(0, "suites", len(l.Suites))
	for _, s := range l.Suites {
		w.suite(s)
	}
	return w.Bytes()
}

type writer struct{ bytes.Buffer }

// line writes a line that is indented by so many steps.
func (w *writer) line(steps int, format string, args ...any) {
	w.WriteString(strings.Repeat("  ", steps))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

// list begins a list of n elements.
func (w *writer) list(steps int, key string, n int) {
	if n == 0 {
		w.line(steps, "%s: []", key)
		return
	}
	w.line(steps, "%s:", key)
}

func (w *writer) module(m *Module) {
	w.line(1, "- source: %s", scalar(m.Source))
	if m.Deb == nil {
		w.line(2, "sha256: %s", m.SHA256)
		return
	}
	w.line(2, "deb: %s", flow(m.Deb, nil))
	if len(m.Needs) > 0 {
		w.line(2, "needs: %s", scalars(m.Needs))
	}
}

func (w *writer) suite(s *Suite) {
	w.line(1, "- suite: %s", scalar(s.String()))
	w.list(2, "asks", len(s.Asks))
	for _, a := range s.Asks {
		w.line(3, "- %s", scalar(a))
	}
	n := newNames(s)
	w.list(2, "kernels", len(s.Kernels))
	for _, k := range s.Kernels {
		w.kernel(k, n)
	}
	w.sets("toolchains", n.toolchains, n)
	w.sets("extras", n.extras, n)
	w.line(2, "pockets:%s", empty(len(n.pockets), " {}"))
	for _, p := range sortedKeys(n.pockets) {
		w.line(3, "%s: %s", p, n.pockets[p])
	}
	w.list(2, "packages", len(n.packages))
	for _, p := range n.packages {
		w.line(3, "- %s", flow(p, n.pockets))
	}
}

func empty(n int, s string) string {
	if n > 0 {
		return ""
	}
	return s
}

func (w *writer) kernel(k *Kernel, n *names) {
	w.line(3, "- release: %s", scalar(k.Release))
	if k.Own != nil {
		w.line(4, "own: {packages: %s, headers: %s}", scalars(k.Own.Packages), scalars(k.Own.Headers))
	}
	if len(k.Headers) > 0 {
		w.line(4, "headers: %s", scalars(n.of(k.Headers)))
	}
	if len(k.Image) > 0 {
		w.line(4, "image: %s", scalars(n.of(k.Image)))
	}
	if len(k.Toolchain) == 0 {
		return
	}
	w.line(4, "toolchain: %s", scalar(n.toolchains.nameOf(k.Toolchain)))
	var extras []string
	for _, e := range k.Extras {
		extras = append(extras, n.extras.nameOf(e.Packages, e.Build))
	}
	if len(extras) > 0 {
		w.line(4, "extras: %s", scalars(extras))
	}
}

func (w *writer) sets(key string, sets *sets, n *names) {
	if len(sets.list) == 0 {
		return
	}
	w.line(2, "%s:", key)
	for _, s := range sets.list {
		w.line(3, "- name: %s", scalar(s.name))
		if s.build != "" {
			w.line(4, "build: %s", scalar(s.build))
		}
		w.list(4, "packages", len(s.packages))
		for _, name := range n.of(s.packages) {
			w.line(5, "- %s", scalar(name))
		}
	}
}

// names knows how a suite's packages and lists of packages are called.
type names struct {
	packages   []*Package
	count      map[string]int // of packages that are called so, by name and by name=version
	pockets    map[string]string
	toolchains *sets
	extras     *sets
}

func newNames(s *Suite) *names {
	n := &names{packages: s.Packages(), count: map[string]int{}, pockets: map[string]string{}, toolchains: newSets(), extras: newSets()}
	for _, p := range n.packages {
		n.count[p.Name]++
		n.count[p.called()[1]]++
		n.pockets[p.Pocket] = max(n.pockets[p.Pocket], p.Date)
	}
	for _, k := range s.Kernels {
		if len(k.Toolchain) > 0 {
			n.toolchains.add(k.Toolchain, compiler(k.Toolchain), "")
		}
		for _, e := range k.Extras {
			n.extras.add(e.Packages, e.Build, e.Build)
		}
	}
	return n
}

// of names packages: by the name, with the version where there are several, and
// with the architecture where one version is there for several.
func (n *names) of(pkgs []*Package) []string {
	list := make([]string, len(pkgs))
	for i, p := range pkgs {
		called := p.called()
		switch {
		case n.count[p.Name] == 1:
			list[i] = called[0]
		case n.count[called[1]] == 1:
			list[i] = called[1]
		default:
			list[i] = called[2]
		}
	}
	return list
}

// called are a package's names in a lock, from short to exact.
func (p *Package) called() [3]string {
	return [3]string{p.Name, p.Name + "=" + p.Version, p.Name + ":" + p.Arch + "=" + p.Version}
}

var gcc = regexp.MustCompile(`^gcc-[0-9]+$`)

// compiler calls a toolchain by the compilers in it.
func compiler(pkgs []*Package) string {
	var found []string
	for _, p := range pkgs {
		if gcc.MatchString(p.Name) {
			found = append(found, p.Name)
		}
	}
	if len(found) == 0 {
		return "toolchain"
	}
	return strings.Join(found, "+")
}

// sets are lists of packages with names of their own.
type sets struct {
	list   []*set
	byID   map[string]*set
	byName map[string]bool
}

type set struct {
	name, build string
	packages    []*Package
}

func newSets() *sets { return &sets{byID: map[string]*set{}, byName: map[string]bool{}} }

func setID(pkgs []*Package, build string) string {
	var id strings.Builder
	fmt.Fprintf(&id, "%q", build)
	for _, p := range pkgs {
		fmt.Fprintf(&id, " %s=%s=%s=%s", p.Name, p.Version, p.Arch, p.SHA256)
	}
	return id.String()
}

// add names a list unless it has a name. Of several lists that would have one
// name, all but the first get a number.
func (s *sets) add(pkgs []*Package, name, build string) {
	id := setID(pkgs, build)
	if s.byID[id] != nil {
		return
	}
	numbered := name
	for i := 2; s.byName[numbered]; i++ {
		numbered = fmt.Sprintf("%s #%d", name, i)
	}
	added := &set{numbered, build, pkgs}
	s.byID[id], s.byName[numbered] = added, true
	s.list = append(s.list, added)
}

func (s *sets) nameOf(pkgs []*Package, build ...string) string {
	return s.byID[setID(pkgs, strings.Join(build, ""))].name
}

// flow is a package on one line. Its date is left out where it is the pocket's.
func flow(p *Package, pockets map[string]string) string {
	date := ""
	if pockets[p.Pocket] != p.Date {
		date = ", date: " + p.Date
	}
	return fmt.Sprintf("{name: %s, version: %s, arch: %s, size: %d, sha256: %s, pocket: %s%s, path: %s}",
		scalar(p.Name), scalar(p.Version), p.Arch, p.Size, p.SHA256, scalar(p.Pocket), date, scalar(p.Path))
}

// plain are scalars that YAML takes as they are, also within [ ] and { }.
var plain = regexp.MustCompile(`^[A-Za-z0-9./_]([A-Za-z0-9 ./_+~=()-]*[A-Za-z0-9./_+~=()-])?$`)

func scalar(s string) string {
	if plain.MatchString(s) {
		return s
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always can be
	return strings.TrimSuffix(b.String(), "\n")
}

func scalars(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = scalar(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
