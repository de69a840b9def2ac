package modsign

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/youmark/pkcs8"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/kofarm/kofarm/farm/keyfile"
)

// secret is a secret key in memory.
type secret struct{ crypto.Signer }

// Sign draws no random numbers: PKCS #1 v1.5 needs none, and for ECDSA none
// means that the nonce is as RFC 6979 has it.
func (s secret) Sign(_ context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
	if _, ok := s.Public().(*rsa.PublicKey); ok {
		return s.Signer.Sign(rand.Reader, digest, hash) // the source of random numbers is ignored, but may not be nil
	}
	return s.Signer.Sign(nil, digest, hash)
}

// GoString and String keep the key out of what is printed.
func (s secret) GoString() string { return "secret key" }
func (s secret) String() string   { return s.GoString() }

// belongs tells whether a certificate is the key's.
func (s secret) belongs(cert *x509.Certificate) bool {
	p, ok := s.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && p.Equal(cert.PublicKey)
}

// among finds the key's certificate.
func (s secret) among(certs []*x509.Certificate) (*x509.Certificate, error) {
	for _, cert := range certs {
		if s.belongs(cert) {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("%w: the key's certificate is not beside it: name a file that holds it", ErrKey)
}

// parse reads the one secret key in data, and the certificates beside it.
func (s Source) parse(data []byte) (secret, []*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return s.parseDER(data)
	}
	var key *secret
	var certs []*x509.Certificate
	for rest := data; ; {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return secret{}, nil, fmt.Errorf("%w: a certificate in it is malformed: %w", ErrKey, err)
			}
			certs = append(certs, cert)
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
			if key != nil {
				return secret{}, nil, fmt.Errorf("%w: there are two keys", ErrKey)
			}
			if block.Headers["DEK-Info"] != "" {
				return secret{}, nil, fmt.Errorf("%w: it is encrypted in PEM's old way, which is weak; convert it: openssl pkcs8 -topk8 -in OLD -out NEW", ErrKey)
			}
			k, _, err := s.parseDER(block.Bytes)
			if err != nil {
				return secret{}, nil, err
			}
			key = &k
		}
	}
	if key == nil {
		return secret{}, nil, fmt.Errorf("%w: there is no secret key in it", ErrKey)
	}
	return *key, certs, nil
}

// parseDER reads a key in one of the forms that there are in DER.
func (s Source) parseDER(der []byte) (secret, []*x509.Certificate, error) {
	switch outline(der) {
	case isPKCS12:
		return s.parsePKCS12(der)
	case isEncrypted:
		passphrase, err := keyfile.Passphrase(s.PassphraseEnv, s.PassphraseFile)
		if err != nil {
			return secret{}, nil, err
		}
		defer clear(passphrase)
		key, _, err := pkcs8.ParsePrivateKey(der, passphrase)
		if err != nil {
			return secret{}, nil, fmt.Errorf("%w does not fit, or the key is encrypted in an unknown way: %w", ErrPassphrase, err)
		}
		return newSecret(key)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err == nil {
		return newSecret(key)
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return newSecret(key)
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return newSecret(key)
	}
	return secret{}, nil, fmt.Errorf("%w: it is neither PKCS #8, #1, #12 nor SEC 1, in PEM or DER", ErrKey)
}

func (s Source) parsePKCS12(der []byte) (secret, []*x509.Certificate, error) {
	var passphrase []byte
	if s.PassphraseEnv != "" || s.PassphraseFile != "" {
		var err error
		if passphrase, err = keyfile.Passphrase(s.PassphraseEnv, s.PassphraseFile); err != nil {
			return secret{}, nil, err
		}
		defer clear(passphrase)
	}
	key, cert, more, err := pkcs12.DecodeChain(der, string(passphrase))
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword) && passphrase == nil:
		_, err = keyfile.Passphrase(s.PassphraseEnv, s.PassphraseFile)
		return secret{}, nil, err
	case errors.Is(err, pkcs12.ErrIncorrectPassword), errors.Is(err, pkcs12.ErrDecryption):
		return secret{}, nil, fmt.Errorf("%w does not fit", ErrPassphrase)
	case err != nil:
		return secret{}, nil, fmt.Errorf("%w: reading PKCS #12: %w", ErrKey, err)
	}
	k, _, err := newSecret(key)
	return k, append([]*x509.Certificate{cert}, more...), err
}

func newSecret(key any) (secret, []*x509.Certificate, error) {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return secret{}, nil, fmt.Errorf("%w: kernels take modules signed with RSA and EC, not with %T", ErrKey, key)
	}
	return secret{signer}, nil, usable(signer.Public())
}

// What the outermost fields of a key in DER tell.
const (
	isPlain     = iota
	isEncrypted // an algorithm and a string (RFC 5208, 6)
	isPKCS12    // version 3 (RFC 7292, 4)
)

func outline(der []byte) int {
	var seq []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &seq); err != nil || len(rest) > 0 || len(seq) < 2 {
		return isPlain
	}
	switch {
	case len(seq) == 2 && seq[0].Tag == asn1.TagSequence && seq[1].Tag == asn1.TagOctetString:
		return isEncrypted
	case seq[0].Tag == asn1.TagInteger && len(seq[0].Bytes) == 1 && seq[0].Bytes[0] == 3:
		return isPKCS12
	}
	return isPlain
}
