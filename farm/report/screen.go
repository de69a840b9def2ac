package report

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
)

// Screen is where people read how a run is doing: the standard error. What is
// written to it stays, on a terminal without what the terminal would act on, and
// there can be a view of what is going on below that. It is safe for concurrent
// use.
type Screen struct {
	mu    sync.Mutex
	w     io.Writer
	width int // of the terminal; 0: there is none
	view  func() []string
	drawn int // lines of the view on the terminal
}

// NewScreen makes a Screen of a terminal of so many columns, 0 where w is none.
func NewScreen(w io.Writer, width int) *Screen { return &Screen{w: w, width: width} }

// Live tells whether there is a terminal.
func (s *Screen) Live() bool { return s.width > 0 }

// Write writes whole lines above the view, which is drawn again.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	defer s.draw()
	switch {
	case len(p) == 0:
		return 0, nil
	case !s.Live():
		return s.w.Write(p)
	}
	if _, err := io.WriteString(s.w, strings.Map(visible, strings.ToValidUTF8(string(p), "\uFFFD"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Visible reads a text for a terminal: without what that would act on, such as a
// build's own escape sequences.
func Visible(r io.Reader) io.Reader { return transform.NewReader(r, runes.Map(visible)) }

// visible replaces control characters, but for ends of lines and tabs.
func visible(r rune) rune {
	switch {
	case !unicode.IsControl(r), r == '\n', r == '\t':
		return r
	case r == '\r':
		return ' '
	}
	return '\uFFFD'
}

// Show shows a view, drawn anew every second and with what is written. It may be
// asked for at any time; a Screen has one view at once. hide takes it away; once
// more does nothing.
func (s *Screen) Show(view func() []string) (hide func()) {
	if !s.Live() {
		return func() {}
	}
	s.mu.Lock()
	s.view = view
	s.mu.Unlock()
	stop := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.mu.Lock()
				s.erase()
				s.draw()
				s.mu.Unlock()
			case <-stop:
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		ticking.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.erase()
		s.view = nil
	})
}

// draw draws the view, each line cut so that it does not wrap: they have names of
// files and cells that others have chosen.
func (s *Screen) draw() {
	if s.view == nil {
		return
	}
	for _, l := range s.view() {
		line := []rune(strings.NewReplacer("\n", " ", "\t", " ").Replace(strings.Map(visible, l)))
		fmt.Fprintln(s.w, string(line[:min(len(line), s.width-1)]))
		s.drawn++
	}
}

// erase removes the view from the terminal.
func (s *Screen) erase() {
	if s.drawn > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
}
