package lock

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/matrix"
)

// Drift is one way in which a farm file, or what it names, is not what the lock
// says.
type Drift struct {
	Pos  matrix.Pos // in the farm file; zero: not there
	Line int        // in the lock; 0: not there
	Msg  string
}

// Text names the places in both files.
func (d Drift) Text(farm, lock string) string {
	var places []string
	if d.Pos != (matrix.Pos{}) {
		places = append(places, fmt.Sprintf("%s:%d:%d", farm, d.Pos.Line, d.Pos.Column))
	}
	if d.Line > 0 {
		places = append(places, fmt.Sprintf("%s:%d", lock, d.Line))
	}
	return strings.Join(places, ", ") + ": " + d.Msg
}

// Sort sorts by the places.
func Sort(drifts []Drift) {
	slices.SortStableFunc(drifts, func(a, b Drift) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column), cmp.Compare(a.Line, b.Line))
	})
}

// Compare finds where a farm file and the lock differ, as far as that shows
// without reading anything else.
func (l *Lock) Compare(f *matrix.Farm) []Drift {
	drifts := slices.Concat(l.compareModules(f), l.compareAsks(f), l.compareOwn(f))
	Sort(drifts)
	return drifts
}

func (l *Lock) compareModules(f *matrix.Farm) []Drift {
	var drifts []Drift
	used := map[*Module]bool{}
	for _, m := range f.Modules {
		pinned := l.Module(m.Source)
		used[pinned] = true
		switch {
		case pinned == nil:
			drifts = append(drifts, Drift{m.Source.Pos, 0, fmt.Sprintf("%s is not in the lock", SourceName(m.Source))})
		case m.Source.SHA256 != "" && m.Source.SHA256 != pinned.SHA256:
			drifts = append(drifts, Drift{m.Source.Pos, pinned.Line, fmt.Sprintf("%s: the farm file says sha256 %s, the lock %s", pinned.Source, m.Source.SHA256, pinned.SHA256)})
		}
	}
	for _, m := range l.Modules {
		if !used[m] {
			drifts = append(drifts, Drift{Line: m.Line, Msg: fmt.Sprintf("%s is no longer in the farm file", m.Source)})
		}
	}
	return drifts
}

// compareAsks compares what suites are asked for.
func (l *Lock) compareAsks(f *matrix.Farm) []Drift {
	var drifts []Drift
	asked := map[*Suite][]string{}
	for _, a := range f.Asks() {
		s := l.Suite(a.Distribution, a.Suite, a.Arch)
		if s == nil || !slices.Contains(s.Asks, a.Text) {
			line := 0
			if s != nil {
				line = s.Line
			}
			drifts = append(drifts, Drift{a.Pos, line, fmt.Sprintf("the lock has no answer to: %s in %s", a.Text, a)})
		}
		asked[s] = append(asked[s], a.Text)
	}
	for _, s := range l.Suites {
		for _, text := range s.Asks {
			if !slices.Contains(asked[s], text) {
				drifts = append(drifts, Drift{Line: s.Line, Msg: fmt.Sprintf("the farm file no longer asks for: %s in %s", text, s)})
			}
		}
	}
	return drifts
}

// Answers says whether the lock's kernels of a suite are the answer to what the
// farm file asks for now.
func (l *Lock) Answers(f *matrix.Farm, distribution, suite, arch string) bool {
	s := l.Suite(distribution, suite, arch)
	if s == nil {
		return false
	}
	var asks []string
	for _, a := range f.Asks() {
		if a.Distribution == distribution && a.Suite == suite && a.Arch == arch {
			asks = append(asks, a.Text)
		}
	}
	return len(asks) > 0 && slices.Equal(unique(asks), unique(s.Asks))
}

// unique sorts words and drops those that are there again.
func unique(words []string) []string { return slices.Compact(slices.Sorted(slices.Values(words))) }

// compareOwn compares kernels of one's own.
func (l *Lock) compareOwn(f *matrix.Farm) []Drift {
	var drifts []Drift
	used := map[*Kernel]bool{}
	for _, entry := range f.Kernels {
		k := entry.Custom
		if k == nil {
			continue
		}
		pinned := l.Own(k)
		used[pinned] = true
		switch {
		case pinned == nil:
			drifts = append(drifts, Drift{k.Pos, 0, fmt.Sprintf("kernel %s is not in the lock", k.Release)})
		case !slices.Equal(pinned.Own.Packages, matrix.Texts(k.Toolchain.Packages)):
			drifts = append(drifts, Drift{k.Pos, pinned.Line, fmt.Sprintf("kernel %s: the farm file says toolchain packages %q, the lock %q", k.Release, matrix.Texts(k.Toolchain.Packages), pinned.Own.Packages)})
		}
	}
	for _, s := range l.Suites {
		for _, k := range s.Kernels {
			if k.Own != nil && !used[k] {
				drifts = append(drifts, Drift{Line: k.Line, Msg: fmt.Sprintf("kernel %s is no longer in the farm file", k.Release)})
			}
		}
	}
	return drifts
}

// Own finds a kernel of one's own, nil where it is not there. A nil lock has
// none.
func (l *Lock) Own(k *matrix.CustomKernel) *Kernel {
	return l.Suite(k.Toolchain.Distribution, k.Toolchain.Suite, k.Arch).Kernel(k.Release, true)
}
