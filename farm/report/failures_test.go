package report

import (
	"errors"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/matrix"
)

func TestFailures(t *testing.T) {
	cell := func(module, release string, change func(*farm.CellReport)) farm.CellReport {
		c := farm.CellReport{Row: matrix.Row{Module: module, Version: "1", Release: release, Arch: "x86_64"}, Outcome: farm.Built}
		change(&c)
		return c
	}
	failed := func(c *farm.CellReport) {
		c.Outcome, c.Phase, c.Message, c.FirstError, c.Log = farm.Failed, "make", "make ended with status 2", "b.c:1:2: error: no", "logs/b-1/k.log"
	}
	fault := func(message string) func(*farm.CellReport) {
		return func(c *farm.CellReport) { c.Outcome, c.Message = farm.Infrastructure, message }
	}
	tests := []struct {
		name  string
		cells []farm.CellReport
		want  string
	}{
		{"nothing", []farm.CellReport{cell("a", "k", func(*farm.CellReport) {}), cell("a", "l", func(c *farm.CellReport) { c.Outcome = farm.Excluded })}, ""},
		{"one of many", []farm.CellReport{cell("a", "k", func(*farm.CellReport) {}), cell("b", "k", failed)}, `b/1 on k (x86_64) failed: make: make ended with status 2
    b.c:1:2: error: no
    dist/logs/b-1/k.log
    again b/1@k/x86_64
`},
		{"each failure by itself", []farm.CellReport{cell("b", "k", failed), cell("b", "l", failed)}, `b/1 on k (x86_64) failed: make: make ended with status 2
    b.c:1:2: error: no
    dist/logs/b-1/k.log
    again b/1@k/x86_64
b/1 on l (x86_64) failed: make: make ended with status 2
    b.c:1:2: error: no
    dist/logs/b-1/k.log
    again b/1@l/x86_64
`},
		{"a shared fault once", []farm.CellReport{cell("a", "k", fault("no disk\nfree some")), cell("a", "l", fault("no net")), cell("a", "m", fault("no disk\nfree some")),
			cell("a", "n", fault("no disk\nfree some")), cell("a", "o", fault("no disk\nfree some"))}, `4 cells infrastructure: no disk
    free some
    a/1 on k (x86_64)
    a/1 on m (x86_64)
    a/1 on n (x86_64)
    and 1 more
    again 
a/1 on l (x86_64) infrastructure: no net
    again a/1@l/x86_64
`},
		{"does not fit", []farm.CellReport{cell("a", "k", func(c *farm.CellReport) {
			c.Check = &farm.CheckReport{Problems: []farm.Problem{{Module: "a.ko", Kind: "vermagic", Detail: "of another"}}}
		})}, `a/1 on k (x86_64) check failed: a.ko: vermagic: of another
    again a/1@k/x86_64
`},
		{"a kernel that does not boot", []farm.CellReport{
			cell("a", "k", func(c *farm.CellReport) { c.Test = &farm.Tested{Why: "no qemu", Err: errors.New("no qemu")} }),
			cell("b", "k", func(c *farm.CellReport) { c.Test = &farm.Tested{Why: "no qemu", Err: errors.New("no qemu")} })}, `2 cells test failed: not tested: no qemu
    a/1 on k (x86_64)
    b/1 on k (x86_64)
    again 
`},
		{"crashes", []farm.CellReport{cell("a", "k", func(c *farm.CellReport) {
			c.Test = &farm.Tested{Verdict: boot.Crashed, Report: &boot.Report{Modules: []boot.ModuleReport{{Module: "a.ko", Verdict: boot.Crashed, Reason: "oops", Messages: []string{"BUG: a"}}}}}
		})}, `a/1 on k (x86_64) test failed: crashed: a.ko: crashed (oops)
    BUG: a
    again a/1@k/x86_64
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			if err := Failures(&got, tt.cells, "dist", func(s string) string { return "again " + s }); err != nil || got.String() != tt.want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, got.String(), tt.want)
			}
		})
	}
}
