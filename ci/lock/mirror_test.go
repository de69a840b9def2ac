package lock_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/images/apt"
)

// mirror is a Debian mirror on loopback. It serves the packages that it is given
// from the tests' common store.
type mirror struct {
	url, keyring string
	blobs        string
	key          *openpgp.Entity

	mu     sync.Mutex
	index  []*apt.Package
	pools  map[string]map[string]string // by the pool's prefix: path → sha256
	asked  []string
	serial int // of its Release
}

const suite = "bookworm"

func newMirror(t testing.TB, pkgs []*apt.Package) *mirror {
	t.Helper()
	key, err := openpgp.NewEntity("mirror", "", "mirror@example.org", yesterday())
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	m := &mirror{key: key, blobs: filepath.Join(rig.Store(t), "blobs/sha256"), pools: map[string]map[string]string{},
		keyring: rig.Write(t, t.TempDir(), "keyring.gpg", public.String())}
	m.set("/debian/", pkgs)
	server := httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(server.Close)
	m.url = server.URL
	return m
}

// yesterday is when all is signed: what a run of kofarm takes for now is when it
// began.
func yesterday() *packet.Config {
	return &packet.Config{Time: func() time.Time { return time.Now().AddDate(0, 0, -1) }}
}

// set says what the index and a pool have.
func (m *mirror) set(pool string, pkgs []*apt.Package) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pools[pool] = map[string]string{}
	for _, p := range pkgs {
		m.pools[pool][p.Filename] = p.SHA256
	}
	if pool == "/debian/" {
		m.index = pkgs
		m.serial++
	}
}

// requests gives what was asked for since the last call.
func (m *mirror) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := m.asked
	m.asked = nil
	return asked
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.asked = append(m.asked, r.URL.Path)
	packages := m.packages()
	var file string
	for prefix, pool := range m.pools {
		if path, ok := strings.CutPrefix(r.URL.Path, prefix); ok && pool[path] != "" {
			file = pool[path]
		}
	}
	serial := m.serial
	m.mu.Unlock()
	switch {
	case r.URL.Path == "/debian/dists/"+suite+"/InRelease":
		_, _ = w.Write(m.release(packages, serial))
	case r.URL.Path == "/debian/dists/"+suite+"/main/binary-amd64/Packages":
		_, _ = w.Write(packages)
	case file != "":
		http.ServeFile(w, r, filepath.Join(m.blobs, file))
	default:
		http.NotFound(w, r)
	}
}

func (m *mirror) release(packages []byte, serial int) []byte {
	text := fmt.Sprintf("Origin: Test\nSuite: %s\nCodename: %s\nDate: %s\nArchitectures: amd64\nComponents: main\nSHA256:\n %x %d main/binary-amd64/Packages\n",
		suite, suite, time.Date(2026, 7, 1, serial, 0, 0, 0, time.UTC).Format("Mon, 02 Jan 2006 15:04:05 UTC"), sha256.Sum256(packages), len(packages))
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, m.key.PrivateKey, yesterday())
	if err != nil {
		return nil
	}
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return append(b.Bytes(), '\n')
}

// packages writes the index.
func (m *mirror) packages() []byte {
	pkgs := slices.Clone(m.index)
	slices.SortStableFunc(pkgs, func(a, b *apt.Package) int { return strings.Compare(a.Name, b.Name) })
	var b bytes.Buffer
	for _, p := range pkgs {
		fmt.Fprintf(&b, "Package: %s\nSource: %s (%s)\nVersion: %s\nArchitecture: %s\n", p.Name, p.Source, p.SourceVersion, p.Version, p.Arch)
		if p.Essential {
			b.WriteString("Essential: yes\n")
		}
		if p.MultiArch != "" {
			fmt.Fprintf(&b, "Multi-Arch: %s\n", p.MultiArch)
		}
		for _, f := range []struct {
			name string
			deps []apt.Dependency
		}{{"Depends", p.Depends}, {"Pre-Depends", p.PreDepends}, {"Conflicts", p.Conflicts}, {"Breaks", p.Breaks}} {
			texts := make([]string, len(f.deps))
			for i, d := range f.deps {
				texts[i] = d.String()
			}
			if len(texts) > 0 {
				fmt.Fprintf(&b, "%s: %s\n", f.name, strings.Join(texts, ", "))
			}
		}
		provides := make([]string, len(p.Provides))
		for i, r := range p.Provides {
			provides[i] = r.String()
		}
		if len(provides) > 0 {
			fmt.Fprintf(&b, "Provides: %s\n", strings.Join(provides, ", "))
		}
		fmt.Fprintf(&b, "Priority: %s\nFilename: %s\nSize: %d\nSHA256: %s\n\n", p.Priority, p.Filename, p.Size, p.SHA256)
	}
	return b.Bytes()
}

// farmOn is the farm with the mirror alone, and with more settings of it.
func (m *mirror) farmOn(more string) string {
	return modules + "archives:\n  debian: {mirrors: [" + m.url + "/debian], security-mirrors: [], keyring: " + m.keyring + more + "}\n"
}

var lockedOnce []*apt.Package

// locked are the packages of Debian that a lock of the farm names, and dkms.
func locked(t testing.TB) []*apt.Package {
	t.Helper()
	if lockedOnce != nil {
		return lockedOnce
	}
	dir := folder(t, modules)
	rig.Kofarm(t, 0, dir, rig.Store(t), "lock")
	rig.Kofarm(t, 0, dir, rig.Store(t), "bundle", "-o", "bundle.tar") // fetches all
	debian := archive.Open(t, suite)
	l := parse(t, dir)
	names := []string{"dkms", l.Modules[0].Deb.Name}
	for _, p := range l.Suites[0].Packages() {
		names = append(names, p.Name)
	}
	var pkgs []*apt.Package
	for _, name := range names {
		found, err := debian.Lookup(name)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		pkgs = append(pkgs, found[0])
	}
	lockedOnce = pkgs
	return pkgs
}

// fresh is a new folder with a farm on the mirror, and another's lock.
func fresh(t testing.TB, farmFile, lockOf string) string {
	t.Helper()
	dir := folder(t, farmFile)
	rig.Write(t, dir, "farm.lock", string(rig.Read(t, lockOf, "farm.lock")))
	return dir
}

// TestMirrorMovesOn locks against a mirror, which then loses half of its
// packages, from the index and the pool.
func TestMirrorMovesOn(t *testing.T) {
	all := locked(t)
	m := newMirror(t, all)
	dir := folder(t, m.farmOn(""))
	own := filepath.Join(dir, "store")
	rig.Kofarm(t, 0, dir, own, "lock")
	for _, path := range m.requests() {
		if strings.Contains(path, "/pool/") {
			t.Errorf("locking has fetched %s", path)
		}
	}
	rig.Kofarm(t, 0, dir, own, "build", "--locked")
	want := filepath.Join(dir, "dist")

	var half []*apt.Package
	for i, p := range all {
		if i%2 == 0 {
			half = append(half, p)
		}
	}
	m.set("/debian/", half)
	m.requests()

	t.Run("without the lock", func(t *testing.T) {
		bare := folder(t, m.farmOn(""))
		if r := rig.Run(t, bare, []string{"KOFARM_STORE=" + filepath.Join(bare, "store")}, rig.Binary(t), "build"); r.Code == 0 {
			t.Error("it builds: the mirror has lost nothing that matters")
		}
		m.requests()
	})
	t.Run("from the store", func(t *testing.T) {
		other := fresh(t, m.farmOn(""), dir)
		packages := filepath.Join(other, "store")
		rig.Clone(t, own, packages, "blobs") // no layers, no results
		rig.Kofarm(t, 0, other, packages, "build", "--locked")
		same(t, filepath.Join(other, "dist"), want)
		if asked := m.requests(); len(asked) > 0 {
			t.Errorf("the mirror was asked for %q", asked)
		}
	})
	t.Run("from nowhere", func(t *testing.T) {
		other := fresh(t, m.farmOn(", fallbacks: ['"+m.url+"/gone/{timestamp}']"), dir)
		r := rig.Kofarm(t, 3, other, filepath.Join(other, "store"), "build", "--locked")
		said := r.Stdout + r.Stderr
		for _, want := range []string{"is not in the store, and cannot be had", "want sha256 ", m.url + "/debian/pool/", m.url + "/gone/20260701T010000Z/pool/",
			"archives.debian.fallbacks", "kofarm lock --update"} {
			if !strings.Contains(said, want) {
				t.Errorf("no %q in\n%s", want, said)
			}
		}
	})
	t.Run("from a fallback", func(t *testing.T) {
		m.set("/snapshot/20260701T010000Z/", all)
		m.requests()
		other := fresh(t, m.farmOn(", fallbacks: ['"+m.url+"/nothing', '"+m.url+"/snapshot/{timestamp}/']"), dir)
		rig.Kofarm(t, 0, other, filepath.Join(other, "store"), "build", "--locked")
		same(t, filepath.Join(other, "dist"), want)
		asked := m.requests()
		if !slices.ContainsFunc(asked, func(p string) bool { return strings.HasPrefix(p, "/snapshot/20260701T010000Z/pool/") }) ||
			slices.ContainsFunc(asked, func(p string) bool { return strings.Contains(p, "/dists/") }) {
			t.Errorf("asked for %q", asked)
		}
	})
	t.Run("wrong bytes", func(t *testing.T) {
		other := fresh(t, m.farmOn(""), dir)
		lock := string(rig.Read(t, other, "farm.lock"))
		sum := parse(t, other).Modules[0].Deb.SHA256
		rig.Write(t, other, "farm.lock", strings.Replace(lock, sum, strings.Repeat("0", 64), 1))
		m.set("/debian/", all)
		r := rig.Kofarm(t, 3, other, filepath.Join(other, "store"), "build", "--locked")
		if !strings.Contains(r.Stderr, "wrong content") || !strings.Contains(r.Stderr, strings.Repeat("0", 64)) {
			t.Errorf("got %s", r.Stderr)
		}
	})
}

// TestUpdate: a lock stays when the archive moves on, until it is told to.
func TestUpdate(t *testing.T) {
	all := locked(t)
	m := newMirror(t, all)
	dir := folder(t, m.farmOn(""))
	common := filepath.Join(dir, "store")
	rig.Kofarm(t, 0, dir, common, "lock")
	first := rig.Read(t, dir, "farm.lock")

	newer := slices.Clone(all)
	for i, p := range newer {
		if p.Name == "bc" || p.Name == "xz-utils" {
			next := *p
			next.Version = "9:1-1"
			newer[i] = &next
		}
	}
	m.set("/debian/", slices.Concat(all, newer)) // both versions are there
	if r := rig.Kofarm(t, 0, dir, common, "lock"); !bytes.Equal(rig.Read(t, dir, "farm.lock"), first) {
		t.Errorf("the lock has moved on by itself:\n%s", r.Stdout)
	}
	r := rig.Kofarm(t, 0, dir, common, "lock", "--update", "bc")
	lines := changes(r.Stdout)
	if len(lines) != 1 || !strings.Contains(lines[0], "bc ") || !strings.HasSuffix(lines[0], "→ 9:1-1") {
		t.Errorf("updating bc: %q\n%s", lines, r.Stdout)
	}
	r = rig.Kofarm(t, 0, dir, common, "lock", "--update")
	lines = changes(r.Stdout)
	if len(lines) != 1 || !strings.Contains(lines[0], "xz-utils ") {
		t.Errorf("updating all: %q\n%s", lines, r.Stdout)
	}

	// A new build package is pinned beside what stays, though both have newer versions.
	rig.Write(t, dir, "farm.lock", string(first))
	rig.Write(t, dir, "farm.yaml", strings.Replace(m.farmOn(""), "{tarball: src/tarred-1.0.tar}", "{tarball: src/tarred-1.0.tar}, build-packages: [xz-utils, bc]", 1))
	drift := rig.Kofarm(t, 0, dir, common, "plan")
	rig.Kofarm(t, 0, dir, common, "lock")
	if lines := changes(rig.Kofarm(t, 0, dir, common, "lock").Stdout); len(lines) > 0 {
		t.Errorf("again: %q", lines)
	}
	for _, p := range parse(t, dir).Suites[0].Packages() {
		if p.Version == "9:1-1" {
			t.Errorf("%s has moved on", p.Name)
		}
	}
	if !strings.Contains(drift.Stderr, "farm.yaml:5:5, farm.lock:") || !strings.Contains(drift.Stderr, "does not say what xz-utils, bc needs") {
		t.Errorf("no word of what the lock does not cover: %s", drift.Stderr)
	}

	if err := os.Remove(filepath.Join(dir, "farm.lock")); err != nil {
		t.Fatal(err)
	}
	rig.Kofarm(t, 2, dir, common, "lock", "--update", "bc")
}

// changes are the lines of a difference.
func changes(out string) []string {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "  ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}
