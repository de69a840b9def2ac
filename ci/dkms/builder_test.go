package dkms_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/chroot"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// dkmsBuild is what one real `dkms build` gave.
type dkmsBuild struct {
	Exit    int
	Modules map[string]string // file name with .ko → sha256 in hex, decompressed
	Seconds float64
	Output  string
}

// builder is a clean chroot with Debian's dkms, the headers of a report's kernels
// and the sources of its modules. It is kept in the cache with all that it has
// built, under a key of what goes in.
type builder struct {
	dir string
}

// install turns a chroot into a builder. Its arguments are the headers, each as
// package=version, then "--", then the packages with the sources. linux-image,
// which headers from 6.12 on depend on, stays out: it would bring an initramfs
// and 100 MB. The headers are unpacked before there is a module, or dkms would
// build it at once. The chroot may be older than what kofarm builds with, so it
// is upgraded.
const install = `
mkdir /tmp/headers /tmp/sources
apt-get -q -y --fix-broken install
apt-get -q -y dist-upgrade
while [ "$1" != -- ]; do (cd /tmp/headers; apt-get -q download "$1"); shift; done
shift
(cd /tmp/sources; apt-get -q download "$@")
for deb in /tmp/*/*.deb; do
	dpkg-deb -f "$deb" Depends | tr , '\n' | sed -E 's/[|(:].*//; s/ //g'
done | sort -u | grep -vE '^(linux-image|dkms$|xserver)' | xargs apt-get -q -y install gcc
dpkg --force-depends -i /tmp/headers/*.deb
cd /tmp/sources
for deb in *.deb; do dpkg-deb -x "$deb" tree; done
cp -a tree/usr/src/. /usr/src
sha256sum *.deb > /sources
dpkg-query -W -f '${Package} ${Version}\n' > /packages
rm -rf /tmp/headers /tmp/sources
apt-get -q clean
rm -rf /var/lib/apt/lists/*
! command -v openssl # or dkms would sign`

// newBuilder gives the builder for a report's cells, all of one suite, with the
// sources from the packages.
func newBuilder(t *testing.T, suite string, r *farm.Report, sources []string) *builder {
	t.Helper()
	base := target(suite).Make(t)
	headers := headerPackages(r)
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, part := range []any{filepath.Base(base), install, headers, sources, r.PackageSets} {
		if err := enc.Encode(part); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range r.Cells {
		fmt.Fprintln(h, c.Module, c.Version, c.Release, c.Inputs.Source)
	}
	name := suite + "-" + hex.EncodeToString(h.Sum(nil)[:6])
	cache := rig.Cache(t, "dkms")
	b := &builder{dir: chroot.Keep(t, filepath.Join(cache, name), func(dir string) {
		removeOthers(t, cache, suite)
		fill(t, dir, base, append(append(headers, "--"), sources...))
	})}
	b.checkPackages(t, r)
	return b
}

// removeOthers removes builders of the suite that newer packages have replaced.
func removeOthers(t *testing.T, cache, suite string) {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(cache, suite+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func fill(t *testing.T, dir, base string, args []string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(dir, "builds"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", base, root).CombinedOutput(); err != nil {
		t.Fatalf("copying %s: %v\n%s", base, err, out)
	}
	r := chroot.OpenDir(t, root)
	r.Online(t)
	r.Shell(t, install, args...)
}

// headerPackages are the header packages of a report's kernels.
func headerPackages(r *farm.Report) []string {
	var all []string
	for _, c := range r.Cells {
		for _, p := range r.PackageSets[c.Inputs.Headers] {
			if p.Name == "linux-headers-"+c.Release {
				all = append(all, p.Name+"="+p.Version)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkPackages holds the builder to what kofarm built with: the same sources,
// and every package that both have in the same version.
func (b *builder) checkPackages(t *testing.T, r *farm.Report) {
	t.Helper()
	read := func(name string) map[string]string {
		data, err := os.ReadFile(filepath.Join(b.dir, "root", name))
		if err != nil {
			t.Fatal(err)
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(data)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
			fields[k] = strings.TrimSpace(v)
		}
		return fields
	}
	sources, packages := read("sources"), read("packages")
	for _, c := range r.Cells {
		if _, ok := sources[c.Inputs.Source]; !ok {
			t.Errorf("kofarm's source of %s has the sha256 %s, apt's have %v", c.Module, c.Inputs.Source, sources)
		}
	}
	for _, set := range r.PackageSets {
		for _, p := range set {
			if have, ok := packages[p.Name]; ok && have != p.Version {
				t.Errorf("kofarm built with %s %s, dkms with %s", p.Name, p.Version, have)
			}
		}
	}
	for _, p := range []string{"dkms", "make", "gcc"} {
		if packages[p] == "" {
			t.Errorf("the chroot has no %s", p)
		}
	}
	t.Logf("dkms %s, gcc %s, make %s", packages["dkms"], packages["gcc"], packages["make"])
}

// builds gives what dkms makes of the cells, with the variables in its
// environment; what it has made before comes from the cache. Modules are built
// side by side, a module's kernels one after the other, as dkms has one build
// folder for them.
func (b *builder) builds(t *testing.T, cells []farm.CellReport, env func(release string) []string) map[string]*dkmsBuild {
	t.Helper()
	var mu sync.Mutex
	all := map[string]*dkmsBuild{}
	root := chroot.Open(t, filepath.Join(b.dir, "root"))
	t.Run("dkms", func(t *testing.T) {
		for module, cells := range byModule(cells) {
			t.Run(module, func(t *testing.T) {
				t.Parallel()
				for _, c := range cells {
					d := b.build(t, root, c, env(c.Release))
					mu.Lock()
					all[cellName(c)] = d
					mu.Unlock()
				}
			})
		}
	})
	return all
}

func byModule(cells []farm.CellReport) map[string][]farm.CellReport {
	m := map[string][]farm.CellReport{}
	for _, c := range cells {
		m[c.Module] = append(m[c.Module], c)
	}
	return m
}

// build gives what dkms makes of a cell, from the cache where it has made it.
func (b *builder) build(t *testing.T, root *chroot.Root, c farm.CellReport, env []string) *dkmsBuild {
	t.Helper()
	path := filepath.Join(b.dir, "builds", cellName(c))
	data, err := os.ReadFile(path + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		d := runBuild(t, root, c, env, path)
		if data, err = json.MarshalIndent(d, "", " "); err == nil {
			err = writeFile(path+".json", data)
		}
		t.Logf("%s: exit status %d after %.1f s", cellName(c), d.Exit, d.Seconds)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := &dkmsBuild{}
	if err := json.Unmarshal(data, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func cellName(c farm.CellReport) string { return c.Module + "-" + c.Version + "-" + c.Release }

// writeFile writes a file under another name and renames it.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// runBuild builds one cell with dkms, and keeps the modules below dir to look at.
func runBuild(t *testing.T, root *chroot.Root, c farm.CellReport, env []string, dir string) *dkmsBuild {
	t.Helper()
	root.Shell(t, `[ -e "/var/lib/dkms/$1/$2/source" ] || dkms add -m "$1" -v "$2"`, c.Module, c.Version)
	started := time.Now()
	r := root.Run(t, "env", append(env, "dkms", "build", "-m", c.Module, "-v", c.Version, "-k", c.Release)...)
	d := &dkmsBuild{Exit: r.Code, Output: r.Output, Seconds: time.Since(started).Seconds(), Modules: map[string]string{}}
	if d.Exit != 0 {
		return d
	}
	made := root.Path(filepath.Join("/var/lib/dkms", c.Module, c.Version, c.Release, c.Arch, "module"))
	files, err := filepath.Glob(made + "/*.ko*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data := decompressed(t, file)
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		sum := sha256.Sum256(data)
		d.Modules[name+".ko"] = hex.EncodeToString(sum[:])
		rig.Write(t, dir, name+".ko", string(data))
	}
	return d
}

// decompressed reads a module as dkms has left it.
func decompressed(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, tool := range map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"} {
		if strings.HasSuffix(path, suffix) {
			cmd := exec.CommandContext(t.Context(), tool, "-dc")
			cmd.Stdin = bytes.NewReader(data)
			if data, err = cmd.Output(); err != nil {
				t.Fatalf("%s -dc %s: %v", tool, path, err)
			}
		}
	}
	return data
}
