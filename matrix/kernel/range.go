package kernel

import (
	"fmt"
	"strings"
)

// maxBounds is how many bounds a range may have.
const maxBounds = 16

// Range is a set of releases given by bounds that all hold, such as ">=6.1.0-50 <6.2". Its zero value
// holds every release.
type Range struct{ bounds []bound }

type bound struct{ op, abi string }

// rangeOps are the operators, a longer one before its prefix.
var rangeOps = []string{">=", "<=", "!=", "==", ">", "<", "="}

// IsRange says whether s is meant as a range: it begins with an operator.
func IsRange(s string) bool {
	return strings.IndexAny(strings.TrimSpace(s), "<>=!") == 0
}

// ParseRange parses bounds separated by spaces or commas: an operator (>= <= != == > < =) and a version
// or ABI ("7", "6.2", "6.1.0-50", "6.12.115+deb13"). A bound has no flavor.
func ParseRange(s string) (Range, error) {
	var r Range
	for rest := trimRange(s); rest != ""; rest = trimRange(rest) {
		if len(r.bounds) == maxBounds {
			return Range{}, fmt.Errorf("%w: a range of more than %d bounds", ErrRelease, maxBounds)
		}
		var (
			b   bound
			err error
		)
		if b, rest, err = parseBound(rest); err != nil {
			return Range{}, err
		}
		r.bounds = append(r.bounds, b)
	}
	if len(r.bounds) == 0 {
		return Range{}, fmt.Errorf("%w: an empty range", ErrRelease)
	}
	return r, nil
}

func trimRange(s string) string { return strings.TrimLeft(s, " \t,") }

func parseBound(s string) (b bound, rest string, err error) {
	for _, op := range rangeOps {
		if strings.HasPrefix(s, op) {
			b.op = op
			break
		}
	}
	if b.op == "" {
		return bound{}, "", fmt.Errorf("%w: %q does not begin with one of >= <= != == > <", ErrRelease, clip(s))
	}
	s = strings.TrimLeft(s[len(b.op):], " \t")
	end := strings.IndexAny(s, " \t,")
	if end < 0 {
		end = len(s)
	}
	b.abi = s[:end]
	if err := checkRelease(b.abi); err != nil {
		return bound{}, "", fmt.Errorf("bound of %s: %w", b.op, err)
	}
	if abi := Release(b.abi).ABI(); abi != b.abi {
		return bound{}, "", fmt.Errorf("%w: the bound %q has more than a version and ABI; write %q", ErrRelease, b.abi, abi)
	}
	return b, s[end:], nil
}

// Contains says whether the release's ABI lies within every bound. The order is that of Compare, so
// "<=6.1" does not hold 6.1.0-56 (write "<6.2"), and ">=6.9" does not hold 6.9-rc5.
func (r Range) Contains(release Release) bool {
	abi := release.ABI()
	for _, b := range r.bounds {
		if !b.holds(compareABI(abi, b.abi)) {
			return false
		}
	}
	return true
}

func (b bound) holds(c int) bool {
	switch b.op {
	case ">=":
		return c >= 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	case "<":
		return c < 0
	case "!=":
		return c != 0
	}
	return c == 0
}
