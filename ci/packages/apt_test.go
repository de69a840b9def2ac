package packages_test

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/farm"
)

// machine is a clean Debian with what linux-image depends on, and no kernel.
func machine(suite string) chroot.Spec {
	return chroot.Spec{Suite: suite, Include: []string{"kmod", "linux-base", "initramfs-tools"}}
}

// TestApt gives real apt the repository and real kernels: modules come with
// their kernel, a newer kernel's follow, a purge leaves nothing, and what is
// altered on the way is refused.
func TestApt(t *testing.T) {
	for suite, series := range map[string]string{"bookworm": "6.1.*", "trixie": "6.12.*"} {
		t.Run(suite, func(t *testing.T) {
			a := newAptHost(t, suite, series)
			a.publish(t, a.cells[:1])
			a.install(t)
			a.publish(t, a.cells)
			a.refusesAltered(t)
			a.upgrade(t)
			a.purge(t)
		})
	}
}

// aptHost is a machine with the farm's repository and one of kernels.
type aptHost struct {
	suite, dir    string
	farm, kernels *site
	cells         []farm.CellReport // for two kernels, the older first
	root          *chroot.Root
}

func newAptHost(t *testing.T, suite, series string) *aptHost {
	t.Helper()
	a := &aptHost{suite: suite, dir: t.TempDir()}
	archived := archive.Open(t, suite)
	a.cells = build(t, t.TempDir(), a.yaml(strings.Join(archived.Complete(t, series, "cloud-amd64", 2), ", "))).Cells
	if len(a.cells) != 2 {
		t.Fatalf("there are %d cells, want 2", len(a.cells))
	}
	debian := t.TempDir()
	for _, c := range a.cells {
		deb, _ := archived.Deb(t, "linux-image-"+c.Release)
		if err := os.Symlink(deb, filepath.Join(debian, c.Release+".deb")); err != nil {
			t.Fatal(err)
		}
	}
	run(t, debian, "sh", "-ec", "dpkg-scanpackages . > Packages")
	a.farm, a.kernels = serve(t, filepath.Join(a.dir, "dist")), serve(t, debian)
	key, err := os.ReadFile(publicKey(t))
	if err != nil {
		t.Fatal(err)
	}
	a.root = chroot.Open(t, machine(suite).Make(t))
	a.root.Shell(t, `
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*
echo "deb [trusted=yes] $1/ ./" > /etc/apt/sources.list.d/kernels.list
echo "deb [signed-by=/etc/apt/keyrings/farm.asc] $2/apt tested extra" > /etc/apt/sources.list.d/farm.list
echo 'Acquire::Languages "none";' > /etc/apt/apt.conf.d/01test
mkdir -p /etc/apt/keyrings
echo "$3" > /etc/apt/keyrings/farm.asc
find / -xdev -path /proc -prune -o -path /dev -prune -o -print | sort > /before`, a.kernels.url, a.farm.url, string(key))
	return a
}

func (a *aptHost) yaml(releases string) string {
	return fmt.Sprintf(`
modules: [{source: {deb: acpi-call-dkms, suite: %s}}]
kernels: [{suite: %[1]s, releases: [%s], flavors: [cloud-amd64]}]
output:
  deb: {repository: {suite: tested, component: extra, origin: a farm}}
`, a.suite, releases)
}

// publish updates the repository for the kernels.
func (a *aptHost) publish(t *testing.T, cells []farm.CellReport) {
	t.Helper()
	var releases []string
	for _, c := range cells {
		releases = append(releases, c.Release)
	}
	build(t, a.dir, a.yaml(strings.Join(releases, ", "))+signed(t))
}

// apt runs apt-get. Without INITRD=No every kernel would get an initramfs.
func (a *aptHost) apt(t *testing.T, args ...string) chroot.Result {
	t.Helper()
	return a.root.Run(t, "env", append([]string{"INITRD=No", "apt-get", "-q", "-y", "--no-install-recommends", "-o", "APT::Update::Error-Mode=any"}, args...)...)
}

func (a *aptHost) must(t *testing.T, args ...string) string {
	t.Helper()
	r := a.apt(t, args...)
	if r.Code != 0 {
		t.Fatalf("apt-get %q: exit status %d\n%s", args, r.Code, r.Output)
	}
	return r.Output
}

func modulesPackage(c farm.CellReport) string { return c.Module + "-modules-" + c.Release }

const metaPackage = "acpi-call-modules-cloud-amd64"

// install has apt install the older kernel's modules, which brings the kernel.
func (a *aptHost) install(t *testing.T) {
	t.Helper()
	c := a.cells[0]
	a.must(t, "update")
	out := a.must(t, "install", modulesPackage(c))
	contains(t, out, "Setting up linux-image-"+c.Release)
	a.usable(t, c)
	a.must(t, "install", metaPackage)
	contains(t, a.root.Shell(t, `apt-cache policy; apt-cache show "$1"`, modulesPackage(c)), "o=a farm", "n=tested", "c=extra", "Provides: acpi-call-modules")
}

// usable wants a cell's modules where modprobe finds them, fit for their kernel,
// compressed as its own are, and with the bytes that were built.
func (a *aptHost) usable(t *testing.T, c farm.CellReport) {
	t.Helper()
	for _, m := range c.Modules {
		name := strings.TrimSuffix(m.Name, ".ko")
		out := a.root.Shell(t, `
grep "^updates/dkms/$2[.]ko[.xz]*:" "/lib/modules/$1/modules.dep"
modinfo -k "$1" -F vermagic "$2"
file=$(modinfo -k "$1" -F filename "$2")
own=$(find "/lib/modules/$1/kernel/lib" -name '*.ko*' | head -n 1)
[ "${file##*.}" = "${own##*.}" ] || echo "compressed as $file, the kernel's own as $own"
modprobe -S "$1" --show-depends "$2"
dpkg -S "$file"`, c.Release, name)
		contains(t, out, "\n"+c.Release+" SMP", "insmod /lib/modules/"+c.Release+"/updates/dkms/"+name+".ko", modulesPackage(c)+": /lib")
		if strings.Contains(out, "compressed as") {
			t.Error(out)
		}
		found, err := filepath.Glob(a.root.Path("/usr/lib/modules/" + c.Release + "/updates/dkms/" + m.Name + "*"))
		if err != nil || len(found) != 1 || plainSum(t, found[0]) != m.SHA256 {
			t.Errorf("%q, %v: want one with the sha256 %s", found, err, m.SHA256)
		}
	}
}

// refusesAltered alters index, signature and package: apt says which, and
// installs nothing.
func (a *aptHost) refusesAltered(t *testing.T) {
	t.Helper()
	for _, tt := range []struct{ what, path, says string }{
		{"release", "/apt/dists/tested/InRelease", "signature"},
		{"index", "/apt/dists/tested/extra/binary-amd64/*", "Hash Sum mismatch"},
		{"index by hash", "/apt/dists/tested/extra/binary-amd64/by-hash/SHA256/*", "Hash Sum mismatch"},
	} {
		a.farm.alter(tt.path)
		if tt.what == "index" { // for clients that do not know by-hash
			a.root.Shell(t, `echo 'Acquire::By-Hash "no";' > /etc/apt/apt.conf.d/00byhash`)
		}
		r := a.apt(t, "update")
		// apt goes on where it broke off, even with what it has refused.
		a.root.Shell(t, `rm -rf /etc/apt/apt.conf.d/00byhash /var/lib/apt/lists/partial`)
		if r.Code == 0 || !strings.Contains(r.Output, tt.says) {
			t.Errorf("altered %s: exit status %d, want %q\n%s", tt.what, r.Code, tt.says, r.Output)
		}
	}
	a.farm.alter("")
	a.must(t, "update")
	name := modulesPackage(a.cells[1])
	a.farm.alter(path.Join("/apt/pool/extra/a", name, "*.deb"))
	r := a.apt(t, "install", name)
	if r.Code == 0 || !strings.Contains(r.Output, "Hash Sum mismatch") {
		t.Errorf("altered package: exit status %d\n%s", r.Code, r.Output)
	}
	a.farm.alter("")
	if r := a.root.Run(t, "dpkg", "-s", name); r.Code == 0 {
		t.Errorf("apt has installed an altered package:\n%s", r.Output)
	}
}

// upgrade upgrades the meta package, which brings the newer kernel's modules and
// with them the kernel; those of the older one stay.
func (a *aptHost) upgrade(t *testing.T) {
	t.Helper()
	a.must(t, "update")
	contains(t, a.must(t, "dist-upgrade"), "Setting up linux-image-"+a.cells[1].Release)
	for _, c := range a.cells {
		a.usable(t, c)
	}
}

// purge removes one kernel with all that is for it, then the other's modules:
// then their kernel is as it was without them.
func (a *aptHost) purge(t *testing.T) {
	t.Helper()
	older, newer := a.cells[0], a.cells[1]
	a.must(t, "purge", "linux-image-"+older.Release)
	if r := a.root.Run(t, "ls", "-lR", "/lib/modules/"+older.Release); r.Code == 0 {
		t.Errorf("left of %s:\n%s", older.Release, r.Output)
	}
	a.usable(t, newer)
	a.must(t, "purge", metaPackage, modulesPackage(newer))
	out := a.root.Shell(t, `
find / -xdev \( -path /proc -o -path /dev -o -path /var/cache/apt \) -prune -o -iname '*acpi*call*' -print | grep -vxFf /before || :
find /lib/modules/ -path '*/updates*'
grep -rl acpi_call /lib/modules/ || :
dpkg-query -W '*acpi-call*' || :`)
	if out = strings.TrimPrefix(out, "dpkg-query: no packages found matching *acpi-call*\n"); out != "" {
		t.Errorf("left after the purge:\n%s", out)
	}
	if r := a.root.Run(t, "modinfo", "-k", newer.Release, "acpi_call"); r.Code != 1 {
		t.Errorf("modinfo still finds the module:\n%s", r.Output)
	}
	a.must(t, "purge", "linux-image-"+newer.Release)
	if r := a.root.Run(t, "find", "/lib/modules"); r.Code == 0 { // linux-image brought it
		t.Errorf("left of %s:\n%s", newer.Release, r.Output)
	}
}
