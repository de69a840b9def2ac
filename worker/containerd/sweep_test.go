package containerd

import (
	"testing"

	"github.com/kofarm/kofarm/worker"
)

func TestContainerID(t *testing.T) {
	claim, err := worker.NewClaim(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Close()
	if id := nameOf(claim.Run, 12); !containerID.MatchString(id) {
		t.Errorf("%q is not known again", id)
	}
	for _, id := range []string{"", "system.slice", "kofarm-x", nameOf(claim.Run, 1) + "/..", "kofarm-*-1"} {
		if containerID.MatchString(id) {
			t.Errorf("%q is taken for a container of a run", id)
		}
	}
}
