package efivars

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the goldens anew")

// empty is the store that Debian's ovmf is delivered with.
func empty(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatalf("%v (ci/setup test installs it)", err)
	}
	return data
}

// TestTrust has the bytes that kernels have taken (see ci/boot's TestUEFI).
func TestTrust(t *testing.T) {
	store := empty(t)
	got, err := Trust(store, []byte("certificate"), []byte("another"))
	if err != nil {
		t.Fatal(err)
	}
	const header = 0x64
	if !bytes.Equal(got[:header], store[:header]) || len(got) != len(store) {
		t.Error("more than the variables has changed")
	}
	dump := hex.Dump(bytes.TrimRight(got[header:0x1000], "\xff"))
	golden := filepath.Join("testdata", "db.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(dump), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || dump != string(want) {
		t.Errorf("%v\n%s", err, dump)
	}
}

func TestTrustRefuses(t *testing.T) {
	full, err := Trust(empty(t), []byte("certificate"))
	if err != nil {
		t.Fatal(err)
	}
	changed := func(at int, to byte) []byte {
		store := bytes.Clone(empty(t))
		store[at] = to
		return store
	}
	for name, store := range map[string][]byte{
		"nothing":                  nil,
		"cut off":                  empty(t)[:0x60],
		"shorter than it says":     empty(t)[:0x1000],
		"another volume":           changed(0x10, 0),
		"no volume":                changed(0x28, 0),
		"a header of another size": changed(0x31, 0xff),
		"another store":            changed(0x48, 0),
		"not formatted":            changed(0x5c, 0),
		"with a variable":          full,
	} {
		if _, err := Trust(store, []byte("certificate")); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Trust(empty(t), make([]byte, 1<<20)); err == nil || errors.Is(err, ErrFormat) {
		t.Errorf("too large a certificate: %v", err)
	}
}

func FuzzTrust(f *testing.F) {
	store := empty(f)[:0x80]
	f.Add(store)
	store = bytes.Clone(store)
	copy(store[0x58:], "\x38\x00\x00\x00")
	f.Add(store)
	f.Fuzz(func(t *testing.T, store []byte) {
		if got, err := Trust(store, nil); err == nil && len(got) != len(store) {
			t.Fatal(len(got))
		}
	})
}
