// Package rebuild verifies that builds are reproducible: it has cells built
// again with everything varied that should not matter, compares what comes out
// with what was built, and finds out what makes a difference.
//
//	cells or files ──▶ rebuild, everything varied ──▶ the same bytes? ──▶ reproduced
//	                                                      │ no
//	                   rebuild, one thing varied ◀────────┘ ──▶ differs, and why
//
// What a rebuild makes never comes near the store that holds the results: a
// [Rebuilder] has stores of its own.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/images/store"
)

// Run says how cells are to be built again.
type Run struct {
	Cells   []*farm.Cell
	Runtime string
	Vary    []Variation
	// Outside varies what kofarm itself runs under: the user, where it can step
	// down, the umask, the time zone and the locale.
	Outside bool
	// Frozen is the time at which the clock stands, as in [Runner].
	Frozen int64
	// Jobs is make's -j where that is varied.
	Jobs int
}

// Rebuilt is what a rebuild has made. Close removes it.
type Rebuilt struct {
	Report *farm.Report
	Dist   string // holds the packages, unsigned, under the names in Report.Files
	Store  *store.Store
	// Varied says what was varied outside, for people.
	Varied []string
	Close  func() error
}

// Rebuilder builds cells again in a store of their own.
type Rebuilder interface {
	Rebuild(ctx context.Context, run Run) (*Rebuilt, error)
}

// Verifier verifies results and files.
type Verifier struct {
	Store     *store.Store // holds the results
	Rebuilder Rebuilder
	Runtimes  []string // each rebuilds everything; at least one
	Log       *slog.Logger
	// Dir is where what differs is put, with diffoscope's reports where that is
	// installed.
	Dir string
}

// subject is a cell with what a rebuild of it has to give.
type subject struct {
	cell *farm.Cell
	want map[string]want // by file name: modules, Module.symvers, …
	why  string          // it cannot be verified; or ""
	// any tells that what the rebuild makes beyond want does not matter.
	any bool
}

// want is a file that was built.
type want struct {
	sum  string
	data func() ([]byte, error)
}

// The names of what a build makes beside modules.
const (
	symversFile   = "Module.symvers"
	installedFile = "user-space files"
	treeFile      = "files for other modules"
)

// Cells verifies the results that the store has of cells, and the packages that
// an output folder's results.json names, if it is there, where all that they are
// made of is among the cells.
func (v *Verifier) Cells(ctx context.Context, cells []*farm.Cell, dist string) (*Report, error) {
	var subjects []*subject
	for _, r := range farm.Stored(v.Store, cells) {
		if s := v.subject(r); s != nil {
			subjects = append(subjects, s)
		}
	}
	files, err := packagesOf(dist, cells)
	if err != nil {
		return nil, err
	}
	return v.verify(ctx, subjects, files)
}

// subject is what is known of a cell; nil where a cell is excluded, as there is
// nothing to verify.
func (v *Verifier) subject(r *farm.Result) *subject {
	s := &subject{cell: r.Cell, want: map[string]want{}}
	switch r.Outcome {
	case farm.Excluded:
		return nil
	case farm.Built:
	case farm.Failed:
		s.why = fmt.Sprintf("its build failed: %s: %s", r.Record.Phase, r.Record.Message)
		return s
	default:
		s.why = "it was not built yet; or its result has left the store"
		return s
	}
	add := func(name string, b farm.Blob) {
		s.want[name] = want{b.SHA256, func() ([]byte, error) { return blob(v.Store, b.SHA256) }}
	}
	for _, m := range r.Record.Modules {
		add(m.Name, m.Blob)
	}
	if b := r.Record.Symvers; b != nil {
		add(symversFile, *b)
	}
	if b := r.Record.Installed; b != nil {
		add(installedFile, *b)
	}
	if b := r.Record.Tree; b != nil {
		add(treeFile, *b)
	}
	return s
}

// maxBlob bounds what is read of one built file, in bytes.
const maxBlob = 1 << 30

func blob(s *store.Store, sum string) ([]byte, error) {
	return s.Get(v1.Hash{Algorithm: "sha256", Hex: sum}, maxBlob)
}

// verify rebuilds what can be, on each runtime, and judges.
func (v *Verifier) verify(ctx context.Context, subjects []*subject, files []*file) (*Report, error) {
	r := newReport(subjects, files)
	var todo []*farm.Cell
	for _, s := range subjects {
		if s.why == "" {
			todo = append(todo, s.cell)
		}
	}
	if len(todo) > 0 {
		for _, name := range v.Runtimes {
			run := Run{Cells: todo, Runtime: name, Vary: Variations(), Outside: true, Jobs: jobs(len(todo))}
			if err := v.once(ctx, run, r); err != nil {
				return nil, fmt.Errorf("building again on %s: %w", name, err)
			}
		}
		if err := v.diagnose(ctx, r); err != nil {
			return nil, err
		}
		v.diffoscope(ctx, r)
	}
	r.finish()
	return r, nil
}

// jobs is make's -j of a rebuild: 1, where every core has cells enough to
// build, else more than the two for each core of a farm's build.
func jobs(cells int) int {
	if cells >= runtime.NumCPU() {
		return 1
	}
	return 2*runtime.NumCPU() + 3
}

// once rebuilds, and enters into the report what came out.
func (v *Verifier) once(ctx context.Context, run Run, r *Report) (err error) {
	b, err := v.Rebuilder.Rebuild(ctx, run)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	r.Varied = run.varied(b)
	r.Runtimes = append(r.Runtimes, run.Runtime)
	made := b.cells()
	for i := range r.Cells {
		if c := &r.Cells[i]; c.subject.why == "" {
			if err := v.judge(c, made[c.Key], b, run); err != nil {
				return err
			}
		}
	}
	for i := range r.Files {
		if err := v.judgeFile(&r.Files[i], b); err != nil {
			return err
		}
	}
	return nil
}

// varied lists what a run varies, for people.
func (run Run) varied(b *Rebuilt) []string {
	all := append([]string{"the store's folder"}, b.Varied...)
	for _, x := range run.Vary {
		what := map[Variation]string{Clock: "the clock", Order: "the order of folders", Host: "the host name", User: "the user inside",
			CPUs: "the number of processors", Jobs: fmt.Sprintf("make -j%d", run.Jobs)}[x]
		all = append(all, what)
	}
	return all
}

// cells are the cells of a rebuild by their keys.
func (b *Rebuilt) cells() map[string]*farm.CellReport {
	all := map[string]*farm.CellReport{}
	for i := range b.Report.Cells {
		all[b.Report.Cells[i].Key] = &b.Report.Cells[i]
	}
	return all
}

// files are the digests of what a rebuilt cell has made.
func files(c *farm.CellReport) map[string]string {
	sums := map[string]string{}
	for _, m := range c.Modules {
		sums[m.Name] = m.SHA256
	}
	if c.Symvers != nil {
		sums[symversFile] = c.Symvers.SHA256
	}
	if c.Installed != nil {
		sums[installedFile] = c.Installed.SHA256
	}
	if c.Tree != nil {
		sums[treeFile] = c.Tree.SHA256
	}
	return sums
}

// failure says why a cell was not rebuilt, "" where it was.
func failure(c *farm.CellReport) string {
	switch {
	case c == nil:
		return "the plan has another key for it now: its inputs have changed meanwhile"
	case c.Outcome == farm.Built:
		return ""
	}
	var why strings.Builder
	fmt.Fprintf(&why, "building it again gave %s", c.Outcome)
	for _, more := range []string{c.Phase, c.Message, c.FirstError} {
		if more != "" {
			why.WriteString(": " + more)
		}
	}
	return why.String()
}

// judge compares a rebuilt cell with its subject.
func (v *Verifier) judge(c *CellVerdict, made *farm.CellReport, b *Rebuilt, run Run) error {
	if why := failure(made); why != "" {
		c.worse(Cannot, why)
		c.failed = true
		return nil
	}
	got := files(made)
	for i := range c.Files {
		f := &c.Files[i]
		w := c.subject.want[f.Path]
		f.Rebuilt = got[f.Path]
		delete(got, f.Path)
		switch f.Rebuilt {
		case w.sum:
			continue
		case "":
			f.worse(Differs, "building it again made no such file")
		default:
			f.worse(Differs, "")
			if err := v.compare(c, f, w, b, run); err != nil {
				return err
			}
		}
		c.worse(Differs, "")
	}
	if !c.subject.any {
		for name := range got {
			c.worse(Differs, "building it again made "+name+", too")
		}
	}
	return nil
}

// compare explains how a file of a cell differs, once.
func (v *Verifier) compare(c *CellVerdict, f *FileVerdict, w want, b *Rebuilt, run Run) error {
	if len(f.Differences) > 0 {
		return nil
	}
	was, err := w.data()
	if err != nil {
		return err
	}
	now, err := blob(b.Store, f.Rebuilt)
	if err != nil {
		return err
	}
	f.Differences = explain(was, now)
	c.differences = append(c.differences, f.Differences...)
	f.Kept, err = v.keep(filepath.Join(c.Module+"-"+c.Version, c.Release+"-"+c.Arch), f.Path, was, now)
	if len(v.Runtimes) > 1 {
		f.worse(Differs, "on "+run.Runtime)
	}
	return err
}

// keep puts both versions of a file where people can look at them.
func (v *Verifier) keep(dir, name string, was, now []byte) (string, error) {
	dir = filepath.Join(v.Dir, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	at := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
	return at, errors.Join(os.WriteFile(at+wasSuffix, was, 0o644), os.WriteFile(at+nowSuffix, now, 0o644))
}

// The suffixes of files that are kept.
const (
	wasSuffix = ".was"
	nowSuffix = ".rebuilt"
)

// state is all that came of a rebuild, in one string.
func state(c *farm.CellReport) string {
	if why := failure(c); why != "" {
		return why
	}
	var all []string
	for name, sum := range files(c) {
		all = append(all, name+" "+sum)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// wanted is the state that a rebuild should have; what does not matter of a
// state is left out by of.
func (s *subject) of(c *farm.CellReport) string {
	if c == nil || failure(c) != "" || !s.any {
		return state(c)
	}
	var all []string
	sums := files(c)
	for name := range s.want {
		all = append(all, name+" "+sums[name])
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func (s *subject) wanted() string {
	var all []string
	for name, w := range s.want {
		all = append(all, name+" "+w.sum)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// maxDiagnosed bounds how many cells are diagnosed, one of each module version.
const maxDiagnosed = 8

// diagnose finds out by more rebuilds what makes a difference: nothing varied,
// then one thing at a time.
func (v *Verifier) diagnose(ctx context.Context, r *Report) error {
	ill := r.ill()
	if len(ill) == 0 {
		return nil
	}
	d := &diagnosis{v: v, runtime: v.Runtimes[len(v.Runtimes)-1]}
	plain, err := d.run(ctx, ill, Run{})
	if err != nil {
		return err
	}
	var steady, unsteady []*CellVerdict
	for _, c := range ill {
		if plain[c.Key] == c.subject.wanted() {
			steady = append(steady, c)
		} else {
			unsteady = append(unsteady, c)
		}
	}
	if err := errors.Join(d.steady(ctx, steady), d.unsteady(ctx, unsteady, plain)); err != nil {
		return err
	}
	for _, c := range ill {
		c.Causes = append(c.Causes, readCauses(c.differences)...)
	}
	r.share()
	return ctx.Err()
}

// diagnosis makes rebuilds to find causes.
type diagnosis struct {
	v       *Verifier
	runtime string
}

// run gives the states of cells in a rebuild, by their keys.
func (d *diagnosis) run(ctx context.Context, cells []*CellVerdict, run Run) (_ map[string]string, err error) {
	run.Runtime = d.runtime
	for _, c := range cells {
		run.Cells = append(run.Cells, c.subject.cell)
	}
	b, err := d.v.Rebuilder.Rebuild(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("building again to find a cause: %w", err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	states, made := map[string]string{}, b.cells()
	for _, c := range cells {
		states[c.Key] = c.subject.of(made[c.Key])
	}
	return states, nil
}

// steady are cells that a plain rebuild reproduces: each variation alone is
// tried on them.
func (d *diagnosis) steady(ctx context.Context, cells []*CellVerdict) error {
	if len(cells) == 0 {
		return nil
	}
	try := func(kind string, run Run, detail string) error {
		states, err := d.run(ctx, cells, run)
		if err != nil {
			return err
		}
		for _, c := range cells {
			if states[c.Key] != c.subject.wanted() {
				c.Causes = append(c.Causes, Cause{Kind: kind, Detail: detail, Proven: true})
			}
		}
		return nil
	}
	for _, x := range Variations() {
		run := Run{Vary: []Variation{x}, Jobs: jobs(len(d.v.Runtimes))}
		if x == Jobs {
			run.Jobs = 1
		}
		if err := try(string(x), run, provenDetail[x]); err != nil {
			return err
		}
	}
	if err := try(CauseOutside, Run{Outside: true}, "it depends on kofarm's own user, umask, time zone or locale, which no build should see"); err != nil {
		return err
	}
	for _, c := range cells {
		if len(c.Causes) == 0 {
			c.Causes = append(c.Causes, Cause{Kind: CauseTogether, Proven: true, Detail: "no variation alone makes a difference, all of them together do; or it differs only now and then"})
		}
	}
	return nil
}

var provenDetail = map[Variation]string{
	Clock: "it depends on the time of its build",
	Order: "it depends on the order in which folders are listed (readdir, find, ls -U)",
	Host:  "it depends on the host name",
	User:  "it depends on the user who builds: name, number or home",
	CPUs:  "it depends on the number of processors",
	Jobs:  "it depends on make -j",
}

// unsteady are cells that differ even where nothing is varied: with the clock
// stopped they are built twice, and once more without anything in parallel.
func (d *diagnosis) unsteady(ctx context.Context, cells []*CellVerdict, plain map[string]string) error {
	if len(cells) == 0 {
		return nil
	}
	frozen := time.Now().Add(clockShift).Unix()
	runs := make([]map[string]string, 4)
	for i, run := range []Run{
		{Vary: []Variation{Clock}, Frozen: frozen}, {Vary: []Variation{Clock}, Frozen: frozen},
		{Vary: []Variation{Clock, Jobs}, Frozen: frozen, Jobs: 1}, {Vary: []Variation{Clock, Jobs}, Frozen: frozen, Jobs: 1},
	} {
		var err error
		if runs[i], err = d.run(ctx, cells, run); err != nil {
			return err
		}
	}
	for _, c := range cells {
		at := func(i int) string { return runs[i][c.Key] }
		cause := Cause{Kind: CauseRandom, Detail: "two builds that see the same differ, even where the clock stands and nothing runs in parallel: random numbers, addresses, or process numbers", Proven: true}
		switch {
		case at(0) == at(1) && at(0) == plain[c.Key]:
			cause = Cause{Kind: CauseInputs, Detail: "rebuilds give the same bytes each time, and other ones than these: they were made of something else", Proven: true}
		case at(0) == at(1):
			cause = Cause{Kind: string(Clock), Detail: provenDetail[Clock] + ": where the clock stands, two builds are the same", Proven: true}
		case at(2) == at(3):
			cause = Cause{Kind: CauseRace, Detail: "two builds differ where make works in parallel, and only there", Proven: true}
		}
		c.Causes = append(c.Causes, cause)
	}
	return nil
}

// packagesOf lists the packages that an output folder's results.json names and
// that are made of nothing but the cells.
func packagesOf(dist string, cells []*farm.Cell) ([]*file, error) {
	if dist == "" {
		return nil, nil
	}
	report, err := farm.ReadReport(filepath.Join(dist, farm.ResultsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	chosen := map[string]bool{}
	for _, c := range cells {
		chosen[c.Key] = c.Key != ""
	}
	foreign := map[string]bool{}
	for _, c := range report.Cells {
		for _, f := range c.Files {
			foreign[f] = foreign[f] || !chosen[c.Key]
		}
	}
	var all []*file
	for _, f := range report.Files {
		if !foreign[f.Path] && filepath.IsLocal(f.Path) {
			all = append(all, &file{path: filepath.Join(dist, f.Path), name: f.Path, recorded: f.SHA256})
		}
	}
	return all, nil
}
