package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/farm/sign"
)

var epoch = time.Date(2024, 2, 29, 12, 30, 0, 0, time.UTC)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if _, missing := errors.AsType[*exec.Error](err); missing {
		t.Fatalf("%v (ci/setup test installs it)", err)
	}
	return string(out), err
}

func write(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyOf makes a secret key of one of the two kinds.
func keyOf(t testing.TB, config packet.Config) *sign.Key {
	t.Helper()
	config.Time = func() time.Time { return epoch.Add(-24 * time.Hour) }
	e, err := openpgp.NewEntity("Farm", "", "farm@example.org", &config)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.SerializePrivateWithoutSigning(&b, nil); err != nil {
		t.Fatal(err)
	}
	k, err := sign.Load(sign.Source{File: write(t, filepath.Join(t.TempDir(), "key"), b.String())})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t testing.TB) *sign.Key { return keyOf(t, packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}) }

// kinds are keys as users have them.
func kinds(t testing.TB) map[string]*sign.Key {
	return map[string]*sign.Key{"ed25519": edKey(t), "rsa": keyOf(t, packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048})}
}

func publicKey(t testing.TB, k *sign.Key) string {
	t.Helper()
	public, err := k.PublicArmored()
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "key.asc"), string(public))
}

// snapshot is every file of a folder with its sha256.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		files[strings.TrimPrefix(path, dir+"/")] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// differences lists how two snapshots differ.
func differences(got, want map[string]string) []string {
	var all []string
	for name, sum := range got {
		if want[name] != sum {
			all = append(all, "+"+name)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			all = append(all, "-"+name)
		}
	}
	sort.Strings(all)
	return all
}

var errStopped = errors.New("stopped here")

// stopper stops an update before its nth change, and at all after it, as a kill does.
type stopper struct {
	mu   sync.Mutex
	left int
	at   string
}

func (s *stopper) step(op, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left--; s.left >= 0 {
		return nil
	}
	if s.at == "" {
		s.at = op + " " + name
	}
	return fmt.Errorf("%w: %s", errStopped, s.at)
}

// stopEverywhere runs an update from a copy of a folder again and again, stopped at each of its
// changes; then looks at what is there, runs it to the end, and looks again.
func stopEverywhere(t *testing.T, from string, update func(dir string, step func(op, name string) error) error, look func(t *testing.T, dir, at string)) {
	t.Helper()
	whole := filepath.Join(t.TempDir(), "whole")
	run(t, "cp", "-a", from, whole)
	if err := update(whole, nil); err != nil {
		t.Fatal(err)
	}
	want := snapshot(t, whole)
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "repo")
		run(t, "cp", "-a", from, dir)
		s := &stopper{left: n}
		err := update(dir, s.step)
		if err == nil {
			if n < 10 {
				t.Errorf("an update makes only %d changes", n)
			}
			t.Logf("stopped at %d changes", n)
			return
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		look(t, dir, s.at)
		if err := update(dir, nil); err != nil {
			t.Fatalf("after a stop at %s: %v", s.at, err)
		}
		look(t, dir, s.at+", run again")
		if d := differences(snapshot(t, dir), want); len(d) > 0 {
			t.Errorf("after a stop at %s and a second run: %v", s.at, d)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func update(t testing.TB, r interface {
	Update(context.Context, []File) error
}, files ...string) {
	t.Helper()
	if err := r.Update(t.Context(), fileList(files)); err != nil {
		t.Fatal(err)
	}
}

func fileList(paths []string) []File {
	var all []File
	for _, p := range paths {
		all = append(all, File{Path: p})
	}
	return all
}
