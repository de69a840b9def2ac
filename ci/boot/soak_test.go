//go:build soak

package boot_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm/boot"
)

// TestSoakEnds has the faults that end a kernel, or seem to.
func TestSoakEnds(t *testing.T) {
	b := build(t, faultsFarm, "")
	k := b.kernel(t, "amd64")
	b.warm(t, k)
	get := func(name string) []byte { return b.module(t, "amd64", name) }
	endless := unit("kf_good", get("kf_good"))
	endless.Script = []byte("sleep 1000\n")
	tests := []struct {
		name  string
		units []*boot.Unit
		want  []want
	}{
		{"an oops at unload", []*boot.Unit{unit("kf_exitoops", get("kf_exitoops"))}, []want{{boot.Crashed, "oops", "BUG: kernel NULL pointer dereference"}}},
		{"an oops between others", []*boot.Unit{unit("kf_good", get("kf_good")), unit("kf_oops", get("kf_oops")), unit("kf_nodev", get("kf_nodev"))},
			[]want{{boot.Loaded, "", ""}, {boot.Crashed, "oops", ""}, {boot.Refused, "ENODEV", ""}}},
		{"an init that keeps the processor", []*boot.Unit{unit("kf_spin", get("kf_spin"))}, []want{{boot.Crashed, "lockup", "soft lockup"}}},
		{"an init that sleeps", []*boot.Unit{unit("kf_sleep", get("kf_sleep")), unit("kf_good", get("kf_good"))}, []want{{boot.Hung, "timeout", ""}, {boot.Loaded, "", ""}}},
		{"a fault that is left behind", []*boot.Unit{unit("kf_bomb", get("kf_bomb")), unit("kf_nodev", get("kf_nodev"))}, []want{{boot.Crashed, "oops", ""}, {boot.Refused, "ENODEV", ""}}},
		{"a script without an end", []*boot.Unit{endless}, []want{{boot.Failed, "", ""}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tester := b.tester(t)
			tester.Timeout = 15 * time.Second
			results, err := tester.Test(t.Context(), k, tt.units, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range tt.want {
				check(t, tt.units[i].Name, results[i], w)
			}
			t.Logf("%d boots, %s of CPU", tester.Stats().Boots, tester.Stats().CPU)
		})
	}
}

// matrixFarm has real modules and two of our own, on kernels of all kinds.
const matrixFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: trixie}
  - source: {deb: v4l2loopback-dkms, suite: trixie}
  - source: {deb: dm-writeboost-dkms, suite: trixie}
  - source: {deb: digimend-dkms, suite: trixie}
  - source: {deb: gost-crypto-dkms, suite: trixie}
  - source: {dir: TESTDATA/pair}
    test: {parameters: {kf_base: answer=7}, script: TESTDATA/pair/test.sh}
  - source: {dir: TESTDATA/counter}
    test: {script: TESTDATA/counter/test.sh}
kernels:
  - {suite: bullseye, releases: [{latest: 1, of: "5.10.*"}], flavors: [amd64]}
  - {suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [amd64, cloud-amd64, rt-amd64]}
  - {suite: trixie, releases: [{latest: 1, of: "6.12.*"}], flavors: [amd64]}
  - {suite: sid, releases: [{latest: 1}], flavors: [amd64]}
  - {suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [arm64], arch: aarch64}
  - {suite: trixie, releases: [{latest: 1, of: "6.12.*"}], flavors: [arm64], arch: aarch64}
  - {suite: sid, releases: [{latest: 1}], flavors: [arm64], arch: aarch64}
archives:
  debian: {allow-expired: [bullseye, sid]}
test: {require: loaded, accel: tcg}
`

// TestSoakMatrix boots every kernel with every module that builds for it, and
// logs the verdicts as a table.
func TestSoakMatrix(t *testing.T) {
	dir := t.TempDir()
	yaml := strings.ReplaceAll(matrixFarm, "TESTDATA", filepath.Join(rig.Root(), "testdata/boot"))
	rig.Write(t, dir, "farm.yaml", yaml)
	// Not everything builds for all of them: that is the modules' affair.
	r := rig.Run(t, dir, []string{"KOFARM_STORE=" + rig.Store(t)}, rig.Binary(t), "build", "farm.yaml", "--output", "dist")
	if r.Code > 1 {
		t.Fatalf("%d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	data, err := os.ReadFile(filepath.Join(dir, "dist/results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Cells []struct {
			Module, Version, Release, Outcome string
			Check, Test                       *struct {
				OK      bool
				Verdict string
				Report  struct{ Modules []boot.ModuleReport }
			}
			Files []string
		}
	}
	if err := json.Unmarshal(data, &report); err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, c := range report.Cells {
		verdict := c.Outcome
		if c.Test != nil {
			verdict = c.Test.Verdict
			for _, m := range c.Test.Report.Modules {
				verdict += fmt.Sprintf("  %s=%s", m.Module, m.Verdict)
				if m.Reason != "" {
					verdict += "(" + m.Reason + ")"
				}
			}
		}
		t.Logf("%-14s %-22s %-26s %s", c.Module, c.Version, c.Release, verdict)
		switch {
		case c.Outcome == "infrastructure":
			t.Errorf("%s on %s: %s", c.Module, c.Release, c.Outcome)
		case c.Outcome != "built" || c.Check == nil || !c.Check.OK:
		case c.Test == nil:
			t.Errorf("%s on %s: not tested", c.Module, c.Release)
		default:
			tested++
			if c.Test.OK != (len(c.Files) > 0) {
				t.Errorf("%s on %s: test ok %v, packages %q", c.Module, c.Release, c.Test.OK, c.Files)
			}
			if !c.Test.OK {
				t.Errorf("%s on %s: %s", c.Module, c.Release, verdict)
			}
		}
	}
	if tested < 45 {
		t.Errorf("%d cells were booted", tested)
	}
}

// TestSoakBoots boots again and again, with a build of everything beside it in
// the second half: no verdict may differ from the first.
func TestSoakBoots(t *testing.T) {
	n := rig.Count(t, "KOFARM_SOAK_BOOTS")
	b := build(t, faultsFarm, "")
	k := b.kernel(t, "amd64")
	b.warm(t, k)
	units := func() []*boot.Unit {
		return []*boot.Unit{unit("kf_good", b.module(t, "amd64", "kf_good")), unit("kf_nodev", b.module(t, "amd64", "kf_nodev"))}
	}
	var cpu, wall time.Duration
	for i := range n {
		if i == n/2 {
			busy(t)
		}
		tester := b.tester(t)
		results, err := tester.Test(t.Context(), k, units(), nil)
		if err != nil {
			t.Fatal(err)
		}
		check(t, fmt.Sprintf("boot %d", i), results[0], want{boot.Loaded, "", ""})
		check(t, fmt.Sprintf("boot %d", i), results[1], want{boot.Refused, "ENODEV", ""})
		if got := tester.Stats(); got.Boots != 1 {
			t.Errorf("boot %d: %d boots", i, got.Boots)
		}
		cpu, wall = cpu+tester.Stats().CPU, wall+tester.Stats().Wall
	}
	t.Logf("%d boots: %.2f s of CPU, %.2f s each", n, cpu.Seconds()/float64(n), wall.Seconds()/float64(n))
}

// busy builds a farm over and over until the test ends.
func busy(t *testing.T) {
	dir := t.TempDir()
	rig.Write(t, dir, "farm.yaml", strings.ReplaceAll(faultsFarm, "TESTDATA", filepath.Join(rig.Root(), "testdata/boot")))
	store := t.TempDir()
	rig.Clone(t, rig.Store(t), store, "blobs", "refs/layer", "cache")
	ctx, end := context.WithCancel(context.Background()) // the test's own ends before its clean-up
	done := make(chan struct{})
	kofarm := rig.Binary(t)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = os.RemoveAll(filepath.Join(store, "refs/result"))
			cmd := exec.CommandContext(ctx, kofarm, "build", "farm.yaml", "--output", "dist")
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "KOFARM_STORE="+store)
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
				t.Errorf("the build beside the boots: %v\n%s", err, out)
				return
			}
		}
	}()
	t.Cleanup(func() { end(); <-done })
}
