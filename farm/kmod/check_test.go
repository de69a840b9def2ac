package kmod

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func symvers(t *testing.T, text string) *Symvers {
	t.Helper()
	s, err := ParseSymvers(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheck(t *testing.T) {
	noCRCs := strings.NewReplacer("0x11111111", "0x00000000", "0x22222222", "0x00000000", "0x00000033", "0x00000000", "0x44444444", "0x00000000").Replace(goodSymvers)
	vermagic := func(s *source, v string) {
		i := slices.IndexFunc(s.modinfo, func(kv string) bool { return strings.HasPrefix(kv, "vermagic=") })
		s.modinfo[i] = "vermagic=" + v
	}
	for _, tt := range []struct {
		name   string
		module func(*source)
		target func(*Target)
		want   []string
	}{
		{"fits", func(*source) {}, func(*Target) {}, nil},
		{"other machine", func(*source) {}, func(w *Target) { w.Arch = "aarch64" },
			[]string{"machine: the module is for x86_64, the kernel is aarch64"}},
		{"i386 is i686", func(s *source) { s.bits32 = true }, func(w *Target) { w.Arch = "i386" }, nil},
		{"other release", func(*source) {}, func(w *Target) { w.Release = "6.1.0-55-amd64" },
			[]string{"vermagic: the module is for kernel 6.1.0-56-amd64, not 6.1.0-55-amd64"}},
		{"release is a prefix", func(s *source) { vermagic(s, testRelease+"x SMP modversions ") }, func(*Target) {},
			[]string{"vermagic: the module is for kernel 6.1.0-56-amd64x, not 6.1.0-56-amd64"}},
		{"no vermagic", func(s *source) { vermagic(s, "") }, func(*Target) {}, []string{"vermagic: the module has no vermagic"}},
		{"hostile vermagic", func(s *source) { vermagic(s, "\x1b[2J modversions ") }, func(*Target) {},
			[]string{`vermagic: the module is for kernel "\x1b[2J", not 6.1.0-56-amd64`}},
		{"no modinfo", func(s *source) { s.noModinfo = true }, func(*Target) {}, []string{"format: the module has no .modinfo section"}},
		{"wrong checksum", func(s *source) { s.versions[1].CRC = 5 }, func(*Target) {},
			[]string{"modversions: _printk has checksum 0x00000005, but vmlinux exports it with 0x22222222"}},
		{"one right, one wrong", func(s *source) { s.extended = []Version{{"kfree", 1}} }, func(*Target) {},
			[]string{"modversions: kfree has checksum 0x00000001, but vmlinux exports it with 0x00000033"}},
		{"checksum of nothing", func(s *source) { s.versions = append(s.versions, Version{"gone", 7}) }, func(*Target) {},
			[]string{"modversions: gone has checksum 0x00000007, but nothing exports it"}},
		{"no checksum", func(s *source) { s.versions = s.versions[:2] }, func(*Target) {}, []string{"modversions: kfree has no checksum in the module"}},
		{"no layout", func(s *source) { s.versions = s.versions[1:] }, func(*Target) {}, []string{"modversions: module_layout has no checksum in the module"}},
		{"no checksums", func(s *source) { s.versions = nil }, func(*Target) {},
			[]string{"modversions: the module carries no checksums (no __versions section), which the kernel asks for"}},
		{"extended checksums", func(s *source) { s.versions, s.extended = nil, s.versions }, func(*Target) {}, nil},
		{"kernel without", func(s *source) { vermagic(s, testRelease+" SMP "); s.versions = nil }, func(w *Target) { w.Symvers = symvers(t, noCRCs) }, nil},
		{"kernel without, module with", func(*source) {}, func(w *Target) { w.Symvers = symvers(t, noCRCs) },
			[]string{"vermagic: the module is built with modversions, which the kernel has not"}},
		{"kernel with, module without", func(s *source) { vermagic(s, testRelease+" SMP ") }, func(*Target) {},
			[]string{"vermagic: the module is built without modversions, which the kernel has"}},
		{"unresolved", func(s *source) { s.undefined = append(s.undefined, "nowhere") }, func(*Target) {}, []string{"symbol: nothing exports nowhere"}},
		{"from a sibling", func(s *source) {
			s.undefined = append(s.undefined, "sib")
			s.versions = append(s.versions, Version{"sib", 9})
		}, func(w *Target) { w.Siblings = []Export{{Name: "sib", CRC: 9, HasCRC: true}} }, nil},
		{"from a sibling with another checksum", func(s *source) {
			s.undefined = append(s.undefined, "sib")
			s.versions = append(s.versions, Version{"sib", 9})
		}, func(w *Target) { w.Siblings = []Export{{Name: "sib", CRC: 8, HasCRC: true}} },
			[]string{"modversions: sib has checksum 0x00000009, but a module built with it exports it with 0x00000008"}},
		{"from a sibling without checksum", func(s *source) { s.undefined = append(s.undefined, "sib") },
			func(w *Target) { w.Siblings = []Export{{Name: "sib"}} }, nil},
		{"sibling before kernel", func(s *source) { s.versions[2].CRC = 9 },
			func(w *Target) { w.Siblings = []Export{{Name: "kfree", CRC: 9, HasCRC: true}} }, nil},
		{"gpl symbol", func(s *source) {
			s.undefined = append(s.undefined, "gpl_only")
			s.versions = append(s.versions, Version{"gpl_only", 0x44444444})
		}, func(*Target) {}, nil},
		{"gpl symbol, other license", func(s *source) {
			s.modinfo[0] = "license=Proprietary"
			s.undefined = append(s.undefined, "gpl_only")
			s.versions = append(s.versions, Version{"gpl_only", 0x44444444})
		}, func(*Target) {}, []string{"symbol: gpl_only is for GPL-compatible modules, the license is Proprietary"}},
		{"nothing known of the kernel", func(s *source) { s.undefined = append(s.undefined, "nowhere") }, func(w *Target) { w.Symvers = nil }, nil},
		{"all at once", func(s *source) { s.versions[1].CRC = 5; s.undefined = append(s.undefined, "nowhere") },
			func(w *Target) { w.Arch, w.Release = "aarch64", "6.2" }, []string{
				"machine: the module is for x86_64, the kernel is aarch64",
				"vermagic: the module is for kernel 6.1.0-56-amd64, not 6.2",
				"modversions: _printk has checksum 0x00000005, but vmlinux exports it with 0x22222222",
				"symbol: nothing exports nowhere"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := goodSource()
			tt.module(&s)
			m, err := Read(bytes.NewReader(s.bytes(t)), Limits{PlainOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			want := Target{Release: testRelease, Arch: "x86_64", Symvers: symvers(t, goodSymvers)}
			tt.target(&want)
			var got []string
			for _, p := range Check(m, want) {
				got = append(got, p.String())
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestCheckIsBounded(t *testing.T) {
	m := wantGood()
	m.Undefined = nil
	for i := range 1000 {
		m.Undefined = append(m.Undefined, fmt.Sprintf("gone%03d%s", i, strings.Repeat("x", 3000)))
	}
	got := Check(m, Target{Release: testRelease, Arch: "x86_64", Symvers: symvers(t, goodSymvers)})
	if len(got) != maxDetails+1 || got[maxDetails].String() != "symbol: and 980 more" || len(got[0].Detail) > 300 {
		t.Errorf("%d problems, last %v", len(got), got[len(got)-1])
	}
}
