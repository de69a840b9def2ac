package report

import (
	"fmt"
	"time"
)

// Download is a file that is being downloaded.
type Download struct {
	Name  string
	Bytes int64 // that have come
	Size  int64 // bytes; -1 where unknown
}

// Downloads tells what is being downloaded at the moment.
type Downloads func() []Download

// lines has a line for each of the first few.
func (d Downloads) lines() []string {
	const most = 4
	var lines []string
	all := d()
	for i, f := range all {
		if i == most {
			return append(lines, fmt.Sprintf("  … and %d more downloads", len(all)-i))
		}
		of := ""
		if f.Size >= 0 {
			of = " of " + Bytes(f.Size)
		}
		lines = append(lines, fmt.Sprintf("  downloading %s: %s%s", f.Name, Bytes(f.Bytes), of))
	}
	return lines
}

// Wait shows what is waited for, on a terminal, until done is called.
func Wait(s *Screen, what string, d Downloads) (done func()) {
	since := time.Now()
	return s.Show(func() []string {
		return append([]string{fmt.Sprintf("%4.0fs %s", time.Since(since).Seconds(), what)}, d.lines()...)
	})
}

// Bytes writes a number of bytes for people.
func Bytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
