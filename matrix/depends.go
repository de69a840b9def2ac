package matrix

import (
	"fmt"
	"slices"
	"strings"
)

// resolveDepends finds the module versions that others need. It reports names that fit none or several, and
// modules that need each other.
func (e *expander) resolveDepends() {
	direct := map[*ModuleVersion][]*ModuleVersion{}
	for _, m := range e.farm.Modules {
		for _, w := range m.BuildDepends {
			if found := e.dependency(m, w); found != nil && !slices.Contains(direct[m], found) {
				direct[m] = append(direct[m], found)
			}
		}
	}
	for _, m := range e.farm.Modules {
		m.Needs = nil
		if len(direct[m]) > 0 {
			e.visit(m, direct, nil, &m.Needs)
		}
	}
}

// dependency finds the module version that a word of m's build-depends means.
func (e *expander) dependency(m *ModuleVersion, w Word) *ModuleVersion {
	name, version, _ := strings.Cut(w.Text, "/")
	var names, versions []string
	var found *ModuleVersion
	for _, other := range e.farm.Modules {
		switch {
		case other.Name != name:
			names = union(names, []string{other.Name})
		case version == "" || other.Version == version:
			found = other
			fallthrough
		default:
			versions = append(versions, other.Name+"/"+other.Version)
		}
	}
	switch {
	case len(versions) == 0:
		e.fail(w.Pos, w.Text, fmt.Sprintf("build-depends: no module of the farm is %q", name), oneOf(name, names))
	case found == nil:
		e.fail(w.Pos, w.Text, fmt.Sprintf("build-depends: %s has no version %q", name, version), oneOf(w.Text, versions))
	case found == m && (version != "" || len(versions) == 1):
		e.fail(w.Pos, w.Text, fmt.Sprintf("build-depends: %s needs itself", name), "")
	case version == "" && len(versions) > 1:
		e.fail(w.Pos, w.Text, fmt.Sprintf("build-depends: %s has several versions", name), "give one of "+strings.Join(versions, ", "))
	default:
		return found
	}
	return nil
}

// visit appends to needs what m needs, each after what it needs itself. path are the modules that led to m.
func (e *expander) visit(m *ModuleVersion, direct map[*ModuleVersion][]*ModuleVersion, path []*ModuleVersion, needs *[]*ModuleVersion) {
	path = append(path, m)
	for _, d := range direct[m] {
		if slices.Contains(path, d) {
			if d == path[0] && d == e.firstOf(path) { // told once
				e.fail(d.BuildDepends[0].Pos, d.BuildDepends[0].Text, "build-depends: "+circle(path)+" need each other", "")
			}
			continue
		}
		if !slices.Contains(*needs, d) {
			e.visit(d, direct, path, needs)
			*needs = append(*needs, d)
		}
	}
}

// firstOf gives the one of modules that stands first in the farm file.
func (e *expander) firstOf(modules []*ModuleVersion) *ModuleVersion {
	i := slices.IndexFunc(e.farm.Modules, func(m *ModuleVersion) bool { return slices.Contains(modules, m) })
	return e.farm.Modules[i]
}

func circle(path []*ModuleVersion) string {
	var names []string
	for _, m := range path {
		names = append(names, m.Name+"/"+m.Version)
	}
	return sentence(names, "and")
}

// excludeUpon takes out the cells whose kernel lacks, or excludes, what they are built upon.
func (e *expander) excludeUpon(cells []Cell) {
	if !slices.ContainsFunc(e.farm.Modules, func(m *ModuleVersion) bool { return len(m.Needs) > 0 }) {
		return
	}
	type axes struct {
		module *ModuleVersion
		kernel *Kernel
	}
	at := make(map[axes]*Cell, len(cells))
	for i := range cells {
		at[axes{cells[i].Module, cells[i].Kernel}] = &cells[i]
	}
	for i := range cells {
		c := &cells[i]
		for _, n := range c.Module.Needs { // the first that is missing or excluded is so for its own reasons
			switch found := at[axes{n, c.Kernel}]; {
			case c.Excluded:
			case found == nil:
				c.Excluded, c.Why = true, fmt.Sprintf("%s/%s, which it is built upon, is not built for this kernel", n.Name, n.Version)
			case found.Excluded:
				c.Excluded, c.Why = true, fmt.Sprintf("%s/%s, which it is built upon, is %s", n.Name, n.Version, found.Why)
			}
		}
	}
}
