package worker

import (
	"os"
	"path/filepath"
	"testing"
)

func claim(t *testing.T, dir string) *Claim {
	t.Helper()
	c, err := NewClaim(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaim(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	a, b, other := claim(t, dir), claim(t, dir), claim(t, t.TempDir())
	if a.Store != b.Store || a.Store == other.Store || a.Run == b.Run {
		t.Errorf("stores %s %s %s, runs %s %s", a.Store, b.Store, other.Store, a.Run, b.Run)
	}
	for run, want := range map[string]bool{a.Run: false, b.Run: false, other.Run: true, "": true, "../x": true} {
		if got := a.Dead(run); got != want {
			t.Errorf("run %q is dead: %v", run, got)
		}
	}
	// As if it was killed: the lock goes, the mark stays.
	if err := b.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if !a.Dead(b.Run) {
		t.Error("a run that was killed is not dead")
	}
	c := claim(t, dir)
	if _, err := os.Stat(a.path(b.Run)); err == nil {
		t.Error("the mark of a run that was killed stays")
	}
	for _, c := range []*Claim{a, c, other} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if !c.Dead(a.Run) {
		t.Error("a run that has ended is not dead")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "name" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestClaimDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "name"), []byte("../../etc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err := NewClaim(dir); err == nil {
		t.Errorf("took the name %q", c.Store)
	}
}
