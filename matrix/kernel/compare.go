package kernel

import (
	"cmp"
	"strings"
)

// Compare orders releases from old to new: by version (field by field, as numbers, a missing field is 0),
// then by the rest of the ABI (runs of digits as numbers, runs of letters as bytes; a release candidate is
// older than its release, a word older than a number), then by flavor, then byte by byte. So it is a total
// order, and 0 means equal strings.
func Compare(a, b Release) int {
	abiA, flavorA, _ := a.split()
	abiB, flavorB, _ := b.split()
	return cmp.Or(compareABI(abiA, abiB), compareRuns(flavorA, flavorB), cmp.Compare(a, b))
}

func compareABI(a, b string) int {
	baseA, baseB := baseVersion(a), baseVersion(b)
	return cmp.Or(compareFields(baseA, baseB), compareRuns(a[len(baseA):], b[len(baseB):]))
}

// baseVersion returns the dotted numbers that s begins with: "6.12.115" of "6.12.115+deb13".
func baseVersion(s string) string {
	end := 0
	for i := 0; i < len(s) && isDigit(s[i]); i++ {
		for i < len(s) && isDigit(s[i]) {
			i++
		}
		end = i
		if i == len(s) || s[i] != '.' {
			break
		}
	}
	return s[:end]
}

// compareFields compares dotted numbers; a missing field is 0.
func compareFields(a, b string) int {
	for a != "" || b != "" {
		var fieldA, fieldB string
		fieldA, a, _ = strings.Cut(a, ".")
		fieldB, b, _ = strings.Cut(b, ".")
		if c := compareNumbers(fieldA, fieldB); c != 0 {
			return c
		}
	}
	return 0
}

// compareNumbers compares runs of digits of any length; an empty one is 0.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// compareRuns compares run by run of digits or of letters; whatever separates them does not count.
// The kinds of a run are ordered, see runKind.
func compareRuns(a, b string) int {
	for {
		var runA, runB string
		runA, a = nextRun(a)
		runB, b = nextRun(b)
		kind := runKind(runA)
		if c := cmp.Compare(kind, runKind(runB)); c != 0 {
			return c
		}
		c := 0
		switch kind {
		case endRun:
			return 0
		case numberRun:
			c = compareNumbers(runA, runB)
		case wordRun:
			c = cmp.Compare(runA, runB)
		}
		if c != 0 {
			return c
		}
	}
}

const (
	candidateRun = iota // "rc"
	endRun
	wordRun
	numberRun
)

func runKind(run string) int {
	switch {
	case run == "":
		return endRun
	case run == "rc":
		return candidateRun
	case isDigit(run[0]):
		return numberRun
	}
	return wordRun
}

// nextRun returns the first run of digits or letters in s, "" at the end, and what follows it.
func nextRun(s string) (run, rest string) {
	start := 0
	for start < len(s) && !isAlnum(s[start]) {
		start++
	}
	end := start
	for end < len(s) && isAlnum(s[end]) && isDigit(s[end]) == isDigit(s[start]) {
		end++
	}
	return s[start:end], s[end:]
}
