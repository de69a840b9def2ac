// Command suites reads what `go test -json` writes, prints it as `go test` would,
// and counts the tests of the suites that run on every backend. It fails where a
// test has failed, where a backend's suite is missing, has skipped a test, or has
// other tests than the same suite elsewhere: a count that nobody looks at could
// shrink.
//
//	go test -json ./... | suites
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// suites are the suites, and backends where each must have run, by package and
// the ending of the test's name.
var (
	suites   = []string{"Conformance", "Isolation"}
	backends = []struct{ name, pkg, ending string }{
		{"embedded (root)", "github.com/kofarm/kofarm/worker/embedded", ""},
		{"embedded (user)", "github.com/kofarm/kofarm/worker/embedded", "AsUser"},
		{"docker", "github.com/kofarm/kofarm/worker/docker", ""},
		{"containerd", "github.com/kofarm/kofarm/worker/containerd", ""},
	}
)

func main() {
	r := newReport(os.Stdout)
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "suites: reading the output of go test -json:", err)
		os.Exit(1)
	}
	if faults := r.finish(); faults > 0 {
		os.Exit(1)
	}
}

// event is one line of `go test -json` (go doc test2json, go help buildjson).
type event struct {
	Action, Package, Test, Output string
}

// report follows a run.
type report struct {
	out    io.Writer
	output map[string][]string          // of tests that run, and of packages, by package and test
	ended  map[string]map[string]string // package, test → pass, fail or skip
	faults int
}

func newReport(out io.Writer) *report {
	return &report{out: out, output: map[string][]string{}, ended: map[string]map[string]string{}}
}

// maxLine bounds one event.
const maxLine = 16 << 20

func (r *report) read(from io.Reader) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Action == "" {
			fmt.Fprintln(r.out, lines.Text()) // the go command's own
			continue
		}
		r.take(e)
	}
	return lines.Err()
}

func (r *report) take(e event) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output":
		r.keep(key, e)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "build-fail":
		r.faults++
	case "pass", "fail", "skip":
		if r.ended[e.Package] == nil {
			r.ended[e.Package] = map[string]string{}
		}
		r.ended[e.Package][e.Test] = e.Action
		if e.Action == "fail" {
			r.faults++
			r.failed(e.Package, e.Test)
		}
		delete(r.output, key)
	}
}

// keep keeps a line until it is known whether its test fails. A package's
// verdict is printed at once.
func (r *report) keep(key string, e event) {
	verdict := e.Test == "" && (strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t") || strings.HasPrefix(e.Output, "? "))
	switch {
	case verdict:
		fmt.Fprint(r.out, e.Output)
	case !strings.HasPrefix(e.Output, "=== "):
		r.output[key] = append(r.output[key], e.Output)
	}
}

// failed prints what a failed test has said, or a failed package: where that has
// ended before its tests, in a panic perhaps, theirs too.
func (r *report) failed(pkg, test string) {
	keys := []string{pkg + "\x00" + test}
	if test == "" {
		for key := range r.output {
			if strings.HasPrefix(key, pkg+"\x00") && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
	}
	for _, key := range keys {
		fmt.Fprint(r.out, strings.Join(r.output[key], ""))
		delete(r.output, key)
	}
}

// finish prints the table, and gives the number of faults in all.
func (r *report) finish() int {
	total := 0
	fmt.Fprintf(r.out, "\n%-12s", "tests")
	for _, b := range backends {
		fmt.Fprintf(r.out, "  %15s", b.name)
	}
	fmt.Fprintln(r.out)
	var wrong []string
	for _, suite := range suites {
		fmt.Fprintf(r.out, "%-12s", strings.ToLower(suite))
		var first []string
		for _, b := range backends {
			names, faults := r.leaves(b.pkg, "Test"+suite+b.ending)
			passed := len(names) - len(faults)
			if first == nil {
				first = names
			}
			switch {
			case len(names) == 0:
				faults = append(faults, "has not run")
			case !slices.Equal(first, names):
				faults = append(faults, fmt.Sprintf("has not the tests of %s: %q", backends[0].name, difference(first, names)))
			}
			for _, f := range faults {
				wrong = append(wrong, fmt.Sprintf("%s on %s: %s", strings.ToLower(suite), b.name, f))
			}
			total += passed
			fmt.Fprintf(r.out, "  %15d", passed)
		}
		fmt.Fprintln(r.out)
	}
	fmt.Fprintf(r.out, "%d tests × backends have passed\n", total)
	for _, w := range wrong {
		fmt.Fprintln(r.out, w)
	}
	if r.faults += len(wrong); r.faults > 0 {
		fmt.Fprintln(r.out, "FAIL")
	}
	return r.faults
}

// leaves gives the names, below a test, of those without tests below them, and
// says which of them have not passed.
func (r *report) leaves(pkg, test string) (below, faults []string) {
	ended := r.ended[pkg]
	names := slices.Sorted(maps.Keys(ended))
	for _, name := range names {
		leaf, ok := strings.CutPrefix(name, test+"/")
		if !ok || slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, name+"/") }) {
			continue
		}
		below = append(below, leaf)
		if ended[name] != "pass" {
			faults = append(faults, leaf+": "+ended[name])
		}
	}
	return below, faults
}

// difference gives the names that only one of two lists has.
func difference(a, b []string) []string {
	var only []string
	for _, name := range slices.Concat(a, b) {
		if slices.Contains(a, name) != slices.Contains(b, name) {
			only = append(only, name)
		}
	}
	return only
}
