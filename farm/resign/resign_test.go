package resign

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/edit"
	"github.com/kofarm/kofarm/farm/pack/rpm"
)

func tool(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t testing.TB) *modsign.Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Key"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	k, err := modsign.Load(modsign.Source{Key: write(t, filepath.Join(t.TempDir(), "key.pem"), data)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const release = "6.1.0-9-amd64"

// newModule compiles what passes for a module.
func newModule(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "m.c"), []byte(`__attribute__((section(".modinfo"), used)) static const char info[] = "license=GPL\0author=me\0name=example\0vermagic=`+release+` SMP";`))
	tool(t, dir, "gcc", "-c", "m.c")
	data, err := os.ReadFile(filepath.Join(dir, "m.o"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func modules(data []byte) []dkms.Module {
	return []dkms.Module{{Dest: "example.ko", Size: int64(len(data)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}}
}

var epoch = time.Unix(1700000000, 0)

// tarball packs a module.
func tarball(t testing.TB, module []byte, c dkms.Compression) []byte {
	t.Helper()
	info := dkms.Info{Name: "example", Version: "1.0", Conf: []byte("PACKAGE_NAME=example\nPACKAGE_VERSION=1.0\n"), Epoch: epoch, Layout: dkms.Full, Compression: c}
	info.Source = func(yield func(dkms.File, error) bool) {
		// A .ko in a source, as some vendors have it, is source.
		yield(dkms.File{Path: "blob.ko", Mode: 0o644, Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("blob")), nil }}, nil)
	}
	var b bytes.Buffer
	if err := dkms.Package(&b, info, []dkms.Build{{Kernel: release, Arch: "x86_64", Modules: modules(module)}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packages packs a module in every format and compression.
func packages(t testing.TB, module []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"example.ko": module}
	for _, c := range dkms.Compressions() {
		all["a.dkms.tar."+string(c)] = tarball(t, module, c)
	}
	info := deb.Info{Module: "example", ModuleVersion: "1.0", Arch: "amd64", Licenses: []string{"GPL"}, Authors: []string{"me"}, Epoch: epoch}
	for _, c := range []deb.Compression{deb.None, deb.XZ, deb.Zstd, deb.Gzip} {
		var b bytes.Buffer
		info.Compression = c
		if err := (deb.Modules{Info: info, Kernel: release, Compress: c, Files: modules(module)}).Write(&b); err != nil {
			t.Fatal(err)
		}
		all["modules-"+string(c)+".deb"] = b.Bytes()
	}
	inner := tarball(t, module, dkms.Gzip)
	prebuilt := deb.Prebuilt{Kernel: release, Arch: "x86_64", Size: int64(len(inner)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(inner)), nil }}
	var b bytes.Buffer
	info.Compression = ""
	d := deb.DKMS{Info: info, Conf: []byte("PACKAGE_NAME=example\nPACKAGE_VERSION=1.0\n"), Source: func(func(dkms.File, error) bool) {}, Prebuilt: []deb.Prebuilt{prebuilt}}
	if err := d.Write(&b); err != nil {
		t.Fatal(err)
	}
	all["example-dkms.deb"] = b.Bytes()
	for _, c := range rpm.ModuleCompressions() {
		var b bytes.Buffer
		i := rpm.Info{Style: rpm.KernelModule, Name: "example", Version: "1.0", License: "GPL-2.0-only", Epoch: epoch}
		if err := rpm.Package(&b, i, rpm.Build{Kernel: rpm.Kernel{Release: release, Arch: "x86_64"}, Compression: c, Modules: modules(module)}); err != nil {
			t.Fatal(err)
		}
		all["modules-"+string(c)+".rpm"] = b.Bytes()
	}
	return all
}

func rewrite(t testing.TB, name string, data []byte, change Change) ([]byte, *Found) {
	t.Helper()
	kind, err := KindOf(name)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	found, err := Rewrite(&b, bytes.NewReader(data), kind, change)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b.Bytes(), found
}

// A package that is signed afterwards is the one that a signed module would
// have been packed into, and stripped it is the first one again.
func TestSignedAfterwards(t *testing.T) {
	k, module := newKey(t), newModule(t)
	signed, err := k.Sign(t.Context(), module, modsign.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(_ string, m []byte) ([]byte, error) { return k.Sign(t.Context(), m, modsign.SHA256) }
	strip := func(_ string, m []byte) ([]byte, error) { return modsign.Strip(m) }
	unsigned, want := packages(t, module), packages(t, signed)
	for name, data := range unsigned {
		t.Run(name, func(t *testing.T) {
			got, found := rewrite(t, name, data, sign)
			if len(found.Modules) != 1 || len(found.Dropped) > 0 {
				t.Errorf("found %+v", found)
			}
			if !bytes.Equal(got, want[name]) {
				t.Errorf("%d bytes, packed signed it is %d others: %s", len(got), len(want[name]), difference(got, want[name]))
			}
			if back, _ := rewrite(t, name, got, strip); !bytes.Equal(back, data) {
				t.Errorf("stripped, it is not what it was: %s", difference(back, data))
			}
			kind, _ := KindOf(name)
			if _, err := Each(bytes.NewReader(data), kind, func(_ string, m []byte) error { return k.Check(m) }); !errors.Is(err, modsign.ErrUnsigned) {
				t.Errorf("unsigned: got error %v", err)
			}
			if _, err := Each(bytes.NewReader(got), kind, func(_ string, m []byte) error { return k.Check(m) }); err != nil {
				t.Error(err)
			}
		})
	}
}

func difference(a, b []byte) string {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	return fmt.Sprintf("first at %d: %.40q, %.40q", i, a[i:], b[i:])
}

// What dpkg-deb has made keeps its scripts, owners and times, and its digests
// and sizes hold.
func TestForeignDeb(t *testing.T) {
	k, module := newKey(t), newModule(t)
	for _, c := range []string{"xz", "zstd", "gzip", "none"} {
		t.Run(c, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "p/DEBIAN/control"), []byte("Package: p\nVersion: 1\nArchitecture: amd64\nMaintainer: me <me@example.org>\nInstalled-Size: 100\nDescription: test\n more\n"))
			ko := write(t, filepath.Join(dir, "p/lib/modules/"+release+"/extra/example.ko"), module)
			other := write(t, filepath.Join(dir, "p/usr/share/doc/p/a long name ä"), []byte("hello"))
			script := write(t, filepath.Join(dir, "p/DEBIAN/postinst"), []byte("#!/bin/sh\n"))
			if err := errors.Join(os.Chmod(script, 0o755), os.Symlink("x.ko", filepath.Join(dir, "p/lib/modules/"+release+"/link.ko")), os.Link(other, other+"2")); err != nil {
				t.Fatal(err)
			}
			sums := tool(t, filepath.Join(dir, "p"), "md5sum", strings.TrimPrefix(ko, filepath.Join(dir, "p")+"/"), strings.TrimPrefix(other, filepath.Join(dir, "p")+"/"))
			write(t, filepath.Join(dir, "p/DEBIAN/md5sums"), []byte(sums))
			tool(t, dir, "dpkg-deb", "-Z"+c, "--build", "p", "p.deb")
			tool(t, dir, "sh", "-c", "cp p.deb q.deb; echo x >_gpgorigin; ar q q.deb _gpgorigin")
			data, err := os.ReadFile(filepath.Join(dir, "q.deb"))
			if err != nil {
				t.Fatal(err)
			}
			got, found := rewrite(t, "q.deb", data, func(_ string, m []byte) ([]byte, error) { return k.Sign(t.Context(), m, modsign.SHA512) })
			if !slices.Equal(found.Dropped, []string{"_gpgorigin"}) || !slices.Equal(found.Modules, []string{"lib/modules/" + release + "/extra/example.ko"}) {
				t.Errorf("found %+v", found)
			}
			write(t, filepath.Join(dir, "r.deb"), got)
			tool(t, dir, "dpkg-deb", "-R", "r.deb", "r")
			tool(t, filepath.Join(dir, "r"), "md5sum", "-c", "DEBIAN/md5sums")
			signed, err := os.ReadFile(filepath.Join(dir, "r/lib/modules/"+release+"/extra/example.ko"))
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Check(signed); err != nil {
				t.Error(err)
			}
			grown := (len(signed)+1023)/1024 - (len(module)+1023)/1024
			if got, want := tool(t, dir, "dpkg-deb", "-f", "r.deb", "Installed-Size"), fmt.Sprintf("%d\n", 100+grown); got != want {
				t.Errorf("Installed-Size %q, want %q", got, want)
			}
			list := func(deb string) string {
				lines := strings.Split(tool(t, dir, "dpkg-deb", "-c", deb)+tool(t, dir, "dpkg-deb", "-I", deb, "postinst"), "\n")
				return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasSuffix(l, "example.ko") }), "\n")
			}
			if got, want := list("r.deb"), list("p.deb"); got != want {
				t.Errorf("it lists\n%s\nand before\n%s", got, want)
			}
		})
	}
}

// What rpmbuild has made and rpmsign or nobody has signed stays one that rpm
// takes.
func TestForeignRPM(t *testing.T) {
	k, module := newKey(t), newModule(t)
	for _, c := range []string{"w9.gzdio", "w2.xzdio", "w3.zstdio"} {
		t.Run(c, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "example.ko"), module)
			write(t, filepath.Join(dir, "p.spec"), []byte("Name: p\nVersion: 1\nRelease: 1\nSummary: s\nLicense: GPL\n%define _binary_payload "+c+"\n%define __os_install_post %{nil}\n%define debug_package %{nil}\n%description\nd\n%install\n"+
				"mkdir -p %{buildroot}/lib/modules/"+release+"/extra %{buildroot}/etc\ncp "+dir+"/example.ko %{buildroot}/lib/modules/"+release+"/extra/\necho a >%{buildroot}/etc/p.conf\nln -s p.conf %{buildroot}/etc/link\n"+
				"%post\necho hello\n%files\n%config(noreplace) /etc/p.conf\n/etc/link\n/lib/modules\n%attr(0600,daemon,daemon) /lib/modules/"+release+"/extra/example.ko\n"))
			tool(t, dir, "rpmbuild", "-bb", "--define", "_topdir "+dir+"/top", "--define", "_rpmdir "+dir, "--define", "_build_name_fmt p.rpm", "p.spec")
			data, err := os.ReadFile(filepath.Join(dir, "p.rpm"))
			if err != nil {
				t.Fatal(err)
			}
			got, found := rewrite(t, "p.rpm", data, func(_ string, m []byte) ([]byte, error) { return k.Sign(t.Context(), m, modsign.SHA512) })
			if len(found.Modules) != 1 {
				t.Errorf("found %+v", found)
			}
			write(t, filepath.Join(dir, "q.rpm"), got)
			if out := tool(t, dir, "rpm", "-Kv", "q.rpm"); strings.Contains(out, "BAD") || strings.Count(out, "OK") < 4 {
				t.Errorf("rpm -Kv says\n%s", out)
			}
			about := func(file string) string {
				out := tool(t, dir, "rpm", "-qp", "--dump", file) + tool(t, dir, "rpm", "-qp", "--scripts", "--requires", "--provides", "-i", file)
				lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return strings.Contains(l, "example.ko ") || strings.HasPrefix(l, "Size ") })
				return strings.Join(lines, "\n")
			}
			if got, want := about("q.rpm"), about("p.rpm"); got != want {
				t.Errorf("rpm says\n%s\nand before\n%s", got, want)
			}
			tool(t, dir, "rpm", "-i", "--root", filepath.Join(dir, "root"), "--dbpath", "/db", "--nodeps", "--noscripts", "--ignoreos", "--ignorearch", "q.rpm")
			if out := tool(t, dir, "rpm", "-V", "--root", filepath.Join(dir, "root"), "--dbpath", "/db", "--nodeps", "--noscripts", "--nouser", "--nogroup", "p"); out != "" {
				t.Errorf("rpm -V says\n%s", out)
			}
			signed, err := os.ReadFile(filepath.Join(dir, "root/lib/modules", release, "extra/example.ko"))
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Check(signed); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLooseCompressed(t *testing.T) {
	k, module := newKey(t), newModule(t)
	sign := func(_ string, m []byte) ([]byte, error) { return k.Sign(t.Context(), m, modsign.SHA256) }
	for suffix, args := range map[string][]string{"xz": {"xz", "--check=crc32"}, "gz": {"gzip"}, "zst": {"zstd", "-q", "--rm"}} {
		path := write(t, filepath.Join(t.TempDir(), "example.ko"), module)
		tool(t, "", args[0], append(args[1:], path)...)
		path += "." + suffix
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		same, _ := rewrite(t, path, data, func(_ string, m []byte) ([]byte, error) { return m, nil })
		if !bytes.Equal(same, data) {
			t.Errorf("%s: not changed, but compressed anew", suffix)
		}
		got, _ := rewrite(t, path, data, sign)
		if suffix == "gz" {
			tool(t, "", "gunzip", write(t, path, got)) // Debian's kmod does not read gz
			path = strings.TrimSuffix(path, ".gz")
		} else {
			write(t, path, got)
		}
		if out := tool(t, "", "modinfo", "-F", "signer", path); out != "Key\n" {
			t.Errorf("%s: modinfo's signer is %q", suffix, out)
		}
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string]Kind{
		"a/b.ko": Module, "b.ko.zst": Module, "b-1-kernel6.1-x86_64.dkms.tar.gz": Tarball, "c_1_amd64.deb": Deb, "d-1-1.x86_64.rpm": RPM,
		"d-1-1.src.rpm": "", "e.tar.gz": "", "f.ko.bz2": "", "results.json": "",
	} {
		if got, err := KindOf(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestMalformed(t *testing.T) {
	module := newModule(t)
	all := packages(t, module)
	same := func(_ string, m []byte) ([]byte, error) { return m, nil }
	bomb := func() []byte { // a module that is no module
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		h := &tar.Header{Name: "dkms_main_tree/6.1/x86_64/module/x.ko", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}
		if err := errors.Join(w.WriteHeader(h), func() error { _, err := w.Write([]byte("elf?")); return err }(), w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	for _, c := range []struct {
		name string
		data []byte
		is   error
	}{
		{"a.dkms.tar.gz", all["a.dkms.tar.gz"][:200], edit.ErrFormat},
		{"a.dkms.tar.gz", bomb, kmod.ErrFormat},
		{"a.deb", all["modules-xz.deb"][:500], edit.ErrFormat},
		{"a.deb", all["modules-.rpm"], edit.ErrFormat},
		{"a.deb", []byte("!<arch>\n"), edit.ErrFormat},
		{"a.rpm", all["modules-.rpm"][:1000], edit.ErrFormat},
		{"a.rpm", all["modules-.rpm"][:len(all["modules-.rpm"])-100], edit.ErrFormat},
		{"a.rpm", all["modules-xz.deb"], edit.ErrFormat},
		{"x.ko", []byte("no module"), kmod.ErrFormat},
		{"x.ko", nil, kmod.ErrFormat},
	} {
		kind, err := KindOf(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Rewrite(io.Discard, bytes.NewReader(c.data), kind, same); !errors.Is(err, c.is) {
			t.Errorf("%s of %d bytes: got error %v, want %v", c.name, len(c.data), err, c.is)
		}
	}
}

func FuzzRewrite(f *testing.F) {
	module := newModule(f)
	kinds := []Kind{Module, Tarball, Deb, RPM}
	for name, data := range packages(f, module) {
		if kind, err := KindOf(name); err == nil {
			f.Add(uint8(slices.Index(kinds, kind)), data)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		kind := kinds[int(n)%len(kinds)]
		strip := func(_ string, m []byte) ([]byte, error) { return modsign.Strip(m) }
		var first, again bytes.Buffer
		if _, err := Rewrite(&first, bytes.NewReader(data), kind, strip); err != nil {
			return
		}
		if _, err := Rewrite(&again, bytes.NewReader(first.Bytes()), kind, strip); err != nil || !bytes.Equal(again.Bytes(), first.Bytes()) {
			t.Errorf("what was written reads as something else (%v)", err)
		}
	})
}
