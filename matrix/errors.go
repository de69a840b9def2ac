package matrix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// maxReports is how many errors, and how many warnings, one file is told about.
	maxReports = 100
	// maxQuoted is how much of a value a message repeats, in bytes.
	maxQuoted = 80
)

// Pos is a place in the farm file, both counted from 1. The zero value is a Farm that was not parsed.
type Pos struct{ Line, Column int }

func (p Pos) compare(other Pos) int {
	return cmp.Or(cmp.Compare(p.Line, other.Line), cmp.Compare(p.Column, other.Column))
}

// Error is one mistake in a farm file. Parse and Expand return all of them, joined by errors.Join in the
// order of the file.
type Error struct {
	File         string
	Line, Column int    // from 1
	Value        string // the offending value as it is written, "" where something is missing
	Msg          string // a phrase that names the value
	Hint         string // what to do instead, or ""
}

// Error prints FILE:LINE:COLUMN: MSG (HINT).
func (e *Error) Error() string {
	s := fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Mistake is an error of type *Error, at a place of the farm file.
func (f *Farm) Mistake(pos Pos, value, msg, hint string) error {
	return &Error{File: f.File, Line: pos.Line, Column: pos.Column, Value: value, Msg: msg, Hint: hint}
}

// Warning is something in a farm file that is harmless but hardly meant. Its fields are those of Error.
type Warning Error

// String prints FILE:LINE:COLUMN: warning: MSG (HINT).
func (w Warning) String() string {
	e := Error(w)
	e.Msg = "warning: " + e.Msg
	return e.Error()
}

// reports collects what is wrong with a farm file.
type reports struct {
	file     string
	errs     []*Error
	warnings []Warning
}

// fail adds an error. It needs no hint once the file has had its share, see full.
func (r *reports) fail(at Pos, value, msg, hint string) {
	if r.full() {
		return
	}
	r.errs = append(r.errs, r.at(at, value, msg, hint))
	if r.full() {
		r.errs = append(r.errs, r.at(at, "", fmt.Sprintf("%d errors: any others are not shown", maxReports), ""))
	}
}

// full says whether further errors are dropped, so that nobody looks for their hints.
func (r *reports) full() bool { return len(r.errs) >= maxReports }

func (r *reports) warn(at Pos, value, msg, hint string) {
	if len(r.warnings) < maxReports {
		r.warnings = append(r.warnings, Warning(*r.at(at, value, msg, hint)))
	}
}

func (r *reports) at(at Pos, value, msg, hint string) *Error {
	return &Error{File: r.file, Line: max(1, at.Line), Column: max(1, at.Column), Value: clip(value), Msg: msg, Hint: hint}
}

// result returns the warnings and the joined errors in the order of the file.
func (r *reports) result() ([]Warning, error) {
	slices.SortStableFunc(r.warnings, func(a, b Warning) int {
		return Pos{a.Line, a.Column}.compare(Pos{b.Line, b.Column})
	})
	slices.SortStableFunc(r.errs[:min(len(r.errs), maxReports)], func(a, b *Error) int {
		return Pos{a.Line, a.Column}.compare(Pos{b.Line, b.Column})
	})
	return r.warnings, join(r.errs)
}

func join(errs []*Error) error {
	list := make([]error, 0, len(errs))
	for _, err := range errs {
		list = append(list, err)
	}
	return errors.Join(list...)
}

// quote quotes a value for a message, shortened.
func quote(s string) string { return fmt.Sprintf("%q", clip(s)) }

// clip shortens s to maxQuoted bytes, between runes.
func clip(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	end := maxQuoted
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}

// sentence joins words as "a, b and c".
func sentence(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}
