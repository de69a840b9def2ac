package kernel

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, tt := range []struct{ release, abi, flavor, arch string }{
		{"6.1.0-56-amd64", "6.1.0-56", "amd64", ""},
		{"6.1.0-56-cloud-amd64", "6.1.0-56", "cloud-amd64", ""},
		{"6.12.115+deb13.1-rt-amd64", "6.12.115+deb13.1", "rt-amd64", ""},
		{"6.1.0-0.deb11.52-amd64", "6.1.0-0.deb11.52", "amd64", ""},
		{"7.2.13+deb14-amd64", "7.2.13+deb14", "amd64", ""},
		{"6.12.107+deb13-arm64-16k", "6.12.107+deb13", "arm64-16k", ""},
		{"6.12.107+deb13-cloud-arm64", "6.12.107+deb13", "cloud-arm64", ""},
		{"6.1.0-56-686-pae", "6.1.0-56", "686-pae", ""},
		{"6.9-rc5-amd64", "6.9-rc5", "amd64", ""},
		{"6.1.192-56.host108.x86_64", "6.1.192-56.host108", "", "x86_64"},
		{"5.14.0-427.el9.x86_64", "5.14.0-427.el9", "", "x86_64"},
		{"5.14.0-427.el9.aarch64+64k", "5.14.0-427.el9", "64k", "aarch64"},
		{"6.8.5-301.fc40.x86_64+rt-debug", "6.8.5-301.fc40", "rt-debug", "x86_64"},
		{"6.8.0-31-generic", "6.8.0-31", "generic", ""},
		{"6.8.0-31-generic-64k", "6.8.0-31", "generic-64k", ""},
		{"6.4.0-150600.21-default", "6.4.0-150600.21", "default", ""},
		{"6.8.1-arch1-1", "6.8.1-arch1-1", "", ""},
		{"6.1.0-rpi7-rpi-v8", "6.1.0-rpi7", "rpi-v8", ""},
		{"6.1.0-custom", "6.1.0", "custom", ""},
		{"6.1.0+", "6.1.0+", "", ""},
		{"6.1", "6.1", "", ""},
	} {
		t.Run(tt.release, func(t *testing.T) {
			r, err := Parse(tt.release)
			if err != nil {
				t.Fatal(err)
			}
			got := [3]string{r.ABI(), r.Flavor(), r.Arch()}
			want := [3]string{tt.abi, tt.flavor, tt.arch}
			if got != want {
				t.Errorf("got ABI, flavor, arch %q, want %q", got, want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "6", "amd64", "6.1/../..", "6.1..0", "../6.1", "6.1 0", "6.1\n", "6.1.0-é", "-6.1", "6.", "6-1.2",
		"6.1." + strings.Repeat("0", 64),
	} {
		if got, err := Parse(s); !errors.Is(err, ErrRelease) {
			t.Errorf("Parse(%q) = %q, %v, want ErrRelease", s, got, err)
		}
	}
}

// ordered is from old to new.
var ordered = []Release{
	"5.10.0-30-amd64",
	"5.10.0-46-amd64",
	"5.14.0-427.el9.x86_64",
	"6.1.0-custom",
	"6.1.0-0.deb11.48-amd64",
	"6.1.0-0.deb11.52-amd64",
	"6.1.0-9-amd64",
	"6.1.0-56-amd64",
	"6.1.0-56-cloud-amd64",
	"6.1.0-56-rt-amd64",
	"6.1.192-56.host108.x86_64",
	"6.8.0-31-generic",
	"6.9-rc5-amd64",
	"6.9-rc12-amd64",
	"6.9-amd64",
	"6.12.9-amd64",
	"6.12.107-amd64",
	"6.12.115+deb13-amd64",
	"6.12.115+deb13-rt-amd64",
	"6.12.115+deb13.1-amd64",
	"6.12.116+deb13-amd64",
	"7.2.6+deb13-amd64",
	"7.2.13+deb14-amd64",
}

func TestCompare(t *testing.T) {
	for i, a := range ordered {
		for j, b := range ordered {
			want := min(1, max(-1, i-j))
			if got := Compare(a, b); got != want {
				t.Errorf("Compare(%s, %s) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, pair := range [][2]Release{
		{"6.12.9", "6.12.107"}, {"6.12.107", "6.12.115+deb13"}, {"6.12.115+deb13", "6.12.115+deb13.1"},
		{"6.12.115+deb13.1", "6.12.116+deb13"}, {"6.1", "6.1.0"}, {"6.12-5", "6.12.3-1"},
	} {
		if got := Compare(pair[0], pair[1]); got != -1 {
			t.Errorf("Compare(%s, %s) = %d, want -1", pair[0], pair[1], got)
		}
	}
}

func TestRange(t *testing.T) {
	for _, tt := range []struct {
		text    string
		in, out []Release
	}{
		{">=6.1.0-50 <6.2", []Release{"6.1.0-50-amd64", "6.1.0-56-rt-amd64"}, []Release{"6.1.0-47-amd64", "6.2-amd64", "6.12.1-amd64"}},
		{">= 6.12, != 6.12.107+deb13", []Release{"6.12.115+deb13-amd64"}, []Release{"6.12.107+deb13-amd64", "6.1.0-56-amd64"}},
		{"=6.1.0-50", []Release{"6.1.0-50-amd64", "6.1.0-50-cloud-amd64"}, []Release{"6.1.0-51-amd64"}},
		{"<7", []Release{"6.12.1-x"}, []Release{"7.0-x", "7.2.13+deb14-amd64"}},
		{"<=6.1", []Release{"6.1.0", "5.10.0-30-amd64"}, []Release{"6.1.0-56-amd64"}},
		{">=6.9", []Release{"6.9-amd64"}, []Release{"6.9-rc5-amd64"}},
		{">5.14.0-400", []Release{"5.14.0-427.el9.x86_64"}, []Release{"5.14.0-70.el9.x86_64"}},
	} {
		r, err := ParseRange(tt.text)
		if err != nil {
			t.Fatalf("%s: %v", tt.text, err)
		}
		for _, release := range tt.in {
			if !r.Contains(release) {
				t.Errorf("%q does not hold %s", tt.text, release)
			}
		}
		for _, release := range tt.out {
			if r.Contains(release) {
				t.Errorf("%q holds %s", tt.text, release)
			}
		}
	}
}

func TestParseRangeRefuses(t *testing.T) {
	for _, s := range []string{
		"", " , ", "6.1", ">=", ">= <6", ">=6.1.0-50-amd64", ">6..1", "=>6.1", ">=6.1 6.2", ">=x",
		strings.Repeat(">1 ", maxBounds+1),
	} {
		if r, err := ParseRange(s); !errors.Is(err, ErrRelease) {
			t.Errorf("ParseRange(%q) = %v, %v, want ErrRelease", s, r, err)
		}
	}
}

func TestArch(t *testing.T) {
	for _, tt := range []struct {
		name, canonical, debian string
		ok                      bool
	}{
		{"x86_64", "x86_64", "amd64", true},
		{"amd64", "x86_64", "amd64", true},
		{"arm64", "aarch64", "arm64", true},
		{"armv7hl", "armv7l", "armhf", true},
		{"x86-64", "", "", false},
		{"", "", "", false},
	} {
		canonical, ok := CanonicalArch(tt.name)
		if canonical != tt.canonical || ok != tt.ok {
			t.Errorf("CanonicalArch(%q) = %q, %v, want %q, %v", tt.name, canonical, ok, tt.canonical, tt.ok)
		}
		debian, ok := DebianArch(tt.name)
		if debian != tt.debian || ok != tt.ok {
			t.Errorf("DebianArch(%q) = %q, %v, want %q, %v", tt.name, debian, ok, tt.debian, tt.ok)
		}
	}
	if rpm, ok := RPMArch("armhf"); rpm != "armv7hl" || !ok {
		t.Errorf("RPMArch(armhf) = %q, %v, want armv7hl", rpm, ok)
	}
	if triplet, ok := CrossTriplet("arm64"); triplet != "aarch64-linux-gnu" || !ok {
		t.Errorf("CrossTriplet(arm64) = %q, %v, want aarch64-linux-gnu", triplet, ok)
	}
	if triplet, ok := CrossTriplet("s390x"); ok {
		t.Errorf("CrossTriplet(s390x) = %q, want none", triplet)
	}
	for machine, want := range map[string][]string{"x86_64": {"x86_64", "aarch64"}, "aarch64": {"aarch64"}} {
		if got := Buildable(machine); !slices.Equal(got, want) {
			t.Errorf("Buildable(%s) = %q, want %q", machine, got, want)
		}
	}
	if m, ok := CanonicalArch(Machine()); m != Machine() || !ok {
		t.Errorf("Machine() = %q, which is no canonical name", Machine())
	}
	if names := ArchNames(); names[0] != "x86_64" || !slices.Contains(names, "amd64") {
		t.Errorf("ArchNames() = %q, want x86_64 first and amd64 among them", names)
	}
}

// FuzzCompare holds the laws of a total order for any three strings, and that the parts of a release
// are parts of it.
func FuzzCompare(f *testing.F) {
	for i := range ordered {
		f.Add(string(ordered[i]), string(ordered[(i+1)%len(ordered)]), string(ordered[(i+7)%len(ordered)]))
	}
	f.Add("6.01", "6.1", "6.1.")
	f.Add("6.1-rc", "6.1", "6.1-~")
	f.Fuzz(func(t *testing.T, x, y, z string) {
		a, b, c := Release(x), Release(y), Release(z)
		if got := Compare(a, b); got != -Compare(b, a) || (got == 0) != (a == b) || got < -1 || got > 1 {
			t.Errorf("Compare(%q, %q) = %d, but the other way round %d", a, b, got, Compare(b, a))
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Errorf("not transitive: %q <= %q <= %q", a, b, c)
		}
		if !strings.HasPrefix(x, a.ABI()) || !strings.HasSuffix(x, a.Flavor()) || !strings.Contains(x, a.Arch()) {
			t.Errorf("%q has ABI %q, flavor %q, arch %q", a, a.ABI(), a.Flavor(), a.Arch())
		}
		if r, err := ParseRange(">=" + x); err == nil && checkRelease(x) == nil && !r.Contains(a) {
			t.Errorf(">=%s does not hold %s", x, a)
		}
	})
}
