package rebuild

import (
	"maps"
	"slices"
)

// Verdict says what a rebuild has shown.
type Verdict string

// The verdicts, from the best to the worst.
const (
	Reproduced Verdict = "reproduced"
	Cannot     Verdict = "cannot" // it could not be compared
	Differs    Verdict = "differs"
)

// ReportVersion numbers the form of a Report. A field may be added without a new
// number.
const ReportVersion = 1

// Report is what was found.
type Report struct {
	Version  int            `json:"version"` // ReportVersion
	Counts   map[string]int `json:"counts"`  // of all files, by verdict
	Runtimes []string       `json:"runtimes"`
	Varied   []string       `json:"varied"` // for people
	Cells    []CellVerdict  `json:"cells"`
	Files    []FileVerdict  `json:"files"` // packages, and files that were given
}

// CellVerdict is what was found of a cell.
type CellVerdict struct {
	Module  string        `json:"module"`
	Version string        `json:"version"`
	Release string        `json:"release"`
	Arch    string        `json:"arch"`
	Key     string        `json:"key"`
	Verdict Verdict       `json:"verdict"`
	Reason  string        `json:"reason,omitzero"`
	Files   []FileVerdict `json:"files"` // what its build has made
	// Causes are of all differences in the cell, proven ones first.
	Causes []Cause `json:"causes,omitzero"`

	subject     *subject
	failed      bool // it was not rebuilt
	differences []Difference
}

// FileVerdict is what was found of a file.
type FileVerdict struct {
	Path    string  `json:"path"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitzero"`
	SHA256  string  `json:"sha256,omitzero"`
	// Rebuilt is the sha256 of what was built again: for a package, without signatures.
	Rebuilt string `json:"rebuilt,omitzero"`
	// Signed tells that a package is the same but for signatures, of it or its modules.
	Signed      bool         `json:"signed,omitzero"`
	Differences []Difference `json:"differences,omitzero"`
	// Kept is where both versions of the file are, with .was and .rebuilt behind it.
	Kept string `json:"kept,omitzero"`
	// Diffoscope is the path of its report.
	Diffoscope string `json:"diffoscope,omitzero"`

	file *file
	seen bool
}

func (c *CellVerdict) worse(v Verdict, reason string) { worse(&c.Verdict, &c.Reason, v, reason) }
func (f *FileVerdict) worse(v Verdict, reason string) { worse(&f.Verdict, &f.Reason, v, reason) }

func worse(now *Verdict, why *string, v Verdict, reason string) {
	rank := []Verdict{Reproduced, Cannot, Differs}
	if slices.Index(rank, v) > slices.Index(rank, *now) || *why == "" {
		*why = reason
	}
	if slices.Index(rank, v) > slices.Index(rank, *now) {
		*now = v
	}
}

func newReport(subjects []*subject, files []*file) *Report {
	r := &Report{Version: ReportVersion, Runtimes: []string{}, Varied: []string{}, Cells: []CellVerdict{}, Files: []FileVerdict{}}
	for _, s := range subjects {
		row := s.cell.Row()
		c := CellVerdict{Module: row.Module, Version: row.Version, Release: row.Release, Arch: row.Arch, Key: s.cell.Key,
			Verdict: Reproduced, Files: []FileVerdict{}, subject: s}
		for _, name := range slices.Sorted(maps.Keys(s.want)) {
			c.Files = append(c.Files, FileVerdict{Path: name, Verdict: Reproduced, SHA256: s.want[name].sum})
		}
		if s.why != "" {
			c.worse(Cannot, s.why)
		}
		r.Cells = append(r.Cells, c)
	}
	for _, f := range files {
		v := FileVerdict{Path: f.name, Verdict: Reproduced, file: f}
		if f.why != "" {
			v.worse(Cannot, f.why)
		}
		r.Files = append(r.Files, v)
	}
	return r
}

// ill are cells to diagnose: the first of each module version that differs or
// fails.
func (r *Report) ill() []*CellVerdict {
	var all []*CellVerdict
	seen := map[string]bool{}
	for i := range r.Cells {
		c := &r.Cells[i]
		name := c.Module + "/" + c.Version
		if (c.Verdict == Differs || c.failed) && !seen[name] && len(all) < maxDiagnosed {
			seen[name] = true
			all = append(all, c)
		}
	}
	return all
}

// share gives causes to the other cells of the same module version.
func (r *Report) share() {
	causes := map[string][]Cause{}
	for _, c := range r.Cells {
		if len(c.Causes) > 0 {
			causes[c.Module+"/"+c.Version] = c.Causes
		}
	}
	for i := range r.Cells {
		c := &r.Cells[i]
		if (c.Verdict == Differs || c.failed) && len(c.Causes) == 0 {
			for _, cause := range causes[c.Module+"/"+c.Version] {
				cause.Detail += " (found on another kernel)"
				c.Causes = append(c.Causes, cause)
			}
		}
	}
}

// finish counts, and gives every file its last verdict.
func (r *Report) finish() {
	r.Counts = map[string]int{string(Reproduced): 0, string(Differs): 0, string(Cannot): 0}
	for i := range r.Cells {
		c := &r.Cells[i]
		for j := range c.Files {
			if c.Files[j].Verdict == Reproduced && c.Verdict == Cannot {
				c.Files[j].worse(Cannot, c.Reason)
			}
			r.Counts[string(c.Files[j].Verdict)]++
		}
		if len(c.Files) == 0 {
			r.Counts[string(c.Verdict)]++
		}
	}
	for i := range r.Files {
		f := &r.Files[i]
		if f.Verdict == Reproduced && !f.seen {
			f.worse(Cannot, "nothing that it is made of was built again")
		}
		r.Counts[string(f.Verdict)]++
	}
}

// Verdict is the worst one of all.
func (r *Report) Verdict() Verdict {
	switch {
	case r.Counts[string(Differs)] > 0:
		return Differs
	case r.Counts[string(Cannot)] > 0:
		return Cannot
	}
	return Reproduced
}
