package deb

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
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

var update = flag.Bool("update", false, "write the goldens anew")

const testConf = `PACKAGE_NAME="acpi_call"
PACKAGE_VERSION="1.2.2"
BUILT_MODULE_NAME[0]="acpi_call"
DEST_MODULE_LOCATION[0]="/kernel/drivers/misc"
AUTOINSTALL="yes"
`

const testKernel = "6.1.0-56-amd64"

func testInfo() Info {
	return Info{
		Module: "acpi_call", ModuleVersion: "1.2.2", Arch: "amd64",
		Summary:  "calls ACPI methods from user space",
		Homepage: "https://example.org/acpi_call",
		Licenses: []string{"GPL"}, Authors: []string{"Zoë Last", "Ada First <ada@example.org>"},
		Epoch: time.Unix(1700000000, 0),
	}
}

func content(data string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil }
}

func testModule(dest, data string) dkms.Module {
	return dkms.Module{Dest: dest, Size: int64(len(data)), Open: content(data)}
}

func testModules() Modules {
	return Modules{
		Info: testInfo(), Kernel: testKernel, KernelVersion: "6.1.170-1",
		Files: []dkms.Module{
			testModule("acpi_call.ko", strings.Repeat("module ", 1000)),
			testModule("acpi-extra.ko", strings.Repeat("extra ", 1001)),
		},
	}
}

func testMeta() Meta {
	return Meta{Info: testInfo(), Flavor: "amd64", Kernel: testKernel, KernelVersion: "6.1.170-1"}
}

func testSource() iter.Seq2[dkms.File, error] {
	return dkms.SourceFS(fstest.MapFS{
		"dkms.conf":      {Data: []byte(testConf), Mode: 0o600},
		"Makefile":       {Data: []byte("obj-m := acpi_call.o\n"), Mode: 0o664},
		"acpi_call.c":    {Data: []byte("int x;\n"), Mode: 0o644},
		".version":       {Data: []byte("1.2.2\n"), Mode: 0o644},
		"scripts/run.sh": {Data: []byte("#!/bin/sh\n"), Mode: 0o700},
		"link.c":         {Data: []byte("acpi_call.c"), Mode: os.ModeSymlink | 0o777},
		"a/" + strings.Repeat("long", 30) + "/ä.c": {Data: []byte("int y;\n"), Mode: 0o644},
	})
}

func testDKMS() DKMS {
	return DKMS{Info: testInfo(), Conf: []byte(testConf), Source: testSource()}
}

func testPrebuilt() DKMS {
	d := testDKMS()
	for _, kernel := range []string{testKernel, "6.1.0-9-amd64"} {
		var b bytes.Buffer
		info := dkms.Info{Name: d.Module, Version: d.ModuleVersion, Conf: d.Conf, Epoch: d.Epoch}
		one := dkms.Build{Kernel: kernel, Arch: "x86_64", Modules: []dkms.Module{testModule("acpi_call.ko", kernel)}}
		if err := dkms.Package(&b, info, []dkms.Build{one}); err != nil {
			panic(err) // the input is fixed
		}
		d.Prebuilt = append(d.Prebuilt, Prebuilt{Kernel: kernel, Arch: "x86_64", Size: int64(b.Len()), Open: content(b.String())})
	}
	return d
}

func testTools() Tools {
	return Tools{Info: testInfo(), Depends: "libc6", Files: dkms.SourceFS(fstest.MapFS{
		"usr/bin/acpi_call":    {Data: []byte("#!/bin/sh\nexit 0\n"), Mode: 0o4755},
		"etc/acpi_call/config": {Data: []byte("on\n"), Mode: 0o644},
	})}
}

// pkg is what all packages have.
type pkg interface {
	Package() (string, error)
	FileName() (string, error)
	Write(w io.Writer) error
}

// testPackages are packages of all kinds, by a name for the goldens.
func testPackages() map[string]pkg {
	packages := map[string]pkg{
		"modules": testModules(), "meta": testMeta(), "dkms": testDKMS(), "prebuilt": testPrebuilt(), "tools": testTools(),
	}
	for _, c := range Compressions() {
		m := testModules()
		m.Compress = c
		packages["modules-"+string(c)] = m
		m.Compress, m.Compression = "", c
		packages["modules-in-"+string(c)] = m
	}
	return packages
}

func pack(t testing.TB, p pkg) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// build writes a package into a folder and gives its path.
func build(t testing.TB, dir string, p pkg) string {
	t.Helper()
	name, err := p.FileName()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, pack(t, p), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// run runs a real tool, which has to be there (ci/setup test) and to succeed.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func command(t testing.TB, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// writeSource writes a source package into a folder.
func writeSource(t testing.TB, dir string, d DKMS) {
	t.Helper()
	err := d.WriteSource(func(name string) (io.WriteCloser, error) { return os.Create(filepath.Join(dir, name)) })
	if err != nil {
		t.Fatal(err)
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

// The digests change when the layout or the text of a package changes, and when
// the compressors' output does with a new version of klauspost/compress or
// ulikunitz/xz. `go test -update` writes them anew; what dpkg-deb says of the
// packages (TestInfo) tells which of the two it was.
func TestGolden(t *testing.T) {
	var digests strings.Builder
	packages := testPackages()
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		file, err := packages[name].FileName()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&digests, "%x  %s %s\n", sha256.Sum256(pack(t, packages[name])), name, file)
	}
	for _, version := range []string{"", "1.2.2-1"} {
		d := testDKMS()
		d.Version = version
		dir := t.TempDir()
		writeSource(t, dir, d)
		names, err := d.SourceNames()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&digests, "%x  source %s\n", sha256.Sum256(data), name)
		}
	}
	golden(t, "digests.txt", digests.String())
}

// What dpkg-deb reads is the same however a package is compressed.
func TestInfo(t *testing.T) {
	dir := t.TempDir()
	packages := testPackages()
	for _, name := range []string{"modules", "modules-xz", "meta", "dkms", "prebuilt", "tools"} {
		file := build(t, dir, packages[name])
		var text strings.Builder
		text.WriteString(run(t, dir, "dpkg-deb", "--field", file) + "\n" + run(t, dir, "dpkg-deb", "--contents", file))
		for line := range strings.Lines(run(t, dir, "dpkg-deb", "--info", file)) {
			if strings.Contains(line, "bytes,") && strings.Contains(line, "lines") { // a member of control.tar
				text.WriteString(line)
			}
		}
		golden(t, name+".txt", text.String())
	}
	want := run(t, dir, "dpkg-deb", "--contents", build(t, dir, packages["modules"]))
	for _, c := range Compressions() {
		got := run(t, dir, "dpkg-deb", "--contents", build(t, dir, packages["modules-in-"+string(c)]))
		if got != want {
			t.Errorf("%s: got %s, want %s", c, got, want)
		}
	}
}

// dpkg's own view of the files agrees with md5sums.
func TestMD5Sums(t *testing.T) {
	for name, p := range testPackages() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			run(t, dir, "dpkg-deb", "--raw-extract", build(t, dir, p), "tree")
			out := run(t, filepath.Join(dir, "tree"), "md5sum", "--check", "--strict", "DEBIAN/md5sums")
			files := run(t, filepath.Join(dir, "tree"), "find", ".", "-path", "./DEBIAN", "-prune", "-o", "-type", "f", "-print")
			if got, want := strings.Count(out, ": OK\n"), strings.Count(files, "\n"); got != want {
				t.Errorf("%d sums for %d files", got, want)
			}
		})
	}
}

// The kernel's own decompressor takes one xz stream with a CRC32 and a
// dictionary that it can allocate; modinfo stands for kmod.
func TestModuleCompression(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "m.c")
	code := `static const char info[] __attribute__((used, section(".modinfo"))) = "license=GPL\0version=1.2.2";`
	if err := os.WriteFile(source, []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "gcc", "-c", "-O2", "-o", "acpi_call.ko", source)
	plain, err := os.ReadFile(filepath.Join(dir, "acpi_call.ko"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Compressions() {
		m := testModules()
		m.Files = []dkms.Module{testModule("acpi_call.ko", string(plain))}
		m.Compress = c
		root := filepath.Join(dir, string(c))
		run(t, dir, "dpkg-deb", "--extract", build(t, dir, m), root)
		file := filepath.Join(root, "lib/modules", testKernel, "updates/dkms/acpi_call.ko"+c.suffix())
		if c != Gzip { // Debian's kmod is built without zlib
			if got := run(t, dir, "modinfo", "-F", "version", file); got != "1.2.2\n" {
				t.Errorf("%s: modinfo says %q", c, got)
			}
		}
		unpack := map[Compression]string{XZ: "xz", Gzip: "gzip", Zstd: "zstd", None: "cat"}[c]
		args := []string{"-dc", file}
		if c == None {
			args = args[1:]
		}
		if run(t, dir, unpack, args...) != string(plain) {
			t.Errorf("%s: %s gives something else", c, unpack)
		}
		if c == XZ {
			list := run(t, dir, "xz", "--robot", "--list", "-vv", file)
			if !strings.Contains(list, "\tCRC32\t") || !strings.Contains(list, "file\t1\t1\t") || !strings.Contains(list, "--lzma2=dict=1MiB") {
				t.Errorf("xz --list: %s", list)
			}
		}
	}
}

// Inputs that differ in what must not matter give the same bytes.
func TestDeterminism(t *testing.T) {
	digest := func(umask int, zone *time.Location, reverse bool) string {
		defer syscall.Umask(syscall.Umask(umask))
		defer func(l *time.Location) { time.Local = l }(time.Local)
		time.Local = zone
		m, d := testModules(), testPrebuilt()
		m.Epoch = m.Epoch.Add(7 * time.Millisecond).In(zone)
		d.Epoch = m.Epoch
		m.Licenses = []string{"GPL v2", "Dual BSD/GPL"}
		m.Relations = map[string]string{"Conflicts": "a", "Breaks": "b"}
		if reverse {
			slices.Reverse(m.Licenses)
			slices.Reverse(m.Authors)
			slices.Reverse(m.Files)
			slices.Reverse(d.Prebuilt)
		}
		dir := t.TempDir()
		writeSource(t, dir, d)
		source := run(t, dir, "sh", "-c", "sha256sum *")
		return fmt.Sprintf("%x %x %s", sha256.Sum256(pack(t, m)), sha256.Sum256(pack(t, d)), source)
	}
	first := digest(0o022, time.UTC, false)
	second := digest(0o077, time.FixedZone("Nowhere", -7*3600), true)
	if first != second {
		t.Errorf("%s, then %s", first, second)
	}
}

// An archive that does not fit in memory goes by way of a file.
func TestSpool(t *testing.T) {
	data := make([]byte, 2*spoolMemory+3)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	m := testModules()
	m.Compression = None
	m.Files = []dkms.Module{testModule("acpi_call.ko", string(data))}
	dir := t.TempDir()
	run(t, dir, "dpkg-deb", "--extract", build(t, dir, m), "x")
	got, err := os.ReadFile(filepath.Join(dir, "x/lib/modules", testKernel, "updates/dkms/acpi_call.ko"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, want %d (%v)", len(got), len(data), err)
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

func (w *brokenWriter) Close() error { return nil }

func TestWriterFails(t *testing.T) {
	for name, p := range testPackages() {
		for _, room := range []brokenWriter{0, 100, 700} {
			if err := p.Write(&room); !errors.Is(err, errFull) {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
	room := brokenWriter(100)
	err := testDKMS().WriteSource(func(string) (io.WriteCloser, error) { return &room, nil })
	if !errors.Is(err, errFull) {
		t.Errorf("source: got %v", err)
	}
	err = testDKMS().WriteSource(func(string) (io.WriteCloser, error) { return nil, os.ErrPermission })
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("source: got %v", err)
	}
}

// Scripts and rules hold nothing that shellcheck does not like.
func TestShellcheck(t *testing.T) {
	dir := t.TempDir()
	m, err := testModules().binary()
	if err != nil {
		t.Fatal(err)
	}
	d, err := testPrebuilt().binary()
	if err != nil {
		t.Fatal(err)
	}
	scripts := map[string][]byte{
		"modules.postinst": m.scripts["postinst"], "modules.postrm": m.scripts["postrm"],
		"dkms.postinst": d.scripts["postinst"], "dkms.prerm": d.scripts["prerm"],
	}
	for _, name := range []string{"usr/share/acpi-call-dkms/load", "etc/kernel/postinst.d/00-acpi-call-dkms"} {
		r, err := d.tree[name].open()
		if err != nil {
			t.Fatal(err)
		}
		if scripts[filepath.Base(name)], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range scripts {
		if bytes.ContainsRune(data, '@') {
			t.Errorf("%s: something was not filled in:\n%s", name, data)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, dir, "shellcheck", name)
	}
}

// BenchmarkModules packs a module of 100 kB for one kernel.
func BenchmarkModules(b *testing.B) {
	data := make([]byte, 100_000)
	for i := range data {
		data[i] = byte(i * i >> 9)
	}
	for _, c := range []Compression{None, XZ} {
		b.Run("module "+string(c), func(b *testing.B) {
			m := testModules()
			m.Compress = c
			m.Files = []dkms.Module{testModule("acpi_call.ko", string(data))}
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Write(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
