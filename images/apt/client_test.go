package apt

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/images/fetch"
)

var mainLines = []string{
	"dash 0.5; Essential: yes",
	"libc6 2.36-9; Multi-Arch: same; Depends: libgcc-s1, libcrypt1 (>= 1:4.4.10-10~)",
	"linux-headers-6.1.0-1-amd64 6.1.1-1; Source: linux; Depends: linux-headers-6.1.0-1-common (= 6.1.1-1), gcc-12",
	"linux-headers-6.1.0-1-common 6.1.1-1; Architecture: all; Source: linux (6.1.1-1+x)",
	"mawk 1.3; Provides: awk, posix-awk (= 2)",
}

// source is the suite that a and its keyring make.
func source(a *testArchive, keyring string, mirrors ...string) Source {
	return Source{Distribution: "debian", Mirrors: mirrors, Suite: a.suite, Components: []string{"main"}, Arch: "amd64", Keyring: keyring, Now: testNow}
}

func mustOpen(t *testing.T, c *Client, s Source) *Index {
	t.Helper()
	ix, err := c.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ix.Close() }) // only read
	return ix
}

func TestOpen(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	tests := []struct {
		name     string
		suffixes []string
		byHash   bool
	}{
		{"xz by hash", []string{".xz", ".gz"}, true},
		{"xz", []string{".xz", ".gz"}, false},
		{"gz", []string{".gz"}, false},
		{"plain", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newArchive("bookworm")
			a.add(t, "main/binary-amd64", stanzas(mainLines...), tt.suffixes...)
			if tt.byHash {
				a.hidden["main/binary-amd64/Packages.xz"] = true
			} else {
				a.head = strings.Replace(a.head, "Acquire-By-Hash: yes\n", "", 1)
			}
			srv := serveArchive(t, a, sign(t, a.release(), testNow, key))
			c := newTestClient(t)
			ix := mustOpen(t, c, source(a, keyring(t, false, key), srv.URL))
			if got, want := ix.Len(), len(mainLines); got != want {
				t.Errorf("got %d packages, want %d", got, want)
			}
			if got := srv.requests.Load(); got != 2 {
				t.Errorf("got %d requests, want 2", got)
			}
			c.Fetch.Offline = true
			mustOpen(t, c, source(a, keyring(t, true, key), srv.URL))
			if got := srv.requests.Load(); got != 2 {
				t.Errorf("offline, too: got %d requests, want 2", got)
			}
		})
	}
}

// What a killed process has left of an index is used again. It is where unfinished
// files are: the folder of indexes, which others link, has complete ones alone.
func TestKilledIndex(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	a := newArchive("bookworm")
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	srv := serveArchive(t, a, sign(t, a.release(), testNow, key))
	c, s := newTestClient(t), source(a, keyring(t, false, key), srv.URL)
	index := mustOpen(t, c, s).Release.files["main/binary-amd64/Packages.xz"].sha256 + ".packages"
	if err := errors.Join(os.Remove(filepath.Join(c.Dir, index)), os.WriteFile(filepath.Join(c.Fetch.Partial, index), []byte("Package: ha"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, want := mustOpen(t, c, s).Len(), len(mainLines); got != want {
		t.Errorf("got %d packages, want %d", got, want)
	}
	if left, err := filepath.Glob(filepath.Join(c.Fetch.Partial, "*")); err != nil || len(left) > 0 {
		t.Errorf("left of unfinished files: %q, %v", left, err)
	}
}

func TestPackageFields(t *testing.T) {
	u := universe(t, nil, index(t, "bookworm", &Release{}, mainLines...))
	all, err := u.Lookup("linux-headers-6.1.0-1-common")
	if err != nil || len(all) != 1 {
		t.Fatalf("got %v, %v", all, err)
	}
	p := all[0]
	if p.Arch != "all" || p.Source != "linux" || p.SourceVersion != "6.1.1-1+x" || p.Suite != "bookworm" {
		t.Errorf("got %+v", p)
	}
	if got, want := p.URLs, []string{"http://m/pool/linux-headers-6.1.0-1-common_6.1.1-1_all.deb"}; !slices.Equal(got, want) {
		t.Errorf("URLs: got %v, want %v", got, want)
	}
	if f := p.File(); f.Size != p.Size || f.SHA256 != p.SHA256 || !slices.Equal(f.URLs, p.URLs) {
		t.Errorf("file: got %+v", f)
	}
}

// An archive without No-Support-for-Architecture-all has those packages in a second index.
func TestSeparateAllIndex(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	a := newArchive("x")
	a.head = strings.Replace(a.head, "No-Support-for-Architecture-all: Packages\n", "", 1)
	a.add(t, "main/binary-amd64", stanzas("a 1", "both 1; Architecture: all"), ".gz")
	a.add(t, "main/binary-all", stanzas("both 1; Architecture: all", "doc 1; Architecture: all"), ".gz")
	srv := serveArchive(t, a, sign(t, a.release(), testNow, key))
	u := universe(t, nil, mustOpen(t, newTestClient(t), source(a, keyring(t, false, key), srv.URL)))
	if got, want := slices.Collect(u.Names("")), []string{"a", "both", "doc"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := lookup(t, u, "both"), []string{"both=1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMissingComponent(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	a := newArchive("bookworm")
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	srv := serveArchive(t, a, sign(t, a.release(), testNow, key))
	s := source(a, keyring(t, false, key), srv.URL)
	s.Components = []string{"mian"}
	if _, err := newTestClient(t).Open(t.Context(), s); err == nil || !strings.Contains(err.Error(), `no component "mian" for amd64: its components are main, contrib`) {
		t.Errorf("got %v", err)
	}
	s = source(a, keyring(t, false, key), srv.URL)
	s.Arch = "sparc"
	if _, err := newTestClient(t).Open(t.Context(), s); !errors.Is(err, ErrArch) || !strings.Contains(err.Error(), "no packages for sparc: its architectures are ") {
		t.Errorf("got %v", err)
	}
}

func TestMirrors(t *testing.T) {
	key, stranger := newKey(t, testNow.AddDate(-1, 0, 0), 0), newKey(t, testNow.AddDate(-1, 0, 0), 0)
	a := newArchive("bookworm")
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	broken := newArchive("bookworm") // lacks the index that its InRelease lists
	good := serveArchive(t, a, sign(t, a.release(), testNow, key))
	wrongKey := serveArchive(t, broken, sign(t, a.release(), testNow, stranger))
	empty := serveArchive(t, broken, sign(t, a.release(), testNow, key))
	ring := keyring(t, false, key)
	mustOpen(t, newTestClient(t), source(a, ring, wrongKey.URL, empty.URL, good.URL))
	_, err := newTestClient(t).Open(t.Context(), source(a, ring, wrongKey.URL, empty.URL))
	if !errors.Is(err, fetch.ErrNotFound) || errors.Is(err, ErrSuite) {
		t.Errorf("got %v, want %v of an index", err, fetch.ErrNotFound)
	}
}

func TestDamagedIndex(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	ring := keyring(t, false, key)
	a := newArchive("bookworm")
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	inRelease := sign(t, a.release(), testNow, key)
	a.files["main/binary-amd64/Packages.xz"] = compress(t, stanzas("evil 1"), ".xz")
	a.head = "" // so that nothing is served by hash
	c := newTestClient(t)
	if _, err := c.Open(t.Context(), source(a, ring, serveArchive(t, a, inRelease).URL)); !errors.Is(err, fetch.ErrChecksum) {
		t.Errorf("got %v, want %v", err, fetch.ErrChecksum)
	}
	b := newArchive("bookworm") // compressed and plain index do not belong together
	b.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	b.files["main/binary-amd64/Packages"] = []byte("Package: other\n")
	if _, err := c.Open(t.Context(), source(b, ring, serveArchive(t, b, sign(t, b.release(), testNow, key)).URL)); !errors.Is(err, fetch.ErrChecksum) {
		t.Errorf("got %v, want %v", err, fetch.ErrChecksum)
	}
	if left, err := filepath.Glob(filepath.Join(c.Dir, "*.packages")); err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
}

// refusal is one way in which an InRelease can be unacceptable, and what gpgv says of its signature.
type refusal struct {
	name      string
	inRelease []byte
	keys      []*openpgp.Entity
	want      error    // nil: accepted
	texts     []string // the error has them all
	gpgvTakes bool
}

func TestRefusedReleases(t *testing.T) {
	// gpgv knows no other time than the clock's, so the keys are made around it.
	now := time.Now().Truncate(time.Second)
	year := 365 * 24 * time.Hour
	key, stranger := newKey(t, now.Add(-2*year), 0), newKey(t, now.Add(-2*year), 0)
	gone := newKey(t, now.Add(-2*year), year)
	a := newArchive("bookworm")
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	date := func(text string, at time.Time) string {
		return strings.Replace(text, testNow.Add(-24*time.Hour).Format(time.RFC1123), at.UTC().Format(time.RFC1123), 1)
	}
	text := date(a.release(), now.Add(-time.Hour))
	until := func(at time.Time) string { return "Valid-Until: " + at.UTC().Format(time.RFC1123) + "\n" + text }
	good := sign(t, text, now.Add(-time.Minute), key)
	id := func(k *openpgp.Entity) string { return k.PrimaryKey.KeyIdString() }
	tests := []refusal{
		{"good", good, []*openpgp.Entity{stranger, key}, nil, nil, true},
		{"one of two known", sign(t, text, now, stranger, key), []*openpgp.Entity{key}, nil, nil, true},
		{"no longer expired", sign(t, until(now.Add(time.Hour)), now, key), []*openpgp.Entity{key}, nil, nil, true},
		{"expired", sign(t, until(now.Add(-time.Hour)), now, key), []*openpgp.Entity{key}, ErrExpired, []string{"valid until 20", "archives.debian.allow-expired: [bookworm]"}, true},
		{"future", sign(t, date(text, now), now.Add(-time.Hour), key), []*openpgp.Entity{key}, nil, nil, true},
		{"dated ahead", sign(t, strings.Replace(text, now.Add(-time.Hour).UTC().Format(time.RFC1123), now.Add(time.Hour).UTC().Format(time.RFC1123), 1), now, key),
			[]*openpgp.Entity{key}, ErrFuture, []string{"clock"}, true},
		{"unknown key", sign(t, text, now, stranger), []*openpgp.Entity{key}, ErrUnknownKey, []string{id(stranger), "archives.debian.keyring: FILE"}, false},
		{"unknown keys", sign(t, text, now, stranger, gone), []*openpgp.Entity{key}, ErrUnknownKey, []string{id(stranger) + ", " + id(gone)}, false},
		{"not signed", []byte(text), []*openpgp.Entity{key}, ErrUnsigned, []string{"archives.debian.mirrors"}, false},
		{"a web page", []byte("<html>log in</html>"), []*openpgp.Entity{key}, ErrUnsigned, nil, false},
		{"changed", []byte(strings.Replace(string(good), "Label: Debian", "Label: Debain", 1)), []*openpgp.Entity{key}, ErrBadSignature, []string{id(key), "no option"}, false},
		{"text before", append([]byte("Suite: evil\n"), good...), []*openpgp.Entity{key}, ErrUnsigned, nil, true},
		{"text after", append(slices.Clone(good), "Suite: evil\n"...), []*openpgp.Entity{key}, ErrBadSignature, nil, true},
		{"key expired since", sign(t, text, now.Add(-year-year/2), gone), []*openpgp.Entity{gone}, ErrKeyExpired, []string{id(gone), "archives.debian.keyring: FILE"}, false},
		{"key expired before", sign(t, text, now.Add(-year/2), gone), []*openpgp.Entity{gone}, ErrKeyExpired, []string{id(gone)}, false},
		{"another suite", sign(t, strings.Replace(text, "Codename: bookworm", "Codename: trixie", 1), now, key), []*openpgp.Entity{key}, ErrWrongSuite, []string{`codename "trixie"`}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := serveArchive(t, a, tt.inRelease)
			s := source(a, keyring(t, false, tt.keys...), srv.URL)
			s.Now = now
			ix, err := newTestClient(t).Open(t.Context(), s)
			if err == nil {
				defer ix.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if _, ok := errors.AsType[*ReleaseError](err); ok != (tt.want != nil) {
				t.Errorf("got %v, want a ReleaseError: %v", err, tt.want != nil)
			}
			for _, text := range append(tt.texts, "InRelease", "bookworm", "debian") {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("got %q, want %q in it", err, text)
				}
			}
			if got := gpgv(t, s.Keyring, tt.inRelease); got != tt.gpgvTakes {
				t.Errorf("gpgv takes it: got %v, want %v", got, tt.gpgvTakes)
			}
		})
	}
}

// gpgv reports whether the real tool finds a good signature by a key that is valid now, as apt asks
// it (GOODSIG on the status descriptor).
func gpgv(t *testing.T, keyring string, inRelease []byte) bool {
	t.Helper()
	path := filepath.Join(t.TempDir(), "InRelease")
	if err := os.WriteFile(path, inRelease, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("gpgv", "--status-fd", "1", "--keyring", keyring, path).Output()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		t.Fatal(err)
	}
	return strings.Contains(string(out), "[GNUPG:] GOODSIG ")
}

func TestAllowExpired(t *testing.T) {
	key := newKey(t, testNow.AddDate(-1, 0, 0), 0)
	a := newArchive("sid")
	a.head += "Valid-Until: Fri, 06 Nov 2026 08:08:01 UTC\n"
	a.add(t, "main/binary-amd64", stanzas(mainLines...), ".xz")
	srv := serveArchive(t, a, sign(t, a.release(), testNow, key))
	s := source(a, keyring(t, false, key), srv.URL)
	if _, err := newTestClient(t).Open(t.Context(), s); !errors.Is(err, ErrExpired) {
		t.Errorf("got %v, want %v", err, ErrExpired)
	}
	s.AllowExpired = true
	mustOpen(t, newTestClient(t), s)
}

func TestBadSources(t *testing.T) {
	good := Source{Distribution: "debian", Mirrors: []string{"http://127.0.0.1:1"}, Suite: "sid", Components: []string{"main"}, Arch: "amd64", Keyring: "/nonexistent", Now: testNow}
	for name, change := range map[string]func(*Source){
		"the time":                func(s *Source) { s.Now = time.Time{} },
		"mirrors is empty":        func(s *Source) { s.Mirrors = nil },
		"components is empty":     func(s *Source) { s.Components = nil },
		"is not valid":            func(s *Source) { s.Suite = "../x" },
		"archives.debian.keyring": func(*Source) {},
	} {
		s := good
		change(&s)
		if _, err := newTestClient(t).Open(t.Context(), s); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q in it", err, name)
		}
	}
}
