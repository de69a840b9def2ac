//go:build soak

package backends_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestSoakDaemonKills kills each kind of daemon KOFARM_SOAK_KILLS times at random
// moments of runs, up to six times in one, and starts it again.
func TestSoakDaemonKills(t *testing.T) {
	n := rig.Count(t, "KOFARM_SOAK_KILLS")
	for _, kind := range []string{"docker", "containerd"} {
		t.Run(kind, func(t *testing.T) {
			r, d := prepare(t), own(t, kind, "a")
			for kills := 0; kills < n; {
				r.forget(t)
				r.start(t, d)
				for range 6 {
					built := r.built()
					if built > killCells-4 {
						break
					}
					r.await(t, "its midst", func() bool { return r.built() >= built+2 })
					time.Sleep(rand.N(700 * time.Millisecond))
					d.kill(t)
					d.start(t)
					kills++
				}
				r.completes(t)
				d.clean(t)
				t.Logf("%d kills", kills)
			}
		})
	}
}

// forget removes the run's results and its output.
func (r *run) forget(t *testing.T) {
	t.Helper()
	refs, err := filepath.Glob(filepath.Join(r.store, "refs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(refs, filepath.Join(r.dir, "dist")) {
		if filepath.Base(dir) == "layer" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	r.stderr = new(rig.Buffer)
}
