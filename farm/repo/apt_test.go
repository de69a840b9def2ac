package repo

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// makeDeb makes a package with the real dpkg-deb.
func makeDeb(t *testing.T, name, version, arch string, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Farm <farm@example.org>\nDescription: a test\n  indented\n .\n end\n%s",
		name, version, arch, strings.Join(append(more, ""), "\n"))
	write(t, filepath.Join(root, "DEBIAN/control"), control)
	write(t, filepath.Join(root, "usr/share/doc/x"), name+version)
	out := filepath.Join(dir, "x.deb")
	t.Setenv("SOURCE_DATE_EPOCH", fmt.Sprint(epoch.Unix()))
	run(t, "dpkg-deb", "--root-owner-group", "-Zgzip", "--nocheck", "--build", root, out)
	return out
}

// client is an apt of its own: no state of the machine's, one repository.
type client struct {
	dir  string
	args []string
}

func newClient(t testing.TB, url, suite, options string) *client {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc/preferences.d", "out"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "status"), "")
	c := &client{dir: dir}
	list := write(t, filepath.Join(dir, "sources.list"), fmt.Sprintf("deb [%s] %s %s main\n", options, url, suite))
	for _, o := range []string{
		"Dir::State=" + dir, "Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status",
		"Dir::Cache=" + dir + "/cache", "Dir::Etc=" + dir + "/etc", "Dir::Etc::sourcelist=" + list,
		"Dir::Etc::sourceparts=-", "Dir::Etc::trusted=-", "Dir::Etc::trustedparts=-",
		"APT::Architecture=amd64", "APT::Architectures=amd64", "APT::Sandbox::User=root", "Acquire::Languages=none",
		"Acquire::Retries=0",
	} {
		c.args = append(c.args, "-o", o)
	}
	return c
}

// run runs apt-get; a warning of an update counts as an error, as it does for whoever reads it.
func (c *client) run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	out, err := try(t, "apt-get", append(append([]string{}, c.args...), args...)...)
	if err == nil && (strings.Contains(out, "\nW:") || strings.Contains(out, "\nE:")) {
		err = errors.New("apt-get warns")
	}
	return out, err
}

func (c *client) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.run(t, args...)
	if err != nil {
		t.Fatalf("apt-get %q: %v\n%s", args, err, out)
	}
	return out
}

// versions lists a package's versions that apt can install.
func (c *client) versions(t testing.TB, name string) string {
	t.Helper()
	var all []string
	for line := range strings.Lines(run(t, "apt-cache", append(append([]string{}, c.args...), "madison", name)...)) {
		if f := strings.Split(line, "|"); len(f) == 3 {
			all = append(all, strings.TrimSpace(f[1]))
		}
	}
	return strings.Join(all, " ")
}

// download fetches a package and returns its bytes.
func (c *client) download(t testing.TB, name string) ([]byte, error) {
	t.Helper()
	out, err := try(t, "sh", append([]string{"-c", `cd "$0" && shift 0 && rm -f ./*.deb && exec apt-get "$@"`, filepath.Join(c.dir, "out")},
		append(append([]string{}, c.args...), "download", name)...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	found, _ := filepath.Glob(filepath.Join(c.dir, "out", "*.deb"))
	if len(found) != 1 {
		return nil, fmt.Errorf("apt-get download left %v", found)
	}
	return os.ReadFile(found[0])
}

func signedBy(key string) string { return "signed-by=" + key }

// serve serves a folder on loopback.
func serve(t testing.TB, dir string) string {
	t.Helper()
	s := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(s.Close)
	return s.URL
}

func testAPT(dir string) *APT {
	return &APT{Dir: dir, Suite: "stable", Codename: "bookworm", Origin: "Farm", Label: "Modules", Description: "Kernel modules", Epoch: epoch}
}

func TestRealAptInstallsFromIt(t *testing.T) {
	one := makeDeb(t, "foo-modules-6.1.0-1-amd64", "1:1.0+6.1.1-1", "amd64", "Source: foo (1.0)")
	two := makeDeb(t, "libfoo", "2.0", "all")
	for name, key := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			a := testAPT(dir)
			a.Signer = key
			update(t, a, one, two)
			public, err := os.ReadFile(filepath.Join(dir, "dists/stable", releaseKey))
			if err != nil {
				t.Fatal(err)
			}
			keyring := filepath.Join(t.TempDir(), "farm.asc") // apt takes an armored key by that ending
			write(t, keyring, string(public))
			c := newClient(t, serve(t, dir), "stable", signedBy(keyring))
			c.must(t, "update")
			if got := c.versions(t, "foo-modules-6.1.0-1-amd64"); got != "1:1.0+6.1.1-1" {
				t.Errorf("apt sees versions %q", got)
			}
			for _, tt := range []struct{ name, file, path string }{
				{"foo-modules-6.1.0-1-amd64", one, "pool/main/f/foo/foo-modules-6.1.0-1-amd64_1.0+6.1.1-1_amd64.deb"},
				{"libfoo", two, "pool/main/libf/libfoo/libfoo_2.0_all.deb"},
			} {
				want, err := os.ReadFile(tt.file)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := c.download(t, tt.name); err != nil || !bytes.Equal(got, want) {
					t.Errorf("download of %s: %v, %d bytes", tt.name, err, len(got))
				}
				if _, err := os.Stat(filepath.Join(dir, tt.path)); err != nil {
					t.Error(err)
				}
			}
			policy := run(t, "apt-cache", append(append([]string{}, c.args...), "policy")...)
			if want := "o=Farm,a=stable,n=bookworm,l=Modules,c=main,b=amd64"; !strings.Contains(policy, want) {
				t.Errorf("apt-cache policy: want %s in\n%s", want, policy)
			}
			checkGPGV(t, dir, key.Public)
			c.must(t, "-s", "install", "libfoo")
		})
	}
}

func checkGPGV(t *testing.T, dir string, public func() ([]byte, error)) {
	t.Helper()
	data, err := public()
	if err != nil {
		t.Fatal(err)
	}
	ring := write(t, filepath.Join(t.TempDir(), "ring.gpg"), string(data))
	suite := filepath.Join(dir, "dists/stable")
	run(t, "gpgv", "--keyring", ring, filepath.Join(suite, "InRelease"))
	run(t, "gpgv", "--keyring", ring, filepath.Join(suite, "Release.gpg"), filepath.Join(suite, "Release"))
}

// The older pair of files is what clients read that cannot have InRelease.
func TestRealAptReadsReleaseGPG(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer = edKey(t)
	update(t, a, makeDeb(t, "foo", "1", "amd64"))
	if err := os.Remove(filepath.Join(dir, "dists/stable/InRelease")); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, a.Signer)))
	c.must(t, "update")
	if got := c.versions(t, "foo"); got != "1" {
		t.Errorf("apt sees versions %q", got)
	}
}

func TestUnsignedNeedsTrustedYes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer = edKey(t)
	deb := makeDeb(t, "foo", "1", "amd64")
	update(t, a, deb)
	a.Signer = nil
	update(t, a, deb)
	if out, err := newClient(t, "file://"+dir, "stable", "trusted=no").run(t, "update"); err == nil {
		t.Errorf("apt takes an unsigned repository\n%s", out)
	}
	newClient(t, "file://"+dir, "stable", "trusted=yes").must(t, "update")
}

func TestRealAptRefusesWhatWasChanged(t *testing.T) {
	key := edKey(t)
	deb := makeDeb(t, "foo", "1", "amd64")
	tests := map[string]struct {
		file, old, new string
		download       bool
	}{
		"release": {file: "dists/stable/InRelease", old: "Origin: Farm", new: "Origin: Harm"},
		"index":   {file: "dists/stable/main/binary-amd64/by-hash/SHA256/*", old: "", new: "x"},
		"package": {file: "pool/main/f/foo/foo_1_amd64.deb", old: "debian-binary", new: "debian-xinary", download: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			a := testAPT(dir)
			a.Signer = key
			update(t, a, deb)
			c := newClient(t, serve(t, dir), "stable", signedBy(publicKey(t, key)))
			if tt.download {
				c.must(t, "update")
			}
			alter(t, filepath.Join(dir, tt.file), tt.old, tt.new)
			if tt.download {
				if _, err := c.download(t, "foo"); err == nil || !strings.Contains(err.Error(), "Hash Sum mismatch") {
					t.Errorf("download: %v, want a hash sum mismatch", err)
				}
				return
			}
			if name == "index" { // without the way around by the plain name
				alter(t, filepath.Join(dir, "dists/stable/main/binary-amd64/Packages*"), "", "x")
			}
			if out, err := c.run(t, "update"); err == nil {
				t.Errorf("apt-get update accepts it\n%s", out)
			}
		})
	}
	t.Run("other key", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "r")
		a := testAPT(dir)
		a.Signer = edKey(t)
		update(t, a, deb)
		c := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, key)))
		if out, err := c.run(t, "update"); err == nil || !strings.Contains(out, "NO_PUBKEY") {
			t.Errorf("apt-get update: %v\n%s", err, out)
		}
	})
}

// alter replaces the first old in files, or their beginning where old is "".
func alter(t *testing.T, pattern, old, new string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatal(pattern, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if old == "" {
			old = string(data[:1])
		}
		write(t, f, strings.Replace(string(data), old, new, 1))
	}
}

// A client that has read the index before an update still gets what that one named; one update later
// it does not.
func TestRealAptDuringUpdates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer = edKey(t)
	first, second, third := makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "foo", "2", "amd64"), makeDeb(t, "foo", "3", "amd64")
	url, options := serve(t, dir), signedBy(publicKey(t, a.Signer))
	update(t, a, first)
	slow, fresh := newClient(t, url, "stable", options), newClient(t, url, "stable", options)
	slow.must(t, "update")
	fresh.must(t, "update")
	before := snapshot(t, dir)
	a.Epoch = epoch.Add(time.Hour)
	update(t, a, second)
	if _, err := slow.download(t, "foo"); err != nil {
		t.Errorf("after one update, a client that has not seen it: %v", err)
	}
	for name, sum := range before {
		if strings.Contains(name, "by-hash") && snapshot(t, dir)[name] != sum {
			t.Errorf("%s is gone after one update", name)
		}
	}
	fresh.must(t, "update")
	if got := fresh.versions(t, "foo"); got != "2" {
		t.Errorf("apt sees versions %q", got)
	}
	a.Epoch = epoch // a Date that goes back is one that apt would not follow
	update(t, a, third)
	fresh.must(t, "update")
	if got := fresh.versions(t, "foo"); got != "3" {
		t.Errorf("after an update with an older epoch, apt sees versions %q", got)
	}
	if _, err := slow.download(t, "foo"); err == nil {
		t.Error("after two updates the first package is still there")
	}
	for name := range before {
		if strings.Contains(name, "by-hash") {
			if _, ok := snapshot(t, dir)[name]; ok {
				t.Errorf("%s is there after two updates", name)
			}
		}
	}
}

func TestUpdateRepeats(t *testing.T) {
	key := edKey(t)
	one, two := makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "bar", "1", "arm64")
	var want map[string]string
	for i, order := range [][]string{{one, two}, {two, one, one}} {
		old := unix.Umask(0o077 * i)
		dir := filepath.Join(t.TempDir(), "r")
		a := testAPT(dir)
		a.Signer = key
		update(t, a, order...)
		unix.Umask(old)
		got := snapshot(t, dir)
		if want == nil {
			want = got
		}
		if d := differences(got, want); len(d) > 0 {
			t.Errorf("another run makes other files: %v", d)
		}
		if out := run(t, "find", dir, "-type", "d", "!", "-perm", "755", "-o", "-type", "f", "!", "-perm", "644"); out != "" && i == 0 {
			t.Errorf("modes: %s", out)
		}
		info, _ := os.Stat(filepath.Join(dir, "dists/stable/InRelease"))
		update(t, a, order...)
		if d := differences(snapshot(t, dir), want); len(d) > 0 {
			t.Errorf("an update without news changes %v", d)
		}
		if again, _ := os.Stat(filepath.Join(dir, "dists/stable/InRelease")); !again.ModTime().Equal(info.ModTime()) {
			t.Error("an update without news writes InRelease")
		}
	}
}

func TestKillsLeaveARepository(t *testing.T) {
	key := edKey(t)
	dir := filepath.Join(t.TempDir(), "r")
	make1 := func(dir string) *APT {
		a := testAPT(dir)
		a.Signer = key
		return a
	}
	debs := []string{makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "foo", "2", "amd64"), makeDeb(t, "foo", "3", "amd64"), makeDeb(t, "bar", "1", "all")}
	update(t, make1(dir), debs[0], debs[3])
	update(t, make1(dir), debs[1], debs[3])
	before := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, key)))
	before.must(t, "update")
	seen := map[string]bool{}
	stopEverywhere(t, dir, func(dir string, step func(op, name string) error) error {
		a := make1(dir)
		a.step = step
		return a.Update(t.Context(), fileList([]string{debs[2]}))
	}, func(t *testing.T, dir, at string) {
		version := checkAPT(t, dir, key)
		seen[version] = true
		if strings.HasSuffix(at, "again") && version != "3" {
			t.Errorf("%s: version %s", at, version)
		}
		if !strings.HasSuffix(at, "again") { // it reads the index before the update
			if _, err := os.Stat(filepath.Join(dir, "pool/main/f/foo/foo_2_amd64.deb")); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	})
	if !seen["2"] || !seen["3"] {
		t.Errorf("seen were versions %v", seen)
	}
}

// checkAPT reads a repository as apt does, and returns the version of foo.
func checkAPT(t *testing.T, dir string, key interface{ Verify([]byte) ([]byte, error) }) string {
	t.Helper()
	suite := filepath.Join(dir, "dists/stable")
	signed, err := os.ReadFile(filepath.Join(suite, "InRelease"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := key.Verify(signed)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRelease(text)
	if err != nil {
		t.Fatal(err)
	}
	version := ""
	for p, d := range r.files {
		data, err := os.ReadFile(filepath.Join(suite, byHash(p, d)))
		if err != nil || digestOf(data) != d {
			t.Fatalf("%s: %v, %v, want %v", p, err, digestOf(data), d)
		}
		plain, err := unpacked(data)
		if err != nil {
			t.Fatal(err)
		}
		err = stanzas(plain, func(s stanza) error {
			if s.get("Package") == "foo" {
				version = s.get("Version")
			}
			data, err := os.ReadFile(filepath.Join(dir, s.get("Filename")))
			if got := digestOf(data); err != nil || got.sha256 != s.get("SHA256") || fmt.Sprint(got.size) != s.get("Size") {
				t.Fatalf("%s: %v, %v", s.get("Filename"), err, got)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return version
}

func TestKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer, a.Keep = edKey(t), true
	one, two := makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "foo", "2", "amd64")
	update(t, a, one)
	update(t, a, two)
	update(t, a)
	c := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, a.Signer)))
	c.must(t, "update")
	if got := c.versions(t, "foo"); got != "2 1" {
		t.Errorf("apt sees versions %q", got)
	}
	alter(t, filepath.Join(dir, "pool/main/f/foo/foo_1_amd64.deb"), "debian-binary", "debian-xinary")
	if err := a.Update(t.Context(), nil); err == nil {
		t.Error("a changed package is kept")
	}
	update(t, a, one) // and a good one of that name mends it
	alter(t, filepath.Join(dir, "dists/stable/InRelease"), "Origin: Farm", "Origin: Harm")
	if err := a.Update(t.Context(), nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("an index that the key has not signed is kept: %v", err)
	}
	a.Keep = false
	update(t, a, two)
	c.must(t, "update")
	if got := c.versions(t, "foo"); got != "2" {
		t.Errorf("apt sees versions %q", got)
	}
}

func TestSuitesAndComponentsShareAFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	key := edKey(t)
	foo, bar := makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "bar", "1", "arm64")
	stable, testing := testAPT(dir), testAPT(dir)
	stable.Signer, testing.Signer = key, key
	testing.Suite, testing.Codename = "testing", ""
	extra := *stable
	extra.Component = "extra"
	update(t, stable, foo)
	update(t, testing, foo)
	update(t, &extra, bar)
	update(t, stable)
	update(t, stable, makeDeb(t, "foo", "2", "amd64"))
	for _, tt := range []struct{ suite, name, arch, want string }{
		{"stable main extra", "foo", "amd64", "2"}, {"stable main extra", "bar", "arm64", "1"}, {"testing main", "foo", "amd64", "1"},
	} {
		c := newClient(t, "file://"+dir, strings.TrimSuffix(tt.suite, " main"), signedBy(publicKey(t, key)))
		write(t, filepath.Join(c.dir, "sources.list"), fmt.Sprintf("deb [%s arch=%s] file://%s %s\n", signedBy(publicKey(t, key)), tt.arch, dir, tt.suite))
		c.args = append(c.args, "-o", "APT::Architectures::=arm64")
		c.must(t, "update")
		if got := c.versions(t, tt.name+":"+tt.arch); got != tt.want {
			t.Errorf("%s: apt sees versions %q of %s, want %q", tt.suite, got, tt.name, tt.want)
		}
	}
	extra.Signer = edKey(t)
	if err := extra.Update(t.Context(), nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("signing what another key has signed: %v", err)
	}
}

// The same version with other bytes gets a path of its own, so that a client of the index before
// still gets what that one named.
func TestRebuiltPackage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer = edKey(t)
	one, other := makeDeb(t, "foo", "1", "amd64"), makeDeb(t, "foo", "1", "amd64", "Section: misc")
	if err := a.Update(t.Context(), fileList([]string{one, other})); !errors.Is(err, ErrConflict) {
		t.Errorf("both at once: %v", err)
	}
	update(t, a, one)
	c := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, a.Signer)))
	c.must(t, "update")
	update(t, a, other)
	if _, err := c.download(t, "foo"); err != nil {
		t.Error(err)
	}
	c.must(t, "update")
	if _, err := c.download(t, "foo"); err != nil {
		t.Error(err)
	}
	want := snapshot(t, dir)
	update(t, a, other)
	if d := differences(snapshot(t, dir), want); len(d) > 0 {
		t.Errorf("an update without news changes %v", d)
	}
}

func TestOneUpdateAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a, b := testAPT(dir), testAPT(dir)
	deb := makeDeb(t, "foo", "1", "amd64")
	var inner error
	a.step = func(string, string) error {
		if inner == nil {
			inner = b.Update(t.Context(), fileList([]string{deb}))
		}
		return nil
	}
	update(t, a, deb)
	if !errors.Is(inner, ErrBusy) {
		t.Errorf("an update beside another: %v", inner)
	}
}

func TestRefusedInput(t *testing.T) {
	good := makeDeb(t, "foo", "1", "amd64")
	tests := map[string]struct {
		change func(a *APT)
		files  []string
	}{
		"suite leaves":    {change: func(a *APT) { a.Suite = "../x" }},
		"no suite":        {change: func(a *APT) { a.Suite = "" }},
		"component":       {change: func(a *APT) { a.Component = "a b" }},
		"origin":          {change: func(a *APT) { a.Origin = "x\nSHA256: y" }},
		"architecture":    {change: func(a *APT) { a.Architectures = []string{"../amd64"} }},
		"not a package":   {files: []string{write(t, filepath.Join(t.TempDir(), "x.deb"), "x")}},
		"not there":       {files: []string{filepath.Join(t.TempDir(), "x.deb")}},
		"a folder":        {files: []string{t.TempDir()}},
		"name":            {files: []string{makeDeb(t, "../foo", "1", "amd64")}},
		"source":          {files: []string{makeDeb(t, "foo", "1", "amd64", "Source: ../../x")}},
		"field":           {files: []string{makeDeb(t, "foo", "1", "amd64", "Filename: /etc/passwd")}},
		"pool is a link":  {change: func(a *APT) { link(t, a.Dir, "pool") }, files: []string{good}},
		"dists is a link": {change: func(a *APT) { link(t, a.Dir, "dists") }, files: []string{good}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := testAPT(filepath.Join(t.TempDir(), "r"))
			if tt.change != nil {
				tt.change(a)
			}
			if err := a.Update(t.Context(), fileList(tt.files)); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(filepath.Join(a.Dir, "dists/stable/Release")); err == nil {
				t.Error("a Release was written")
			}
		})
	}
}

// link puts a link that leaves the repository.
func link(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func FuzzStanza(f *testing.F) {
	f.Add([]byte("Package: foo\nDescription: x\n y\n .\n z\n"))
	f.Add([]byte("SHA256:\n 00 1 x\n"))
	f.Add([]byte("a:b\n\nc:d"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseStanza(data)
		if err != nil {
			return
		}
		again, err := parseStanza(s.bytes())
		if err != nil || len(again) != len(s) {
			t.Fatalf("%q was written as %q: %v", data, s.bytes(), err)
		}
		for i := range s {
			if s[i] != again[i] {
				t.Fatalf("%q became %q", s[i], again[i])
			}
		}
	})
}

func FuzzRelease(f *testing.F) {
	a := testAPT("x")
	r := &release{date: epoch, components: []string{"main"}, files: map[string]digest{"main/x": digestOf(nil)}}
	f.Add(r.text(a))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRelease(data)
		if err != nil {
			return
		}
		for p := range r.files {
			if !filepath.IsLocal(p) {
				t.Errorf("path %q leaves", p)
			}
		}
	})
}

// Packages that fit every machine, such as DKMS sources, need no other architecture.
func TestRealAptWithPackagesForAllOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	a := testAPT(dir)
	a.Signer = edKey(t)
	update(t, a, makeDeb(t, "foo", "1", "all"))
	c := newClient(t, "file://"+dir, "stable", signedBy(publicKey(t, a.Signer)))
	c.must(t, "update")
	if got := c.versions(t, "foo"); got != "1" {
		t.Errorf("apt sees versions %q", got)
	}
	a.Architectures = []string{"amd64", "arm64"}
	update(t, a, makeDeb(t, "foo", "2", "all"))
	c.must(t, "update")
	if got := c.versions(t, "foo"); got != "2" {
		t.Errorf("apt sees versions %q", got)
	}
}
