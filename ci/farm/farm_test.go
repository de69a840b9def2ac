// Package farm_test runs kofarm end to end against the real archive: the same
// bytes from one farm file whatever happens on the way, and clear words where
// something is wrong.
package farm_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
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

// folder makes an empty folder that any user can enter.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kofarm-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

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

// results reads a dist's results.json.
func results(t testing.TB, dist string) *farm.Report {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dist, farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var r farm.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// sameDist compares two dists: names, modes and bytes, less what may differ:
// logs, and in results.json durations, memory and what was cached.
func sameDist(t testing.TB, got, want string) {
	t.Helper()
	gotFiles, wantFiles := tree(t, got), tree(t, want)
	if !slices.Equal(gotFiles, wantFiles) {
		t.Fatalf("files of dist:\ngot  %s\nwant %s", strings.Join(gotFiles, "\n     "), strings.Join(wantFiles, "\n     "))
	}
	for _, name := range gotFiles {
		name, _, _ = strings.Cut(name, " ")
		if strings.HasPrefix(name, "logs/") {
			continue
		}
		a, b := content(t, got, name), content(t, want, name)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs", name)
			if name == farm.ResultsFile {
				t.Logf("%s", diff(t, a, b))
			}
		}
	}
}

func diff(t testing.TB, a, b []byte) string {
	dir := t.TempDir()
	out, _ := exec.Command("diff", rig.Write(t, dir, "got", string(a)), rig.Write(t, dir, "want", string(b))).Output()
	return string(out[:min(len(out), 2000)])
}

// tree lists the files below dir with their modes.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		files = append(files, rel+" "+fi.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func content(t testing.TB, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if name != farm.ResultsFile {
		return data
	}
	r := results(t, dir)
	r.Counts.Cached = 0
	for i := range r.Cells {
		r.Cells[i].Cached, r.Cells[i].Seconds, r.Cells[i].MemoryPeak = false, 0, 0
	}
	if data, err = json.MarshalIndent(r, "", " "); err != nil {
		t.Fatal(err)
	}
	return data
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
