package cli

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kofarm/kofarm/farm/attest"
	"github.com/kofarm/kofarm/farm/modsign"
)

// provenanceFlags say whom to trust.
type provenanceFlags struct {
	provenance       bool
	statement        string // a file; "": beside each artifact
	key, certificate string // files
	issuer           string // file; "": the certificate is its own
	builder          string // a URI; "": any
}

func (f *provenanceFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.provenance, "provenance", false, "check FILEs against the signed statements on what they were made from")
	flags.StringVar(&f.key, "key", "", "with --provenance: `file` with the public key that is trusted (PKIX, PEM or DER)")
	flags.StringVar(&f.certificate, "certificate", "", "with --provenance: `file` with the certificate whose key is trusted (X.509, PEM or DER)")
	flags.StringVar(&f.issuer, "issuer", "", "with --certificate: `file` with the certificate that has issued it (default: itself)")
	flags.StringVar(&f.builder, "builder", "", "with --provenance: the `URI` that the statement has to name as its builder")
	flags.StringVar(&f.statement, "statement", "", "with --provenance: `file` with the statement (default: FILE"+attest.SignedSuffix+")")
}

// provenanceHelp is what the command's help says about --provenance.
const provenanceHelp = `With --provenance nothing is built: each FILE has to be the one that its statement
is about, the statement signed by the key of --key or --certificate, and the SBOM
beside the file, if there is one, the one that the statement names. What the file
was built from is printed. That needs no store, no farm file and no network.`

// proven is what a verified statement says about a file.
type proven struct {
	File      string             `json:"file"`
	SHA256    string             `json:"sha256"`
	Signed    string             `json:"signedBy"` // the key's id
	SBOM      string             `json:"sbom,omitzero"`
	Statement *attest.Provenance `json:"statement"`
}

// verifyProvenance checks artifacts against their statements.
func (a *app) verifyProvenance(ctx context.Context, files []string, f provenanceFlags) error {
	if len(files) == 0 {
		return errors.New("--provenance: name the files to verify")
	}
	if f.statement != "" && len(files) > 1 {
		return errors.New("--statement: it is about one file")
	}
	public, err := f.trusted()
	if err != nil {
		return err
	}
	all := []*proven{}
	var errs []error
	for _, file := range files {
		p, err := f.verify(ctx, file, public)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
			continue
		}
		all = append(all, p)
		if !a.quiet && !a.json {
			a.printProven(p)
		}
	}
	if a.json {
		if err := a.encode(all); err != nil {
			return err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return &exitError{exitFailed, err}
	}
	return nil
}

// trusted reads the key that statements have to be signed with.
func (f provenanceFlags) trusted() (crypto.PublicKey, error) {
	switch {
	case (f.key == "") == (f.certificate == ""):
		return nil, errors.New("--provenance: say whom you trust: either --key or --certificate")
	case f.key != "":
		return modsign.ReadPublic(f.key)
	}
	cert, err := modsign.ReadCertificate(f.certificate)
	if err != nil {
		return nil, err
	}
	return cert.PublicKey, f.whole(cert)
}

// whole checks that nothing of a certificate was changed, by the signature of
// its issuer; for one that is its own issuer that is its own key's.
func (f provenanceFlags) whole(cert *x509.Certificate) error {
	issuer := cert
	if f.issuer != "" {
		var err error
		if issuer, err = modsign.ReadCertificate(f.issuer); err != nil {
			return err
		}
	}
	if string(cert.RawIssuer) != string(issuer.RawSubject) {
		return fmt.Errorf("%w: certificate %s is issued by %q; name the certificate of that with --issuer, or the public key with --key", modsign.ErrKey, f.certificate, cert.Issuer)
	}
	err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	if err != nil && !weakHash(err) {
		return fmt.Errorf("%w: certificate %s was changed after it was made, or is not its issuer's: %w", modsign.ErrKey, f.certificate, err)
	}
	return nil
}

// weakHash tells a certificate that is signed by SHA-1, which Go does not verify.
func weakHash(err error) bool {
	_, ok := errors.AsType[x509.InsecureAlgorithmError](err)
	return ok
}

// Limits on files beside an artifact, in bytes.
const maxBeside = 64 << 20

func (f provenanceFlags) verify(ctx context.Context, file string, public crypto.PublicKey) (*proven, error) {
	sum, err := hashOf(file)
	if err != nil {
		return nil, err
	}
	statement, err := f.read(file)
	if err != nil {
		return nil, err
	}
	payload, err := attest.Open(ctx, statement, public)
	if err != nil {
		return nil, err
	}
	p, err := attest.Parse(payload)
	if err != nil {
		return nil, err
	}
	if _, err := p.Subject(sum); err != nil {
		return nil, err
	}
	if f.builder != "" && p.Builder.ID != f.builder {
		return nil, fmt.Errorf("%w: the builder is %.200q, not %s", attest.ErrRefused, p.Builder.ID, f.builder)
	}
	id, err := attest.KeyID(public)
	if err != nil {
		return nil, err
	}
	sbom, err := checkSBOM(file, p)
	return &proven{File: file, SHA256: sum, Signed: id, SBOM: sbom, Statement: p}, err
}

// read reads the statement on a file.
func (f provenanceFlags) read(file string) ([]byte, error) {
	name := f.statement
	if name == "" {
		name = file + attest.SignedSuffix
	}
	data, err := readLimited(name)
	if err == nil {
		return data, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || f.statement != "" {
		return nil, err
	}
	if _, uerr := os.Stat(file + attest.UnsignedSuffix); uerr == nil {
		return nil, fmt.Errorf("%w: its statement, %s, is not signed: anyone may have written it", attest.ErrRefused, file+attest.UnsignedSuffix)
	}
	return nil, fmt.Errorf("its statement is not beside it; name it with --statement: %w", err)
}

func readLimited(name string) ([]byte, error) {
	r, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	data, err := io.ReadAll(io.LimitReader(r, maxBeside+1))
	if err == nil && len(data) > maxBeside {
		err = fmt.Errorf("%s: more than %d bytes", name, maxBeside)
	}
	return data, err
}

func hashOf(name string) (string, error) {
	r, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer r.Close() // only read
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// checkSBOM checks the SPDX document beside a file, and names it; "" where it is
// not there.
func checkSBOM(file string, p *attest.Provenance) (string, error) {
	want, ok := p.SBOM()
	if !ok {
		return "", nil
	}
	name := file + attest.SBOMSuffix
	got, err := hashOf(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil && got != want.SHA256 {
		err = fmt.Errorf("%w: %s has the sha256 %s, the statement says %s: it was changed, or is of another file", attest.ErrRefused, name, got, want.SHA256)
	}
	return name, err
}

func (a *app) printProven(p *proven) {
	s := p.Statement
	fmt.Fprintf(a.stdout, "%s: verified\n", p.File)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(a.stdout, "  %-10s %s\n", what, fmt.Sprintf(format, args...))
	}
	line("sha256", "%s", p.SHA256)
	line("is", "%q: %q of %q %q", s.Subjects[0].Name, s.Parameters.Package, s.Parameters.Module, s.Parameters.Version)
	for _, c := range s.Parameters.Cells {
		line("kernel", "%q (%q), cell %s", c.Kernel, c.Arch, c.Key)
	}
	for _, d := range s.Of(attest.RoleSource) {
		line("source", "%q sha256 %s", d.URI, d.SHA256)
	}
	for _, d := range s.Of(attest.RoleHeaders) {
		line("headers", "%q sha256 %s", d.URI, d.SHA256)
	}
	if tools := s.Of(attest.RoleToolchain); len(tools) > 0 {
		line("toolchain", "%d packages (%s); --json lists them", len(tools), compilers(tools))
	}
	for _, r := range s.Tests {
		line("tested", "%q on %q (%q)", r.Verdict, r.Kernel, r.Arch)
	}
	line("builder", "%q, kofarm %q", s.Builder.ID, s.Builder.Version)
	line("signed by", "the key %s", p.Signed)
	if p.SBOM != "" {
		line("SBOM", "%s, as the statement names it", filepath.Base(p.SBOM))
	}
}

// compilers picks what says most about a toolchain.
func compilers(tools []attest.Dependency) string {
	var found []string
	for _, d := range tools {
		base, version, _ := strings.Cut(d.Name, "-")
		if (base == "gcc" || base == "clang") && strings.Trim(version, "0123456789.") == "" {
			found = append(found, fmt.Sprintf("%q", strings.TrimPrefix(d.URI, "pkg:deb/")))
		}
	}
	if len(found) == 0 {
		return fmt.Sprintf("%q and others", tools[0].Name)
	}
	return strings.Join(found, ", ")
}
