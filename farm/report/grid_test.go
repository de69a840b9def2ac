package report

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/matrix"
)

func TestGrid(t *testing.T) {
	m := &matrix.ModuleVersion{Name: "a", Version: "1"}
	g := NewGrid()
	add := func(release string, status farm.Status, rec *farm.Record, test *farm.Tested) {
		g.Add(&farm.Cell{Cell: &matrix.Cell{Module: m, Kernel: &matrix.Kernel{Release: release, Arch: "x86_64"}}}, status, rec, test)
	}
	add("k1", farm.Status(farm.Built), &farm.Record{Outcome: farm.Built}, &farm.Tested{OK: true, Verdict: boot.Loaded})
	add("k2", farm.Status(farm.Failed), &farm.Record{Outcome: farm.Failed, Phase: "make", Message: "make ended with status 2", FirstError: "a.c:1: error: no"}, nil)
	add("k3", farm.CheckFailed, &farm.Record{Outcome: farm.Built, Check: farm.Checked{Problems: []farm.Problem{
		{Module: "a.ko", Kind: "vermagic", Detail: "of another"}, {Module: "b.ko", Kind: "symbol", Detail: "is missing"}}}}, nil)
	add("k4", farm.NotYet, nil, nil)
	add("k5", farm.Status(farm.Built), &farm.Record{Outcome: farm.Built}, &farm.Tested{Verdict: boot.Crashed})
	add("k6", farm.Status(farm.Failed), &farm.Record{Outcome: farm.Failed, Phase: "timeout", Message: "it was stopped"}, nil)
	add("k7", farm.Status(farm.Excluded), &farm.Record{Outcome: farm.Excluded, Phase: "exclusive", Message: "not this one"}, nil)

	const want = `KERNEL     a/1
k1 x86_64  built, loaded
k2 x86_64  FAILED
k3 x86_64  CHECK
k4 x86_64  .
k5 x86_64  built, CRASHED
k6 x86_64  FAILED
k7 x86_64  -
a/1 on k2 (x86_64) failed: make: make ended with status 2
    a.c:1: error: no
a/1 on k3 (x86_64) check failed: a.ko: vermagic: of another; and 1 more
a/1 on k5 (x86_64) test failed: crashed
a/1 on k6 (x86_64) failed: timeout: it was stopped
7 cells: 2 built, 1 excluded, 2 failed, 1 check failed, 1 not yet
`
	var text strings.Builder
	if err := g.Text(&text); err != nil || text.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, text.String(), want)
	}
	var data strings.Builder
	if err := g.JSON(&data); err != nil {
		t.Fatal(err)
	}
	var got struct{ Cells []map[string]any }
	if err := json.Unmarshal([]byte(data.String()), &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Cells[2]; c["phase"] != "check" || c["message"] != "a.ko: vermagic: of another; b.ko: symbol: is missing" {
		t.Errorf("a failed check: got %v", c)
	}
	if c := got.Cells[1]; c["firstError"] != "a.c:1: error: no" {
		t.Errorf("a failed build: got %v", c)
	}
}
