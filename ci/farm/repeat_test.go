package farm_test

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// TestTwice builds 12 cells twice from empty stores, in different folders, with
// another umask, time zone, locale and number of builds at a time.
func TestTwice(t *testing.T) {
	first, second := rig.Folder(t), rig.Folder(t)
	for _, dir := range []string{first, second} {
		rig.Write(t, dir, "farm.yaml", matrixFarm)
	}
	rig.Kofarm(t, 0, first, filepath.Join(first, "store"), "build")
	other := rig.Run(t, second, []string{"TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8", "LANG=tr_TR.UTF-8"},
		"sh", "-c", `umask 077; exec "$0" "$@"`, rig.Binary(t), "--store", filepath.Join(second, "another/place"), "build", "--parallel", "3")
	if other.Code != 0 {
		t.Fatalf("exit status %d\n%s", other.Code, other.Stderr)
	}
	dist.Same(t, filepath.Join(second, "dist"), filepath.Join(first, "dist"))
	r := dist.Results(t, filepath.Join(first, "dist"))
	if want := (farm.Counts{Built: 12}); r.Counts != want || len(r.Files) != 24 {
		t.Errorf("got %+v and %d files, want %+v and 24", r.Counts, len(r.Files), want)
	}
	noTemporaries(t, filepath.Join(first, "store"), filepath.Join(first, "dist"))
}

// TestOrdinaryUser builds the small farm as a user without any rights, on a
// store of its own.
func TestOrdinaryUser(t *testing.T) {
	common, want := reference(t)
	const uid = 4242
	home := rig.Folder(t)
	store := filepath.Join(home, "store")
	rig.Clone(t, common, store, "blobs", "cache", "refs/layer")
	binary := filepath.Join(home, "kofarm")
	if err := rig.LinkOrCopy(rig.Binary(t), binary); err != nil {
		t.Fatal(err)
	}
	rig.Write(t, home, "farm.yaml", smallFarm)
	for _, args := range [][]string{{"chmod", "755", binary}, {"find", home, "-type", "d", "-exec", "chown", "4242:4242", "{}", "+"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), binary, "--store", store, "build")
	cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dist.Same(t, filepath.Join(home, "dist"), want)
}
