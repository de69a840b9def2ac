package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
)

const text types.MediaType = "text/plain"

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *Store, data string) v1.Descriptor {
	t.Helper()
	d, err := s.Put([]byte(data), text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPut(t *testing.T) {
	s := open(t)
	d := put(t, s, "hello")
	const want = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // sha256sum
	if d.Digest.String() != want || d.Size != 5 || d.MediaType != text {
		t.Errorf("got %+v, want %s", d, want)
	}
	got, err := s.Get(d.Digest, 5)
	if err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := s.Get(d.Digest, 4); err == nil {
		t.Error("a blob over the limit was read")
	}
	if _, err := s.Get(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}, 5); !errors.Is(err, ErrNotFound) {
		t.Errorf("a missing blob: %v", err)
	}
	for _, h := range []v1.Hash{{}, {Algorithm: "sha512", Hex: d.Digest.Hex}, {Algorithm: "sha256", Hex: "../../refs/x"}} {
		if _, err := s.Open(h); err == nil || errors.Is(err, ErrNotFound) || s.Has(h, 5) {
			t.Errorf("%v: %v", h, err)
		}
	}
}

// TestDamagedBlob damages a blob without changing its size.
func TestDamagedBlob(t *testing.T) {
	s := open(t)
	d := put(t, s, "hello")
	damage := func() {
		if err := os.WriteFile(s.blobPath(d.Digest), []byte("jello"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	if _, err := s.Get(d.Digest, 5); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v, want that it is damaged", err)
	}
	if s.Has(d.Digest, d.Size) {
		t.Error("the damaged blob is still there")
	}
	put(t, s, "hello")
	damage()
	r, err := s.Open(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(r, make([]byte, 5)); err == nil || n > 0 {
		t.Errorf("as many bytes as it has: got %d, %v, and has not asked for its end", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	put(t, s, "hello")
	damage()
	if f, err := s.OpenVerified(d.Digest); err == nil {
		t.Errorf("%s was opened as verified", f.Name())
	}
	put(t, s, "hello")
	damage()
	put(t, s, "hello")
	if got, err := s.Get(d.Digest, 5); err != nil || string(got) != "hello" {
		t.Errorf("Put left the damage: %q, %v", got, err)
	}
}

func TestGetJSON(t *testing.T) {
	s := open(t)
	for data, want := range map[string]error{
		`{"a":"plain\tß … <&>","b":["x"]}`: nil,
		`{"a":"\u001b[2J"}`:                ErrControl,
		`{"b":["x","two\nlines"]}`:         ErrControl,
		`{"\u009b":1}`:                     ErrControl,
	} {
		var v struct {
			A string
			B []string
		}
		d := put(t, s, data)
		if err := s.GetJSON(d.Digest, 100, &v); !errors.Is(err, want) || err == nil && (v.A == "" || len(v.B) != 1) {
			t.Errorf("%s: got %v and %v, want %v", data, v, err, want)
		}
	}
	for _, data := range []string{"", "{", `{"A":1}`, "{} {}", strings.Repeat(" ", 101)} {
		var v struct{ A string }
		d := put(t, s, data)
		if err := s.GetJSON(d.Digest, 100, &v); err == nil {
			t.Errorf("%q: got %v", data, v)
		}
	}
}

func TestWrite(t *testing.T) {
	s := open(t)
	want := put(t, s, "hello")
	got, err := s.Write(text, func(w io.Writer) error {
		_, err := io.WriteString(w, "hello")
		return err
	})
	if err != nil || got.Digest != want.Digest || got.Size != want.Size || got.MediaType != text {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	stop := errors.New("stop")
	if _, err := s.Write(text, func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(s.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	f, err := s.OpenVerified(want.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if data, err := io.ReadAll(f); err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestRefs(t *testing.T) {
	s := open(t)
	if _, err := s.Ref("result", "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a missing ref: %v", err)
	}
	one, two := put(t, s, "one"), put(t, s, "two")
	for _, d := range []v1.Descriptor{one, two} {
		if err := s.SetRef("result", "a", d); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Ref("result", "a"); err != nil || got.Digest != two.Digest || got.MediaType != text {
		t.Errorf("got %+v, %v, want the last", got, err)
	}
	missing := one
	missing.Digest.Hex = strings.Repeat("0", 64)
	if err := s.SetRef("result", "b", missing); !errors.Is(err, ErrNotFound) {
		t.Errorf("a ref to nothing: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../a", "a/b", "-a", "a\n", ".hidden"} {
		if err := s.SetRef("result", name, one); err == nil {
			t.Errorf("%q was taken for a name", name)
		}
	}
	for _, damage := range []string{"", "{", "[]", `{"digest":7}`, strings.Repeat(" ", maxRef+1) + "{}"} {
		if err := os.WriteFile(s.path("refs", "result", "a"), []byte(damage), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Ref("result", "a"); !errors.Is(err, ErrNotFound) {
			t.Errorf("damaged ref %.20q: %v", damage, err)
		}
	}
}

// TestSweep leaves what others are writing alone, and removes it when they have
// gone.
func TestSweep(t *testing.T) {
	s := open(t)
	if _, err := s.Create(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.TempDir(), "source-1", "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	left := func() int {
		other, err := Open(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		entries, err := os.ReadDir(s.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if n := left(); n != 2 {
		t.Errorf("beside another user %d of 2 temporaries are left", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := left(); n != 0 {
		t.Errorf("alone %d temporaries are left", n)
	}
}

// TestConcurrentWriters has several stores on one folder write the same and
// different blobs and refs at the same time.
func TestConcurrentWriters(t *testing.T) {
	s := open(t)
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			mine, err := Open(s.Dir())
			if err != nil {
				t.Error(err)
				return
			}
			defer mine.Close()
			for i := range 20 {
				d, err := mine.Put(fmt.Appendf(nil, "blob %d", i), text)
				if err == nil {
					err = mine.SetRef("result", fmt.Sprint(i), d)
				}
				if err == nil {
					_, err = mine.Ref("result", fmt.Sprint((i+w)%20))
				}
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	for i := range 20 {
		d, err := s.Ref("result", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(d.Digest, 100); err != nil || string(got) != fmt.Sprintf("blob %d", i) {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) != 0 {
		t.Errorf("%d temporaries are left", len(left))
	}
}

// TestFullDisk runs itself on a file system of 256 KiB.
func TestFullDisk(t *testing.T) {
	const env = "STORE_TEST_DIR"
	dir := os.Getenv(env)
	if dir == "" {
		cmd := exec.Command("unshare", "--map-root-user", "-m", "sh", "-euc", `mount -t tmpfs -o size=256k none "$1"; exec "$0" -test.run TestFullDisk`,
			os.Args[0], t.TempDir())
		cmd.Env = append(os.Environ(), env+"="+cmd.Args[len(cmd.Args)-1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	small := put(t, s, "small")
	big := bytes.Repeat([]byte("x"), 1<<20)
	if _, err := s.Put(big, text); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Put: %v", err)
	}
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(big); err == nil {
		t.Error("Write has room")
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) != 0 {
		t.Errorf("%d temporaries are left", len(left))
	}
	if blobs, _ := os.ReadDir(s.BlobDir()); len(blobs) != 1 {
		t.Errorf("%d blobs, want the small one", len(blobs))
	}
	if err := s.SetRef("result", "a", small); err != nil {
		t.Errorf("the freed room is not there: %v", err)
	}
}

// gzipLayer stores data as a layer.
func gzipLayer(t *testing.T, s *Store, name, data string) *Layer {
	t.Helper()
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(w)
	if _, err := io.WriteString(z, data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	digest, size, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	diffID, _, err := v1.SHA256(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.NewLayer(name, digest, size, diffID)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLayout reads the store with another reader of OCI layouts.
func TestLayout(t *testing.T) {
	s := open(t)
	gzipLayer(t, s, "base", strings.Repeat("\x00", 1024)) // an empty tar
	l, err := s.Layer("base")
	if err != nil {
		t.Fatal(err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, l); err != nil {
		t.Fatal(err)
	}
	want, err := s.PutImage("hello", img)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteIndex(); err != nil {
		t.Fatal(err)
	}
	path, err := layout.FromPath(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	got, err := path.Image(want.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != want.Digest {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestDamagedLayer(t *testing.T) {
	s := open(t)
	random := strings.Repeat("abcdefghij", 10000)
	for _, at := range []int64{0, 30, -9} { // its header, its middle, the size at its end
		l := gzipLayer(t, s, "l", random)
		path := s.blobPath(l.desc.Digest)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at < 0 {
			at += int64(len(data))
		}
		data[at] ^= 0x55
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := l.Uncompressed()
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("damage at byte %d: %v", at, err)
		}
		if _, err := s.Layer("l"); !errors.Is(err, ErrNotFound) {
			t.Errorf("damage at byte %d: the layer is still there: %v", at, err)
		}
	}
}
