package boot_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm/boot"
)

const arm64Farm = `
modules:
  - source: {dir: TESTDATA/pair}
  - source: {dir: TESTDATA/counter}
  - source: {dir: TESTDATA/faults}
kernels:
  - {suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [arm64], arch: aarch64}
  - {suite: trixie, releases: [{latest: 1, of: "6.12.*"}], flavors: [cloud-arm64], arch: aarch64}
`

// TestARM64 boots kernels of an architecture that this machine has not, which tell
// of faults in words of their own.
func TestARM64(t *testing.T) {
	b := build(t, arm64Farm, "")
	script := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(rig.Root(), "testdata/boot", name, "test.sh"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, k := range b.kernels() {
		t.Run(k.Release, func(t *testing.T) {
			b.warm(t, k)
			get := func(name string) []byte { return b.moduleFor(t, k.Release, name) }
			pair := &boot.Unit{Script: script("pair"), Modules: []boot.Module{module("kf_base", get("kf_base"), "answer=7"), module("kf_user", get("kf_user"))}}
			counter := unit("kf_counter", get("kf_counter"))
			counter.Script = script("counter")
			tests := []struct {
				name string
				unit *boot.Unit
				want want
			}{
				{"two modules that need each other", pair, want{boot.Loaded, "", ""}},
				{"a device that a script uses", counter, want{boot.Loaded, "", ""}},
				{"no hardware", unit("kf_nodev", get("kf_nodev")), want{boot.Refused, "ENODEV", ""}},
				{"a wrong checksum", unit("kf_good", wrongCRC(t, get("kf_good"), "_printk")), want{boot.Rejected, "crc", "disagrees about version of symbol _printk"}},
				{"a warning", unit("kf_warn", get("kf_warn")), want{boot.Crashed, "warning", "WARNING: CPU: 0"}},
				{"an oops", unit("kf_oops", get("kf_oops")), want{boot.Crashed, "oops", "Unable to handle kernel NULL pointer dereference"}},
				{"after the oops", unit("kf_good", get("kf_good")), want{boot.Loaded, "", ""}},
			}
			var units []*boot.Unit
			for _, tt := range tests {
				units = append(units, tt.unit)
			}
			tester := b.tester(t)
			results, err := tester.Test(t.Context(), k, units, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, tt := range tests {
				check(t, tt.name, results[i], tt.want)
			}
			if got := tester.Stats().Boots; got != 5 {
				t.Errorf("%d boots, want 5: all until the warning, it and the wrong checksum alone, the oops, and the other kf_good", got)
			}
			t.Logf("%+v", tester.Stats())
		})
	}
}
