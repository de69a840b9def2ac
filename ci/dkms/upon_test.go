package dkms_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
)

// builtUpon builds a module that needs another one's symbols, source and what its
// POST_BUILD has left, with dkms, which has to have the other installed, and with
// kofarm.
func builtUpon(t *testing.T, b *builder, release string) {
	sources := filepath.Join(rig.Root(), "testdata/upon")
	r := buildFarm(t, t.TempDir(), fmt.Sprintf(`
modules:
  - source: {dir: %[1]s/kf-upper}
    build-depends: [kf-base]
  - source: {dir: %[1]s/kf-base}
kernels:
  - {suite: bookworm, releases: [%[2]s]}
`, sources, release))
	root := chroot.Open(t, filepath.Join(b.dir, "root"))
	for name, version := range map[string]string{"kf-base": "1.0", "kf-upper": "2.0"} {
		if err := os.CopyFS(root.Path("/usr/src/"+name+"-"+version), os.DirFS(filepath.Join(sources, name))); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Cells) != 2 {
		t.Fatalf("%d cells", len(r.Cells))
	}
	upper, base := r.Cells[0], r.Cells[1]
	if d := runBuild(t, root, upper, timestamp(release), t.TempDir()); d.Exit == 0 {
		t.Errorf("dkms builds it without the other\n%s", d.Output)
	}
	compareModules(t, base, runBuild(t, root, base, timestamp(release), t.TempDir()))
	root.Shell(t, `dkms install -m kf-base -v 1.0 -k "$1"`, release)
	d := runBuild(t, root, upper, timestamp(release), t.TempDir())
	if compareModules(t, upper, d) != 1 {
		t.Errorf("%+v\ndkms exits with %d\n%s", upper, d.Exit, d.Output)
	}
}
