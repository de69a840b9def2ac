package matrix

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// debian is a small catalogue in the shape of Debian's archive, in no order.
var debian = slices.Concat(
	archive("trixie", "6.12.117+deb13", "6.12.107+deb13", "6.12.115+deb13.1", "6.12.115+deb13"),
	archive("bookworm", "6.1.0-47", "6.1.0-56", "6.1.0-9", "6.1.0-50", "6.12.117+deb12"),
	archive("bookworm-backports", "6.12.95+deb12", "6.12.117+deb12"),
	archive("sid", "7.2.13+deb14"),
)

// archive makes the kernels of a suite: three flavors of amd64 and two of arm64 for every ABI.
func archive(suite string, abis ...string) []Kernel {
	var list []Kernel
	for _, abi := range abis {
		for _, flavor := range []string{"rt-amd64", "amd64", "cloud-amd64", "arm64", "cloud-arm64"} {
			release := abi + "-" + flavor
			list = append(list, Kernel{
				Release: release, Flavor: flavor, Arch: flavor[len(flavor)-5:], Distribution: "debian", Suite: suite,
				Package: "linux-headers-" + release, Version: "1",
			})
		}
	}
	for i := range list {
		list[i].Arch, _ = kernel.CanonicalArch(list[i].Arch)
	}
	return list
}

const modules = `modules:
  - {name: foo, version: "1.0", source: {dir: foo}}
  - {name: foo, version: "2.0", source: {dir: foo2}}
  - {name: bar, version: "1.0", source: {dir: bar}}
`

// lines renders a plan for comparison: a line for every cell.
func lines(p *Plan) string {
	var b strings.Builder
	for _, c := range p.Cells {
		state := "+"
		if c.Excluded {
			state = "-"
		}
		fmt.Fprintf(&b, "%s %s %s %s %s: %s\n", state, c.Module.Name, c.Module.Version, c.Kernel.Suite, c.Kernel.Release, c.Why)
	}
	return b.String()
}

// kernels renders the kernels of a plan as SUITE/RELEASE.
func kernels(p *Plan) string {
	var list []string
	for _, k := range p.Kernels {
		list = append(list, k.Suite+"/"+k.Release)
	}
	return strings.Join(list, " ")
}

func TestExpandSelects(t *testing.T) {
	for _, tt := range []struct{ name, kernels, want string }{
		{"default", `{suite: trixie}`,
			"trixie/6.12.117+deb13-amd64 trixie/6.12.117+deb13-cloud-amd64 trixie/6.12.117+deb13-rt-amd64"},
		{"exact", `{suite: bookworm, releases: 6.1.0-50-amd64}`, "bookworm/6.1.0-50-amd64"},
		{"abi", `{suite: bookworm, releases: 6.1.0-50, flavors: "*cloud*"}`, "bookworm/6.1.0-50-cloud-amd64"},
		{"glob", `{suite: bookworm, releases: "6.1.*", flavors: amd64}`,
			"bookworm/6.1.0-9-amd64 bookworm/6.1.0-47-amd64 bookworm/6.1.0-50-amd64 bookworm/6.1.0-56-amd64"},
		{"range", `{suite: bookworm, releases: [">=6.1.0-50 <6.2"], flavors: [amd64]}`,
			"bookworm/6.1.0-50-amd64 bookworm/6.1.0-56-amd64"},
		{"latest", `{suites: [trixie, bookworm], releases: {latest: 2}, flavors: [amd64]}`,
			"trixie/6.12.115+deb13.1-amd64 trixie/6.12.117+deb13-amd64 bookworm/6.1.0-56-amd64 bookworm/6.12.117+deb12-amd64"},
		{"latest of", `{suite: bookworm, releases: {latest: 1, of: "6.1.*"}, flavors: [amd64, rt-amd64]}`,
			"bookworm/6.1.0-56-amd64 bookworm/6.1.0-56-rt-amd64"},
		{"union", `{suite: bookworm, releases: [6.1.0-9-amd64, {latest: 1, of: "<6.2"}, ">=6.12"], flavors: [amd64]}`,
			"bookworm/6.1.0-9-amd64 bookworm/6.1.0-56-amd64 bookworm/6.12.117+deb12-amd64"},
		{"arch", `{suite: sid, arch: [arm64, x86_64]}`,
			"sid/7.2.13+deb14-amd64 sid/7.2.13+deb14-arm64 sid/7.2.13+deb14-cloud-amd64 sid/7.2.13+deb14-cloud-arm64 sid/7.2.13+deb14-rt-amd64"},
		{"first suite wins", `{suites: [bookworm-backports, bookworm], releases: "6.12.117*", flavors: [amd64]}`,
			"bookworm-backports/6.12.117+deb12-amd64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, modules+"kernels: ["+tt.kernels+"]\n")
			plan, _, err := Expand(f, debian)
			if err != nil {
				t.Fatal(err)
			}
			if got := kernels(plan); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			if len(plan.Cells) != 3*len(plan.Kernels) {
				t.Errorf("got %d cells, want %d", len(plan.Cells), 3*len(plan.Kernels))
			}
		})
	}
}

func TestExpandRules(t *testing.T) {
	for _, tt := range []struct{ name, rules, want string }{
		{"exclude", `
exclude:
  - {module: foo, version: "1.*", release: "6.1.0-56-amd64", reason: does not build}
  - {module: [bar], arch: amd64}
`, `
+ foo 1.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
- foo 1.0 bookworm 6.1.0-56-amd64: excluded: does not build (farm.yaml:8:5)
+ foo 2.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
+ foo 2.0 bookworm 6.1.0-56-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
- bar 1.0 bookworm 6.1.0-50-amd64: excluded by rule (farm.yaml:9:5)
- bar 1.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:9:5)
`},
		{"include wins", `
exclude:
  - {version: "1.0"}
include:
  - {module: bar, release: ">=6.1.0-56 <6.2", flavor: amd64, suite: bookworm, arch: x86_64}
`, `
- foo 1.0 bookworm 6.1.0-50-amd64: excluded by rule (farm.yaml:8:5)
- foo 1.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:8:5)
+ foo 2.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
+ foo 2.0 bookworm 6.1.0-56-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
- bar 1.0 bookworm 6.1.0-50-amd64: excluded by rule (farm.yaml:8:5)
+ bar 1.0 bookworm 6.1.0-56-amd64: included by rule (farm.yaml:10:5)
`},
		{"include adds", `
exclude:
  - {module: foo}
include:
  - {module: foo, version: "2.0", release: 6.1.0-47-amd64, reason: the oldest in use}
  - {module: bar, release: "7.*", suite: sid, flavor: cloud-amd64}
`, `
- foo 1.0 bookworm 6.1.0-50-amd64: excluded by rule (farm.yaml:8:5)
- foo 1.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:8:5)
+ foo 2.0 bookworm 6.1.0-47-amd64: included: the oldest in use (farm.yaml:10:5)
- foo 2.0 bookworm 6.1.0-50-amd64: excluded by rule (farm.yaml:8:5)
- foo 2.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:8:5)
+ bar 1.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
+ bar 1.0 bookworm 6.1.0-56-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
+ bar 1.0 sid 7.2.13+deb14-cloud-amd64: included by rule (farm.yaml:11:5)
`},
		{"include without release brings back", `
exclude: [{release: "*-56-*"}]
include: [{module: bar}]
`, `
+ foo 1.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
- foo 1.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:7:11)
+ foo 2.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
- foo 2.0 bookworm 6.1.0-56-amd64: excluded by rule (farm.yaml:7:11)
+ bar 1.0 bookworm 6.1.0-50-amd64: selected by ">=6.1.0-50 <6.2" (farm.yaml:5:39)
+ bar 1.0 bookworm 6.1.0-56-amd64: included by rule (farm.yaml:8:11)
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, modules+`kernels: [{suite: bookworm, releases: ">=6.1.0-50 <6.2", flavors: [amd64]}]`+"\n"+tt.rules)
			plan, warnings, err := Expand(f, debian)
			if err != nil || len(warnings) > 0 {
				t.Fatal(warnings, err)
			}
			if got, want := lines(plan), strings.TrimPrefix(tt.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			included := 0
			for range plan.Included() {
				included++
			}
			if want := strings.Count("\n"+lines(plan), "\n+"); included != want {
				t.Errorf("got %d included cells, want %d", included, want)
			}
		})
	}
}

func TestExpandErrors(t *testing.T) {
	for _, tt := range []struct{ name, farm, want string }{
		{"selector", `
kernels:
  - suite: bookworm
    flavors: [amd64]
    releases: [6.1.0-57-amd64, "5.*", ">=7", {latest: 1, of: "6.2.*"}, 6.1.0-56-rt-amd64, 6.1.0-50]
`, `
farm.yaml:9:16: no kernel matches "6.1.0-57-amd64" in bookworm (nearest: 6.1.0-47-amd64, 6.1.0-50-amd64, 6.1.0-56-amd64)
farm.yaml:9:32: no kernel matches "5.*" in bookworm (there are 6.1.0-9-amd64 to 6.12.117+deb12-amd64)
farm.yaml:9:39: no kernel matches ">=7" in bookworm (there are 6.1.0-9-amd64 to 6.12.117+deb12-amd64)
farm.yaml:9:46: no kernel matches latest: 1 of "6.2.*" in bookworm (there are 6.1.0-9-amd64 to 6.12.117+deb12-amd64)
farm.yaml:9:72: no kernel matches "6.1.0-56-rt-amd64" in bookworm (flavors leaves out 6.1.0-56-rt-amd64)
`},
		{"suite", `kernels: [{suites: [bokworm, sid]}]`,
			`farm.yaml:5:21: debian has no kernels in suite "bokworm" (did you mean "bookworm"?)`},
		{"arch and flavor", `kernels: [{suites: [sid], arch: [riscv64, x86_64], flavors: [cloud-amd46, generic, "*"]}]`, `
farm.yaml:5:34: no kernel has arch "riscv64" in sid (there are aarch64 and x86_64)
farm.yaml:5:62: no kernel has flavor "cloud-amd46" in sid (did you mean "cloud-amd64"?)
farm.yaml:5:75: no kernel has flavor "generic" in sid (there are amd64, cloud-amd64 and rt-amd64)
`},
		{"rules", `
kernels: [{suite: sid}]
exclude: [{module: fop}, {module: "b*z"}, {suite: [sid, sdi]}, {distribution: debain}]
include:
  - {module: baar}
  - {module: bar, release: 7.2.14+deb14-amd64}
  - {module: bar, flavor: cloud}
  - {module: bar, suite: trixie, arch: arm64, release: "7.*"}
  - {module: foo, version: "3.0"}
`, `
farm.yaml:7:20: no module "fop" (did you mean "foo"?)
farm.yaml:7:35: no module "b*z" (did you mean "bar"?)
farm.yaml:7:57: no suite "sdi" (did you mean "sid"?)
farm.yaml:7:79: no distribution "debain" (did you mean "debian"?)
farm.yaml:9:14: no module "baar" (did you mean "bar"?)
farm.yaml:10:5: include matches no kernel (no kernel has release "7.2.14+deb14-amd64"; nearest: 7.2.13+deb14-amd64, 7.2.13+deb14-arm64, 7.2.13+deb14-rt-amd64)
farm.yaml:11:5: include matches no kernel (nothing has flavor "cloud"; there are amd64, arm64, cloud-amd64, cloud-arm64 and rt-amd64)
farm.yaml:12:5: include matches no kernel (its axes match, but not together)
farm.yaml:13:5: include matches no kernel (nothing has version "3.0"; did you mean "1.0"?)
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := parse(t, modules+tt.farm)
			plan, _, err := Expand(f, debian)
			if plan != nil || err == nil {
				t.Fatalf("got %v, %v, want an error", plan, err)
			}
			if got, want := err.Error(), strings.TrimSpace(tt.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestExpectWarnings(t *testing.T) {
	f := parse(t, `modules:
  - source: {dir: foo}
    name: foo
    version: "1.0"
    test: {expect: [{verdict: rejected, release: "7.9.*"}, {verdict: failed, release: "6.1.*"}, {verdict: hung, flavor: "cloud-*"}]}
kernels: [{suite: bookworm, releases: "6.1.*", flavors: [amd64]}]
`)
	_, warnings, err := Expand(f, debian)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.String())
	}
	want := []string{"farm.yaml:5:21: warning: expect matches no kernel", "farm.yaml:5:97: warning: expect matches no kernel"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestExpandWarnings(t *testing.T) {
	f := parse(t, modules+`
kernels:
  - {suites: [bookworm, trixie], releases: "6.1.*", arch: [x86_64, aarch64], flavors: [amd64]}
  - {release: 6.1.0-56-amd64, headers: h}
exclude: [{module: foo, flavor: rt-amd64}, {release: "6.1.*", suite: trixie}, {version: "1.O"}, {release: ">=7"}]
include: [{module: bar}]
`)
	_, warnings, err := Expand(f, debian)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.String())
	}
	want := []string{
		`farm.yaml:7:25: warning: no kernel of suite "trixie" is chosen`,
		`farm.yaml:7:68: warning: no kernel of arch "aarch64" is chosen`,
		`farm.yaml:8:5: warning: kernel 6.1.0-56-amd64 of x86_64 is not used: there is one already (selected by "6.1.*" (farm.yaml:7:44))`,
		`farm.yaml:9:11: warning: exclude matches no cell (nothing has flavor "rt-amd64"; there is amd64)`,
		`farm.yaml:9:44: warning: exclude matches no cell (nothing has suite "trixie"; there is bookworm)`,
		`farm.yaml:9:79: warning: exclude matches no cell (nothing has version "1.O"; did you mean "1.0"?)`,
		`farm.yaml:9:97: warning: exclude matches no cell (no kernel has release ">=7"; there are 6.1.0-9-amd64 to 6.1.0-56-amd64)`,
		`farm.yaml:10:11: warning: include changes nothing: its cells are there and not excluded`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestExpandCustomKernel(t *testing.T) {
	f := parse(t, modules+`
kernels:
  - {release: 6.1.0-56-amd64, headers: h}
  - {suite: bookworm, releases: 6.1.0-56, flavors: [amd64]}
  - {release: 6.5.0-lab, headers: [a, b.deb]}
`)
	plan, _, err := Expand(f, debian)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := kernels(plan), "bookworm/6.1.0-56-amd64 bookworm/6.5.0-lab"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if k := plan.Kernels[0]; k.Custom == nil || k.Package != "" {
		t.Errorf("got %+v, want the first entry's kernel", k)
	}
	if k := plan.Kernels[1]; k.Flavor != "lab" || !slices.Equal(k.Custom.Headers, []string{"a", "b.deb"}) {
		t.Errorf("got %+v", k)
	}
	if got, want := plan.Cells[1].Why, "kernel of one's own (farm.yaml:9:5)"; got != want {
		t.Errorf("got why %q, want %q", got, want)
	}
}

func TestExpandModuleNames(t *testing.T) {
	f := parse(t, `
modules:
  - source: {deb: acpi-call-dkms}
  - {name: foo, source: {dir: foo}}
  - {name: bar, version: "1", source: {dir: bar}}
  - source: {dir: bar}
kernels: [{suite: sid}]
`)
	f.Modules[0].Version, f.Modules[1].Version = "1", "../1"
	f.Modules[3].Name, f.Modules[3].Version = "bar", "1"
	_, _, err := Expand(f, debian)
	want := strings.TrimSpace(`
farm.yaml:3:5: the name of the module from deb acpi-call-dkms is not known (its source does not tell: give name)
farm.yaml:4:5: version "../1": want a letter or digit, then letters, digits and ._+~-
farm.yaml:6:5: module bar 1 is given twice (first at 5:5)
`)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestExpandRefusesCatalogue(t *testing.T) {
	f := parse(t, modules+"kernels: [{suite: sid}]")
	for _, k := range []Kernel{
		{Release: "../6.1", Arch: "x86_64", Distribution: "debian", Suite: "sid"},
		{Release: "6.1.0-1-amd64", Arch: "sparc", Distribution: "debian", Suite: "sid"},
	} {
		if _, _, err := Expand(f, []Kernel{k}); err == nil {
			t.Errorf("%+v is accepted", k)
		}
	}
}

func TestExpandIsStable(t *testing.T) {
	farm := modules + `
kernels: [{suites: [trixie, bookworm, bookworm-backports, sid], releases: "*", arch: [x86_64, aarch64]}]
exclude: [{module: foo, suite: sid}]
`
	want, _, err := Expand(parse(t, farm), debian)
	if err != nil {
		t.Fatal(err)
	}
	backwards := slices.Clone(debian)
	slices.Reverse(backwards)
	got, _, err := Expand(parse(t, farm), backwards)
	if err != nil {
		t.Fatal(err)
	}
	if lines(got) != lines(want) || len(got.Cells) == 0 {
		t.Error("the order of the catalogue shows in the plan")
	}
	if !reflect.DeepEqual(got.Kernels, want.Kernels) {
		t.Error("the order of the catalogue shows in the plan's kernels")
	}
}

func TestCellJSON(t *testing.T) {
	f := parse(t, modules+"kernels: [{suite: sid, flavors: [cloud-amd64]}]")
	plan, _, err := Expand(f, debian)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(plan.Cells[0])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"module":"foo","version":"1.0","release":"7.2.13+deb14-cloud-amd64","flavor":"cloud-amd64","arch":"x86_64",` +
		`"distribution":"debian","suite":"sid","excluded":false,"why":"selected by latest: 1 (farm.yaml:5:11)"}`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// large is a farm of 100,000 cells with rules, and its catalogue.
func large(tb testing.TB) (*Farm, []Kernel) {
	var b strings.Builder
	b.WriteString("modules:\n")
	for i := range 1000 {
		fmt.Fprintf(&b, "  - {name: m%d, version: \"1.%d\", source: {dir: m}}\n", i/10, i)
	}
	b.WriteString("kernels: [{suite: bookworm, releases: \"*\", flavors: [amd64, cloud-amd64]}]\nexclude:\n")
	for i := range 50 {
		fmt.Fprintf(&b, "  - {module: \"m%d*\", release: \"6.1.0-%d*\"}\n", i%9, i)
	}
	b.WriteString("include:\n  - {module: m1, release: \"6.1.0-1*\"}\n")
	f, _, err := Parse("farm.yaml", []byte(b.String()))
	if err != nil {
		tb.Fatal(err)
	}
	var abis []string
	for i := range 50 {
		abis = append(abis, fmt.Sprintf("6.1.0-%d", i))
	}
	return f, archive("bookworm", abis...)
}

// TestExpandMemory holds that 100,000 cells are one allocation and not many: what Expand allocates in
// total, garbage included, is a fraction of the 300 MB that a farm of this size may take.
func TestExpandMemory(t *testing.T) {
	const maxBytes, maxAllocs = 32 << 20, 50_000
	f, catalogue := large(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	plan, _, err := Expand(f, catalogue)
	runtime.ReadMemStats(&after)
	if err != nil || len(plan.Cells) < 100_000 {
		t.Fatal(plan, err)
	}
	bytes, allocs := after.TotalAlloc-before.TotalAlloc, after.Mallocs-before.Mallocs
	t.Logf("%d cells: %d KiB in %d allocations", len(plan.Cells), bytes/1024, allocs)
	if bytes > maxBytes || allocs > maxAllocs {
		t.Errorf("got %d bytes in %d allocations, want at most %d in %d", bytes, allocs, maxBytes, maxAllocs)
	}
}

func TestExpandRefusesTooMany(t *testing.T) {
	f, catalogue := large(t)
	for i := range 9000 {
		f.Modules = append(f.Modules, &ModuleVersion{Name: fmt.Sprintf("x%d", i), Version: "1", Source: Source{Dir: "x"}})
	}
	f.Modules = append(f.Modules, &ModuleVersion{Name: "y", Version: "1", Source: Source{Dir: "y"}})
	_, _, err := Expand(f, catalogue)
	if err == nil || !strings.Contains(err.Error(), "are more than 1000000 cells") {
		t.Errorf("got %v", err)
	}
}

func BenchmarkExpand(b *testing.B) {
	f, catalogue := large(b)
	b.ReportAllocs()
	for b.Loop() {
		plan, _, err := Expand(f, catalogue)
		if err != nil || len(plan.Cells) < 100_000 {
			b.Fatal(plan, err)
		}
	}
}
