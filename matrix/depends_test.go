package matrix

import (
	"strings"
	"testing"
)

// twoKernels are bookworm's newest of 6.1.
const twoKernels = `
kernels: [{suite: bookworm, releases: ">=6.1.0-50 <6.2", flavors: amd64}]
`

func TestBuildDepends(t *testing.T) {
	f := parse(t, `modules:
  - {name: top, version: "1", source: {dir: a}, build-depends: middle}
  - {name: middle, version: "2", source: {dir: b}, build-depends: [low/1]}
  - name: low
    build-depends: [lowest]
    versions: [{version: "1", source: {dir: c}}, {version: "2", source: {dir: d}, build-depends: [low/1]}]
  - {name: lowest, version: "1", source: {dir: e}}
`+twoKernels+`
exclude:
  - {module: low, version: "1", release: 6.1.0-56-amd64, reason: does not build}
include:
  - {module: middle, release: 6.1.0-47-amd64}
`)
	plan, _, err := Expand(f, debian)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"top": "lowest/1 low/1 middle/2", "middle": "lowest/1 low/1", "low 1": "lowest/1", "low 2": "lowest/1 low/1", "lowest": ""}
	for _, c := range plan.Cells {
		name := c.Module.Name
		if name == "low" {
			name += " " + c.Module.Version
		}
		if got := strings.Join(c.Row().BuiltUpon, " "); got != want[name] {
			t.Errorf("%s is built upon %q, want %q", name, got, want[name])
		}
	}
	const cells = `
- top 1 bookworm 6.1.0-56-amd64: low/1, which it is built upon, is excluded: does not build (farm.yaml:12:5)
- middle 2 bookworm 6.1.0-47-amd64: lowest/1, which it is built upon, is not built for this kernel
- middle 2 bookworm 6.1.0-56-amd64: low/1, which it is built upon, is excluded: does not build (farm.yaml:12:5)
- low 1 bookworm 6.1.0-56-amd64: excluded: does not build (farm.yaml:12:5)
- low 2 bookworm 6.1.0-56-amd64: low/1, which it is built upon, is excluded: does not build (farm.yaml:12:5)
`
	var got strings.Builder
	for line := range strings.Lines(lines(plan)) {
		if strings.HasPrefix(line, "-") {
			got.WriteString(line)
		}
	}
	if got.String() != cells[1:] {
		t.Errorf("got\n%swant%s", got.String(), cells)
	}
}

func TestBuildDependsErrors(t *testing.T) {
	f := parse(t, `modules:
  - {name: a, version: "1", source: {dir: a}, build-depends: [zsf, zfs/9, zfs]}
  - {name: b, version: "1", source: {dir: b}, build-depends: [b]}
  - {name: c, version: "1", source: {dir: c}, build-depends: [d]}
  - {name: d, version: "1", source: {dir: d}, build-depends: [e]}
  - {name: e, version: "1", source: {dir: e}, build-depends: [c, d]}
  - {name: zfs, versions: [{version: "1", source: {dir: z}}, {version: "2", source: {dir: y}}]}
`+twoKernels)
	const want = `
farm.yaml:2:63: build-depends: no module of the farm is "zsf" (did you mean "zfs"?)
farm.yaml:2:68: build-depends: zfs has no version "9" (did you mean "zfs/1"?)
farm.yaml:2:75: build-depends: zfs has several versions (give one of zfs/1, zfs/2)
farm.yaml:3:63: build-depends: b needs itself
farm.yaml:4:63: build-depends: c/1, d/1 and e/1 need each other
farm.yaml:5:63: build-depends: d/1 and e/1 need each other
`
	if _, _, err := Expand(f, debian); err == nil || err.Error() != strings.TrimSpace(want) {
		t.Errorf("got\n%v\nwant%s", err, want)
	}
	_, _, err := Parse("farm.yaml", []byte("modules: [{name: a, version: '1', source: {dir: a}, build-depends: [../x, a/b/c]}]\n"+twoKernels))
	if err == nil || strings.Count(err.Error(), "want MODULE or MODULE/VERSION") != 2 {
		t.Errorf("got %v", err)
	}
}
