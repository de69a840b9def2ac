package farm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

// token signs as tokens do: differently each time.
type token struct {
	key    *ecdsa.PrivateKey
	signed atomic.Int32
	fault  error
}

func (s *token) Sign(_ context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
	s.signed.Add(1)
	if s.fault != nil {
		return nil, s.fault
	}
	return s.key.Sign(rand.Reader, digest, hash)
}

func newToken(t *testing.T, name string) (*modsign.Key, *token, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := &token{key: key}
	k, err := modsign.New(cert, s)
	if err != nil {
		t.Fatal(err)
	}
	return k, s, cert
}

func collectReport(t *testing.T, c *Collector, results []*Result) *Report {
	t.Helper()
	if _, err := c.Collect(t.Context(), results); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(c.Dir, ResultsFile))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// packed reads the module in a tarball of the folder.
func packed(t *testing.T, dir, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: no module: %v", name, err)
		}
		if strings.HasSuffix(h.Name, ".ko") {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
}

func signingCollector(t *testing.T, k *modsign.Key, hash string) (*Collector, []*Result) {
	t.Helper()
	c := collector(t, t.TempDir(), matrix.BinariesOnly, matrix.SourceOnly)
	c.ModuleKey, c.Output.SignModules = k, &matrix.ModuleSigning{Hash: hash}
	return c, built(t, c, fit(testCells(t, 3)))
}

func TestSignedModules(t *testing.T) {
	k, s, cert := newToken(t, "First")
	c, results := signingCollector(t, k, "sha384")
	r := collectReport(t, c, results)
	if r.Signing == nil || r.Signing.Fingerprint != k.Fingerprint() || r.Signing.Hash != "sha384" {
		t.Errorf("signing %+v", r.Signing)
	}
	for _, cell := range r.Cells[:2] {
		data := packed(t, c.Dir, cell.Files[0])
		if err := modsign.Verify(data, cert); err != nil {
			t.Error(err)
		}
		if m := cell.Modules[0]; m.Signed == nil || m.Signed.SHA256 != sha256hex(data) || m.Signed.Size != int64(len(data)) {
			t.Errorf("report of the signed module: %+v", m.Signed)
		}
		if plain, err := modsign.Strip(data); err != nil || sha256hex(plain) != cell.Modules[0].SHA256 {
			t.Errorf("stripped, it is not the module that was built (%v)", err)
		}
		if m, err := kmod.Read(bytes.NewReader(data), kmod.Limits{}); err != nil || m.Signature.Hash != "sha384" || m.Signature.Signer != "First" {
			t.Errorf("%+v, %v", m.Signature, err)
		}
	}
	if r.Cells[2].Modules[0].Signed != nil {
		t.Error("a module that failed its check is signed")
	}
	if der, err := os.ReadFile(filepath.Join(c.Dir, r.Signing.Certificate.Path)); err != nil || !bytes.Equal(der, cert.Raw) {
		t.Errorf("certificate: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(c.Dir, r.Signing.HowTo.Path))
	if err != nil || !strings.Contains(string(text), k.Fingerprint()) || !strings.Contains(string(text), "mokutil --import mok.der") {
		t.Errorf("instructions %q, %v", text, err)
	}
	if n := s.signed.Load(); n != 2 {
		t.Errorf("%d signatures, want one for each module", n)
	}

	// Made anew, the packages are the same: the store has the signatures.
	if err := os.RemoveAll(filepath.Join(c.Store.Dir(), "refs", packRef)); err != nil {
		t.Fatal(err)
	}
	again := collectReport(t, c, results)
	if n := s.signed.Load(); n != 2 || again.Files[0] != r.Files[0] {
		t.Errorf("made anew: %d signatures, %+v, before it was %+v", n, again.Files[0], r.Files[0])
	}

	// Without the signatures, what the report says is what is packed.
	if err := os.RemoveAll(filepath.Join(c.Store.Dir(), "refs", signatureRef)); err != nil {
		t.Fatal(err)
	}
	other := collectReport(t, c, results).Cells[0]
	if got, want := sha256hex(packed(t, c.Dir, other.Files[0])), other.Modules[0].Signed.SHA256; got != want || want == r.Cells[0].Modules[0].Signed.SHA256 {
		t.Errorf("signed anew: packed is %s, reported %s, before it was %s", got, want, r.Cells[0].Modules[0].Signed.SHA256)
	}
}

func TestAnotherModuleKey(t *testing.T) {
	k, _, _ := newToken(t, "First")
	c, results := signingCollector(t, k, matrix.KernelsHash)
	first := collectReport(t, c, results)
	var cert *x509.Certificate
	c.ModuleKey, _, cert = newToken(t, "Second")
	second := collectReport(t, c, results)
	for i, cell := range second.Cells[:2] {
		if old := first.Cells[i]; cell.Key != old.Key || cell.Modules[0].SHA256 != old.Modules[0].SHA256 || cell.Modules[0].Signed.SHA256 == old.Modules[0].Signed.SHA256 {
			t.Errorf("got %+v, with another key it was %+v", cell, old)
		}
		if err := modsign.Verify(packed(t, c.Dir, cell.Files[0]), cert); err != nil {
			t.Error(err)
		}
	}
	for i, f := range second.Files {
		source := strings.Contains(f.Path, "source-only")
		if same := f.SHA256 == first.Files[i].SHA256; same != source {
			t.Errorf("%s: the same as with another key: %v", f.Path, same)
		}
	}
	c.ModuleKey, c.Output.SignModules = nil, nil
	third := collectReport(t, c, results)
	if third.Signing != nil || third.Cells[0].Modules[0].Signed != nil {
		t.Error("unsigned, but the report says otherwise")
	}
	if data := packed(t, c.Dir, third.Cells[0].Files[0]); sha256hex(data) != third.Cells[0].Modules[0].SHA256 {
		t.Error("unsigned, but not what was built")
	}
	for _, name := range []string{certificateFile, howToFile} {
		if _, err := os.Stat(filepath.Join(c.Dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// hashes are Kernels that ask for a hash.
type hashes struct {
	noImages
	name string
}

func (h hashes) ModuleHash(context.Context, images.Inputs, string) (string, error) {
	return h.name, nil
}

func TestModuleHash(t *testing.T) {
	for asked, want := range map[string]string{"": "sha256", "sha512": "sha512", "sha3-256": ""} {
		k, _, _ := newToken(t, "First")
		c, results := signingCollector(t, k, matrix.KernelsHash)
		c.Kernels = hashes{name: asked}
		got, err := c.Collect(t.Context(), results)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			if len(got.Refused) != 2 || !strings.Contains(got.Refused[0].Error(), "output.sign-modules.hash") || got.Report.Cells[0].Modules[0].Signed != nil {
				t.Errorf("%s: refused %v", asked, got.Refused)
			}
			continue
		}
		m, err := kmod.Read(bytes.NewReader(packed(t, c.Dir, got.Report.Cells[0].Files[0])), kmod.Limits{})
		if err != nil || m.Signature.Hash != want {
			t.Errorf("the kernel asks for %q: signed %+v, %v", asked, m.Signature, err)
		}
	}
}

// A token that has gone is nobody's fault, and no package is written without.
func TestSigningFault(t *testing.T) {
	k, s, _ := newToken(t, "First")
	c, results := signingCollector(t, k, "sha256")
	s.fault = errors.New("the token is gone")
	_, err := c.Collect(t.Context(), results)
	if fault, ok := errors.AsType[*SigningError](err); !ok || !errors.Is(fault, s.fault) {
		t.Errorf("got error %v", err)
	}
	if names := files(t, c.Dir); strings.Contains(strings.Join(names, " "), "kernel6.1") {
		t.Errorf("there are %q", names)
	}
}

// A signature in the store that does not hold is made again.
func TestDamagedSignature(t *testing.T) {
	k, s, cert := newToken(t, "First")
	c, results := signingCollector(t, k, "sha256")
	collectReport(t, c, results)
	refs, err := c.Store.Refs(signatureRef)
	if err != nil || len(refs) != 2 {
		t.Fatalf("%q, %v", refs, err)
	}
	d, err := c.Store.Put([]byte("nonsense"), signatureType)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		if err := c.Store.SetRef(signatureRef, ref, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(c.Store.Dir(), "refs", packRef)); err != nil {
		t.Fatal(err)
	}
	r := collectReport(t, c, results)
	if err := modsign.Verify(packed(t, c.Dir, r.Cells[0].Files[0]), cert); err != nil || s.signed.Load() != 4 {
		t.Errorf("%v, %d signatures", err, s.signed.Load())
	}
}
