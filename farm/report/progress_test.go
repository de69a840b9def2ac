package report

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/matrix"
)

// TestProgress shows a cell from its preparation to its end, on a terminal and on
// what is none.
func TestProgress(t *testing.T) {
	c := &farm.Cell{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: "a", Version: "1"}, Kernel: &matrix.Kernel{Release: "k", Arch: "x86_64"}}}
	files := []Download{{"a.deb", 3 << 20, 5 << 20}, {"b", 512, -1}}
	steps := []struct {
		name        string
		do          func(*Progress)
		view, piped string
		takes       time.Duration
	}{
		{"preparing", func(p *Progress) { p.Preparing(c) }, "     3s a/1 on k (x86_64): preparing its image\n  downloading a.deb: 3.0 MiB of 5.0 MiB\n  downloading b: 0.5 KiB\n0/1 cells: 0 built, 0 excluded, 0 failed, 0 from the store\n",
			"preparing images; what the store lacks is downloaded\n", 3},
		{"trying again", func(p *Progress) { files = nil; p.Retrying(c, time.Second, errors.New("no net\nways out")) }, "0/1 cells: 0 built, 0 excluded, 0 failed, 0 from the store\n",
			"trying again   a/1 on k (x86_64) in 1s\n    no net\n", 0},
		{"preparing again", func(p *Progress) { p.Preparing(c) }, "     2s a/1 on k (x86_64): preparing its image\n0/1 cells: 0 built, 0 excluded, 0 failed, 0 from the store\n", "", 2},
		{"started", func(p *Progress) { p.Started(c) }, "     1s a/1 on k (x86_64)\n0/1 cells: 0 built, 0 excluded, 0 failed, 0 from the store\n", "", 1},
		{"finished", func(p *Progress) {
			p.Finished(&farm.Result{Cell: c, Outcome: farm.Built, Record: &farm.Record{Outcome: farm.Built, Seconds: 1}})
		}, "1/1 cells: 1 built, 0 excluded, 0 failed, 0 from the store\n", "built          a/1 on k (x86_64) in 1.0s\n", 0},
	}
	synctest.Test(t, func(t *testing.T) {
		var terminal, pipe strings.Builder
		downloads := func() []Download { return files }
		live, plain := NewProgress(NewScreen(&terminal, 100), 1, downloads), NewProgress(NewScreen(&pipe, 0), 1, downloads)
		for _, s := range steps {
			pipe.Reset()
			s.do(live)
			s.do(plain)
			time.Sleep(s.takes * time.Second)
			synctest.Wait()
			view := terminal.String()
			if i := strings.LastIndex(view, "\x1b[J"); i >= 0 {
				view = view[i+len("\x1b[J"):]
			}
			if !strings.HasSuffix(view, s.view) || pipe.String() != s.piped {
				t.Errorf("%s: got %q and %q, want %q and %q", s.name, view, pipe.String(), s.view, s.piped)
			}
		}
		if live.Close(); !strings.HasSuffix(terminal.String(), "\x1b[1A\x1b[J") {
			t.Errorf("the view stays: %q", terminal.String())
		}
		plain.Close()
	})
}

// TestWait shows what is waited for, and what is written meanwhile above it.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		s := NewScreen(&out, 30)
		done := Wait(s, "reading", func() []Download { return slices.Repeat([]Download{{Name: "\x1b\n\t"}}, 6) })
		time.Sleep(time.Second)
		synctest.Wait()
		view := "   1s reading\n" + strings.Repeat("  downloading \uFFFD  : 0.0 KiB of\n", 4) + "  … and 2 more downloads\n"
		if out.String() != view {
			t.Errorf("got %q, want %q", out.String(), view)
		}
		out.Reset()
		if _, err := s.Write([]byte("a line\n")); err != nil || out.String() != "\x1b[6A\x1b[Ja line\n"+view {
			t.Errorf("got %q, %v", out.String(), err)
		}
		out.Reset()
		const hostile = "a\x1b[2Jb\tc\r\n\u009bd\xff\n"
		const shown = "a\uFFFD[2Jb\tc \n\uFFFDd\uFFFD\n"
		if n, err := s.Write([]byte(hostile)); n != len(hostile) || err != nil || out.String() != "\x1b[6A\x1b[J"+shown+view {
			t.Errorf("got %q, %d, %v", out.String(), n, err)
		}
		if got, err := io.ReadAll(Visible(strings.NewReader(hostile))); err != nil || string(got) != shown {
			t.Errorf("got %q, %v", got, err)
		}
		out.Reset()
		done()
		done()
		if out.String() != "\x1b[6A\x1b[J" {
			t.Errorf("got %q", out.String())
		}
	})
}
