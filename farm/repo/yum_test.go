package repo

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/sign"
)

// makeRPM makes a package with the real rpmbuild. The preamble and the changelog may be added to.
func makeRPM(t testing.TB, name, version, preamble, rest string) string {
	t.Helper()
	dir := t.TempDir()
	spec := write(t, filepath.Join(dir, "x.spec"), fmt.Sprintf(`Name: %s
Version: %s
Release: 1
Summary: A <test> & more
License: GPL-2.0-only
URL: http://example.org/?a=1&b=2
BuildArch: noarch
%s
%%description
First line
second – with a dash.
%%install
mkdir -p %%{buildroot}/usr/bin %%{buildroot}/etc %%{buildroot}/lib/modules/x/extra
echo %s%s > %%{buildroot}/usr/bin/%s
echo c > %%{buildroot}/etc/%s.conf
echo m > %%{buildroot}/lib/modules/x/extra/%s.ko
%s
%%files
/usr/bin/%s
%%config(noreplace) /etc/%s.conf
%%dir /lib/modules/x/extra
/lib/modules/x/extra/%s.ko
%%ghost /var/lib/%s.state
%%changelog
* Wed Nov 01 2023 A B <a@b.example> - 1.0-1
- first
* Tue Oct 31 2023 A B <a@b.example> - 0.9-1
- before & that
`, name, version, preamble, name, version, name, name, name, rest, name, name, name, name))
	run(t, "env", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()), "rpmbuild", "-bb",
		"--define", "_topdir "+dir, "--define", "_rpmdir "+dir, "--define", "_rpmfilename x.rpm",
		"--define", "use_source_date_epoch_as_buildtime 1", "--define", "_buildhost farm", "--define", "clamp_mtime_to_source_date_epoch 1", spec)
	return filepath.Join(dir, "x.rpm")
}

const manyDependencies = `Epoch: 2
Requires: libfoo >= 1:2.3-4, /bin/sh, /usr/bin/one, one = 2:1.0-1
Requires(post): coreutils
Requires(preun): sed
Requires(pre): grep
Provides: ksym(foo) = 0x1234
Recommends: bar > 1
Suggests: sug
Enhances: enh <= 3
Supplements: modalias(pci:v*)
Conflicts: baz < 2
Obsoletes: old < 1.0-0
Group: Drivers
Vendor: Farm & Sons
Packager: P <p@example.org>`

const scripts = `%post
true
%preun
true`

// anyXML is an element with its attributes and content, for comparing.
type anyXML struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Text    string     `xml:",chardata"`
	Nodes   []anyXML   `xml:",any"`
}

// lines is an element as a sorted list: order does not matter, what createrepo_c adds by itself is
// left out.
func (e anyXML) lines(prefix string) []string {
	p := prefix + "/" + e.XMLName.Local
	var attrs []string
	for _, a := range e.Attrs {
		if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" || a.Name.Local == "href" || a.Name.Local == "file" {
			continue // the namespace, the place, and the time of the file
		}
		attrs = append(attrs, a.Name.Local+"="+a.Value)
	}
	all := []string{p + " " + strings.Join(attrs, " ") + " " + strings.TrimSpace(e.Text)}
	for _, n := range e.Nodes {
		all = append(all, n.lines(p)...)
	}
	return all
}

func readIndex(t *testing.T, dir, kind string) []string {
	t.Helper()
	md := readRepomd(t, dir)
	for _, d := range md.Data {
		if d.Type != kind {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, d.Location.Href))
		if err != nil || digestOf(data) != (digest{d.Checksum.Value, d.Size}) {
			t.Fatalf("%s: %v", d.Location.Href, err)
		}
		plain, err := unpacked(data)
		if err != nil || digestOf(plain) != (digest{d.OpenChecksum.Value, d.OpenSize}) {
			t.Fatalf("%s: plain: %v", d.Location.Href, err)
		}
		var root anyXML
		if err := xml.Unmarshal(plain, &root); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, n := range root.Nodes { // each package stays together
			lines := n.lines("")
			slices.Sort(lines)
			lines = slices.Compact(lines) // createrepo_c repeats some requirements
			all = append(all, strings.Join(lines, "\n"))
		}
		slices.Sort(all)
		return append(all, root.lines("")[0])
	}
	t.Fatalf("no %s in %s", kind, dir)
	return nil
}

func readRepomd(t *testing.T, dir string) *repomd {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, repomdFile))
	if err != nil {
		t.Fatal(err)
	}
	md, err := parseRepomd(data)
	if err != nil {
		t.Fatal(err)
	}
	return md
}

func testRPMs(t *testing.T) []string {
	return []string{makeRPM(t, "one", "1.0", manyDependencies, scripts), makeRPM(t, "two", "1.0", "", "")}
}

func TestIndexesAreCreaterepos(t *testing.T) {
	for _, signed := range []bool{false, true} {
		t.Run(fmt.Sprintf("signed=%v", signed), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			y := &YUM{Dir: dir, Epoch: epoch}
			if signed {
				y.Signer = edKey(t)
			}
			update(t, y, testRPMs(t)...)
			other := t.TempDir()
			run(t, "cp", "-r", filepath.Join(dir, packagesDir), other) // with the signatures
			run(t, "createrepo_c", "--no-database", "--quiet", other)
			for _, kind := range []string{"primary", "filelists", "other"} {
				got, want := readIndex(t, dir, kind), readIndex(t, other, kind)
				if !slices.Equal(got, want) {
					t.Errorf("%s:\ngot\n%s\nwant\n%s", kind, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
}

// rpmdb is a database of keys and packages for rpm.
func rpmdb(t testing.TB, key *sign.Key) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "rpm", "--dbpath", dir, "--initdb")
	run(t, "rpm", "--dbpath", dir, "--import", publicKey(t, key))
	return dir
}

func TestRealRPMChecksSignatures(t *testing.T) {
	plain := makeRPM(t, "one", "1.0", manyDependencies, scripts)
	for name, key := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			signed := signRPM(t, plain, key)
			db, other := rpmdb(t, key), rpmdb(t, edKey(t))
			out := run(t, "rpm", "--dbpath", db, "-Kv", signed)
			if !strings.Contains(out, "Signature, key ID") || strings.Contains(out, "BAD") || strings.Contains(out, "NOT") {
				t.Errorf("rpm -K:\n%s", out)
			}
			run(t, "rpmkeys", "--dbpath", db, "--define", "_pkgverify_level all", "-K", signed)
			if out, err := try(t, "rpm", "--dbpath", other, "-K", signed); err == nil {
				t.Errorf("rpm -K without the key:\n%s", out)
			}
			if out, err := try(t, "rpm", "--dbpath", db, "--define", "_pkgverify_level all", "-K", plain); err == nil && strings.Contains(out, "signatures OK") {
				t.Errorf("rpm -K of the unsigned package:\n%s", out)
			}
			if out := run(t, "rpm", "--dbpath", db, "-qpi", signed); !strings.Contains(out, "1.0") {
				t.Errorf("rpm -qpi:\n%s", out)
			}
			for _, at := range []int64{-1, 5} { // the payload's last byte, and one of the header
				alterByte(t, signed, at)
				if out, err := try(t, "rpm", "--dbpath", db, "-K", signed); err == nil {
					t.Errorf("rpm -K of a changed package:\n%s", out)
				}
				signed = signRPM(t, plain, key)
			}
			again := signRPM(t, signed, key)
			a, b := snapshot(t, filepath.Dir(signed))["x.rpm"], snapshot(t, filepath.Dir(again))["x.rpm"]
			if a != b {
				t.Error("signing again changes the package")
			}
			// What rpm's own tool signs, with room for it and without, is signed anew.
			run(t, "rpm", "--dbpath", db, "-K", signRPM(t, signRPM(t, plain, edKey(t)), key))
		})
	}
}

func signRPM(t *testing.T, file string, key *sign.Key) string {
	t.Helper()
	f, size, err := openFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b bytes.Buffer
	if err := SignRPM(&b, f, size, key, epoch); err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "x.rpm"), b.String())
}

// alterByte changes a byte: of the end where at is negative, else of the header.
func alterByte(t *testing.T, file string, at int64) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	o, err := readOutline(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	i := int64(len(data)) + at
	if at >= 0 {
		i = o.end - 1 - at
	}
	data[i] ^= 1
	write(t, file, string(data))
}

// dnf runs the real dnf on one repository, in a root of its own.
type dnf struct {
	root string
	args []string
}

func newDNF(t testing.TB, url string, key *sign.Key) *dnf {
	t.Helper()
	root := t.TempDir()
	run(t, "rpm", "--root", root, "--initdb")
	write(t, filepath.Join(root, "repos/farm.repo"), fmt.Sprintf("[farm]\nname=farm\nbaseurl=%s\nenabled=1\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file://%s\nmetadata_expire=0\n", url, publicKey(t, key)))
	if err := os.Mkdir(filepath.Join(root, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "dnf.conf"), "[main]\nplugins=0\nretries=1\n")
	return &dnf{root, []string{"-y", "-q", "--installroot", root, "--releasever", "1", "--config", root + "/dnf.conf",
		"--setopt=reposdir=" + root + "/repos", "--setopt=cachedir=" + root + "/cache", "--setopt=logdir=" + root + "/log",
		"--setopt=persistdir=" + root + "/persist", "--setopt=pluginpath=" + root, "--setopt=zchunk=0"}}
}

func (d *dnf) run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return try(t, "dnf", append(slices.Clone(d.args), args...)...)
}

func (d *dnf) must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := d.run(t, args...)
	if err != nil {
		t.Fatalf("dnf %q: %v\n%s", args, err, out)
	}
	return out
}

func TestRealDNFInstallsFromIt(t *testing.T) {
	one := makeRPM(t, "one", "1.0", "Provides: /bin/sh\nAutoReqProv: no", "")
	newer := makeRPM(t, "one", "1.1", "Provides: /bin/sh\nAutoReqProv: no", "")
	for name, key := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			y := &YUM{Dir: dir, Epoch: epoch, Signer: key}
			update(t, y, one)
			d := newDNF(t, serve(t, dir), key)
			d.must(t, "makecache")
			if out := d.must(t, "repoquery", "--provides", "one"); !strings.Contains(out, "one = 1.0-1") {
				t.Errorf("dnf repoquery:\n%s", out)
			}
			d.must(t, "install", "one")
			if out := run(t, "rpm", "--root", d.root, "-q", "one"); !strings.Contains(out, "one-1.0-1.noarch") {
				t.Errorf("rpm -q: %s", out)
			}
			y.Epoch = epoch.Add(time.Hour)
			update(t, y, newer)
			d.must(t, "--refresh", "upgrade") // its cache knows no time below a second
			if out := run(t, "rpm", "--root", d.root, "-q", "one"); !strings.Contains(out, "one-1.1-1.noarch") {
				t.Errorf("rpm -q: %s", out)
			}
			run(t, "rpm", "--root", d.root, "-V", "one")
			d.must(t, "remove", "one")
		})
	}
}

func TestRealDNFRefusesWhatWasChanged(t *testing.T) {
	one := makeRPM(t, "one", "1.0", "Provides: /bin/sh\nAutoReqProv: no", "")
	key := edKey(t)
	tests := map[string]func(t *testing.T, dir string){
		"repomd": func(t *testing.T, dir string) { alter(t, filepath.Join(dir, repomdFile), "<revision>", "<revision>1") },
		"index":  func(t *testing.T, dir string) { alter(t, filepath.Join(dir, repodata, "*-primary.xml.gz"), "", "x") },
		"package": func(t *testing.T, dir string) {
			alterByte(t, filepath.Join(dir, packagesDir, "one-1.0-1.noarch.rpm"), -1)
		},
		"signed by others": func(t *testing.T, dir string) { update(t, &YUM{Dir: dir, Epoch: epoch, Signer: edKey(t)}, one) },
		"unsigned package": func(t *testing.T, dir string) { signOnlyIndex(t, dir, key, one) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			update(t, &YUM{Dir: dir, Epoch: epoch, Signer: key}, one)
			change(t, dir)
			d := newDNF(t, "file://"+dir, key)
			if out, err := d.run(t, "install", "one"); err == nil {
				t.Errorf("dnf installs it:\n%s", out)
			}
		})
	}
}

// signOnlyIndex makes a repository whose index is signed and whose package is not.
func signOnlyIndex(t *testing.T, dir string, key *sign.Key, rpm string) {
	t.Helper()
	update(t, &YUM{Dir: dir, Epoch: epoch}, rpm)
	text, err := os.ReadFile(filepath.Join(dir, repomdFile))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.DetachArmored(bytes.NewReader(text), epoch)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, repomdSig), string(sig))
}

func TestYUMRepeats(t *testing.T) {
	key := edKey(t)
	rpms := testRPMs(t)
	var want map[string]string
	for _, order := range [][]string{{rpms[0], rpms[1]}, {rpms[1], rpms[0], rpms[1]}} {
		dir := filepath.Join(t.TempDir(), "r")
		y := &YUM{Dir: dir, Epoch: epoch, Signer: key}
		update(t, y, order...)
		if want == nil {
			want = snapshot(t, dir)
		}
		update(t, y, order...)
		if d := differences(snapshot(t, dir), want); len(d) > 0 {
			t.Errorf("another run makes other files: %v", d)
		}
	}
}

// Some file systems, such as NFS, cannot exchange folders.
func TestYUMWithoutExchange(t *testing.T) {
	key := edKey(t)
	rpms := []string{makeRPM(t, "foo", "1", "", ""), makeRPM(t, "foo", "2", "", "")}
	var want map[string]string
	for _, step := range []func(op, name string) error{nil, func(op, _ string) error {
		if op == "exchange" {
			return errNoExchange
		}
		return nil
	}} {
		dir := filepath.Join(t.TempDir(), "r")
		y := &YUM{Dir: dir, Epoch: epoch, step: step}
		for _, rpm := range rpms {
			update(t, y, rpm)
		}
		y.Signer = key
		for _, rpm := range rpms {
			update(t, y, rpm)
			checkYUM(t, dir, key)
		}
		if want == nil {
			want = snapshot(t, dir)
		}
		if d := differences(snapshot(t, dir), want); len(d) > 0 {
			t.Errorf("without exchange: %v", d)
		}
		y.Signer = nil
		update(t, y, rpms[0])
		if _, err := os.Stat(filepath.Join(dir, repomdSig)); err == nil {
			t.Error("an unsigned repository has a signature")
		}
	}
}

func TestKillsLeaveAYUMRepository(t *testing.T) {
	key := edKey(t)
	dir := filepath.Join(t.TempDir(), "r")
	rpms := []string{makeRPM(t, "foo", "1", "", ""), makeRPM(t, "foo", "2", "", ""), makeRPM(t, "foo", "3", "", ""), makeRPM(t, "bar", "1", "", "")}
	update(t, &YUM{Dir: dir, Epoch: epoch, Signer: key}, rpms[0], rpms[3])
	update(t, &YUM{Dir: dir, Epoch: epoch, Signer: key}, rpms[1], rpms[3])
	before := readRepomd(t, dir)
	seen := map[string]bool{}
	stopEverywhere(t, dir, func(dir string, step func(op, name string) error) error {
		y := &YUM{Dir: dir, Epoch: epoch, Signer: key, step: step}
		return y.Update(t.Context(), fileList([]string{rpms[2]}))
	}, func(t *testing.T, dir, at string) {
		version := checkYUM(t, dir, key)
		seen[version] = true
		if strings.HasSuffix(at, "again") {
			if version != "3" {
				t.Errorf("%s: version %s", at, version)
			}
			return
		}
		checkRepomd(t, dir, before) // a client that has read the index before the update
	})
	if !seen["2"] || !seen["3"] {
		t.Errorf("seen were versions %v", seen)
	}
}

// checkYUM reads a repository as dnf does, and returns the version of foo.
func checkYUM(t *testing.T, dir string, key *sign.Key) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, repomdFile))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := os.ReadFile(filepath.Join(dir, repomdSig))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.VerifyDetached(text, sig); err != nil {
		t.Fatal(err)
	}
	return checkRepomd(t, dir, readRepomd(t, dir))
}

// checkRepomd checks that all is there that a repomd.xml names.
func checkRepomd(t *testing.T, dir string, md *repomd) string {
	t.Helper()
	version := ""
	for _, d := range md.Data {
		data, err := os.ReadFile(filepath.Join(dir, d.Location.Href))
		if err != nil || digestOf(data).sha256 != d.Checksum.Value {
			t.Fatalf("%s: %v", d.Location.Href, err)
		}
		if d.Type != "primary" {
			continue
		}
		plain, err := unpacked(data)
		if err != nil {
			t.Fatal(err)
		}
		listed, err := parsePrimary(plain)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range listed {
			data, err := os.ReadFile(filepath.Join(dir, l.Location.Href))
			if err != nil || digestOf(data) != (digest{l.Checksum.Value, l.Size.Package}) {
				t.Fatalf("%s: %v", l.Location.Href, err)
			}
			if l.Name == "foo" {
				version = l.Version.Version
			}
		}
	}
	return version
}

func TestYUMKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	y := &YUM{Dir: dir, Epoch: epoch, Signer: edKey(t), Keep: true}
	rpms := testRPMs(t)
	update(t, y, rpms[0])
	update(t, y, rpms[1])
	update(t, y)
	var names []string
	for _, p := range readIndex(t, dir, "primary") {
		if n := strings.Index(p, "/package/name  "); n >= 0 {
			names = append(names, p[n+len("/package/name  "):n+len("/package/name  ")+3])
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "one two" {
		t.Errorf("the index has %q", got)
	}
	alter(t, filepath.Join(dir, repomdFile), "<revision>", "<revision>1")
	if err := y.Update(t.Context(), nil); !errors.Is(err, ErrUntrusted) {
		t.Errorf("an index that the key has not signed is kept: %v", err)
	}
	y.Keep = false
	update(t, y, rpms[1])
	checkYUM(t, dir, y.Signer)
}

func TestRebuiltRPM(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	y := &YUM{Dir: dir, Epoch: epoch, Signer: edKey(t)}
	one, other := makeRPM(t, "foo", "1", "", ""), makeRPM(t, "foo", "1", "Vendor: x", "")
	if err := y.Update(t.Context(), fileList([]string{one, other})); !errors.Is(err, ErrConflict) {
		t.Errorf("both at once: %v", err)
	}
	update(t, y, one)
	before := readRepomd(t, dir)
	update(t, y, other)
	checkRepomd(t, dir, before)
	checkYUM(t, dir, y.Signer)
	want := snapshot(t, dir)
	update(t, y, other)
	if d := differences(snapshot(t, dir), want); len(d) > 0 {
		t.Errorf("an update without news changes %v", d)
	}
}

func TestRefusedRPMs(t *testing.T) {
	good, err := os.ReadFile(makeRPM(t, "foo", "1", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "not a package": []byte("x"), "cut in the header": good[:3000], "no magic": append([]byte("x"), good[1:]...),
		"name leaves": bytes.Replace(good, []byte("\x00foo\x001\x00"), []byte("\x00../\x001\x00"), 1),
		"huge":        slices.Concat(good[:104], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, good[112:]),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "r")
			y := &YUM{Dir: dir, Epoch: epoch}
			if err := y.Update(t.Context(), fileList([]string{write(t, filepath.Join(t.TempDir(), "x.rpm"), string(data))})); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(filepath.Join(dir, repomdFile)); err == nil {
				t.Error("an index was written")
			}
		})
	}
}

func FuzzRPM(f *testing.F) {
	data, err := os.ReadFile(makeRPM(f, "foo", "1", manyDependencies, scripts))
	if err != nil {
		f.Fatal(err)
	}
	o, err := readOutline(bytes.NewReader(data))
	if err != nil {
		f.Fatal(err)
	}
	key := edKey(f)
	f.Add(data[:o.end])
	if data, err = os.ReadFile(plainRPM(f, "foo", "1")); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := describeRPM(bytes.NewReader(data), int64(len(data)), key, epoch)
		if err != nil {
			return
		}
		if b := file.base(); filepath.Base(b) != b {
			t.Errorf("file name %q", b)
		}
		file.path = "x.rpm"
		if _, err := indexes([]*rpmFile{file}); err != nil {
			t.Errorf("an RPM that was read cannot be written: %v", err)
		}
	})
}

// zypper finds the key beside repomd.xml.
func TestRealZypperReadsIt(t *testing.T) {
	one := makeRPM(t, "one", "1.0", "Provides: /bin/sh\nAutoReqProv: no", "")
	for name, key := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			dir, root := filepath.Join(t.TempDir(), "r"), t.TempDir()
			update(t, &YUM{Dir: dir, Epoch: epoch, Signer: key}, one)
			zypper := []string{"--root", root, "--non-interactive", "--gpg-auto-import-keys"}
			run(t, "zypper", append(zypper, "addrepo", "--gpgcheck-strict", "file://"+dir, "farm")...)
			run(t, "zypper", append(zypper, "refresh")...)
			if out := run(t, "zypper", append(zypper, "install", "--no-recommends", "one")...); !strings.Contains(out, "one") {
				t.Errorf("zypper:\n%s", out)
			}
			run(t, "rpm", "--root", root, "-q", "one")
			alter(t, filepath.Join(dir, repomdFile), "<revision>", "<revision>1")
			if out, err := try(t, "zypper", append(zypper, "refresh", "--force")...); err == nil {
				t.Errorf("zypper takes a changed index:\n%s", out)
			}
		})
	}
}
