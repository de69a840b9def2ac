package report

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/kofarm/kofarm/farm"
)

// shownCells is how many of the cells that share a fault are named.
const shownCells = 3

// Failures writes a block for every cell that is not as it should be: what went
// wrong, the log's first error line, the log's path below dir, and the command
// that again gives for its selector. A fault of the infrastructure that several
// cells share is told once; again gets "" then.
func Failures(w io.Writer, cells []farm.CellReport, dir string, again func(selector string) string) error {
	var b strings.Builder
	faults := map[string][]string{}
	for _, c := range cells {
		if isFault(c) {
			faults[wrong(c)] = append(faults[wrong(c)], c.Name())
		}
	}
	for _, c := range cells {
		what := wrong(c)
		if what == "" {
			continue
		}
		if names := faults[what]; isFault(c) && len(names) > 1 {
			if c.Name() == names[0] {
				shared(&b, what, names, again(""))
			}
			continue
		}
		fmt.Fprintf(&b, "%s %s\n", c.Name(), indent(what))
		if c.Outcome == farm.Failed && c.FirstError != "" {
			fmt.Fprintf(&b, "    %s\n", c.FirstError)
		}
		for _, line := range c.Test.Evidence() {
			fmt.Fprintf(&b, "    %s\n", line)
		}
		if c.Log != "" && c.Outcome != farm.Infrastructure && !c.Test.Wrong() { // that is an earlier build's, or says nothing of the test
			fmt.Fprintf(&b, "    %s\n", filepath.Join(dir, c.Log))
		}
		fmt.Fprintf(&b, "    %s\n", again(c.Selector()))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// shared writes the block of a fault that several cells have.
func shared(b *strings.Builder, what string, names []string, again string) {
	fmt.Fprintf(b, "%d cells %s\n", len(names), indent(what))
	for i, n := range names {
		if i == shownCells {
			fmt.Fprintf(b, "    and %d more\n", len(names)-i)
			break
		}
		fmt.Fprintf(b, "    %s\n", n)
	}
	fmt.Fprintf(b, "    %s\n", again)
}

// wrong says what is not as it should be with a cell, "" if nothing.
func wrong(c farm.CellReport) string {
	switch {
	case c.Outcome == farm.Failed:
		return fmt.Sprintf("failed: %s: %s", c.Phase, c.Message)
	case c.Outcome == farm.Infrastructure:
		return "infrastructure: " + c.Message
	case c.Check != nil && !c.Check.OK:
		return "check failed: " + c.Check.Problems[0].String()
	case c.Test.Wrong():
		return "test failed: " + c.Test.Summary()
	}
	return ""
}

// isFault says whether a cell has a fault that is not its own.
func isFault(c farm.CellReport) bool {
	return c.Outcome == farm.Infrastructure || c.Test != nil && c.Test.Err != nil
}

// indent moves a text's further lines below its first one.
func indent(text string) string { return strings.ReplaceAll(text, "\n", "\n    ") }
