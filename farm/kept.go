package farm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/kofarm/kofarm/matrix"
)

// pending says whether nothing is known yet of the cell's modules: there was an
// infrastructure fault, or no build, or no test where one is required.
func (r *Result) pending() bool {
	switch r.Outcome {
	case Infrastructure, Outcome(NotYet):
		return true
	}
	return r.Fits() && r.Test != nil && r.Test.Required && r.Test.Verdict == "" && len(r.Cell.Boot) > 0
}

// kept is what an earlier run has put out for cells that are pending now. It
// stays until they are known: a fault of the world takes nothing from users.
type kept struct {
	packages     []Package // without content
	files        []File    // of the packages
	attestations []AttestationReport
	logs         map[*Cell]string
}

// keep finds what stays of the report before, as long as it is what that says.
func (c *Collector) keep(before *Report, results []*Result) (*kept, error) {
	k := &kept{logs: map[*Cell]string{}}
	if before == nil || !slices.ContainsFunc(results, (*Result).pending) {
		return k, nil
	}
	cells, stays := map[string][]*Cell{}, map[string]bool{} // by file
	successor := succession(results)
	for _, row := range before.Cells {
		r := successor(row.Row)
		if r == nil || r.Cell.Excluded {
			continue
		}
		for _, f := range row.Files {
			if !slices.Contains(cells[f], r.Cell) {
				cells[f] = append(cells[f], r.Cell)
			}
			stays[f] = stays[f] || r.pending()
		}
		if name := logPath(r.Cell.Row()); r.Record == nil && row.Log == name && c.has(name) {
			k.logs[r.Cell] = name
		}
	}
	for _, f := range before.Files {
		if stays[f.Path] && isFileName(f.Path) && c.holds(f) {
			k.packages, k.files = append(k.packages, Package{Name: f.Path, Cells: cells[f.Path], Warnings: before.warnings(f.Path)}), append(k.files, f)
		}
	}
	for _, a := range before.Attestations {
		if k.at(a.Package) >= 0 && isFileName(a.Statement.Path) && isFileName(a.SBOM.Path) && c.holds(a.Statement) && c.holds(a.SBOM) {
			k.attestations = append(k.attestations, a)
		}
	}
	return k, c.vouch(k)
}

// warnings are those about a file.
func (r *Report) warnings(file string) (texts []string) {
	for _, w := range r.Warnings {
		if slices.Contains(w.Files, file) {
			texts = append(texts, w.Text)
		}
	}
	return texts
}

// at gives a kept package's index, or -1.
func (k *kept) at(name string) int {
	return slices.IndexFunc(k.packages, func(p Package) bool { return p.Name == name })
}

// succession tells which result stands for a cell of an earlier run: its own, or
// where the farm has that version no more, one of the module for that kernel
// that is pending.
func succession(results []*Result) func(matrix.Row) *Result {
	type axes struct{ module, version, release, arch string }
	of := map[axes]*Result{}
	for _, r := range results {
		row := r.Cell.Row()
		of[axes{row.Module, row.Version, row.Release, row.Arch}] = r
		if module := (axes{row.Module, "", row.Release, row.Arch}); r.pending() && of[module] == nil {
			of[module] = r
		}
	}
	return func(row matrix.Row) *Result {
		if r := of[axes{row.Module, row.Version, row.Release, row.Arch}]; r != nil {
			return r
		}
		return of[axes{row.Module, "", row.Release, row.Arch}]
	}
}

func isFileName(p string) bool {
	return p == filepath.Base(p) && !strings.ContainsFunc(p, unicode.IsControl)
}

// has says whether there is a file of the name in the folder.
func (c *Collector) has(name string) bool {
	fi, err := os.Lstat(filepath.Join(c.Dir, name))
	return err == nil && fi.Mode().IsRegular()
}

// vouch makes sure that what is kept is signed only if the key has signed it
// before: nobody else's word counts for it, results.json included.
func (c *Collector) vouch(k *kept) error {
	if c.Signer == nil || len(k.files) == 0 {
		return nil
	}
	signed, err := c.signedSums()
	if err != nil {
		return k.refuse(c.Dir, err)
	}
	all := slices.Clone(k.files)
	for _, a := range k.attestations {
		all = append(all, a.Statement, a.SBOM)
	}
	for _, f := range all {
		if !signed[f.checksum()] {
			return k.refuse(c.Dir, fmt.Errorf("%s does not cover %s", signatureFile, f.Path))
		}
	}
	return nil
}

// signedSums are the lines of SHA256SUMS that the key has signed.
func (c *Collector) signedSums() (map[string]bool, error) {
	sums, err := readSmall(filepath.Join(c.Dir, checksumsFile))
	if err != nil {
		return nil, err
	}
	sig, err := readSmall(filepath.Join(c.Dir, signatureFile))
	if err != nil {
		return nil, err
	}
	lines := map[string]bool{}
	for line := range bytes.Lines(sums) {
		lines[string(line)] = true
	}
	return lines, c.Signer.VerifyDetached(sums, sig)
}

// readSmall reads a file that lists others.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxManifest))
}

func (k *kept) refuse(dir string, err error) error {
	return fmt.Errorf("output folder %s has packages of %s, for which there is no result now, and the key has not signed them: %w; build or exclude that cell, or remove its packages",
		dir, k.packages[0].Cells[0].Name(), err)
}

// checksum is the file's line in SHA256SUMS.
func (f File) checksum() string { return fmt.Sprintf("%s  %s\n", f.SHA256, f.Path) }

// replace takes out of the packages those that would hold less than the kept
// ones of their names. What only has the source is complete in any case, and
// stands for the kept one.
func (k *kept) replace(packages []Package) []Package {
	return slices.DeleteFunc(packages, func(p Package) bool {
		i := k.at(p.Name)
		switch {
		case i < 0:
			return false
		case p.Holds != HoldsSource:
			return true
		}
		k.packages, k.files = slices.Delete(k.packages, i, i+1), slices.Delete(k.files, i, i+1)
		k.attestations = slices.DeleteFunc(k.attestations, func(a AttestationReport) bool { return a.Package == p.Name })
		return false
	})
}
