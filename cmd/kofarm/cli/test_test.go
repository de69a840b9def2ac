package cli

import (
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/matrix"
)

// TestListVerdicts names every cell that there is something to say of.
func TestListVerdicts(t *testing.T) {
	result := func(module string, outcome farm.Outcome, test *farm.Tested) *farm.Result {
		c := &matrix.Cell{Module: &matrix.ModuleVersion{Name: module, Version: "1"}, Kernel: &matrix.Kernel{Release: "k", Arch: "x86_64"}}
		return &farm.Result{Cell: &farm.Cell{Cell: c}, Outcome: outcome, Test: test}
	}
	a := &app{rerun: func(selector string) string { return "again " + selector }}
	var got strings.Builder
	err := a.listVerdicts(&got, []*farm.Result{
		result("a", farm.Excluded, nil),
		result("b", farm.Failed, nil),
		result("c", farm.Built, nil),
		result("d", farm.Outcome(farm.NotYet), nil),
		result("e", farm.Built, &farm.Tested{OK: true, Verdict: boot.Loaded}),
		result("f", farm.Built, &farm.Tested{Verdict: boot.Crashed}),
	}, boot.Stats{})
	want := `b/1 on k (x86_64): not tested: its build has failed: see "kofarm log"  ✗
c/1 on k (x86_64): not tested: its modules do not fit the kernel: see "kofarm status"  ✗
d/1 on k (x86_64): not tested: it is not built yet: run "kofarm build"  ✗
e/1 on k (x86_64): loaded
f/1 on k (x86_64): crashed  ✗
    again f/1@k/x86_64
1 loaded, 1 crashed, 3 not tested; 0 boots, 0.0s of CPU
`
	if err != nil || got.String() != strings.ReplaceAll(want, `"`, "`") {
		t.Errorf("%v, got\n%s", err, got.String())
	}
}
