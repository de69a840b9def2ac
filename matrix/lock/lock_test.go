package lock_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

func pkg(name, version string) *lock.Package {
	sum := fmt.Sprintf("%064x", len(name)*1000+len(version))
	return &lock.Package{Name: name, Version: version, Arch: "amd64", Size: 1000, SHA256: sum,
		Pocket: "bookworm", Date: "20260711T101637Z", Path: "pool/main/" + name[:1] + "/" + name + "/" + name + "_" + version + "_amd64.deb"}
}

// sample is a lock of two kernels with what can be in one.
func sample() *lock.Lock {
	gcc, cc, libc := pkg("gcc-12", "12.2.0-14"), pkg("libcc1-0", "1:12~rc1+b1"), pkg("libc6-dev", "2.36-9")
	newer := pkg("gcc-12", "12.3.0-1")
	newer.Pocket, newer.Date = "bookworm-security", "20260801T000000Z"
	old := pkg("libelf-dev", "0.188-2.1")
	old.Date = "20260101T000000Z"
	tools := []*lock.Package{gcc, cc, libc}
	headers := func(r string) []*lock.Package { return []*lock.Package{pkg("linux-headers-"+r, "6.1.192-2")} }
	return &lock.Lock{
		Modules: []*lock.Module{
			{Source: "deb acpi-call-dkms (debian bookworm)", SHA256: pkg("acpi-call-dkms", "1.2.2-2").SHA256, Deb: pkg("acpi-call-dkms", "1.2.2-2"), Needs: []string{"libelf-dev (>= 0.1)"}},
			{Source: "dir ./a: b #c", SHA256: strings.Repeat("ab", 32)},
		},
		Suites: []*lock.Suite{{Distribution: "debian", Name: "bookworm", Arch: "x86_64",
			Asks: []string{`latest: 1 of "6.1.*" of flavors amd64`, "include 6.1.0-1-amd64"},
			Kernels: []*lock.Kernel{
				{Release: "6.1.0-55-amd64", Headers: headers("6.1.0-55-amd64"), Image: []*lock.Package{pkg("linux-image-6.1.0-55-amd64", "6.1.192-1")}, Toolchain: tools,
					Extras: []lock.Extra{{Build: "libelf-dev (>= 0.1)", Packages: []*lock.Package{old}}}},
				{Release: "6.1.0-56-amd64", Headers: headers("6.1.0-56-amd64"), Toolchain: []*lock.Package{newer, cc, libc},
					Extras: []lock.Extra{{Build: "libelf-dev (>= 0.1)", Packages: []*lock.Package{pkg("libelf-dev", "0.189-1")}}, {Build: "bc", Packages: nil}}},
				{Release: "6.1.0-57-amd64"},
				{Release: "6.1.0-custom", Own: &lock.Own{Packages: []string{"gcc-12"}, Headers: []string{strings.Repeat("cd", 32)}}, Toolchain: tools},
			}}},
	}
}

func TestRoundTrip(t *testing.T) {
	want := sample().Bytes()
	l, err := lock.Parse("farm.lock", want)
	if err != nil {
		t.Fatalf("%v\n%s", err, want)
	}
	if got := l.Bytes(); !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if changes := lock.Diff(sample(), l); len(changes) > 0 {
		t.Errorf("what was read differs: %v", changes)
	}
	old := l.Suites[0].Kernels[0].Extras[0].Packages[0]
	if old.Date != "20260101T000000Z" || l.Suites[0].Kernels[0].Toolchain[0].Date != "20260711T101637Z" {
		t.Errorf("the dates are lost: %+v", old)
	}
	for _, line := range []string{
		`      - release: 6.1.0-56-amd64`, `        toolchain: 'gcc-12 #2'`, `          - gcc-12=12.3.0-1`, `          - libcc1-0`,
		`  - source: 'dir ./a: b #c'`, `        extras: ['libelf-dev (>= 0.1) #2', bc]`,
	} {
		if !strings.Contains(string(want), line+"\n") {
			t.Errorf("no line %q in\n%s", line, want)
		}
	}
}

// TestTwoArchitectures has one version of a package for two architectures, as a
// kernel that is cross-built for and booted may need.
func TestTwoArchitectures(t *testing.T) {
	busybox, other := pkg("busybox-static", "1:1.35.0-4"), pkg("busybox-static", "1:1.35.0-4")
	other.Arch, other.SHA256 = "arm64", strings.Repeat("ef", 32)
	newer := pkg("busybox-static", "1:1.37.0-1")
	l := &lock.Lock{Suites: []*lock.Suite{{Distribution: "debian", Name: "bookworm", Arch: "aarch64", Asks: []string{"all"},
		Kernels: []*lock.Kernel{{Release: "6.1.0-57-arm64", Image: []*lock.Package{other}, Toolchain: []*lock.Package{busybox, newer}}}}}}
	data := l.Bytes()
	for _, ref := range []string{"busybox-static:arm64=1:1.35.0-4", "busybox-static:amd64=1:1.35.0-4", "busybox-static=1:1.37.0-1"} {
		if !strings.Contains(string(data), ref) {
			t.Errorf("no %s in\n%s", ref, data)
		}
	}
	read, err := lock.Parse("farm.lock", data)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	if k := read.Suites[0].Kernels[0]; !bytes.Equal(read.Bytes(), data) || k.Image[0].Arch != "arm64" || k.Toolchain[0].Arch != "amd64" {
		t.Errorf("got\n%s", read.Bytes())
	}
	if _, err := lock.Parse("farm.lock", bytes.Replace(data, []byte("busybox-static:arm64="), []byte("busybox-static="), 1)); err == nil || !strings.Contains(err.Error(), "NAME:ARCH=VERSION") {
		t.Errorf("an ambiguous one: %v", err)
	}
	got := l.Versions("debian", "bookworm", "arm64")["busybox-static"]
	if len(got) != 1 || got[0] != "1:1.35.0-4" {
		t.Errorf("versions for arm64: %q", got)
	}
}

// TestSize makes a lock of 200 kernels with 80 packages each.
func TestSize(t *testing.T) {
	var tools []*lock.Package
	for i := range 80 {
		tools = append(tools, pkg(fmt.Sprintf("tool-%02d", i), "1.0-1"))
	}
	s := &lock.Suite{Distribution: "debian", Name: "bookworm", Arch: "x86_64", Asks: []string{"all"}}
	for i := range 200 {
		r := fmt.Sprintf("6.1.0-%d-amd64", i+1)
		s.Kernels = append(s.Kernels, &lock.Kernel{Release: r, Toolchain: tools, Headers: []*lock.Package{pkg("linux-headers-"+r, "6.1.1-1")}})
	}
	data := (&lock.Lock{Suites: []*lock.Suite{s}}).Bytes()
	lines := bytes.Count(data, []byte("\n"))
	if want := 200*4 + 2*80 + 20; lines > want || len(data) > 120<<10 {
		t.Errorf("%d lines, %d bytes; want at most %d and 120 KiB", lines, len(data), want)
	}
}

func TestParseErrors(t *testing.T) {
	good := string(sample().Bytes())
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the sample has no %q:\n%s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	tests := []struct{ name, text, want string }{
		{"empty", "", "farm.lock:1: not valid: the lock is empty"},
		{"no YAML", "version: 1\nmodules: [", "farm.lock:"},
		{"a list", "- 1\n", "farm.lock:1: want a mapping with version, modules, suites"},
		{"version", replace("version: 1", "version: 2"), `farm.lock:2: version "2"`},
		{"unknown key", replace("modules:", "extra: 1\nmodules:"), `farm.lock:3: unknown key "extra"`},
		{"twice", replace("modules:", "version: 1\nmodules:"), "farm.lock:3: key version is given twice"},
		{"missing", "version: 1\nmodules: []\n", "farm.lock:1: suites is missing"},
		{"alias", "version: &a 1\nmodules: []\nsuites: []\n", "farm.lock:1: anchors"},
		{"tag", "version: !!int 1\nmodules: []\nsuites: []\n", "farm.lock:1: anchors"},
		{"second document", good + "---\n{}\n", "a second document"},
		{"dots", replace("path: pool/main/a/", "path: pool/../../a/"), `farm.lock:5: path "pool/../../a/`},
		{"absolute", replace("path: pool/main/a/", "path: /pool/main/a/"), `farm.lock:5: path "/pool`},
		{"a query", replace("path: pool/main/a/", "path: pool/a#/"), `farm.lock:5: path "pool/a#/`},
		{"size", replace("size: 1000", "size: -1"), `farm.lock:5: size "-1"`},
		{"large", replace("size: 1000", "size: 99999999999999"), `farm.lock:5: size "99999999999999"`},
		{"sha256", replace("sha256: ab", "sha256: AB"), `farm.lock:8: sha256 "AB`},
		{"short sha256", replace("sha256: ab", "sha256: "), `farm.lock:8: sha256 "abab`},
		{"suite", replace("suite: debian bookworm x86_64", "suite: bookworm"), `farm.lock:10: suite "bookworm" is not valid`},
		{"release", replace("release: 6.1.0-57-amd64", "release: ../../x"), "farm.lock:"},
		{"toolchain", replace(`toolchain: 'gcc-12 #2'`, `toolchain: other`), `toolchain "other" is not among the suite's`},
		{"reference", replace("          - libcc1-0\n", "          - nothing\n"), `package "nothing" is not in the suite's packages`},
		{"ambiguous", replace("          - gcc-12=12.2.0-14\n", "          - gcc-12\n"), `there are several packages "gcc-12"`},
		{"no date", replace("      bookworm: 20260711T101637Z\n", ""), "has no date"},
		{"control", replace(`'dir ./a: b #c'`, `"dir\u0007./a"`), "without control characters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := lock.Parse("farm.lock", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := lock.Parse("farm.lock", bytes.Repeat([]byte("\n"), lock.MaxFile+1)); err == nil {
		t.Error("a lock of any size is read")
	}
}

func parseFarm(t *testing.T, text string) *matrix.Farm {
	t.Helper()
	f, _, err := matrix.Parse("farm.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

const farmText = `modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
  - {name: bar, version: "1", source: {dir: ./bar}}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}, "6.1.0-5*"]
    flavors: [amd64]
  - release: 6.1.0-custom
    headers: [x]
    toolchain: {packages: [gcc-12]}
include:
  - {release: "6.1.0-1-amd64"}
`

func locked(f *matrix.Farm) *lock.Lock {
	l := &lock.Lock{File: "farm.lock"}
	for _, m := range f.Modules {
		l.Modules = append(l.Modules, &lock.Module{Source: lock.SourceName(m.Source), SHA256: strings.Repeat("0", 64), Line: 4})
	}
	s := &lock.Suite{Distribution: "debian", Name: "bookworm", Arch: "x86_64", Line: 9}
	for _, a := range f.Asks() {
		s.Asks = append(s.Asks, a.Text)
	}
	s.Kernels = []*lock.Kernel{{Release: "6.1.0-custom", Own: &lock.Own{Packages: []string{"gcc-12"}}, Line: 12}}
	l.Suites = []*lock.Suite{s}
	return l
}

func TestCompare(t *testing.T) {
	l := locked(parseFarm(t, farmText))
	tests := []struct {
		old, new string
		want     []string
	}{
		{"", "", nil},
		{"flavors: [amd64]", "flavors: [amd64] # as before", nil},
		{"acpi-call-dkms, suite: bookworm", "acpi-call-dkms, suite: trixie", []string{
			"farm.lock:4: deb acpi-call-dkms (debian bookworm) is no longer in the farm file",
			"farm.yaml:2:13: deb acpi-call-dkms (debian trixie) is not in the lock"}},
		{"latest: 1", "latest: 2", []string{
			`farm.lock:9: the farm file no longer asks for: latest: 1 of "6.1.*" of flavors amd64 in debian bookworm x86_64`,
			`farm.yaml:6:16, farm.lock:9: the lock has no answer to: latest: 2 of "6.1.*" of flavors amd64 in debian bookworm x86_64`}},
		{"packages: [gcc-12]", "packages: [gcc-13]", []string{
			`farm.yaml:8:5, farm.lock:12: kernel 6.1.0-custom: the farm file says toolchain packages ["gcc-13"], the lock ["gcc-12"]`}},
		{"- release: 6.1.0-custom", "- release: 6.1.0-other", []string{
			"farm.lock:12: kernel 6.1.0-custom is no longer in the farm file",
			"farm.yaml:8:5: kernel 6.1.0-other is not in the lock"}},
		{`{release: "6.1.0-1-amd64"}`, `{release: "6.1.0-2-amd64"}`, []string{
			"farm.lock:9: the farm file no longer asks for: include 6.1.0-1-amd64 in debian bookworm x86_64",
			"farm.yaml:12:5, farm.lock:9: the lock has no answer to: include 6.1.0-2-amd64 in debian bookworm x86_64"}},
	}
	for _, tt := range tests {
		f := parseFarm(t, strings.Replace(farmText, tt.old, tt.new, 1))
		var got []string
		for _, d := range l.Compare(f) {
			got = append(got, d.Text("farm.yaml", "farm.lock"))
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.new, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
		if got, want := l.Answers(f, "debian", "bookworm", "x86_64"), !strings.Contains(tt.new, "latest: 2") && !strings.Contains(tt.new, "-2-amd64"); got != want {
			t.Errorf("%s: Answers is %v", tt.new, got)
		}
	}
}

func TestDiff(t *testing.T) {
	was, is := sample(), sample()
	is.Modules[1].SHA256 = strings.Repeat("ff", 32)
	s := is.Suites[0]
	s.Kernels[0].Release = "6.1.0-58-amd64"
	s.Kernels[0].Headers = []*lock.Package{pkg("linux-headers-6.1.0-58-amd64", "6.1.200-1")}
	s.Kernels[1].Headers[0].SHA256 = strings.Repeat("ee", 32)
	var got []string
	for _, c := range lock.Diff(was, is) {
		got = append(got, c.Where+": "+c.String())
	}
	want := []string{
		"modules:   dir ./a: b #c sha256 abababababab → sha256 ffffffffffff",
		"kernels of debian bookworm x86_64: + 6.1.0-58-amd64 6.1.200-1",
		"kernels of debian bookworm x86_64: - 6.1.0-55-amd64 6.1.192-2",
		"packages of debian bookworm x86_64:   linux-headers-6.1.0-56-amd64 6.1.192-2 (sha256 000000000000) → 6.1.192-2 (sha256 eeeeeeeeeeee)",
		"packages of debian bookworm x86_64: + linux-headers-6.1.0-58-amd64 6.1.200-1",
		"packages of debian bookworm x86_64: - linux-headers-6.1.0-55-amd64 6.1.192-2",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if n := len(lock.Diff(nil, is)); n < 10 {
		t.Errorf("%d changes from nothing", n)
	}
}

func TestWithout(t *testing.T) {
	tests := []struct {
		word           string
		modules, stale int
		asks           int
		kept           bool // the version of gcc-12
	}{
		{"acpi-call", 1, 0, 2, true},
		{"acpi-call-dkms", 1, 0, 2, true},
		{"bookworm", 2, 4, 0, false},
		{"libelf*", 2, 2, 2, true},
		{"gcc-12", 2, 3, 2, false},
		{"6.1.0-56-amd64", 2, 1, 2, true},
	}
	for _, tt := range tests {
		l, unknown := sample().Without([]string{tt.word})
		stale := 0
		for _, k := range l.Suites[0].Kernels {
			if k.Stale {
				stale++
			}
		}
		kept := len(l.Versions("debian", "bookworm", "amd64")["gcc-12"]) > 0
		if len(unknown) > 0 || len(l.Modules) != tt.modules || stale != tt.stale || len(l.Suites[0].Asks) != tt.asks || kept != tt.kept {
			t.Errorf("%s: unknown %q, %d modules, %d stale, %d asks, gcc-12 kept %v; want %+v", tt.word, unknown, len(l.Modules), stale, len(l.Suites[0].Asks), kept, tt)
		}
	}
	if _, unknown := sample().Without([]string{"nothing"}); len(unknown) != 1 {
		t.Errorf("unknown: %q", unknown)
	}
}

// FuzzParse: whatever is read is written so that it is read again as the same.
func FuzzParse(f *testing.F) {
	f.Add(sample().Bytes())
	f.Add([]byte("version: 1\nmodules: []\nsuites: []\n"))
	f.Add([]byte("version: 1\nmodules: [{source: a, sha256: 00}]\nsuites: [{suite: a b c, asks: [], kernels: [], pockets: {}, packages: []}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := lock.Parse("farm.lock", data)
		if err != nil {
			if e, ok := errors.AsType[*lock.Error](err); !ok || e.Line < 1 {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		written := l.Bytes()
		again, err := lock.Parse("farm.lock", written)
		if err != nil {
			t.Fatalf("%v\n%s", err, written)
		}
		if !bytes.Equal(again.Bytes(), written) {
			t.Fatalf("%s\nbecomes\n%s", written, again.Bytes())
		}
	})
}
