package cache_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/images/store"
)

// freed runs `kofarm gc`, to leave next to nothing.
func (m *machine) freed(t testing.TB, args ...string) *store.Report {
	t.Helper()
	r := rig.Run(t, m.dir, nil, rig.Binary(t), append([]string{"--store", m.store, "gc", "--json", "--max-size", "1"}, args...)...)
	if r.Code != 0 {
		t.Errorf("gc: exit status %d\n%s", r.Code, r.Stderr)
		return &store.Report{}
	}
	var report store.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Errorf("%v: %s", err, r.Stdout)
	}
	return &report
}

// unshare copies a store that has been linked together: files with several names
// have one time, and another test that uses the other name marks this one, too.
func unshare(t testing.TB, store string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "cp", "-a", store, store+".own").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(os.RemoveAll(store), os.Rename(store+".own", store)); err != nil {
		t.Fatal(err)
	}
}

// TestCollectBesideBuild removes all that it may from a store, again and again,
// while two cells are built on it. They become what they always do.
func TestCollectBesideBuild(t *testing.T) {
	want := built(t)
	m := newMachine(t, t.TempDir(), nowhere, "read", want.store, "blobs", "cache", "refs/layer", "run")
	unshare(t, m.store)
	var build sync.WaitGroup
	done := make(chan struct{})
	build.Go(func() {
		defer close(done)
		r := rig.Run(t, m.dir, nil, rig.Binary(t), "--store", m.store, "build", "--parallel", "1")
		if r.Code != 0 {
			t.Errorf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	})
	defer build.Wait()
	running := func() bool {
		select {
		case <-done:
			return false
		default:
			return true
		}
	}
	for running() { // until a log is being written: what is unused before then would only be fetched again
		if logs, err := filepath.Glob(filepath.Join(m.store, "tmp/blob-*")); err != nil || len(logs) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	runs, freed := 0, 0
	for ; running(); runs++ {
		freed += m.freed(t).Total.Count
	}
	if runs == 0 || freed == 0 {
		t.Errorf("gc ran %d times beside the build, and freed %d things", runs, freed)
	}
	t.Logf("gc ran %d times beside the build, and freed %d things", runs, freed)
	tarballs, err := filepath.Glob(filepath.Join(want.dist, "*.tar.gz"))
	if err != nil || len(tarballs) != 2 {
		t.Fatal(tarballs, err)
	}
	for _, file := range tarballs {
		a, aerr := os.ReadFile(file)
		b, berr := os.ReadFile(filepath.Join(m.dist, filepath.Base(file)))
		if aerr != nil || berr != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v, %v", filepath.Base(file), aerr, berr)
		}
	}

	time.Sleep(2100 * time.Millisecond) // what was used a moment ago is kept
	before, err := store.Size(m.store)
	if err != nil {
		t.Fatal(err)
	}
	m.freed(t, "--dry-run")
	if now, err := store.Size(m.store); err != nil || now < before {
		t.Errorf("a dry run has left %d of %d bytes, %v", now, before, err)
	}
	r := m.freed(t)
	blobs, err := os.ReadDir(filepath.Join(m.store, "blobs/sha256"))
	for _, b := range blobs {
		if info, err := b.Info(); err != nil || info.Mode().IsRegular() && info.Size() > 1 {
			t.Errorf("blob %s is left, used at %s, now it is %s, %v", b.Name(), info.ModTime(), time.Now(), err)
		}
	}
	if err != nil || r.Kept > 1 {
		t.Errorf("afterwards: %+v, %v", r, err)
	}
	if layers, err := os.ReadDir(filepath.Join(m.store, "run/layers")); err != nil || len(layers) > 0 {
		t.Errorf("afterwards %d unpacked layers are left, %v", len(layers), err)
	}
}
