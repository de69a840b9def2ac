package workertest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage compares the lines of package worker's threat model with the
// isolation suite: each has a test, and each test a line, in the same order.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "//\tTEST ")
	if !ok {
		t.Fatal("the page has no table of tests")
	}
	table, _, _ = strings.Cut(table, "//\n")
	var got, want []string
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z-]+) `).FindAllStringSubmatch(table, -1) {
		got = append(got, m[1])
	}
	for _, a := range attacks() {
		want = append(want, a.name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the page has lines for\n%q\nthe suite tests\n%q", got, want)
	}
}
