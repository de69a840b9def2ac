package debian

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
)

func TestPockets(t *testing.T) {
	tests := map[string][]pocket{
		"bookworm":           {{"bookworm", false, true}, {"bookworm-updates", false, true}, {"bookworm-security", true, true}},
		"bookworm-backports": {{"bookworm", false, false}, {"bookworm-updates", false, false}, {"bookworm-security", true, false}, {"bookworm-backports", false, true}},
		"bullseye-backports-sloppy": {{"bullseye", false, false}, {"bullseye-updates", false, false}, {"bullseye-security", true, false},
			{"bullseye-backports-sloppy", false, true}},
		"trixie-proposed-updates": {{"trixie", false, false}, {"trixie-updates", false, false}, {"trixie-security", true, false}, {"trixie-proposed-updates", false, true}},
		"sid":                     {{"sid", false, true}},
		"experimental":            {{"sid", false, false}, {"experimental", false, true}},
	}
	for suite, want := range tests {
		if got := pockets(suite); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", suite, got, want)
		}
	}
}

// TestIsKernel has the Depends of packages of Debian's.
func TestIsKernel(t *testing.T) {
	tests := []struct {
		name, depends string
		want          bool
	}{
		{"linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-9-common (= 6.1.27-1), linux-kbuild-6.1, linux-compiler-gcc-12-x86 (>= 6.1.27-1)", true},
		{"linux-headers-6.1.0-9-rt-amd64", "linux-headers-6.1.0-9-common-rt (= 6.1.27-1), linux-kbuild-6.1", true},
		{"linux-headers-5.10.0-30-cloud-amd64", "linux-compiler-gcc-10-x86, linux-headers-5.10.0-30-common (= 5.10.218-1)", true},
		{"linux-headers-6.1.0-9-common", "", false},
		{"linux-headers-6.1.0-9-common-rt", "", false},
		{"linux-headers-5.10.0-30-all", "linux-headers-5.10.0-30-all-amd64 (= 5.10.218-1)", false},
		{"linux-headers-5.10.0-30-all-amd64", "linux-headers-5.10.0-30-common (= 5.10.218-1)", false},
		{"linux-headers-amd64", "linux-headers-6.1.0-9-amd64 (= 6.1.27-1)", false},
	}
	for _, tt := range tests {
		deps, err := apt.ParseDependencies(tt.depends)
		if err != nil && tt.depends != "" {
			t.Fatal(err)
		}
		if got := isKernel(&apt.Package{Name: tt.name, Depends: deps}); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestBuildPackages(t *testing.T) {
	tests := []struct {
		depends string
		want    []string
	}{
		{"dkms", nil},
		{"dkms (>= 2.1.0.0), libfoo-dev (>= 1) | libbar-dev, make", []string{"libfoo-dev (>= 1) | libbar-dev", "make"}},
		{"dh-dkms | dkms, pkg-config", []string{"pkg-config"}},
		{"", nil},
	}
	for _, tt := range tests {
		got, err := BuildPackages(tt.depends)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v, want %q", tt.depends, got, err, tt.want)
		}
	}
	if _, err := BuildPackages("a ("); err == nil {
		t.Error("a broken Depends was taken")
	}
}

// open opens a suite of the real archive until the test ends.
func open(t *testing.T, suite, arch string) *Suite {
	t.Helper()
	store := rig.Store(t)
	client := &fetch.Client{Dir: filepath.Join(store, "blobs/sha256"), Kept: filepath.Join(store, "cache/releases"), Partial: filepath.Join(store, "partial")}
	archive := Archive{Distribution: "debian", Mirrors: []string{"http://deb.debian.org/debian"}, SecurityMirrors: []string{"http://deb.debian.org/debian-security"},
		Components: []string{"main"}, Keyring: "/usr/share/keyrings/debian-archive-keyring.gpg", AllowExpired: []string{"sid"}}
	s, err := Open(t.Context(), &apt.Client{Fetch: client, Dir: filepath.Join(store, "cache/indexes")}, archive, suite, arch, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestClosure resolves kernels of the real archive.
func TestClosure(t *testing.T) {
	tests := []struct {
		suite, series                string
		toolchain, headers, absences []string
	}{
		{"bookworm", "6.1.", []string{"bash", "coreutils", "gcc-12", "libc6-dev", "libelf1", "make", "patch"},
			[]string{"linux-kbuild-6.1", "linux-compiler-gcc-12-x86"}, []string{"linux-image", "initramfs-tools", "dkms"}},
		{"trixie", "6.12.", []string{"bash", "gcc-14", "libc6-dev", "make", "patch"},
			nil, []string{"linux-image", "initramfs-tools", "linux-initramfs-tool", "dracut"}},
	}
	for _, tt := range tests {
		t.Run(tt.suite, func(t *testing.T) {
			s := open(t, tt.suite, "amd64")
			kernels, err := s.Kernels()
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(kernels, func(k Kernel) bool {
				return strings.HasPrefix(k.Release, tt.series) && strings.HasSuffix(k.Release, "-amd64") && strings.Count(k.Release, "-") <= 2 && !strings.Contains(k.Release, "rt")
			})
			if i < 0 {
				t.Fatalf("no kernel %s*-amd64 in %v", tt.series, kernels)
			}
			c, err := s.Resolve(&kernels[i], nil, []string{"pkg-config", "make"})
			if err != nil {
				t.Fatal(err)
			}
			wantNames(t, "toolchain", c.Toolchain, tt.toolchain, append(tt.absences, "linux-headers", "linux-kbuild"))
			headers := append(tt.headers, kernels[i].Package)
			wantNames(t, "headers", c.Headers, headers, tt.absences)
			wantNames(t, "extra", c.Extra, []string{"pkgconf"}, append(tt.absences, "make", "libc6"))
		})
	}
}

// wantNames checks that packages are sorted, and which are among them.
func wantNames(t *testing.T, what string, pkgs []*apt.Package, want, absent []string) {
	t.Helper()
	var names []string
	for _, p := range pkgs {
		names = append(names, p.Name)
	}
	if !slices.IsSorted(names) {
		t.Errorf("%s: not sorted: %v", what, names)
	}
	for _, w := range want {
		if !slices.Contains(names, w) {
			t.Errorf("%s: no %s in %v", what, w, names)
		}
	}
	for _, n := range names {
		for _, a := range absent {
			if n == a || strings.HasPrefix(n, a+"-") && a != "make" && a != "libc6" {
				t.Errorf("%s: has %s", what, n)
			}
		}
	}
}
