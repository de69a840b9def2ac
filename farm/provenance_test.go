package farm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/farm/attest"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
)

// randomSigner signs differently each time, as tokens do.
type randomSigner struct {
	key   *ecdsa.PrivateKey
	count int
}

func (s *randomSigner) Sign(_ context.Context, digest []byte, _ crypto.Hash) ([]byte, error) {
	s.count++
	return ecdsa.SignASN1(rand.Reader, s.key, digest)
}

func attestKey(t *testing.T) (*modsign.Key, *randomSigner) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := &randomSigner{key: key}
	k, err := modsign.New(cert, s)
	if err != nil {
		t.Fatal(err)
	}
	return k, s
}

func contents(t *testing.T, dir, pattern string) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if fi, err := os.Stat(name); err != nil || fi.IsDir() {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(data)
	}
	return all
}

// TestAttest makes statements on every layout, again, without a key, and no more.
func TestAttest(t *testing.T) {
	dir := t.TempDir()
	c := collector(t, dir, matrix.BinariesOnly, matrix.SourceOnly, matrix.Combined)
	cells := fit(testCells(t, 3))
	for i, cell := range cells {
		cell.Inputs.Toolchain = []*apt.Package{{Name: "gcc", Version: "12", Arch: "amd64", SHA256: strings.Repeat("1", 64), Distribution: "debian", Suite: "bookworm"}}
		cell.Inputs.Headers = []*apt.Package{{Name: "headers", Version: "6", Arch: "amd64", SHA256: strings.Repeat(string('2'+rune(i)), 64), Distribution: "debian", Suite: "bookworm"}}
	}
	results := built(t, c, cells)
	key, signer := attestKey(t)
	c.Attester = &Attester{Key: key, Builder: attest.Builder{ID: "https://example.org", Version: "1"}}
	collected, err := c.Collect(t.Context(), results)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(collected.Report.Attestations); n != 4 || n != len(collected.Packages) { // two fit, and two hold more than one cell
		t.Fatalf("%d attestations of %d packages", n, len(collected.Packages))
	}
	first := contents(t, dir, "*")
	for _, a := range collected.Report.Attestations {
		checkAttestation(t, first, a, key)
	}
	if len(first) != 4*3+2 { // SHA256SUMS and results.json
		t.Errorf("there are %q", files(t, dir))
	}
	checkReferrers(t, c, results, key)

	// What is there is not signed again.
	signed := signer.count
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	if signer.count != signed || !mapsEqual(first, contents(t, dir, "*")) {
		t.Errorf("signed %d times, then %d times; the files differ", signed, signer.count-signed)
	}

	// Without a key the file has another name, and the signed one goes.
	c.Attester = &Attester{Builder: c.Attester.Builder}
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	plain := contents(t, dir, "*.intoto.json")
	if len(plain) != 4 || len(contents(t, dir, "*.intoto.jsonl")) != 0 {
		t.Errorf("got %q", files(t, dir))
	}
	for name, data := range plain {
		if _, err := attest.Parse([]byte(data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A verdict changes the statements of what holds the modules, and no other.
	for _, r := range results {
		r.Test = &Tested{OK: true, Verdict: boot.Loaded}
		r.Cell.Boot = []*apt.Package{{Name: "image", Version: "6", Arch: "amd64", SHA256: strings.Repeat("9", 64)}}
	}
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	for name, data := range contents(t, dir, "*.intoto.json") {
		p, err := attest.Parse([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		source := p.Parameters.Package == "dkms source-only"
		if tested := len(p.Tests) == len(p.Parameters.Cells) && len(p.Of(attest.RoleKernel)) == 1; tested == source || source != (data == plain[name]) {
			t.Errorf("%s: %+v", name, p)
		}
	}

	c.Attester = nil
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	if left := slices.Concat(keys(contents(t, dir, "*.intoto.json*")), keys(contents(t, dir, "*.spdx.json"))); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

func mapsEqual(a, b map[string]string) bool {
	x, xerr := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}

func keys(m map[string]string) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	return all
}

func checkAttestation(t *testing.T, dist map[string]string, a AttestationReport, key *modsign.Key) {
	t.Helper()
	payload, err := attest.Open(t.Context(), []byte(dist[a.Statement.Path]), key.Public())
	if err != nil {
		t.Fatalf("%s: %v", a.Package, err)
	}
	p, err := attest.Parse(payload)
	if err != nil {
		t.Fatalf("%s: %v", a.Package, err)
	}
	if _, err := p.Subject(sha256hex([]byte(dist[a.Package]))); err != nil {
		t.Error(err)
	}
	if f, ok := p.SBOM(); !ok || f.SHA256 != sha256hex([]byte(dist[a.SBOM.Path])) || f.Name != a.SBOM.Path {
		t.Errorf("%s: the statement names the SBOM %v", a.Package, f)
	}
	cells, tools, headers := 1, 1, 1
	switch p.Parameters.Package {
	case "dkms source-only":
		cells, tools, headers = 2, 0, 0
	case "dkms combined":
		cells, headers = 2, 2
	}
	if len(p.Parameters.Cells) != cells || len(p.Of(attest.RoleToolchain)) != tools || len(p.Of(attest.RoleHeaders)) != headers || len(p.Of(attest.RoleSource)) != 1 {
		t.Errorf("%s: %+v", a.Package, p)
	}
	modules := strings.Count(dist[a.SBOM.Path], `"fileName"`)
	if want := cells * tools; modules != want || !a.Signed {
		t.Errorf("%s: %d modules in the SBOM, want %d", a.Package, modules, want)
	}
	if !strings.Contains(dist[checksumsFile], sha256hex([]byte(dist[a.Statement.Path]))+"  "+a.Statement.Path+"\n") {
		t.Errorf("%s lacks %s", checksumsFile, a.Statement.Path)
	}
}

// checkReferrers follows the OCI layout from a result to what refers to it.
func checkReferrers(t *testing.T, c *Collector, results []*Result, key *modsign.Key) {
	t.Helper()
	found := 0
	for _, r := range results {
		subject, err := c.Store.Ref(resultRef, r.Cell.Key)
		if err != nil {
			t.Fatal(err)
		}
		for what, mediaType := range map[string]string{"provenance": attest.EnvelopeType, "sbom": attest.SBOMType} {
			d, err := c.Store.Ref(ReferrerRef, subject.Digest.Hex+"-"+what)
			if (err == nil) != r.Packable() {
				t.Errorf("%s of %s: %v", what, r.Cell.Name(), err)
			}
			if err != nil {
				continue
			}
			found++
			data, err := c.Store.Get(d.Digest, maxManifest)
			if err != nil {
				t.Fatal(err)
			}
			m, err := v1.ParseManifest(bytes.NewReader(data))
			if err != nil || m.Subject.Digest != subject.Digest || m.Subject.Size != subject.Size || m.ArtifactType != mediaType || m.Layers[0].MediaType != types.MediaType(mediaType) {
				t.Fatalf("%s, %v", data, err)
			}
			blob, err := c.Store.Get(m.Layers[0].Digest, maxSBOM)
			if err != nil {
				t.Fatal(err)
			}
			if what == "provenance" {
				checkResult(t, r, blob, key)
			}
		}
	}
	if found != 4 {
		t.Errorf("%d referrers, want 4", found)
	}
}

func checkResult(t *testing.T, r *Result, envelope []byte, key *modsign.Key) {
	t.Helper()
	payload, err := attest.Open(t.Context(), envelope, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p, err := attest.Parse(payload)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := p.Subject(r.Record.Modules[0].SHA256); err != nil || f.Name != "hello.ko" || p.Parameters.Cells[0].Key != r.Cell.Key {
		t.Errorf("%+v, %v", p, err)
	}
}
