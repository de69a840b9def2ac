package dkms

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

var update = flag.Bool("update", false, "write the goldens anew")

const testConf = `PACKAGE_NAME="hello"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="hello"
DEST_MODULE_LOCATION[0]="/kernel/drivers/misc"
AUTOINSTALL="yes"
`

func testModule(dest, content string) Module {
	return Module{Dest: dest, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

func testBuild(kernel string) Build {
	return Build{
		Kernel: kernel, Arch: "x86_64",
		Modules: []Module{
			testModule("hello.ko", strings.Repeat(kernel+" module ", 1000)),
			testModule("hello-extra.ko", strings.Repeat(kernel+" extra ", 1000)),
		},
		Symvers: []byte("0x12345678\thello\thello\tEXPORT_SYMBOL\t\n"),
		Log:     []byte("DKMS make.log for hello-1.0\n"),
	}
}

func testSource() iter.Seq2[File, error] {
	return SourceFS(fstest.MapFS{
		"dkms.conf":      {Data: []byte(testConf), Mode: 0o600},
		"Makefile":       {Data: []byte("obj-m := hello.o\n"), Mode: 0o664},
		".version":       {Data: []byte("1.0\n"), Mode: 0o644},
		"scripts/run.sh": {Data: []byte("#!/bin/sh\n"), Mode: 0o700},
		"src/hello.c":    {Data: []byte("int x;\n"), Mode: 0o644},
		"link.c":         {Data: []byte("src/hello.c"), Mode: os.ModeSymlink | 0o777},
		"patches":        {Mode: os.ModeDir | 0o700},
		"a/" + strings.Repeat("long", 30) + "/ä.c": {Data: []byte("int y;\n"), Mode: 0o644},
	})
}

// testInput is a tarball's input for a layout.
func testInput(layout Layout, compression Compression) (Info, []Build) {
	info := Info{
		Name: "hello", Version: "1.0", Conf: []byte(testConf), Source: testSource(),
		Epoch: time.Unix(1700000000, 0), Layout: layout, Compression: compression,
	}
	switch layout {
	case SourceOnly:
		return info, nil
	case Combined:
		return info, []Build{testBuild("6.1.0-9-amd64"), testBuild("6.1.0-10-amd64")}
	}
	return info, []Build{testBuild("6.1.0-9-amd64")}
}

func pack(t *testing.T, info Info, builds []Build) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Package(&b, info, builds); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The digests change when the layout of the archive changes (then every
// tarball in every mirror does: say so in the release notes), and when the
// compressors' output does with a new version of klauspost/compress or
// ulikunitz/xz. `go test -update` writes them anew; the listings beside them,
// which are of the real tar, tell which of the two it was.
func TestGolden(t *testing.T) {
	var digests strings.Builder
	for _, layout := range Layouts() {
		for _, compression := range Compressions() {
			info, builds := testInput(layout, compression)
			fmt.Fprintf(&digests, "%x  %s %s\n", sha256.Sum256(pack(t, info, builds)), layout, FileName(info, builds))
		}
	}
	golden(t, "digests.txt", digests.String())
}

func TestListing(t *testing.T) {
	for _, layout := range Layouts() {
		var plain string
		for _, compression := range Compressions() {
			t.Run(string(layout)+" "+string(compression), func(t *testing.T) {
				info, builds := testInput(layout, compression)
				file := filepath.Join(t.TempDir(), FileName(info, builds))
				if err := os.WriteFile(file, pack(t, info, builds), 0o644); err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(t.Context(), "tar", "-tvf", file, "--full-time", "--quoting-style=escape")
				cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("tar: %v\n%s", err, out)
				}
				if plain == "" {
					plain = string(out)
				}
				if string(out) != plain {
					t.Errorf("got %s\nother compression %s", out, plain)
				}
			})
		}
		golden(t, "listing-"+string(layout)+".txt", plain)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// Source trees that differ in what must not matter give the same bytes.
func TestDeterminism(t *testing.T) {
	digest := func(umask int, zone *time.Location, reverse bool) string {
		defer syscall.Umask(syscall.Umask(umask))
		defer func(l *time.Location) { time.Local = l }(time.Local)
		time.Local = zone
		dir := t.TempDir()
		files := []string{"dkms.conf", ".version", "src/a.c", "run"}
		if reverse {
			slices.Reverse(files)
		}
		for _, name := range files {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o777); err != nil {
				t.Fatal(err)
			}
			mode := os.FileMode(0o666)
			if name == "run" {
				mode = 0o777
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
				t.Fatal(err)
			}
		}
		info, builds := testInput(Full, Gzip)
		info.Source = SourceFS(os.DirFS(dir))
		info.Epoch = info.Epoch.Add(7 * time.Millisecond).In(zone)
		if reverse {
			slices.Reverse(builds[0].Modules)
		}
		return fmt.Sprintf("%x", sha256.Sum256(pack(t, info, builds)))
	}
	first := digest(0o022, time.UTC, false)
	second := digest(0o077, time.FixedZone("Nowhere", -7*3600), true)
	if first != second {
		t.Errorf("%s, then %s", first, second)
	}
}

// TestUnixLines packs a dkms.conf from another system as what it is here: dkms
// 3.0.10 would load it as a module whose name ends in a carriage return.
func TestUnixLines(t *testing.T) {
	other := strings.ReplaceAll(testConf, "\n", "\r\n")
	tree := func(conf string) iter.Seq2[File, error] {
		return SourceFS(fstest.MapFS{"dkms.conf": {Data: []byte(conf)}, "x/dkms.conf": {Data: []byte(other)}, "x.c": {Data: []byte("int x;\r\n")}})
	}
	for _, layout := range Layouts() {
		info, builds := testInput(layout, "gz")
		info.Source = tree(testConf)
		want := pack(t, info, builds)
		info.Conf, info.Source = []byte(other), tree(other)
		if !bytes.Equal(pack(t, info, builds), want) {
			t.Errorf("%s: a dkms.conf with carriage returns is packed differently", layout)
		}
	}
	info, builds := testInput(Full, "gz")
	info.Source = func(func(File, error) bool) {}
	want := pack(t, info, builds)
	info.Conf = []byte(other)
	if !bytes.Equal(pack(t, info, builds), want) {
		t.Error("the conf of a source without one is packed differently")
	}
}

func TestCombinedOrder(t *testing.T) {
	info, builds := testInput(Combined, Zstd)
	first, name := pack(t, info, builds), FileName(info, builds)
	slices.Reverse(builds)
	if !bytes.Equal(first, pack(t, info, builds)) || name != FileName(info, builds) {
		t.Error("the order of builds matters")
	}
}

func TestFileName(t *testing.T) {
	for _, tt := range []struct {
		layout      Layout
		compression Compression
		kernels     int
		want        string
	}{
		{"", "", 1, "hello-1.0-kernel6.1.0-10-amd64-x86_64.dkms.tar.gz"},
		{BinariesOnly, XZ, 1, "hello-1.0-kernel6.1.0-10-amd64-x86_64.dkms.tar.xz"},
		{Stub, Zstd, 1, "hello-1.0-kernel6.1.0-10-amd64-x86_64-stub.dkms.tar.zst"},
		{Full, Gzip, 1, "hello-1.0-kernel6.1.0-10-amd64-x86_64-full.dkms.tar.gz"},
		{SourceOnly, Gzip, 0, "hello-1.0-source-only.dkms.tar.gz"},
		{Combined, Gzip, 2, "hello-1.0-kernel6.1.0-10-amd64-x86_64-kernel6.1.0-11-amd64-x86_64.dkms.tar.gz"},
		{Combined, Gzip, 10, "hello-1.0-manykernels.dkms.tar.gz"},
	} {
		var builds []Build
		for i := range tt.kernels {
			builds = append(builds, testBuild(fmt.Sprintf("6.1.0-%d-amd64", 10+i)))
		}
		slices.Reverse(builds)
		got := FileName(Info{Name: "hello", Version: "1.0", Layout: tt.layout, Compression: tt.compression}, builds)
		if got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

// mktarball counts 200 characters with the newline of echo.
func TestFileNameLimit(t *testing.T) {
	name := func(last int) string {
		// "kernel" + 50 + "-" + "x86_64" is 63, three with dashes 191.
		builds := []Build{testBuild("1" + strings.Repeat("0", 49)), testBuild("2" + strings.Repeat("0", 49)), testBuild("3" + strings.Repeat("0", last-1))}
		return FileName(Info{Name: "m", Version: "1", Layout: Combined}, builds)
	}
	if got := name(58); len(got) != len("m-1-")+199+len(".dkms.tar.gz") {
		t.Errorf("199 characters: %s", got)
	}
	if got := name(59); got != "m-1-manykernels.dkms.tar.gz" {
		t.Errorf("200 characters: %s", got)
	}
}

func TestRefused(t *testing.T) {
	file := func(f File) iter.Seq2[File, error] {
		return func(yield func(File, error) bool) { yield(f, nil) }
	}
	link := func(name, target string) func(*Info, []Build) []Build {
		return func(i *Info, b []Build) []Build {
			i.Layout, i.Source = Full, file(File{Path: name, Mode: os.ModeSymlink, Link: target})
			return b
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*Info, []Build) []Build
		say    string
	}{
		{"name with slash", func(i *Info, b []Build) []Build { i.Name = "../x"; return b }, `module name "../x"`},
		{"name with space", func(i *Info, b []Build) []Build { i.Name = "a b"; return b }, "module name"},
		{"no version", func(i *Info, b []Build) []Build { i.Version = ""; return b }, "module version"},
		{"version as option", func(i *Info, b []Build) []Build { i.Version = "-1"; return b }, "module version"},
		{"long version", func(i *Info, b []Build) []Build { i.Version = strings.Repeat("1", 65); return b }, "longer than 64"},
		{"layout", func(i *Info, b []Build) []Build { i.Layout = "fat"; return b }, `layout "fat"`},
		{"compression", func(i *Info, b []Build) []Build { i.Compression = "bz2"; return b }, `compression "bz2"`},
		{"no conf", func(i *Info, b []Build) []Build { i.Conf = nil; return b }, "dkms.conf of 0 bytes"},
		{"no source", func(i *Info, b []Build) []Build { i.Layout, i.Source = Full, nil; return b }, "needs the module's source"},
		{"no epoch", func(i *Info, b []Build) []Build { i.Epoch = time.Time{}; return b }, "epoch"},
		{"far epoch", func(i *Info, b []Build) []Build { i.Epoch = time.Unix(1<<33, 0); return b }, "epoch"},
		{"no builds", func(i *Info, b []Build) []Build { return nil }, "takes one build, got 0"},
		{"two builds", func(i *Info, b []Build) []Build { return append(b, testBuild("6.2")) }, "takes one build, got 2"},
		{"source with build", func(i *Info, b []Build) []Build { i.Layout = SourceOnly; return b }, "takes no builds"},
		{"combined of none", func(i *Info, b []Build) []Build { i.Layout = Combined; return nil }, "no builds"},
		{"same kernel twice", func(i *Info, b []Build) []Build { i.Layout = Combined; return append(b, b[0]) }, "two builds for kernel"},
		{"kernel", func(i *Info, b []Build) []Build { b[0].Kernel = "6.1/../.."; return b }, "kernel release"},
		{"kernel not a number", func(i *Info, b []Build) []Build { b[0].Kernel = "amd64"; return b }, "kernel release"},
		{"debian's arch", func(i *Info, b []Build) []Build { b[0].Arch = "amd64"; return b }, `called "x86_64"`},
		{"arch", func(i *Info, b []Build) []Build { b[0].Arch = ".."; return b }, "arch"},
		{"no modules", func(i *Info, b []Build) []Build { b[0].Modules = nil; return b }, "no modules"},
		{"compressed module", func(i *Info, b []Build) []Build { b[0].Modules[0].Dest = "a.ko.xz"; return b }, "module file"},
		{"module with slash", func(i *Info, b []Build) []Build { b[0].Modules[0].Dest = "a/b.ko"; return b }, "module file"},
		{"module twice", func(i *Info, b []Build) []Build { b[0].Modules[0].Dest = "hello_extra.ko"; return b }, "two modules called"},
		{"empty module", func(i *Info, b []Build) []Build { b[0].Modules[0].Size = 0; return b }, "of 0 bytes"},
		{"shorter module", func(i *Info, b []Build) []Build { b[0].Modules[0].Size++; return b }, "content is not of the"},
		{"longer module", func(i *Info, b []Build) []Build { b[0].Modules[0].Size--; return b }, "content is not of the"},
		{"unreadable module", func(i *Info, b []Build) []Build {
			b[0].Modules[0].Open = func() (io.ReadCloser, error) { return nil, os.ErrNotExist }
			return b
		}, "hello.ko: file does not exist"},
		{"source error", func(i *Info, b []Build) []Build {
			i.Layout, i.Source = Full, SourceFS(os.DirFS("/does/not/exist"))
			return b
		}, "adding the source"},
		{"path leaves", func(i *Info, b []Build) []Build {
			i.Layout, i.Source = Full, file(File{Path: "../x", Mode: os.ModeDir})
			return b
		}, "leaves the tree"},
		{"device", func(i *Info, b []Build) []Build {
			i.Layout, i.Source = Full, file(File{Path: "x", Mode: os.ModeDevice})
			return b
		}, "neither file"},
		{"conf is a link", link("dkms.conf", "other"), "not a regular file"},
		{"absolute link", link("a", "/etc/passwd"), "leads out"},
		{"link up", link("a/b", "../../x"), "leads out"},
		{"link up by a link", link("a/b", "c/../../x"), "leads out"},
		{"link with inner dots", link("a/b", "c/../x"), "leads out"},
		{"empty link", link("a", ""), "leads out"},
		{"file in a link", func(i *Info, b []Build) []Build {
			i.Layout = Full
			i.Source = func(yield func(File, error) bool) {
				_ = yield(File{Path: "a", Mode: os.ModeSymlink, Link: "b"}, nil) && yield(File{Path: "a/x", Mode: os.ModeDir}, nil)
			}
			return b
		}, "not a folder"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info, builds := testInput(BinariesOnly, Gzip)
			builds = tt.change(&info, builds)
			err := Package(io.Discard, info, builds)
			if err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, want %q", err, tt.say)
			}
		})
	}
}

func TestLinksKept(t *testing.T) {
	for _, tt := range [][2]string{{"a", "b"}, {"a/b", "../c"}, {"a/b", ".."}, {"a/b/c", "../../d/e"}, {"a", "b..c"}} {
		if err := checkLink(tt[0], tt[1]); err != nil {
			t.Error(err)
		}
	}
}

// brokenWriter fails after some bytes, as a full disk does.
type brokenWriter int

var errFull = errors.New("disk full")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if *w -= brokenWriter(len(p)); *w < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterFails(t *testing.T) {
	for _, compression := range Compressions() {
		for _, room := range []brokenWriter{0, 100} {
			info, builds := testInput(BinariesOnly, compression)
			if err := Package(&room, info, builds); !errors.Is(err, errFull) {
				t.Errorf("%s: got %v", compression, err)
			}
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, layout := range Layouts() {
		got := layout.Warning("hello", "1.0")
		if want := layout == Stub || layout == Combined; (got != "") != want {
			t.Errorf("%s: %q", layout, got)
		}
	}
	if got := Stub.Warning("hello", "1.0"); !strings.Contains(got, "/usr/src/hello-1.0") {
		t.Error(got)
	}
}
