package farm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/worker"
)

// Assembler makes a cell's image, and knows its kernel's symbols.
type Assembler interface {
	Image(ctx context.Context, in images.Inputs) (v1.Image, error)
	Symvers(ctx context.Context, in images.Inputs, release string) ([]byte, error)
}

// Observer is told what happens while cells are built. Its methods are called
// from several goroutines.
type Observer interface {
	// Preparing tells that the cell's image is assembled, and that what it lacks
	// is downloaded.
	Preparing(c *Cell)
	Started(c *Cell)
	// Retrying tells of an infrastructure fault, and when the cell is tried again.
	Retrying(c *Cell, wait time.Duration, err error)
	Finished(r *Result)
}

// Result is what became of a cell.
type Result struct {
	Cell *Cell
	// Record is nil for a cell that the farm file excludes, and after an
	// infrastructure fault.
	Record  *Record
	Outcome Outcome
	Cached  bool
	Err     error // for Infrastructure
	// Test is what became of the modules in their kernel; nil: they were not tested.
	Test *Tested
}

// Fits says whether the result holds modules that fit their kernel, by what is
// known without booting it.
func (r *Result) Fits() bool {
	return r.Outcome == Built && len(r.Record.Check.Problems) == 0
}

// Packable says whether the result holds modules that may be packed.
func (r *Result) Packable() bool {
	return r.Fits() && (r.Test == nil || !r.Test.Required || r.Test.proven())
}

// Builder builds cells.
type Builder struct {
	Store    *store.Store
	Images   Assembler
	Runner   worker.Runner
	Observer Observer
	Log      *slog.Logger
	Limits   worker.Limits // of each cell; a cell's own Timeout wins
	Cores    []int         // of each machine that runs builds; none: this one's
	Parallel int           // builds at a time; 0: one for each core, and in the end one more
	Retries  int           // after an infrastructure fault
	Backoff  time.Duration // before the first retry, doubled each time; 0: one second
	Cache    Cache         // asked before a cell is built, and offered what was; nil: none

	symvers symversCache
	cache   *cacheUse
}

// Build builds the cells that neither the store nor the cache holds, and gives a result for
// each, in the same order. One cell's failure does not stop another. The error
// is the context's.
func (b *Builder) Build(ctx context.Context, cells []*Cell) ([]*Result, error) {
	b.symvers.load = b.Images.Symvers
	b.cache = newCacheUse(b.Cache, b.Log)
	results := make([]*Result, len(cells))
	var missing []int
	for i, c := range cells {
		if results[i] = b.known(c); results[i] == nil {
			missing = append(missing, i)
			continue
		}
		b.Observer.Finished(results[i])
	}
	missing = b.exchange(ctx, cells, missing, results)
	largestFirst(cells, missing)
	cores := b.Cores
	if len(cores) == 0 {
		cores = []int{runtime.NumCPU()}
	}
	slots := newSlots(b.Parallel, len(missing), cores)
	parallel := slots.parallel + 1 // one more prepares its image and its container meanwhile
	b.buildAll(ctx, cells, missing, results, parallel, slots)
	return results, ctx.Err()
}

// largestFirst sorts cells, which are given by their indices, so that none that
// takes long is left to the end, when the other cores have nothing to do.
func largestFirst(cells []*Cell, indices []int) {
	code := func(i int) int64 {
		if src := cells[i].Inputs.Source; src != nil {
			return src.Code
		}
		return 0
	}
	slices.SortStableFunc(indices, func(a, b int) int { return cmp.Compare(code(b), code(a)) })
}

// known gives the result of a cell that need not be built: excluded by the farm
// file, or in the store as built or excluded. A failed build is tried again.
func (b *Builder) known(c *Cell) *Result {
	if c.Excluded {
		return &Result{Cell: c, Outcome: Excluded}
	}
	rec, err := records{b.Store}.judged(c.Key)
	if err != nil || rec.Outcome == Failed {
		return nil
	}
	return &Result{Cell: c, Record: rec, Outcome: rec.Outcome, Cached: true}
}

// maxLosses is how many daemons a cell may lose that do not count as faults: it
// might be what kills them.
const maxLosses = 5

// buildCell builds a cell upon others, again after an infrastructure fault. It
// gives nil when the context ends first.
func (b *Builder) buildCell(ctx context.Context, c *Cell, upon []*Result, slots *slots) *Result {
	if r := b.lacking(c, upon); r != nil {
		slots.finished()
		return r
	}
	wait := b.Backoff
	if wait <= 0 {
		wait = time.Second
	}
	for try, losses := 0, 0; ; try++ {
		b.Observer.Preparing(c)
		rec, err := b.attempt(ctx, c, upon, slots)
		switch {
		case err == nil:
			slots.finished()
			b.cache.push(ctx, c, rec)
			return &Result{Cell: c, Record: rec, Outcome: rec.Outcome}
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, worker.ErrLost) && losses < maxLosses: // not the cell's doing
			losses++
			try--
			b.Observer.Retrying(c, 0, err)
			continue
		case try >= b.Retries || !retryable(err):
			slots.finished()
			return &Result{Cell: c, Outcome: Infrastructure, Err: err}
		}
		b.Observer.Retrying(c, wait, err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait *= 2
	}
}

// attempt makes the image, runs the build and stores its record.
func (b *Builder) attempt(ctx context.Context, c *Cell, upon []*Result, slots *slots) (*Record, error) {
	inputs := c.Inputs
	inputs.Upon = b.built(upon)
	img, err := b.Images.Image(ctx, inputs)
	if err != nil {
		return nil, err
	}
	limits := b.Limits
	if c.Timeout > 0 {
		limits.Timeout = c.Timeout
	}
	output, err := os.CreateTemp(b.Store.TempDir(), "output-")
	if err != nil {
		return nil, err
	}
	defer output.Close()
	if err := os.Remove(output.Name()); err != nil { // gone with its descriptor, whatever happens
		return nil, err
	}
	log, err := newLog(b.Store)
	if err != nil {
		return nil, err
	}
	res, err := b.run(ctx, c, slots, worker.Task{Name: c.Name(), Image: img, Env: worker.Env(), Limits: limits, Output: output, Log: log})
	if err != nil {
		return nil, errors.Join(err, log.abort())
	}
	rec, out, err := b.judge(c, res, limits, output, log)
	if err != nil {
		return nil, err
	}
	rec.Check, err = b.check(ctx, c, upon, out)
	if err != nil {
		return nil, err
	}
	if rec.Outcome == Built && len(out.Modules) == 0 {
		rec.Check.Problems = []Problem{{c.Module.Name, kmod.KindFormat, "dkms.conf names no module: there is nothing to pack"}}
	}
	return b.save(c, rec)
}

// save stores a cell's record, and gives it, or that of another run which has built
// the cell meanwhile: packages and statements may be made of that.
func (b *Builder) save(c *Cell, rec *Record) (*Record, error) {
	if first := b.known(c); first != nil {
		return first.Record, nil
	}
	return rec, records{b.Store}.save(c.Key, rec)
}

// run runs the cell's task. Its command needs a slot; its container, before and
// after, does not.
func (b *Builder) run(ctx context.Context, c *Cell, slots *slots, task worker.Task) (worker.Result, error) {
	task.Args = c.build(slots.jobs()).Command()
	task.Turn = func(ctx context.Context) (func(), error) {
		if err := slots.acquire(ctx); err != nil {
			return nil, err
		}
		b.Observer.Started(c)
		return slots.release, nil
	}
	return b.Runner.Run(ctx, task)
}

// judge makes a record of what a run has given, and stores its blobs.
func (b *Builder) judge(c *Cell, res worker.Result, limits worker.Limits, output *os.File, log *logWriter) (_ *Record, out worker.Output, err error) {
	rec := &Record{Outcome: Failed, Seconds: res.Duration.Seconds(), MemoryPeak: res.MemoryPeak}
	if rec.Log, err = log.commit(); err != nil {
		return nil, out, err
	}
	info, err := output.Stat()
	if err != nil {
		return nil, out, err
	}
	if phase, message := abnormal(c, res, limits, info.Size()); phase != "" {
		step, err := (records{b.Store}).lastPhase(rec.Log)
		if err != nil {
			return nil, out, err
		}
		rec.Phase, rec.Message = phase, message+step
	} else {
		out, err = worker.ReadOutput(output, info.Size())
		switch {
		case err == nil:
			rec.take(out.Report)
			res.DiskFull = res.DiskFull || out.Report.DiskFull
		case res.DiskFull:
			rec.Phase, rec.Message = "disk", diskFull(limits)
		default:
			rec.Phase, rec.Message = "output", err.Error()
		}
	}
	if rec.Outcome == Failed && res.DiskFull && rec.Phase != "disk" {
		rec.Message += "; " + diskFull(limits)
	}
	if rec.Outcome == Failed && res.MemoryFull && rec.Phase != "memory" {
		rec.Message += fmt.Sprintf("; a process was killed at the limit of %d bytes of memory (limits.memory)", limits.Memory)
	}
	if rec.Outcome != Built {
		out = worker.Output{}
	}
	if rec.Outcome == Failed {
		if rec.FirstError, err = (records{b.Store}).firstError(rec.Log); err != nil {
			return nil, out, err
		}
		if strings.Contains(rec.FirstError, noProcess) {
			rec.Message += fmt.Sprintf("; perhaps it needs more than %d processes at a time (limits.processes)", limits.Processes)
		}
	}
	return rec, out, b.storeBlobs(rec, out)
}

func diskFull(limits worker.Limits) string {
	return fmt.Sprintf("the build has filled its disk of %d bytes (limits.disk)", limits.Disk)
}

// noProcess is what programs say of EAGAIN, which fork gives at the limit of processes.
const noProcess = "Resource temporarily unavailable"

// abnormal names the phase and the message of a run that did not end by itself.
// written is the size of its output in bytes.
func abnormal(c *Cell, res worker.Result, limits worker.Limits, written int64) (phase, message string) {
	switch {
	case res.Ending == worker.TimedOut && c.Timeout > 0:
		return "timeout", fmt.Sprintf("the build was stopped after %s (the module's timeout)", limits.Timeout)
	case res.Ending == worker.TimedOut:
		return "timeout", fmt.Sprintf("the build was stopped after %s (limits.timeout)", limits.Timeout)
	case res.Ending == worker.OutOfMemory:
		return "memory", fmt.Sprintf("the build needs more than %d bytes of memory (limits.memory)", limits.Memory)
	case res.Ending == worker.TooMuchOutput && limits.Output > 0 && written >= limits.Output:
		return "output", fmt.Sprintf("what was built has more than %d bytes (limits.output)", limits.Output)
	case res.Ending == worker.TooMuchOutput:
		return "output", fmt.Sprintf("the build has written more than %d bytes of log (limits.log)", limits.Log)
	case res.ExitCode != 0 && res.DiskFull:
		return "disk", diskFull(limits)
	case res.ExitCode != 0:
		return "recipe", fmt.Sprintf("the build ended with status %d before its report", res.ExitCode)
	}
	return "", ""
}

// take copies the recipe's report.
func (rec *Record) take(r worker.Report) {
	rec.Outcome, rec.Phase, rec.Message = Outcome(r.Outcome), clip(r.Phase), clip(r.Message)
	rec.DKMSExit, rec.Compiler, rec.Unsteady = r.DKMSExit, clip(r.Compiler), clip(r.Unsteady)
	for _, m := range r.Modules {
		rec.Modules = append(rec.Modules, Module{Name: m.Name + ".ko", Location: clip(m.Location)})
	}
}

func (b *Builder) storeBlobs(rec *Record, out worker.Output) error {
	if rec.Outcome != Built {
		rec.Modules = nil
	}
	for i, m := range out.Modules {
		blob, err := b.storeBlob(moduleType, m.Data)
		if err != nil {
			return err
		}
		rec.Modules[i].Blob = *blob
	}
	var err error
	if out.Symvers != nil {
		if rec.Symvers, err = b.storeBlob(symversType, out.Symvers); err != nil {
			return err
		}
	}
	if rec.Installed, err = b.storeTree(out.Installed); err != nil {
		return err
	}
	rec.Tree, err = b.storeTree(out.Tree)
	return err
}

// storeTree stores files as a tar; nil for none.
func (b *Builder) storeTree(files []worker.Installed) (*Blob, error) {
	if len(files) == 0 {
		return nil, nil
	}
	return b.write(filesType, func(w io.Writer) error { return packInstalled(w, files) })
}

func (b *Builder) storeBlob(mediaType types.MediaType, data io.Reader) (*Blob, error) {
	return b.write(mediaType, func(w io.Writer) error {
		_, err := io.Copy(w, data)
		return err
	})
}

func (b *Builder) write(mediaType types.MediaType, write func(io.Writer) error) (*Blob, error) {
	d, err := b.Store.Write(mediaType, write)
	if err != nil {
		return nil, err
	}
	blob := blobOf(d)
	return &blob, nil
}

// retryable tells faults that may pass from those that will not: the fetcher
// has asked every mirror, and has waited where that helps.
func retryable(err error) bool {
	return !errors.Is(err, fetch.ErrNotFound) && !errors.Is(err, fetch.ErrOffline)
}

// slots hands out the right to run a build, and how many jobs its make may use.
type slots struct {
	free          chan struct{}
	parallel      int // builds at a time
	cores, widest int // of all machines, of the largest
	mu            sync.Mutex
	left          int  // builds not yet finished
	spare         bool // the last build need not wait for a slot
}

// newSlots makes slots for so many builds at a time, or one for each core where
// that is not above 0. The last build then does not wait for a slot: much of a
// build is one process at a time, and no other is left for a core that has none.
func newSlots(parallel, builds int, cores []int) *slots {
	s := &slots{left: builds, widest: slices.Max(cores), spare: parallel <= 0}
	for _, n := range cores {
		s.cores += n
	}
	if parallel <= 0 {
		parallel = s.cores
	}
	s.parallel, s.free = parallel, make(chan struct{}, parallel+1)
	for range parallel {
		s.free <- struct{}{}
	}
	s.spend()
	return s
}

// spend adds a slot when there is one build more than slots.
func (s *slots) spend() {
	if s.spare && s.left <= s.parallel+1 {
		s.spare = false
		s.free <- struct{}{}
	}
}

// jobs is how many jobs the next build's make may use: such that about two
// compilers run on each core. Many small builds, which spend much of their time
// in one process, keep all cores busy, and a large one at the end gets them all.
func (s *slots) jobs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	active := max(1, min(s.left, s.parallel))
	return max(2, min(2*s.widest, (2*s.cores+active-1)/active))
}

// acquire waits for a slot.
func (s *slots) acquire(ctx context.Context) error {
	select {
	case <-s.free:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slots) release() { s.free <- struct{}{} }

func (s *slots) finished() {
	s.mu.Lock()
	s.left--
	s.spend()
	s.mu.Unlock()
}
