package cache_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestSharedVerdicts has a machine learn from the registry what another has found
// in kernels that it booted: in boots of one module version, as others are not told
// of.
func TestSharedVerdicts(t *testing.T) {
	w := newWorld(t)
	addr := w.address(t)
	w.registry(t, addr, plain)
	farm := func(m *machine, mode string) {
		rig.Write(t, m.dir, "farm.yaml", `
modules:
  - source: {dir: `+filepath.Join(rig.Root(), "testdata/boot/counter")+`}
kernels: [{suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [amd64]}]
test: {require: loaded, accel: tcg}
cache: {registry: "`+addr+`/team/kofarm", mode: `+mode+`}
`)
	}
	a := newMachine(t, t.TempDir(), addr, "readwrite", rig.Store(t), "blobs", "cache", "refs/layer", "refs/boot")
	farm(a, "readwrite")
	a.env = w.env
	_, report := a.build(t)
	if test := report.Cells[0].Test; test == nil || test.Cached || !test.OK {
		t.Fatalf("the first machine: %+v", test)
	}

	b := newMachine(t, t.TempDir(), addr, "read", rig.Store(t), "blobs", "cache", "refs/boot")
	farm(b, "read")
	b.env = w.env
	r, report := b.build(t)
	if test := report.Cells[0].Test; test == nil || !test.Cached || !test.OK || test.Report == nil {
		t.Errorf("the second machine: %+v", test)
	}
	if strings.Contains(r.Stderr, "WARN") {
		t.Errorf("warnings:\n%s", r.Stderr)
	}

	// With a test of its own there is nothing to learn.
	rig.Write(t, b.dir, "script.sh", "exit 0\n")
	data, err := os.ReadFile(filepath.Join(b.dir, "farm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rig.Write(t, b.dir, "farm.yaml", strings.Replace(string(data), "kernels:", "    test: {script: script.sh}\nkernels:", 1))
	if _, report = b.build(t); report.Cells[0].Test == nil || report.Cells[0].Test.Cached {
		t.Errorf("another test: %+v", report.Cells[0].Test)
	}
}
