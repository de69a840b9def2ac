// Package attest_test builds a real farm, and checks what it says about its
// files: by tools that are not kofarm's, and by kofarm on another machine.
package attest_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/attest"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// pair makes NAME.key, NAME.pem (the certificate) and NAME.pub.
func pair(t testing.TB, dir, name string, kind ...string) {
	t.Helper()
	rig.Command(t, dir, "openssl", append([]string{"req", "-new", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=" + name,
		"-out", name + ".pem", "-keyout", name + ".key", "-newkey"}, kind...)...)
	rig.Command(t, dir, "sh", "-c", `openssl x509 -in "$1.pem" -pubkey -noout >"$1.pub"`, "sh", name)
}

// openPGP makes openpgp.asc, which signs packages and SHA256SUMS, and ring.gpg.
func openPGP(t testing.TB, dir string) {
	t.Helper()
	home := filepath.Join(dir, "gnupg")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	gpg := func(args ...string) {
		t.Helper()
		rig.Command(t, dir, "gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	}
	gpg("--quick-gen-key", "farm", "ed25519", "sign", "never")
	gpg("--armor", "--output", "openpgp.asc", "--export-secret-keys")
	gpg("--output", "ring.gpg", "--export")
	rig.Command(t, dir, "gpgconf", "--homedir", home, "--kill", "gpg-agent")
}

// farmFile packs real modules, for one kernel and for two. by is the value of
// output.attest.
func farmFile(by string) string {
	return `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64, amd64]
output:
  dkms: {layouts: [binaries-only, full, source-only, combined]}
  deb: {packages: [modules, meta, dkms, source], prebuilt: true, repository: {}}
  rpm: {style: kernel-module, packages: [modules, dkms, source]}
  sign: {key: openpgp.asc}
  sign-modules: {key: rsa.key, certificate: rsa.pem}
  attest: ` + by + "\n"
}

// build builds into dir/name.
func build(t testing.TB, dir, name, by string, env ...string) *farm.Report {
	t.Helper()
	rig.Write(t, dir, name+".yaml", farmFile(by))
	r := rig.Run(t, dir, append(env, "KOFARM_STORE="+rig.Store(t)), rig.Binary(t), "build", name+".yaml", "-o", name)
	if r.Code != 0 {
		t.Fatalf("exit status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	var report farm.Report
	if err := json.Unmarshal(rig.Read(t, filepath.Join(dir, name, farm.ResultsFile)), &report); err != nil {
		t.Fatal(err)
	}
	return &report
}

func checker() string { return filepath.Join(rig.Root(), "ci", "attest", "check.py") }

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names
}

var kinds = map[string][]string{
	"ec":   {"ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
	"p384": {"ec", "-pkeyopt", "ec_paramgen_curve:P-384"},
	"rsa":  {"rsa:2048"},
}

func TestAttest(t *testing.T) {
	dir := t.TempDir()
	for name, kind := range kinds {
		pair(t, dir, name, kind...)
	}
	openPGP(t, dir)
	for name := range kinds {
		report := build(t, dir, name, "{key: "+name+".key, certificate: "+name+".pem, builder: 'https://example.org/farm'}")
		if len(report.Attestations) < 15 || len(report.Attestations) != len(report.Files) {
			t.Fatalf("%d attestations of %d files", len(report.Attestations), len(report.Files))
		}
		t.Log(strings.TrimSpace(rig.Command(t, dir, "python3", checker(), name, name+".pub")))
	}
	t.Run("again", func(t *testing.T) { again(t, dir) })
	t.Run("sums", func(t *testing.T) { sums(t, dir) })
	t.Run("elsewhere", func(t *testing.T) { elsewhere(t, dir) })
	t.Run("changed", func(t *testing.T) { changed(t, dir) })
	t.Run("shared", func(t *testing.T) { shared(t, dir) })
	t.Run("unsigned", func(t *testing.T) { unsigned(t, dir) })
}

// shared finds the statements on results in a registry, by the results' tags, and
// verifies a module with what it has found.
func shared(t *testing.T, dir string) {
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	rig.Write(t, dir, "shared.yaml", farmFile("{key: ec.key, certificate: ec.pem}")+"cache: {registry: '"+host+"/farm', mode: readwrite, insecure: true}\n")
	rig.Kofarm(t, 0, dir, rig.Store(t), "build", "shared.yaml", "-o", "shared")
	repo, err := name.NewRepository(host + "/farm")
	if err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(repo)
	if err != nil {
		t.Fatal(err)
	}
	cells := 0
	for _, tag := range tags {
		img, err := remote.Image(repo.Tag(tag))
		if err != nil {
			t.Fatal(err)
		}
		if m, err := img.Manifest(); err != nil || m.Annotations["dev.kofarm.key"] != tag {
			continue // a layer, or the list of referrers
		}
		cells++
		found := referrersOf(t, repo, img)
		if len(found) != 2 || found[attest.SBOMType] == nil || found[attest.EnvelopeType] == nil {
			t.Fatalf("%d things refer to %s", len(found), tag)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t)
		rig.Write(t, m.dir, "acpi_call.ko", string(content(t, layers[0])))
		rig.Write(t, m.dir, "acpi_call.ko"+attest.SBOMSuffix, string(found[attest.SBOMType]))
		rig.Write(t, m.dir, "statement", string(found[attest.EnvelopeType]))
		r := m.verify(t, "--key", filepath.Join(dir, "ec.pub"), "--statement", "statement", "acpi_call.ko")
		if r.Code != 0 || !strings.Contains(r.Stdout, tag) || !strings.Contains(r.Stdout, "SBOM ") {
			t.Errorf("%+v", r)
		}
	}
	if cells != 2 {
		t.Errorf("%d results among the tags %q", cells, tags)
	}
}

// referrersOf fetches what refers to an image, by its type.
func referrersOf(t *testing.T, repo name.Repository, img v1.Image) map[string][]byte {
	t.Helper()
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(repo.Digest(digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, d := range list.Manifests {
		img, err := remote.Image(repo.Digest(d.Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatal(layers, err)
		}
		mediaType, err := layers[0].MediaType()
		if err != nil {
			t.Fatal(err)
		}
		found[string(mediaType)] = content(t, layers[0])
	}
	return found
}

func content(t *testing.T, l v1.Layer) []byte {
	t.Helper()
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// again makes the same bytes with an empty set of packages in the store, in
// another folder, time zone and language, and with another umask.
func again(t *testing.T, dir string) {
	other := t.TempDir()
	for _, name := range []string{"openpgp.asc", "ec.key", "ec.pem", "rsa.key", "rsa.pem"} {
		rig.Write(t, other, name, string(rig.Read(t, filepath.Join(dir, name))))
	}
	store := t.TempDir()
	rig.Clone(t, rig.Store(t), store, "blobs", "cache", "refs/layer", "refs/symvers", "refs/result")
	rig.Write(t, other, "dist.yaml", farmFile("{key: ec.key, certificate: ec.pem, builder: 'https://example.org/farm'}"))
	script := `umask 077; exec "$0" build dist.yaml`
	r := rig.Run(t, other, []string{"KOFARM_STORE=" + store, "TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8"}, "sh", "-c", script, rig.Binary(t))
	if r.Code != 0 || !strings.Contains(r.Stdout, "2 of 2 cells were in the store") {
		t.Fatalf("%d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	want := entries(t, filepath.Join(dir, "ec"))
	if got := entries(t, filepath.Join(other, "dist")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, name := range want {
		if name != farm.ResultsFile && !bytes.Equal(rig.Read(t, filepath.Join(dir, "ec", name)), rig.Read(t, filepath.Join(other, "dist", name))) {
			t.Errorf("%s differs", name)
		}
	}
}

func sums(t *testing.T, dir string) {
	dist := filepath.Join(dir, "ec")
	rig.Command(t, dist, "sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	rig.Command(t, dist, "gpgv", "--keyring", filepath.Join(dir, "ring.gpg"), "SHA256SUMS.asc", "SHA256SUMS")
	listed := string(rig.Read(t, filepath.Join(dist, "SHA256SUMS")))
	var names []string
	for line := range strings.Lines(listed) {
		names = append(names, strings.TrimSpace(line[64:]))
	}
	want := slices.DeleteFunc(entries(t, dist), func(n string) bool {
		return n == farm.ResultsFile || strings.HasPrefix(n, "SHA256SUMS")
	})
	if !slices.IsSorted(names) || !slices.Equal(names, want) {
		t.Errorf("it lists %q, want %q", names, want)
	}
	rig.Write(t, dist, "SUMS", listed+"x")
	r := rig.Run(t, dist, nil, "gpgv", "--keyring", filepath.Join(dir, "ring.gpg"), "SHA256SUMS.asc", "SUMS")
	if r.Code == 0 {
		t.Error("gpgv accepts other sums")
	}
	if err := os.Remove(filepath.Join(dist, "SUMS")); err != nil {
		t.Fatal(err)
	}
}

// machine is another machine: it has kofarm, some files, and no store.
type machine struct {
	dir  string
	home string // must not appear
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	return &machine{dir, filepath.Join(dir, "home")}
}

// download brings an artifact with what is beside it.
func (m *machine) download(t *testing.T, from, name string) {
	t.Helper()
	for _, suffix := range []string{"", attest.SignedSuffix, attest.SBOMSuffix} {
		rig.Write(t, m.dir, name+suffix, string(rig.Read(t, filepath.Join(from, name+suffix))))
	}
}

func (m *machine) verify(t *testing.T, args ...string) rig.Result {
	t.Helper()
	cmd := append([]string{"-i", "PATH=/nowhere", "HOME=" + m.home, rig.Binary(t), "verify", "--provenance"}, args...)
	r := rig.Run(t, m.dir, nil, "env", cmd...)
	if _, err := os.Stat(m.home); err == nil {
		t.Fatalf("verify %q has made a store", args)
	}
	return r
}

// refused verifies in vain, and wants to hear why.
func (m *machine) refused(t *testing.T, why string, args ...string) {
	t.Helper()
	r := m.verify(t, args...)
	if r.Code != 1 && r.Code != 2 || !strings.Contains(r.Stderr, why) || strings.Contains(r.Stdout, "verified") || len(r.Stderr) > 1000 {
		t.Errorf("%q: exit status %d, want 1 and %q\n%s%s", args, r.Code, why, r.Stdout, r.Stderr)
	}
}

func elsewhere(t *testing.T, dir string) {
	for kind := range kinds {
		m := newMachine(t)
		var artifacts []string
		for _, name := range entries(t, filepath.Join(dir, kind)) {
			if artifact, ok := strings.CutSuffix(name, attest.SignedSuffix); ok {
				m.download(t, filepath.Join(dir, kind), artifact)
				artifacts = append(artifacts, artifact)
			}
		}
		for flag, file := range map[string]string{"--key": ".pub", "--certificate": ".pem"} {
			r := m.verify(t, append([]string{flag, filepath.Join(dir, kind+file), "--builder", "https://example.org/farm"}, artifacts...)...)
			if r.Code != 0 || strings.Count(r.Stdout, ": verified\n") != len(artifacts) {
				t.Errorf("%s %s: exit status %d\n%s%s", kind, flag, r.Code, r.Stdout, r.Stderr)
			}
		}
		m.refused(t, "the builder is", "--key", filepath.Join(dir, kind+".pub"), "--builder", "https://example.org/other", artifacts[0])
		for other := range kinds {
			if other != kind {
				m.refused(t, "it is signed by the key", "--key", filepath.Join(dir, other+".pub"), artifacts[0])
			}
		}
		told(t, m, filepath.Join(dir, kind+".pub"))
	}
}

// told looks at what is printed about a tarball.
func told(t *testing.T, m *machine, key string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(m.dir, "*-cloud-amd64-x86_64.dkms.tar.gz"))
	if err != nil || len(found) == 0 {
		t.Fatal(found, err)
	}
	r := m.verify(t, "--key", key, found[0], "--json")
	var all []struct {
		Statement attest.Provenance
	}
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) != 1 {
		t.Fatal(r, err)
	}
	p := all[0].Statement
	if len(p.Of(attest.RoleToolchain)) < 50 || len(p.Of(attest.RoleHeaders)) < 3 || !strings.HasPrefix(p.Of(attest.RoleSource)[0].URI, "pkg:deb/debian/acpi-call-dkms@") {
		t.Errorf("%+v", p)
	}
	text := m.verify(t, "--key", key, found[0]).Stdout
	for _, want := range []string{`"acpi-call"`, "linux-headers-6.1", `"debian/gcc-12@`, "SBOM ", `"https://example.org/farm"`} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
}

// changed changes a byte here and there.
func changed(t *testing.T, dir string) {
	m := newMachine(t)
	dist, key := filepath.Join(dir, "ec"), filepath.Join(dir, "ec.pub")
	var artifacts []string
	for _, name := range entries(t, dist) {
		if strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".rpm") {
			m.download(t, dist, name)
			artifacts = append(artifacts, name)
		}
	}
	a, b := artifacts[0], artifacts[1]
	flip := func(name string, at int, with byte) (restore func()) {
		path := filepath.Join(m.dir, name)
		was := rig.Read(t, path)
		data := bytes.Clone(was)
		data[(at+len(data))%len(data)] ^= with
		rig.Write(t, m.dir, name, string(data))
		return func() { rig.Write(t, m.dir, name, string(was)) }
	}
	for _, at := range []int{0, 4, 100, -1} {
		restore := flip(a, at, 1)
		m.refused(t, "it was changed, or is another one", "--key", key, a)
		restore()
	}
	for at := 3; at < 52_000; at += 977 {
		restore := flip(a+attest.SignedSuffix, at, 4)
		m.refused(t, "ed", "--key", key, a) // refused or malformed: farm/attest knows which
		restore()
	}
	for _, at := range []int{0, 1000, -1} {
		restore := flip(a+attest.SBOMSuffix, at, 2)
		m.refused(t, attest.SBOMSuffix+" has the sha256", "--key", key, a)
		restore()
	}
	if r := m.verify(t, "--key", key, a, b); r.Code != 0 {
		t.Fatalf("restored: %+v", r)
	}
	m.refused(t, "it was changed, or is another one", "--key", key, a, "--statement", b+attest.SignedSuffix)
	if r := m.verify(t, "--key", key, a, b, "absent"); r.Code != 1 || strings.Count(r.Stdout, ": verified\n") != 2 || !strings.Contains(r.Stderr, "absent") {
		t.Errorf("one of three is not there: %+v", r)
	}
	block, _ := pem.Decode(rig.Read(t, filepath.Join(dir, "ec.pem")))
	for at := range block.Bytes {
		if at%5 != 0 {
			continue
		}
		der := bytes.Clone(block.Bytes)
		der[at] ^= 1
		rig.Write(t, m.dir, "changed.der", string(der))
		m.refused(t, "certificate changed.der", "--certificate", "changed.der", a)
	}
	issued(t, dir, m, a)
	rig.Write(t, m.dir, "good.der", string(block.Bytes))
	if r := m.verify(t, "--certificate", "good.der", a); r.Code != 0 {
		t.Errorf("the certificate in DER: %+v", r)
	}
	m.refused(t, "say whom you trust", a)
	m.refused(t, "say whom you trust", "--key", key, "--certificate", "good.der", a)
	m.refused(t, "name the files", "--key", key)
	m.refused(t, "it holds a PRIVATE KEY", "--key", filepath.Join(dir, "ec.key"), a)

	// The other checker sees it, too.
	for _, name := range []string{a, a + attest.SBOMSuffix, a + attest.SignedSuffix} {
		restore := flip(name, -100, 1)
		if r := rig.Run(t, m.dir, nil, "python3", checker(), m.dir, key); r.Code == 0 {
			t.Errorf("check.py accepts a changed %s", name)
		}
		restore()
	}
}

// issued has a certificate that another one has issued.
func issued(t *testing.T, dir string, m *machine, artifact string) {
	t.Helper()
	rig.Command(t, dir, "openssl", "req", "-new", "-key", "ec.key", "-subj", "/CN=issued", "-out", "issued.csr")
	rig.Command(t, dir, "openssl", "x509", "-req", "-in", "issued.csr", "-CA", "p384.pem", "-CAkey", "p384.key", "-set_serial", "7", "-out", "issued.pem")
	certificate := []string{"--certificate", filepath.Join(dir, "issued.pem")}
	m.refused(t, "--issuer", append(certificate, artifact)...)
	m.refused(t, "--issuer", append(certificate, "--issuer", filepath.Join(dir, "rsa.pem"), artifact)...)
	if r := m.verify(t, append(certificate, "--issuer", filepath.Join(dir, "p384.pem"), artifact)...); r.Code != 0 {
		t.Errorf("with the issuer: %+v", r)
	}
}

// unsigned makes statements without a key: they are told from signed ones by
// their names, and prove nothing.
func unsigned(t *testing.T, dir string) {
	report := build(t, dir, "ec", "{}") // into the folder that has signed ones
	for _, name := range entries(t, filepath.Join(dir, "ec")) {
		if strings.HasSuffix(name, attest.SignedSuffix) {
			t.Errorf("%s is left", name)
		}
	}
	first := report.Attestations[0]
	if first.Signed || first.Statement.Path != first.Package+attest.UnsignedSuffix {
		t.Errorf("%+v", first)
	}
	p, err := attest.Parse(rig.Read(t, filepath.Join(dir, "ec", first.Statement.Path)))
	if err != nil || p.Builder.ID != attest.DefaultBuilder {
		t.Errorf("%+v, %v", p, err)
	}
	m := newMachine(t)
	m.refused(t, "is not signed: anyone may have written it", "--key", filepath.Join(dir, "ec.pub"), filepath.Join(dir, "ec", first.Package))
	m.refused(t, "malformed", "--key", filepath.Join(dir, "ec.pub"), filepath.Join(dir, "ec", first.Package), "--statement", filepath.Join(dir, "ec", first.Statement.Path))
}
