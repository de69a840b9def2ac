// Package report shows people how a farm is doing: progress while it builds,
// and the matrix at a glance.
package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kofarm/kofarm/farm"
)

// Progress prints a line for each cell that ends. On a terminal it also keeps a
// view of running cells, downloads and counts below them. Else it says once that
// images are being prepared, which takes its time where much has to be downloaded.
type Progress struct {
	screen    *Screen
	downloads Downloads
	hide      func()

	mu      sync.Mutex
	total   int
	done    int
	cached  int
	counts  map[farm.Outcome]int
	running []run
	said    bool // that images are being prepared
}

var _ farm.Observer = (*Progress)(nil)

type run struct {
	cell    *farm.Cell
	since   time.Time
	started bool // its image is there
}

// NewProgress makes a Progress for so many cells. Close ends it.
func NewProgress(s *Screen, total int, d Downloads) *Progress {
	p := &Progress{screen: s, downloads: d, total: total, counts: map[farm.Outcome]int{}}
	p.hide = s.Show(p.view)
	return p
}

// Preparing implements farm.Observer.
func (p *Progress) Preparing(c *farm.Cell) {
	p.note(func() string {
		p.running = append(p.running, run{c, time.Now(), false})
		if p.screen.Live() || p.said {
			return ""
		}
		p.said = true
		return "preparing images; what the store lacks is downloaded\n"
	})
}

// Started implements farm.Observer.
func (p *Progress) Started(c *farm.Cell) {
	p.note(func() string {
		p.forget(c)
		p.running = append(p.running, run{c, time.Now(), true})
		return ""
	})
}

// Retrying implements farm.Observer.
func (p *Progress) Retrying(c *farm.Cell, wait time.Duration, err error) {
	p.note(func() string {
		p.forget(c)
		return fmt.Sprintf("%-14s %s in %s\n    %s\n", "trying again", c.Name(), wait, firstLine(err))
	})
}

// Finished implements farm.Observer.
func (p *Progress) Finished(r *farm.Result) {
	p.note(func() string {
		p.forget(r.Cell)
		p.done++
		p.counts[r.Outcome]++
		if r.Cached {
			p.cached++
			return ""
		}
		return line(r)
	})
}

// note changes what is shown, and writes what the change says.
func (p *Progress) note(change func() string) {
	p.mu.Lock()
	text := change()
	p.mu.Unlock()
	_, _ = io.WriteString(p.screen, text) // nobody to tell
}

// forget takes a cell off the running ones.
func (p *Progress) forget(c *farm.Cell) {
	p.running = slices.DeleteFunc(p.running, func(r run) bool { return r.cell == c })
}

// Note prints a line.
func (p *Progress) Note(line string) { p.note(func() string { return line + "\n" }) }

// Close ends the view. Once more does nothing.
func (p *Progress) Close() { p.hide() }

// line tells a result in one line, and a failure's reason in further ones.
func line(r *farm.Result) string {
	if r.Cell.Excluded {
		return ""
	}
	var b strings.Builder
	outcome := string(r.Outcome)
	if r.Outcome == farm.Built && !r.Packable() {
		outcome = string(farm.CheckFailed)
	}
	fmt.Fprintf(&b, "%-14s %s", outcome, r.Cell.Name())
	if r.Record != nil {
		fmt.Fprintf(&b, " in %.1fs", r.Record.Seconds)
	}
	b.WriteByte('\n')
	if r.Err != nil {
		fmt.Fprintf(&b, "    %s\n", firstLine(r.Err)) // the rest is told at the end, once for all cells
	}
	if rec := r.Record; rec != nil {
		if rec.Message != "" {
			fmt.Fprintf(&b, "    %s: %s\n", rec.Phase, rec.Message)
		}
		if rec.FirstError != "" && rec.Outcome == farm.Failed {
			fmt.Fprintf(&b, "    log: %s\n", rec.FirstError)
		}
		for i, problem := range rec.Check.Problems {
			if i == 3 {
				fmt.Fprintf(&b, "    … %d more\n", len(rec.Check.Problems)-i)
				break
			}
			fmt.Fprintf(&b, "    %s\n", problem)
		}
	}
	return b.String()
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// view has a line for each of the first running cells and downloads, and the counts.
func (p *Progress) view() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	const most = 16
	var lines []string
	for i, r := range p.running {
		if i == most {
			lines = append(lines, fmt.Sprintf("  … and %d more", len(p.running)-i))
			break
		}
		doing := ""
		if !r.started {
			doing = ": preparing its image"
		}
		lines = append(lines, fmt.Sprintf("  %4.0fs %s%s", time.Since(r.since).Seconds(), r.cell.Name(), doing))
	}
	lines = append(lines, p.downloads.lines()...)
	return append(lines, fmt.Sprintf("%d/%d cells: %d built, %d excluded, %d failed, %d from the store", p.done, p.total,
		p.counts[farm.Built], p.counts[farm.Excluded], p.counts[farm.Failed]+p.counts[farm.Infrastructure], p.cached))
}
