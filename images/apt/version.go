package apt

import (
	"cmp"
	"fmt"
	"strings"
)

// maxVersion is the most bytes of a version that is taken.
const maxVersion = 512

// CompareVersions orders two versions as Debian Policy 5.6.12 and dpkg do: it is negative where a is
// older than b. Versions that CheckVersion refuses are ordered too, somehow but consistently.
func CompareVersions(a, b string) int {
	epochA, restA := cutEpoch(a)
	epochB, restB := cutEpoch(b)
	if c := compareDigits(epochA, epochB); c != 0 {
		return c
	}
	upstreamA, revisionA := cutRevision(restA)
	upstreamB, revisionB := cutRevision(restB)
	if c := comparePart(upstreamA, upstreamB); c != 0 {
		return c
	}
	return comparePart(revisionA, revisionB)
}

// CheckVersion returns an error that says why v is no valid version.
func CheckVersion(v string) error {
	if len(v) > maxVersion {
		return fmt.Errorf("version of %d bytes is longer than %d", len(v), maxVersion)
	}
	epoch, rest := "", v
	if before, after, ok := strings.Cut(v, ":"); ok {
		epoch, rest = before, after
		// dpkg takes an epoch up to INT_MAX, which nine digits stay below.
		if epoch == "" || strings.Trim(epoch, "0123456789") != "" || len(epoch) > 9 {
			return fmt.Errorf("version %q: epoch %q is not a small number", v, epoch)
		}
	}
	upstream, revision := cutRevision(rest)
	switch {
	case upstream == "":
		return fmt.Errorf("version %q: the upstream version is empty", v)
	case !isDigit(upstream[0]):
		return fmt.Errorf("version %q: the upstream version does not begin with a digit", v)
	case strings.HasSuffix(rest, "-"):
		return fmt.Errorf("version %q: the revision is empty", v)
	}
	for _, part := range []struct{ text, extra string }{{upstream, ".+-~:"}, {revision, ".+~"}} {
		for i := range len(part.text) {
			if c := part.text[i]; !isDigit(c) && !isLetter(c) && strings.IndexByte(part.extra, c) < 0 {
				return fmt.Errorf("version %q: character %q is not allowed", v, c)
			}
		}
	}
	return nil
}

func cutEpoch(v string) (epoch, rest string) {
	if before, after, ok := strings.Cut(v, ":"); ok {
		return before, after
	}
	return "", v
}

// cutRevision splits at the last hyphen.
func cutRevision(v string) (upstream, revision string) {
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return v[:i], v[i+1:]
	}
	return v, ""
}

// comparePart compares upstream versions or revisions: runs of non-digits by the order of weight,
// runs of digits as numbers, in turn.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		for a != "" && !isDigit(a[0]) || b != "" && !isDigit(b[0]) {
			if c := cmp.Compare(weight(a), weight(b)); c != 0 {
				return c
			}
			a, b = a[min(1, len(a)):], b[min(1, len(b)):]
		}
		digitsA, digitsB := leadingDigits(a), leadingDigits(b)
		if c := compareDigits(digitsA, digitsB); c != 0 {
			return c
		}
		a, b = a[len(digitsA):], b[len(digitsB):]
	}
	return 0
}

// weight orders the first character of s: a tilde before the end (or a digit), that before letters,
// letters before all others.
func weight(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case isLetter(s[0]):
		return int(s[0])
	}
	return int(s[0]) + 256
}

// compareDigits compares numbers of any length; none is zero.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func leadingDigits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
