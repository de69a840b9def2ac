// Package lock_test holds what farm.lock and bundles promise against Debian's
// own packages: the same bytes from the same lock wherever it is built, without
// a network, and after a mirror has moved on.
package lock_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
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
	dir := rig.Folder(t)
	rig.Write(t, dir, "farm.yaml", farmFile)
	source(t, filepath.Join(dir, "hello"), "hello")
	rig.Write(t, dir, "hello/sub/empty", "")
	source(t, filepath.Join(dir, "tarred-1.0"), "tarred")
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	rig.Command(t, dir, "tar", "--sort=name", "--mtime=@1000000000", "--owner=0", "--group=0", "--mode=go=rX,u+rw", "-cf", "src/tarred-1.0.tar", "tarred-1.0")
	return dir
}

func source(t testing.TB, dir, name string) {
	t.Helper()
	rig.Write(t, dir, "dkms.conf", "PACKAGE_NAME="+name+"\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME="+name+"\nDEST_MODULE_LOCATION=/updates\n")
	rig.Write(t, dir, "Makefile", "obj-m += "+name+".o\n")
	rig.Write(t, dir, name+".c", helloC)
}

// clone copies a farm's files, and its lock.
func clone(t testing.TB, from string) string {
	t.Helper()
	to := folder(t, string(rig.Read(t, from, "farm.yaml")))
	rig.Write(t, to, "farm.lock", string(rig.Read(t, from, "farm.lock")))
	return to
}

func parse(t testing.TB, dir string) *lock.Lock {
	t.Helper()
	l, err := lock.Parse("farm.lock", rig.Read(t, dir, "farm.lock"))
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
	rig.Command(t, dir, "chmod", "755", binary)
	rig.Command(t, dir, "find", dir, "-type", "d", "-exec", "chown", "4242:4242", "{}", "+")
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, binary, "--store", store}, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin", "TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// same compares two output folders.
func same(t testing.TB, got, want string) {
	t.Helper()
	dist.Same(t, got, want)
	if files := rig.Files(t, got); len(files) < 7 { // three packages, three logs, the report
		t.Errorf("there are only %q", files)
	}
}

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests make namespaces and use the daemons that `ci/setup daemons` starts: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
