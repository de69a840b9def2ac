package farm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
)

var update = flag.Bool("update", false, "write the goldens anew")

// TestKey pins the key: where it changes, every cache is empty. It changes with
// keyFormat and images.LayerFormat, and else it must not.
func TestKey(t *testing.T) {
	pkg := func(name, version string) *apt.Package {
		return &apt.Package{Name: name, Version: version, Arch: "amd64", SHA256: "00"}
	}
	cell := func() *Cell {
		return &Cell{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: "hello", Version: "1.0"}, Kernel: &matrix.Kernel{Release: release, Arch: "x86_64"}},
			Inputs: images.Inputs{Source: &images.Source{Digest: "11"}, Program: images.Program{Data: []byte("recipe")},
				Toolchain: []*apt.Package{pkg("gcc", "12"), pkg("make", "4")}, Headers: []*apt.Package{pkg("linux-headers", "6")}}}
	}
	key := func(c *Cell) string {
		c.packages = digestPackages(c.Inputs.Toolchain, c.Inputs.Headers, c.Inputs.Extra)
		return c.key()
	}
	if images.LayerFormat != 2 || keyFormat != 1 {
		t.Errorf("formats %d and %d: write the new key here", images.LayerFormat, keyFormat)
	}
	const want = "d2fd02410b8c814b63c65fe15b38013cd40b14005243757e2cd1d8a5446cf130"
	if got := key(cell()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	seen := map[string]string{want: "nothing"}
	for name, change := range map[string]func(*Cell){
		"kernel":        func(c *Cell) { c.Kernel.Release = "6.1.0-10-amd64" },
		"arch":          func(c *Cell) { c.Kernel.Arch = "aarch64" },
		"module":        func(c *Cell) { c.Module.Name = "hallo" },
		"version":       func(c *Cell) { c.Module.Version = "1.1" },
		"source":        func(c *Cell) { c.Inputs.Source.Digest = "12" },
		"recipe":        func(c *Cell) { c.Inputs.Program.Data = []byte("Recipe") },
		"package":       func(c *Cell) { c.Inputs.Toolchain[0] = pkg("gcc", "13") },
		"package's sum": func(c *Cell) { c.Inputs.Toolchain[0].SHA256 = "01" },
		"no package":    func(c *Cell) { c.Inputs.Toolchain = c.Inputs.Toolchain[:1] },
		"headers":       func(c *Cell) { c.Inputs.Headers[0].Version = "7" },
		"other list":    func(c *Cell) { c.Inputs.Headers, c.Inputs.Extra = nil, c.Inputs.Headers },
		"extra":         func(c *Cell) { c.Inputs.Extra = []*apt.Package{pkg("bc", "1")} },
		"custom":        func(c *Cell) { c.Inputs.Custom = &images.Headers{Digests: []string{"22"}} },
		"two customs":   func(c *Cell) { c.Inputs.Custom = &images.Headers{Digests: []string{"22", "23"}} },
		"make argument": func(c *Cell) { c.Module.MakeArgs = []string{"A=1", "B=2"} },
		"one argument":  func(c *Cell) { c.Module.MakeArgs = []string{"A=1 B=2"} },
		"user space":    func(c *Cell) { c.Module.Userspace = &matrix.Userspace{Install: "make install"} },
	} {
		c := cell()
		change(c)
		k := key(c)
		if other, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[k] = name
	}
	for name, same := range map[string]func(*Cell){
		"timeout":      func(c *Cell) { c.Timeout = 7 },
		"suite":        func(c *Cell) { c.Kernel.Suite = "sid" },
		"why":          func(c *Cell) { c.Why = "x" },
		"mirror":       func(c *Cell) { c.Inputs.Toolchain[0].URLs = []string{"http://example.org"} },
		"license":      func(c *Cell) { c.Module.License = "GPL-2.0-only" },
		"dependencies": func(c *Cell) { c.Inputs.Toolchain[0].Depends = []apt.Dependency{{}} },
	} {
		c := cell()
		same(c)
		if key(c) != want {
			t.Errorf("%s changes the key", name)
		}
	}
}

func TestFirstError(t *testing.T) {
	tests := []struct{ name, log, want string }{
		{"empty", "", ""},
		{"harmless", "  CC [M]  x.o\nno problem\n", ""},
		{"compiler", "make: *** [Makefile:3: all] Error 2\n/var/lib/dkms/x/1/build/x.c:12:5: error: implicit\nx.c:13: error: later\n", "/var/lib/dkms/x/1/build/x.c:12:5: error: implicit"},
		{"fatal", "x.c:1:10: fatal error: linux/nothing.h: No such file or directory\n", "x.c:1:10: fatal error: linux/nothing.h: No such file or directory"},
		{"modpost before make", "make[1]: *** [modpost] Error 1\nERROR: modpost: \"x\" [y.ko] undefined!\n", `ERROR: modpost: "x" [y.ko] undefined!`},
		{"linker", "x.o: in function `f': undefined reference to `g'\nmake: *** [x] Error 1\n", "x.o: in function `f': undefined reference to `g'"},
		{"shell", "./configure: line 3: bc: command not found\n", "./configure: line 3: bc: command not found"},
		{"make only", "make: *** No rule to make target 'x'.  Stop.\n", "make: *** No rule to make target 'x'.  Stop."},
		{"only the recipe's own", "# phase: make\nmake: Leaving directory '/x'\n# exit code: 0\nkofarm: failed: modules: error: the build made no x.ko\n", ""},
		{"the last line before the recipe's", "  patching\nI give up\n\n# exit code: 1\nkofarm: failed: pre_build: the script ended with status 1\nlate\n", "I give up"},
		{"stopped", "  CC [M]  x.o\nstill at it\n", ""},
		{"patch", "patching file ok.c\nHunk #1 FAILED at 1.\n1 out of 1 hunk FAILED -- saving rejects to file ok.c.rej\nkofarm: failed: patch: a.patch\n", "Hunk #1 FAILED at 1."},
		{"fork", "p.sh: fork: Resource temporarily unavailable\nmake: *** [x] Error 1\n", "p.sh: fork: Resource temporarily unavailable"},
		{"carriage return in a script", "build: line 324: p.sh: cannot execute: required file not found\n", "build: line 324: p.sh: cannot execute: required file not found"},
		{"colours", "\x1b[01m\x1b[Kx.c:1:1:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kred\n", "x.c:1:1: error: red"},
		{"a word in colour", "\x1b[31merror: red\x1b[0m\n", "error: red"},
		{"quoted source", "   12 | error: shown by the compiler below\nx.c:2:1: error: real\n", "x.c:2:1: error: real"},
		{"carriage return", "x.c:1:1: error: a\r\n", "x.c:1:1: error: a"},
		{"no newline", "x.c:1:1: error: a", "x.c:1:1: error: a"},
		{"after a long line", strings.Repeat("x", 3*maxLine) + "\nx.c:1:1: error: a\n", "x.c:1:1: error: a"},
		{"in a long line's end", strings.Repeat("x", 3*maxLine) + ": error: a\n", ""},
		{"control characters", "x.c:1:1: error: \x1b]red\x00\n", "x.c:1:1: error:  ]red "},
	}
	for _, tt := range tests {
		if got, err := firstError(strings.NewReader(tt.log)); got != tt.want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	long, err := firstError(strings.NewReader("x.c:1:1: error: " + strings.Repeat("ü", maxLine)))
	if err != nil || len(long) > maxText+len("…") || !utf8.ValidString(long) {
		t.Errorf("%d bytes, %v", len(long), err)
	}
}

func FuzzClip(f *testing.F) {
	f.Add("plain")
	f.Add("\x00\x9b\xff" + strings.Repeat("ü", maxText))
	f.Fuzz(func(t *testing.T, s string) {
		got := clip(s)
		if !utf8.ValidString(got) || len(got) > maxText+len("…") || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
			t.Errorf("%q", got)
		}
		if clip(got) != got && len(got) <= maxText {
			t.Errorf("%q is clipped to %q", got, clip(got))
		}
	})
}

// collector packs into a folder; only DKMS tarballs.
func collector(t *testing.T, dir string, layouts ...matrix.Layout) *Collector {
	t.Helper()
	return &Collector{Store: openStore(t), Dir: dir, Farm: "farm.yaml", Kernels: noImages{},
		Output: matrix.Output{Modules: matrix.Plain, DKMS: &matrix.DKMSOutput{Layouts: layouts, Compression: matrix.Gzip}}}
}

// built builds cells whose modules are good, but for the last, which does not fit
// its kernel, as all are for the first one's.
func built(t *testing.T, c *Collector, cells []*Cell) []*Result {
	t.Helper()
	good := goodModule(t)
	b, _ := builder(c.Store, func(_ context.Context, task worker.Task) (worker.Result, error) {
		data := good
		if task.Name != cells[len(cells)-1].Name() {
			data = bytes.Replace(good, []byte(release), []byte(task.Args[4]), 1)
		}
		_, err := io.WriteString(task.Log, "a log\n")
		return exits, errors.Join(err, output(task.Output, worker.Built, map[string][]byte{"hello": data}))
	})
	results, err := b.Build(t.Context(), cells)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// fit gives cells kernels whose releases are as long as the module's.
func fit(cells []*Cell) []*Cell {
	for i, c := range cells {
		c.Kernel.Release = fmt.Sprintf("6.1.0-%d-amd64", 9-i)
		c.packages = "packages"
		c.Key = c.key()
	}
	return cells
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	c := collector(t, dir, matrix.BinariesOnly, matrix.Full)
	cells := fit(testCells(t, 3))
	results := built(t, c, cells)
	got, err := c.Collect(t.Context(), results)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Counts{Built: 3, CheckFailed: 1}); got.Report.Counts != want {
		t.Errorf("got %+v, want %+v", got.Report.Counts, want)
	}
	// The module that does not fit is in no package.
	want := []string{
		"hello-1.0-kernel6.1.0-8-amd64-x86_64.dkms.tar.gz", "hello-1.0-kernel6.1.0-8-amd64-x86_64-full.dkms.tar.gz",
		"hello-1.0-kernel6.1.0-9-amd64-x86_64.dkms.tar.gz", "hello-1.0-kernel6.1.0-9-amd64-x86_64-full.dkms.tar.gz",
		"logs/hello-1.0/6.1.0-7-amd64-x86_64.log", "logs/hello-1.0/6.1.0-8-amd64-x86_64.log", "logs/hello-1.0/6.1.0-9-amd64-x86_64.log", "results.json", checksumsFile,
	}
	names := files(t, dir)
	if len(names) != len(want) || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "kernel6.1.0-7") }) {
		t.Errorf("got %q", names)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "logs/hello-1.0/6.1.0-9-amd64-x86_64.log")); err != nil || string(data) != "a log\n" {
		t.Errorf("log %q, %v", data, err)
	}
	checkGolden(t, filepath.Join(dir, ResultsFile))
}

// checkGolden compares results.json, whose form users rely on.
func checkGolden(t *testing.T, file string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, hide := range goldenDigests(t, got) {
		got = bytes.ReplaceAll(got, []byte(hide), []byte("…"))
	}
	golden := filepath.Join("testdata", "results.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("results.json is not that of %s; where that is meant, go test -update:\n%s", golden, got)
	}
}

// goldenDigests are the digests of what depends on the assembler at hand.
func goldenDigests(t *testing.T, data []byte) []string {
	t.Helper()
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	all := []string{r.Checksums.SHA256}
	for _, f := range r.Files {
		all = append(all, f.SHA256, fmt.Sprintf(`"size": %d`, f.Size))
	}
	for _, c := range r.Cells {
		for _, m := range c.Modules {
			all = append(all, m.SHA256, fmt.Sprintf(`"size": %d`, m.Size))
		}
	}
	return all
}

// TestCollectAgain collects into a folder that an earlier, a killed and another
// run have written to.
func TestCollectAgain(t *testing.T) {
	dir := t.TempDir()
	c := collector(t, dir, matrix.BinariesOnly)
	cells := fit(testCells(t, 4))
	all := built(t, c, cells)
	if _, err := c.Collect(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	put := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("mine.txt")
	put(".kofarm-tmp-1")
	put("logs/hello-1.0/.kofarm-tmp-2")
	kept := all[0].Cell.Kernel.Release
	tarball := filepath.Join(dir, "hello-1.0-kernel"+kept+"-x86_64.dkms.tar.gz")
	put(filepath.Base(tarball)) // damaged
	if _, err := c.Collect(t.Context(), all[:1]); err != nil {
		t.Fatal(err)
	}
	want := []string{checksumsFile, filepath.Base(tarball), "logs/hello-1.0/" + kept + "-x86_64.log", "mine.txt", "results.json"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	before, err := os.Stat(tarball)
	if err != nil || before.Size() < 100 {
		t.Fatalf("the damaged package was left: %v", err)
	}
	if _, err := c.Collect(t.Context(), all[:1]); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(tarball); err != nil || !os.SameFile(before, after) {
		t.Errorf("a good package was written again: %v", err)
	}
}

// TestOthersFiles leaves alone what a results.json names, but kofarm has not
// put there, or not as it is now.
func TestOthersFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dist")
	c := collector(t, dir, matrix.BinariesOnly)
	all := built(t, c, fit(testCells(t, 4)))
	if _, err := c.Collect(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	sum := sha256hex([]byte("mine"))
	mine := []string{"main.c", "logs/mine.log", "../outside", "hello-1.0-kernel6.1.0-8-amd64-x86_64.dkms.tar.gz"}
	for _, name := range mine {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	report, err := ReadReport(filepath.Join(dir, ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	report.Files = append(report.Files, File{Path: "main.c"}, File{Path: "../outside", Blob: Blob{sum, 4}}, File{Path: ""}, File{Path: "logs"})
	report.Cells[1].Log = "logs/mine.log"
	if err := c.writeReport(report); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Collect(t.Context(), all[:1]); err != nil {
		t.Fatal(err)
	}
	for _, name := range mine {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != "mine" {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
	if names := files(t, dir); slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "6.1.0-7") }) {
		t.Errorf("what is no longer put out is still there: %q", names)
	}
}

func TestClaim(t *testing.T) {
	const rest = `"counts":{},"packageSets":{},"cells":[],"files":[]}`
	for _, tt := range []struct{ name, results, want string }{
		{"no results", "", ""},
		{"own", `{"version":1,"farm":"farm.yaml",` + rest, ""},
		{"of an earlier version", `{"version":1,` + rest, ""},
		{"another farm's", `{"version":1,"farm":"other.yaml",` + rest, `"other.yaml" has put out`},
		{"of a later version", `{"version":2,"farm":"farm.yaml",` + rest, "no report of kofarm's"},
		{"another tool's", `{"tool":"other","version":1,"files":[{"path":"src/main.c"}]}`, "no report of kofarm's"},
		{"a list", `[]`, "no report of kofarm's"},
		{"no JSON", "PASS\n", "no report of kofarm's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Collector{Dir: filepath.Join(t.TempDir(), "a", "dist"), Farm: "farm.yaml"}
			want := map[string]string{}
			if tt.results != "" {
				want[ResultsFile] = tt.results
				if err := writeFile(filepath.Join(c.Dir, ResultsFile), strings.NewReader(tt.results)); err != nil {
					t.Fatal(err)
				}
			}
			err := c.Claim()
			if entries, _ := os.ReadDir(filepath.Dir(filepath.Dir(c.Dir))); tt.results == "" && len(entries) > 0 {
				t.Errorf("it leaves %v", entries)
			}
			if _, ok := errors.AsType[*FolderError](err); ok != (tt.want != "") || ok && !strings.Contains(err.Error(), tt.want) || !ok && err != nil {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if got := contents(t, c.Dir, "*"); !maps.Equal(got, want) {
				t.Errorf("it leaves %q", got)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "dist")} {
		err := (&Collector{Dir: dir}).Claim()
		if _, ok := errors.AsType[*FolderError](err); ok || err == nil {
			t.Errorf("%s: got %v", dir, err)
		}
	}
}

// TestJudgedBefore finds results that an earlier version has checked: they have
// to be built again, so nothing is packed of them.
func TestJudgedBefore(t *testing.T) {
	c := collector(t, t.TempDir(), matrix.BinariesOnly)
	cells := fit(testCells(t, 3))
	for i, r := range built(t, c, cells)[:2] {
		r.Record.Check.Format--
		if i == 1 {
			r.Record.Outcome = Failed
		}
		if err := (records{c.Store}).save(r.Cell.Key, r.Record); err != nil {
			t.Fatal(err)
		}
	}
	want := []Status{NotYet, Status(Failed), CheckFailed}
	for i, r := range Stored(c.Store, cells) {
		if got, _ := StatusOf(c.Store, cells[i]); got != want[i] {
			t.Errorf("%d: the status is %s, want %s", i, got, want[i])
		}
		if stored := Outcome(want[i]); i < 2 && r.Outcome != stored {
			t.Errorf("%d: the outcome is %s, want %s", i, r.Outcome, stored)
		}
	}
}

// TestPackagesAreCached takes packages from the store.
func TestPackagesAreCached(t *testing.T) {
	c := collector(t, t.TempDir(), matrix.BinariesOnly)
	results := built(t, c, fit(testCells(t, 2)))
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	packages, err := c.packages(c.material(), results)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		p.Write = func(context.Context, io.Writer) error { return errors.New("written again") }
		if _, err := c.stored(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
}

// TestLongestNames packs what a farm file may name: it is built before it is packed.
func TestLongestNames(t *testing.T) {
	c := collector(t, t.TempDir(), matrix.BinariesOnly, matrix.Full, matrix.SourceOnly)
	cells := testCells(t, 2)
	name, version := strings.Repeat("n", matrix.MaxName), strings.Repeat("1", matrix.MaxName)
	if err := errors.Join(matrix.CheckName(name), matrix.CheckName(version)); err != nil {
		t.Fatal(err)
	}
	m, src := cells[0].Module, cells[0].Inputs.Source // of both cells
	m.Name, m.Version, src.Name, src.Version = name, version, name, version
	got, err := c.Collect(t.Context(), built(t, c, fit(cells)))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Refused) > 0 || len(got.Packages) != 3 {
		t.Errorf("%d packages, refused: %v", len(got.Packages), got.Refused)
	}
}
