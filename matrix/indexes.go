package matrix

import "slices"

// Index is a suite of a distribution's archive that a farm needs.
type Index struct {
	Distribution, Suite string
	Archs               []string // canonical, sorted
	Kernels             bool     // its kernels belong in the catalogue that Expand is handed
	Pos                 Pos      // where the file first names it
}

// use is one mention of a suite in the file.
type use struct {
	distribution, suite string
	archs               []string
	kernels             bool
	pos                 Pos
}

// Indexes returns the suites that the farm needs, in the order in which the file first names them: those of
// kernels and toolchains, then those of debs, then those that include names and nothing else does.
func (f *Farm) Indexes() []Index {
	var list []Index
	at := make(map[[2]string]int)
	for _, u := range f.uses() {
		i, ok := at[[2]string{u.distribution, u.suite}]
		if !ok {
			i = len(list)
			at[[2]string{u.distribution, u.suite}] = i
			list = append(list, Index{Distribution: u.distribution, Suite: u.suite, Pos: u.pos})
		}
		list[i].Kernels = list[i].Kernels || u.kernels
		list[i].Archs = union(list[i].Archs, u.archs)
	}
	for i := range list {
		slices.Sort(list[i].Archs)
	}
	return list
}

// ArchUse is one mention of an architecture to build for.
type ArchUse struct {
	Word         // the canonical name
	Distribution string
	Suites       []string // that it is built for; empty: any
}

// Archs returns every mention of an architecture to build for.
func (f *Farm) Archs() []ArchUse {
	var list []ArchUse
	add := func(words []Word, distribution string, suites []string) {
		for _, w := range words {
			list = append(list, ArchUse{w, distribution, suites})
		}
	}
	for _, entry := range f.Kernels {
		if set := entry.Set; set != nil {
			add(set.Arch, set.Distribution, Texts(set.Suites))
		}
		if k := entry.Custom; k != nil {
			add([]Word{{k.Arch, k.Pos}}, k.Toolchain.Distribution, []string{k.Toolchain.Suite})
		}
	}
	for _, r := range f.Include {
		if len(r.Release) > 0 {
			add(names(r.Arch), "", Texts(names(r.Suite)))
		}
	}
	return list
}

// union appends to list what is new in more.
func union(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// unionWords appends to list the words whose text is new in more.
func unionWords(list, more []Word) []Word {
	for _, w := range more {
		if !slices.ContainsFunc(list, func(known Word) bool { return known.Text == w.Text }) {
			list = append(list, w)
		}
	}
	return list
}

func (f *Farm) uses() []use {
	var list []use
	var archs []string
	for _, entry := range f.Kernels {
		if set := entry.Set; set != nil {
			archs = union(archs, Texts(set.Arch))
			for _, suite := range set.Suites {
				list = append(list, use{set.Distribution, suite.Text, Texts(set.Arch), true, suite.Pos})
			}
		}
		if k := entry.Custom; k != nil {
			archs = union(archs, []string{k.Arch})
			list = append(list, use{k.Toolchain.Distribution, k.Toolchain.Suite, []string{k.Arch}, false, k.Pos})
		}
	}
	for _, m := range f.Modules {
		if m.Source.Deb != "" {
			list = append(list, use{m.Source.Distribution, m.Source.Suite, archs, false, m.Source.Pos})
		}
	}
	for _, r := range f.Include {
		list = append(list, f.includeUses(r, archs)...)
	}
	return list
}

// includeUses are the suites that a rule of include names to add kernels of. Its distributions and
// architectures are those that it names, else those of the farm.
func (f *Farm) includeUses(r Rule, archs []string) []use {
	if len(r.Release) == 0 {
		return nil
	}
	distributions := names(r.Distribution)
	if len(distributions) == 0 {
		first, _ := f.firstArchive()
		distributions = []Word{{Text: first}}
	}
	if own := Texts(names(r.Arch)); len(own) > 0 {
		archs = own
	}
	var list []use
	for _, distribution := range distributions {
		for _, suite := range names(r.Suite) {
			list = append(list, use{distribution.Text, suite.Text, archs, true, suite.Pos})
		}
	}
	return list
}

// names returns the words that are no globs.
func names(words []Word) []Word {
	return slices.DeleteFunc(slices.Clone(words), func(w Word) bool { return isGlob(w.Text) })
}
