package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// run is the events of a run in which each suite has the tests a and b/c on
// every backend, one event a line.
func run(t *testing.T) []string {
	t.Helper()
	var lines []string
	add := func(action, pkg, test, output string) {
		data, err := json.Marshal(map[string]string{"Action": action, "Package": pkg, "Test": test, "Output": output})
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(data))
	}
	for _, b := range backends {
		for _, suite := range suites {
			for _, below := range []string{"/a", "/b/c", "/b", ""} {
				test := "Test" + suite + b.ending + below
				add("output", b.pkg, test, "said by "+test+"\n")
				add("pass", b.pkg, test, "")
			}
		}
		add("output", b.pkg, "", "ok  \t"+b.pkg+"\t1s\n")
		add("pass", b.pkg, "", "")
	}
	return lines
}

func TestReport(t *testing.T) {
	change := func(from, to string) func([]string) []string {
		return func(lines []string) []string {
			for i, line := range lines {
				lines[i] = strings.Replace(line, from, to, 1)
			}
			return lines
		}
	}
	without := func(what string) func([]string) []string {
		return func(lines []string) []string {
			var kept []string
			for _, line := range lines {
				if !strings.Contains(line, what) {
					kept = append(kept, line)
				}
			}
			return kept
		}
	}
	tests := []struct {
		name   string
		change func([]string) []string
		fault  bool
		want   string
	}{
		{"all pass", change("", ""), false, "16 tests × backends have passed"},
		{"a test fails", change(`"pass","Output":"","Package":"github.com/kofarm/kofarm/worker/docker","Test":"TestIsolation/a"`,
			`"fail","Output":"","Package":"github.com/kofarm/kofarm/worker/docker","Test":"TestIsolation/a"`), true, "said by TestIsolation/a\n"},
		{"a test is skipped", change(`"pass","Output":"","Package":"github.com/kofarm/kofarm/worker/docker","Test":"TestIsolation/a"`,
			`"skip","Output":"","Package":"github.com/kofarm/kofarm/worker/docker","Test":"TestIsolation/a"`), true, "isolation on docker: a: skip"},
		{"a backend is missing", without("worker/containerd"), true, "conformance on containerd: has not run"},
		{"a user's suite is missing", without("TestIsolationAsUser"), true, "isolation on embedded (user): has not run"},
		{"a test is missing", without("TestConformanceAsUser/a"), true, `conformance on embedded (user): has not the tests of embedded (root): ["a"]`},
		{"nothing has run", func([]string) []string { return nil }, true, "isolation on embedded (root): has not run"},
		{"a build fails", func(lines []string) []string {
			return append(lines, `{"Action":"build-output","Output":"x.go:1: no\n"}`, `{"Action":"build-fail"}`)
		}, true, "x.go:1: no\n"},
		{"a panic", func(lines []string) []string {
			return append(lines, `{"Action":"output","Package":"p","Test":"TestX","Output":"panic: no\n"}`, `{"Action":"fail","Package":"p"}`)
		}, true, "panic: no\n"},
		{"a line of the go command's", func(lines []string) []string { return append(lines, "go: no such tool") }, false, "go: no such tool\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			if err := r.read(strings.NewReader(strings.Join(tt.change(run(t)), "\n"))); err != nil {
				t.Fatal(err)
			}
			if faults := r.finish(); (faults > 0) != tt.fault || !strings.Contains(out.String(), tt.want) {
				t.Errorf("%d faults, output\n%swant %q", faults, out.String(), tt.want)
			}
			if !tt.fault && strings.Contains(out.String(), "said by") {
				t.Errorf("what passed has been printed:\n%s", out.String())
			}
		})
	}
}
