// Package rig gives tests what they share: the built binary, one cache of
// downloads and layers, and ways to run kofarm in it.
package rig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// Root is the repository's folder.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Cache is a folder that outlives test runs: KOFARM_TEST_CACHE, else
// kofarm-test in the user's cache folder.
func Cache(t testing.TB, elem ...string) string {
	t.Helper()
	dir := os.Getenv("KOFARM_TEST_CACHE")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "kofarm-test")
	}
	dir = filepath.Join(append([]string{dir}, elem...)...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Store is the store that tests share which do not need an empty one.
func Store(t testing.TB) string { return Cache(t, "store") }

// Lock holds a lock of that name against other tests and test binaries until
// the test ends: `go test ./...` runs packages at the same time.
func Lock(t testing.TB, name string) {
	t.Helper()
	t.Cleanup(lock(t, name))
}

// Locked runs f while it holds a lock of that name.
func Locked(t testing.TB, name string, f func()) {
	t.Helper()
	defer lock(t, name)()
	f()
}

func lock(t testing.TB, name string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(Cache(t), name+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

var binary = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("make", "--no-print-directory", "build")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return filepath.Join(Root(), "bin", "kofarm"), nil
})

// Binary builds kofarm and gives its path. One test binary after the other does
// so: those that come later find it made, and write nothing that others execute.
func Binary(t testing.TB) string {
	t.Helper()
	var path string
	var err error
	Locked(t, "binary", func() { path, err = binary() })
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Result is what a run of a command gave.
type Result struct {
	PID, Code      int
	Stdout, Stderr string
}

// Run runs a command in dir with the environment and more.
func Run(t testing.TB, dir string, env []string, name string, args ...string) Result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return Result{cmd.Process.Pid, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Command runs a command in dir, which must succeed, and gives both its streams.
func Command(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v (ci/setup test installs what is needed)\n%s", name, args, err, out)
	}
	return string(out)
}

// Kofarm runs kofarm in dir on a store, and fails the test unless it exits with
// the status.
func Kofarm(t testing.TB, want int, dir, store string, args ...string) Result {
	t.Helper()
	r := Run(t, dir, []string{"KOFARM_STORE=" + store}, Binary(t), args...)
	if r.Code != want {
		t.Fatalf("kofarm %q: exit status %d, want %d\n%s%s", args, r.Code, want, r.Stdout, r.Stderr)
	}
	return r
}

// Write writes a file below dir, with the folders above it, and gives its path.
func Write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Folder makes an empty folder that any user can enter.
func Folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kofarm-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// FreshStore makes a store in dir with the downloads and layers of the shared
// one, and no result.
func FreshStore(t testing.TB, dir string) string {
	t.Helper()
	store := filepath.Join(dir, "store")
	Clone(t, Store(t), store, "cache", "refs/layer", "blobs")
	return store
}

// Buffer may be read while it is written.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Clone makes a store out of parts of another, without copying where the file
// system can link. Others may write to that one meanwhile: so its blobs come last,
// that none is missing which a ref names. It may lack a part, as nobody has needed
// it yet.
func Clone(t testing.TB, from, to string, parts ...string) {
	t.Helper()
	for _, part := range blobsLast(parts) {
		err := filepath.WalkDir(filepath.Join(from, part), func(p string, e fs.DirEntry, err error) error {
			if p == filepath.Join(from, part) && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, p)
			if err != nil {
				return err
			}
			if e.IsDir() {
				return os.MkdirAll(filepath.Join(to, rel), 0o755)
			}
			return LinkOrCopy(p, filepath.Join(to, rel))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func blobsLast(parts []string) []string {
	isBlobs := func(part string) bool { return part == "blobs" }
	sorted := slices.DeleteFunc(slices.Clone(parts), isBlobs)
	if slices.ContainsFunc(parts, isBlobs) {
		sorted = append(sorted, "blobs")
	}
	return sorted
}

// LinkOrCopy makes another name for a file, or a copy where there can be none.
func LinkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// Files lists the files below dir, each as its name and mode.
func Files(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		files = append(files, rel+" "+fi.Mode().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Read reads a file, whose path's parts elem are.
func Read(t testing.TB, elem ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Count reads how often a soak test does something: `make soak` sets the variable.
func Count(t testing.TB, variable string) int {
	t.Helper()
	v := os.Getenv(variable)
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no count: `make soak` sets it", variable, v)
	}
	return n
}
