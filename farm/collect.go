package farm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/sign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
)

// ResultsFile is the report that Collect writes beside the packages.
const ResultsFile = "results.json"

// logsDir is where the output folder has the logs.
const logsDir = "logs"

const (
	packType   = "application/octet-stream"
	maxResults = 1 << 30
)

// Collector writes what a farm puts out.
type Collector struct {
	Store  *store.Store
	Dir    string // the output folder
	Farm   string // the farm file's name, without its folder
	Output matrix.Output
	Epoch  *time.Time // SOURCE_DATE_EPOCH; nil: each source's own time
	// Kernels are asked what packages need to know of a cell's kernel.
	Kernels Kernels
	// Signer signs repositories and RPMs; nil: they are not signed.
	Signer *sign.Key
	// ModuleKey signs modules, as Output.SignModules says; nil: they are not signed.
	ModuleKey *modsign.Key
	// Attester says what packages were made from; nil: nobody does.
	Attester *Attester
	// Sharer gives others what is said about results; nil: nobody does.
	Sharer Sharer
}

// Collected is what Collect has written.
type Collected struct {
	Packages []Package
	Kept     int // how many of the packages are an earlier run's, for cells without a result
	Report   *Report
	Refused  []error // why packages could not be made; the others are there
	Unshared error   // why others have not got what is said about results
}

// Collect writes the packages of all packable results, the logs and
// results.json. Each file appears complete. What an earlier run of the farm has
// put there, by its results.json, and this one does not, is removed if it is
// still that and no infrastructure fault or missing build is the reason; a file
// that is right already is left alone. The error is a *FolderError where the
// folder is not the farm's.
func (c *Collector) Collect(ctx context.Context, results []*Result) (*Collected, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("writing %s: %w", c.Dir, err)
	}
	before, err := c.previous()
	if err != nil {
		return nil, err
	}
	m := c.material()
	if err := m.signing.prepare(ctx, results); err != nil {
		return nil, err
	}
	packages, err := c.packages(m, results)
	if err != nil {
		return nil, err
	}
	kept, err := c.keep(before, results)
	if err != nil {
		return nil, err
	}
	w, err := c.writeAll(ctx, kept.replace(packages), results, kept.logs)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", c.Dir, err)
	}
	packages = slices.Concat(w.packages, kept.packages)
	if err := c.repositories(ctx, packages); err != nil {
		return nil, err
	}
	report := newReport(results, packages, slices.Concat(w.files, kept.files), w.logs)
	report.Farm = c.Farm
	if report.Signing, err = c.enroll(); err != nil {
		return nil, err
	}
	m.signing.report(results, report)
	a := &attestation{Attester: c.Attester, c: c, m: m}
	if report.Attestations, err = a.all(ctx, results, w.packages, w.files); err != nil {
		return nil, err
	}
	report.Attestations = append(report.Attestations, kept.attestations...)
	if err := c.checksums(report, packages); err != nil {
		return nil, fmt.Errorf("writing %s: %w", c.Dir, err)
	}
	for _, err := range w.refused {
		report.Refused = append(report.Refused, err.Error())
	}
	if err := c.retire(before, report); err != nil { // while the old report still names them
		return nil, fmt.Errorf("tidying %s: %w", c.Dir, err)
	}
	if err := c.writeReport(report); err != nil {
		return nil, fmt.Errorf("writing %s: %w", filepath.Join(c.Dir, ResultsFile), err)
	}
	return &Collected{packages, len(kept.packages), report, w.refused, a.fault}, nil
}

// written is what a run has put into the folder.
type written struct {
	packages []Package
	files    []File   // of the packages
	refused  []error  // of the packages that cannot be made
	logs     []string // paths, by the results
}

// writeAll writes packages and logs, several at a time; kept are logs that stay.
func (c *Collector) writeAll(ctx context.Context, packages []Package, results []*Result, kept map[*Cell]string) (*written, error) {
	files, refused := make([]File, len(packages)), make([]error, len(packages))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, p := range packages {
		g.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return err
			}
			files[i], err = c.pack(ctx, p)
			if refusal := (&PackError{}); errors.As(err, &refusal) {
				refused[i], err = err, nil
			}
			return err
		})
	}
	w := &written{logs: make([]string, len(results))}
	for i, r := range results {
		g.Go(func() (err error) {
			if w.logs[i] = kept[r.Cell]; w.logs[i] == "" {
				w.logs[i], err = c.writeLog(r)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, p := range packages {
		if refused[i] != nil {
			w.refused = append(w.refused, refused[i])
			continue
		}
		w.packages, w.files = append(w.packages, p), append(w.files, files[i])
	}
	return w, nil
}

// PackError says that a package cannot be made of what a cell has built: it is
// the cell's or the farm file's fault, and withholds no other package.
type PackError struct{ Err error }

func (e *PackError) Error() string { return e.Err.Error() }

// Unwrap gives the packer's own error.
func (e *PackError) Unwrap() error { return e.Err }

// packError tells a packer's refusal from a fault of the disk, the network or
// the store.
func packError(ctx context.Context, err error) error {
	for _, fault := range []error{store.ErrNotFound, fetch.ErrUnavailable, fetch.ErrOffline, fetch.ErrNotFound, fetch.ErrChecksum} {
		if errors.Is(err, fault) {
			return err
		}
	}
	if _, ok := errors.AsType[*SigningError](err); ok {
		return err
	}
	_, onPath := errors.AsType[*fs.PathError](err)
	_, onSystem := errors.AsType[syscall.Errno](err)
	if ctx.Err() != nil || onPath || onSystem {
		return err
	}
	return &PackError{err}
}

// material is what the packages are made from.
func (c *Collector) material() *material {
	m := &material{records: records{c.Store}, output: &c.Output, epoch: c.Epoch, kernels: c.Kernels, stored: c.stored}
	if c.ModuleKey != nil {
		m.signing = &signing{key: c.ModuleKey, hash: c.Output.SignModules.Hash, records: m.records, kernels: c.Kernels}
	}
	return m
}

// packages plans every package that the output asks for.
func (c *Collector) packages(m *material, results []*Result) ([]Package, error) {
	var all []Package
	var errs []error
	if c.Output.DKMS != nil {
		all = append(all, (&tarballs{m, c.Output.DKMS}).packages(results)...)
	}
	if c.Output.Deb != nil {
		more, err := (&debs{m, c.Output.Deb}).packages(results)
		all = append(all, more...)
		if err != nil {
			errs = append(errs, fmt.Errorf("output.deb: %w", err))
		}
	}
	if c.Output.RPM != nil {
		more, err := (&rpms{m, c.Output.RPM}).packages(results)
		for _, p := range more {
			all = append(all, c.signed(p))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("output.rpm: %w", err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	warnUnchecked(all, results)
	return all, clash(all)
}

// warnUnchecked warns of packages with modules that were not fully checked.
func warnUnchecked(packages []Package, results []*Result) {
	unchecked := map[*Cell]bool{}
	for _, r := range results {
		unchecked[r.Cell] = r.Record != nil && len(r.Record.Check.Unchecked) > 0
	}
	for i := range packages {
		p := &packages[i]
		if p.Holds&HoldsModules != 0 && slices.ContainsFunc(p.Cells, func(c *Cell) bool { return unchecked[c] }) {
			p.Warnings = append(p.Warnings, uncheckedWarning)
		}
	}
}

// Check tells before anything is built whether the output's packages can be
// named: not every format takes every name, version and kernel release.
func (c *Collector) Check(cells []*Cell) error {
	var results []*Result
	for _, cell := range cells {
		if !cell.Excluded {
			results = append(results, &Result{Cell: cell, Outcome: Built, Record: &Record{}})
		}
	}
	_, err := c.packages(c.material(), results)
	return err
}

// FolderError says that an output folder is not the farm's to tidy.
type FolderError struct {
	Dir string
	Err error // why
}

func (e *FolderError) Error() string {
	return fmt.Sprintf("output folder %s: %v; choose another one (--output, or the farm file's output.directory), or remove that", e.Dir, e.Err)
}

// Unwrap gives the reason.
func (e *FolderError) Unwrap() error { return e.Err }

// Claim tells before anything is built whether the folder is the farm's, else
// the error is a *FolderError, and can be written to. It leaves nothing there.
func (c *Collector) Claim() error {
	if _, err := c.previous(); err != nil {
		return err
	}
	dir := c.Dir
	for _, err := os.Stat(dir); err != nil && dir != filepath.Dir(dir); _, err = os.Stat(dir) {
		dir = filepath.Dir(dir) // where it will be made
	}
	f, err := os.CreateTemp(dir, tmpPattern)
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", c.Dir, err)
	}
	return nil
}

// pack makes a package, unless the store has it, and puts it into the folder.
func (c *Collector) pack(ctx context.Context, p Package) (File, error) {
	blob, err := c.stored(ctx, p)
	if err != nil {
		return File{}, err
	}
	f := File{Path: p.Name, Blob: blob}
	return f, c.place(f.Path, func() (io.ReadCloser, error) { return c.Store.Open(blob.hash()) }, blob)
}

// stored makes a package, unless the store has it.
func (c *Collector) stored(ctx context.Context, p Package) (Blob, error) {
	d, err := c.Store.Ref(packRef, p.Key)
	if err != nil || !c.Store.Has(d.Digest, d.Size) {
		if d, err = c.write(ctx, p); err != nil {
			return Blob{}, fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return blobOf(d), nil
}

func (c *Collector) write(ctx context.Context, p Package) (v1.Descriptor, error) {
	d, err := c.Store.Write(packType, func(w io.Writer) error { return p.Write(ctx, w) })
	if err != nil {
		return d, packError(ctx, err)
	}
	d.Annotations = map[string]string{titleKey: p.Name}
	return d, c.Store.SetRef(packRef, p.Key, d)
}

// place writes a file of the folder under a temporary name and renames it. A
// file that has the right content already stays.
func (c *Collector) place(name string, open func() (io.ReadCloser, error), want Blob) error {
	if c.holds(File{name, want}) {
		return nil
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return writeFile(filepath.Join(c.Dir, name), r)
}

// holds says whether the folder has the file with just this content.
func (c *Collector) holds(f File) bool {
	name := filepath.Join(c.Dir, f.Path)
	fi, err := os.Lstat(name)
	if err != nil || !filepath.IsLocal(f.Path) || !fi.Mode().IsRegular() || fi.Size() != f.Size {
		return false
	}
	sum, err := hashFile(name)
	return err == nil && sum == f.SHA256
}

// tmpPattern names files that are being written.
const tmpPattern = images.TempPrefix + "*"

// writeFile writes a file under a temporary name and renames it.
func writeFile(name string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), tmpPattern)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// writeLog puts a cell's log into the folder, and gives its path there; "" for
// a cell without one.
func (c *Collector) writeLog(r *Result) (string, error) {
	if r.Record == nil {
		return "", nil
	}
	name := logPath(r.Cell.Row())
	log, err := records{c.Store}.log(r.Record.Log)
	if err != nil {
		return "", err
	}
	defer log.Close()
	return name, writeFile(filepath.Join(c.Dir, name), log)
}

// logPath is where the output folder has a cell's log.
func logPath(r matrix.Row) string {
	return filepath.Join(logsDir, r.Module+"-"+r.Version, r.Release+"-"+r.Arch+".log")
}

func (c *Collector) writeReport(r *Report) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(c.Dir, ResultsFile), strings.NewReader(string(data)+"\n"))
}

// previous reads the folder's results.json, nil where there is none. One that
// is no report, or another farm file's, is a *FolderError. Reports of earlier
// versions name no farm file.
func (c *Collector) previous() (*Report, error) {
	r, err := ReadReport(filepath.Join(c.Dir, ResultsFile))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR): // nor can one be written
		return nil, nil
	case errors.Is(err, ErrNoReport):
		return nil, &FolderError{c.Dir, err}
	case err != nil:
		return nil, err
	case r.Farm != "" && r.Farm != c.Farm:
		return nil, &FolderError{c.Dir, fmt.Errorf("it holds what %q has put out, and %q would remove", r.Farm, c.Farm)}
	}
	return r, nil
}

// retire removes files that the farm no longer puts out, and temporary files
// that a killed run has left. What is not as the report before says is somebody
// else's.
func (c *Collector) retire(before, now *Report) error {
	var err error
	if before != nil {
		keep := map[string]bool{}
		for _, f := range now.files() {
			keep[f.Path] = true
		}
		for _, f := range before.files() {
			if !keep[f.Path] && c.holds(f) {
				err = errors.Join(err, c.remove(f.Path))
			}
		}
		err = errors.Join(err, c.retireLogs(before, now))
	}
	for _, dir := range []string{".", logsDir + "/*"} {
		left, _ := fs.Glob(os.DirFS(c.Dir), path.Join(dir, tmpPattern))
		for _, p := range left {
			err = errors.Join(err, os.Remove(filepath.Join(c.Dir, p)))
		}
	}
	return err
}

// retireLogs removes logs, which are known by their paths: their content differs
// from run to run, so reports do not have it.
func (c *Collector) retireLogs(before, now *Report) (err error) {
	keep := map[string]bool{}
	for _, cell := range now.Cells {
		keep[cell.Log] = true
	}
	for _, cell := range before.Cells {
		if cell.Log == logPath(cell.Row) && !keep[cell.Log] && filepath.IsLocal(cell.Log) {
			err = errors.Join(err, c.remove(cell.Log))
		}
	}
	return err
}

// remove removes a file of the folder, and the folder that it was in if that is
// empty now.
func (c *Collector) remove(name string) error {
	file := filepath.Join(c.Dir, name)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if filepath.Dir(name) != "." {
		_ = os.Remove(filepath.Dir(file))
	}
	return nil
}
