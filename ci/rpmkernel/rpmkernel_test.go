package rpmkernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestBuildFromDevel builds a module for a vendor's kernel from its kernel-devel.
func TestBuildFromDevel(t *testing.T) {
	k := Make(t, "6.1.192", "56.host108")
	dir := t.TempDir()
	rig.Write(t, dir, "farm.yaml", `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - release: `+k.Release+`
    headers: `+k.Devel+`
    toolchain: {suite: bookworm, packages: [gcc-12, libelf1]}
`)
	rig.Kofarm(t, 0, dir, rig.Store(t), "build")
	tarball := filepath.Join(dir, "dist", "acpi-call-1.2.2-kernel"+k.Release+"-x86_64.dkms.tar.gz")
	if r := rig.Run(t, dir, nil, "tar", "xzf", tarball); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	ko := filepath.Join("dkms_main_tree", k.Release, "x86_64", "module", "acpi_call.ko")
	r := rig.Run(t, dir, nil, "/sbin/modinfo", "-F", "vermagic", ko)
	if !strings.HasPrefix(r.Stdout, k.Release+" ") {
		t.Errorf("vermagic %q, want kernel %s", r.Stdout, k.Release)
	}
	results, err := os.ReadFile(filepath.Join(dir, "dist", "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(results), `"customHeaders"`) {
		t.Error("results.json does not say what headers it was built from")
	}
}
