package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/store"
)

// debFile makes a package with dpkg-deb out of files below dir, and gives what
// an index would say of it.
func debFile(t testing.TB, name, depends, postinst string, fill func(dir string)) *apt.Package {
	t.Helper()
	dir := t.TempDir()
	control := fmt.Sprintf("Package: %s\nVersion: 1.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n", name)
	if depends != "" {
		control += "Depends: " + depends + "\n"
	}
	write(t, dir, "DEBIAN/control", control, 0o644)
	if postinst != "" {
		write(t, dir, "DEBIAN/postinst", postinst, 0o755)
	}
	fill(dir)
	file := filepath.Join(t.TempDir(), name+".deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", dir, file).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb, of the package dpkg: %v\n%s", err, out)
	}
	digest, err := hashFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return &apt.Package{Name: name, Version: "1.0-1", Arch: "all", SHA256: digest, Filename: file}
}

// local is a Fetcher of files that are there.
type local struct{}

func (local) Package(_ context.Context, p *apt.Package) (string, error) { return p.Filename, nil }

func write(t testing.TB, dir, name, data string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, make func(old, new string) error, old, new string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(new), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := make(old, new); err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// list describes a layer's entries, in order.
func list(t testing.TB, l v1.Layer) []string {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %o %s", h.Typeflag, h.Mode, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(data) > 0 {
			line += fmt.Sprintf(" %.20q", data)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(layerTime) {
			line += fmt.Sprintf(" owner %d:%d %q time %s", h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		all = append(all, line)
	}
}

func wantList(t testing.TB, l v1.Layer, want ...string) {
	t.Helper()
	if got := list(t, l); !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestPackageLayer(t *testing.T) {
	doc := "#!/bin/sh\nupdate-alternatives --quiet --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n\t--slave /usr/share/man/man1/awk.1.gz awk.1.gz /usr/share/man/man1/mawk.1.gz\n"
	pkgs := []*apt.Package{
		debFile(t, "gawk", "", "update-alternatives --install /usr/bin/awk awk /usr/bin/gawk 10\n", func(dir string) {
			write(t, dir, "bin/tool", "one", 0o755)
			write(t, dir, "usr/bin/gawk", "gawk", 0o4755)
			write(t, dir, "usr/share/doc/gawk/copyright", "free", 0o600)
			write(t, dir, "usr/share/doc/gawk/changelog.gz", "log", 0o644)
			write(t, dir, "usr/share/man/man1/gawk.1", "page", 0o644)
			write(t, dir, "usr/share/manners/x", "kept", 0o644)
		}),
		debFile(t, "mawk", "", doc, func(dir string) {
			write(t, dir, "usr/bin/mawk", "mawk", 0o755)
			write(t, dir, "usr/bin/tool", "two", 0o755) // there already, by way of /bin
			write(t, dir, "usr/share/doc/mawk/examples/e", "example", 0o644)
			link(t, os.Link, filepath.Join(dir, "usr/share/doc/mawk/examples/e"), filepath.Join(dir, "usr/share/mawk/e1"))
			link(t, os.Link, filepath.Join(dir, "usr/share/doc/mawk/examples/e"), filepath.Join(dir, "usr/share/mawk/e2"))
			link(t, os.Symlink, "/lib/x", filepath.Join(dir, "lib/y"))
		}),
	}
	l, err := packageLayer(t.Context(), openStore(t), local{}, pkgs)
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, l) // in dpkg-deb's order; only that of the packages matters
	slices.Sort(got)
	want := []string{
		`0 755 usr/bin/tool "one"`, `5 755 usr/`, `5 755 usr/bin/`, `0 755 usr/bin/gawk "gawk"`, `5 755 usr/share/`, `5 755 usr/share/doc/`,
		`5 755 usr/share/doc/gawk/`, `0 644 usr/share/doc/gawk/copyright "free"`, `5 755 usr/share/manners/`, `0 644 usr/share/manners/x "kept"`,
		`2 777 usr/lib/y -> /lib/x`, `0 755 usr/bin/mawk "mawk"`, `5 755 usr/share/doc/mawk/`, `5 755 usr/share/mawk/`,
		`0 644 usr/share/mawk/e1 "example"`, `1 644 usr/share/mawk/e2 -> usr/share/mawk/e1`,
		`2 777 usr/bin/awk -> /usr/bin/gawk`}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestPackageLayerFaults(t *testing.T) {
	good := debFile(t, "good", "", "", func(dir string) { write(t, dir, "usr/x", strings.Repeat("x", 1<<20), 0o644) })
	damaged := debFile(t, "damaged", "", "", func(dir string) { write(t, dir, "usr/y", "y", 0o644) })
	if err := os.WriteFile(damaged.Filename, []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	garbage := &apt.Package{Name: "garbage", Version: "1", Filename: filepath.Join(t.TempDir(), "garbage.deb")}
	write(t, "", garbage.Filename, "garbage", 0o644)
	var err error
	if garbage.SHA256, err = hashFile(garbage.Filename); err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string]*apt.Package{
		"unpacking damaged 1.0-1: " + damaged.Filename + " is damaged": damaged,
		"unpacking garbage 1: ": garbage,
		"no such file":          {Name: "none", Filename: "/nonexistent"},
	} {
		s := openStore(t)
		_, err := packageLayer(t.Context(), s, local{}, []*apt.Package{good, p, good})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
			t.Errorf("%s: %d temporaries are left", p.Name, len(left))
		}
	}
	if _, err := os.Stat(damaged.Filename); err == nil {
		t.Error("the damaged package is still there, and would be used again")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := packageLayer(ctx, openStore(t), local{}, []*apt.Package{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAlternatives(t *testing.T) {
	tests := map[string]alternatives{
		"update-alternatives --install /usr/bin/cc cc /usr/bin/gcc 20":                     {"/usr/bin/cc": {"/usr/bin/gcc", 20}},
		"  update-alternatives --quiet --force --install /usr/bin/a a /b 1 || exit 1":      {"/usr/bin/a": {"/b", 1}},
		"update-alternatives \\\n  --install /a a /b \\\n 7":                               {"/a": {"/b", 7}},
		"update-alternatives --install /a a /b 7\nupdate-alternatives --install /a a /c 9": {"/a": {"/c", 9}},
		"update-alternatives --install /a a /b 7\nupdate-alternatives --install /a a /c 7": {"/a": {"/b", 7}},
		"update-alternatives --install /a a \"$file\" 7":                                   {},
		"update-alternatives --install $a a /b 7":                                          {},
		"update-alternatives --install /a a /b$x 7":                                        {},
		"update-alternatives --install /a a /b $priority":                                  {},
		"update-alternatives --install /a a /b 99999999999999999999":                       {},
		"update-alternatives --remove a /b":                                                {},
		"":                                                                                 {},
	}
	for script, want := range tests {
		got := alternatives{}
		got.read([]byte(script))
		if !maps.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", script, got, want)
		}
	}
}

func TestUsrMerged(t *testing.T) {
	for name, want := range map[string]string{
		"./bin/sh": "usr/bin/sh", "lib64/ld.so": "usr/lib64/ld.so", "/sbin/x": "usr/sbin/x", "usr/bin/x": "usr/bin/x",
		"etc/bin/x": "etc/bin/x", "libx/y": "libx/y", "lib": "lib", ".": ".", "": ".", "./": ".", "a/../lib/b": "usr/lib/b",
	} {
		if got := usrMerged(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

func TestLayerRefuses(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"hard link to nothing": {Typeflag: tar.TypeLink, Name: "a", Linkname: "b"},
		"device":               {Typeflag: tar.TypeChar, Name: "a"},
		"pipe":                 {Typeflag: tar.TypeFifo, Name: "a"},
	} {
		s := openStore(t)
		_, err := makeLayer(s, "x", func(w *layerWriter) error { return w.add(h, nil) })
		if err == nil {
			t.Errorf("%s: was taken", name)
		}
		if left, _ := os.ReadDir(s.TempDir()); len(left) > 0 {
			t.Errorf("%s: a temporary is left", name)
		}
	}
}

// TestDeterministic assembles an image twice, from sources in different folders,
// made in another order, with another umask and time zone.
func TestDeterministic(t *testing.T) {
	pkg := debFile(t, "tool", "", "", func(dir string) { write(t, dir, "usr/bin/tool", "tool", 0o755) })
	headers := debFile(t, "linux-headers-6.1", "", "", func(dir string) { write(t, dir, "usr/src/h", "h", 0o644) })
	extra := debFile(t, "extra", "", "", func(dir string) { write(t, dir, "usr/e", "e", 0o644) })
	names := []string{"dkms.conf", "Makefile", "a/b.c", "run.sh", ".version"}
	image := func(umask int, zone string, names []string) v1.Hash {
		defer syscall.Umask(syscall.Umask(umask))
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		defer func(l *time.Location) { time.Local = l }(time.Local)
		time.Local = loc
		dir := t.TempDir()
		for i, n := range names {
			data := n
			if n == "dkms.conf" {
				data = "PACKAGE_NAME=x\nPACKAGE_VERSION=1\n"
			}
			mode := os.FileMode(0o644)
			if n == "run.sh" {
				mode = 0o755
			}
			write(t, dir, n, data, mode&^os.FileMode(umask))
			at := time.Unix(1e9+int64(i)*1e6*int64(umask), 0)
			if err := os.Chtimes(filepath.Join(dir, n), at, at); err != nil {
				t.Fatal(err)
			}
		}
		src, err := DirSource(dir)
		if err != nil {
			t.Fatal(err)
		}
		a := &Assembler{Store: openStore(t), Fetcher: local{}}
		in := Inputs{Toolchain: []*apt.Package{pkg}, Headers: []*apt.Package{headers}, Extra: []*apt.Package{extra},
			Source: src, Program: Program{Path: "/usr/lib/kofarm/build", Data: []byte("#!/bin/sh\n")}}
		img, err := a.Image(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Error(err)
		}
		again, err := a.Image(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		digest, again2 := digestOf(t, img), digestOf(t, again)
		if digest != again2 {
			t.Errorf("made again from the store: %s, before %s", again2, digest)
		}
		return digest
	}
	reversed := slices.Clone(names)
	slices.Reverse(reversed)
	first, second := image(0o022, "UTC", names), image(0o077, "Asia/Kathmandu", reversed)
	if first != second {
		t.Errorf("%s and %s", first, second)
	}
}

func digestOf(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestBaseLayer(t *testing.T) {
	l, err := baseLayer(openStore(t), Program{Path: "/usr/lib/kofarm/build", Data: []byte("#!/bin/sh\n")})
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, l)
	for _, want := range []string{`2 777 bin -> usr/bin`, `2 777 lib64 -> usr/lib64`, `5 755 var/lib/dkms/`, `0 755 usr/lib/kofarm/build "#!/bin/sh\n"`} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in\n  %s", want, strings.Join(got, "\n  "))
		}
	}
}

func TestAheadStopsEarly(t *testing.T) {
	p := debFile(t, "big", "", "", func(dir string) { write(t, dir, "usr/big", strings.Repeat("x", 40<<20), 0o644) })
	a := readAhead(t.Context(), func(context.Context) (entries, error) { return openDeb(p.Filename) })
	for {
		h, err := a.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "usr/big" {
			break
		}
	}
	if _, err := io.ReadFull(a, make([]byte, 100_000)); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil { // would hang if the goroutine did
		t.Error(err)
	}
}
