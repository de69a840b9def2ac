package deb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// run runs a tool that every Debian has; without it the test fails.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return out
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // sets the high bits too, which WriteFile would not
		t.Fatal(err)
	}
}

const testControl = `Package: thing
Version: 1:2.0-1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Depends: libc6 (>= 2.31), make
Description: a thing
 with a longer text
 .
 in paragraphs
`

// build makes a package with the real dpkg-deb.
func build(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	write(t, filepath.Join(root, "DEBIAN/control"), []byte(testControl), 0o644)
	write(t, filepath.Join(root, "DEBIAN/postinst"), []byte("#!/bin/sh\nexit 0\n"), 0o755)
	write(t, filepath.Join(root, "usr/src/thing-2.0/thing.c"), bytes.Repeat([]byte("int x;\n"), 40_000), 0o644)
	write(t, filepath.Join(root, "usr/src/thing-2.0/.hidden"), nil, 0o600)
	write(t, filepath.Join(root, "usr/bin/thing"), []byte("#!/bin/sh\n"), os.ModeSetuid|0o755)
	long := "usr/share/doc/" + strings.Repeat("directory/", 15) + strings.Repeat("n", 150)
	write(t, filepath.Join(root, long), []byte("long"), 0o644)
	for link, target := range map[string]string{"usr/bin/rel": "thing", "usr/bin/abs": "/etc/passwd", "usr/bin/up": "../../../x"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(root, "usr/bin/thing"), filepath.Join(root, "usr/bin/hard")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "thing.deb")
	run(t, "dpkg-deb", append(append([]string{"--root-owner-group"}, args...), "--build", root, out)...)
	return out
}

func open(t *testing.T, path string) *Package {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // only read
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// describe lists one entry with a digest of its content.
func describe(h *tar.Header, r io.Reader) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return "", err
	}
	return fmt.Sprintf("%c %s -> %q %o %d/%d %d %d %x", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid,
		h.Size, h.ModTime.Unix(), sum.Sum(nil)), nil
}

// list describes all files of a package.
func list(p *Package) ([]string, error) {
	entries, err := p.Data()
	if err != nil {
		return nil, err
	}
	defer entries.Close()
	var lines []string
	for {
		h, err := entries.Next()
		if err == io.EOF {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
		line, err := describe(h, entries)
		if err != nil {
			return lines, err
		}
		lines = append(lines, line)
	}
}

// oracle describes all files as dpkg-deb unpacks them to a tar.
func oracle(t *testing.T, path string) []string {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(run(t, "dpkg-deb", "--fsys-tarfile", path)))
	var lines []string
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "./" {
			continue
		}
		h.Name = strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = strings.TrimPrefix(h.Linkname, "./")
		}
		line, err := describe(h, tr)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
}

// names lists the package as dpkg-deb -c does, reduced to names and link targets.
func names(t *testing.T, path string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(string(run(t, "dpkg-deb", "-c", path))) {
		name := strings.Join(strings.Fields(line)[5:], " ")
		if name = strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/"); name != "" {
			lines = append(lines, name)
		}
	}
	return lines
}

func TestAgainstDpkgDeb(t *testing.T) {
	for _, args := range [][]string{{"-Zxz"}, {"-Zxz", "-z9", "-Sextreme"}, {"-Zgzip"}, {"-Zzstd"}, {"-Znone"}, {"-Zgzip", "--no-uniform-compression"}} {
		t.Run(strings.Join(args, ""), func(t *testing.T) {
			path := build(t, args...)
			p := open(t, path)
			got, err := list(p)
			if err != nil {
				t.Fatal(err)
			}
			if want := oracle(t, path); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got, want := len(got), len(names(t, path)); got != want {
				t.Errorf("got %d entries, dpkg-deb -c lists %d", got, want)
			}
			checkControl(t, p, path)
		})
	}
}

func checkControl(t *testing.T, p *Package, path string) {
	t.Helper()
	fields, err := p.Control()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Package", "Version", "Depends"} {
		if got, want := fields[name], strings.TrimSpace(string(run(t, "dpkg-deb", "-f", path, name))); got != want || want == "" {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got, want := fields["Description"], "a thing\nwith a longer text\n.\nin paragraphs"; got != want {
		t.Errorf("Description: got %q, want %q", got, want)
	}
	if got, err := p.ControlFile("postinst"); err != nil || string(got) != "#!/bin/sh\nexit 0\n" {
		t.Errorf("postinst: got %q, %v", got, err)
	}
	if _, err := p.ControlFile("preinst"); !errors.Is(err, ErrNoFile) {
		t.Errorf("preinst: got %v, want %v", err, ErrNoFile)
	}
}

// arMember appends a member to an archive.
func arMember(b *bytes.Buffer, name string, data []byte) {
	fmt.Fprintf(b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", name, 0, 0, 0, 0o100644, len(data))
	b.Write(data)
	if len(data)%2 == 1 {
		b.WriteByte('\n')
	}
}

// archive makes a package by hand from the contents of its two tars.
func archive(controlName string, control []byte, dataName string, data []byte) []byte {
	var b bytes.Buffer
	b.WriteString(arMagic)
	arMember(&b, "debian-binary", []byte("2.0\n"))
	arMember(&b, controlName, control)
	arMember(&b, dataName, data)
	return b.Bytes()
}

func tarOf(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(0, 0)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openBytes(b []byte, limits Limits) ([]string, error) {
	p, err := OpenLimited(bytes.NewReader(b), int64(len(b)), limits)
	if err != nil {
		return nil, err
	}
	return list(p)
}

func TestHostileEntries(t *testing.T) {
	tests := []struct {
		name   string
		header *tar.Header
		want   error
	}{
		{"absolute", &tar.Header{Typeflag: tar.TypeReg, Name: "/etc/passwd"}, ErrUnsafe},
		{"parent", &tar.Header{Typeflag: tar.TypeReg, Name: "../x"}, ErrUnsafe},
		{"parent within", &tar.Header{Typeflag: tar.TypeReg, Name: "./a/../../x"}, ErrUnsafe},
		{"just parent", &tar.Header{Typeflag: tar.TypeDir, Name: ".."}, ErrUnsafe},
		{"parent that stays", &tar.Header{Typeflag: tar.TypeReg, Name: "./a/../x"}, nil},
		{"hard link out", &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../../etc/shadow"}, ErrUnsafe},
		{"hard link to absolute", &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "/etc/shadow"}, ErrUnsafe},
		{"hard link to the root", &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "./"}, ErrUnsafe},
		{"symlink out is kept", &tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc/shadow"}, nil},
		{"empty symlink", &tar.Header{Typeflag: tar.TypeSymlink, Name: "x"}, ErrUnsafe},
		{"root is a link", &tar.Header{Typeflag: tar.TypeSymlink, Name: "./", Linkname: "/"}, ErrUnsafe},
		{"character device", &tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}, ErrUnsafe},
		{"block device", &tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda"}, ErrUnsafe},
		{"pipe", &tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}, ErrUnsafe},
		{"long name", &tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n/", 3000) + "x"}, ErrLimit},
		{"long target", &tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: strings.Repeat("n", 5000)}, ErrLimit},
		{"large", &tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 1 << 20}, ErrLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := archive("control.tar", tarOf(t), "data.tar", tarOf(t, tt.header))
			_, err := openBytes(b, Limits{DataBytes: 500_000})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "data.tar: ") {
				t.Errorf("got %q, want the member's name first", err)
			}
		})
	}
}

func TestEntryLimit(t *testing.T) {
	b := archive("control.tar", tarOf(t), "data.tar", tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a"}, &tar.Header{Typeflag: tar.TypeReg, Name: "b"}))
	if _, err := openBytes(b, Limits{Entries: 1}); !errors.Is(err, ErrLimit) {
		t.Errorf("got %v, want %v", err, ErrLimit)
	}
}

// A few kilobytes that unpack to far more end at the limit.
func TestBombs(t *testing.T) {
	data := tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: 64 << 20})
	var gz, zst, lzma bytes.Buffer
	g := gzip.NewWriter(&gz)
	x, err := xz.NewWriter(&lzma)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, x, z} {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range map[string][]byte{"data.tar.gz": gz.Bytes(), "data.tar.zst": zst.Bytes(), "data.tar.xz": lzma.Bytes()} {
		if _, err := openBytes(archive("control.tar", tarOf(t), name, b), Limits{DataBytes: 1 << 20}); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: got %v, want %v", name, err, ErrLimit)
		}
		if _, err := openBytes(archive("control.tar", tarOf(t), name, b), Limits{DataBytes: int64(len(data))}); err != nil {
			t.Errorf("%s: exactly at the limit: %v", name, err)
		}
	}
}

// Of every truncated or flipped package either the outline or the iteration fails.
func TestDamaged(t *testing.T) {
	for _, z := range []string{"-Zxz", "-Zgzip", "-Zzstd"} {
		good, err := os.ReadFile(build(t, z))
		if err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{0, 7, 30, 68, 71, 100, len(good) / 2, len(good) - 9} {
			if _, err := openBytes(good[:cut], Limits{}); err == nil {
				t.Errorf("%s cut at %d of %d: no error", z, cut, len(good))
			}
		}
		flipped := bytes.Clone(good)
		flipped[len(good)-len(good)/4] ^= 0x10
		if _, err := openBytes(flipped, Limits{}); err == nil {
			t.Errorf("%s with a flipped bit: no error", z)
		}
	}
}

func TestFormat(t *testing.T) {
	var empty, old, swapped, many, underscore bytes.Buffer
	for _, b := range []*bytes.Buffer{&empty, &old, &swapped, &many, &underscore} {
		b.WriteString(arMagic)
	}
	arMember(&old, "debian-binary", []byte("0.939000\n"))
	arMember(&swapped, "debian-binary", []byte("2.0\n"))
	arMember(&swapped, "data.tar", nil)
	arMember(&many, "debian-binary", []byte("2.0\n"))
	for range 100 {
		arMember(&many, "_x", nil)
	}
	arMember(&underscore, "debian-binary", []byte("2.0\n"))
	arMember(&underscore, "_gpgorigin", []byte("odd"))
	arMember(&underscore, "control.tar", tarOf(t))
	arMember(&underscore, "data.tar", tarOf(t))
	tests := []struct {
		name string
		data []byte
		want error
	}{
		{"nothing", nil, ErrFormat},
		{"text", []byte("<html>not found</html>"), ErrFormat},
		{"empty archive", empty.Bytes(), ErrFormat},
		{"old format", old.Bytes(), ErrFormat},
		{"no control", swapped.Bytes(), ErrFormat},
		{"many members", many.Bytes(), ErrLimit},
		{"members for others", underscore.Bytes(), nil},
		{"unknown compression", archive("control.tar", tarOf(t), "data.tar.bz2", nil), ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := openBytes(tt.data, Limits{}); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestParseFields(t *testing.T) {
	for _, bad := range []string{" leading\n", "no colon\n", "A B: c\n", ": c\n", "A: 1\nA: 2\n"} {
		if got, err := parseFields([]byte(bad)); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func FuzzOpen(f *testing.F) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "./usr/x", Size: 3}
	f.Add(archive("control.tar", tarOf(f, &tar.Header{Typeflag: tar.TypeReg, Name: "./control", Size: 2}), "data.tar", tarOf(f, h)))
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(tarOf(f, h)) // to memory
	_ = w.Close()
	f.Add(archive("control.tar", nil, "data.tar.gz", gz.Bytes()))
	f.Add(archive("control.tar.xz", nil, "data.tar.zst", nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := OpenLimited(bytes.NewReader(b), int64(len(b)), Limits{ControlBytes: 1 << 20, DataBytes: 1 << 20, Entries: 100})
		if err != nil {
			return
		}
		_, _ = p.Control() // must not panic
		entries, err := p.Data()
		if err != nil {
			return
		}
		defer entries.Close()
		for {
			h, err := entries.Next()
			if err != nil {
				return
			}
			if !filepath.IsLocal(h.Name) || filepath.Clean(h.Name) != h.Name {
				t.Errorf("name %q escapes or is not clean", h.Name)
			}
			if h.Typeflag == tar.TypeLink && !filepath.IsLocal(h.Linkname) {
				t.Errorf("hard link to %q escapes", h.Linkname)
			}
		}
	})
}

func FuzzParseFields(f *testing.F) {
	f.Add([]byte(testControl))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseFields(b) // must not panic
	})
}
