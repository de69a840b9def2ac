// Package packages_test installs, upgrades and removes with the real tools of
// Debian, of Fedora and of SUSE what kofarm packages from Debian's real kernels
// and modules.
package packages_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kofarm/kofarm/ci/dist"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// passphrase is that of the tests' signing key.
const (
	passphraseEnv = "KOFARM_TEST_PASSPHRASE"
	passphrase    = "correct horse"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers and use chroots: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "kofarm-packages-")
	if err != nil {
		panic(err)
	}
	keys.dir = dir
	os.Setenv(passphraseEnv, passphrase)
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		println(err.Error())
	}
	os.Exit(code)
}

// keys is a signing key that gpg has made: secret.asc, and public.asc for those
// who check.
var keys struct {
	dir  string
	once sync.Once
}

func secretKey(t testing.TB) string {
	t.Helper()
	keys.once.Do(func() {
		home := filepath.Join(keys.dir, "gnupg")
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		gpg := func(args ...string) string {
			return run(t, keys.dir, "gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", passphrase}, args...)...)
		}
		gpg("--quick-gen-key", "farm <farm@example.org>", "ed25519", "sign", "never")
		rig.Write(t, keys.dir, "public.asc", gpg("--armor", "--export"))
		rig.Write(t, keys.dir, "secret.asc", gpg("--armor", "--export-secret-keys"))
		run(t, keys.dir, "gpgconf", "--homedir", home, "--kill", "gpg-agent")
	})
	return filepath.Join(keys.dir, "secret.asc")
}

func publicKey(t testing.TB) string {
	t.Helper()
	return filepath.Join(filepath.Dir(secretKey(t)), "public.asc")
}

// signed is the part of a farm file that names the key.
func signed(t testing.TB) string {
	return fmt.Sprintf("  sign: {key: %s, passphrase-env: %s}\n", secretKey(t), passphraseEnv)
}

// try runs a command in dir, and gives both of its streams.
func try(t testing.TB, dir, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+keys.dir)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is needed, ci/setup test installs it: %v", name, err)
	}
	return string(out), err
}

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := try(t, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// build builds a farm file's cells and packages in dir, on the shared store.
func build(t testing.TB, dir, yaml string) *farm.Report {
	t.Helper()
	rig.Write(t, dir, "farm.yaml", yaml)
	rig.Kofarm(t, 0, dir, rig.Store(t), "build")
	return dist.Results(t, filepath.Join(dir, "dist"))
}

// one gives the one file in dist whose name the pattern matches.
func one(t testing.TB, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "dist", pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v, want one", pattern, found, err)
	}
	return found[0]
}

// site serves a folder on loopback, and may alter a file.
type site struct {
	url     string
	altered atomic.Pointer[string] // pattern of the paths whose content is altered
}

func serve(t testing.TB, dir string) *site {
	t.Helper()
	s := &site{}
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := s.altered.Load(); p != nil {
			if ok, _ := filepath.Match(*p, r.URL.Path); ok {
				serveAltered(w, filepath.Join(dir, filepath.FromSlash(r.URL.Path)))
				return
			}
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// alter alters the files whose paths the pattern matches, until it is called with "".
func (s *site) alter(pattern string) {
	if pattern == "" {
		s.altered.Store(nil)
		return
	}
	s.altered.Store(&pattern)
}

// serveAltered gives a file with one letter changed, or where it is no text one
// byte, in its middle.
func serveAltered(w http.ResponseWriter, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	data[len(data)/2] ^= 1
	_, _ = w.Write(data)
}

// contains fails the test unless the text has all of the parts.
func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("want %q in\n%s", part, text)
		}
	}
}

// plainSum is the sha256 in hex of a module as it is without its compression.
func plainSum(t testing.TB, path string) string {
	t.Helper()
	tool, ok := map[string]string{".xz": "xz -dc", ".zst": "zstd -qdc", ".gz": "gzip -dc"}[filepath.Ext(path)]
	if !ok {
		tool = "cat"
	}
	sum, _, _ := strings.Cut(run(t, "/", "sh", "-c", tool+` < "$1" | sha256sum`, "sh", path), " ")
	return sum
}
