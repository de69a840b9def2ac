package farm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"text/template"

	_ "embed"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/matrix"
)

const (
	signatureRef = "signature" // a module, a key and a hash → the PKCS#7

	signatureType types.MediaType = "application/pkcs7-signature"
	maxSignature                  = 64 << 10
	// signatureFormat numbers the form of signatures: raise it when their bytes change.
	signatureFormat = 1
)

// defaultHash is for kernels that do not say what their own modules are signed
// with; all that check signatures know it.
const defaultHash = modsign.SHA256

// signing signs modules before they are packed. The store holds what was built;
// a signature is made once and stored beside, so that another key changes
// nothing but the packages, and a token that signs differently each time
// changes nothing at all.
type signing struct {
	key     *modsign.Key
	hash    string // a hash's name, or matrix.KernelsHash
	records records
	kernels Kernels

	made map[signedName]*signedModule
}

// signedName is a module of a cell.
type signedName struct {
	cell *Cell
	name string
}

// signedModule is a module with its signature.
type signedModule struct {
	Blob
	trailer []byte
	err     error // why there is none: the cell's or the farm file's fault
}

// SigningError says that what signs modules is out of order. No package is at fault.
type SigningError struct{ Err error }

func (e *SigningError) Error() string { return "signing modules: " + e.Err.Error() }

// Unwrap gives the signer's own error.
func (e *SigningError) Unwrap() error { return e.Err }

// prepare signs all modules that may be packed.
func (s *signing) prepare(ctx context.Context, results []*Result) error {
	if s == nil {
		return nil
	}
	s.made = map[signedName]*signedModule{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for _, r := range results {
		if !r.Packable() {
			continue
		}
		for _, ko := range r.Record.Modules {
			m := &signedModule{}
			s.made[signedName{r.Cell, ko.Name}] = m
			g.Go(func() error {
				err := s.sign(ctx, r, ko, m)
				if err == nil {
					return nil
				}
				if refusal := (&PackError{}); errors.As(packError(ctx, err), &refusal) {
					m.err, err = refusal.Err, nil
				}
				return err
			})
		}
	}
	return g.Wait()
}

func (s *signing) sign(ctx context.Context, r *Result, ko Module, m *signedModule) error {
	plain, trailer, err := s.signed(ctx, r, ko)
	if err != nil {
		return err
	}
	m.trailer = trailer
	h := sha256.New()
	h.Write(plain)
	h.Write(m.trailer)
	m.Blob = Blob{hex.EncodeToString(h.Sum(nil)), int64(len(plain) + len(m.trailer))}
	return nil
}

// addTo adds to a package's key what its modules are signed with. Before
// anything is built that is not known, and the key of no use.
func (s *signing) addTo(key io.Writer, r *Result) {
	if s == nil {
		return
	}
	fmt.Fprintf(key, "signed %d %s %q\n", signatureFormat, s.key.Fingerprint(), s.hash)
	for _, ko := range r.Record.Modules {
		if m := s.made[signedName{r.Cell, ko.Name}]; m != nil {
			fmt.Fprintf(key, "%s %s\n", ko.Name, m.SHA256)
		}
	}
}

// errNotPrepared says that a package holds a module which was not among those to sign.
var errNotPrepared = errors.New("the module was not signed before it was packed")

// module gives a signed module and how to read it.
func (s *signing) module(r *Result, ko Module) (int64, func() (io.ReadCloser, error), error) {
	m := s.made[signedName{r.Cell, ko.Name}]
	if m == nil {
		return 0, nil, errNotPrepared
	}
	if m.err != nil {
		return 0, nil, m.err
	}
	return m.Size, func() (io.ReadCloser, error) {
		plain, err := s.plain(ko)
		return io.NopCloser(io.MultiReader(bytes.NewReader(plain), bytes.NewReader(m.trailer))), err
	}, nil
}

// plain reads a module, without the signature that its own Makefile may have given it.
func (s *signing) plain(ko Module) ([]byte, error) {
	data, err := s.records.module(ko)
	if err != nil {
		return nil, err
	}
	return modsign.Strip(data)
}

// name names a module's signature by all that makes it. The cell's key stands for
// the kernel's headers, which say the hash.
func (s *signing) name(r *Result, ko Module) string {
	return sha256hex(fmt.Appendf(nil, "kofarm signature %d\n%s\n%s\n%s\n%s\n", signatureFormat, s.key.Fingerprint(), s.hash, r.Cell.Key, ko.SHA256))
}

// signed gives a module and the signature that follows it: what is packed, but for
// its compression.
func (s *signing) signed(ctx context.Context, r *Result, ko Module) (plain, trailer []byte, err error) {
	if plain, err = s.plain(ko); err != nil {
		return nil, nil, err
	}
	pkcs7, err := s.signature(ctx, r, ko, plain)
	if err != nil {
		return nil, nil, fmt.Errorf("%s of %s: %w", ko.Name, r.Cell.Name(), err)
	}
	trailer, err = kmod.Trailer(pkcs7)
	return plain, trailer, err
}

// signature finds a module's signature in the store, or makes it.
func (s *signing) signature(ctx context.Context, r *Result, ko Module, plain []byte) ([]byte, error) {
	name := s.name(r, ko)
	if pkcs7, err := s.stored(name); err == nil && s.key.Verify(pkcs7, plain) == nil {
		return pkcs7, nil
	}
	hash, err := s.hashFor(ctx, r)
	if err != nil {
		return nil, err
	}
	pkcs7, err := s.key.Signature(ctx, bytes.NewReader(plain), hash)
	if err != nil {
		return nil, &SigningError{err}
	}
	d, err := s.records.s.Put(pkcs7, signatureType)
	if err != nil {
		return nil, err
	}
	return pkcs7, s.records.s.SetRef(signatureRef, name, d)
}

func (s *signing) stored(name string) ([]byte, error) {
	d, err := s.records.s.Ref(signatureRef, name)
	if err != nil {
		return nil, err
	}
	return s.records.s.Get(d.Digest, maxSignature)
}

// hashFor names the hash for a result's kernel.
func (s *signing) hashFor(ctx context.Context, r *Result) (modsign.Hash, error) {
	if s.hash != matrix.KernelsHash {
		return modsign.ParseHash(s.hash)
	}
	name, err := s.kernels.ModuleHash(ctx, r.Cell.Inputs, r.Cell.Kernel.Release)
	if err != nil {
		return "", err
	}
	hash, err := modsign.ParseHash(cmp.Or(name, string(defaultHash)))
	if err != nil {
		return "", fmt.Errorf("the kernel's CONFIG_MODULE_SIG_HASH: %w; name another one that it knows as output.sign-modules.hash", err)
	}
	return hash, nil
}

// report adds the signed modules to the report. A module that could not be
// signed for its kernel is in no package either.
func (s *signing) report(results []*Result, report *Report) {
	if s == nil {
		return
	}
	for i, r := range results {
		for j := range report.Cells[i].Modules {
			reported := &report.Cells[i].Modules[j]
			if m := s.made[signedName{r.Cell, reported.Name}]; m != nil && m.err == nil {
				reported.Signed = &m.Blob
			}
		}
	}
}

// The files that help to enroll a certificate.
const (
	certificateFile = "mok.der"
	howToFile       = "mok.txt"
)

//go:embed mok.txt
var howTo string

var howToTemplate = template.Must(template.New(howToFile).Parse(howTo))

// enroll writes the certificate and how to make machines trust it. They are no
// part of packages: who installs a package trusts the repository that it is from,
// and a key that comes with what it vouches for proves nothing.
func (c *Collector) enroll() (*SigningReport, error) {
	k := c.ModuleKey
	if k == nil {
		return nil, nil
	}
	var text bytes.Buffer
	if err := howToTemplate.Execute(&text, map[string]string{"File": certificateFile, "Subject": k.Subject(),
		"Fingerprint": k.Fingerprint(), "SHA1": k.SHA1Fingerprint()}); err != nil {
		return nil, err
	}
	r := &SigningReport{Subject: k.Subject(), Fingerprint: k.Fingerprint(), Hash: c.Output.SignModules.Hash}
	for _, f := range []struct {
		name string
		data []byte
		into *File
	}{{certificateFile, k.Certificate(), &r.Certificate}, {howToFile, text.Bytes(), &r.HowTo}} {
		*f.into = File{Path: f.name, Blob: Blob{sha256hex(f.data), int64(len(f.data))}}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.data)), nil }
		if err := c.place(f.name, open, f.into.Blob); err != nil {
			return nil, fmt.Errorf("writing %s: %w", c.Dir, err)
		}
	}
	return r, nil
}
