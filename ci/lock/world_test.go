// Package lock_test holds what farm.lock and bundles promise against Debian's
// own packages: the same bytes from the same lock wherever it is built, without
// a network, and after a mirror has moved on.
package lock_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/matrix/lock"
)

// uid is an ordinary user.
const uid = 4242

// modules are a deb, a folder with a build package, and a local tarball, so that
// a lock has one of each kind.
const modules = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
  - {source: {dir: ./hello}, build-packages: [bc]}
  - {source: {tarball: src/tarred-1.0.tar}}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
`

const helloC = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n"

// folder is a farm's folder that every user can read.
func folder(t testing.TB, farmFile string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kofarm-lock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rig.Write(t, dir, "farm.yaml", farmFile)
	source(t, filepath.Join(dir, "hello"), "hello")
	rig.Write(t, dir, "hello/sub/empty", "")
	source(t, filepath.Join(dir, "tarred-1.0"), "tarred")
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "tar", "--sort=name", "--mtime=@1000000000", "--owner=0", "--group=0", "--mode=go=rX,u+rw", "-cf", "src/tarred-1.0.tar", "tarred-1.0")
	return dir
}

func source(t testing.TB, dir, name string) {
	t.Helper()
	rig.Write(t, dir, "dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME="+name+"\nDEST_MODULE_LOCATION=/updates\n")
	rig.Write(t, dir, "Makefile", "obj-m += "+name+".o\n")
	rig.Write(t, dir, name+".c", helloC)
}

func command(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// store is a store with the tests' common downloads and layers, and no result.
func store(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(dir, "store")
	rig.Clone(t, rig.Store(t), to, "blobs", "cache", "refs/layer")
	return to
}

// clone copies a farm's files, and its lock.
func clone(t testing.TB, from string) string {
	t.Helper()
	to := folder(t, string(read(t, from, "farm.yaml")))
	rig.Write(t, to, "farm.lock", string(read(t, from, "farm.lock")))
	return to
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func parse(t testing.TB, dir string) *lock.Lock {
	t.Helper()
	l, err := lock.Parse("farm.lock", read(t, dir, "farm.lock"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ordinary runs kofarm as a user without rights, to whom the folder goes.
func ordinary(t testing.TB, dir, store string, args ...string) {
	t.Helper()
	binary := filepath.Join(dir, "kofarm")
	if err := rig.LinkOrCopy(rig.Binary(t), binary); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "chmod", "755", binary)
	command(t, dir, "find", dir, "-type", "d", "-exec", "chown", "4242:4242", "{}", "+")
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, binary, "--store", store}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin", "TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// same compares two output folders: names, modes and bytes of all files. Of
// results.json times, memory and what was cached are left out, and of logs the
// bytes, as several compilers write to one.
func same(t testing.TB, got, want string) {
	t.Helper()
	a, b := files(t, got), files(t, want)
	if !slices.Equal(a, b) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
	for _, f := range a {
		name, _, _ := strings.Cut(f, " ")
		if !strings.HasPrefix(name, "logs/") && !bytes.Equal(content(t, got, name), content(t, want, name)) {
			t.Errorf("%s differs", name)
		}
	}
	if len(a) < 7 { // three packages, three logs, the report
		t.Errorf("there are only %q", a)
	}
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		list = append(list, rel+" "+fi.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func content(t testing.TB, dir, name string) []byte {
	t.Helper()
	data := read(t, dir, name)
	if name != farm.ResultsFile {
		return data
	}
	var r farm.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	r.Counts.Cached = 0
	for i := range r.Cells {
		r.Cells[i].Cached, r.Cells[i].Seconds, r.Cells[i].MemoryPeak = false, 0, 0
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests make namespaces and use the daemons that `ci/setup daemons` starts: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
