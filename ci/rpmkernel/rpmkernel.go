// Package rpmkernel makes kernels in RPM form for tests, with real rpmbuild,
// from a kernel of Debian: kernel-core with its modules and kernel-devel with
// its build tree, under a release as vendors have them.
package rpmkernel

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
)

// Kernel is a kernel in RPM form.
type Kernel struct {
	Release     string // kernel release: version-release.x86_64
	Core, Devel string // paths of the RPMs
}

const (
	// suite and debianRelease name the kernel that all are made from.
	suite  = "bookworm"
	series = "6.1.0-"
)

// Make gives the kernel of that version and RPM release, such as "6.1.192" and
// "56.host108", made once and kept in the tests' cache.
func Make(t testing.TB, version, release string) Kernel {
	t.Helper()
	k := Kernel{Release: version + "-" + release + ".x86_64"}
	dir := filepath.Join(rig.Cache(t, "rpmkernel"), k.Release)
	k.Core = filepath.Join(dir, fmt.Sprintf("kernel-core-%s.rpm", k.Release))
	k.Devel = filepath.Join(dir, fmt.Sprintf("kernel-devel-%s.rpm", k.Release))
	chroot.Keep(t, dir, func(dir string) { k.make(t, version, release, dir) })
	return k
}

func (k Kernel) make(t testing.TB, version, release, dir string) {
	t.Helper()
	top := t.TempDir()
	b := builder{t: t, top: top, version: version, release: release, uname: k.Release}
	b.unpack()
	b.tree()
	b.specs()
	b.run(top, "rpmbuild", "--quiet", "--define", "_topdir "+top, "--define", "_build_id_links none",
		"--define", "__strip /bin/true", "--define", "_binary_payload w1.gzdio", "--target", "x86_64", "-bb", "kernel.spec")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, rpm := range []string{k.Core, k.Devel} {
		b.run(top, "cp", filepath.Join(top, "RPMS/x86_64", filepath.Base(rpm)), dir)
	}
}

type builder struct {
	t                       testing.TB
	top                     string
	version, release, uname string
	debian                  string // the kernel release that it is made from
}

func (b *builder) run(dir, name string, args ...string) {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("%s %q (see ci/setup): %v\n%s", name, args, err, out)
	}
}

// unpack unpacks Debian's headers and image of the newest kernel of the series.
func (b *builder) unpack() {
	s := archive.Open(b.t, suite)
	b.debian = s.Complete(b.t, series+"*", "amd64", 1)[0]
	for _, name := range []string{"linux-headers-" + b.debian, "linux-headers-" + strings.TrimSuffix(b.debian, "amd64") + "common",
		"linux-kbuild-6.1", "linux-image-" + b.debian} {
		path, _ := s.Deb(b.t, name)
		b.run(b.top, "dpkg-deb", "-x", path, "debian")
	}
}

// tree lays the build tree and the module tree out.
func (b *builder) tree() {
	b.run(b.top, "sh", "-ec", `
uname=$1 debian=$2
common=${debian%amd64}common
devel=devel/usr/src/kernels/$uname
core=core/lib/modules/$uname
src=debian/usr/src
mkdir -p "$devel" "$core/kernel"
cp -a "$src/linux-headers-$debian/." "$devel/"
rm "$devel/scripts" "$devel/tools" "$devel/.kernelvariables" "$devel/Makefile"
cp -a "$src/linux-headers-$common/." "$devel/"
rm "$devel/scripts" "$devel/tools"
cp -aL "debian/usr/lib/linux-kbuild-6.1/scripts" "debian/usr/lib/linux-kbuild-6.1/tools" "$devel/"
echo "$uname" > "$devel/include/config/kernel.release"
echo "#define UTS_RELEASE \"$uname\"" > "$devel/include/generated/utsrelease.h"
cp -a debian/lib/modules/$debian/kernel/lib debian/lib/modules/$debian/kernel/crypto "$core/kernel/"
cp debian/lib/modules/$debian/modules.builtin debian/lib/modules/$debian/modules.builtin.modinfo "$core/"
grep -E '^kernel/(lib|crypto)/' debian/lib/modules/$debian/modules.order > "$core/modules.order"
cp debian/boot/System.map-$debian "$core/System.map"
cp debian/boot/vmlinuz-$debian "$core/vmlinuz"
ln -s "/usr/src/kernels/$uname" "$core/build"
`, "sh", b.uname, b.debian)
}

// specs writes the spec. kernel-core provides what RHEL's does: its release,
// and every exported symbol with its checksum.
func (b *builder) specs() {
	var s strings.Builder
	fmt.Fprintf(&s, `Name: kernel
Version: %s
Release: %s
Summary: The Linux kernel
License: GPL-2.0-only
AutoReqProv: no
%%global debug_package %%{nil}
%%global __brp_check_rpaths %%{nil}
%%global __os_install_post %%{nil}
%%description
The Linux kernel, for tests.
%%package core
Summary: The Linux kernel
AutoReqProv: no
Provides: kernel-uname-r = %[3]s
Provides: installonlypkg(kernel)
`, b.version, b.release, b.uname)
	f, err := os.Open(filepath.Join(b.top, "devel/usr/src/kernels", b.uname, "Module.symvers"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		fmt.Fprintf(&s, "Provides: kernel(%s) = %s\n", fields[1], fields[0])
	}
	fmt.Fprintf(&s, `%%description core
The Linux kernel, for tests.
%%package devel
Summary: Files for building modules
AutoReqProv: no
Provides: kernel-devel-uname-r = %[1]s
Provides: installonlypkg(kernel)
%%description devel
Files for building modules, for tests.
%%install
cp -a %[2]s/core/. %[2]s/devel/. %%{buildroot}/
%%files core
/lib/modules/%[1]s
%%files devel
/usr/src/kernels/%[1]s
`, b.uname, b.top)
	rig.Write(b.t, b.top, "kernel.spec", s.String())
}
