package farm_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
)

// TestCustomKernel builds for a kernel of one's own, whose headers are Debian's
// as .deb files or as a folder: the module is the one that the kernel of the
// archive gets. The header packages' own dependencies, libelf1 among them, are
// the farm file's to name.
func TestCustomKernel(t *testing.T) {
	store, _ := reference(t)
	dir := rig.Folder(t)
	helloDir(t, dir)
	rig.Write(t, dir, "farm.yaml", helloFarm("{dir: hello}", ""))
	rig.Kofarm(t, 0, dir, store, "build")
	stock := dist.Results(t, filepath.Join(dir, "dist"))
	cell := stock.Cells[0]
	var names []string
	for _, p := range stock.PackageSets[cell.Inputs.Headers] {
		if !strings.HasPrefix(p.Name, "linux-headers-") && !strings.HasPrefix(p.Name, "linux-kbuild-") {
			continue
		}
		if err := rig.LinkOrCopy(filepath.Join(store, "blobs", "sha256", p.SHA256), filepath.Join(dir, p.Name+".deb")); err != nil {
			t.Fatal(err)
		}
		names = append(names, p.Name)
	}
	flavor := "linux-headers-" + cell.Release
	if out, err := exec.Command("dpkg-deb", "-x", filepath.Join(dir, flavor+".deb"), filepath.Join(dir, "tree")).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	debs := "[" + strings.Join(names, ".deb, ") + ".deb]"
	for _, tt := range []struct{ name, headers string }{
		{"deb", debs},
		{"folder", strings.Replace(debs, flavor+".deb", "tree/usr/src/"+flavor, 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rig.Write(t, dir, "custom.yaml", fmt.Sprintf(`
modules:
  - source: {dir: hello}
kernels:
  - release: %s
    arch: x86_64
    headers: %s
    toolchain: {suite: bookworm, packages: [gcc-12, libelf1]}
output: {directory: custom}
`, cell.Release, tt.headers))
			rig.Kofarm(t, 0, dir, store, "build", "custom.yaml")
			got := dist.Results(t, filepath.Join(dir, "custom")).Cells[0]
			if len(got.Modules) != 1 || got.Modules[0] != cell.Modules[0] {
				t.Errorf("got %+v, want %+v", got.Modules, cell.Modules)
			}
			if got.Check == nil || !got.Check.OK {
				t.Errorf("check: %+v", got.Check)
			}
		})
	}
	t.Run("another release", func(t *testing.T) {
		yaml, err := exec.Command("sed", "s/release: .*/release: 6.1.0-999-amd64/", filepath.Join(dir, "custom.yaml")).Output()
		if err != nil || !bytes.Contains(yaml, []byte("999")) {
			t.Fatalf("%v\n%s", err, yaml)
		}
		rig.Write(t, dir, "wrong.yaml", string(yaml))
		r := rig.Kofarm(t, 2, dir, store, "build", "wrong.yaml")
		says(t, r.Stderr, "wrong.yaml:5", cell.Release, "6.1.0-999-amd64")
	})
}
