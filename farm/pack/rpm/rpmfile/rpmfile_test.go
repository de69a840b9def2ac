package rpmfile_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

var update = flag.Bool("update", false, "write the goldens anew")

var epoch = time.Unix(1700000000, 0)

const spec = `Name: sample
Version: 1.0~rc1
Release: 2
Summary: A sample
License: GPL-2.0-only
URL: https://example.org/
Packager: A B <a@example.org>
BuildArch: noarch
Provides: modalias(pci:v000010DEd*sv*sd*bc03sc0[02]i00*)
Provides: ksym(a) = 0x01234567
Requires: kernel-uname-r = 6.1.192-56.host108.x86_64
Requires: (a if b)
Requires(post): c >= 1^2
Supplements: modalias(kernel-default:pci:v1*)
Enhances: kernel-default
%description
It is
a sample.
%install
mkdir -p %{buildroot}/opt/sample/a/b
echo hi > %{buildroot}/opt/sample/a.txt
echo run > %{buildroot}/opt/sample/a/run
chmod 755 %{buildroot}/opt/sample/a/run
ln -s ../a.txt %{buildroot}/opt/sample/a/link
%files
%dir /opt/sample
/opt/sample/*
%changelog
* Tue Nov 14 2023 A B <a@example.org> - 1.0~rc1-2
- A change.
%post
true post
%preun
true preun
%postun
true postun
%posttrans
true posttrans
`

// sample is what the spec describes.
func sample() (rpmfile.Package, []rpmfile.File) {
	p := rpmfile.Package{
		Name: "sample", Version: "1.0~rc1", Release: "2", Arch: "noarch", Summary: "A sample", License: "GPL-2.0-only",
		Description: "It is\na sample.", URL: "https://example.org/", Packager: "A B <a@example.org>", Change: "A change.", BuildHost: "localhost", BuildTime: epoch,
		SourceRPM: "sample-1.0~rc1-2.src.rpm",
		Provides:  []rpmfile.Dependency{{Name: "modalias(pci:v000010DEd*sv*sd*bc03sc0[02]i00*)"}, {"ksym(a)", rpmfile.Equal, "0x01234567"}},
		Requires: []rpmfile.Dependency{{"kernel-uname-r", rpmfile.Equal, "6.1.192-56.host108.x86_64"}, {Name: "(a if b)"},
			{"c", rpmfile.Greater | rpmfile.Equal | rpmfile.ForPost, "1^2"}},
		Supplements: []rpmfile.Dependency{{Name: "modalias(kernel-default:pci:v1*)"}},
		Enhances:    []rpmfile.Dependency{{Name: "kernel-default"}},
		Post:        "true post", PreUn: "true preun", PostUn: "true postun", PostTrans: "true posttrans",
	}
	file := func(name string, mode uint16, content string) rpmfile.File {
		return rpmfile.File{Name: name, Mode: mode, Size: int64(len(content)), Body: strings.NewReader(content)}
	}
	return p, []rpmfile.File{
		{Name: "/opt/sample", Mode: rpmfile.TypeDir | 0o755},
		{Name: "/opt/sample/a", Mode: rpmfile.TypeDir | 0o755},
		file("/opt/sample/a.txt", rpmfile.TypeFile|0o644, "hi\n"),
		{Name: "/opt/sample/a/b", Mode: rpmfile.TypeDir | 0o755},
		{Name: "/opt/sample/a/link", Mode: rpmfile.TypeSymlink | 0o777, Link: "../a.txt"},
		file("/opt/sample/a/run", rpmfile.TypeFile|0o755, "run\n"),
	}
}

func write(w io.Writer, c rpmfile.Compression, p rpmfile.Package, files []rpmfile.File) (err error) {
	payload, err := rpmfile.NewPayload(c, p.BuildTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, payload.Close()) }()
	for _, f := range files {
		if err := payload.Add(f); err != nil {
			return err
		}
	}
	return p.Write(w, payload)
}

// store writes the sample to a file.
func store(t *testing.T, c rpmfile.Compression) string {
	t.Helper()
	p, files := sample()
	var b bytes.Buffer
	if err := write(&b, c, p, files); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), p.FileName())
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// tags are what rpm reads of a package, one a line, except for what is of the
// machine or the day, of debug information, or of file(1).
func tags(t *testing.T, file string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{
		"%{NAME}|%{VERSION}|%{RELEASE}|%{ARCH}|%{OS}|%{SUMMARY}|%{DESCRIPTION}|%{LICENSE}|%{GROUP}|%{URL}|%{SIZE}|%{SOURCERPM}|%{ENCODING}|%{ARCHIVESIZE}\n",
		"[%{PROVIDES}|%{PROVIDEFLAGS}|%{PROVIDEVERSION}\n]", "[%{REQUIRES}|%{REQUIREFLAGS}|%{REQUIREVERSION}\n]",
		"[%{SUPPLEMENTS}|%{SUPPLEMENTFLAGS}|%{SUPPLEMENTVERSION}\n]", "[%{ENHANCES}|%{ENHANCEFLAGS}|%{ENHANCEVERSION}\n]",
		"%{POSTIN}|%{POSTINPROG}|%{PREUN}|%{PREUNPROG}|%{POSTUN}|%{POSTUNPROG}|%{POSTTRANS}|%{POSTTRANSPROG}\n",
		"[%{FILENAMES}|%{FILEMODES:octal}|%{FILESIZES}|%{FILEDIGESTS}|%{FILELINKTOS}|%{FILEFLAGS}|%{FILEVERIFYFLAGS}|" +
			"%{FILEUSERNAME}|%{FILEGROUPNAME}|%{FILERDEVS}|%{FILEINODES}|%{FILEDEVICES}|%{FILELANGS}\n]",
		"[%{DIRNAMES}\n]", "%{PACKAGER}|[%{CHANGELOGNAME}|%{CHANGELOGTEXT}]|%{FILEDIGESTALGO}|%{PAYLOADFORMAT}|%{PAYLOADDIGESTALGO}\n",
	} {
		b.WriteString(run(t, "rpm", "-qp", "--qf", f, file))
	}
	return b.String()
}

// A package of real rpmbuild's from an equivalent spec says the same.
func TestLikeRpmbuild(t *testing.T) {
	top := t.TempDir()
	file := filepath.Join(top, "sample.spec")
	if err := os.WriteFile(file, []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "rpmbuild", "-bb", "--define", "_topdir "+top, "--define", "__os_install_post %{nil}", "--define", "_binary_payload w9.gzdio", file)
	want := tags(t, filepath.Join(top, "RPMS/noarch/sample-1.0~rc1-2.noarch.rpm"))
	if got := tags(t, store(t, rpmfile.Gzip)); got != want {
		t.Errorf("got\n%s\nrpmbuild has\n%s", got, want)
	}
}

func TestInstall(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("rpm --root needs root: run the tests as root")
	}
	for _, c := range rpmfile.Compressions() {
		t.Run(string(c), func(t *testing.T) {
			file, root := store(t, c), t.TempDir()
			if got := run(t, "rpm", "-Kv", file); strings.Contains(got, "BAD") || strings.Count(got, "OK") != 4 {
				t.Errorf("rpm -K: %s", got)
			}
			run(t, "rpm", "--root", root, "-i", "--nodeps", "--noscripts", file)
			if got := run(t, "rpm", "--root", root, "-V", "--nodeps", "--noscripts", "sample"); got != "" {
				t.Errorf("rpm -V: %s", got)
			}
			if got := run(t, "cat", root+"/opt/sample/a/link"); got != "hi\n" {
				t.Errorf("through the link: %q", got)
			}
			run(t, "rpm", "--root", root, "-e", "--noscripts", "sample")
			if _, err := os.Stat(root + "/opt/sample"); !errors.Is(err, os.ErrNotExist) {
				t.Error("rpm -e left the folder")
			}
		})
	}
}

// The digests change when the format of the package does (then every package
// in every repository does: say so in the release notes), and when the
// compressors' output does with a new version of klauspost/compress or
// ulikunitz/xz. `go test -update` writes them anew.
func TestGolden(t *testing.T) {
	var got strings.Builder
	for _, c := range rpmfile.Compressions() {
		data, err := os.ReadFile(store(t, c))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%x  %s\n", sha256.Sum256(data), c)
	}
	file := filepath.Join("testdata", "digests.txt")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// A payload that does not fit in memory comes out as one that does.
func TestLargePayload(t *testing.T) {
	p, _ := sample()
	const size = 20 << 20
	noise := func() io.Reader { // not to be compressed
		var b bytes.Buffer
		for i := range size / sha256.Size {
			sum := sha256.Sum256(fmt.Append(nil, i))
			b.Write(sum[:])
		}
		return &b
	}
	var out bytes.Buffer
	err := write(&out, rpmfile.Gzip, p, []rpmfile.File{{Name: "/opt/noise", Mode: rpmfile.TypeFile | 0o600, Size: size, Body: noise()}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a.rpm")
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "rpm", "-K", file); !strings.HasSuffix(got, "digests OK\n") {
		t.Error(got)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*rpmfile.Package, *[]rpmfile.File)
		say    string
	}{
		{"name", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Name = "a~b" }, `package name "a~b"`},
		{"version", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Version = "1-2" }, `version "1-2"`},
		{"dots", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Version = "1..2" }, "two dots"},
		{"long name", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Name = strings.Repeat("a", 250) }, "at most 255"},
		{"summary", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Summary = "a\nb" }, "one line"},
		{"license", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.License = "" }, `license ""`},
		{"no time", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.BuildTime = time.Time{} }, "epoch"},
		{"hyphens", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Requires[0].Version = "6.1.0-56-amd64" }, "one hyphen"},
		{"space", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.Provides[0].Name = "a b" }, `name "a b"`},
		{"order", func(_ *rpmfile.Package, f *[]rpmfile.File) { *f = append(*f, (*f)[0]) }, "out of order"},
		{"relative", func(_ *rpmfile.Package, f *[]rpmfile.File) { (*f)[0].Name = "/opt/../x" }, "no path"},
		{"short", func(_ *rpmfile.Package, f *[]rpmfile.File) { (*f)[2].Size++ }, "not of the 4 bytes"},
		{"long", func(_ *rpmfile.Package, f *[]rpmfile.File) { (*f)[2].Size-- }, "not of the 2 bytes"},
		{"huge", func(_ *rpmfile.Package, f *[]rpmfile.File) { (*f)[2].Size = 1 << 33 }, "too large"},
		{"device", func(_ *rpmfile.Package, f *[]rpmfile.File) { (*f)[2].Mode = 0o20644 }, "file type"},
		{"folder in a source package", func(p *rpmfile.Package, _ *[]rpmfile.File) { p.SourceRPM = "" }, "no folders"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, files := sample()
			tt.change(&p, &files)
			if err := write(io.Discard, rpmfile.Gzip, p, files); err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, want %q", err, tt.say)
			}
		})
	}
}
