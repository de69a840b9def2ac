package packages_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestSourceFromRPM makes modules of what was packaged: a DKMS-enabled RPM and a
// source RPM are sources like the deb that both were made from, and the modules
// are the same.
func TestSourceFromRPM(t *testing.T) {
	first := t.TempDir()
	want := build(t, first, debianFarm("  rpm: {style: kernel-module, packages: [dkms, source]}\n"+signed(t)))
	for _, source := range []string{one(t, first, "acpi-call-dkms-1.2.2-1.noarch.rpm"), one(t, first, "kernel-module-acpi-call-1.2.2-1.src.rpm")} {
		dir := t.TempDir()
		yaml := strings.Replace(debianFarm("  deb: {}\n  rpm: {style: kernel-module}\n"), "{deb: acpi-call-dkms, suite: bookworm}", "{rpm: "+source+"}", 1)
		got := build(t, dir, yaml)
		if len(got.Cells) != 2 || got.Counts.Built != 2 {
			t.Fatalf("%s: %+v", filepath.Base(source), got.Counts)
		}
		for i, c := range got.Cells {
			if len(c.Modules) != 1 || c.Modules[0] != want.Cells[i].Modules[0] {
				t.Errorf("%s: %+v, of the deb %+v", filepath.Base(source), c.Modules, want.Cells[i].Modules)
			}
			one(t, dir, "acpi-call-modules-"+c.Release+"_1.2.2_amd64.deb")
			one(t, dir, "kernel-module-acpi-call-1.2.2-"+strings.ReplaceAll(c.Release, "-", "_")+".x86_64.rpm")
		}
	}
}

// TestPackage packages again what is built, and builds nothing: not where results
// are in the store, and not where there are none.
func TestPackage(t *testing.T) {
	dir := t.TempDir()
	yaml := debianFarm("  deb: {repository: {}}\n  rpm: {style: kernel-module, repository: {}}\n" + signed(t))
	build(t, dir, yaml)
	want := tree(t, filepath.Join(dir, "dist"))
	if err := os.RemoveAll(filepath.Join(dir, "dist")); err != nil {
		t.Fatal(err)
	}
	r := rig.Kofarm(t, 0, dir, rig.Store(t), "package")
	contains(t, r.Stdout, "2 built (2 of 2 cells were in the store)")
	got := tree(t, filepath.Join(dir, "dist"))
	for name, data := range want {
		if !bytes.Equal(got[name], data) {
			t.Errorf("%s differs", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}

	store := t.TempDir()
	rig.Clone(t, rig.Store(t), store, "cache")
	r = rig.Kofarm(t, 1, dir, store, "package", "-o", filepath.Join(dir, "none"))
	contains(t, r.Stdout, "0 built", "2 not yet built", "0 files")
	if _, err := os.Stat(filepath.Join(store, "refs/result")); err == nil {
		t.Error("something was built")
	}
}

// TestSignRefused wants a key that cannot sign to be found out before anything is
// built, with its place in the farm file and without a word of the secret.
func TestSignRefused(t *testing.T) {
	const secret = "not so correct horse"
	t.Setenv("KOFARM_TEST_WRONG", secret)
	t.Setenv("KOFARM_TEST_KEY", secret)
	for _, tt := range []struct {
		name, sign string
		says       []string
	}{
		{"no file", "{key: nowhere.asc}", []string{"nowhere.asc", "no such file"}},
		{"not a key", "{key: farm.yaml}", []string{"farm.yaml", "not an OpenPGP key"}},
		{"public key", "{key: " + publicKey(t) + "}", []string{"no usable secret key"}},
		{"no variable", "{key-env: KOFARM_TEST_UNSET}", []string{"the environment variable KOFARM_TEST_UNSET is not set"}},
		{"not a key in a variable", "{key-env: KOFARM_TEST_KEY}", []string{"$KOFARM_TEST_KEY", "not an OpenPGP key"}},
		{"passphrase not named", "{key: " + secretKey(t) + "}", []string{"passphrase is needed"}},
		{"passphrase not set", "{key: " + secretKey(t) + ", passphrase-env: KOFARM_TEST_UNSET}", []string{"the environment variable KOFARM_TEST_UNSET is not set"}},
		{"wrong passphrase", "{key: " + secretKey(t) + ", passphrase-env: KOFARM_TEST_WRONG}", []string{"passphrase does not fit"}},
		{"both", "{key: x, key-env: Y}", []string{"exactly one of key and key-env"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			rig.Write(t, dir, "farm.yaml", debianFarm(fmt.Sprintf("  deb: {repository: {}}\n  sign: %s\n", tt.sign)))
			for _, command := range []string{"build", "package"} {
				r := rig.Kofarm(t, 2, dir, rig.Store(t), "-v", command)
				contains(t, r.Stderr, append(tt.says, "farm.yaml:6:9: ")...)
				if all := r.Stdout + r.Stderr; strings.Contains(all, secret) || strings.Contains(all, passphrase) {
					t.Errorf("the secret is in\n%s", all)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "dist")); err == nil {
				t.Error("dist was written")
			}
		})
	}
}
