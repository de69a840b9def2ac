package packages_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/ci/rpmkernel"
	"github.com/kofarm/kofarm/farm"
)

// vendorKernels are two kernels in RPM form, the older first.
func vendorKernels(t testing.TB) []rpmkernel.Kernel {
	t.Helper()
	return []rpmkernel.Kernel{rpmkernel.Make(t, "6.1.192", "56.host108"), rpmkernel.Make(t, "6.1.192", "57.host108")}
}

// vendorFarm builds acpi-call for kernels in RPM form.
func vendorFarm(t testing.TB, rpm string, kernels ...rpmkernel.Kernel) string {
	var b strings.Builder
	b.WriteString("modules: [{source: {deb: acpi-call-dkms, suite: bookworm}}]\nkernels:\n")
	for _, k := range kernels {
		fmt.Fprintf(&b, "  - {release: %s, headers: %s, toolchain: {suite: bookworm, packages: [gcc-12, libelf1]}}\n", k.Release, k.Devel)
	}
	return b.String() + "output:\n  rpm: " + rpm + "\n" + signed(t)
}

// baseSpec packages what scriptlets need: a shell, and kmod's depmod. The shell is
// not busybox's own, which would take busybox's depmod.
const baseSpec = `Name: base
Version: 1
Release: 1
Summary: A shell and kmod
License: GPL-2.0-only
AutoReqProv: no
Provides: /bin/sh
%global debug_package %{nil}
%global __os_install_post %{nil}
%description
A shell and kmod, for tests.
%install
mkdir -p %{buildroot}/bin %{buildroot}/sbin
cp /bin/busybox /bin/kmod %{buildroot}/bin/
cp /bin/dash %{buildroot}/bin/sh
for applet in cat grep sed rm mkdir; do ln -s busybox %{buildroot}/bin/$applet; done
for name in depmod modinfo modprobe; do ln -s ../bin/kmod %{buildroot}/sbin/$name; done
ldd /bin/dash /bin/kmod | grep -o '[[:space:]]/[^ ]*' | sort -u | while read -r lib; do install -D "$lib" "%{buildroot}$lib"; done
%files
/*
`

// vendorRepository makes a repository of the base and of kernels.
func vendorRepository(t testing.TB, kernels ...rpmkernel.Kernel) string {
	t.Helper()
	top, dir := t.TempDir(), t.TempDir()
	spec := rig.Write(t, top, "base.spec", baseSpec)
	run(t, top, "rpmbuild", "--quiet", "-bb", "--target", "x86_64", "--define", "_topdir "+top, "--define", "_build_id_links none", spec)
	packages := []string{filepath.Join(top, "RPMS/x86_64/base-1-1.x86_64.rpm")}
	for _, k := range kernels {
		packages = append(packages, k.Core)
	}
	for _, p := range packages {
		if err := os.Symlink(p, filepath.Join(dir, filepath.Base(p))); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, "createrepo_c", "--quiet", ".")
	return dir
}

// rpmHost is a root that one of the real tools installs in.
type rpmHost struct {
	root string
	tool string
	args []string
}

// newDNF gives dnf the vendor's repository, and the farm's with all checks on.
func newDNF(t testing.TB, vendor, farmURL string) *rpmHost {
	t.Helper()
	root, conf := t.TempDir(), t.TempDir()
	rig.Write(t, conf, "dnf.conf", "[main]\nplugins=0\nretries=1\nmetadata_expire=0\n")
	rig.Write(t, conf, "repos/all.repo", fmt.Sprintf(`[vendor]
name=vendor
baseurl=file://%s
gpgcheck=0
[farm]
name=farm
baseurl=%s
gpgcheck=1
repo_gpgcheck=1
gpgkey=file://%s
`, vendor, farmURL, publicKey(t)))
	h := &rpmHost{root: root, tool: "dnf", args: []string{"-y", "--installroot", root, "--releasever", "1", "--config", conf + "/dnf.conf"}}
	for _, option := range []string{"reposdir=" + conf + "/repos", "cachedir=" + conf + "/cache", "logdir=" + conf, "persistdir=" + conf + "/persist"} {
		h.args = append(h.args, "--setopt="+option)
	}
	h.importKey(t)
	return h
}

// newZypper does so for zypper, which finds the farm's key beside its index.
func newZypper(t testing.TB, vendor, farmURL string) *rpmHost {
	t.Helper()
	root := t.TempDir()
	rig.Write(t, root, "etc/zypp/multiversion.d/kernel", "provides:installonlypkg(kernel)\n") // kernels are side by side
	h := &rpmHost{root: root, tool: "zypper", args: []string{"--root", root, "--non-interactive", "--gpg-auto-import-keys"}}
	h.must(t, "addrepo", "--no-gpgcheck", "file://"+vendor, "vendor")
	h.must(t, "addrepo", "--gpgcheck-strict", farmURL, "farm")
	return h
}

func (h *rpmHost) try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return try(t, "/", h.tool, append(slices.Clone(h.args), args...)...)
}

func (h *rpmHost) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := h.try(t, args...)
	if err != nil || strings.Contains(out, "scriptlet failed") {
		t.Fatalf("%s %q: %v\n%s", h.tool, args, err, out)
	}
	return out
}

func (h *rpmHost) rpm(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return try(t, "/", "rpm", append([]string{"--root", h.root}, args...)...)
}

func (h *rpmHost) importKey(t testing.TB) {
	t.Helper()
	key, err := os.ReadFile(publicKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := h.rpm(t, "--import", rig.Write(t, h.root, "key.asc", string(key))); err != nil {
		t.Fatalf("rpm --import: %v\n%s", err, out)
	}
}

// installed wants exactly the packages of the farm.
func (h *rpmHost) installed(t testing.TB, want ...string) {
	t.Helper()
	out, err := h.rpm(t, "-qa", "*acpi-call*")
	got := strings.Fields(out)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("installed: %q, %v, want %q", got, err, want)
	}
	for _, name := range want {
		if out, err := h.rpm(t, "-V", name); err != nil {
			t.Errorf("rpm -V %s: %v\n%s", name, err, out)
		}
	}
}

// usable wants a cell's modules where modprobe finds them, in folder below the
// kernel's, fit for their kernel and with the bytes that were built.
func (h *rpmHost) usable(t testing.TB, c farm.CellReport, folder string) {
	t.Helper()
	for _, m := range c.Modules {
		name := strings.TrimSuffix(m.Name, ".ko")
		out := run(t, "/", "chroot", h.root, "sh", "-c", `grep "$2" "/lib/modules/$1/modules.dep"; modinfo -k "$1" "$2"`, "sh", c.Release, name)
		contains(t, out, folder+"/"+m.Name+":", "/lib/modules/"+c.Release+"/"+folder+"/"+m.Name, c.Release+" SMP")
		if got := plainSum(t, filepath.Join(h.root, "lib/modules", c.Release, folder, m.Name)); got != m.SHA256 {
			t.Errorf("%s for %s has the sha256 %s, want %s", m.Name, c.Release, got, m.SHA256)
		}
	}
}

// nothingLeft wants no trace of the module.
func (h *rpmHost) nothingLeft(t testing.TB) {
	t.Helper()
	h.installed(t)
	out := run(t, h.root, "sh", "-c", `find lib etc \( -iname '*acpi*call*' -o -name extra \) -print; grep -rl acpi_call lib/modules || :`)
	if out != "" {
		t.Errorf("left after the removal:\n%s", out)
	}
}

// TestYum gives real dnf and real zypper the repository, with every check of
// signatures on: modules come with their kernel, a newer kernel's follow, and
// nothing stays after the removal.
func TestYum(t *testing.T) {
	kernels := vendorKernels(t)
	vendor := vendorRepository(t, kernels...)
	for name, open := range map[string]func(testing.TB, string, string) *rpmHost{"dnf": newDNF, "zypper": newZypper} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			const output = "{repository: {}}"
			build(t, dir, vendorFarm(t, output, kernels[0]))
			h := open(t, vendor, "file://"+dir+"/dist/yum")
			h.must(t, "install", "base")
			h.must(t, "install", "kmod-acpi-call")
			older, newer := kernels[0].Release, kernels[1].Release
			packageOf := func(release string) string { return "kmod-acpi-call-" + release + "-1.2.2-1.x86_64" }
			const meta = "kmod-acpi-call-1.2.2-1."
			h.installed(t, packageOf(older), meta+"6.1.192_56.host108.x86_64")
			h.usable(t, dist.Results(t, filepath.Join(dir, "dist")).Cells[0], "extra/acpi-call")
			build(t, dir, vendorFarm(t, output, kernels...))
			if name == "dnf" {
				h.must(t, "--refresh", "upgrade")
			} else {
				h.must(t, "refresh", "--force")
				h.must(t, "update")
			}
			h.installed(t, packageOf(older), packageOf(newer), meta+"6.1.192_57.host108.x86_64")
			for _, c := range dist.Results(t, filepath.Join(dir, "dist")).Cells {
				h.usable(t, c, "extra/acpi-call")
			}
			// zypper takes .x86_64 at a name's end for an architecture.
			h.must(t, "remove", "kmod-acpi-call*")
			h.nothingLeft(t)
		})
	}
}

// TestYumRefuses has real dnf refuse a package for a kernel that is not there, and
// one that was altered; and real rpm know the right signature from none.
func TestYumRefuses(t *testing.T) {
	kernels := vendorKernels(t)
	dir := t.TempDir()
	build(t, dir, vendorFarm(t, "{repository: {}}", kernels...))
	served := serve(t, filepath.Join(dir, "dist"))
	name := "kmod-acpi-call-" + kernels[1].Release
	file := one(t, dir, name+"-1.2.2-1.x86_64.rpm")

	h := newDNF(t, vendorRepository(t, kernels[0]), served.url+"/yum")
	h.must(t, "install", "base")
	out, err := h.try(t, "install", name)
	if err == nil {
		t.Error("dnf installs modules without their kernel")
	}
	contains(t, out, "nothing provides kernel-uname-r = "+kernels[1].Release+" needed by "+name)

	out, err = h.rpm(t, "-i", file)
	if err == nil {
		t.Error("rpm installs modules without their kernel")
	}
	contains(t, out, "kernel-uname-r = "+kernels[1].Release+" is needed by "+name)

	served.alter("/yum/Packages/*")
	if out, err = h.try(t, "install", "kmod-acpi-call-"+kernels[0].Release); err == nil || !strings.Contains(out, "checksum") {
		t.Errorf("dnf with an altered package: %v\n%s", err, out)
	}
	served.alter("/yum/repodata/repomd.xml")
	if out, err = h.try(t, "--refresh", "install", "kmod-acpi-call-"+kernels[0].Release); err == nil || !strings.Contains(out, "GPG") {
		t.Errorf("dnf with an altered index: %v\n%s", err, out)
	}
	h.installed(t)

	if out, err = h.rpm(t, "-K", "-v", file); err != nil || !strings.Contains(out, "Signature, key ID") || strings.Contains(out, "NOKEY") {
		t.Errorf("rpm -K: %v\n%s", err, out)
	}
	stranger := &rpmHost{root: t.TempDir()}
	if out, err = stranger.rpm(t, "-K", file); err == nil || !strings.Contains(out, "SIGNATURES NOT OK") {
		t.Errorf("rpm -K without the key: %v\n%s", err, out)
	}
}

// symbols are the dependencies on symbols in a list of rpm's.
var symbols = regexp.MustCompile(`^(kernel|ksym)\((.*)\) = `)

// TestStyleKmod holds the dependencies of a real module's package to what the
// module and its kernel really have.
func TestStyleKmod(t *testing.T) {
	k := vendorKernels(t)[0]
	dir := t.TempDir()
	build(t, dir, vendorFarm(t, "{packager: Some One <one@example.org>}", k))
	file := one(t, dir, "kmod-acpi-call-6.1*.rpm")
	contains(t, run(t, dir, "rpm", "-qp", "--provides", file), "kernel-modules-for-kernel = "+k.Release, "acpi-call-kmod = 1.2.2-1", "kmod(acpi_call.ko)")
	contains(t, run(t, dir, "rpm", "-qp", "--qf", "%{LICENSE} %{ARCH} %{PACKAGER}", file), "GPL-2.0-only x86_64 Some One <one@example.org>")
	contains(t, run(t, dir, "rpm", "-qp", "--scripts", file), "postinstall scriptlet (using /bin/sh)", "postuninstall scriptlet (using /bin/sh)", `"$depmod" -a "$kernel"`, "kernel="+k.Release)
	contains(t, run(t, dir, "rpm", "-qp", "--requires", one(t, dir, "kmod-acpi-call-1.2.2-*.rpm")), "kmod-acpi-call-"+k.Release+" >= 1.2.2-1")

	var got []string
	requires := run(t, dir, "rpm", "-qp", "--requires", file)
	contains(t, requires, "kernel-uname-r = "+k.Release+"\n")
	for line := range strings.Lines(requires) {
		if symbols.MatchString(line) {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := crcs(t, dir, file, k)
	slices.Sort(got)
	if len(got) < 10 || !slices.Equal(got, want) {
		t.Errorf("requires\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// crcs asks modprobe what symbols the package's module needs; all are the kernel's.
func crcs(t testing.TB, dir, file string, k rpmkernel.Kernel) []string {
	t.Helper()
	run(t, dir, "sh", "-c", `rpm2cpio "$1" | cpio -idm --quiet`, "sh", file)
	out := run(t, dir, "/sbin/modprobe", "--dump-modversions", "./lib/modules/"+k.Release+"/extra/acpi-call/acpi_call.ko")
	var want []string
	for line := range strings.Lines(out) {
		crc, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		want = append(want, fmt.Sprintf("kernel(%s) = %s", name, crc))
	}
	slices.Sort(want)
	return want
}

// TestStyleKernelModule installs the packages of two kernels side by side, as
// versions of one package; those for Debian's releases need the kernel's file.
func TestStyleKernelModule(t *testing.T) {
	kernels := vendorKernels(t)
	dir := t.TempDir()
	r := build(t, dir, vendorFarm(t, `{style: kernel-module, release: "3"}`, kernels...))
	h := newDNF(t, vendorRepository(t, kernels...), "file:///nowhere")
	h.must(t, "--disablerepo=farm", "install", "base")
	files := []string{one(t, dir, "kernel-module-acpi-call-1.2.2-6.1.192_56.host108.3.x86_64.rpm"), one(t, dir, "kernel-module-acpi-call-1.2.2-6.1.192_57.host108.3.x86_64.rpm")}
	out, err := h.rpm(t, "-i", files[0])
	if err == nil {
		t.Error("rpm installs modules without their kernel")
	}
	contains(t, out, "kernel-uname-r = "+kernels[0].Release+" is needed by kernel-module-acpi-call-1.2.2")
	for _, args := range [][]string{{"-i", kernels[0].Core, kernels[1].Core}, {"-i", files[0]}, {"-i", files[1]}} {
		if out, err := h.rpm(t, args...); err != nil || strings.Contains(out, "scriptlet failed") {
			t.Fatalf("rpm %q: %v\n%s", args, err, out)
		}
	}
	const nv = "kernel-module-acpi-call-1.2.2-"
	h.installed(t, nv+"6.1.192_56.host108.3.x86_64", nv+"6.1.192_57.host108.3.x86_64")
	for _, c := range r.Cells {
		h.usable(t, c, "extra/acpi-call")
	}
	if out, err := h.rpm(t, "-e", "--allmatches", "kernel-module-acpi-call"); err != nil {
		t.Fatalf("rpm -e: %v\n%s", err, out)
	}
	h.nothingLeft(t)
}

// debianFarm makes RPMs of a style for Debian's newest two 6.1 kernels for clouds.
func debianFarm(output string) string {
	return `
modules: [{source: {deb: acpi-call-dkms, suite: bookworm}}]
kernels: [{suite: bookworm, releases: [{latest: 2, of: "6.1.*"}], flavors: [cloud-amd64]}]
output:
` + output
}

// TestStyleKMP installs a package in SUSE's style, for a kernel whose flavor is in
// its release.
func TestStyleKMP(t *testing.T) {
	dir := t.TempDir()
	r := build(t, dir, debianFarm("  rpm: {style: kmp}\n"+signed(t)))
	c := r.Cells[1]
	base := strings.TrimSuffix(c.Release, "-cloud-amd64")
	file := one(t, dir, "acpi-call-kmp-cloud-amd64-1.2.2_k"+strings.ReplaceAll(base, "-", "_")+"-1.x86_64.rpm")
	contains(t, run(t, dir, "rpm", "-qp", "--provides", file), "acpi-call-kmp = 1.2.2_k", "multiversion(kernel)", "kmod(acpi_call.ko)")
	contains(t, run(t, dir, "rpm", "-qp", "--enhances", file), "kernel-cloud-amd64")
	contains(t, run(t, dir, "rpm", "-qp", "--requires", file), "ksym(cloud-amd64:module_layout) = ", "ksym(cloud-amd64:acpi_evaluate_object) = ")
	contains(t, run(t, dir, "rpm", "-qp", "--scripts", file), "weak-modules2", "--add-kmp acpi-call-kmp-cloud-amd64-1.2.2_k")

	h := newDNF(t, vendorRepository(t), "file:///nowhere")
	h.must(t, "--disablerepo=farm", "install", "base")
	out, err := h.rpm(t, "-i", file)
	if err == nil {
		t.Error("rpm installs modules without their kernel")
	}
	contains(t, out, "ksym(cloud-amd64:module_layout) = ", "is needed by acpi-call-kmp-cloud-amd64")
	rig.Write(t, h.root, "lib/modules/"+c.Release+"/modules.builtin", "")
	rig.Write(t, h.root, "lib/modules/"+c.Release+"/modules.order", "")
	if out, err := h.rpm(t, "-i", "--nodeps", file); err != nil || strings.Contains(out, "scriptlet failed") {
		t.Fatalf("rpm -i: %v\n%s", err, out)
	}
	h.usable(t, c, "updates")
	if out, err := h.rpm(t, "-e", "acpi-call-kmp-cloud-amd64"); err != nil || strings.Contains(out, "scriptlet failed") {
		t.Fatalf("rpm -e: %v\n%s", err, out)
	}
	h.nothingLeft(t)
}
