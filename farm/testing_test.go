package farm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
)

// TestTested judges verdicts by what farm files expect and require.
func TestTested(t *testing.T) {
	type judgement struct{ ok, wrong, packable bool }
	const nothing, loaded = matrix.RequireNothing, matrix.RequireLoaded
	for _, tt := range []struct {
		verdict           boot.Verdict
		expected, require string
		want              judgement
	}{
		{boot.Loaded, "", nothing, judgement{true, false, true}},
		{boot.Loaded, "", loaded, judgement{true, false, true}},
		{boot.Refused, "", loaded, judgement{true, false, true}},
		{boot.Rejected, "", nothing, judgement{false, true, true}},
		{boot.Rejected, "", loaded, judgement{false, true, false}},
		{boot.Rejected, "rejected", nothing, judgement{true, false, true}},
		{boot.Rejected, "rejected", loaded, judgement{true, false, false}},
		{boot.Loaded, "rejected", loaded, judgement{false, true, false}},
		{boot.Refused, "loaded", loaded, judgement{false, true, false}},
		{"", "", nothing, judgement{false, false, true}},
		{"", "", loaded, judgement{false, true, false}},
	} {
		tests := &Tests{Required: tt.require == loaded}
		m := &matrix.ModuleVersion{Name: "m", Version: "1"}
		if tt.expected != "" {
			m.Test = &matrix.ModuleTest{Expect: []matrix.Expectation{{Verdict: tt.expected, Release: []matrix.Word{{Text: "6.1.*"}}}}}
		}
		c := &Cell{Cell: &matrix.Cell{Module: m, Kernel: &matrix.Kernel{Release: "6.1.0-9-amd64", Flavor: "amd64", Arch: "x86_64"}}}
		r := &Result{Cell: c, Outcome: Built, Record: &Record{}}
		if tt.verdict == "" {
			r.Test = &Tested{Required: tests.Required, Why: "no image"}
		} else {
			r.Test = tests.tested(c, boot.Result{Report: &boot.Report{Verdict: tt.verdict}})
		}
		if got := (judgement{r.Test.OK, r.Test.Wrong(), r.Packable()}); got != tt.want {
			t.Errorf("%s, expected %q, require %s: %+v, want %+v", tt.verdict, tt.expected, tt.require, got, tt.want)
		}
	}
}

// TestEvidence has what is told of a test beside its verdict.
func TestEvidence(t *testing.T) {
	many := func(what string, from, n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprint(what, from+i))
		}
		return lines
	}
	var none *Tested
	for name, tt := range map[string]struct {
		test    *Tested
		summary string
		want    []string
	}{
		"none":    {none, "", nil},
		"no boot": {&Tested{Why: "no qemu"}, "not tested: no qemu", nil},
		"loaded": {&Tested{OK: true, Verdict: boot.Loaded, Report: &boot.Report{Verdict: boot.Loaded, Notes: []string{"the kernel has no module x"},
			Modules: []boot.ModuleReport{{Module: "a.ko", Verdict: boot.Loaded, Kept: "Device or resource busy", Messages: []string{"a: hello"}}},
			Script:  &boot.ScriptReport{Output: []string{"fine"}}}}, "loaded",
			[]string{"the kernel has no module x", "a.ko could not be unloaded: Device or resource busy"}},
		"expected": {&Tested{OK: true, Verdict: boot.Rejected, Expected: "rejected", Report: &boot.Report{Verdict: boot.Rejected,
			Modules: []boot.ModuleReport{{Module: "a.ko", Verdict: boot.Rejected, Reason: "crc", Messages: []string{"a: disagrees"}}}}}, "rejected: a.ko: rejected (crc)", nil},
		"rejected": {&Tested{Verdict: boot.Rejected, Report: &boot.Report{Verdict: boot.Rejected, Modules: []boot.ModuleReport{
			{Module: "a.ko", Verdict: boot.Loaded, Messages: []string{"a: hello"}},
			{Module: "b.ko", Verdict: boot.Rejected, Reason: "symbol", Messages: many("b", 1, 14)}}}},
			"rejected: b.ko: rejected (symbol)", append(many("b", 1, 12), "… 2 more lines (--json has them)")},
		"a warning during the script": {&Tested{Verdict: boot.Crashed, Report: &boot.Report{Verdict: boot.Crashed,
			Modules: []boot.ModuleReport{{Module: "a.ko", Verdict: boot.Loaded}},
			Script:  &boot.ScriptReport{Reason: "warning", Messages: []string{"WARNING: CPU: 0"}, Output: []string{"fine"}}}},
			"crashed: warning during its test script", []string{"WARNING: CPU: 0", "script: fine"}},
		"a script that fails": {&Tested{Verdict: boot.Failed, Report: &boot.Report{Verdict: boot.Failed,
			Modules: []boot.ModuleReport{{Module: "a.ko", Verdict: boot.Loaded}},
			Script:  &boot.ScriptReport{Status: 1, Output: many("line ", 1, 14)}}},
			"failed: its test script ended with status 1", append([]string{"… 2 lines of the script before (--json has them)"}, many("script: line ", 3, 12)...)},
	} {
		if got := tt.test.Evidence(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		if tt.test != nil && tt.test.Summary() != tt.summary {
			t.Errorf("%s: %q, want %q", name, tt.test.Summary(), tt.summary)
		}
	}
}

// TestScripts has scripts that cannot be read.
func TestScripts(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{"good.sh": "true\n", "empty.sh": " \n", "large.sh": strings.Repeat("#", maxScript+1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	const kernels = "kernels: [{suite: bookworm}]\n"
	for name, want := range map[string]string{
		"good.sh":  "",
		"empty.sh": "farm.yaml:3:20: script: " + filepath.Join(dir, "empty.sh") + " is empty",
		"large.sh": "farm.yaml:3:20: script: " + filepath.Join(dir, "large.sh") + " has more than 1048576 bytes",
		"fifo.sh":  "farm.yaml:3:20: script: " + filepath.Join(dir, "fifo.sh") + " is no regular file",
		"none.sh":  "farm.yaml:3:20: script: stat " + filepath.Join(dir, "none.sh") + ": no such file or directory",
	} {
		f, _, err := matrix.Parse("farm.yaml", []byte("modules:\n  - source: {deb: a-dkms}\n    test: {script: "+name+"}\n"+kernels))
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewTests(f, dir, nil, nil)
		if got := errorOf(err); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func errorOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestUntested has cells that are not booted, and says why; none of them needs
// qemu.
func TestUntested(t *testing.T) {
	s := openStore(t)
	cell := func(k *matrix.Kernel, test *matrix.ModuleTest) *Cell {
		return &Cell{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: "m", Version: "1", Test: test}, Kernel: k}}
	}
	fits := &Record{Modules: []Module{{Name: "m-a.ko"}}}
	results := []*Result{
		{Cell: cell(&matrix.Kernel{Release: "6.1.0-9-amd64"}, nil), Outcome: Built, Record: fits},
		{Cell: cell(&matrix.Kernel{Release: "6.1.0-own", Custom: &matrix.CustomKernel{}}, nil), Outcome: Built, Record: fits},
		{Cell: cell(&matrix.Kernel{}, nil), Outcome: Failed},
		{Cell: cell(&matrix.Kernel{}, nil), Outcome: Built, Record: &Record{Check: Checked{Problems: []Problem{{}}}}},
	}
	upon := cell(&matrix.Kernel{Release: "6.1.0-9-amd64"}, nil)
	upon.Boot = []*apt.Package{{Name: "linux-image"}}
	upon.Needs = []*Cell{{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: "low", Version: "2"}, Kernel: upon.Kernel}, Key: "gone"}}
	results = append(results, &Result{Cell: upon, Outcome: Built, Record: fits})
	tests, err := NewTests(&matrix.Farm{File: "farm.yaml", Test: &matrix.Test{Require: matrix.RequireLoaded}}, "", s, &boot.Tester{Store: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := tests.Run(t.Context(), results, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		data, err := json.Marshal(r.Test)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(data))
	}
	want := []string{
		`{"ok":false,"required":true,"why":"the archive has no image of kernel 6.1.0-9-amd64","cached":false}`,
		`{"ok":false,"required":true,"why":"of a kernel of one's own there are only headers; where require: loaded keeps its modules from being packed, give it a farm file without","cached":false}`,
		"null", "null",
		`{"ok":false,"required":true,"why":"low/2, which it is built upon: result gone: not in the store; ` + "`kofarm build`" + ` makes it","cached":false}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestParameters finds those of a module that the build does not make, and takes
// both spellings of a name.
func TestParameters(t *testing.T) {
	tests := &Tests{Store: openStore(t), farm: &matrix.Farm{File: "farm.yaml"}}
	m := &matrix.ModuleVersion{Name: "m", Version: "1", Test: &matrix.ModuleTest{Pos: matrix.Pos{Line: 3, Column: 5}, First: []string{"snd"},
		Parameters: map[string][]string{"m_a": {"x=1"}}}}
	r := &Result{Cell: &Cell{Cell: &matrix.Cell{Module: m, Kernel: &matrix.Kernel{Release: "6.1.0-9-amd64", Arch: "x86_64"}}},
		Outcome: Built, Record: &Record{Modules: []Module{{Name: "m-a.ko"}, {Name: "m_b.ko"}}}}
	u, err := tests.unit(t.Context(), r)
	if err != nil || !slices.Equal(u.Modules[0].Parameters, []string{"x=1"}) || u.Modules[1].Parameters != nil || !slices.Equal(u.First, []string{"snd"}) {
		t.Errorf("%+v, %v", u, err)
	}
	for i := range 50 {
		m.Test.Parameters[fmt.Sprintf("nosuch%d", 59-i)] = []string{"y=2"}
	}
	_, err = tests.unit(t.Context(), r)
	if want := "farm.yaml:3:5: parameters: m/1 on 6.1.0-9-amd64 (x86_64) makes no module nosuch10 (it makes m-a.ko, m_b.ko)"; errorOf(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
}
