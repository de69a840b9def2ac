package images

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/images/apt"
)

// TestSymversKept reads a kernel's symbols from its headers once, and from the
// store from then on, unless what is there is damaged.
func TestSymversKept(t *testing.T) {
	const release = "6.1.0-1-amd64"
	want := strings.Repeat("0x12345678\tsymbol\tvmlinux\tEXPORT_SYMBOL_GPL\t\n", 1000)
	deb := debFile(t, "linux-headers-"+release, "", "", func(dir string) {
		write(t, dir, "usr/src/linux-headers-"+release+"/Module.symvers", want, 0o644)
	})
	s := openStore(t)
	a := &Assembler{Store: s, Fetcher: local{}}
	read := func(why string) {
		t.Helper()
		got, err := a.Symvers(t.Context(), Inputs{Headers: []*apt.Package{deb}}, release)
		if err != nil || string(got) != want {
			t.Fatalf("%s: %d bytes, error %v, want %d bytes", why, len(got), err, len(want))
		}
	}
	read("from the package")
	away := deb.Filename + ".away"
	if err := os.Rename(deb.Filename, away); err != nil {
		t.Fatal(err)
	}
	read("from the store, the package is gone")
	d, err := s.Ref(symversRef, deb.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.BlobDir(), d.Digest.Hex, strings.Repeat("x", int(d.Size)), 0o644)
	if _, err := a.Symvers(t.Context(), Inputs{Headers: []*apt.Package{deb}}, release); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a damaged blob without the package: got error %v, want the missing package's", err)
	}
	if err := os.Rename(away, deb.Filename); err != nil {
		t.Fatal(err)
	}
	read("from the package, the blob is damaged")
	if err := os.Remove(deb.Filename); err != nil {
		t.Fatal(err)
	}
	read("from the store again")
}
