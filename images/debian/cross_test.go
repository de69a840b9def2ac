package debian

import (
	"slices"
	"strings"
	"testing"
)

// TestCrossCompiler has names from Debian's archive.
func TestCrossCompiler(t *testing.T) {
	c := Cross{Triplet: "aarch64-linux-gnu"}
	for name, want := range map[string]string{
		"gcc-12":                    "gcc-12-aarch64-linux-gnu",
		"gcc-16-for-host":           "gcc-16-aarch64-linux-gnu",
		"gcc":                       "gcc-aarch64-linux-gnu",
		"linux-compiler-gcc-10-x86": "gcc-10-aarch64-linux-gnu",
		"gcc-12-base":               "",
		"gcc-mingw-w64":             "",
		"libgcc-12-dev":             "",
		"gcc-12-aarch64-linux-gnu":  "",
	} {
		if got := c.compiler(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestCrossClosure resolves arm64 kernels of the real archive: headers are
// arm64's, what runs is amd64's.
func TestCrossClosure(t *testing.T) {
	for _, tt := range []struct {
		suite, series string
		toolchain     []string
		kbuild        string
	}{
		{"bookworm", "6.1.", []string{"gcc-12", "gcc-12-aarch64-linux-gnu", "binutils-aarch64-linux-gnu", "libc6-dev", "libc6-dev-arm64-cross", "make"}, "linux-kbuild-6.1"},
		{"trixie", "6.12.", []string{"gcc-14-aarch64-linux-gnu", "libc6-dev-arm64-cross", "make"}, "linux-kbuild-6.12."},
		{"sid", "", []string{"libc6-dev-arm64-cross", "binutils-aarch64-linux-gnu"}, "linux-kbuild-"},
	} {
		t.Run(tt.suite, func(t *testing.T) {
			here, there := open(t, tt.suite, "amd64"), open(t, tt.suite, "arm64")
			kernels, err := there.Kernels()
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(kernels, func(k Kernel) bool {
				return strings.HasPrefix(k.Release, tt.series) && strings.HasSuffix(k.Release, "-arm64") && !strings.Contains(k.Release, "cloud") && !strings.Contains(k.Release, "rt")
			})
			if i < 0 {
				t.Fatalf("no kernel %s*-arm64 in %v", tt.series, kernels)
			}
			base, err := here.CrossBase(Cross{there, "aarch64-linux-gnu"}, &kernels[i], nil)
			if err != nil {
				t.Fatal(err)
			}
			absent := []string{"linux-image", "initramfs-tools", "linux-headers", "linux-kbuild"}
			wantNames(t, "toolchain", base.Toolchain, tt.toolchain, absent)
			wantNames(t, "headers", base.Headers, []string{kernels[i].Package}, []string{"linux-image", "linux-base"})
			c, err := here.Extend(base, []string{"libelf-dev", "make"})
			if err != nil {
				t.Fatal(err)
			}
			wantNames(t, "extra", c.Extra, []string{"libelf-dev"}, []string{"make", "libc6"})
			for _, p := range slices.Concat(c.Toolchain, c.Extra) {
				if p.Arch != "amd64" && p.Arch != "all" {
					t.Errorf("%s is for %s", p, p.Arch)
				}
			}
			var kbuild, common int
			for _, p := range c.Headers {
				want := "arm64"
				switch {
				case strings.HasPrefix(p.Name, tt.kbuild):
					want, kbuild = "amd64", kbuild+1
				case strings.HasSuffix(p.Name, "-common"):
					want, common = "all", common+1
				}
				if p.Arch != want {
					t.Errorf("%s is for %s, want %s", p, p.Arch, want)
				}
			}
			if kbuild != 1 || common != 1 || len(c.Headers) != 3 {
				t.Errorf("headers: %v", c.Headers)
			}
		})
	}
}

// TestCrossCustom resolves the toolchain of a kernel of one's own.
func TestCrossCustom(t *testing.T) {
	here, there := open(t, "bookworm", "amd64"), open(t, "bookworm", "arm64")
	for _, tt := range []struct {
		packages []string
		want     []string
		absent   []string
	}{
		{[]string{"gcc-11", "libelf1"}, []string{"gcc-11-aarch64-linux-gnu", "libelf1"}, []string{"gcc-11", "gcc-aarch64-linux-gnu"}},
		{[]string{"gcc-11-aarch64-linux-gnu"}, []string{"gcc-11-aarch64-linux-gnu"}, []string{"gcc-12-aarch64-linux-gnu"}},
		{nil, []string{"gcc-aarch64-linux-gnu", "gcc-12-aarch64-linux-gnu"}, nil},
	} {
		c, err := here.CrossBase(Cross{there, "aarch64-linux-gnu"}, nil, tt.packages)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range c.Toolchain {
			names = append(names, p.Name)
		}
		for _, w := range tt.want {
			if !slices.Contains(names, w) {
				t.Errorf("%q: no %s in %q", tt.packages, w, names)
			}
		}
		for _, a := range tt.absent {
			if slices.Contains(names, a) {
				t.Errorf("%q: has %s", tt.packages, a)
			}
		}
		if len(c.Headers) != 0 {
			t.Errorf("%q: headers %v", tt.packages, c.Headers)
		}
	}
	if _, err := here.CrossBase(Cross{there, "aarch64-linux-gnu"}, nil, []string{"gcc-10"}); err == nil || !strings.Contains(err.Error(), "gcc-10-aarch64-linux-gnu") {
		t.Errorf("a compiler that the suite lacks: %v", err)
	}
	lost := Kernel{Release: "6.1.0-1-arm64", Package: "linux-headers-6.1.0-1-arm64", Version: "6.1.1-1"}
	if _, err := here.CrossBase(Cross{there, "aarch64-linux-gnu"}, &lost, nil); err == nil || !strings.Contains(err.Error(), "no linux-headers-6.1.0-1-arm64 (= 6.1.1-1) for arm64") {
		t.Errorf("headers that are gone: %v", err)
	}
}
