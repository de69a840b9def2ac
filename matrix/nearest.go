package matrix

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxNearest is the longest word, in bytes, for which a neighbour is looked for.
const maxNearest = 64

// DidYouMean is a hint that names the candidate nearest to value, or "" where none is near.
func DidYouMean(value string, candidates []string) string {
	near := nearest(value, candidates, 1)
	if len(near) == 0 || distance(value, near[0]) > max(2, len(value)/3) {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", near[0])
}

// oneOf is DidYouMean, or where none is near the whole list.
func oneOf(value string, candidates []string) string {
	if hint := DidYouMean(value, candidates); hint != "" || len(candidates) == 0 {
		return hint
	}
	if len(candidates) > 12 {
		return "there are " + strings.Join(candidates[:12], ", ") + " and others"
	}
	if len(candidates) == 1 {
		return "there is " + candidates[0]
	}
	return "there are " + sentence(candidates, "and")
}

// nearest returns the n candidates of least edit distance, nearest first, equal ones in their order.
func nearest(value string, candidates []string, n int) []string {
	if len(value) > maxNearest {
		return nil
	}
	type scored struct {
		word string
		far  int
	}
	var list []scored
	seen := make(map[string]bool, len(candidates))
	for _, c := range candidates {
		if len(c) <= maxNearest && !seen[c] {
			seen[c] = true
			list = append(list, scored{c, distance(value, c)})
		}
	}
	slices.SortStableFunc(list, func(a, b scored) int { return cmp.Compare(a.far, b.far) })
	var words []string
	for _, s := range list[:min(n, len(list))] {
		words = append(words, s.word)
	}
	return words
}

// distance is the edit distance of a and b in bytes, where swapping two neighbours is one step
// (optimal string alignment).
func distance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
