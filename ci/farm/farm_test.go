// Package farm_test runs kofarm end to end against the real archive: the same
// bytes from one farm file whatever happens on the way, and clear words where
// something is wrong.
package farm_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers, mount file systems and change users: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "kofarm-e2e-")
	if err != nil {
		panic(err)
	}
	shared.dir = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		println(err.Error())
	}
	os.Exit(code)
}

// matrixFarm has 12 cells: two modules, three kernels of two series, two flavors.
const matrixFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
  - source: {deb: bbswitch-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 2, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64]
  - suite: bookworm-backports
    releases: [{latest: 1}]
    flavors: [amd64, cloud-amd64]
output:
  dkms:
    layouts: [binaries-only, full]
`

// smallFarm has two cells.
const smallFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64]
`

// shared is the small farm, built once without disturbance, and the store that
// it was built on, which these tests share: the common one holds much more.
var shared struct {
	dir  string
	once sync.Once
}

// reference gives the shared store, and the dist of an undisturbed run of the
// small farm.
func reference(t testing.TB) (store, dist string) {
	t.Helper()
	store = filepath.Join(shared.dir, "store")
	shared.once.Do(func() {
		rig.Write(t, shared.dir, "farm.yaml", smallFarm)
		rig.Kofarm(t, 0, shared.dir, store, "build")
	})
	return store, filepath.Join(shared.dir, "dist")
}

// noTemporaries fails the test if anything half-written is in dist or in the
// store.
func noTemporaries(t testing.TB, store, dist string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(store, "tmp", "*"))
	if err != nil {
		t.Fatal(err)
	}
	unpacking, err := filepath.Glob(filepath.Join(store, "run", "layers", ".*"))
	if err != nil {
		t.Fatal(err)
	}
	left = append(left, unpacking...)
	_ = filepath.WalkDir(dist, func(p string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(e.Name(), ".") {
			left = append(left, p)
		}
		return nil
	})
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
