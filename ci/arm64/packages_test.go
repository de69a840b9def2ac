package arm64_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// packed builds one module for both architectures, in every format.
var packed = farmOf("bookworm", theFive[:1], `{suite: bookworm, arch: [amd64, arm64], flavors: [amd64, arm64], releases: [{latest: 1, of: "6.1.*"}]}`, `
output:
  dkms: {}
  deb: {packages: [modules, meta], repository: {suite: stable, component: main}}
  rpm: {style: kernel-module, repository: {}}
  attest: {}
`)

// TestPackages reads the packages of both architectures with the real tools, and
// has these find each in one repository.
func TestPackages(t *testing.T) {
	dir := t.TempDir()
	r := build(t, dir, rig.Store(t), packed)
	if len(r.Cells) != 2 || r.Counts.Built != 2 {
		t.Fatalf("%+v", r.Counts)
	}
	dist := filepath.Join(dir, "dist")
	for _, c := range r.Cells {
		t.Run(c.Arch, func(t *testing.T) {
			debArch := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[c.Arch]
			deb := fmt.Sprintf("%s-modules-%s_%s_%s.deb", c.Module, c.Release, c.Version, debArch)
			want := fmt.Sprintf("%s-modules-%s %s %s linux-image-%[2]s | linux-image-%[2]s-unsigned", c.Module, c.Release, c.Version, debArch)
			if got := run(t, dist, "dpkg-deb", "-W", "--showformat", "${Package} ${Version} ${Architecture} ${Depends}", deb); got != want {
				t.Errorf("dpkg-deb has %q, want %q", got, want)
			}
			release := strings.ReplaceAll(c.Release, "-", "_")
			rpm := fmt.Sprintf("kernel-module-%s-%s-%s.%s.rpm", c.Module, c.Version, release, c.Arch)
			want = fmt.Sprintf("kernel-module-%s %s %s %s", c.Module, c.Version, release, c.Arch)
			if got := run(t, dist, "rpm", "-qp", "--qf", "%{NAME} %{VERSION} %{RELEASE} %{ARCH}", rpm); got != want {
				t.Errorf("rpm has %q, want %q", got, want)
			}
			loads(t, dist, c)
			aptFinds(t, dist, debArch, c)
			dnfFinds(t, dist, c)
			attests(t, filepath.Join(dist, deb), debArch, c)
		})
	}
}

// loads has dkms load the tarball into trees of its own.
func loads(t *testing.T, dist string, c farm.CellReport) {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, "mkdir", "tree", "source")
	trees := []string{"--dkmstree", filepath.Join(dir, "tree"), "--sourcetree", filepath.Join(dir, "source")}
	tarball := fmt.Sprintf("%s-%s-kernel%s-%s.dkms.tar.gz", c.Module, c.Version, c.Release, c.Arch)
	// dkms exits with 1 where the source is not there; the status tells.
	rig.Run(t, dir, nil, "dkms", append([]string{"ldtarball", filepath.Join(dist, tarball)}, trees...)...)
	want := fmt.Sprintf("%s/%s, %s, %s: built\n", c.Module, c.Version, c.Release, c.Arch)
	if got := run(t, dir, "dkms", append([]string{"status"}, trees...)...); got != want {
		t.Errorf("dkms status: %q, want %q", got, want)
	}
	ko := filepath.Join(dir, "tree", c.Module, c.Version, c.Release, c.Arch, "module", c.Modules[0].Name)
	if got := sum(t, ko); got != c.Modules[0].SHA256 {
		t.Errorf("%s has sha256 %s, want %s", ko, got, c.Modules[0].SHA256)
	}
}

// aptFinds asks the apt of a machine of that architecture for the flavor's
// modules.
func aptFinds(t *testing.T, dist, arch string, c farm.CellReport) {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, "mkdir", "-p", "lists/partial", "cache/archives/partial", "etc/preferences.d")
	rig.Write(t, dir, "status", "")
	list := rig.Write(t, dir, "sources.list", fmt.Sprintf("deb [trusted=yes] file:%s/apt stable main\n", dist))
	var options []string
	for _, o := range []string{"Dir::State=" + dir, "Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status", "Dir::Cache=" + dir + "/cache",
		"Dir::Etc=" + dir + "/etc", "Dir::Etc::sourcelist=" + list, "Dir::Etc::sourceparts=-", "APT::Architecture=" + arch, "APT::Architectures=" + arch,
		"APT::Sandbox::User=root", "Acquire::Languages=none"} {
		options = append(options, "-o", o)
	}
	run(t, dir, "apt-get", append(options, "update")...)
	name := c.Module + "-modules-" + c.Flavor
	out := run(t, dir, "apt-cache", append(options, "show", name, c.Module+"-modules-"+c.Release)...)
	if got := strings.Count(out, "\nArchitecture: "+arch+"\n"); got != 2 {
		t.Errorf("apt for %s shows %d packages, want 2:\n%s", arch, got, out)
	}
	run(t, dir, "apt-get", append(options, "download", name)...)
	if other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[arch]; strings.Contains(run(t, dir, "apt-cache", append(options, "pkgnames")...), c.Module+"-modules-"+other) {
		t.Errorf("apt for %s knows packages for %s", arch, other)
	}
}

// dnfFinds asks dnf for the module's packages.
func dnfFinds(t *testing.T, dist string, c farm.CellReport) {
	t.Helper()
	dir := t.TempDir()
	out := run(t, dir, "dnf", "-q", "--forcearch", c.Arch, "--releasever", "1", "--setopt=reposdir=/nonexistent", "--setopt=cachedir="+dir+"/cache",
		"--setopt=logdir="+dir, "--setopt=persistdir="+dir+"/persist", "--repofrompath", "farm,file://"+dist+"/yum", "--repo", "farm", "repoquery", "--arch", c.Arch, "--qf", "%{name}-%{version}-%{release}.%{arch}")
	want := fmt.Sprintf("kernel-module-%s-%s-%s.%s", c.Module, c.Version, strings.ReplaceAll(c.Release, "-", "_"), c.Arch)
	if strings.TrimSpace(out) != want {
		t.Errorf("dnf for %s finds %q, want %q", c.Arch, out, want)
	}
}

// attests wants the statement on a package to name what it was made from, by the
// architectures that these have.
func attests(t *testing.T, file, arch string, c farm.CellReport) {
	t.Helper()
	statement := run(t, "/", "cat", file+".intoto.json")
	want := []string{`"arch":"` + c.Arch + `"`, "pkg:deb/debian/linux-headers-" + c.Release + "@", "?arch=" + arch + "&"}
	if c.Arch == "aarch64" {
		want = append(want, "pkg:deb/debian/gcc-12-aarch64-linux-gnu@12.2.0-14cross1?arch=amd64&", "pkg:deb/debian/linux-kbuild-6.1@")
	}
	for _, w := range want {
		if !strings.Contains(strings.ReplaceAll(statement, `\u0026`, "&"), w) {
			t.Errorf("the statement on %s does not say %s", filepath.Base(file), w)
		}
	}
}
