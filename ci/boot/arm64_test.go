package boot_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/fetch"
)

// newest is a suite's newest kernel of a flavor.
func newest(t testing.TB, b *built, suite, series, arch, flavor string) boot.Kernel {
	t.Helper()
	client := &fetch.Client{Dir: b.store.BlobDir(), Kept: b.store.CacheDir("releases"), Partial: b.store.PartialDir(), Use: b.store.Use}
	s, err := debian.Open(t.Context(), &apt.Client{Fetch: client, Dir: b.store.CacheDir("indexes")}, debian.Archive{Distribution: "debian",
		Mirrors: []string{"http://deb.debian.org/debian"}, SecurityMirrors: []string{"http://deb.debian.org/debian-security"},
		Components: []string{"main"}, Keyring: "/usr/share/keyrings/debian-archive-keyring.gpg"}, suite, debianArch[arch], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kernels, err := s.Kernels()
	if err != nil {
		t.Fatal(err)
	}
	var k debian.Kernel
	for _, other := range kernels {
		version, _, _ := strings.Cut(strings.TrimSuffix(other.Release, "-"+flavor), "+")
		if strings.HasPrefix(version, series) && strings.HasSuffix(other.Release, "-"+flavor) && strings.Trim(version, "0123456789.-") == "" &&
			(k.Release == "" || apt.CompareVersions(other.Version, k.Version) > 0) {
			k = other
		}
	}
	pkgs, err := s.Image(k)
	if err != nil || len(pkgs) == 0 {
		t.Fatalf("no %s kernel for %s in %s: %v", series, flavor, suite, err)
	}
	return boot.Kernel{Release: k.Release, Arch: arch, Packages: pkgs}
}

var debianArch = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// TestARM64 boots a kernel of an architecture that this machine has not.
func TestARM64(t *testing.T) {
	b := build(t, faultsFarm)
	k := newest(t, b, "bookworm", "6.1.", "aarch64", "arm64")
	b.warm(t, k)
	other := unit("kf_good", b.module(t, "amd64", "kf_good"))
	other.First, other.Script = []string{"dummy"}, []byte("exit 1 # not reached: it is not loaded\n")
	results, err := b.tester(t).Test(t.Context(), k, []*boot.Unit{other}, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "a module for amd64", results[0], want{boot.Rejected, "format", ""})
	if n := results[0].Report.Notes; len(n) > 0 {
		t.Errorf("the kernel's own module: %q", n)
	}
}
