// Package cache_test runs farms that share their results through Debian's
// docker-registry.
package cache_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers and make network namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "kofarm-cache-")
	if err != nil {
		panic(err)
	}
	reference.dir = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		println(err.Error())
	}
	os.Exit(code)
}

// reference is a machine that has built the cells when its registry could not be
// reached. The tests' other machines begin as copies of it.
var reference struct {
	dir  string
	once sync.Once
	m    *machine
}

func built(t testing.TB) *machine {
	t.Helper()
	reference.once.Do(func() {
		m := newMachine(t, reference.dir, nowhere, "readwrite", rig.Store(t), "blobs", "cache", "refs/layer")
		m.env = []string{"DOCKER_CONFIG=" + t.TempDir()}
		r, report := m.build(t)
		counts(t, "without the registry", report, 0)
		if !strings.Contains(r.Stderr, "the shared cache cannot be used") || !strings.Contains(r.Stderr, nowhere) {
			t.Errorf("nothing is said of a registry that cannot be reached:\n%s", r.Stderr)
		}
		reference.m = m
	})
	if reference.m == nil {
		t.Fatal("the reference could not be built, see above")
	}
	return reference.m
}

// nowhere is an address that nobody listens at.
const nowhere = "127.0.0.1:1"

// twoCells is a farm of two cells on a cache.
const twoCells = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, cloud-amd64]
cache: {registry: "%s", mode: %s}
`

func farmOn(repository, mode string) string { return fmt.Sprintf(twoCells, repository, mode) }

// machine is a folder with a farm file and a store of its own.
type machine struct {
	dir, store, dist string
	env              []string
	within           []string // a command that runs others in a network namespace
}

// newMachine makes a machine whose store begins as parts of another.
func newMachine(t testing.TB, dir, registry, mode, from string, parts ...string) *machine {
	t.Helper()
	rig.Write(t, dir, "farm.yaml", farmOn(registry+"/team/kofarm", mode))
	m := &machine{dir: dir, store: filepath.Join(dir, "store"), dist: filepath.Join(dir, "dist")}
	if err := os.MkdirAll(m.store, 0o755); err != nil {
		t.Fatal(err)
	}
	if own := slices.Index(parts, "run"); own >= 0 { // unpacked layers, with the modes of their folders
		parts = slices.Delete(slices.Clone(parts), own, own+1)
		rig.Command(t, from, "cp", "-al", "run", m.store)
	}
	rig.Clone(t, from, m.store, parts...)
	return m
}

// build runs kofarm, which must succeed.
func (m *machine) build(t testing.TB, args ...string) (rig.Result, *farm.Report) {
	t.Helper()
	command := slices.Concat(m.within, []string{rig.Binary(t), "--store", m.store, "build"}, args)
	r := rig.Run(t, m.dir, m.env, command[0], command[1:]...)
	if r.Code != 0 {
		t.Fatalf("%q: exit status %d\n%s%s", command, r.Code, r.Stdout, r.Stderr)
	}
	data, err := os.ReadFile(filepath.Join(m.dist, farm.ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var report farm.Report
	if err := json.Unmarshal(data, &report); err != nil {
		t.Fatal(err)
	}
	return r, &report
}

// counts fails the test unless two cells are built, of which so many were not
// built by this run.
func counts(t testing.TB, what string, r *farm.Report, cached int) {
	t.Helper()
	if want := (farm.Counts{Built: 2, Cached: cached}); r.Counts != want {
		t.Errorf("%s: got %+v, want %+v", what, r.Counts, want)
	}
}

// same compares two folders, every byte.
func same(t testing.TB, got, want string) {
	t.Helper()
	read := func(dir string) map[string][]byte {
		files := map[string][]byte{}
		err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files[p], err = os.ReadFile(filepath.Join(dir, p))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	g, w := read(got), read(want)
	for name := range w {
		if !bytes.Equal(g[name], w[name]) {
			t.Errorf("%s differs", name)
		}
	}
	if len(g) != len(w) || len(w) < 5 {
		t.Errorf("%d files, want %d", len(g), len(w))
	}
}

// TestSharedCache takes one farm through the life of a cache. The second machine
// has another store and another network: all that it downloads goes through a
// proxy that takes notes.
func TestSharedCache(t *testing.T) {
	w := newWorld(t)
	addr := w.address(t)
	reg := w.registry(t, addr, plain)
	a := newMachine(t, t.TempDir(), addr, "readwrite", built(t).store, "blobs", "cache", "refs")
	a.env = w.env
	r, report := a.build(t)
	counts(t, "with the registry", report, 2)
	if strings.Contains(r.Stderr, "WARN") {
		t.Errorf("warnings:\n%s", r.Stderr)
	}

	b := newMachine(t, t.TempDir(), addr, "read", "")
	b.env, b.within = w.env, w.within
	_, report = b.build(t)
	counts(t, "the second machine", report, 2)
	same(t, b.dist, a.dist)
	debs := w.fetched(".deb")
	if len(debs) != 1 || !strings.Contains(debs[0], "/acpi-call-dkms_") {
		t.Errorf("the second machine has downloaded %q, want the module's source only", debs)
	}
	if left, err := os.ReadDir(filepath.Join(b.store, "run", "layers")); err == nil && len(left) > 0 {
		t.Errorf("the second machine has unpacked %d layers", len(left))
	}

	// A module with another byte in it, and a record that ends too soon.
	module := report.Cells[0].Modules[0].SHA256
	reg.damage(t, module, func(data []byte) []byte { data[len(data)/2] ^= 1; return data })
	reg.damage(t, reg.config(t, report.Cells[1].Key), func(data []byte) []byte { return data[:len(data)/2] })
	c := newMachine(t, t.TempDir(), addr, "readwrite", built(t).store, "blobs", "cache", "refs/layer", "run")
	c.env = w.env
	if err := os.Remove(filepath.Join(c.store, "blobs/sha256", module)); err != nil { // else it need not be pulled
		t.Fatal(err)
	}
	reg.forget(t, c, report)
	r, report = c.build(t)
	counts(t, "after the damage", report, 0)
	if strings.Count(r.Stderr, "the shared cache holds a damaged result") != 2 {
		t.Errorf("want two damaged results:\n%s", r.Stderr)
	}
	if got := report.Cells[0].Modules[0].SHA256; got != module {
		t.Errorf("the module was built as %s, want %s", got, module)
	}
}

// TestSharedImages has a second machine, which knows nothing, build what no one
// has built yet: the layers of toolchain and headers come from the registry. A
// layer that was changed there is made anew.
func TestSharedImages(t *testing.T) {
	w := newWorld(t)
	addr := w.address(t)
	reg := w.registry(t, addr, plain)
	a := newMachine(t, t.TempDir(), addr, "readwrite", built(t).store, "blobs", "cache", "refs/layer")
	a.env = w.env
	_, first := a.build(t)
	counts(t, "the first machine", first, 0)
	layers := reg.tags(t, "packages-")
	if len(layers) != 6 { // a toolchain, kbuild, common headers, the headers of two kernels, the module's build packages
		t.Errorf("the registry has the layers %q", layers)
	}

	b := newMachine(t, t.TempDir(), addr, "read", "")
	b.env, b.within = w.env, w.within
	// Other arguments give the cells other keys.
	rig.Write(t, b.dir, "farm.yaml", strings.Replace(farmOn(addr+"/team/kofarm", "readwrite"), "kernels:", "    make-args: [V=1]\nkernels:", 1))
	w.fetched("")
	r, report := b.build(t)
	counts(t, "the second machine", report, 0)
	if strings.Contains(r.Stderr, "the shared cache") {
		t.Errorf("warnings:\n%s", r.Stderr)
	}
	for _, deb := range w.fetched(".deb") { // two for their Module.symvers
		if !strings.Contains(deb, "/acpi-call-dkms_") && !regexp.MustCompile(`/linux-headers-[0-9.-]+(-cloud)?-amd64_`).MatchString(deb) {
			t.Errorf("the second machine has downloaded %s", deb)
		}
	}
	for i, c := range report.Cells {
		if got, want := c.Modules[0].SHA256, first.Cells[i].Modules[0].SHA256; got != want {
			t.Errorf("%s: the second machine has built %s, the first %s", c.Key, got, want)
		}
	}
}

// TestCredentials has a registry with a password, without and with TLS.
func TestCredentials(t *testing.T) {
	w := newWorld(t)
	first := built(t)
	for _, kind := range []registryKind{basicAuth, tlsAndAuth} {
		t.Run(string(kind), func(t *testing.T) {
			addr := w.address(t)
			reg := w.registry(t, addr, kind)
			env := slices.Concat(w.env, reg.env)
			a := newMachine(t, t.TempDir(), addr, "readwrite", first.store, "blobs", "cache", "refs")

			a.env = append(slices.Clone(env), "DOCKER_CONFIG="+reg.login(t, "ann", "not-"+password))
			r, report := a.build(t, "--verbose")
			counts(t, "wrong password", report, 2)
			for _, want := range []string{"access denied", "401", "docker login " + addr} {
				if !strings.Contains(r.Stderr, want) {
					t.Errorf("the message lacks %q:\n%s", want, r.Stderr)
				}
			}
			if strings.Contains(r.Stderr+r.Stdout, password) {
				t.Error("the password is in the log")
			}

			login := "DOCKER_CONFIG=" + reg.login(t, "ann", password)
			a.env = append(slices.Clone(env), login)
			r, _ = a.build(t, "--verbose")
			if strings.Contains(r.Stderr+r.Stdout, password) || strings.Contains(r.Stderr, "WARN") {
				t.Errorf("the password is in the log, or there are warnings:\n%s", r.Stderr)
			}

			b := newMachine(t, t.TempDir(), addr, "read", first.store, "cache")
			b.env, b.within = append(slices.Clone(env), login), w.within
			_, report = b.build(t)
			counts(t, "the second machine", report, 2)
			same(t, b.dist, a.dist)

			none := newMachine(t, t.TempDir(), addr, "read", first.store, "blobs", "cache", "refs")
			none.env = append(slices.Clone(w.env), "DOCKER_CONFIG="+none.dir)
			if _, report = none.build(t); report.Counts.Built != 2 {
				t.Errorf("without credentials: %+v", report.Counts)
			}
		})
	}
}
