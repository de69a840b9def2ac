// Package report shows people how a farm is doing: progress while it builds,
// and the matrix at a glance.
package report

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/kofarm/kofarm/farm"
)

// Progress prints a line for each cell that ends. On a terminal it also keeps a
// view of running cells and counts below them.
type Progress struct {
	mu      sync.Mutex
	w       io.Writer
	live    bool
	total   int
	done    int
	cached  int
	counts  map[farm.Outcome]int
	running []run
	drawn   int // lines of the live view on the screen
	stop    chan struct{}
	stopped sync.WaitGroup
}

var _ farm.Observer = (*Progress)(nil)

type run struct {
	cell  *farm.Cell
	since time.Time
}

// NewProgress makes a Progress for so many cells. Close ends it.
func NewProgress(w io.Writer, total int, live bool) *Progress {
	p := &Progress{w: w, live: live, total: total, counts: map[farm.Outcome]int{}, stop: make(chan struct{})}
	if live {
		p.stopped.Go(p.tick)
	}
	return p
}

// tick redraws the live view every second.
func (p *Progress) tick() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.mu.Lock()
			p.redraw("")
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// Started implements farm.Observer.
func (p *Progress) Started(c *farm.Cell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, run{c, time.Now()})
	p.redraw("")
}

// Finished implements farm.Observer.
func (p *Progress) Finished(r *farm.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, run := range p.running {
		if run.cell == r.Cell {
			p.running = append(p.running[:i], p.running[i+1:]...)
			break
		}
	}
	p.done++
	p.counts[r.Outcome]++
	if r.Cached {
		p.cached++
		p.redraw("")
		return
	}
	p.redraw(line(r))
}

// Close ends the live view and leaves the counts.
func (p *Progress) Close() {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = nil
	p.erase()
}

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
		fmt.Fprintf(&b, "    %v\n", r.Err)
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
			fmt.Fprintf(&b, "    %s: %s: %s\n", problem.Module, problem.Kind, problem.Detail)
		}
	}
	return b.String()
}

// redraw prints text above the live view, which it draws again.
func (p *Progress) redraw(text string) {
	p.erase()
	fmt.Fprint(p.w, text)
	if !p.live {
		return
	}
	const most = 16
	for i, r := range p.running {
		if i == most {
			fmt.Fprintf(p.w, "  … and %d more\n", len(p.running)-i)
			p.drawn++
			break
		}
		fmt.Fprintf(p.w, "  %4.0fs %.100s\n", time.Since(r.since).Seconds(), r.cell.Name())
		p.drawn++
	}
	fmt.Fprintf(p.w, "%d/%d cells: %d built, %d excluded, %d failed, %d from the store\n", p.done, p.total,
		p.counts[farm.Built], p.counts[farm.Excluded], p.counts[farm.Failed]+p.counts[farm.Infrastructure], p.cached)
	p.drawn++
}

// erase removes the live view from the screen.
func (p *Progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}
