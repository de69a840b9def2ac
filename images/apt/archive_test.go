package apt

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/ulikunitz/xz"

	"github.com/kofarm/kofarm/images/fetch"
)

// testNow is the time of all tests that need none of the real clock.
var testNow = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func config(at time.Time, lifetime time.Duration) *packet.Config {
	return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return at }, KeyLifetimeSecs: uint32(lifetime.Seconds())}
}

// newKey makes a key that was created at a time and expires after lifetime, if that is not zero.
func newKey(t testing.TB, created time.Time, lifetime time.Duration) *openpgp.Entity {
	t.Helper()
	key, err := openpgp.NewEntity("Test Archive", "", "archive@example.org", config(created, lifetime))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign clear-signs text by all keys.
func sign(t testing.TB, text string, at time.Time, keys ...*openpgp.Entity) []byte {
	t.Helper()
	var private []*packet.PrivateKey
	for _, k := range keys {
		private = append(private, k.PrivateKey)
	}
	var b bytes.Buffer
	w, err := clearsign.EncodeMulti(&b, private, config(at, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n")
	return b.Bytes()
}

// keyring writes public keys to a file.
func keyring(t testing.TB, armored bool, keys ...*openpgp.Entity) string {
	t.Helper()
	var out bytes.Buffer
	for _, k := range keys {
		var b bytes.Buffer
		if err := k.Serialize(&b); err != nil {
			t.Fatal(err)
		}
		if !armored {
			out.Write(b.Bytes())
			continue
		}
		w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		out.WriteString("\n")
	}
	path := filepath.Join(t.TempDir(), "keyring")
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// testArchive is a suite to be served.
type testArchive struct {
	suite  string
	head   string            // fields before SHA256
	files  map[string][]byte // below the suite
	hidden map[string]bool   // listed but served by hash only
}

func newArchive(suite string) *testArchive {
	head := fmt.Sprintf("Origin: Debian\nLabel: Debian\nSuite: oldstable\nCodename: %s\nDate: %s\nAcquire-By-Hash: yes\n"+
		"No-Support-for-Architecture-all: Packages\nArchitectures: all amd64 arm64\nComponents: main contrib\n",
		suite, testNow.Add(-24*time.Hour).Format(time.RFC1123))
	return &testArchive{suite: suite, head: head, files: map[string][]byte{}, hidden: map[string]bool{}}
}

// add puts an index into a folder such as "main/binary-amd64", in the given compressions.
func (a *testArchive) add(t testing.TB, dir, text string, suffixes ...string) {
	t.Helper()
	a.files[dir+"/Packages"] = []byte(text)
	for _, suffix := range suffixes {
		a.files[dir+"/Packages"+suffix] = compress(t, text, suffix)
	}
	a.hidden[dir+"/Packages"] = len(suffixes) > 0 // as Debian does
}

func compress(t testing.TB, text, suffix string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	} = gzip.NewWriter(&b)
	if suffix == ".xz" {
		var err error
		if w, err = xz.NewWriter(&b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// release is the text to sign.
func (a *testArchive) release() string {
	var b strings.Builder
	b.WriteString(a.head + "SHA256:\n")
	for _, name := range slices.Sorted(maps.Keys(a.files)) {
		fmt.Fprintf(&b, " %s %d %s\n", hexSum(a.files[name]), len(a.files[name]), name)
	}
	return b.String()
}

// server serves an archive; inRelease can be changed while it runs.
type server struct {
	*httptest.Server
	inRelease atomic.Value
	requests  atomic.Int32
}

func serveArchive(t testing.TB, a *testArchive, inRelease []byte) *server {
	t.Helper()
	s := &server{}
	s.inRelease.Store(inRelease)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		name, ok := strings.CutPrefix(r.URL.Path, "/dists/"+a.suite+"/")
		if ok && name == "InRelease" {
			_, _ = w.Write(s.inRelease.Load().([]byte)) // the client checks
			return
		}
		if body, ok := a.lookup(name); ok {
			_, _ = w.Write(body) // the client checks
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (a *testArchive) lookup(name string) ([]byte, bool) {
	if dir, sum, ok := strings.Cut(name, "/by-hash/SHA256/"); ok {
		for file, body := range a.files {
			if strings.HasPrefix(file, dir+"/") && hexSum(body) == sum && strings.Contains(a.head, "Acquire-By-Hash: yes") {
				return body, true
			}
		}
	}
	body, ok := a.files[name]
	return body, ok && !a.hidden[name]
}

// newTestClient is a client with an empty cache that retries quickly.
func newTestClient(t testing.TB) *Client {
	t.Helper()
	dir := t.TempDir()
	h := fetch.NewHTTP(5 * time.Second)
	h.RetryWaitMin, h.RetryWaitMax = time.Millisecond, time.Millisecond
	return &Client{
		Fetch: &fetch.Client{Dir: filepath.Join(dir, "files"), Kept: filepath.Join(dir, "kept"), Partial: filepath.Join(dir, "partial"), HTTP: h},
		Dir:   filepath.Join(dir, "indexes"),
	}
}

// stanzas writes an index from lines of "name version" or "name version; Field: value; …".
func stanzas(lines ...string) string {
	var b strings.Builder
	for _, line := range lines {
		parts := strings.Split(line, ";")
		name, version, _ := strings.Cut(strings.TrimSpace(parts[0]), " ")
		arch := "amd64"
		var fields []string
		for _, f := range parts[1:] {
			f = strings.TrimSpace(f)
			if rest, ok := strings.CutPrefix(f, "Architecture: "); ok {
				arch = rest
				continue
			}
			fields = append(fields, f+"\n")
		}
		fmt.Fprintf(&b, "Package: %s\nVersion: %s\nArchitecture: %s\n%sFilename: pool/%s_%s_%s.deb\nSize: %d\nSHA256: %s\nDescription: about %s\n with more\n\n",
			name, version, arch, strings.Join(fields, ""), name, strings.ReplaceAll(version, ":", "%3a"), arch, len(line), hexSum([]byte(line)), name)
	}
	return b.String()
}

// index opens an index without an archive.
func index(t testing.TB, suite string, release *Release, lines ...string) *Index {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Packages")
	if err := os.WriteFile(path, []byte(stanzas(lines...)), 0o644); err != nil {
		t.Fatal(err)
	}
	opened, err := openTable(path)
	if err != nil {
		t.Fatal(err)
	}
	ix := &Index{Source: Source{Distribution: "debian", Suite: suite, Arch: "amd64", Mirrors: []string{"http://m/"}}, Release: release, tables: []*table{opened}}
	t.Cleanup(func() { _ = ix.Close() }) // only read
	return ix
}

func universe(t testing.TB, pins map[string]string, indexes ...*Index) *Universe {
	t.Helper()
	u, err := NewUniverse(pins, indexes...)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func lookup(t testing.TB, u *Universe, name string) []string {
	t.Helper()
	all, err := u.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return packageNames(all)
}

func packageNames(all []*Package) []string {
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.String()
	}
	return names
}
