// Package dkms_test holds kofarm to Debian's real dkms: the modules are the ones
// that `dkms build` makes, and the tarballs load in three generations of it.
package dkms_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// theEight are the modules that the byte identity is shown with.
var theEight = []string{"acpi-call", "bbswitch", "v4l2loopback", "digimend", "dm-writeboost", "iptables-netflow", "gost-crypto", "ddcci"}

// TestByteIdentity builds the same cells with kofarm and with dkms. From 6.12 on
// .BTF differs from run to run, unless KBUILD_BUILD_TIMESTAMP is set: kofarm
// sets it to @0, so dkms gets it there. Of bookworm's modules two build for its
// 6.12; of those that do not, two stand for all.
func TestByteIdentity(t *testing.T) {
	for _, tt := range []struct {
		suite   string
		modules []string
		kernels string // of the farm file
		counts  map[string]int
	}{
		{"bookworm", theEight, `
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64, rt-amd64]
  - suite: bookworm
    releases: [{latest: 1, of: "6.12.*"}]
    flavors: [amd64]
exclude:
  - {module: ipt-netflow, release: "6.12.*"}
  - {module: digimend, release: "6.12.*"}
  - {module: gost-crypto, release: "6.12.*"}
  - {module: ddcci, release: "6.12.*"}
`, map[string]int{"6.1.": 24, "6.12.": 4}},
		{"trixie", []string{"acpi-call", "v4l2loopback", "digimend", "dm-writeboost", "gost-crypto", "ddcci"}, `
  - suite: trixie
    releases: [{latest: 1, of: "6.12.*"}]
    flavors: [amd64]
`, map[string]int{"6.12.": 6}},
		{"bullseye", []string{"acpi-call", "dm-writeboost"}, `
  - suite: bullseye
    releases: [{latest: 1, of: "5.10.*"}]
    flavors: [amd64]
`, map[string]int{"5.10.": 2}},
		{"sid", []string{"acpi-call", "v4l2loopback", "dm-writeboost"}, `
  - suite: sid
    releases: [{latest: 1}]
    flavors: [amd64]
archives:
  debian: {allow-expired: [sid]}
`, map[string]int{"7.": 3}},
	} {
		t.Run(tt.suite, func(t *testing.T) {
			var sources []string
			var file strings.Builder
			fmt.Fprintln(&file, "modules:")
			for _, m := range tt.modules {
				sources = append(sources, m+"-dkms")
				fmt.Fprintf(&file, "  - source: {deb: %s-dkms, suite: %s}\n", m, tt.suite)
			}
			fmt.Fprintln(&file, "kernels:", tt.kernels)
			r := buildFarm(t, t.TempDir(), file.String())
			r.Cells = slices.DeleteFunc(r.Cells, func(c farm.CellReport) bool { return c.Excluded })
			b := newBuilder(t, tt.suite, r, sources)
			compare(t, r, b.builds(t, r.Cells, timestamp))
			if tt.suite == "bookworm" {
				t.Run("built upon", func(t *testing.T) { builtUpon(t, b, r.Cells[0].Release) })
			}
			for prefix, want := range tt.counts {
				cells, built := count(r, prefix)
				if cells != want {
					t.Errorf("%d cells of %s*, want %d", cells, prefix, want)
				}
				if built == 0 {
					t.Errorf("nothing was built for %s*", prefix)
				}
			}
		})
	}
}

// timestamp is the environment for dkms.
func timestamp(release string) []string {
	if strings.HasPrefix(release, "5.") || strings.HasPrefix(release, "6.1.") {
		return nil
	}
	return []string{"KBUILD_BUILD_TIMESTAMP=@0"}
}

// buildFarm builds a farm file in dir and gives its results.json. Modules that
// fail are results too.
func buildFarm(t *testing.T, dir, file string) *farm.Report {
	t.Helper()
	path := rig.Write(t, dir, "farm.yaml", file)
	run := rig.Run(t, dir, []string{"KOFARM_STORE=" + rig.Store(t)}, rig.Binary(t), "build", path)
	if run.Code != 0 && run.Code != 1 {
		t.Fatalf("kofarm build: exit status %d\n%s%s", run.Code, run.Stdout, run.Stderr)
	}
	data, err := os.ReadFile(filepath.Join(dir, "dist", farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	r := &farm.Report{}
	if err := json.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// count counts the cells whose kernel has the prefix, and those that are built.
func count(r *farm.Report, prefix string) (cells, built int) {
	for _, c := range r.Cells {
		if !strings.HasPrefix(c.Release, prefix) {
			continue
		}
		cells++
		if c.Outcome == farm.Built {
			built++
		}
	}
	return cells, built
}

// verdict is what an exit status of `dkms build` means. 2.8 exits with 9 where
// 3.x exits with 77.
func verdict(exit int) farm.Outcome {
	switch exit {
	case 0:
		return farm.Built
	case 9, 77:
		return farm.Excluded
	}
	return farm.Failed
}

// compare holds every cell's verdict and modules to those of dkms.
func compare(t *testing.T, r *farm.Report, builds map[string]*dkmsBuild) {
	t.Helper()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\nMODULE\tKERNEL\tKOFARM\tDKMS\tMODULES\tIDENTICAL")
	cells, modules, same := 0, 0, 0
	for _, c := range r.Cells {
		d := builds[cellName(c)]
		if got, want := c.Outcome, verdict(d.Exit); got != want {
			t.Errorf("%s on %s: kofarm says %s (%s: %s), dkms exits with %d\n%s", c.Module, c.Release, got, c.Phase, c.Message, d.Exit, d.Output)
		} else {
			cells++
		}
		identical := compareModules(t, c, d)
		modules, same = modules+len(d.Modules), same+identical
		fmt.Fprintf(w, "%s %s\t%s\t%s\t%d\t%d\t%d\n", c.Module, c.Version, c.Release, c.Outcome, d.Exit, len(d.Modules), identical)
	}
	w.Flush()
	t.Logf("%s%d of %d verdicts are the same, %d of %d modules are byte-identical", table.String(), cells, len(r.Cells), same, modules)
}

// compareModules counts the modules that are the same.
func compareModules(t *testing.T, c farm.CellReport, d *dkmsBuild) int {
	t.Helper()
	same := 0
	got := map[string]string{}
	for _, m := range c.Modules {
		got[m.Name] = m.SHA256
		if d.Modules[m.Name] == m.SHA256 {
			same++
		}
	}
	if !maps.Equal(got, d.Modules) {
		t.Errorf("%s on %s: kofarm made %v, dkms %v", c.Module, c.Release, got, d.Modules)
	}
	return same
}
