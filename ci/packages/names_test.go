package packages_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
)

// module is a module that needs nothing, and its entry in a farm file.
type module struct {
	name, version string
	license       string // MODULE_LICENSE
	more          string // of the entry
}

func (m module) write(t testing.TB, dir string) string {
	t.Helper()
	source := m.name + "-" + m.version
	rig.Write(t, dir, source+"/dkms.conf", fmt.Sprintf("PACKAGE_NAME=%s\nPACKAGE_VERSION=%s\nBUILT_MODULE_NAME[0]=tiny\nDEST_MODULE_LOCATION[0]=/updates\n", m.name, m.version))
	rig.Write(t, dir, source+"/Makefile", "obj-m += tiny.o\n")
	rig.Write(t, dir, source+"/tiny.c", fmt.Sprintf("#include <linux/module.h>\nMODULE_LICENSE(%q);\n", m.license))
	return fmt.Sprintf("  - {source: {dir: %s}%s}\n", source, m.more)
}

// tinyFarm is a farm of modules for Debian's newest 6.1 kernel for clouds.
func tinyFarm(t testing.TB, dir, output string, modules ...module) {
	t.Helper()
	var text strings.Builder
	text.WriteString("modules:\n")
	for _, m := range modules {
		text.WriteString(m.write(t, dir))
	}
	rig.Write(t, dir, "farm.yaml", text.String()+"kernels: [{suite: bookworm, releases: [{latest: 1, of: \"6.1.*\"}], flavors: [cloud-amd64]}]\noutput: "+output+"\n")
}

const (
	allDebs = "{deb: {packages: [modules, meta, dkms, source], repository: {}}}"
	allRPMs = "{rpm: {style: kernel-module, packages: [modules, dkms, source], repository: {}}}"
)

// TestNamesRefused wants an error that says what to do, before anything is built,
// where a format has no room for a name or two modules would share one.
func TestNamesRefused(t *testing.T) {
	for _, tt := range []struct {
		name, output string
		modules      []module
		says         []string
	}{
		{"_ and - are one for deb", allDebs, []module{{name: "foo_bar", version: "1.0"}, {name: "foo-bar", version: "1.0"}},
			[]string{"foo_bar/1.0", "foo-bar/1.0", "would both make the package foo-bar-modules-"}},
		{"of other versions, too", allDebs, []module{{name: "foo_bar", version: "1.0"}, {name: "foo-bar", version: "2.0"}},
			[]string{"foo_bar/1.0", "foo-bar/2.0", "would both make the package foo-bar-modules-"}},
		{"a source package, too", "{deb: {packages: [source]}}", []module{{name: "foo_bar", version: "1.0"}, {name: "foo-bar", version: "2.0"}},
			[]string{"foo_bar/1.0", "foo-bar/2.0", "would both make the package foo-bar-dkms"}},
		{"capitals for deb", allDebs, []module{{name: "Foo", version: "1.0"}, {name: "foo", version: "1.0"}},
			[]string{"Foo/1.0", "foo/1.0", "would both make the package foo-modules-"}},
		{"versions for deb", allDebs, []module{{name: "foo", version: "1_0"}, {name: "foo", version: "1.0"}},
			[]string{"foo/1_0", "foo/1.0", "would both make the package foo-modules-"}},
		{"versions for rpm", allRPMs, []module{{name: "foo", version: "1-0"}, {name: "foo", version: "1_0"}},
			[]string{"foo/1-0", "foo/1_0", "would both make the package kernel-module-foo-1_0-"}},
		{"~ in a name for deb", allDebs, []module{{name: "foo~bar", version: "1.0"}}, []string{"output.deb", `"foo~bar" makes no package name`}},
		{"empty revision for deb", allDebs, []module{{name: "foo", version: "1.0-"}}, []string{"output.deb", `"1.0-"`, "empty revision"}},
		{"kmod and Debian's releases", "{rpm: {}}", []module{{name: "foo", version: "1.0"}},
			[]string{"output.rpm", "-cloud-amd64", "rpm takes one hyphen", `use the style "kernel-module"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tinyFarm(t, dir, tt.output, tt.modules...)
			r := rig.Kofarm(t, 2, dir, rig.Store(t), "build")
			contains(t, r.Stderr, tt.says...)
			if strings.Count(r.Stderr, "\n") != 1 || strings.Contains(r.Stderr, "built") {
				t.Errorf("want one line:\n%s", r.Stderr)
			}
			if _, err := os.Stat(filepath.Join(dir, "dist")); err == nil {
				t.Error("dist was written")
			}
		})
	}
}

// TestKMPNeedsFlavor wants the same for a kernel that has no flavor.
func TestKMPNeedsFlavor(t *testing.T) {
	dir := t.TempDir()
	rig.Write(t, dir, "farm.yaml", vendorFarm(t, "{style: kmp}", vendorKernels(t)[0]))
	r := rig.Kofarm(t, 2, dir, rig.Store(t), "build")
	contains(t, r.Stderr, "output.rpm", "flavor (which the KMP style needs)")
}

// TestNamesMapped has the real tools read what odd names and versions become.
func TestNamesMapped(t *testing.T) {
	dir := t.TempDir()
	tinyFarm(t, dir, strings.TrimSuffix(allDebs, "}")+", "+allRPMs[1:],
		module{name: "Foo_Bar+x", version: "r57", license: "GPL"},
		module{name: "tiny", version: "1.0~rc1_2-3+git", license: "GPL"})
	rig.Kofarm(t, 0, dir, rig.Store(t), "build")
	release := dist.Results(t, filepath.Join(dir, "dist")).Cells[0].Release
	short := strings.ReplaceAll(release, "-", "_")
	for file, want := range map[string]string{
		"foo-bar+x-modules-" + release + "_*.deb": "foo-bar+x-modules-" + release + " 0+r57 amd64",
		"foo-bar+x-dkms_*.deb":                    "foo-bar+x-dkms 0+r57 all",
		"tiny-modules-" + release + "_*.deb":      "tiny-modules-" + release + " 1.0~rc1.2-3+git amd64",
		"tiny-dkms_*.deb":                         "tiny-dkms 1.0~rc1.2-3+git all",
	} {
		if got := run(t, dir, "dpkg-deb", "-W", "--showformat", "${Package} ${Version} ${Architecture}", one(t, dir, file)); got != want {
			t.Errorf("%s: got %s, want %s", file, got, want)
		}
	}
	for file, want := range map[string]string{
		"kernel-module-Foo_Bar+x-*.x86_64.rpm": "kernel-module-Foo_Bar+x r57 " + short,
		"Foo_Bar+x-dkms-*.rpm":                 "Foo_Bar+x-dkms r57 1",
		"kernel-module-tiny-*.x86_64.rpm":      "kernel-module-tiny 1.0~rc1_2_3+git " + short,
		"tiny-dkms-*.noarch.rpm":               "tiny-dkms 1.0~rc1_2_3+git 1",
		"kernel-module-tiny-*.src.rpm":         "kernel-module-tiny 1.0~rc1_2_3+git 1",
	} {
		if got := run(t, dir, "rpm", "-qp", "--qf", "%{NAME} %{VERSION} %{RELEASE}", one(t, dir, file)); got != want {
			t.Errorf("%s: got %s, want %s", file, got, want)
		}
	}
	// dkms still has the module under its own name and version.
	contains(t, run(t, dir, "dpkg-deb", "-c", one(t, dir, "tiny-dkms_*.deb")), "./usr/src/tiny-1.0~rc1_2-3+git/dkms.conf")
	contains(t, run(t, dir, "rpm", "-qpl", one(t, dir, "Foo_Bar+x-dkms-*.rpm")), "/usr/src/Foo_Bar+x-r57/dkms.conf")
	run(t, filepath.Join(dir, "dist"), "dpkg-source", "--no-check", "-x", filepath.Base(one(t, dir, "foo-bar+x-dkms_*.dsc")), filepath.Join(dir, "x"))
}

// TestNoLicense builds a module whose MODULE_LICENSE is empty: neither format
// packages it, unless the farm file gives a license.
func TestNoLicense(t *testing.T) {
	for _, output := range []string{allDebs, allRPMs} {
		dir := t.TempDir()
		tinyFarm(t, dir, output, module{name: "tiny", version: "1.0"}, module{name: "good", version: "1.0", more: ", license: MIT"})
		r := rig.Kofarm(t, 2, dir, rig.Store(t), "build")
		one(t, dir, "*good-*6.1.0*") // what has a license is packed all the same
		contains(t, r.Stderr, "a module of tiny/1.0 on ", "says no license (MODULE_LICENSE)", "in the farm file a license")
		tinyFarm(t, dir, output, module{name: "tiny", version: "1.0", more: ", license: MIT"})
		rig.Kofarm(t, 0, dir, rig.Store(t), "package")
		if output == allRPMs {
			got := run(t, dir, "rpm", "-qp", "--qf", "%{LICENSE}", one(t, dir, "kernel-module-tiny-*.x86_64.rpm"))
			if got != "MIT" {
				t.Errorf("License: %s", got)
			}
			continue
		}
		run(t, dir, "dpkg-deb", "-x", one(t, dir, "tiny-dkms_*.deb"), "x")
		copyright, err := os.ReadFile(filepath.Join(dir, "x/usr/share/doc/tiny-dkms/copyright"))
		if err != nil {
			t.Fatal(err)
		}
		contains(t, string(copyright), "MIT")
	}
}
