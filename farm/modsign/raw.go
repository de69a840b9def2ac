package modsign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"

	"github.com/kofarm/kofarm/farm/keyfile"
)

// Public is the certificate's public key: RSA or EC.
func (k *Key) Public() crypto.PublicKey { return k.cert.PublicKey }

// SignRaw signs any content, and returns the bare signature: for an RSA key
// PKCS #1 v1.5, for an EC key an ECDSA-Sig-Value in DER. It is what `openssl dgst
// -sign` makes.
func (k *Key) SignRaw(ctx context.Context, content []byte, hash Hash) ([]byte, error) {
	a, err := hash.algorithm()
	if err != nil {
		return nil, err
	}
	return k.value(ctx, bytes.NewReader(content), a)
}

// value is the bare signature over what r has.
func (k *Key) value(ctx context.Context, r io.Reader, a algorithm) ([]byte, error) {
	h := a.hash.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, fmt.Errorf("reading what is to be signed: %w", err)
	}
	digest := h.Sum(nil)
	value, err := k.signer.Sign(ctx, digest, a.hash)
	if err != nil {
		return nil, fmt.Errorf("signing with the key of %q: %w", k.Subject(), err)
	}
	// A token or a command may sign with another key, or make nonsense.
	if err := check(k.cert.PublicKey, a.hash, digest, value); err != nil {
		return nil, fmt.Errorf("signing with the key of %q: what signs has given a signature of %d bytes that does not fit: %w", k.Subject(), len(value), err)
	}
	return value, nil
}

// VerifyRaw checks what [Key.SignRaw] has made. The error wraps [ErrSignature]
// where the signature is another's or of other content.
func VerifyRaw(public crypto.PublicKey, content []byte, hash Hash, value []byte) error {
	a, err := hash.algorithm()
	if err != nil {
		return err
	}
	if err := usable(public); err != nil {
		return err
	}
	h := a.hash.New()
	h.Write(content)
	if err := check(public, a.hash, h.Sum(nil), value); err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return nil
}

// ReadPublic reads a public key: PKIX in PEM or DER, as `openssl pkey -pubout`
// writes it.
func ReadPublic(path string) (crypto.PublicKey, error) {
	data, err := keyfile.Read(path, maxKey)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	if block := firstBlock(data, "PUBLIC KEY"); block != nil {
		data = block.Bytes
	} else if block, _ := pem.Decode(data); block != nil {
		return nil, fmt.Errorf("%w: public key %s: it holds a %s", ErrKey, path, block.Type)
	}
	public, err := x509.ParsePKIXPublicKey(data)
	if err == nil {
		err = usable(public)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: public key %s: it is no RSA or EC key in PEM or DER: %w", ErrKey, path, err)
	}
	return public, nil
}
