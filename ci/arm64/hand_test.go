package arm64_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// TestByHand runs make, as its users know it, with Debian's cross compiler in a
// Debian, at DKMS's path: kofarm's modules are the same.
func TestByHand(t *testing.T) {
	for _, tt := range []struct{ suite, file string }{{"bookworm", bookworm}, {"trixie", trixie}} {
		t.Run(tt.suite, func(t *testing.T) {
			r := build(t, t.TempDir(), rig.Store(t), tt.file)
			var cells []farm.CellReport
			for _, c := range r.Cells {
				if c.Arch == "aarch64" && slices.Contains([]string{"acpi-call", "v4l2loopback", "gost-crypto"}, c.Module) {
					cells = append(cells, c)
				}
			}
			if len(cells) != 3 {
				t.Fatalf("%d cells, want 3", len(cells))
			}
			hand := newHand(t, tt.suite, r, cells[0])
			for _, c := range cells {
				for name, got := range hand.make(t, c) {
					i := slices.IndexFunc(c.Modules, func(m farm.ModuleReport) bool { return m.Name == name })
					if i < 0 || c.Modules[i].SHA256 != got {
						t.Errorf("%s on %s: by hand %s has sha256 %s, kofarm made %+v", c.Module, c.Release, name, got, c.Modules)
					}
				}
			}
		})
	}
}

// hand is a Debian with a cross compiler and an arm64 kernel's headers.
type hand struct {
	root  *chroot.Root
	suite *archive.Suite
}

// needed are the packages that make by hand needs, of those that the cell has.
var needed = []string{"make", "gcc", "libc6-dev", "libelf1", "libelf1t64", "libssl3", "libssl3t64", "zlib1g", "pahole"}

// newHand makes one of the very packages that the cell was built from.
func newHand(t *testing.T, suite string, r *farm.Report, c farm.CellReport) *hand {
	t.Helper()
	spec := chroot.Spec{Suite: suite}
	for _, p := range r.PackageSets[c.Inputs.Toolchain] {
		if slices.Contains(needed, p.Name) || strings.HasPrefix(p.Name, "gcc-") && strings.HasSuffix(p.Name, "-aarch64-linux-gnu") {
			spec.Include = append(spec.Include, p.Name+"="+p.Version)
		}
	}
	h := &hand{chroot.Open(t, spec.Make(t)), archive.Open(t, suite)}
	arm64 := archive.OpenFor(t, suite, "arm64")
	for _, p := range r.PackageSets[c.Inputs.Headers] {
		from := h.suite
		if p.Arch == "arm64" {
			from = arm64
		}
		deb, version := from.Deb(t, p.Name)
		if version != p.Version {
			t.Fatalf("%s: the archive has %s, the cell %s", p.Name, version, p.Version)
		}
		h.copy(t, deb, p.Name+".deb")
		h.root.Shell(t, `dpkg --force-architecture --force-depends --unpack "/tmp/$1.deb"`, p.Name)
	}
	return h
}

// copy copies a file into the chroot's /tmp.
func (h *hand) copy(t *testing.T, from, name string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.root.Path("/tmp/"+name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// make builds a cell's modules, and gives the sha256 of each.
func (h *hand) make(t *testing.T, c farm.CellReport) map[string]string {
	t.Helper()
	deb, _ := h.suite.Deb(t, c.Module+"-dkms")
	h.copy(t, deb, "source.deb")
	build := fmt.Sprintf("/var/lib/dkms/%s/%s/build", c.Module, c.Version)
	h.root.Shell(t, `
rm -rf /tmp/source
dpkg-deb -x /tmp/source.deb /tmp/source
mkdir -p "$(dirname "$2")"
cp -a "/tmp/source/usr/src/$1" "$2"
cd "$2"
export KBUILD_BUILD_TIMESTAMP=@0
make -j2 -C "/lib/modules/$3/build" M="$2" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
find . -name '*.ko' -exec aarch64-linux-gnu-strip -g {} +`, c.Module+"-"+c.Version, build, c.Release)
	sums := map[string]string{}
	for _, m := range c.Modules {
		found := strings.Fields(h.root.Shell(t, `find "$1" -name "$2"`, build, m.Name))
		if len(found) != 1 {
			t.Fatalf("%s: %q", m.Name, found)
		}
		sums[filepath.Base(found[0])] = sum(t, h.root.Path(found[0]))
	}
	return sums
}
