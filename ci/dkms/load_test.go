package dkms_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// generations are suites, and the version of dkms that each must have.
var generations = []struct{ suite, version string }{{"bullseye", "2.8.4"}, {"bookworm", "3.0.10"}, {"trixie", "3.2.2"}}

// target is a chroot with dkms and without a compiler, make, or headers. Up to
// bookworm dkms depends on lsb-release before it is unpacked.
func target(suite string) chroot.Spec {
	include := []string{"kmod", "xz-utils", "zstd"}
	if suite == "bullseye" || suite == "bookworm" {
		include = append(include, "lsb-release")
	}
	return chroot.Spec{Suite: suite, Include: include, Unpacked: []string{"dkms"}}
}

// TestLoad loads kofarm's tarballs of one module for two kernels with three
// generations of dkms. The exit statuses are those of dkms itself, the odd ones
// among them: 1 for a success without source, 3 for one over an older entry.
func TestLoad(t *testing.T) {
	l := newLoad(t)
	for _, g := range generations {
		version, base := g.version, target(g.suite).Make(t)
		t.Run(g.suite, func(t *testing.T) {
			for _, tt := range []struct {
				name string
				run  func(t *testing.T, h *host)
			}{
				{"clean", func(t *testing.T, h *host) { h.isClean(t, version) }},
				{"full", func(t *testing.T, h *host) { loadAndUse(t, h, "-full", "gz") }},
				{"stub", func(t *testing.T, h *host) { loadAndUse(t, h, "-stub", "gz") }},
				{"stub xz", func(t *testing.T, h *host) { loadAndUse(t, h, "-stub", "xz") }},
				{"stub zst", func(t *testing.T, h *host) { loadAndUse(t, h, "-stub", "zst") }},
				{"binaries over an unpacked source", binariesOverSource},
				{"binaries over an added source", binariesOverAdded},
				{"stub deletes the source", stubOverAdded},
				{"second kernel full", func(t *testing.T, h *host) { secondKernel(t, h, "-full") }},
				{"second kernel stub", func(t *testing.T, h *host) { secondKernel(t, h, "-stub") }},
				{"combined", func(t *testing.T, h *host) { combined(t, h, version == "2.8.4") }},
				{"bare binaries", func(t *testing.T, h *host) { bareBinaries(t, h, version == "3.2.2") }},
			} {
				t.Run(tt.name, func(t *testing.T) {
					t.Parallel()
					tt.run(t, l.host(t, base))
				})
			}
		})
	}
}

// load is what all the hosts share.
type load struct {
	module, version string
	ko              string // the module's name
	sums            map[string]string
	kernels         [2]string // the newer one first
	dist            []string  // folders of tarballs
	combined        string    // the tarball for both kernels
	trees           []string  // of the kernels
	source          string    // the /usr/src of the module's package
}

func newLoad(t *testing.T) *load {
	t.Helper()
	l := &load{sums: map[string]string{}}
	kernels := strings.Join(archive.Open(t, "bookworm").Complete(t, "6.1.*", "cloud-amd64", 2), ", ")
	var r *farm.Report
	for _, compression := range []string{"zst", "xz", "gz"} {
		dir := t.TempDir()
		r = buildFarm(t, dir, `
modules: [{source: {deb: acpi-call-dkms, suite: bookworm}}]
kernels: [{suite: bookworm, releases: [`+kernels+`], flavors: [cloud-amd64]}]
output: {dkms: {layouts: [binaries-only, stub, full, combined], compression: `+compression+`}}
`)
		l.dist = append(l.dist, filepath.Join(dir, "dist"))
	}
	if len(r.Cells) != 2 || r.Counts.Built != 2 || r.Counts.CheckFailed != 0 {
		t.Fatalf("kofarm built %+v", r.Counts)
	}
	for _, f := range r.Files {
		if strings.Contains(f.Path, r.Cells[0].Release) && strings.Contains(f.Path, r.Cells[1].Release) {
			l.combined = f.Path
		}
	}
	for i, c := range r.Cells {
		l.module, l.version = c.Module, c.Version
		l.kernels[1-i] = c.Release
		l.ko = strings.TrimSuffix(c.Modules[0].Name, ".ko")
		l.sums[c.Release] = c.Modules[0].SHA256
		l.trees = append(l.trees, kernelTree(t, c.Release, versionOf(t, r, c)))
	}
	l.source = filepath.Join(unpacked(t, "acpi-call-dkms", r.Cells[0].Inputs.Source[:12]), "usr/src")
	return l
}

// versionOf is the version of a cell's headers, and so of its linux-image.
func versionOf(t *testing.T, r *farm.Report, c farm.CellReport) string {
	t.Helper()
	for _, p := range r.PackageSets[c.Inputs.Headers] {
		if p.Name == "linux-headers-"+c.Release {
			return p.Version
		}
	}
	t.Fatalf("%s has no linux-headers", c.Release)
	return ""
}

// unpacked is what a package of bookworm's holds, kept under the package's name
// and the key. For kernel modules depmod makes its tables.
func unpacked(t *testing.T, pkg, key string) string {
	t.Helper()
	base := target("bookworm").Make(t)
	name, _, _ := strings.Cut(pkg, "=")
	return chroot.Keep(t, filepath.Join(rig.Cache(t, "unpacked"), name+"-"+key), func(dir string) {
		r := chroot.Open(t, base)
		r.Online(t)
		r.Shell(t, `cd /tmp; apt-get -q download "$1"; mv ./*.deb deb`, pkg)
		if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-x", r.Path("/tmp/deb"), dir).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb -x: %v\n%s", err, out)
		}
		kernels, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range kernels {
			if out, err := exec.CommandContext(t.Context(), "depmod", "-b", dir, filepath.Base(k)).CombinedOutput(); err != nil {
				t.Fatalf("depmod: %v\n%s", err, out)
			}
		}
	})
}

// kernelTree is a linux-image, unpacked.
func kernelTree(t *testing.T, release, version string) string {
	t.Helper()
	return unpacked(t, "linux-image-"+release+"="+version, version)
}

// host is a machine that modules are loaded on.
type host struct {
	*load
	root *chroot.Root
}

func (l *load) host(t *testing.T, base string) *host {
	t.Helper()
	h := &host{l, chroot.Open(t, base)}
	var modules, boot []string
	for _, tree := range l.trees {
		modules, boot = append(modules, filepath.Join(tree, "lib/modules")), append(boot, filepath.Join(tree, "boot"))
	}
	h.root.Overlay(t, "/lib/modules", modules...)
	h.root.Overlay(t, "/boot", boot...)
	h.root.Overlay(t, "/tarballs", l.dist...)
	return h
}

// id is the module as dkms's command line has it.
func (h *host) id() string { return h.module + "/" + h.version }

// tarball is the path of a tarball. The layout is a suffix of its name.
func (h *host) tarball(kernel, layout, compression string) string {
	return fmt.Sprintf("/tarballs/%s-%s-kernel%s-x86_64%s.dkms.tar.%s", h.module, h.version, kernel, layout, compression)
}

// dkms runs dkms, which must end with the exit status.
func (h *host) dkms(t *testing.T, want int, args ...string) {
	t.Helper()
	if r := h.root.Run(t, "dkms", args...); r.Code != want {
		t.Fatalf("dkms %q: exit status %d, want %d\n%s", args, r.Code, want, r.Output)
	}
}

// status holds `dkms status` to "kernel state" lines, in any order.
func (h *host) status(t *testing.T, want ...string) {
	t.Helper()
	r := h.root.Run(t, "dkms", "status")
	var got []string
	for line := range strings.Lines(r.Output) {
		// 2.8: "module, version, kernel, arch: state"; 3.x: "module/version, …"
		line = strings.Replace(strings.TrimSpace(line), h.module+", "+h.version, h.id(), 1)
		line = strings.TrimPrefix(line, h.id()+", ")
		got = append(got, strings.Replace(line, ", x86_64:", "", 1))
	}
	slices.Sort(got)
	slices.Sort(want)
	if r.Code != 0 || !slices.Equal(got, want) {
		t.Fatalf("dkms status: exit status %d, %q, want %q", r.Code, got, want)
	}
}

// installed wants the module where dkms installs it, found by modprobe's tables,
// for its kernel, and with the bytes that kofarm built.
func (h *host) installed(t *testing.T, kernel string) {
	t.Helper()
	path := "/lib/modules/" + kernel + "/updates/dkms/" + h.ko + ".ko"
	out := h.root.Shell(t, `modinfo -k "$1" -F filename "$2"; modinfo -k "$1" -F vermagic "$2"; sha256sum "$3"`, kernel, h.ko, path)
	lines := strings.Split(out, "\n")
	if !strings.HasSuffix(lines[0], path) || !strings.HasPrefix(lines[1], kernel+" ") || !strings.HasPrefix(lines[2], h.sums[kernel]) {
		t.Errorf("installed for %s:\n%s\nwant %s with the sha256 %s", kernel, out, path, h.sums[kernel])
	}
}

// notInstalled wants the module gone.
func (h *host) notInstalled(t *testing.T, kernel string) {
	t.Helper()
	if r := h.root.Run(t, "modinfo", "-k", kernel, h.ko); r.Code != 1 {
		t.Errorf("modinfo -k %s %s: exit status %d, want 1\n%s", kernel, h.ko, r.Code, r.Output)
	}
	if r := h.root.Run(t, "test", "-e", "/lib/modules/"+kernel+"/updates/dkms/"+h.ko+".ko"); r.Code != 1 {
		t.Errorf("%s.ko is still there for %s", h.ko, kernel)
	}
}

// use installs, uninstalls and removes what has been loaded for a kernel.
func (h *host) use(t *testing.T, kernel string) {
	t.Helper()
	h.status(t, kernel+" built")
	h.dkms(t, 0, "install", h.id(), "-k", kernel)
	h.status(t, kernel+" installed")
	h.installed(t, kernel)
	h.dkms(t, 0, "uninstall", h.id(), "-k", kernel)
	h.status(t, kernel+" built")
	h.notInstalled(t, kernel)
	h.dkms(t, 0, "remove", h.id(), "--all")
	h.status(t)
}

// unpackSource puts the module's real source where its package has it, and
// gives a function that wants it unchanged.
func (h *host) unpackSource(t *testing.T) (unchanged func()) {
	t.Helper()
	h.root.Overlay(t, "/source", h.source)
	h.root.Shell(t, `cp -a /source/. /usr/src`)
	return func() {
		t.Helper()
		h.root.Shell(t, `diff -r /source /usr/src`)
	}
}

// isClean wants a host with two kernels, and without anything to build with.
func (h *host) isClean(t *testing.T, version string) {
	t.Helper()
	out := h.root.Shell(t, `
for p in gcc cc clang make ld as patch openssl; do ! command -v $p || exit 1; done
for k; do test -d "/lib/modules/$k/kernel"; done
find /usr/src /usr/include /lib/modules/*/build /lib/modules/*/source -mindepth 1 2> /dev/null || :
dpkg-query -W -f '${Version}' dkms`, h.kernels[0], h.kernels[1])
	if !strings.HasPrefix(out, version+"-") {
		t.Errorf("want dkms %s and neither headers nor sources, the host has\n%s", version, out)
	}
}

func loadAndUse(t *testing.T, h *host, layout, compression string) {
	h.dkms(t, 0, "ldtarball", h.tarball(h.kernels[0], layout, compression))
	h.use(t, h.kernels[0])
}

// binariesOverSource is a host with the module's package unpacked and no entry
// for it in dkms's tree.
func binariesOverSource(t *testing.T, h *host) {
	unchanged := h.unpackSource(t)
	h.dkms(t, 0, "ldtarball", "--force", h.tarball(h.kernels[0], "", "gz"))
	unchanged()
	h.use(t, h.kernels[0])
	unchanged()
}

// binariesOverAdded is what README.md says for a host that has the module's
// package: dkms knows the source.
func binariesOverAdded(t *testing.T, h *host) {
	unchanged := h.unpackSource(t)
	h.dkms(t, 0, "add", h.id())
	h.dkms(t, 8, "ldtarball", h.tarball(h.kernels[0], "", "gz"))
	h.dkms(t, 3, "ldtarball", "--force", h.tarball(h.kernels[0], "", "gz"))
	h.status(t, h.kernels[0]+" built")
	h.dkms(t, 3, "ldtarball", "--force", h.tarball(h.kernels[1], "", "gz"))
	unchanged()
	h.useBoth(t)
	unchanged()
}

// stubOverAdded is the danger that kofarm warns of where it writes a stub.
func stubOverAdded(t *testing.T, h *host) {
	h.unpackSource(t)
	h.dkms(t, 0, "add", h.id())
	h.dkms(t, 8, "ldtarball", h.tarball(h.kernels[0], "-stub", "gz"))
	h.root.Shell(t, `diff -r /source /usr/src`)
	h.dkms(t, 3, "ldtarball", "--force", h.tarball(h.kernels[0], "-stub", "gz"))
	if out := h.root.Shell(t, `ls -A "/usr/src/$1"`, h.module+"-"+h.version); out != "dkms.conf\n" {
		t.Errorf("the stub has left %q of the source", out)
	}
}

// secondKernel loads a second kernel for a module version that is there.
func secondKernel(t *testing.T, h *host, layout string) {
	h.dkms(t, 0, "ldtarball", h.tarball(h.kernels[0], layout, "gz"))
	h.dkms(t, 8, "ldtarball", h.tarball(h.kernels[1], layout, "gz"))
	h.dkms(t, 3, "ldtarball", "--force", h.tarball(h.kernels[1], layout, "gz"))
	h.useBoth(t)
}

// useBoth does what use does, for two kernels.
func (h *host) useBoth(t *testing.T) {
	t.Helper()
	a, b := h.kernels[0], h.kernels[1]
	h.status(t, a+" built", b+" built")
	h.dkms(t, 0, "install", h.id(), "-k", a)
	h.dkms(t, 0, "install", h.id(), "-k", b)
	h.status(t, a+" installed", b+" installed")
	h.installed(t, a)
	h.installed(t, b)
	h.dkms(t, 0, "uninstall", h.id(), "-k", a)
	h.status(t, a+" built", b+" installed")
	h.notInstalled(t, a)
	h.installed(t, b)
	h.dkms(t, 0, "remove", h.id(), "-k", a)
	h.status(t, b+" installed")
	h.dkms(t, 0, "remove", h.id(), "--all")
	h.status(t)
	h.notInstalled(t, b)
}

// bareBinaries loads binaries only where there is no source: dkms exits with 1
// and has loaded them. It makes a folder of `source`, where dkms from 3.0.13 on
// wants a link: it installs the module, and then knows nothing of it.
func bareBinaries(t *testing.T, h *host, wantsLink bool) {
	k := h.kernels[0]
	if !wantsLink {
		h.dkms(t, 1, "ldtarball", h.tarball(k, "", "gz"))
		h.use(t, k)
		return
	}
	h.dkms(t, 1, "ldtarball", "--force", h.tarball(k, "", "gz"))
	h.status(t)
	h.dkms(t, 0, "install", h.id(), "-k", k)
	h.installed(t, k)
	h.status(t)
	h.dkms(t, 3, "uninstall", h.id(), "-k", k)
	h.dkms(t, 3, "remove", h.id(), "--all")
	h.installed(t, k)
}

// combined loads one tarball of binaries for both kernels: 3.x takes the first of
// them only, which kofarm warns of.
func combined(t *testing.T, h *host, all bool) {
	h.unpackSource(t)
	h.dkms(t, 0, "ldtarball", "/tarballs/"+h.combined)
	if all {
		h.useBoth(t)
		return
	}
	first, second := h.kernels[0], h.kernels[1]
	if strings.Index(h.combined, second) < strings.Index(h.combined, first) {
		first = second
	}
	h.use(t, first)
}

// TestStubWarning wants a warning for a stub, that names it and the danger, and
// none where no stub is written.
func TestStubWarning(t *testing.T) {
	const file = `
modules: [{source: {deb: acpi-call-dkms, suite: bookworm}}]
kernels: [{suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [cloud-amd64]}]
output: {dkms: {layouts: [%s]}}
`
	for layouts, want := range map[string]bool{"binaries-only, full": false, "stub": true} {
		dir := t.TempDir()
		r := rig.Kofarm(t, 0, dir, rig.Store(t), "build", rig.Write(t, dir, "farm.yaml", fmt.Sprintf(file, layouts)))
		stubs, err := filepath.Glob(filepath.Join(dir, "dist", "*-stub.dkms.tar.gz"))
		if err != nil || (len(stubs) == 1) != want {
			t.Fatalf("layouts %s: stubs %q, %v", layouts, stubs, err)
		}
		got := strings.Contains(r.Stderr, "deletes it") && strings.Contains(r.Stderr, "/usr/src/acpi-call-") &&
			want && strings.Contains(r.Stderr, filepath.Base(stubs[0]))
		if got != want {
			t.Errorf("layouts %s: a warning: %t, want %t\n%s", layouts, got, want, r.Stderr)
		}
	}
}
