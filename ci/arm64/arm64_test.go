// Package arm64_test builds modules for Debian's arm64 kernels on a machine of
// another architecture: the same bytes on every runtime, and those that make
// gives by hand with Debian's cross compiler.
package arm64_test

import (
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers and chroots: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// farmOf is a farm file that builds modules of Debian's for kernels.
func farmOf(suite string, modules []string, kernels, more string) string {
	var b strings.Builder
	b.WriteString("modules:\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "  - source: {deb: %s-dkms, suite: %s}\n", m, suite)
	}
	return b.String() + "kernels:\n  - " + kernels + "\n" + more
}

// theFive are Debian's modules that are built.
var theFive = []string{"acpi-call", "v4l2loopback", "dm-writeboost", "digimend", "gost-crypto"}

// The farms. That of bookworm has one module for both architectures, too.
var (
	bookworm = farmOf("bookworm", theFive, `{suite: bookworm, arch: [amd64, arm64], flavors: [amd64, arm64], releases: [{latest: 1, of: "6.1.*"}]}`,
		"exclude: [{arch: amd64, module: \"[!a]*\"}]\n")
	trixie = farmOf("trixie", theFive, `{suite: trixie, arch: arm64, flavors: [arm64], releases: [{latest: 1, of: "6.12.*"}]}`, "")
	sid    = farmOf("sid", []string{"acpi-call", "v4l2loopback", "ddcci"}, `{suite: sid, arch: arm64, flavors: [arm64]}`, "archives: {debian: {allow-expired: [sid]}}\n")
)

// build builds a farm file in dir on a store, and gives its results.
func build(t *testing.T, dir, store, file string, args ...string) *farm.Report {
	t.Helper()
	rig.Write(t, dir, "farm.yaml", file)
	rig.Kofarm(t, 0, dir, store, append([]string{"build"}, args...)...)
	return dist.Results(t, filepath.Join(dir, "dist"))
}

// run runs a command, which has to succeed, and gives its output.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	r := rig.Run(t, dir, []string{"LC_ALL=C"}, name, args...)
	if r.Code != 0 {
		t.Fatalf("%s %q: exit status %d\n%s%s", name, args, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// TestVerdicts builds for three series of kernels. Whether a module fits its
// kernel is also asked of the ELF header and of modinfo.
func TestVerdicts(t *testing.T) {
	for _, tt := range []struct {
		suite, file, series, compiler string
		cells                         int
	}{
		{"bookworm", bookworm, "6.1.", "aarch64-linux-gnu-gcc-12 ", 5},
		{"trixie", trixie, "6.12.", "aarch64-linux-gnu-gcc-14 ", 5},
		{"sid", sid, "7.", "aarch64-linux-gnu-gcc-", 3},
	} {
		t.Run(tt.suite, func(t *testing.T) {
			dir := t.TempDir()
			r := build(t, dir, rig.Store(t), tt.file)
			var table strings.Builder
			w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "\nMODULE\tKERNEL\tARCH\tVERDICT\tMODULES\tCOMPILER")
			cells := 0
			for _, c := range r.Cells {
				if c.Excluded || c.Arch != "aarch64" {
					continue
				}
				cells++
				fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\t%d\t%s\n", c.Module, c.Version, c.Release, c.Arch, c.Outcome, len(c.Modules), c.Compiler)
				if c.Outcome != farm.Built || c.Check == nil || !c.Check.OK || len(c.Modules) == 0 {
					t.Errorf("%s on %s: %s %s %s, check %+v", c.Module, c.Release, c.Outcome, c.Message, c.FirstError, c.Check)
				}
				if !strings.HasPrefix(c.Release, tt.series) || !strings.HasPrefix(c.Compiler, tt.compiler) {
					t.Errorf("%s on %s by %s", c.Module, c.Release, c.Compiler)
				}
				wantModules(t, dir, c)
			}
			w.Flush()
			t.Log(table.String())
			if cells != tt.cells {
				t.Errorf("%d cells for arm64, want %d", cells, tt.cells)
			}
		})
	}
}

// wantModules looks into the tarball of a cell.
func wantModules(t *testing.T, dir string, c farm.CellReport) {
	t.Helper()
	tarball := fmt.Sprintf("%s-%s-kernel%s-aarch64.dkms.tar.gz", c.Module, c.Version, c.Release)
	if !slices.Contains(c.Files, tarball) {
		t.Errorf("%s: no %s in %q", c.Module, tarball, c.Files)
		return
	}
	tree := t.TempDir()
	run(t, tree, "tar", "-xf", filepath.Join(dir, "dist", tarball))
	for _, m := range c.Modules {
		file := filepath.Join(tree, "dkms_main_tree", c.Release, "aarch64/module", m.Name)
		f, err := elf.Open(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if f.Machine != elf.EM_AARCH64 || f.Section(".debug_info") != nil {
			t.Errorf("%s is for %s, its debug info %v", m.Name, f.Machine, f.Section(".debug_info"))
		}
		f.Close()
		vermagic := strings.TrimSpace(run(t, tree, "modinfo", "-F", "vermagic", file))
		crcs := strings.HasPrefix(c.Release, "6.") // sid's kernels have none
		if !strings.HasPrefix(vermagic, c.Release+" SMP ") || !strings.HasSuffix(vermagic, " aarch64") || strings.Contains(vermagic, " modversions ") != crcs {
			t.Errorf("%s: vermagic %q", m.Name, vermagic)
		}
	}
}

// TestRuntimes builds on Docker what the embedded runtime has built.
func TestRuntimes(t *testing.T) {
	common, dir := rig.Store(t), t.TempDir()
	file := strings.Replace(bookworm, "arch: [amd64, arm64]", "arch: arm64", 1)
	file = strings.Replace(strings.Replace(file, "flavors: [amd64, arm64]", "flavors: [arm64]", 1), "exclude:", "# exclude:", 1)
	want := modules(build(t, dir, common, file, "--runtime", "embedded"))
	own := filepath.Join(dir, "store")
	rig.Clone(t, common, own, "blobs", "cache", "refs/layer", "refs/symvers")
	t.Setenv("DOCKER_HOST", "unix:///run/kofarm-test/docker.sock")
	r := build(t, t.TempDir(), own, file, "--runtime", "docker")
	if r.Counts.Cached != 0 || r.Counts.Built != 5 {
		t.Errorf("counts: %+v", r.Counts)
	}
	if got := modules(r); !maps.Equal(got, want) || len(got) < 5 {
		t.Errorf("docker made %v\nthe embedded runtime %v", got, want)
	}
}

// modules are the sha256 of all modules of arm64 cells.
func modules(r *farm.Report) map[string]string {
	sums := map[string]string{}
	for _, c := range r.Cells {
		for _, m := range c.Modules {
			if c.Arch == "aarch64" {
				sums[c.Module+" "+c.Release+" "+m.Name] = m.SHA256
			}
		}
	}
	return sums
}

// sum is a file's sha256.
func sum(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sha256sum", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out[:64])
}
