package farm

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

// bundled makes a bundle of one folder and one package.
func bundled(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("hello/dkms.conf", "PACKAGE_NAME=hello\nPACKAGE_VERSION=1\n", 0o644)
	write("hello/sub/run", "#!/bin/sh\n", 0o755)
	write("hello/"+strings.Repeat("long/", 40)+"name", "x", 0o600)
	if err := os.Symlink("../nowhere", filepath.Join(dir, "hello/link")); err != nil {
		t.Fatal(err)
	}
	const text = "modules:\n  - source: {dir: hello}\n    test: {script: check.sh}\nkernels:\n  - suite: bookworm\ntest: {}\n"
	write("check.sh", "true\n", 0o644)
	f, _, err := matrix.Parse("farm.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	src, err := images.DirSource(filepath.Join(dir, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	d, err := s.Put([]byte("the package"), packageType)
	if err != nil {
		t.Fatal(err)
	}
	gcc := &lock.Package{Name: "gcc-12", Version: "12", Arch: "amd64", Size: d.Size, SHA256: d.Digest.Hex, Pocket: "bookworm", Date: "20260101T000000Z", Path: "pool/gcc-12.deb"}
	d, err = s.Put([]byte("the kernel"), packageType)
	if err != nil {
		t.Fatal(err)
	}
	image := *gcc
	image.Name, image.Size, image.SHA256 = "linux-image", d.Size, d.Digest.Hex
	l := &lock.Lock{Modules: []*lock.Module{{Source: "dir hello", SHA256: src.Digest}},
		Suites: []*lock.Suite{{Distribution: "debian", Name: "bookworm", Arch: "x86_64", Asks: []string{"all"},
			Kernels: []*lock.Kernel{{Release: release, Toolchain: []*lock.Package{gcc}, Image: []*lock.Package{&image}}}}}}
	var out bytes.Buffer
	b := &Bundler{Store: s, Fetch: &fetch.Client{Dir: s.BlobDir(), Partial: s.PartialDir(), Offline: true}, Dir: dir}
	sum, err := b.Write(t.Context(), &out, BundleInput{Farm: f, Name: "farm.yaml", Text: []byte(text), Lock: l, Plan: &Plan{}})
	if err != nil {
		t.Fatal(err)
	}
	if sum.Packages != 2 || sum.Sources != 2 {
		t.Errorf("got %+v", sum)
	}
	return out.Bytes()
}

func open(t *testing.T, data []byte) (*Bundle, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBundle(name)
	if err == nil {
		t.Cleanup(func() { b.Close() })
	}
	return b, err
}

func TestUnbundle(t *testing.T) {
	data := bundled(t)
	if again := bundled(t); !bytes.Equal(again, data) {
		t.Error("the same inputs in another folder give another bundle")
	}
	b, err := open(t, data)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Verify(t.Context())
	if err != nil || !r.OK() || r.Blobs != 8 {
		t.Fatalf("got %+v, %v", r, err)
	}
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := b.Unbundle(t.Context(), s, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	src, err := images.DirSource(out.Files["hello"])
	if err != nil {
		t.Fatal(err)
	}
	if want := out.Lock.Modules[0].SHA256; src.Digest != want {
		t.Errorf("the folder has digest %s, want %s", src.Digest, want)
	}
	if script, err := os.ReadFile(out.Farm.Modules[0].Test.Script.Text); err != nil || string(script) != "true\n" {
		t.Errorf("the test's script: %q, %v", script, err)
	}
	p := out.Lock.Suites[0].Kernels[0].Image[0]
	if _, err := os.Stat(filepath.Join(s.BlobDir(), p.SHA256)); err != nil {
		t.Error(err)
	}
}

// Wherever a bundle is cut off, that is noticed, unless only the tar's end is
// lost.
func TestCutBundle(t *testing.T) {
	data := bundled(t)
	whole, err := open(t, data)
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, s := range whole.blobs {
		end = max(end, s.offset+s.size)
	}
	for n := int64(0); n < end; n += 193 {
		b, err := open(t, data[:n])
		if err != nil {
			continue
		}
		r, err := b.Verify(t.Context())
		if err != nil || r.OK() || len(r.Missing)+len(r.Damaged)+len(r.Problems) == 0 {
			t.Fatalf("cut at %d of %d: %+v, %v", n, len(data), r, err)
		}
	}
}

// A changed byte in any blob is noticed. The index has no digest, as it is where
// all begins; but all that it names has.
func TestDamagedBundle(t *testing.T) {
	data := bundled(t)
	for n := 0; n < len(data)-1024; n += 331 {
		changed := bytes.Clone(data)
		changed[n] ^= 1
		b, err := open(t, changed)
		if err != nil {
			continue
		}
		r, err := b.Verify(t.Context())
		if err == nil && r.OK() && inBlob(t, data, n) {
			t.Fatalf("byte %d of %d", n, len(data))
		}
	}
}

// inBlob says whether a byte is content of a blob.
func inBlob(t *testing.T, data []byte, at int) bool {
	t.Helper()
	b, err := open(t, data)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range b.blobs {
		if int64(at) >= s.offset && int64(at) < s.offset+s.size {
			return true
		}
	}
	return false
}

func TestHostileBundle(t *testing.T) {
	type entry struct {
		h    tar.Header
		data string
	}
	regular := func(name, data string) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
	}
	manifest := func(m string) []entry {
		digest := sha256hex([]byte(m))
		index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":%d,"digest":"sha256:%s","annotations":{%q:%q}}]}`,
			len(m), digest, refName, bundleRef)
		return []entry{regular(indexFile, index), regular(blobPrefix+digest, m)}
	}
	config := fmt.Sprintf(`"config":{"mediaType":%q,"size":2,"digest":"sha256:%s"}`, bundleType, strings.Repeat("0", 64))
	tests := []struct {
		name    string
		entries []entry
		want    string
	}{
		{"dots", []entry{regular("../index.json", "{}")}, `it has a file "../index.json"`},
		{"absolute", []entry{regular("/etc/passwd", "x")}, `it has a file "/etc/passwd"`},
		{"link", []entry{{tar.Header{Typeflag: tar.TypeSymlink, Name: indexFile, Linkname: "/etc/passwd"}, ""}}, "is no plain file"},
		{"hard link", []entry{{tar.Header{Typeflag: tar.TypeLink, Name: indexFile, Linkname: "oci-layout"}, ""}}, "is no plain file"},
		{"twice", []entry{regular(blobPrefix+strings.Repeat("a", 64), "x"), regular(blobPrefix+strings.Repeat("a", 64), "y")}, "is there twice"},
		{"no index", []entry{regular(layoutFile, "{}")}, "it has no index.json"},
		{"another layout", []entry{regular(indexFile, `{"schemaVersion":2,"manifests":[]}`)}, "its index names none"},
		{"not JSON", []entry{regular(indexFile, `x`)}, "it is no bundle"},
		{"another image", manifest(`{"schemaVersion":2,"config":{"mediaType":"x","size":2,"digest":"sha256:` + strings.Repeat("0", 64) + `"},"layers":[]}`), "its index names none"},
		{"bad digest", manifest(`{"schemaVersion":2,` + config + `,"layers":[{"size":1,"digest":"sha256:../../x"}]}`), "it is no bundle"},
		{"no farm", manifest(`{"schemaVersion":2,` + config + `,"layers":[]}`), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range tt.entries {
				e.h.Size = int64(len(e.data))
				if err := w.WriteHeader(&e.h); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(e.data)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			opened, err := open(t, b.Bytes())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				s, serr := store.Open(t.TempDir())
				if serr != nil {
					t.Fatal(serr)
				}
				defer s.Close()
				if _, err := opened.Unbundle(t.Context(), s, t.TempDir()); err == nil {
					t.Error("a bundle without a farm file can be used")
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// What a folder's tar says cannot leave the folder.
func TestUnpackTreeEscapes(t *testing.T) {
	for _, entries := range [][]tar.Header{
		{{Typeflag: tar.TypeReg, Name: "../out"}},
		{{Typeflag: tar.TypeReg, Name: "/out"}},
		{{Typeflag: tar.TypeSymlink, Name: "up", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "up/out"}},
		{{Typeflag: tar.TypeSymlink, Name: "up", Linkname: ".."}, {Typeflag: tar.TypeDir, Name: "up/out"}},
		{{Typeflag: tar.TypeLink, Name: "in", Linkname: "../out"}},
		{{Typeflag: tar.TypeFifo, Name: "in"}},
		{{Typeflag: tar.TypeReg, Name: "in"}, {Typeflag: tar.TypeReg, Name: "in"}},
	} {
		outer := t.TempDir()
		inner := filepath.Join(outer, "inner")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(inner)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := images.UnpackTree(&b, root); err == nil {
			t.Errorf("%v: no error", entries[len(entries)-1].Name)
		}
		if _, err := os.Lstat(filepath.Join(outer, "out")); err == nil {
			t.Errorf("%v: a file has left the folder", entries[len(entries)-1].Name)
		}
	}
}

func TestPackageURLs(t *testing.T) {
	a := matrix.Archive{Mirrors: []string{"http://m/debian"}, SecurityMirrors: []string{"http://s/debian-security"},
		Fallbacks: []string{"https://snap/debian/{timestamp}/", "http://pool"}, SecurityFallbacks: []string{"https://snap/sec/{timestamp}"}}
	p := &lock.Package{Pocket: "bookworm-updates", Date: "20260101T000000Z", Path: "pool/main/g/gcc+x/gcc_1%3a2.deb"}
	got := strings.Join(packageURLs(a, p), " ")
	const want = "http://m/debian/pool/main/g/gcc+x/gcc_1%253a2.deb https://snap/debian/20260101T000000Z/pool/main/g/gcc+x/gcc_1%253a2.deb http://pool/pool/main/g/gcc+x/gcc_1%253a2.deb"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p.Pocket = "bookworm-security"
	if got := packageURLs(a, p); len(got) != 2 || !strings.HasPrefix(got[1], "https://snap/sec/20260101T000000Z/pool/") {
		t.Errorf("got %q", got)
	}
}
