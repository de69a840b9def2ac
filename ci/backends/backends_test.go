// Package backends_test builds the same cells on every backend.
package backends_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

const farmFile = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64]
`

// TestSameModules builds a module on each backend, on stores that have the same
// downloads and no result: the packages are the same, and so are the modules in
// them.
func TestSameModules(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test uses the daemons that `ci/setup daemons` starts: run it as root")
	}
	common := rig.Store(t)
	rig.Kofarm(t, 0, folder(t), common, "build")
	t.Setenv("DOCKER_HOST", "unix:///run/kofarm-test/docker.sock")
	t.Setenv("CONTAINERD_ADDRESS", "/run/kofarm-test/containerd.sock")
	want := build(t, common, "embedded")
	for _, runtime := range []string{"docker", "containerd"} {
		t.Run(runtime, func(t *testing.T) {
			got := build(t, common, runtime)
			if len(got) == 0 || len(got) != len(want) {
				t.Fatalf("%d packages, want %d", len(got), len(want))
			}
			for name, data := range want {
				if !bytes.Equal(got[name], data) {
					t.Errorf("%s differs from what the embedded runtime makes", name)
				}
			}
		})
	}
}

func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	rig.Write(t, dir, "farm.yaml", farmFile)
	return dir
}

// build builds the farm and gives its packages by name.
func build(t testing.TB, common, runtime string) map[string][]byte {
	t.Helper()
	dir := folder(t)
	store := filepath.Join(dir, "store")
	rig.Clone(t, common, store, "blobs", "cache", "refs/layer")
	rig.Kofarm(t, 0, dir, store, "build", "--runtime", runtime)
	paths, err := filepath.Glob(filepath.Join(dir, "dist", "*.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string][]byte{}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		packages[filepath.Base(p)] = data
	}
	return packages
}
