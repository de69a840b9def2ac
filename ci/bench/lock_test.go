package bench_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// lockFarm has three modules, which need different packages, for every kernel of
// Debian: more than 300 cells.
const lockFarm = `
modules:
  - source: {dir: one}
  - {source: {dir: two}, build-packages: [libelf-dev]}
  - {source: {deb: acpi-call-dkms, suite: bookworm}, build-packages: [bc]}
kernels:
  - suites: [bullseye, bookworm, bookworm-backports, trixie, trixie-backports, sid]
    releases: ["*"]
archives: {debian: {allow-expired: [bullseye, sid]}}
`

// BenchmarkLock pins some 300 cells with warm indexes, and without a network:
// nothing can be fetched. With the lock, plans need no index.
func BenchmarkLock(b *testing.B) {
	dir, store := b.TempDir(), rig.Store(b)
	rig.Write(b, dir, "farm.yaml", lockFarm)
	for _, name := range []string{"one", "two"} {
		rig.Write(b, dir, name+"/dkms.conf", fmt.Sprintf("PACKAGE_NAME=%s\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=%s\nDEST_MODULE_LOCATION=/updates\n", name, name))
	}
	run := func(args ...string) cost {
		cmd := exec.Command("unshare", append([]string{"--net", rig.Binary(b), "--offline", "--store", store}, args...)...)
		cmd.Dir = dir
		return measure(b, cmd)
	}
	rig.Kofarm(b, 0, dir, store, "lock") // fetches indexes
	cells := strings.Count(rig.Kofarm(b, 0, dir, store, "plan", "--json", "--locked").Stdout, `"key"`)
	for b.Loop() {
		m := medians(func() cost {
			if err := os.Remove(filepath.Join(dir, "farm.lock")); err != nil {
				b.Fatal(err)
			}
			return run("lock")
		}, func() cost { return run("plan", "--locked") })
		b.Logf("%d cells: lock %s, %d MB; plan from the lock %s", cells, m[0], m[0].rss>>20, m[1])
		b.ReportMetric(m[0].wall.Seconds(), "lock-s")
		b.ReportMetric(m[1].wall.Seconds(), "plan-s")
		b.ReportMetric(float64(cells), "cells")
	}
}
