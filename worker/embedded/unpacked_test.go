package embedded

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker/workertest"
)

// TestUnpacked removes layers that were not used since some time, and unpacks
// them again when they are wanted.
func TestUnpacked(t *testing.T) {
	dir := t.TempDir()
	if all, err := ListUnpacked(dir); err != nil || len(all) != 0 {
		t.Fatalf("an empty folder: %v, %v", all, err)
	}
	l := newLayers(dir)
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	layer := workertest.Layer(t, workertest.Entry{Name: "a/", Mode: 0o555}, workertest.Entry{Name: "a/b", Data: "12345"})
	diffID, err := layer.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	img := oneLayer{layer: layer}
	unpack := func() {
		t.Helper()
		if _, err := l.unpacked(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(l.dir, diffID.Hex, "a/b")); err != nil {
			t.Fatal(err)
		}
	}
	unpack()
	all, err := ListUnpacked(dir)
	if err != nil || len(all) != 1 || all[0].DiffID != diffID.Hex || all[0].Size != 5 {
		t.Fatalf("got %+v, %v", all, err)
	}
	before, after := all[0].Used.Add(-time.Hour), all[0].Used.Add(time.Hour)
	if gone, err := all[0].Remove(before); gone || err != nil {
		t.Errorf("a layer that was used since: gone %t, %v", gone, err)
	}
	for range 2 {
		unpack()
		if gone, err := all[0].Remove(after); !gone || err != nil {
			t.Errorf("gone %t, %v", gone, err)
		}
		if left, err := os.ReadDir(l.dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	if gone, err := all[0].Remove(after); gone || err != nil {
		t.Errorf("a layer that is gone: gone %t, %v", gone, err)
	}
}

// oneLayer is an image as far as unpacking looks at it.
type oneLayer struct {
	v1.Image
	layer v1.Layer
}

func (o oneLayer) Layers() ([]v1.Layer, error) { return []v1.Layer{o.layer}, nil }
