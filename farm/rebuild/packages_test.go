package rebuild

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm"
)

const (
	release = "6.1.0-9-amd64"
	marker  = "~Module signature appended~\n"
)

// withInfo is a module whose text differs.
func withInfo(t testing.TB, text string) []byte {
	return object(t, `__attribute__((section(".modinfo"), used)) static const char info[] = "license=GPL\0name=example\0vermagic=`+release+` SMP";
const char *text(void) { return "`+text+`"; }`)
}

// signed appends what is formed like a signature.
func signed(module []byte) []byte {
	pkcs7 := bytes.Repeat([]byte{0x30}, 16)
	tail := append([]byte{0, 0, 2, 0, 0, 0, 0, 0}, 0, 0, 0, byte(len(pkcs7)))
	return slices.Concat(module, pkcs7, tail, []byte(marker))
}

func packed(data []byte) []dkms.Module {
	return []dkms.Module{{Dest: "example.ko", Size: int64(len(data)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}}
}

// pack packs a module in every format, and gives the files' paths.
func pack(t testing.TB, module []byte) []string {
	t.Helper()
	dir, epoch := t.TempDir(), time.Unix(1700000000, 0)
	var paths []string
	write := func(name string, f func(w io.Writer) error) {
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tarball := func(w io.Writer) error {
		info := dkms.Info{Name: "example", Version: "1.0", Conf: []byte("PACKAGE_NAME=example\nPACKAGE_VERSION=1.0\n"), Epoch: epoch, Layout: dkms.BinariesOnly, Compression: dkms.Gzip}
		return dkms.Package(w, info, []dkms.Build{{Kernel: release, Arch: "x86_64", Modules: packed(module)}})
	}
	var inner bytes.Buffer
	if err := tarball(&inner); err != nil {
		t.Fatal(err)
	}
	info := deb.Info{Module: "example", ModuleVersion: "1.0", Arch: "amd64", Licenses: []string{"GPL"}, Authors: []string{"me"}, Epoch: epoch}
	write("a.dkms.tar.gz", tarball)
	write("b.deb", deb.Modules{Info: info, Kernel: release, Compress: deb.XZ, Files: packed(module)}.Write)
	prebuilt := deb.Prebuilt{Kernel: release, Arch: "x86_64", Size: int64(inner.Len()), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(inner.Bytes())), nil }}
	write("c.deb", deb.DKMS{Info: info, Conf: []byte("PACKAGE_NAME=example\nPACKAGE_VERSION=1.0\n"), Source: func(func(dkms.File, error) bool) {}, Prebuilt: []deb.Prebuilt{prebuilt}}.Write)
	write("d.rpm", func(w io.Writer) error {
		return rpm.Package(w, rpm.Info{Style: rpm.KernelModule, Name: "example", Version: "1.0", License: "GPL-2.0-only", Epoch: epoch},
			rpm.Build{Kernel: rpm.Kernel{Release: release, Arch: "x86_64"}, Compression: "xz", Modules: packed(module)})
	})
	write("example.ko", func(w io.Writer) error { _, err := w.Write(module); return err })
	return paths
}

func TestModulesIn(t *testing.T) {
	module := withInfo(t, "one")
	for _, path := range pack(t, signed(module)) {
		found, err := modulesIn(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || found[0].name != "example.ko" || !bytes.Equal(found[0].data, module) {
			t.Errorf("%s: %d modules, or not as it was built", path, len(found))
		}
	}
}

func TestSignaturesDoNotCount(t *testing.T) {
	module := withInfo(t, "one")
	v := &Verifier{Dir: t.TempDir()}
	plain := pack(t, module)
	for i, path := range pack(t, signed(module)) {
		r := FileVerdict{Path: path, Verdict: Reproduced, file: &file{path: path}}
		var err error
		if r.SHA256, err = fileSum(path); err != nil {
			t.Fatal(err)
		}
		if err := v.judgePackage(&r, plain[i]); err != nil || r.Verdict != Reproduced || !r.Signed {
			t.Errorf("%s: %v %+v", path, err, r)
		}
	}
}

func TestPackagesDiffer(t *testing.T) {
	v := &Verifier{Dir: t.TempDir()}
	was, now := pack(t, signed(withInfo(t, "the first"))), pack(t, withInfo(t, "another 1"))
	for i := range was[:len(was)-1] { // packages
		r := FileVerdict{Path: was[i], Verdict: Reproduced, file: &file{path: was[i]}}
		if err := v.judgePackage(&r, now[i]); err != nil {
			t.Fatal(err)
		}
		if r.Verdict != Differs || len(r.Differences) == 0 || !strings.Contains(r.Differences[0].Member, "example.ko") ||
			r.Differences[0].Section != ".rodata.str1.1" || r.Differences[0].Was != `"the first"` || r.Differences[0].Now != `"another 1"` {
			t.Errorf("%s: %+v", was[i], r)
		}
		for _, suffix := range []string{wasSuffix, nowSuffix} {
			if _, err := os.Stat(r.Kept + suffix); err != nil {
				t.Error(err)
			}
		}
	}
}

// What differs in a package's metadata alone is told, too.
func TestMetadataDiffers(t *testing.T) {
	path := pack(t, withInfo(t, "one"))[0]
	dir := t.TempDir()
	run(t, dir, nil, "tar", "-xf", path)
	other := filepath.Join(dir, "a.dkms.tar.gz")
	run(t, dir, nil, "tar", "-czf", other, "--mtime=@5", "dkms_main_tree", "dkms_binaries_only")
	all, err := explainPackage(path, other)
	if err != nil || len(all) != 1 || !strings.Contains(all[0].Note, "all files in it are the same") {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestHostileFiles(t *testing.T) {
	good := pack(t, withInfo(t, "one"))
	for _, path := range good {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data[:len(data)/2], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := modulesIn(path); err == nil && !strings.HasSuffix(path, ".ko") {
			t.Errorf("half of %s is read without an error", path)
		}
		r := FileVerdict{Path: path, Verdict: Reproduced, file: &file{path: path}, SHA256: "half"}
		if err := (&Verifier{Dir: t.TempDir()}).judgePackage(&r, pack(t, withInfo(t, "one"))[0]); err != nil || r.Verdict != Differs {
			t.Errorf("half of %s: %v, %+v", path, err, r.Verdict)
		}
	}
	if _, err := (&Verifier{}).Files(t.Context(), nil, "", []string{filepath.Join(t.TempDir(), "x.zip")}); err == nil {
		t.Error("a zip file is taken")
	}
}
