package boot

import (
	"bytes"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/kmod"
)

// indexVersion numbers the form of an index.
const indexVersion = 1

// index says what modules a kernel has of its own. The packages of a kernel hold
// no modules.dep, which depmod makes on the machine where they are installed; it
// is the same that the modules themselves say.
type index struct {
	Version int                  `json:"version"`
	Modules map[string]ownModule `json:"modules"` // by name
	Builtin []string             `json:"builtin"` // names and aliases of what is part of the kernel, sorted
	Aliases map[string][]string  `json:"aliases"` // names by alias, without those that stand for hardware
}

// ownModule is a module of the kernel's own.
type ownModule struct {
	Depends []string `json:"depends,omitzero"`
	Before  []string `json:"before,omitzero"` // softdep pre: names or aliases
}

func newIndex() *index {
	return &index{Version: indexVersion, Modules: map[string]ownModule{}, Aliases: map[string][]string{}}
}

// moduleName is a module's name as the kernel has it, for the name of a file, a
// module or an alias.
func moduleName(s string) string {
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		s = strings.TrimSuffix(s, suffix)
	}
	return strings.ReplaceAll(strings.TrimSuffix(s, ".ko"), "-", "_")
}

// needs are what a module says that it needs.
func needs(m *kmod.Module) ownModule {
	var n ownModule
	for d := range strings.SplitSeq(m.Get("depends"), ",") {
		if d != "" {
			n.Depends = append(n.Depends, moduleName(d))
		}
	}
	for _, s := range m.All("softdep") {
		n.Before = append(n.Before, softdepPre(s)...)
	}
	return n
}

// softdepPre are the names behind "pre:" of a softdep (modprobe.d(5)).
func softdepPre(s string) []string {
	var names []string
	pre := false
	for word := range strings.FieldsSeq(s) {
		switch word {
		case "pre:", "post:":
			pre = word == "pre:"
		default:
			if pre {
				names = append(names, moduleName(word))
			}
		}
	}
	return names
}

func (ix *index) add(name string, m *kmod.Module) {
	ix.Modules[name] = needs(m)
	for _, a := range m.All("alias") {
		if !strings.ContainsAny(a, ":*?[") {
			a = moduleName(a)
			ix.Aliases[a] = append(ix.Aliases[a], name)
		}
	}
}

// builtin reads modules.builtin: a path a line.
func (ix *index) builtin(data []byte) {
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		ix.Builtin = append(ix.Builtin, moduleName(line[strings.LastIndexByte(line, '/')+1:]))
	}
}

// builtinInfo reads modules.builtin.modinfo: NUL-separated name.key=value.
func (ix *index) builtinInfo(data []byte) {
	for s := range bytes.SplitSeq(data, []byte{0}) {
		name, rest, _ := strings.Cut(string(s), ".")
		if alias, ok := strings.CutPrefix(rest, "alias="); ok && !strings.ContainsAny(alias, ":*?[") {
			ix.Builtin = append(ix.Builtin, moduleName(name), moduleName(alias))
		}
	}
}

// finish sorts what came in the order of the packages.
func (ix *index) finish() {
	slices.Sort(ix.Builtin)
	ix.Builtin = slices.Compact(ix.Builtin)
	for _, names := range ix.Aliases {
		slices.Sort(names)
	}
}

// find gives the modules of a name or an alias; ok is false where the kernel
// knows it neither as a module nor as a part of its own.
func (ix *index) find(name string) (names []string, ok bool) {
	name = moduleName(name)
	if _, ok := ix.Modules[name]; ok {
		return []string{name}, true
	}
	if names := ix.Aliases[name]; len(names) > 0 {
		return names, true
	}
	_, ok = slices.BinarySearch(ix.Builtin, name)
	return nil, ok
}

// closure lists the modules that the names need, each before those that need it,
// where some are there instead of the kernel's own. unknown are names that the
// kernel does not have.
func (ix *index) closure(names []string, instead map[string]ownModule) (order, unknown []string) {
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		found, ok := ix.find(name)
		if _, there := instead[moduleName(name)]; there {
			found = []string{moduleName(name)}
		} else if !ok {
			unknown = append(unknown, name)
		}
		for _, n := range found {
			if seen[n] {
				continue
			}
			seen[n] = true
			m, there := instead[n]
			if !there {
				m = ix.Modules[n]
			}
			for _, before := range slices.Concat(m.Before, m.Depends) {
				visit(before)
			}
			order = append(order, n)
		}
	}
	for _, name := range names {
		visit(name)
	}
	return order, unknown
}
