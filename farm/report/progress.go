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
// view of running cells and counts below them. Else it says once that images are
// being prepared, which takes its time where much has to be downloaded.
type Progress struct {
	mu      sync.Mutex
	w       io.Writer
	width   int // of the terminal; 0: there is none
	total   int
	done    int
	cached  int
	counts  map[farm.Outcome]int
	running []run
	said    bool // that images are being prepared
	drawn   int  // lines of the live view on the screen
	stop    chan struct{}
	stopped sync.WaitGroup
	closing sync.Once
}

var _ farm.Observer = (*Progress)(nil)

type run struct {
	cell    *farm.Cell
	since   time.Time
	started bool // its image is there
}

// NewProgress makes a Progress for so many cells. The width is the terminal's, 0
// where w is none. Close ends it.
func NewProgress(w io.Writer, total, width int) *Progress {
	p := &Progress{w: w, width: width, total: total, counts: map[farm.Outcome]int{}, stop: make(chan struct{})}
	if width > 0 {
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

// Preparing implements farm.Observer.
func (p *Progress) Preparing(c *farm.Cell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, run{c, time.Now(), false})
	said := ""
	if p.width == 0 && !p.said {
		said, p.said = "preparing images; what the store lacks is downloaded\n", true
	}
	p.redraw(said)
}

// Started implements farm.Observer.
func (p *Progress) Started(c *farm.Cell) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(c)
	p.running = append(p.running, run{c, time.Now(), true})
	p.redraw("")
}

// Retrying implements farm.Observer.
func (p *Progress) Retrying(c *farm.Cell, wait time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(c)
	p.redraw(fmt.Sprintf("%-14s %s in %s\n    %s\n", "trying again", c.Name(), wait, firstLine(err)))
}

// Finished implements farm.Observer.
func (p *Progress) Finished(r *farm.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(r.Cell)
	p.done++
	p.counts[r.Outcome]++
	if r.Cached {
		p.cached++
		p.redraw("")
		return
	}
	p.redraw(line(r))
}

// forget takes a cell off the running ones.
func (p *Progress) forget(c *farm.Cell) {
	p.running = slices.DeleteFunc(p.running, func(r run) bool { return r.cell == c })
}

// Note prints a line above the live view.
func (p *Progress) Note(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.redraw(line + "\n")
}

// Close ends the live view and leaves the counts. Once more does nothing.
func (p *Progress) Close() {
	p.closing.Do(func() { close(p.stop) })
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.width = nil, 0
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

// redraw prints text above the live view, which it draws again.
func (p *Progress) redraw(text string) {
	p.erase()
	fmt.Fprint(p.w, text)
	if p.width == 0 {
		return
	}
	const most = 16
	for i, r := range p.running {
		if i == most {
			p.draw("  … and %d more", len(p.running)-i)
			break
		}
		doing := ""
		if !r.started {
			doing = ": preparing its image"
		}
		p.draw("  %4.0fs %s%s", time.Since(r.since).Seconds(), r.cell.Name(), doing)
	}
	p.draw("%d/%d cells: %d built, %d excluded, %d failed, %d from the store", p.done, p.total,
		p.counts[farm.Built], p.counts[farm.Excluded], p.counts[farm.Failed]+p.counts[farm.Infrastructure], p.cached)
}

// draw adds a line to the live view, cut so that it does not wrap.
func (p *Progress) draw(format string, args ...any) {
	line := []rune(fmt.Sprintf(format, args...))
	fmt.Fprintln(p.w, string(line[:min(len(line), p.width-1)]))
	p.drawn++
}

// erase removes the live view from the screen.
func (p *Progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}
