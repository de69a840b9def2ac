// Package modsign signs kernel modules for kernels that load no others (Secure
// Boot): it appends a PKCS#7 as the kernel's scripts/sign-file does, byte for
// byte, checks such signatures, and takes them off again.
//
// Signing is a step after the build. What is stored and compared is the
// unsigned module; a signature can be taken off at any time, and what is left
// is what was signed. With a key that is in a file the same module gives the
// same bytes: PKCS #1 v1.5 draws no random numbers, and ECDSA takes its nonce
// from the hash (RFC 6979). With an EC key in a token or behind a command it
// is up to those; most give another signature each time.
//
// The secret is a [Signer]'s: a key from a file, a token that a PKCS#11 module
// drives, or a command. All of them see nothing of a module but its hash.
package modsign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512 for signatures
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/keyfile"
	"github.com/kofarm/kofarm/farm/kmod"
)

// Errors that a caller may branch on.
var (
	// ErrKey marks a key or a certificate that cannot sign modules.
	ErrKey = errors.New("no usable key")
	// ErrPassphrase marks a passphrase or PIN that is missing or wrong.
	ErrPassphrase = keyfile.ErrPassphrase
	// ErrSignature marks a module that the certificate's key has not signed so.
	ErrSignature = errors.New("not signed by this certificate's key")
	// ErrUnsigned marks a module without a signature.
	ErrUnsigned = errors.New("the module is not signed")
)

// Signer signs hashes with a secret key.
type Signer interface {
	// Sign returns the signature over a digest that was made with the hash:
	// for an RSA key PKCS #1 v1.5, for an EC key an ECDSA-Sig-Value in DER.
	Sign(ctx context.Context, digest []byte, hash crypto.Hash) ([]byte, error)
}

// Hash names a hash as the kernel does (CONFIG_MODULE_SIG_HASH).
type Hash string

// The hashes that modules are signed with here.
const (
	SHA224 Hash = "sha224"
	SHA256 Hash = "sha256"
	SHA384 Hash = "sha384"
	SHA512 Hash = "sha512"
)

// Hashes lists the hashes.
func Hashes() []Hash { return []Hash{SHA224, SHA256, SHA384, SHA512} }

// ParseHash takes a hash by the kernel's name.
func ParseHash(name string) (Hash, error) {
	if !slices.Contains(Hashes(), Hash(name)) {
		return "", fmt.Errorf("hash %q, modules can be signed with %q", name, Hashes())
	}
	return Hash(name), nil
}

// algorithm gives what a hash is in Go and in CMS.
func (h Hash) algorithm() (algorithm, error) {
	if a, ok := algorithms[h]; ok {
		return a, nil
	}
	return algorithm{}, fmt.Errorf("hash %q, modules can be signed with %q", string(h), Hashes())
}

// Key signs modules in the name of a certificate. It is safe for concurrent use
// where its Signer is.
type Key struct {
	cert   *x509.Certificate
	signer Signer
}

// New makes a key of a certificate and of what signs for it.
func New(cert *x509.Certificate, signer Signer) (*Key, error) {
	if err := usable(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate of %q: %w", cert.Subject, err)
	}
	return &Key{cert, signer}, nil
}

// usable takes the keys that kernels know: RSA, and EC on NIST's curves
// (crypto/ecdsa.c; P-521 since 6.10).
func usable(public crypto.PublicKey) error {
	switch p := public.(type) {
	case *rsa.PublicKey:
		if n := p.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("%w: RSA of %d bits, want 2048 to 8192", ErrKey, n)
		}
		return nil
	case *ecdsa.PublicKey:
		if slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, p.Curve) {
			return nil
		}
		return fmt.Errorf("%w: EC on curve %s, kernels know P-256, P-384 and P-521", ErrKey, p.Curve.Params().Name)
	}
	return fmt.Errorf("%w: kernels take modules signed with RSA and EC, not with %T", ErrKey, public)
}

// Certificate is the certificate in DER, as mokutil imports it.
func (k *Key) Certificate() []byte { return slices.Clone(k.cert.Raw) }

// Subject is the certificate's.
func (k *Key) Subject() string { return k.cert.Subject.String() }

// Fingerprint is the sha256 of the certificate in DER, in hex.
func (k *Key) Fingerprint() string { return fingerprint(k.cert) }

// SHA1Fingerprint is the sha1 of the certificate in DER, in hex: what MokManager
// and mokutil show. It is for people to compare, and nothing depends on it.
func (k *Key) SHA1Fingerprint() string {
	sum := sha1.Sum(k.cert.Raw)
	return hex.EncodeToString(sum[:])
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// String shows the certificate's subject and fingerprint, and nothing of the secret.
func (k *Key) String() string {
	return fmt.Sprintf("module signing key of %q (certificate sha256 %s)", k.Subject(), k.Fingerprint())
}

// GoString is String.
func (k *Key) GoString() string { return k.String() }

// LogValue is String.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Signature signs the content of a module, and returns the PKCS#7 in DER.
func (k *Key) Signature(ctx context.Context, module io.Reader, hash Hash) ([]byte, error) {
	a, err := hash.algorithm()
	if err != nil {
		return nil, err
	}
	value, err := k.value(ctx, module, a)
	if err != nil {
		return nil, err
	}
	return encode(k.cert, a, value)
}

// Sign returns a plain module with a signature in place of those that it has.
func (k *Key) Sign(ctx context.Context, module []byte, hash Hash) ([]byte, error) {
	plain, err := Strip(module)
	if err != nil {
		return nil, err
	}
	sig, err := k.Signature(ctx, bytes.NewReader(plain), hash)
	if err != nil {
		return nil, err
	}
	trailer, err := kmod.Trailer(sig)
	if err != nil {
		return nil, err
	}
	return slices.Concat(plain, trailer), nil
}

// Verify checks a signature that Signature has made; see [VerifyDetached].
func (k *Key) Verify(pkcs7, module []byte) error { return VerifyDetached(pkcs7, module, k.cert) }

// Check is [Verify] with the key's certificate.
func (k *Key) Check(module []byte) error { return Verify(module, k.cert) }

// trial is what Try signs.
const trial = "kofarm: is the key there?"

// Try finds out whether the key signs, before anything depends on it: it signs
// the hash of a fixed text.
func (k *Key) Try(ctx context.Context) error {
	_, err := k.Signature(ctx, strings.NewReader(trial), SHA256)
	return err
}
