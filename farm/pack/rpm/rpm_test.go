package rpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

var update = flag.Bool("update", false, "write the goldens anew")

const (
	testRelease = "6.1.192-56.host108.x86_64"
	testSymvers = "0x11111111\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n0x00000033\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n"
	testConf    = "PACKAGE_NAME=\"hello\"\nPACKAGE_VERSION=\"1.0\"\nBUILT_MODULE_NAME[0]=\"hello\"\n" +
		"DEST_MODULE_LOCATION[0]=\"/extra\"\nAUTOINSTALL=\"yes\"\n"
)

func testInfo(style Style) Info {
	return Info{Style: style, Name: "hello", Version: "1.0", URL: "https://example.org/hello", Epoch: time.Unix(1700000000, 0)}
}

// testSourceInfo is testInfo for packages of sources.
func testSourceInfo() Info {
	info := testInfo("")
	info.License = "GPL-2.0-only"
	return info
}

func testKernel(t testing.TB) Kernel {
	t.Helper()
	symvers, err := kmod.ParseSymvers(strings.NewReader(testSymvers))
	if err != nil {
		t.Fatal(err)
	}
	return Kernel{Release: testRelease, Arch: "x86_64", Flavor: "host108", Symvers: symvers}
}

func testModule(t testing.TB, dest string) dkms.Module {
	t.Helper()
	data, err := os.ReadFile("testdata/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	return dkms.Module{Dest: dest, Size: int64(len(data)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

func testBuild(t testing.TB) Build {
	return Build{Kernel: testKernel(t), Modules: []dkms.Module{testModule(t, "hello-mod.ko")}}
}

func testSource(t testing.TB) SourceTree {
	assembly, err := os.ReadFile("testdata/hello.s")
	if err != nil {
		t.Fatal(err)
	}
	return SourceTree{Conf: []byte(testConf), Files: dkms.SourceFS(fstest.MapFS{
		"dkms.conf":      {Data: []byte(testConf), Mode: 0o600},
		"hello.S":        {Data: assembly, Mode: 0o664},
		"hello/a.h":      {Data: []byte("int a;\n"), Mode: 0o644},
		"scripts/run.sh": {Data: []byte("#!/bin/sh\n"), Mode: 0o700},
		"link.S":         {Data: []byte("hello.S"), Mode: os.ModeSymlink | 0o777},
		"patches":        {Mode: os.ModeDir | 0o700},
	})}
}

func testPrebuilt(t testing.TB, kernel string) Prebuilt {
	t.Helper()
	var b bytes.Buffer
	err := dkms.Package(&b, dkms.Info{Name: "hello", Version: "1.0", Conf: []byte(testConf), Epoch: time.Unix(1700000000, 0)},
		[]dkms.Build{{Kernel: kernel, Arch: "x86_64", Modules: []dkms.Module{testModule(t, "hello.ko")}, Log: []byte("prebuilt\n")}})
	if err != nil {
		t.Fatal(err)
	}
	return Prebuilt{Kernel: kernel, Arch: "x86_64", Size: int64(b.Len()), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}}
}

func testTools() iter.Seq2[dkms.File, error] {
	return dkms.SourceFS(fstest.MapFS{
		"usr/bin/hello":           {Data: []byte("#!/bin/sh\necho hello\n"), Mode: 0o755},
		"usr/share/hello/data":    {Data: []byte("data\n"), Mode: 0o644},
		"etc/modprobe.d/hello.cf": {Data: []byte("options hello a=1\n"), Mode: 0o644},
	})
}

// pkg is a package of the tests: its name and what writes it.
type pkg struct {
	file  string
	write func(io.Writer) error
}

// testPackages are one package of every kind.
func testPackages(t testing.TB) map[string]pkg {
	t.Helper()
	name := func(file string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	all := map[string]pkg{}
	for _, style := range Styles() {
		for _, c := range ModuleCompressions() {
			build := testBuild(t)
			build.Compression = c
			all[strings.TrimSuffix(string(style)+" "+string(c), " ")] = pkg{
				name(FileName(testInfo(style), build.Kernel)),
				func(w io.Writer) error { return Package(w, testInfo(style), build) },
			}
		}
	}
	info, kernel := testSourceInfo(), testKernel(t)
	all["meta"] = pkg{name(MetaFileName(info, kernel)), func(w io.Writer) error { return Meta(w, info, kernel) }}
	all["source"] = pkg{name(SourceFileName(info)), func(w io.Writer) error { return Source(w, info, testSource(t)) }}
	all["dkms"] = pkg{name(DKMSFileName(info)), func(w io.Writer) error { return DKMS(w, info, testSource(t), nil) }}
	all["dkms prebuilt"] = pkg{name(DKMSFileName(info)), func(w io.Writer) error {
		return DKMS(w, info, testSource(t), []Prebuilt{testPrebuilt(t, "6.9.1"), testPrebuilt(t, "6.10.1")})
	}}
	all["tools"] = pkg{name(ToolsFileName(info, "x86_64")), func(w io.Writer) error { return Tools(w, info, "x86_64", testTools()) }}
	return all
}

// store writes a package into dir, and gives its path.
func store(t testing.TB, dir string, p pkg) string {
	t.Helper()
	var b bytes.Buffer
	if err := p.write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, p.file)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func command(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s (see ci/setup): %v", name, err)
	}
	return string(out), err
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// The digests change when what is in the packages does (then every package in
// every repository changes: say so in the release notes, and raise the number of
// the format where packages are cached), and when the compressors' output does
// with a new version of klauspost/compress or ulikunitz/xz. `go test -update`
// writes them anew; the listings beside them, which are of the real rpm, tell
// which of the two it was.
func TestGolden(t *testing.T) {
	var digests strings.Builder
	packages := testPackages(t)
	for _, kind := range slices.Sorted(maps.Keys(packages)) {
		file := store(t, t.TempDir(), packages[kind])
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&digests, "%x  %s (%s)\n", sha256.Sum256(data), filepath.Base(file), kind)
		if got := run(t, "rpm", "-K", file); !strings.HasSuffix(got, ": digests OK\n") {
			t.Error(got)
		}
		if style, _, compressed := strings.Cut(kind, " "); !compressed || style == "dkms" {
			golden(t, strings.ReplaceAll(kind, " ", "-")+".txt", listing(t, file))
		}
	}
	golden(t, "digests.txt", digests.String())
}

// listing is what the real rpm says of a package.
func listing(t *testing.T, file string) string {
	var b strings.Builder
	b.WriteString(run(t, "rpm", "-qp", "--qf",
		"%{NAME} %{VERSION} %{RELEASE} %{ARCH}, by %{BUILDHOST} at %{BUILDTIME}\n%{SUMMARY}\n%{DESCRIPTION}\n%{LICENSE}, %{GROUP}, %{URL}\n", file))
	for _, query := range []string{"--provides", "--requires", "--supplements", "--enhances", "--dump", "--scripts"} {
		fmt.Fprintf(&b, "\n%s\n%s", query, run(t, "rpm", "-qp", query, file))
	}
	return b.String()
}

// Two hyphens cannot stand in a dependency; the error says what to do.
func TestDebianRelease(t *testing.T) {
	kernel := Kernel{Release: "6.1.0-56-amd64", Arch: "x86_64", Flavor: "amd64"}
	_, err := FileName(testInfo(Kmod), kernel)
	if !errors.Is(err, ErrStyle) || !errors.Is(err, rpmfile.ErrHyphens) || !strings.Contains(err.Error(), `use the style "kernel-module"`) {
		t.Errorf("kmod: %v", err)
	}
	for _, tt := range []struct {
		style Style
		want  string
	}{
		{KernelModule, "kernel-module-hello-1.0-6.1.0_56_amd64.x86_64.rpm"},
		{KMP, "hello-kmp-amd64-1.0_k6.1.0_56-1.x86_64.rpm"},
	} {
		if got, err := FileName(testInfo(tt.style), kernel); err != nil || got != tt.want {
			t.Errorf("%s: got %s, %v, want %s", tt.style, got, err, tt.want)
		}
	}
	var b bytes.Buffer
	build := testBuild(t)
	build.Kernel.Release = kernel.Release
	if err := Package(&b, testInfo(KernelModule), build); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.rpm")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "rpm", "-qpR", file); !strings.Contains(got, "/lib/modules/6.1.0-56-amd64/modules.builtin\n") {
		t.Error(got)
	}
}

func TestNames(t *testing.T) {
	fedora := Kernel{Release: "6.11.4-301.fc41.x86_64", Arch: "x86_64"}
	suse := Kernel{Release: "6.4.0-150600.21-default", Arch: "x86_64", Flavor: "default"}
	for _, tt := range []struct {
		style         Style
		name, version string
		kernel        Kernel
		want          string
	}{
		{"", "hello", "1.0", fedora, "kmod-hello-6.11.4-301.fc41.x86_64-1.0-1.x86_64.rpm"},
		{"", "Hello_x+y", "1.0-rc1", fedora, "kmod-Hello_x+y-6.11.4-301.fc41.x86_64-1.0_rc1-1.x86_64.rpm"},
		{"", "hello", "1.0~rc1+git", fedora, "kmod-hello-6.11.4-301.fc41.x86_64-1.0~rc1+git-1.x86_64.rpm"},
		{"", "hello", "1.0", Kernel{Release: "6.12.0", Arch: "aarch64"}, "kmod-hello-6.12.0-1.0-1.aarch64.rpm"},
		{"", "hello", "1.0", Kernel{Release: "6.1.0-1.x86_64+debug", Arch: "x86_64"}, "kmod-hello-6.1.0-1.x86_64+debug-1.0-1.x86_64.rpm"},
		{KernelModule, "hello", "1.0", fedora, "kernel-module-hello-1.0-6.11.4_301.fc41.x86_64.rpm"},
		{KMP, "hello", "1.0", suse, "hello-kmp-default-1.0_k6.4.0_150600.21-1.x86_64.rpm"},
		{KernelModule, "hello", "1.0", Kernel{Release: "5.4.0", Arch: "armv7l"}, "kernel-module-hello-1.0-5.4.0.armv7hl.rpm"},
	} {
		info := testInfo(tt.style)
		info.Name, info.Version = tt.name, tt.version
		if got, err := FileName(info, tt.kernel); err != nil || got != tt.want {
			t.Errorf("got %s, %v, want %s", got, err, tt.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Info, *Build)
		say    string
	}{
		{"tilde in a name", func(i *Info, _ *Build) { i.Name = "a~b" }, `package name "kmod-a~b-`},
		{"name", func(i *Info, _ *Build) { i.Name = "a b" }, `module name "a b"`},
		{"shell in a name", func(i *Info, _ *Build) { i.Name = "a$(id)" }, "module name"},
		{"macro in a version", func(i *Info, _ *Build) { i.Version = "%{x}" }, "module version"},
		{"dots", func(i *Info, _ *Build) { i.Version = "1..0" }, "two dots"},
		{"release", func(i *Info, _ *Build) { i.Release = "1-2" }, `version "1-2"`},
		{"kernel", func(_ *Info, b *Build) { b.Kernel.Release = "6.1;id" }, "kernel release"},
		{"debian's arch", func(_ *Info, b *Build) { b.Kernel.Arch = "amd64" }, `called "x86_64"`},
		{"style", func(i *Info, _ *Build) { i.Style = "x" }, `style "x"`},
		{"no flavor", func(i *Info, b *Build) { i.Style, b.Kernel.Flavor = KMP, "" }, "flavor"},
		{"no epoch", func(i *Info, _ *Build) { i.Epoch = time.Time{} }, "epoch"},
		{"no modules", func(_ *Info, b *Build) { b.Modules = nil }, "0 modules"},
		{"compression", func(_ *Info, b *Build) { b.Compression = "bz2" }, `compression "bz2"`},
		{"payload", func(i *Info, _ *Build) { i.Payload = "bzip2" }, `compression "bzip2"`},
		{"module with slash", func(_ *Info, b *Build) { b.Modules[0].Dest = "a/b.ko" }, "module file"},
		{"module twice", func(_ *Info, b *Build) {
			b.Modules = append(b.Modules, b.Modules[0])
			b.Modules[1].Dest = "hello_mod.ko"
		}, "two modules"},
		{"short", func(_ *Info, b *Build) { b.Modules[0].Size++ }, "content is not of the"},
		{"long", func(_ *Info, b *Build) { b.Modules[0].Size-- }, "content is not of the"},
		{"no module", func(_ *Info, b *Build) {
			b.Modules[0].Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("hello")), nil }
			b.Modules[0].Size = 5
		}, "hello-mod.ko: "},
		{"unreadable", func(_ *Info, b *Build) {
			b.Modules[0].Open = func() (io.ReadCloser, error) { return nil, os.ErrNotExist }
		}, "file does not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info, build := testInfo(Kmod), testBuild(t)
			tt.change(&info, &build)
			if err := Package(io.Discard, info, build); err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, want %q", err, tt.say)
			}
		})
	}
}

func TestSourceRefusals(t *testing.T) {
	file := func(f dkms.File) SourceTree {
		return SourceTree{Conf: []byte(testConf), Files: func(yield func(dkms.File, error) bool) { yield(f, nil) }}
	}
	for _, tt := range []struct {
		name string
		src  SourceTree
		say  string
	}{
		{"path leaves", file(dkms.File{Path: "../x", Mode: os.ModeDir}), "leaves the tree"},
		{"link leaves", file(dkms.File{Path: "x", Mode: os.ModeSymlink, Link: "/etc/passwd"}), "leads out"},
		{"control character", file(dkms.File{Path: "a\nb", Mode: os.ModeDir}), "control characters"},
		{"conf is a link", file(dkms.File{Path: "dkms.conf", Mode: os.ModeSymlink, Link: "x"}), "not a regular file"},
		{"no conf", SourceTree{Files: testSource(t).Files}, "dkms.conf of 1 to"},
		{"unreadable", SourceTree{Conf: []byte(testConf), Files: dkms.SourceFS(os.DirFS("/does/not/exist"))}, "adding the source"},
	} {
		for kind, err := range map[string]error{
			"dkms":   DKMS(io.Discard, testSourceInfo(), tt.src, nil),
			"source": Source(io.Discard, testSourceInfo(), tt.src),
		} {
			if err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("%s, %s: got %v, want %q", tt.name, kind, err, tt.say)
			}
		}
	}
	info := testInfo("")
	for kind, err := range map[string]error{
		"dkms": DKMS(io.Discard, info, testSource(t), nil), "source": Source(io.Discard, info, testSource(t)),
		"meta": Meta(io.Discard, info, testKernel(t)), "tools": Tools(io.Discard, info, "x86_64", testTools()),
	} {
		if err == nil || !strings.Contains(err.Error(), "license") {
			t.Errorf("%s without a license: %v", kind, err)
		}
	}
	for name, say := range map[string]string{"lib/modules/x/a.ko": "package of modules", "home/x": "place for packages"} {
		files := dkms.SourceFS(fstest.MapFS{name: {Mode: 0o644}})
		if err := Tools(io.Discard, testSourceInfo(), "x86_64", files); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("tools with %s: %v", name, err)
		}
	}
}

func TestLicense(t *testing.T) {
	for in, want := range map[string]string{
		"GPL": "GPL-2.0-only", "Dual MIT/GPL": "GPL-2.0-only OR MIT", "NVIDIA": "LicenseRef-NVIDIA",
		"My own, v1\n%{x}": "LicenseRef-My-own--v1---x",
	} {
		if got, err := License(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	if _, err := License(""); !errors.Is(err, ErrNoLicense) {
		t.Error(err)
	}
	module := func(license string) *kmod.Module {
		return &kmod.Module{Info: []kmod.KV{{Key: "license", Value: license}}}
	}
	got, err := Licenses([]*kmod.Module{module("Dual MIT/GPL"), module("GPL"), module("GPL v2")})
	if want := "GPL-2.0-only AND (GPL-2.0-only OR MIT)"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// The order in which a source and what is prebuilt come makes no difference.
func TestDeterminism(t *testing.T) {
	src, info := testSource(t), testSourceInfo()
	var files []dkms.File
	for f, err := range src.Files {
		if err != nil {
			t.Fatal(err)
		}
		if !f.Mode.IsDir() || f.Path == "patches" { // folders of files come by themselves
			files = append(files, f)
		}
	}
	slices.Reverse(files)
	turned := SourceTree{Conf: src.Conf, Files: func(yield func(dkms.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}}
	one, two := testPrebuilt(t, "6.9.1"), testPrebuilt(t, "6.10.1")
	for kind, write := range map[string]func(io.Writer, SourceTree, ...Prebuilt) error{
		"dkms":   func(w io.Writer, s SourceTree, p ...Prebuilt) error { return DKMS(w, info, s, p) },
		"source": func(w io.Writer, s SourceTree, _ ...Prebuilt) error { return Source(w, info, s) },
	} {
		var a, b bytes.Buffer
		if err := errors.Join(write(&a, src, one, two), write(&b, turned, two, one)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%s: the order of the input makes a difference", kind)
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
	for kind, p := range testPackages(t) {
		for _, room := range []brokenWriter{0, 100, 600} {
			if err := p.write(&room); !errors.Is(err, errFull) {
				t.Errorf("%s: got %v", kind, err)
			}
		}
	}
}

func TestShellcheck(t *testing.T) {
	for _, name := range []string{"depmod", "dkms.post", "dkms.preun", "dkms.posttrans", "weak.add", "weak.remove"} {
		run(t, "shellcheck", "-s", "sh", filepath.Join("scripts", name))
	}
	run(t, "shellcheck", "scripts/build-modules")
}
