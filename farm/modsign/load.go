package modsign

import (
	"cmp"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/kofarm/kofarm/farm/keyfile"
)

// maxKey is in bytes; RSA-8192 with a chain of certificates takes some 20 kB.
const maxKey = 1 << 20

// Source says where a key and its certificate are. Exactly one of Key, KeyEnv,
// PKCS11 and Command is set.
type Source struct {
	// Key is a file with the secret key: PEM or DER of PKCS #8, encrypted or
	// not, PKCS #1 or SEC 1, or PKCS #12. KeyEnv is the name of an environment
	// variable that holds the same, PEM only.
	Key, KeyEnv string
	// PKCS11 is the URI (RFC 7512) of a key in a token, see [ParseToken].
	PKCS11 string
	// Command is a program and its arguments that sign hashes, see [Command].
	Command []string

	// Certificate is a file with the X.509 certificate, PEM or DER. It may be
	// left out where the key's file holds it too.
	Certificate string

	// The passphrase or PIN, where the key has one: the name of an environment
	// variable that holds it, or a path whose first line it is (/dev/fd/3 for an
	// open file).
	PassphraseEnv, PassphraseFile string

	// Use is how errors name the key; "" for "module signing key".
	Use string
}

// Load reads a certificate and the key that goes with it, or finds out how to
// reach that. A token or a command is not asked before something is to be
// signed. Neither a key nor its passphrase is part of an error.
func Load(s Source) (*Key, error) {
	k, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmp.Or(s.Use, "module signing key"), err)
	}
	return k, nil
}

func (s Source) load() (*Key, error) {
	given := 0
	for _, is := range []bool{s.Key != "", s.KeyEnv != "", s.PKCS11 != "", len(s.Command) > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, fmt.Errorf("%w: name one of a key's file, an environment variable that holds it, a PKCS#11 URI and a command", ErrKey)
	}
	var cert *x509.Certificate
	var err error
	if s.Certificate != "" {
		if cert, err = ReadCertificate(s.Certificate); err != nil {
			return nil, err
		}
	}
	if s.Key != "" || s.KeyEnv != "" {
		return s.loadSecret(cert)
	}
	if cert == nil {
		return nil, fmt.Errorf("%w: the certificate of the key is needed", ErrKey)
	}
	if len(s.Command) > 0 {
		return New(cert, &Command{Args: s.Command, RSA: isRSA(cert)})
	}
	t, err := ParseToken(s.PKCS11)
	if err != nil {
		return nil, err
	}
	if s.PassphraseEnv != "" || s.PassphraseFile != "" {
		if t.PIN, err = keyfile.Passphrase(s.PassphraseEnv, s.PassphraseFile); err != nil {
			return nil, err
		}
	}
	t.RSA = isRSA(cert)
	return New(cert, t)
}

func isRSA(cert *x509.Certificate) bool {
	_, ok := cert.PublicKey.(*rsa.PublicKey)
	return ok
}

// loadSecret reads a key that is in a file or a variable.
func (s Source) loadSecret(cert *x509.Certificate) (*Key, error) {
	data, from, err := s.read()
	if err != nil {
		return nil, err
	}
	defer clear(data)
	secret, own, err := s.parse(data)
	if err == nil && cert == nil {
		cert, err = secret.among(own)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	if !secret.belongs(cert) {
		return nil, fmt.Errorf("%w: the key in %s is not that of the certificate of %q", ErrKey, from, cert.Subject)
	}
	return New(cert, secret)
}

func (s Source) read() (data []byte, from string, err error) {
	if s.Key != "" {
		data, err = keyfile.Read(s.Key, maxKey)
		return data, s.Key, err
	}
	value := os.Getenv(s.KeyEnv)
	if value == "" {
		return nil, "", fmt.Errorf("%w: the environment variable %s is not set", ErrKey, s.KeyEnv)
	}
	return []byte(value), "$" + s.KeyEnv, nil
}

// ReadCertificate reads a certificate, PEM or DER; of several in a PEM the first.
func ReadCertificate(path string) (*x509.Certificate, error) {
	data, err := keyfile.Read(path, maxKey)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if block := firstBlock(data, "CERTIFICATE"); block != nil {
		data = block.Bytes
	}
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate %s: it is no X.509 in PEM or DER: %w", ErrKey, path, err)
	}
	return cert, nil
}

func firstBlock(data []byte, kind string) *pem.Block {
	for {
		block, rest := pem.Decode(data)
		if block == nil || block.Type == kind {
			return block
		}
		data = rest
	}
}
