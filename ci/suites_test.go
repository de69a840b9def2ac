package ci_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

const suitesFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: trixie}
kernels:
  - suite: bullseye
    releases: [{latest: 1, of: "5.10.*"}]
    flavors: [amd64]
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}, {latest: 1, of: "6.12.*"}]
    flavors: [amd64]
  - suites: [bookworm-backports, trixie, trixie-backports, sid]
    flavors: [amd64]
archives:
  debian:
    allow-expired: [sid]
`

// TestSuites builds one module for the newest kernel of each series of every
// suite, each with the compiler that built the kernel.
func TestSuites(t *testing.T) {
	dir := t.TempDir()
	file := rig.Write(t, dir, "farm.yaml", suitesFarm)
	rig.Kofarm(t, 0, dir, rig.Store(t), "build", file)
	data, err := os.ReadFile(filepath.Join(dir, "dist", farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var report farm.Report
	if err := json.Unmarshal(data, &report); err != nil {
		t.Fatal(err)
	}
	// The compiler of each series is a fact about Debian: the one that its
	// kernel team sets for the suite (debian/config.local and the headers' own
	// CONFIG_CC_VERSION_TEXT).
	want := map[string]string{"bullseye 5.10": "gcc-10", "bookworm 6.1": "gcc-12", "bookworm 6.12": "gcc-12",
		"bookworm-backports 6.12": "gcc-12", "trixie 6.12": "gcc-14", "trixie-backports 7": "gcc-14", "sid 7": "gcc-1"}
	series := regexp.MustCompile(`^(7|\d+\.\d+)\b`)
	for _, c := range report.Cells {
		name := c.Suite + " " + series.FindString(c.Release)
		compiler, ok := want[name]
		if !ok {
			t.Errorf("%s: an unexpected kernel %s", name, c.Release)
			continue
		}
		delete(want, name)
		if c.Outcome != farm.Built || c.Check == nil || !c.Check.OK {
			t.Errorf("%s %s: %s: %s %v", name, c.Release, c.Outcome, c.Message, c.Check)
		}
		if !strings.Contains(c.Compiler, compiler) {
			t.Errorf("%s %s: built by %q, want %s", name, c.Release, c.Compiler, compiler)
		}
		log, err := os.ReadFile(filepath.Join(dir, "dist", c.Log))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), "the kernel was built by") {
			t.Logf("%s %s: the compiler has moved on since the kernel was built", name, c.Release)
		}
		t.Logf("%-24s %-28s %s", name, c.Release, c.Compiler)
	}
	for name := range want {
		t.Errorf("%s has no kernel", name)
	}
}
