package lock

import (
	"fmt"
	"slices"
	"strings"
)

// Change is one difference between two locks.
type Change struct {
	Where string `json:"where"` // "modules", "kernels of SUITE" or "packages of SUITE"
	What  string `json:"what"`  // the source, kernel release or package
	Old   string `json:"old"`   // "" for what is new
	New   string `json:"new"`   // "" for what is gone
}

// String is the change on a line: + for new, - for gone, and old → new.
func (c Change) String() string {
	switch {
	case c.Old == "":
		return strings.TrimSpace("+ " + c.What + " " + c.New)
	case c.New == "":
		return strings.TrimSpace("- " + c.What + " " + c.Old)
	}
	return fmt.Sprintf("  %s %s → %s", c.What, c.Old, c.New)
}

// Diff lists what the newer lock has changed, for a reader: sources, kernels and
// versions of packages. Either may be nil.
func Diff(older, newer *Lock) []Change {
	changes := between("modules", older.sources(), newer.sources())
	for _, name := range suiteNames(older, newer) {
		was, is := older.named(name), newer.named(name)
		changes = append(changes, between("kernels of "+name, was.kernels(), is.kernels())...)
		changes = append(changes, between("packages of "+name, was.versions(), is.versions())...)
	}
	return changes
}

// named finds a suite by its whole name.
func (l *Lock) named(name string) *Suite {
	if l == nil {
		return nil
	}
	for _, s := range l.Suites {
		if s.String() == name {
			return s
		}
	}
	return nil
}

// suiteNames are the suites of both, the newer's first.
func suiteNames(older, newer *Lock) []string {
	var names []string
	for _, l := range []*Lock{newer, older} {
		if l == nil {
			continue
		}
		for _, s := range l.Suites {
			if !slices.Contains(names, s.String()) {
				names = append(names, s.String())
			}
		}
	}
	return names
}

// state is what a lock says of one thing: text for a reader, and digest where
// the same text may stand for different files.
type state struct{ text, digest string }

func (l *Lock) sources() map[string]state {
	all := map[string]state{}
	if l == nil {
		return all
	}
	for _, m := range l.Modules {
		s := state{text: "sha256 " + m.SHA256[:12]}
		if m.Deb != nil {
			s = state{m.Deb.Version, m.SHA256}
		}
		all[m.Source] = s
	}
	return all
}

func (s *Suite) kernels() map[string]state {
	all := map[string]state{}
	if s == nil {
		return all
	}
	for _, k := range s.Kernels {
		is := state{text: "(nothing is built for it)"}
		for _, p := range k.Headers {
			if p.Name == "linux-headers-"+k.Release {
				is.text = p.Version
			}
		}
		if k.Own != nil {
			is = state{"of one's own", strings.Join(k.Own.Headers, " ")}
		}
		all[k.Release] = is
	}
	return all
}

func (s *Suite) versions() map[string]state {
	all := map[string]state{}
	if s == nil {
		return all
	}
	for _, p := range s.Packages() {
		is := all[p.Name]
		if is.text != "" {
			is.text += ", "
		}
		all[p.Name] = state{is.text + p.Version, is.digest + p.SHA256 + " "}
	}
	return all
}

func between(where string, was, is map[string]state) []Change {
	var changes []Change
	for _, name := range sortedKeys(is) {
		before, now := was[name], is[name]
		if before == now {
			continue
		}
		if before.text == now.text {
			before.text += " (sha256 " + before.digest[:12] + ")"
			now.text += " (sha256 " + now.digest[:12] + ")"
		}
		changes = append(changes, Change{where, name, before.text, now.text})
	}
	for _, name := range sortedKeys(was) {
		if _, ok := is[name]; !ok {
			changes = append(changes, Change{where, name, was[name].text, ""})
		}
	}
	return changes
}
