package packages_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/farm"
)

// workshop is a machine to build packages on, Debian's and RPMs, without dkms.
var workshop = chroot.Spec{Suite: "bookworm", Include: []string{"build-essential", "kmod", "libelf1", "patch", "rpm"}}

// put copies a file of the outside into a folder of the chroot, and gives its
// path there.
func put(t testing.TB, root *chroot.Root, file, dir string) string {
	t.Helper()
	root.Shell(t, `mkdir -p "$1"`, dir)
	from, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(dir, filepath.Base(file))
	to, err := os.Create(root.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSourceRPM rebuilds the source RPM with real rpmbuild against kernel-devel
// as installed: for a vendor's kernel and for one of a target board. The package
// says what kofarm's own says, and installs.
func TestSourceRPM(t *testing.T) {
	kernels := vendorKernels(t)
	dir := t.TempDir()
	build(t, dir, vendorFarm(t, "{style: kernel-module, packages: [modules, source]}", kernels...))
	root := chroot.Open(t, workshop.Make(t))
	src := put(t, root, one(t, dir, "kernel-module-acpi-call-1.2.2-1.src.rpm"), "/in")
	for i, defines := range []string{
		`--define "kernelversion 6.1.192" --define "kernelrpmrelease 56" --define "targetboard host108"`,
		`--define "kernelversion 6.1.192" --define "kernelrpmrelease 57.host108"`,
	} {
		k := kernels[i]
		for _, rpm := range []string{k.Core, k.Devel} {
			root.Shell(t, `rpm --quiet -i --nodeps "$1" && rm "$1"`, put(t, root, rpm, "/in"))
		}
		out := root.Shell(t, "rpmbuild --rebuild --target x86_64 "+defines+` "$1" 2>&1`, src)
		name := fmt.Sprintf("kernel-module-acpi-call-1.2.2-6.1.192_%d.host108.x86_64.rpm", 56+i)
		rebuilt := "/root/rpmbuild/RPMS/x86_64/" + name
		if r := root.Run(t, "test", "-e", rebuilt); r.Code != 0 {
			t.Fatalf("no %s:\n%s", rebuilt, out)
		}
		own := put(t, root, one(t, dir, name), "/in")
		const query = `rpm -qp --nosignature --qf '%{NAME} %{VERSION} %{ARCH} %{LICENSE} %{SUMMARY}\n%{POSTIN}\n%{POSTUN}\n[%{FILENAMES} %{FILEMODES:octal}\n][%{REQUIRENEVRS}\n]' "$1"`
		if got, want := root.Shell(t, query, rebuilt), root.Shell(t, query, own); got != want {
			t.Errorf("rebuilt:\n%s\nkofarm's:\n%s", got, want)
		}
		got := root.Shell(t, `rpm -i --nodeps "$1"; modinfo -k "$2" acpi_call; modprobe -S "$2" --show-depends acpi_call; rpm -V --nodeps "$(rpm -qp "$1")"`, rebuilt, k.Release)
		contains(t, got, k.Release+" SMP", "insmod /lib/modules/"+k.Release+"/extra/acpi-call/acpi_call.ko")
	}
}

// TestSourceDeb has real dpkg-buildpackage make of the source package what kofarm
// packages itself. gzip compresses another way, and dpkg-gencontrol counts
// DEBIAN's files too.
func TestSourceDeb(t *testing.T) {
	dir := t.TempDir()
	build(t, dir, debianFarm("  deb: {packages: [dkms, source]}\n"))
	root := chroot.Open(t, workshop.Make(t))
	for _, name := range []string{"acpi-call-dkms_1.2.2.tar.xz", "acpi-call-dkms_1.2.2.dsc", "acpi-call-dkms_1.2.2_all.deb"} {
		put(t, root, one(t, dir, name), "/in")
	}
	root.Shell(t, `
mkdir /out; cd /out
dpkg-source -x /in/acpi-call-dkms_1.2.2.dsc tree
cd tree
dpkg-buildpackage -us -uc > /out/log 2>&1 || { cat /out/log; exit 1; }`)
	const describe = `
dpkg-deb -f "$1" | grep -v ^Installed-Size:
dpkg-deb -c "$1" | awk '/changelog.gz/ { $3 = "" } { print }'
rm -rf /tmp/x
dpkg-deb -R "$1" /tmp/x
cd /tmp/x
gunzip usr/share/doc/*/changelog.gz
find . -type f ! -path ./DEBIAN/control ! -path ./DEBIAN/md5sums -exec sha256sum {} + | sort`
	got := root.Shell(t, describe, "/out/acpi-call-dkms_1.2.2_all.deb")
	if want := root.Shell(t, describe, "/in/acpi-call-dkms_1.2.2_all.deb"); got != want {
		t.Errorf("dpkg-buildpackage made\n%s\nkofarm\n%s", got, want)
	}
}

// bare is a machine with dkms and without compiler, make and headers. Up to
// bookworm dkms depends on lsb-release before it is unpacked.
func bare(suite string) chroot.Spec {
	include := []string{"kmod", "xz-utils", "zstd"}
	if suite == "bookworm" {
		include = append(include, "lsb-release")
	}
	return chroot.Spec{Suite: suite, Include: include, Unpacked: []string{"dkms"}}
}

// TestDKMSPrebuilt installs the package with source and prebuilt modules where
// nothing could be compiled: both the kernel that is there and one that comes
// later get their modules from real dkms.
func TestDKMSPrebuilt(t *testing.T) {
	for suite, series := range map[string]string{"bookworm": "6.1.*", "trixie": "6.12.*"} {
		t.Run(suite, func(t *testing.T) {
			dir := t.TempDir()
			archived := archive.Open(t, suite)
			r := build(t, dir, fmt.Sprintf(`
modules: [{source: {deb: acpi-call-dkms, suite: %s}}]
kernels: [{suite: %[1]s, releases: [%s], flavors: [cloud-amd64]}]
output:
  deb: {packages: [dkms], prebuilt: true}
`, suite, strings.Join(archived.Complete(t, series, "cloud-amd64", 2), ", ")))
			root := chroot.Open(t, bare(suite).Make(t))
			root.Shell(t, `for p in gcc cc make ld; do ! command -v $p || exit 1; done`)
			older, newer := r.Cells[0], r.Cells[1]
			kernel := func(c farm.CellReport) {
				deb, _ := archived.Deb(t, "linux-image-"+c.Release)
				root.Shell(t, `
dpkg-deb -x "$1" /tmp/kernel
mkdir -p /lib/modules /boot
cp -a /tmp/kernel/boot/. /boot
[ ! -e /tmp/kernel/lib ] || cp -a /tmp/kernel/lib/modules/. /lib/modules
[ ! -e /tmp/kernel/usr/lib/modules ] || cp -a /tmp/kernel/usr/lib/modules/. /lib/modules
rm -rf /tmp/kernel "$1"
depmod -F "/boot/System.map-$2" "$2"`, put(t, root, deb, "/in"), c.Release)
			}
			installed := func(c farm.CellReport) {
				contains(t, root.Shell(t, `dkms status`), c.Release+", x86_64: installed")
				contains(t, root.Shell(t, `modinfo -k "$1" acpi_call`, c.Release), c.Release+" SMP", "/updates/dkms/acpi_call.ko")
				found, err := filepath.Glob(root.Path("/usr/lib/modules/" + c.Release + "/updates/dkms/acpi_call.ko*"))
				if err != nil || len(found) != 1 || plainSum(t, found[0]) != c.Modules[0].SHA256 {
					t.Errorf("%q, %v: want one with the sha256 %s", found, err, c.Modules[0].SHA256)
				}
			}
			kernel(older)
			out := root.Shell(t, `dpkg --force-depends -i "$1" 2>&1`, put(t, root, one(t, dir, "acpi-call-dkms_*_all.deb"), "/in"))
			installed(older)
			kernel(newer)
			out += root.Shell(t, `run-parts --arg="$1" /etc/kernel/postinst.d 2>&1`, newer.Release)
			installed(newer)
			if strings.Contains(out, "Building module") || strings.Contains(out, "make ") {
				t.Errorf("something was compiled:\n%s", out)
			}
			root.Shell(t, `dpkg -P acpi-call-dkms 2>&1`)
			left := root.Shell(t, `dkms status; find / -xdev \( -path /proc -o -path /dev -o -path /in \) -prune -o -iname '*acpi*call*' -print; grep -l acpi_call /lib/modules/*/modules.dep || :`)
			if left != "" {
				t.Errorf("left after the purge:\n%s", left)
			}
		})
	}
}
