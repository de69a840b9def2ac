// Package verify_test has kofarm verify build real modules again, and catch
// some that are not reproducible.
package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/rebuild"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers and change users: run them as root")
		os.Exit(1)
	}
	os.Setenv("DOCKER_HOST", "unix:///run/kofarm-test/docker.sock")
	os.Setenv("CONTAINERD_ADDRESS", "/run/kofarm-test/containerd.sock")
	os.Exit(m.Run())
}

const cloud = `
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
`

// realFarm packs two real modules in every format, one of them for a kernel
// with BTF, too.
const realFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
  - source: {deb: bbswitch-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
  - suite: bookworm-backports
    releases: [{latest: 1}]
    flavors: [cloud-amd64]
exclude:
  - {module: bbswitch, release: ">=6.12"}
output:
  dkms: {layouts: [binaries-only, stub, full], compression: zst}
  deb: {packages: [modules, meta, dkms, source], prebuilt: true}
  rpm: {style: kernel-module, packages: [modules, dkms], prebuilt: true}
`

// folder makes a folder with a farm file, which any user can enter.
func folder(t testing.TB, file string) string {
	t.Helper()
	dir := rig.Folder(t)
	rig.Write(t, dir, "farm.yaml", file)
	return dir
}

// verify runs kofarm verify, and reads its report.
func verify(t testing.TB, want int, dir, store string, args ...string) *rebuild.Report {
	t.Helper()
	out := rig.Kofarm(t, want, dir, store, append([]string{"verify", "--json"}, args...)...)
	var r rebuild.Report
	if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
		t.Fatalf("%v\n%s", err, out.Stdout)
	}
	noLeftovers(t, store, out.PID)
	return &r
}

// folders are where a kofarm verify builds: others may run on the same store.
func folders(store string, pid int) []string {
	found, _ := filepath.Glob(filepath.Join(store, "tmp", fmt.Sprintf("verify-%d-*", pid)))
	return found
}

func noLeftovers(t testing.TB, store string, pid int) {
	t.Helper()
	if left := folders(store, pid); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// records is what the store knows of cells, by key.
func records(t testing.TB, store string, r *farm.Report) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, c := range r.Cells {
		if c.Key != "" {
			data, err := os.ReadFile(filepath.Join(store, "refs", "result", c.Key))
			if err != nil {
				t.Fatal(err)
			}
			all[c.Key] = string(data)
		}
	}
	return all
}

// allReproduced checks that there is a verdict on every module and every
// package of a dist, and that it is the best.
func allReproduced(t testing.TB, r *rebuild.Report, built *farm.Report) {
	t.Helper()
	modules, want := 0, 0
	for _, c := range r.Cells {
		if c.Verdict != rebuild.Reproduced {
			t.Errorf("%s on %s: %s %s", c.Module, c.Release, c.Verdict, c.Reason)
		}
		for _, f := range c.Files {
			if f.Verdict != rebuild.Reproduced || f.SHA256 == "" || f.Rebuilt != f.SHA256 {
				t.Errorf("%s on %s: %+v", c.Module, c.Release, f)
			}
			if strings.HasSuffix(f.Path, ".ko") {
				modules++
			}
		}
	}
	for _, c := range built.Cells {
		want += len(c.Modules)
	}
	if modules != want || want == 0 {
		t.Errorf("verdicts on %d modules, want %d", modules, want)
	}
	byPath := map[string]rebuild.FileVerdict{}
	for _, f := range r.Files {
		byPath[f.Path] = f
	}
	for _, f := range built.Files {
		if v := byPath[f.Path]; v.Verdict != rebuild.Reproduced || v.SHA256 != f.SHA256 {
			t.Errorf("%s: %+v", f.Path, v)
		}
	}
	if len(r.Files) != len(built.Files) {
		t.Errorf("verdicts on %d files, want %d", len(r.Files), len(built.Files))
	}
}

func TestReproduced(t *testing.T) {
	store, dir := rig.Store(t), folder(t, realFarm)
	rig.Kofarm(t, 0, dir, store, "build")
	built := dist.Results(t, filepath.Join(dir, "dist"))
	before := records(t, store, built)
	r := verify(t, 0, dir, store, "--runtime", "embedded,docker,containerd")
	allReproduced(t, r, built)
	if len(built.Files) < 15 || len(r.Runtimes) != 3 {
		t.Errorf("%d files on %q", len(built.Files), r.Runtimes)
	}
	for key, was := range before {
		if now := records(t, store, built)[key]; now != was {
			t.Errorf("the store's result %s was %s, is %s", key, was, now)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "kofarm-differences")); err == nil {
		t.Error("there is a folder of differences")
	}
}

// TestSigned verifies a dist whose modules and packages are signed, as a whole
// and file by file, without the keys.
func TestSigned(t *testing.T) {
	store, dir := rig.Store(t), folder(t, "")
	openssl := exec.CommandContext(t.Context(), "openssl", "req", "-new", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=test",
		"-outform", "DER", "-out", "mok.der", "-keyout", "mok.key", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
	openssl.Dir = dir
	if out, err := openssl.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const one = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}` + cloud + `
output:
  modules: xz
  dkms: {layouts: [full], compression: xz}
  deb: {packages: [modules, meta, dkms], prebuilt: true}
  rpm: {style: kernel-module, packages: [modules]}
`
	rig.Write(t, dir, "farm.yaml", one+"  sign-modules: {key: mok.key, certificate: mok.der}\n")
	rig.Kofarm(t, 0, dir, store, "build")
	built := dist.Results(t, filepath.Join(dir, "dist"))
	rig.Write(t, dir, "farm.yaml", one) // whoever verifies has no key
	if err := os.Remove(filepath.Join(dir, "mok.key")); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range built.Files {
		paths = append(paths, filepath.Join("dist", f.Path))
	}
	for name, r := range map[string]*rebuild.Report{"the farm": verify(t, 0, dir, store), "files": verify(t, 0, dir, store, paths...)} {
		if len(r.Files) != len(paths) {
			t.Errorf("%s: %d files, want %d", name, len(r.Files), len(paths))
		}
		for _, f := range r.Files {
			meta := strings.Contains(f.Path, "modules-cloud") // holds no module
			if f.Verdict != rebuild.Reproduced || f.Signed == meta {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

// own writes a module whose Makefile defines BUILT.
func own(t testing.TB, dir, name, built string) {
	t.Helper()
	rig.Write(t, dir, name+"/dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME="+name+"\nDEST_MODULE_LOCATION=/updates\n")
	rig.Write(t, dir, name+"/Makefile", "ccflags-y += -DBUILT=\"\\\""+built+"\\\"\"\nobj-m += "+name+".o\n")
	rig.Write(t, dir, name+"/"+name+".c", `#include <linux/module.h>
static int __init start(void) { pr_info("built %s\n", BUILT); return 0; }
static void __exit stop(void) {}
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
`)
	for _, part := range []string{"alpha", "bravo", "charlie", "delta", "echo"} {
		rig.Write(t, dir, name+"/parts/"+part, part)
	}
}

// ownFarm is a farm of modules in folders, for one kernel.
func ownFarm(names ...string) string {
	var b strings.Builder
	b.WriteString("modules:\n")
	for _, n := range names {
		fmt.Fprintf(&b, "  - source: {dir: %s}\n", n)
	}
	return b.String() + cloud
}

func TestNotReproducible(t *testing.T) {
	store := rig.Store(t)
	tests := map[string]struct {
		built string
		want  []string // causes that are proven, all of them
		was   string   // is part of what the difference shows
	}{
		"dated":   {"$(shell date)", []string{"clock"}, "UTC 20"},
		"dice":    {"dice $(shell od -An -N8 -tx8 /dev/urandom | tr -d ' ')", []string{"random"}, "dice "},
		"listed":  {"$(shell ls -U $(src)/parts)", []string{"order"}, "charlie"},
		"machine": {"on $(shell hostname) $(shell id -u) $(shell nproc)", []string{"host", "user", "cpus"}, "on kofarm 0 "},
		"steady":  {"$(words a b c)", nil, ""},
	}
	var names []string
	for name := range tests {
		names = append(names, name)
	}
	slices.Sort(names)
	dir := folder(t, ownFarm(names...))
	for name, tt := range tests {
		own(t, dir, name, tt.built)
	}
	rig.Kofarm(t, 0, dir, store, "build")
	r := verify(t, 1, dir, store)
	for _, c := range r.Cells {
		tt := tests[c.Module]
		if tt.want == nil {
			if c.Verdict != rebuild.Reproduced || len(c.Causes) > 0 {
				t.Errorf("%s: %+v", c.Module, c)
			}
			continue
		}
		if c.Verdict != rebuild.Differs || !slices.Equal(proven(c), tt.want) {
			t.Errorf("%s: %s because of %+v, want %q", c.Module, c.Verdict, c.Causes, tt.want)
		}
		f := c.Files[slices.IndexFunc(c.Files, func(f rebuild.FileVerdict) bool { return strings.HasSuffix(f.Path, ".ko") })]
		if len(f.Differences) == 0 || !strings.HasPrefix(f.Differences[0].Section, ".rodata") || !strings.Contains(f.Differences[0].Was, tt.was) {
			t.Errorf("%s: %+v", c.Module, f.Differences)
		}
		for _, suffix := range []string{".was", ".rebuilt"} {
			if _, err := os.Stat(filepath.Join(dir, f.Kept+suffix)); err != nil {
				t.Error(err)
			}
		}
		said, err := os.ReadFile(filepath.Join(dir, f.Diffoscope))
		if err != nil || !bytes.Contains(said, []byte(tt.was)) {
			t.Errorf("%s: diffoscope (which ci/setup test installs) says %.300s, %v", c.Module, said, err)
		}
	}
	if len(r.Cells) != len(tests) {
		t.Errorf("%d cells, want %d", len(r.Cells), len(tests))
	}
	for _, f := range r.Files {
		want := rebuild.Differs
		if strings.HasPrefix(f.Path, "steady") {
			want = rebuild.Reproduced
		}
		if f.Verdict != want || want == rebuild.Differs && !strings.HasSuffix(f.Differences[0].Member, ".ko") {
			t.Errorf("%s: %s %+v", f.Path, f.Verdict, f.Differences)
		}
	}
	text := rig.Kofarm(t, 1, dir, store, "verify", "--cell", "dice").Stdout
	if !strings.Contains(text, "cause: random: ") || strings.Contains(text, "listed") {
		t.Errorf("of the chosen cell it says\n%s", text)
	}
}

// TestTampered verifies a module that somebody has changed afterwards.
func TestTampered(t *testing.T) {
	store := rig.Store(t)
	dir := folder(t, ownFarm("steady"))
	own(t, dir, "steady", "$(words a b c)")
	rig.Kofarm(t, 0, dir, store, "build")
	tar := exec.CommandContext(t.Context(), "sh", "-euc", "tar -xf dist/*.dkms.tar.gz; cp dkms_main_tree/*/*/module/steady.ko .")
	tar.Dir = dir
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(dir, "steady.ko")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(t, 0, dir, store, "steady.ko"); r.Files[0].Verdict != rebuild.Reproduced {
		t.Errorf("as it was built: %+v", r.Files)
	}
	at := bytes.Index(data, []byte("built %s"))
	if at < 0 {
		t.Fatal("the module's text is not there")
	}
	data[at] = 'B'
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	r := verify(t, 1, dir, store, "steady.ko")
	if len(r.Cells) != 1 || len(r.Cells[0].Causes) == 0 || r.Cells[0].Causes[0].Kind != rebuild.CauseInputs || !r.Cells[0].Causes[0].Proven {
		t.Errorf("got %+v", r.Cells)
	}
	if f := r.Files[0]; f.Verdict != rebuild.Differs || !strings.HasPrefix(f.Differences[0].Section, ".rodata") {
		t.Errorf("got %+v", f)
	}
}

func TestCannot(t *testing.T) {
	store := rig.Store(t)
	dir := folder(t, ownFarm("steady", "broken", "later"))
	for _, name := range []string{"steady", "broken", "later"} {
		own(t, dir, name, "x")
	}
	rig.Write(t, dir, "broken/broken.c", "#error no\n")
	rig.Write(t, dir, "now.yaml", ownFarm("steady", "broken"))
	rig.Write(t, dir, "later/parts/stamp", time.Now().String()) // so that no run before has built it
	rig.Kofarm(t, 1, dir, store, "build", "now.yaml")
	r := verify(t, 3, dir, store)
	for _, c := range r.Cells {
		want := map[string]struct {
			verdict rebuild.Verdict
			reason  string
		}{"steady": {rebuild.Reproduced, ""}, "broken": {rebuild.Cannot, "its build failed: make"}, "later": {rebuild.Cannot, "not built yet"}}[c.Module]
		if c.Verdict != want.verdict || !strings.Contains(c.Reason, want.reason) {
			t.Errorf("%s: %s: %s", c.Module, c.Verdict, c.Reason)
		}
	}
	if out := rig.Kofarm(t, 2, dir, store, "verify", "--cell", "nothing"); !strings.Contains(out.Stderr, "fits no cell") {
		t.Errorf("got %s", out.Stderr)
	}
	// A module of somebody else's kernel.
	other := rig.Write(t, dir, "other.c", `__attribute__((section(".modinfo"), used)) static const char info[] = "license=GPL\0name=other\0vermagic=5.0.0-other SMP";`)
	if out, err := exec.CommandContext(t.Context(), "gcc", "-c", "-o", filepath.Join(dir, "other.ko"), other).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r = verify(t, 3, dir, store, "other.ko")
	if f := r.Files[0]; f.Verdict != rebuild.Cannot || !strings.Contains(f.Reason, "no cell") {
		t.Errorf("got %+v", f)
	}
}

// TestOtherUser verifies where kofarm can step down to an ordinary user, who uses
// layers that root has unpacked.
func TestOtherUser(t *testing.T) {
	dir := folder(t, ownFarm("steady", "machine"))
	own(t, dir, "steady", "$(words a b c)")
	own(t, dir, "machine", "by $(shell id -u)")
	rig.Kofarm(t, 0, dir, rig.Store(t), "build")
	store := rig.FreshStore(t, dir)
	rig.Kofarm(t, 0, dir, store, "build")
	r := verify(t, 1, dir, store)
	if !slices.Contains(r.Varied, "kofarm's user") {
		t.Errorf("varied: %q", r.Varied)
	}
	for _, c := range r.Cells {
		want := map[string]rebuild.Verdict{"steady": rebuild.Reproduced, "machine": rebuild.Differs}[c.Module]
		if c.Verdict != want {
			t.Errorf("%s: %+v", c.Module, c)
		}
		if got := proven(c); want == rebuild.Differs && !slices.Equal(got, []string{"user"}) {
			t.Errorf("%s differs because of %q", c.Module, got)
		}
	}
}

// proven are the kinds of causes that are proven.
func proven(c rebuild.CellVerdict) []string {
	var kinds []string
	for _, cause := range c.Causes {
		if cause.Proven {
			kinds = append(kinds, cause.Kind)
		}
	}
	return kinds
}

// TestKilled kills kofarm verify while a container runs: its other process ends,
// and the next use of the store tidies up.
func TestKilled(t *testing.T) {
	dir := folder(t, ownFarm("slow"))
	own(t, dir, "slow", "$(shell test $$(hostname) = kofarm || sleep 60)")
	rig.Kofarm(t, 0, dir, rig.Store(t), "build")
	store := rig.FreshStore(t, dir)
	rig.Kofarm(t, 0, dir, store, "build")
	cmd := exec.CommandContext(t.Context(), rig.Binary(t), "--store", store, "--quiet", "verify")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it is killed
	await(t, "a build in the other store", func() bool { return len(running(t, store)) > 1 })
	if len(folders(store, cmd.Process.Pid)) == 0 {
		t.Error("there is no other store")
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the other process", func() bool { return len(running(t, store)) == 0 })
	rig.Kofarm(t, 0, dir, store, "status")
	noLeftovers(t, store, cmd.Process.Pid)
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

// running lists processes that were told of the store or run below it.
func running(t testing.TB, store string) []string {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, p := range all {
		args, _ := os.ReadFile(p)
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(p), "cwd"))
		if bytes.Contains(args, []byte(store)) || strings.HasPrefix(cwd, store) {
			found = append(found, p)
		}
	}
	return found
}
