package lock_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestSameKeys: a lock changes no cell's key, and needs no index.
func TestSameKeys(t *testing.T) {
	dir := folder(t, modules)
	common := rig.Store(t)
	without := rig.Kofarm(t, 0, dir, common, "plan", "--json")
	rig.Kofarm(t, 0, dir, common, "lock")
	first := rig.Read(t, dir, "farm.lock")
	rig.Kofarm(t, 0, dir, common, "lock")
	if !bytes.Equal(rig.Read(t, dir, "farm.lock"), first) {
		t.Error("the lock is another the second time")
	}
	if err := os.Remove(filepath.Join(dir, "farm.lock")); err != nil {
		t.Fatal(err)
	}
	rig.Kofarm(t, 0, dir, common, "lock", "--quiet")
	if !bytes.Equal(rig.Read(t, dir, "farm.lock"), first) {
		t.Error("the lock made anew is another")
	}
	bare := filepath.Join(dir, "store")
	rig.Clone(t, common, bare, "blobs") // without any index
	locked := rig.Kofarm(t, 0, dir, bare, "plan", "--json", "--locked", "--offline")
	if locked.Stdout != without.Stdout || strings.Count(locked.Stdout, `"key"`) != 3 {
		t.Errorf("without a lock\n%s\nwith one\n%s", without.Stdout, locked.Stdout)
	}
}

// TestSameBytes builds from one lock: by two users, in different folders, with
// other umasks, time zones and locales, and on every runtime.
func TestSameBytes(t *testing.T) {
	dir := folder(t, modules)
	rig.Kofarm(t, 0, dir, rig.Store(t), "lock")
	rig.Kofarm(t, 0, dir, rig.Store(t), "build", "--locked") // fetches, and makes the layers
	want := filepath.Join(dir, "want")
	rig.Kofarm(t, 0, dir, rig.FreshStore(t, dir), "build", "--locked", "--offline", "--output", want)
	t.Setenv("DOCKER_HOST", "unix:///run/kofarm-test/docker.sock")
	t.Setenv("CONTAINERD_ADDRESS", "/run/kofarm-test/containerd.sock")
	for _, runtime := range []string{"embedded", "docker", "containerd"} {
		t.Run(runtime, func(t *testing.T) {
			other := clone(t, dir)
			r := rig.Run(t, other, []string{"TZ=America/St_Johns", "LC_ALL=de_DE.UTF-8", "KOFARM_STORE=" + rig.FreshStore(t, other)},
				"sh", "-c", `umask 027; exec "$0" "$@"`, rig.Binary(t), "build", "--locked", "--offline", "--parallel", "1", "--runtime", runtime)
			if r.Code != 0 {
				t.Fatalf("exit status %d\n%s", r.Code, r.Stderr)
			}
			if !strings.Contains(r.Stdout, "3 built (0 of 3") {
				t.Errorf("it has built nothing: %s", r.Stdout)
			}
			same(t, filepath.Join(other, "dist"), want)
		})
	}
	t.Run("ordinary user", func(t *testing.T) {
		other := clone(t, dir)
		ordinary(t, other, rig.FreshStore(t, other), "build", "--locked", "--offline")
		same(t, filepath.Join(other, "dist"), want)
	})
}

// TestOffline builds from a bundle with an empty store, in a network namespace
// that has no interface but a loopback that is down.
func TestOffline(t *testing.T) {
	dir := folder(t, modules)
	rig.Kofarm(t, 0, dir, rig.Store(t), "lock")
	rig.Kofarm(t, 0, dir, rig.Store(t), "build", "--locked")
	want := filepath.Join(dir, "dist")
	bundle := filepath.Join(dir, "bundle.tar")
	rig.Kofarm(t, 0, dir, rig.Store(t), "bundle", "--output", bundle)

	again := clone(t, dir)
	rig.Kofarm(t, 0, again, rig.Store(t), "bundle", "--output", "again.tar")
	if !bytes.Equal(rig.Read(t, dir, "bundle.tar"), rig.Read(t, again, "again.tar")) {
		t.Error("two bundles of the same lock differ")
	}

	t.Run("no network", func(t *testing.T) {
		empty := t.TempDir()
		r := rig.Run(t, empty, []string{"KOFARM_STORE=" + filepath.Join(empty, "store")}, "unshare", "--net", "sh", "-euc",
			`ip -o link >&2; test "$(ip -o link show up | wc -l)" = 0; exec "$0" build --bundle "$1"`, rig.Binary(t), bundle)
		if r.Code != 0 {
			t.Fatalf("exit status %d\n%s", r.Code, r.Stderr)
		}
		same(t, filepath.Join(empty, "dist"), want)
		left, err := filepath.Glob(filepath.Join(empty, "store/tmp/*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left in the store: %q, %v", left, err)
		}
	})
	t.Run("with results", func(t *testing.T) {
		empty := t.TempDir()
		rig.Kofarm(t, 0, dir, rig.Store(t), "bundle", "--results", "-o", "results.tar")
		rig.Kofarm(t, 0, dir, rig.Store(t), "bundle", "verify", "results.tar")
		r := rig.Run(t, empty, []string{"KOFARM_STORE=" + filepath.Join(empty, "store")}, "unshare", "--net", rig.Binary(t), "build", "--bundle", filepath.Join(dir, "results.tar"))
		if r.Code != 0 || strings.Contains(r.Stderr, "built ") {
			t.Fatalf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		same(t, filepath.Join(empty, "dist"), want)
	})
	t.Run("verify", func(t *testing.T) { verifyBundles(t, dir, bundle) })
	t.Run("partial", func(t *testing.T) {
		partial := filepath.Join(dir, "partial.tar")
		name, sum := leaveOut(t, dir, bundle, partial)
		empty := t.TempDir()
		r := rig.Run(t, empty, []string{"KOFARM_STORE=" + filepath.Join(empty, "store")}, rig.Binary(t), "build", "--bundle", partial)
		if r.Code != 3 || !strings.Contains(r.Stderr, name) || !strings.Contains(r.Stderr, sum) {
			t.Errorf("exit status %d, no word of %s\n%s", r.Code, name, r.Stderr)
		}
	})
	r := rig.Kofarm(t, 2, dir, rig.Store(t), "build", "--bundle", bundle, "farm.yaml")
	if !strings.Contains(r.Stderr, "with --bundle the farm file is the bundle's") {
		t.Errorf("got %s", r.Stderr)
	}
}

// verifyBundles verifies a bundle that is sound, and ones that are not.
func verifyBundles(t *testing.T, dir, bundle string) {
	good := rig.Kofarm(t, 0, dir, rig.Store(t), "bundle", "verify", bundle)
	if !strings.Contains(good.Stdout, "complete") {
		t.Errorf("got %s", good.Stdout)
	}
	data := rig.Read(t, dir, "bundle.tar")
	name, sum := leaveOut(t, dir, bundle, filepath.Join(dir, "partial.tar"))
	changed := bytes.Clone(data)
	changed[len(changed)/2] ^= 1
	for file, content := range map[string][]byte{"changed.tar": changed, "cut.tar": data[:len(data)/2], "stub.tar": data[:1500], "none.tar": []byte("no tar"), "empty.tar": nil} {
		rig.Write(t, dir, file, string(content))
	}
	for _, tt := range []struct {
		file string
		want []string
	}{
		{"partial.tar", []string{"missing: " + name, sum, "not to be used"}},
		{"changed.tar", []string{"damaged: pool/", "not to be used"}},
		{"cut.tar", []string{"missing: pool/", "the file is cut off", "not to be used"}},
		{"stub.tar", []string{"cut off"}},
		{"none.tar", []string{"it is no bundle"}},
		{"empty.tar", []string{"it is no bundle"}},
	} {
		r := rig.Kofarm(t, 1, dir, rig.Store(t), "bundle", "verify", tt.file)
		for _, want := range tt.want {
			if !strings.Contains(r.Stdout+r.Stderr, want) {
				t.Errorf("%s: no %q in\n%s%s", tt.file, want, r.Stdout, r.Stderr)
			}
		}
	}
}

// leaveOut copies a bundle without one package, and names that.
func leaveOut(t testing.TB, dir, from, to string) (name, sum string) {
	t.Helper()
	for _, p := range parse(t, dir).Suites[0].Packages() {
		if p.Name == "bc" {
			name, sum = p.Path, p.SHA256
		}
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, sum) {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return name, sum
}
