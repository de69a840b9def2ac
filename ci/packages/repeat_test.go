package packages_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// everything makes every kind of package, signed, and both repositories.
func everything(t testing.TB) string {
	t.Helper()
	k := vendorKernels(t)[0]
	return vendorFarm(t, "{packages: [modules, meta, dkms, source], prebuilt: true, repository: {}}\n"+
		"  deb: {packages: [modules, meta, dkms, source], prebuilt: true, kernel-revision: true, repository: {}}\n"+
		"  dkms: {layouts: [binaries-only]}", k)
}

// TestRepeats makes everything twice: the second time on a store that has nothing
// but downloads and layers, elsewhere, with another umask, time zone and locale.
// Every package and every file of both repositories has the same bytes,
// signatures among them.
func TestRepeats(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	build(t, first, everything(t))
	rig.Write(t, second, "farm.yaml", everything(t))
	store, err := os.MkdirTemp(rig.Cache(t), "packages-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(store); err != nil {
			t.Error(err)
		}
	})
	rig.Clone(t, rig.Store(t), store, "cache", "refs/layer", "blobs")
	r := rig.Run(t, second, []string{"TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8", "KOFARM_STORE=" + store},
		"sh", "-c", `umask 077; exec "$0" "$@"`, rig.Binary(t), "build", "--parallel", "3")
	if r.Code != 0 || !strings.Contains(r.Stdout, "1 built (0 of 1 cells were in the store)") {
		t.Fatalf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	got, want := tree(t, filepath.Join(second, "dist")), tree(t, filepath.Join(first, "dist"))
	for name, data := range want {
		other, ok := got[name]
		if !ok || !bytes.Equal(data, other) {
			t.Errorf("%s differs", name)
		}
	}
	if len(got) != len(want) || len(want) < 25 {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// tree reads all files below dir but logs and the report, by name and mode.
func tree(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == farm.ResultsFile || strings.HasPrefix(rel, "logs/") {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		all[rel+" "+fi.Mode().String()], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
