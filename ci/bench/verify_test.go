package bench_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// BenchmarkVerify compares kofarm verify with kofarm build of the same 12 cells,
// both with warm images.
func BenchmarkVerify(b *testing.B) {
	dir, store := b.TempDir(), rig.Cache(b, "bench", "cells")
	rig.Write(b, dir, "farm.yaml", benchFarm)
	kofarm(b, dir, store)
	cells := builtCells(b, dir, store)
	for b.Loop() {
		m := medians(func() cost {
			forget(b, dir, store)
			return kofarm(b, dir, store)
		}, func() cost {
			cmd := exec.Command(rig.Binary(b), "verify")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "KOFARM_STORE="+store)
			return measure(b, cmd)
		})
		built, verified := m[0], m[1]
		b.Logf("%d cells, the median of %d", len(cells), rounds)
		b.Logf("build:  %s", built)
		b.Logf("verify: %s", verified)
		b.Logf("wall verify/build %.2f, CPU %.2f", ratio(verified.wall, built.wall), ratio(verified.cpu, built.cpu))
		b.ReportMetric(ratio(verified.wall, built.wall), "verify/build")
	}
}
