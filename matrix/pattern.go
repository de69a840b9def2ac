package matrix

import (
	"path"
	"slices"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// pattern is a compiled Word: a name, a glob, or of releases also a range.
type pattern struct {
	text string
	glob bool
	rng  *kernel.Range
}

// newPattern compiles a name or glob.
func newPattern(text string) pattern { return pattern{text: text, glob: isGlob(text)} }

// newReleasePattern compiles what chooses releases. One that checkRelease would refuse matches nothing.
func newReleasePattern(text string) pattern {
	if kernel.IsRange(text) {
		if r, err := kernel.ParseRange(text); err == nil {
			return pattern{text: text, rng: &r}
		}
	}
	return newPattern(text)
}

func (p pattern) match(s string) bool {
	if !p.glob {
		return p.text == s
	}
	ok, err := path.Match(p.text, s)
	return ok && err == nil
}

// matchRelease matches the whole release, its ABI or, for a range, its place in the order.
func (p pattern) matchRelease(r kernel.Release) bool {
	if p.rng != nil {
		return p.rng.Contains(r)
	}
	return p.match(string(r)) || p.match(r.ABI())
}

func compile(words []Word, one func(string) pattern) []pattern {
	list := make([]pattern, len(words))
	for i, w := range words {
		list[i] = one(w.Text)
	}
	return list
}

// anyMatch says whether one of the patterns matches; none at all match everything.
func anyMatch(patterns []pattern, s string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p pattern) bool { return p.match(s) })
}

func anyMatchRelease(patterns []pattern, r kernel.Release) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p pattern) bool { return p.matchRelease(r) })
}
