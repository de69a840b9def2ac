// Package backends_test builds the same cells on every backend.
package backends_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// farmFile has 24 cells, of which the modules' own rules exclude three.
const farmFile = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
  - source: {deb: bbswitch-dkms, suite: bookworm}
  - source: {deb: v4l2loopback-dkms, suite: bookworm}
  - source: {deb: digimend-dkms, suite: bookworm}
  - source: {deb: dm-writeboost-dkms, suite: bookworm}
  - source: {deb: iptables-netflow-dkms, suite: bookworm}
  - source: {deb: gost-crypto-dkms, suite: bookworm}
  - source: {deb: ddcci-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64, rt-amd64]
`

// oneCell has one.
const oneCell = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
`

// uid is an ordinary user.
const uid uint32 = 4242

// TestSameModules builds eight modules for three kernels on each backend, and on
// the embedded one as an ordinary user, too. The stores have the same downloads,
// and no result. Verdicts, modules and packages are the same.
func TestSameModules(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test uses the daemons that `ci/setup daemons` starts: run it as root")
	}
	common := rig.Store(t)
	dir := folder(t, farmFile)
	rig.Kofarm(t, 0, dir, common, "build", "--runtime", "embedded") // or it was, by another test
	want := read(t, dir)
	t.Setenv("DOCKER_HOST", "unix:///run/kofarm-test/docker.sock")
	t.Setenv("CONTAINERD_ADDRESS", "/run/kofarm-test/containerd.sock")
	if got := want.counts(); got["built"] != 21 || got["excluded"] != 3 || len(want.modules) != 21 || len(want.packages) != 21 {
		t.Fatalf("on the embedded runtime: %v, packages %q", got, slices.Collect(maps.Keys(want.packages)))
	}
	for _, b := range []struct {
		name, runtime string
		uid           uint32
	}{{"embedded as an ordinary user", "embedded", uid}, {"docker", "docker", 0}, {"containerd", "containerd", 0}} {
		t.Run(b.name, func(t *testing.T) {
			got := build(t, common, b.runtime, b.uid)
			same(t, "verdicts", got.verdicts, want.verdicts)
			same(t, "modules", got.modules, want.modules)
			same(t, "packages", got.packages, want.packages)
		})
	}
}

// TestWithoutCgroups builds where nothing is mounted at /sys, as in a chroot.
func TestWithoutCgroups(t *testing.T) {
	store, dir := rig.Store(t), folder(t, oneCell)
	rig.Kofarm(t, 0, dir, store, "build")
	want := read(t, dir)
	own := filepath.Join(dir, "store")
	rig.Clone(t, store, own, "blobs", "cache", "refs/layer")
	r := rig.Run(t, dir, []string{"KOFARM_STORE=" + own}, "unshare", "--mount", "sh", "-euc", `umount -R /sys; exec "$0" build`, rig.Binary(t))
	if r.Code != 0 {
		t.Fatalf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if !strings.Contains(r.Stderr, "tasks run without a cgroup") {
		t.Errorf("nothing is said of the limits that there cannot be:\n%s", r.Stderr)
	}
	got := read(t, dir)
	same(t, "modules", got.modules, want.modules)
	same(t, "packages", got.packages, want.packages)
}

// folder makes a folder with a farm file, which any user can enter.
func folder(t testing.TB, file string) string {
	t.Helper()
	dir := rig.Folder(t)
	rig.Write(t, dir, "farm.yaml", file)
	return dir
}

// outcome is what a run has made: by cell "module version release", and by file.
type outcome struct {
	verdicts          map[string]string
	modules, packages map[string]string // sha256
}

func (o outcome) counts() map[string]int {
	n := map[string]int{}
	for _, v := range o.verdicts {
		word, _, _ := strings.Cut(v, ":")
		n[word]++
	}
	return n
}

// build builds the farm, none of whose cells the store has.
func build(t testing.TB, common, runtime string, uid uint32) outcome {
	t.Helper()
	dir := folder(t, farmFile)
	store := filepath.Join(dir, "store")
	rig.Clone(t, common, store, "cache", "refs/layer")
	binary := rig.Binary(t)
	if uid == 0 {
		rig.Clone(t, common, store, "blobs")
	} else { // files of its own, and a binary that it can reach
		binary = filepath.Join(dir, "kofarm")
		for _, args := range [][]string{
			{"rm", "-r", store}, {"mkdir", store, filepath.Join(store, "refs")},
			{"cp", "-r", filepath.Join(common, "refs/layer"), filepath.Join(store, "refs")}, // before the blobs that they name
			{"cp", "-r", filepath.Join(common, "cache"), filepath.Join(common, "blobs"), store},
			{"cp", rig.Binary(t), binary}, {"chown", "-R", fmt.Sprint(uid), dir},
		} {
			if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), binary, "build", "--runtime", runtime)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "KOFARM_STORE="+store)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("on %s as %d: %v\n%s", runtime, uid, err, out)
	}
	return read(t, dir)
}

// read reads what a run has left in its folder.
func read(t testing.TB, dir string) outcome {
	t.Helper()
	o := outcome{map[string]string{}, map[string]string{}, map[string]string{}}
	r := dist.Results(t, filepath.Join(dir, "dist"))
	for _, c := range r.Cells {
		cell := strings.Join([]string{c.Module, c.Version, c.Release}, " ")
		o.verdicts[cell] = fmt.Sprintf("%s: %s %s", c.Outcome, c.Phase, c.Message)
		var modules []string
		for _, m := range c.Modules {
			modules = append(modules, m.Name+" "+m.SHA256)
		}
		if c.Outcome == farm.Built {
			o.modules[cell] = strings.Join(modules, ", ")
		}
	}
	for _, f := range r.Files {
		o.packages[f.Path] = f.SHA256
	}
	return o
}

func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: %s: got %q, want %q", what, k, got[k], w)
		}
	}
	if len(got) != len(want) || len(want) == 0 {
		t.Errorf("%d %s, want %d", len(got), what, len(want))
	}
}
