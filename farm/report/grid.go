package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/matrix"
)

// Grid shows module versions × kernels at a glance.
type Grid struct {
	modules []*matrix.ModuleVersion
	kernels []*matrix.Kernel
	cells   map[gridKey]farm.Status
	tests   map[gridKey]*farm.Tested
	rows    []gridRow
	wrong   []string // of each cell that is not as it should be, why
	counts  map[farm.Status]int
}

type gridKey struct {
	module *matrix.ModuleVersion
	kernel *matrix.Kernel
}

// gridRow is a cell of the JSON form.
type gridRow struct {
	Module  string      `json:"module"`
	Version string      `json:"version"`
	Release string      `json:"release"`
	Arch    string      `json:"arch"`
	Key     string      `json:"key,omitzero"`
	Status  farm.Status `json:"status"`
	Phase   string      `json:"phase,omitzero"` // where it failed; "check" for modules that do not fit
	Message string      `json:"message,omitzero"`
	First   string      `json:"firstError,omitzero"` // of the log
	Verdict string      `json:"verdict,omitzero"`    // in its own kernel
	TestOK  *bool       `json:"testOK,omitzero"`     // whether that is as expected
}

// NewGrid makes an empty grid.
func NewGrid() *Grid {
	return &Grid{cells: map[gridKey]farm.Status{}, tests: map[gridKey]*farm.Tested{}, counts: map[farm.Status]int{}}
}

// Add enters a cell. Cells come in the plan's order. The test is nil where there
// is none.
func (g *Grid) Add(c *farm.Cell, status farm.Status, rec *farm.Record, test *farm.Tested) {
	if len(g.modules) == 0 || g.modules[len(g.modules)-1] != c.Module {
		g.modules = append(g.modules, c.Module)
	}
	if !slices.Contains(g.kernels, c.Kernel) {
		g.kernels = append(g.kernels, c.Kernel)
	}
	g.cells[gridKey{c.Module, c.Kernel}] = status
	g.counts[status]++
	row := gridRow{Module: c.Module.Name, Version: c.Module.Version, Release: c.Kernel.Release, Arch: c.Kernel.Arch,
		Key: c.Key, Status: status}
	if rec != nil {
		row.Phase, row.Message, row.First = rec.Phase, rec.Message, rec.FirstError
		if status == farm.CheckFailed {
			row.Phase, row.Message = "check", strings.Join(rec.Reasons(), "; ")
		}
	}
	if test != nil {
		g.tests[gridKey{c.Module, c.Kernel}] = test
		row.Verdict, row.TestOK = string(test.Verdict), &test.OK
	}
	if w := why(status, rec, test); w != "" {
		g.wrong = append(g.wrong, c.Name()+" "+w)
	}
	g.rows = append(g.rows, row)
}

// why says in few lines why a cell is not as it should be; "" if it is.
func why(status farm.Status, rec *farm.Record, test *farm.Tested) string {
	switch {
	case status == farm.Status(farm.Failed) || status == farm.CheckFailed:
		reasons := rec.Reasons()
		s := fmt.Sprintf("%s: %s", status, reasons[0])
		if len(reasons) > 1 {
			s += fmt.Sprintf("; and %d more", len(reasons)-1)
		}
		if rec.FirstError != "" {
			s += "\n    " + rec.FirstError
		}
		return s
	case test.Wrong() && test.Verdict != "":
		return "test failed: " + test.Summary()
	}
	return ""
}

// marks are what the grid shows for a status.
var marks = []struct {
	status farm.Status
	mark   string
}{
	{farm.Status(farm.Built), "built"},
	{farm.Status(farm.Excluded), "-"},
	{farm.Status(farm.Failed), "FAILED"},
	{farm.CheckFailed, "CHECK"},
	{farm.NotYet, "."},
}

// Text writes the grid: a row for each kernel, a column for each module version.
// Below it stands what is wrong.
func (g *Grid) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "KERNEL")
	for _, m := range g.modules {
		fmt.Fprintf(t, "\t%s/%s", m.Name, m.Version)
	}
	fmt.Fprintln(t)
	for _, k := range g.kernels {
		fmt.Fprintf(t, "%s %s", k.Release, k.Arch)
		for _, m := range g.modules {
			fmt.Fprintf(t, "\t%s", g.mark(m, k))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, why := range g.wrong {
		if _, err := fmt.Fprintln(w, why); err != nil {
			return err
		}
	}
	var parts []string
	for _, m := range marks {
		if n := g.counts[m.status]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, m.status))
		}
	}
	_, err := fmt.Fprintf(w, "%d cells: %s\n", len(g.rows), strings.Join(parts, ", "))
	return err
}

func (g *Grid) mark(m *matrix.ModuleVersion, k *matrix.Kernel) string {
	status, ok := g.cells[gridKey{m, k}]
	if !ok {
		return ""
	}
	for _, mark := range marks {
		if mark.status == status {
			return mark.mark + testMark(g.tests[gridKey{m, k}])
		}
	}
	return string(status)
}

// testMark is a verdict behind a mark, in capitals where it is not as expected.
func testMark(t *farm.Tested) string {
	switch {
	case t == nil || t.Verdict == "":
		return ""
	case t.OK:
		return ", " + string(t.Verdict)
	}
	return ", " + strings.ToUpper(string(t.Verdict))
}

// JSON writes the cells.
func (g *Grid) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(struct {
		Version int       `json:"version"`
		Cells   []gridRow `json:"cells"`
	}{1, g.rows})
}
