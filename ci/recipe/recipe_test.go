// Package recipe_test runs the build recipe on modules made for the purpose, one
// for each directive and each fault, and asks the real dkms about the same ones.
package recipe_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// write writes the module's source to a folder.
func (m module) write(t *testing.T, dir string) {
	t.Helper()
	rig.Write(t, dir, "dkms.conf", m.dkmsConf())
	if m.name != "stub" {
		rig.Write(t, dir, "x.c", "int x;\n")
	}
	for name, text := range m.files {
		name, executable := strings.CutSuffix(name, "!")
		path := rig.Write(t, dir, name, text)
		if executable {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// farmFile builds the modules for one kernel, with limits that the hostile ones
// reach soon.
func farmFile(modules []module) string {
	var b strings.Builder
	b.WriteString("modules:\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "  - name: %s\n    version: \"1.0\"\n    source: {dir: %s-1.0}\n", m.name, m.name)
		if m.more != "" {
			fmt.Fprintf(&b, "    %s\n", m.more)
		}
	}
	b.WriteString("kernels:\n  - suite: bookworm\n    releases: [{latest: 1, of: \"6.1.*\"}]\n    flavors: [amd64]\n")
	b.WriteString("limits: {memory: 512MiB, disk: 64MiB, log: 1MiB, processes: 256, timeout: 2m}\n")
	return b.String()
}

// build builds the modules in dir, and gives the report of each.
func build(t *testing.T, dir string, modules []module, want int) map[string]farm.CellReport {
	t.Helper()
	rig.Write(t, dir, "farm.yaml", farmFile(modules))
	rig.Kofarm(t, want, dir, rig.Store(t), "build")
	data, err := os.ReadFile(filepath.Join(dir, "dist", farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var r farm.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	cells := map[string]farm.CellReport{}
	for _, c := range r.Cells {
		cells[c.Module] = c
	}
	if len(cells) != len(modules) {
		t.Fatalf("%d cells for %d modules", len(cells), len(modules))
	}
	return cells
}

// TestRecipe builds all modules, good ones among bad ones, and compares the
// verdicts with what was expected, and with those of real dkms.
func TestRecipe(t *testing.T) {
	dir := t.TempDir()
	all := modules()
	for _, m := range all {
		m.write(t, filepath.Join(dir, m.name+"-1.0"))
	}
	cells := build(t, dir, all, 1)
	asked := askDKMS(t, dir, cells, all)
	for _, m := range all {
		t.Run(m.name, func(t *testing.T) {
			c := cells[m.name]
			log, err := os.ReadFile(filepath.Join(dir, "dist", c.Log))
			if err != nil {
				t.Fatal(err)
			}
			m.check(t, c, string(log))
			if m.alone == "" {
				m.compare(t, c, asked[m.name])
			}
			if t.Failed() {
				t.Logf("%s %s: %s (dkms %d)\n%s", c.Outcome, c.Phase, c.Message, c.DKMSExit, log)
			}
		})
	}
	good := module{name: "afterwards", conf: kbuildConf, ko: "x", files: kbuild(hello)}
	good.write(t, filepath.Join(dir, good.name+"-1.0"))
	if c := build(t, dir, []module{good}, 0)[good.name]; c.Outcome != farm.Built || !c.Check.OK {
		t.Errorf("afterwards: %s: %s", c.Outcome, c.Message)
	}
}

// check compares a cell's report and log with what the module expects.
func (m module) check(t *testing.T, c farm.CellReport, log string) {
	t.Helper()
	want := farm.Outcome(m.outcome)
	switch {
	case m.outcome == "" && m.phase == "":
		want = farm.Built
	case m.outcome == "":
		want = farm.Failed
	}
	phase := m.phase
	if want == farm.Excluded {
		phase = "exclusion"
	}
	if c.Outcome != want || (c.Phase != phase && phase != "?") {
		t.Errorf("got %s %q, want %s %q", c.Outcome, c.Phase, want, phase)
	}
	for _, part := range []struct{ what, got, want string }{
		{"message", c.Message, m.message}, {"log", log, m.log}, {"first error", c.FirstError, m.first}} {
		if !strings.Contains(part.got, part.want) {
			t.Errorf("the %s does not say %q: %.1000s", part.what, part.want, part.got)
		}
	}
	if want == farm.Built && ((c.Unsteady != "") != (m.unsteady != "") || !strings.Contains(c.Unsteady, m.unsteady)) {
		t.Errorf("unsteady: %q, want %q", c.Unsteady, m.unsteady)
	}
	if want == farm.Built && !slices.Equal(names(c), m.names()) {
		t.Errorf("modules %q, want %q", names(c), m.names())
	}
	if want == farm.Excluded && !strings.Contains(log, c.Message) {
		t.Errorf("the log does not give the reason: %s", log)
	}
}

// names are the names of a cell's modules, without .ko.
func names(c farm.CellReport) []string {
	found := []string{}
	for _, m := range c.Modules {
		found = append(found, strings.TrimSuffix(m.Name, ".ko"))
	}
	return found
}

func (m module) names() []string {
	if m.ko == "" {
		return []string{m.name}
	}
	return strings.Fields(m.ko)
}

// answer is what real dkms said about a module.
type answer struct {
	exit    int
	modules []string // sorted, without .ko
}

// ask runs `dkms build` on each module and prints its exit status and what it
// has made.
const ask = `
release=$1; shift
build=/lib/modules/$release/build
mkdir -p $build/include/config
printf 'CONFIG_MODULES=y\nCONFIG_NET=y\n' > $build/include/config/auto.conf
one() {
	code=0
	dkms build -m $2 -v 1.0 -k $1 -a x86_64 > /tmp/$2.log 2>&1 < /dev/null || code=$?
	echo $2 $code $(ls /var/lib/dkms/$2/1.0/$1/x86_64/module 2> /dev/null | sed 's/\.ko$//')
}
export -f one
printf '%s\n' "$@" | xargs -P 2 -I{} bash -c "one $release {}"
`

// askDKMS has the dkms of Debian trixie, 3.2, build the modules.
func askDKMS(t *testing.T, dir string, cells map[string]farm.CellReport, modules []module) map[string]answer {
	t.Helper()
	root := chroot.Open(t, chroot.Spec{Suite: "trixie", Include: []string{"dkms", "gcc", "make", "patch", "libc6-dev"}}.Make(t))
	args := []string{"-ec", ask, "bash", ""}
	for _, m := range modules {
		if m.alone == "" {
			args = append(args, m.name)
			args[3] = cells[m.name].Release
		}
	}
	root.Overlay(t, "/usr/src", dir)
	res := root.Run(t, "bash", args...)
	if res.Code != 0 {
		t.Fatalf("asking dkms: exit status %d\n%s", res.Code, res.Output)
	}
	answers := map[string]answer{}
	for line := range strings.Lines(res.Output) {
		words := strings.Fields(line)
		if len(words) < 2 {
			t.Fatalf("dkms: %q", line)
		}
		exit, err := strconv.Atoi(words[1])
		if err != nil {
			t.Fatalf("dkms: %q", line)
		}
		answers[words[0]] = answer{exit, words[2:]}
	}
	return answers
}

// compare compares a cell's verdict with that of dkms.
func (m module) compare(t *testing.T, c farm.CellReport, want answer) {
	t.Helper()
	if c.DKMSExit != want.exit {
		t.Errorf("kofarm says that dkms would exit with %d, and it was %d", c.DKMSExit, want.exit)
	}
	got := names(c)
	slices.Sort(got)
	if c.Outcome == farm.Built && !slices.Equal(got, want.modules) {
		t.Errorf("modules %q, dkms made %q", got, want.modules)
	}
}
