//go:build soak

package farm_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestSoakKill ends KOFARM_SOAK_KILLS runs at random moments. The seed is
// logged, and KOFARM_SOAK_SEED repeats it.
func TestSoakKill(t *testing.T) {
	n := rig.Count(t, "KOFARM_SOAK_KILLS")
	seed, err := strconv.ParseUint(os.Getenv("KOFARM_SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("KOFARM_SOAK_SEED=%d", seed)
	// Below nohup a hangup is ignored, by the runs as well: not below who catches it.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	random := rand.New(rand.NewPCG(seed, 0))
	store, want := reference(t)
	adopt(t)
	all := moments()
	for i := range n {
		m := all[random.IntN(len(all))]
		after := time.Duration(random.Int64N(int64(10 * time.Second)))
		sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}[random.IntN(4)]
		t.Run(fmt.Sprintf("%d/%s/%s/%s", i, m.name, after, sig), func(t *testing.T) {
			dir := rig.Folder(t)
			lose(t, store, m.gone)
			r := start(t, dir, store)
			for begun := time.Now(); time.Since(begun) < after && r.alive(); {
				time.Sleep(time.Millisecond)
			}
			if r.alive() {
				r.end(t, sig)
			}
			again(t, dir, store, want)
		})
	}
}
