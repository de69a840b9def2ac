package cache_test

import (
	"bufio"
	"net/url"
	"os"
	"os/exec"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestServeStore has one machine serve its store, and another take its results
// from there, without a registry between them.
func TestServeStore(t *testing.T) {
	first := built(t)
	serve := exec.CommandContext(t.Context(), rig.Binary(t), "--store", first.store, "serve-store")
	serve.Stderr = os.Stderr
	out, err := serve.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("serve-store has said nothing", lines.Err())
	}
	u, err := url.Parse(lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, t.TempDir(), "", "read", first.store, "cache")
	rig.Write(t, m.dir, "farm.yaml", farmOn(u.Host+"/results", "read"))
	_, report := m.build(t)
	counts(t, "the second machine", report, 2)

	if err := serve.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := serve.Wait(); err != nil {
		t.Errorf("after SIGINT: %v", err)
	}
}
