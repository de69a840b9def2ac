package farm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
)

const release = "6.1.0-9-amd64"

// ko is a module that fits the release, made by the real assembler.
var ko = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "kofarm-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "x.ko")
	cmd := exec.Command("gcc", "-c", "-x", "assembler", "-o", file, "-")
	cmd.Stdin = strings.NewReader(".section .modinfo,\"a\"\n.asciz \"license=GPL\"\n.asciz \"name=x\"\n.asciz \"vermagic=" + release + " SMP mod_unload modversions \"\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return os.ReadFile(file)
})

func goodModule(t testing.TB) []byte {
	t.Helper()
	data, err := ko()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// helloSource is a source in a folder.
func helloSource(t testing.TB) *images.Source {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"dkms.conf": "PACKAGE_NAME=hello\nPACKAGE_VERSION=1.0\n", "hello.c": "int x;\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := images.DirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testCells makes n cells of one module version, each for a kernel of its own.
func testCells(t testing.TB, n int) []*Cell {
	t.Helper()
	module := &matrix.ModuleVersion{Name: "hello", Version: "1.0"}
	src := helloSource(t)
	cells := make([]*Cell, n)
	for i := range cells {
		k := &matrix.Kernel{Release: release, Flavor: "amd64", Arch: "x86_64", Distribution: "debian", Suite: "bookworm"}
		if i > 0 {
			k.Release = fmt.Sprintf("6.1.0-%d-amd64", 100+i)
		}
		cells[i] = &Cell{Cell: &matrix.Cell{Module: module, Kernel: k, Why: "selected"},
			Inputs: images.Inputs{Source: src, Program: images.Program{Path: "/build", Data: []byte("recipe")}}}
		cells[i].packages = "packages"
		cells[i].Key = cells[i].key()
	}
	return cells
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// noImages is an Assembler of empty images and headers without symbols.
type noImages struct{}

func (noImages) Image(context.Context, images.Inputs) (v1.Image, error) { return empty.Image, nil }
func (noImages) Symvers(context.Context, images.Inputs, string) ([]byte, error) {
	return nil, images.ErrNoSymvers
}
func (noImages) ModuleCompression(context.Context, images.Inputs, string) (string, error) {
	return "", nil
}

func (noImages) ModuleHash(context.Context, images.Inputs, string) (string, error) { return "", nil }

// runnerFunc is a Runner.
type runnerFunc func(ctx context.Context, task worker.Task) (worker.Result, error)

func (f runnerFunc) Run(ctx context.Context, task worker.Task) (worker.Result, error) {
	ended, err := task.Begin(ctx)
	if err != nil {
		return worker.Result{}, err
	}
	defer ended()
	return f(ctx, task)
}

// observed remembers what it is told.
type observed struct {
	mu        sync.Mutex
	preparing int
	started   int
	retrying  []string
	finished  int
}

func (o *observed) Preparing(*Cell) { o.mu.Lock(); defer o.mu.Unlock(); o.preparing++ }
func (o *observed) Started(*Cell)   { o.mu.Lock(); defer o.mu.Unlock(); o.started++ }
func (o *observed) Retrying(_ *Cell, wait time.Duration, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.retrying = append(o.retrying, fmt.Sprintf("%s: %v", wait, err))
}
func (o *observed) Finished(*Result) { o.mu.Lock(); defer o.mu.Unlock(); o.finished++ }

// output writes what a recipe does: a report and modules.
func output(w io.Writer, outcome string, modules map[string][]byte) error {
	report := worker.Report{Version: 1, Outcome: outcome, Compiler: "gcc (Test) 12"}
	if outcome == worker.Failed {
		report.Phase, report.Message, report.DKMSExit = "make", "make ended with status 2", 10
	}
	tw := tar.NewWriter(w)
	add := func(name string, data []byte) error {
		err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))})
		if err == nil {
			_, err = tw.Write(data)
		}
		return err
	}
	var err error
	for name, data := range modules {
		report.Modules = append(report.Modules, worker.ReportModule{Name: name, Location: "/updates"})
		err = errors.Join(err, add("module/"+name+".ko", data))
	}
	data, jerr := json.Marshal(report)
	return errors.Join(err, jerr, add("result.json", data), tw.Close())
}

// exits is a Runner's answer of a command that has ended by itself.
var exits = worker.Result{Ending: worker.Exited, Duration: 1500 * time.Millisecond, MemoryPeak: 1 << 20}

func builder(s *store.Store, r runnerFunc) (*Builder, *observed) {
	o := &observed{}
	return &Builder{Store: s, Images: noImages{}, Runner: r, Observer: o, Log: slog.New(slog.DiscardHandler), Parallel: 2, Retries: 2}, o
}

func TestOutcomes(t *testing.T) {
	good := goodModule(t)
	run := func(outcome string, modules map[string][]byte, log string, res worker.Result) runnerFunc {
		return func(_ context.Context, task worker.Task) (worker.Result, error) {
			_, err := io.WriteString(task.Log, log)
			if outcome != "" {
				err = errors.Join(err, output(task.Output, outcome, modules))
			}
			return res, err
		}
	}
	with := func(change func(*worker.Result)) worker.Result {
		r := exits
		change(&r)
		return r
	}
	tests := []struct {
		name    string
		run     runnerFunc
		outcome Outcome
		phase   string
		message string // part of it
		first   string
		checked int // problems
	}{
		{"built", run(worker.Built, map[string][]byte{"x": good}, "fine\n", exits), Built, "", "", "", 0},
		{"built, but does not fit", run(worker.Built, map[string][]byte{"x": []byte("no ELF")}, "", exits), Built, "", "", "", 1},
		{"excluded", run(worker.Excluded, nil, "a.c:1:2: error: not this\n", exits), Excluded, "", "", "", 0},
		{"failed", run(worker.Failed, nil, "make: *** [x] Error 1\nhello.c:3:5: error: no such thing\n", exits), Failed, "make", "make ended", "hello.c:3:5: error: no such thing", 0},
		{"timeout", run("", nil, "# phase: prepare\n# phase: make\n  CC x.o\n", with(func(r *worker.Result) { r.Ending = worker.TimedOut })), Failed, "timeout", "after 1m0s (limits.timeout), in phase make", "", 0},
		{"memory", run("", nil, "", with(func(r *worker.Result) { r.Ending = worker.OutOfMemory })), Failed, "memory", "limits.memory", "", 0},
		{"log", run("", nil, "", with(func(r *worker.Result) { r.Ending = worker.TooMuchOutput })), Failed, "output", "more than 2000 bytes of log (limits.log)", "", 0},
		{"output", func(_ context.Context, task worker.Task) (worker.Result, error) {
			_, err := task.Output.Write(make([]byte, task.Limits.Output))
			return with(func(r *worker.Result) { r.Ending = worker.TooMuchOutput }), err
		}, Failed, "output", "more than 1048576 bytes (limits.output)", "", 0},
		{"processes", run(worker.Failed, nil, "make: fork: Resource temporarily unavailable\nmake: *** [x] Error 1\n", exits), Failed, "make", "more than 64 processes at a time (limits.processes)",
			"make: fork: Resource temporarily unavailable", 0},
		{"disk", run(worker.Failed, nil, "", with(func(r *worker.Result) { r.DiskFull = true })), Failed, "make", "limits.disk", "", 0},
		{"disk, and no report", run("", nil, "", with(func(r *worker.Result) { r.DiskFull, r.ExitCode = true, 1 })), Failed, "disk", "limits.disk", "", 0},
		{"recipe died", run("", nil, "", with(func(r *worker.Result) { r.ExitCode = 137 })), Failed, "recipe", "status 137", "", 0},
		{"no output", run("", nil, "", exits), Failed, "output", "no result.json", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := builder(openStore(t), tt.run)
			b.Limits = worker.Limits{Timeout: time.Minute, Log: 2000, Output: 1 << 20, Processes: 64}
			results, err := b.Build(t.Context(), testCells(t, 1))
			if err != nil {
				t.Fatal(err)
			}
			r := results[0]
			if r.Outcome != tt.outcome || r.Record.Phase != tt.phase || !strings.Contains(r.Record.Message, tt.message) || r.Record.FirstError != tt.first {
				t.Errorf("got %s, %+v", r.Outcome, r.Record)
			}
			if len(r.Record.Check.Problems) != tt.checked || r.Packable() != (tt.outcome == Built && tt.checked == 0) {
				t.Errorf("check: %+v, packable %t", r.Record.Check, r.Packable())
			}
		})
	}
}

// TestTimeout names the setting that a build was stopped by.
func TestTimeout(t *testing.T) {
	b, _ := builder(openStore(t), func(context.Context, worker.Task) (worker.Result, error) {
		return worker.Result{Ending: worker.TimedOut}, nil
	})
	cells := testCells(t, 1)
	cells[0].Timeout = 5 * time.Second
	results, err := b.Build(t.Context(), cells)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := results[0].Record.Message, "the build was stopped after 5s (the module's timeout)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestKnown builds again what has failed, and nothing else.
func TestKnown(t *testing.T) {
	s := openStore(t)
	outcomes := []string{worker.Built, worker.Failed, worker.Excluded}
	cells := testCells(t, 4)
	cells[3].Excluded, cells[3].Key = true, ""
	var mu sync.Mutex
	var ran []string
	b, o := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
		i := slices.IndexFunc(cells, func(c *Cell) bool { return c.Name() == task.Name })
		mu.Lock()
		ran = append(ran, task.Name)
		mu.Unlock()
		return exits, output(task.Output, outcomes[i], nil)
	})
	for try, want := range []int{3, 1} {
		ran = nil
		results, err := b.Build(t.Context(), cells)
		if err != nil {
			t.Fatal(err)
		}
		if len(ran) != want {
			t.Errorf("run %d has built %q, want %d", try, ran, want)
		}
		for i, r := range results {
			if r.Cell != cells[i] || r.Cached != (try > 0 && i != 1 && i != 3) {
				t.Errorf("run %d: %s: cached %t", try, cells[i].Name(), r.Cached)
			}
		}
	}
	if o.finished != 8 {
		t.Errorf("%d cells finished, want 8", o.finished)
	}
}

// TestBuiltTwice has two runs build a cell at the same time: the result of the
// one that ends first is both's.
func TestBuiltTwice(t *testing.T) {
	s := openStore(t)
	cells := testCells(t, 1)
	good := goodModule(t)
	other, _ := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
		return exits, output(task.Output, worker.Built, map[string][]byte{"x": good})
	})
	var first *Result
	b, _ := builder(s, func(ctx context.Context, task worker.Task) (worker.Result, error) {
		results, err := other.Build(ctx, cells)
		if err != nil {
			return exits, err
		}
		first = results[0]
		_, err = io.WriteString(task.Log, "not the same\n")
		return exits, errors.Join(err, output(task.Output, worker.Built, map[string][]byte{"x": append(slices.Clone(good), 0)}))
	})
	for try := range 2 {
		results, err := b.Build(t.Context(), cells)
		if err != nil {
			t.Fatal(err)
		}
		if r := results[0]; !reflect.DeepEqual(r.Record, first.Record) || r.Cached != (try > 0) {
			t.Errorf("run %d: cached %t, %+v, the first is %+v", try, r.Cached, r.Record, first.Record)
		}
	}
}

// uponCells makes cells of one kernel: each is built upon the ones before it.
func uponCells(t testing.TB, names ...string) []*Cell {
	t.Helper()
	cells := make([]*Cell, len(names))
	for i, name := range names {
		cells[i] = testCells(t, 1)[0]
		cells[i].Module = &matrix.ModuleVersion{Name: name, Version: "1.0"}
		cells[i].Inputs.Source.Name, cells[i].Inputs.Source.Version = name, "1.0"
		cells[i].Inputs.Source.Code = int64(i) // the largest would be built first
		cells[i].Needs = slices.Clone(cells[:i])
		cells[i].Key = cells[i].key()
	}
	return cells
}

// uponImages notes what images are made upon.
type uponImages struct {
	noImages
	mu   sync.Mutex
	seen []string
}

func (u *uponImages) Image(_ context.Context, in images.Inputs) (v1.Image, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	line := []string{in.Source.Name + ":"}
	for _, b := range in.Upon {
		built := b.Source.Name
		if len(b.Files) == 1 {
			built += "+" + b.Files[0].Name
		}
		line = append(line, built)
	}
	u.seen = append(u.seen, strings.Join(line, " "))
	return empty.Image, nil
}

// TestBuiltUpon builds what others need before them, whatever the order, and what
// is in the store not again.
func TestBuiltUpon(t *testing.T) {
	s := openStore(t)
	good := goodModule(t)
	cells := uponCells(t, "low", "middle", "top")
	cells = append(cells, testCells(t, 1)...)
	slices.Reverse(cells)
	made := &uponImages{}
	b, _ := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
		return exits, output(task.Output, worker.Built, map[string][]byte{"x": good})
	})
	b.Images, b.Parallel = made, 1
	build := func() {
		t.Helper()
		results, err := b.Build(t.Context(), cells)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range results {
			if r == nil || r.Cell != cells[i] || !r.Fits() {
				t.Errorf("%s: %+v", cells[i].Name(), r)
			}
		}
	}
	build()
	made.seen = slices.DeleteFunc(made.seen, func(s string) bool { return s == "hello:" })
	want := []string{"low:", "middle: low+module/x.ko", "top: low+module/x.ko middle+module/x.ko"}
	if !slices.Equal(made.seen, want) {
		t.Errorf("got %q, want %q", made.seen, want)
	}
	top := cells[1]
	if err := os.Remove(filepath.Join(s.Dir(), "refs/result", top.Key)); err != nil {
		t.Fatal(err)
	}
	made.seen = nil
	build()
	if !slices.Equal(made.seen, want[2:]) {
		t.Errorf("got %q, want %q", made.seen, want[2:])
	}
	if got := WithNeeds(cells, []*Cell{top}); !slices.Equal(got, cells[1:]) {
		t.Errorf("with what it needs, %s is %d cells", top.Name(), len(got))
	}
}

// TestLacking does not build upon what is not there.
func TestLacking(t *testing.T) {
	for name, tt := range map[string]struct {
		outcome string // of the lowest
		module  []byte
		err     error
		want    Outcome
		message string
	}{
		"failed":     {outcome: worker.Failed, want: Failed, message: "low/1.0, which it is built upon, has failed: make: make ended with status 2"},
		"excluded":   {outcome: worker.Excluded, want: Failed, message: "low/1.0, which it is built upon, is excluded: "},
		"misfit":     {outcome: worker.Built, module: []byte("?"), want: Failed, message: "low/1.0, which it is built upon, does not fit the kernel: x.ko: format: "},
		"no machine": {err: errors.New("the daemon is away"), want: Infrastructure, message: "low/1.0, which it is built upon: the daemon is away"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			cells := uponCells(t, "low", "middle", "top")
			b, _ := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
				if !strings.HasPrefix(task.Name, "low/") {
					t.Errorf("%s was built", task.Name)
				}
				if tt.err != nil {
					return worker.Result{}, tt.err
				}
				modules := map[string][]byte{}
				if tt.module != nil {
					modules["x"] = tt.module
				}
				return exits, output(task.Output, tt.outcome, modules)
			})
			b.Retries = 0
			results, err := b.Build(t.Context(), cells)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range results[1:] {
				var message string
				switch {
				case r.Err != nil:
					message = r.Err.Error()
				case r.Record.Phase == "depends" && r.Record.DKMSExit == 13:
					message = r.Record.Message
				}
				if r.Outcome != tt.want || r.Cell == cells[1] && !strings.HasPrefix(message, tt.message) || message == "" {
					t.Errorf("%s: %s, %s", r.Cell.Name(), r.Outcome, message)
				}
				if rec, err := (records{s}).load(r.Cell.Key); (err == nil) != (tt.want == Failed) || err == nil && rec.Message != message {
					t.Errorf("%s: the store has %+v, %v", r.Cell.Name(), rec, err)
				}
			}
		})
	}
}

// TestBuiltMeanwhile leaves what another run has built, though this one lacks what
// it is built upon.
func TestBuiltMeanwhile(t *testing.T) {
	s := openStore(t)
	cells := uponCells(t, "low", "top")
	b, _ := builder(s, nil)
	log, err := newLog(s)
	if err != nil {
		t.Fatal(err)
	}
	built := &Record{Outcome: Built, Check: Checked{Format: checkFormat}}
	if built.Log, err = log.commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.save(cells[1], built); err != nil {
		t.Fatal(err)
	}
	r := b.lacking(cells[1], []*Result{{Cell: cells[0], Outcome: Failed, Record: &Record{Outcome: Failed, Phase: "make"}}})
	if rec, err := (records{s}).load(cells[1].Key); r.Outcome != Built || err != nil || rec.Outcome != Built {
		t.Errorf("%s, and the store has %+v, %v", r.Outcome, rec, err)
	}
}

// TestNoLog opens a log that is none, of which nothing stays open.
func TestNoLog(t *testing.T) {
	s := openStore(t)
	d, err := s.Put([]byte("not gzip"), logType)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (records{s}).log(blobOf(d)); err == nil {
		t.Error("it opens")
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if name, _ := os.Readlink(fd); filepath.Base(name) == d.Digest.Hex {
			t.Errorf("%s is open", name)
		}
	}
}

// TestUponKey has what a cell is built upon in its key.
func TestUponKey(t *testing.T) {
	alone, upon := uponCells(t, "low", "top"), uponCells(t, "low", "top")
	alone[1].Needs = nil
	upon[0].Module.MakeArgs = []string{"X=1"}
	keys := map[string]bool{upon[1].key(): true, alone[1].key(): true}
	upon[0].Key = upon[0].key()
	keys[upon[1].key()] = true
	if len(keys) != 3 {
		t.Errorf("%d keys, want 3", len(keys))
	}
}

// TestRebuildOfDamage damages a cell's blobs one by one.
func TestRebuildOfDamage(t *testing.T) {
	s := openStore(t)
	cells := testCells(t, 1)
	good := goodModule(t)
	builds := 0
	b, _ := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
		builds++
		return exits, output(task.Output, worker.Built, map[string][]byte{"x": good})
	})
	build := func() *Result {
		results, err := b.Build(t.Context(), cells)
		if err != nil {
			t.Fatal(err)
		}
		return results[0]
	}
	build()
	blobs, err := filepath.Glob(filepath.Join(s.BlobDir(), "*"))
	if err != nil || len(blobs) != 4 { // module, log, record, manifest
		t.Fatalf("%d blobs, %v", len(blobs), err)
	}
	for i, blob := range blobs {
		if err := os.WriteFile(blob, []byte("damaged"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := build(); r.Cached || builds != i+2 {
			t.Errorf("blob %d: cached %t after %d builds", i, r.Cached, builds)
		}
		if r := build(); !r.Cached {
			t.Errorf("blob %d: not cached after it was built again", i)
		}
		if data, err := (records{s}).module(build().Record.Modules[0]); err != nil || !bytes.Equal(data, good) {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "refs/result", cells[0].Key), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := build(); r.Cached {
		t.Error("a damaged ref was taken")
	}
}

// TestParallel counts the builds at a time.
func TestParallel(t *testing.T) {
	for _, tt := range []struct {
		name            string
		parallel, cells int
		most            int
		took            time.Duration
	}{
		{"as many as asked for", 3, 7, 3, 3 * time.Minute},
		{"as many as cores, the last beside them", 0, 7, 4, 2 * time.Minute},
		{"as many as cores, no other left", 0, 6, 3, 2 * time.Minute},
		{"one more than cores", 0, 4, 4, time.Minute},
		{"less than cores", 0, 2, 2, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cells, s := testCells(t, tt.cells), openStore(t)
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				now, most := 0, 0
				b, _ := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
					mu.Lock()
					now++
					most = max(most, now)
					mu.Unlock()
					time.Sleep(time.Minute)
					mu.Lock()
					now--
					mu.Unlock()
					return exits, output(task.Output, worker.Excluded, nil)
				})
				b.Parallel, b.Cores = tt.parallel, []int{2, 1}
				begun := time.Now()
				if _, err := b.Build(t.Context(), cells); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); most != tt.most || took != tt.took {
					t.Errorf("%d at a time in %s, want %d in %s", most, took, tt.most, tt.took)
				}
			})
		})
	}
}

// TestLargestFirst builds what has the most code first, else in the plan's order.
func TestLargestFirst(t *testing.T) {
	cells := testCells(t, 6)
	for i, code := range []int64{10, 10, 500, 0, 500, 20} {
		cells[i].Inputs.Source = &images.Source{Code: code}
	}
	indices := []int{0, 1, 2, 3, 4, 5}
	largestFirst(cells, indices)
	if want := []int{2, 4, 5, 0, 1, 3}; !slices.Equal(indices, want) {
		t.Errorf("got %v, want %v", indices, want)
	}
}

// TestJobs has fewer and fewer builds left, on one machine and on several.
func TestJobs(t *testing.T) {
	for _, tt := range []struct {
		name     string
		parallel int
		cores    []int
		want     []int // jobs with 5, 4, 3, 2 and 1 builds left
	}{
		{"two cores", 4, []int{2}, []int{2, 2, 2, 2, 4}},
		{"eight cores", 4, []int{8}, []int{4, 4, 6, 8, 16}},
		{"as many as cores", 0, []int{2, 1}, []int{2, 2, 2, 3, 4}},
		{"a wide machine and a small one", 0, []int{8, 2}, []int{4, 5, 7, 10, 16}},
	} {
		s := newSlots(tt.parallel, 5, tt.cores)
		for i, want := range tt.want {
			if jobs := s.jobs(); jobs != want {
				t.Errorf("%s, %d left: %d jobs, want %d", tt.name, 5-i, jobs, want)
			}
			s.finished()
		}
	}
}

// TestRetries has faults that pass, that do not, and that cannot.
func TestRetries(t *testing.T) {
	fault, lost := errors.New("the runtime is out of order"), fmt.Errorf("docker: %w", worker.ErrLost)
	for _, tt := range []struct {
		name     string
		faults   int
		err      error
		want     Outcome
		retrying []string
		took     time.Duration
	}{
		{"none", 0, nil, Excluded, nil, 0},
		{"passes", 2, fault, Excluded, []string{"1s: " + fault.Error(), "2s: " + fault.Error()}, 3 * time.Second},
		{"does not pass", 9, fault, Infrastructure, []string{"1s: " + fault.Error(), "2s: " + fault.Error()}, 3 * time.Second},
		{"daemons lost", 2, lost, Excluded, []string{"0s: " + lost.Error(), "0s: " + lost.Error()}, 0},
		{"a daemon lost each time", 99, lost, Infrastructure, append(slices.Repeat([]string{"0s: " + lost.Error()}, maxLosses),
			"1s: "+lost.Error(), "2s: "+lost.Error()), 3 * time.Second},
		{"cannot pass", 9, fmt.Errorf("x: %w", fetch.ErrNotFound), Infrastructure, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cells, s := testCells(t, 2), openStore(t)
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				b, o := builder(s, func(_ context.Context, task worker.Task) (worker.Result, error) {
					if task.Name == cells[0].Name() {
						if tries++; tries <= tt.faults {
							return worker.Result{}, tt.err
						}
					}
					return exits, output(task.Output, worker.Excluded, nil)
				})
				begun := time.Now()
				results, err := b.Build(t.Context(), cells)
				if err != nil {
					t.Fatal(err)
				}
				if results[0].Outcome != tt.want || !slices.Equal(o.retrying, tt.retrying) || time.Since(begun) != tt.took {
					t.Errorf("got %s after %s, %q", results[0].Outcome, time.Since(begun), o.retrying)
				}
				if tt.want == Infrastructure && !errors.Is(results[0].Err, tt.err) {
					t.Errorf("error %v", results[0].Err)
				}
				if results[1].Outcome != Excluded {
					t.Errorf("the other cell: %s", results[1].Outcome)
				}
			})
		})
	}
}

// TestCancel ends a run while builds are running, waiting and being tried again.
func TestCancel(t *testing.T) {
	cells, s := testCells(t, 9), openStore(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b, o := builder(s, func(ctx context.Context, task worker.Task) (worker.Result, error) {
			if task.Name == cells[0].Name() {
				return worker.Result{}, errors.New("a fault")
			}
			<-ctx.Done()
			return worker.Result{}, ctx.Err()
		})
		b.Backoff = time.Hour
		time.AfterFunc(time.Minute, cancel)
		begun := time.Now()
		_, err := b.Build(ctx, cells)
		if !errors.Is(err, context.Canceled) || time.Since(begun) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		if o.finished != 0 {
			t.Errorf("%d cells finished", o.finished)
		}
	})
	if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
		t.Errorf("%d temporaries are left", len(left))
	}
}

// symversOnce counts how often a kernel's symbols are read.
type symversOnce struct {
	noImages
	mu    sync.Mutex
	reads map[string]int
}

func (s *symversOnce) Symvers(_ context.Context, _ images.Inputs, release string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads[release]++
	return []byte("0x00000001\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n"), nil
}

func TestSymversCache(t *testing.T) {
	cells := testCells(t, symversKept+1)
	source := &symversOnce{reads: map[string]int{}}
	cache := &symversCache{load: source.Symvers}
	get := func(c *Cell) {
		t.Helper()
		if v, err := cache.get(t.Context(), c); err != nil || v.Len() != 1 {
			t.Errorf("%v, %v", v, err)
		}
	}
	for _, c := range cells {
		get(c)
		get(c)
	}
	if n := source.reads[cells[1].Kernel.Release]; n != 1 {
		t.Errorf("read %d times", n)
	}
	get(cells[0]) // was forgotten
	if n := source.reads[release]; n != 2 {
		t.Errorf("the oldest was read %d times, want 2", n)
	}
	if len(cache.known) > symversKept {
		t.Errorf("%d are kept", len(cache.known))
	}
}

func sectionOf(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

// TestCheckPrograms finds a program of this machine in the user-space files of a
// build for another architecture.
func TestCheckPrograms(t *testing.T) {
	self, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	files := []worker.Installed{{Name: "usr", Mode: fs.ModeDir}, {Name: "usr/bin/tool", Data: sectionOf(self)}, {Name: "usr/share/x.o", Data: sectionOf(goodModule(t))}, {Name: "etc/x", Data: sectionOf([]byte("x"))}}
	for arch, want := range map[string]int{"x86_64": 0, "aarch64": 1} {
		c := &Cell{Cell: &matrix.Cell{Kernel: &matrix.Kernel{Arch: arch}}}
		got, err := checkPrograms(c, files)
		if err != nil || len(got) != want || want > 0 && (got[0].Module != "usr/bin/tool" || got[0].Kind != kmod.KindMachine) {
			t.Errorf("for %s: %+v, %v", arch, got, err)
		}
	}
}

// TestUnchecked says what is not looked for without the kernel's symbols, and
// warns of the packages.
func TestUnchecked(t *testing.T) {
	cells := testCells(t, 2)
	results := make([]*Result, 2)
	for i, images := range []Assembler{noImages{}, &symversOnce{reads: map[string]int{}}} {
		b, _ := builder(openStore(t), nil)
		b.symvers.load = images.Symvers
		got, err := b.check(t.Context(), cells[0], nil, worker.Output{Modules: []worker.File{{Name: "good.ko", Data: sectionOf(goodModule(t))}}})
		if want := 2 * (1 - i); err != nil || len(got.Unchecked) != want {
			t.Errorf("%+v, %v, want %d kinds unchecked", got, err, want)
		}
		results[i] = &Result{Cell: cells[i], Record: &Record{Check: got}}
	}
	packages := []Package{
		{Cells: cells[:1], Holds: HoldsModules}, {Cells: cells, Holds: HoldsModules | HoldsSource},
		{Cells: cells[1:], Holds: HoldsModules}, {Cells: cells, Holds: HoldsSource},
	}
	warnUnchecked(packages, results)
	for i, p := range packages {
		if warned := len(p.Warnings) > 0; warned != (i < 2) {
			t.Errorf("%d: %q", i, p.Warnings)
		}
	}
}

// TestCheckNames has a problem of each module by its file's name.
func TestCheckNames(t *testing.T) {
	b, _ := builder(openStore(t), nil)
	b.symvers.load = noImages{}.Symvers
	c := testCells(t, 2)[1] // another kernel than the module's
	got, err := b.check(t.Context(), c, nil, worker.Output{Modules: []worker.File{{Name: "good.ko", Data: sectionOf(goodModule(t))}, {Name: "bad.ko", Data: sectionOf([]byte("?"))}}})
	if err != nil || len(got.Problems) != 2 || got.Format != checkFormat {
		t.Fatalf("%+v, %v", got, err)
	}
	if p := got.Problems[0]; p.Module != "bad.ko" || p.Kind != kmod.KindFormat {
		t.Errorf("%+v", p)
	}
	if p := got.Problems[1]; p.Module != "good.ko" || p.Kind != kmod.KindVermagic || !strings.Contains(p.Detail, release) {
		t.Errorf("%+v", p)
	}
}
