package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/kofarm/kofarm/farm/modsign"
)

// KeyID is the name of a key in envelopes: the sha256 in hex of the public key
// (PKIX, DER), as `openssl pkey -pubin -outform DER | sha256sum` gives it.
func KeyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// hashFor is the hash that goes with a key: that of the size of an EC key, as
// securesystemslib has it, and SHA-256 for RSA.
func hashFor(public crypto.PublicKey) modsign.Hash {
	if p, ok := public.(*ecdsa.PublicKey); ok {
		switch size := p.Curve.Params().BitSize; {
		case size > 384:
			return modsign.SHA512
		case size > 256:
			return modsign.SHA384
		}
	}
	return modsign.SHA256
}

// signer signs for package dsse.
type signer struct{ key *modsign.Key }

func (s signer) Sign(ctx context.Context, data []byte) ([]byte, error) {
	return s.key.SignRaw(ctx, data, hashFor(s.key.Public()))
}

func (s signer) KeyID() (string, error) { return KeyID(s.key.Public()) }

// verifier verifies for package dsse.
type verifier struct{ public crypto.PublicKey }

func (v verifier) Verify(_ context.Context, data, sig []byte) error {
	return modsign.VerifyRaw(v.public, data, hashFor(v.public), sig)
}

func (v verifier) KeyID() (string, error)   { return KeyID(v.public) }
func (v verifier) Public() crypto.PublicKey { return v.public }

// Sign puts a statement into an envelope, one line of JSON with its line feed.
// An RSA key signs by PKCS #1 v1.5, an EC key gives an ECDSA-Sig-Value in DER.
func Sign(ctx context.Context, key *modsign.Key, statement []byte) ([]byte, error) {
	s, err := dsse.NewEnvelopeSigner(signer{key})
	if err != nil {
		return nil, err
	}
	e, err := s.SignPayload(ctx, StatementType, statement)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(e)
	return append(data, '\n'), err
}

// maxSignatures bounds the signatures of an envelope.
const maxSignatures = 16

// Open returns the statement in an envelope that the key has signed. The error
// is [ErrMalformed] or [ErrRefused].
func Open(ctx context.Context, envelope []byte, public crypto.PublicKey) ([]byte, error) {
	e, err := parseEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	v, err := dsse.NewEnvelopeVerifier(verifier{public})
	if err != nil {
		return nil, err
	}
	_, payload, err := v.VerifyAndDecode(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, whyNot(e, public))
	}
	return payload, nil
}

var errChanged = errors.New("the statement or its signature was changed after it was signed: the trusted key has not signed these bytes")

// whyNot says why no signature is the key's.
func whyNot(e *dsse.Envelope, public crypto.PublicKey) error {
	want, err := KeyID(public)
	if err != nil {
		return err
	}
	for _, s := range e.Signatures {
		if s.KeyID == "" || s.KeyID == want {
			return errChanged
		}
	}
	return fmt.Errorf("it is signed by the key %.64q, the trusted one is %s", e.Signatures[0].KeyID, want)
}

// parseEnvelope reads an envelope as strictly as can be: what two readers might
// read in two ways is no envelope.
func parseEnvelope(data []byte) (*dsse.Envelope, error) {
	malformed := func(err error) (*dsse.Envelope, error) {
		return nil, fmt.Errorf("%w envelope: %w", ErrMalformed, err)
	}
	if err := checkJSON(data, maxStatement*4/3+maxStatement/16); err != nil {
		return malformed(err)
	}
	fields, err := exactFields(data, "payload", "payloadType", "signatures")
	if err != nil {
		return malformed(err)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(fields["signatures"], &list); err != nil {
		return malformed(err)
	}
	if len(list) == 0 || len(list) > maxSignatures {
		return malformed(fmt.Errorf("%d signatures, want 1 to %d", len(list), maxSignatures))
	}
	for _, s := range list {
		if _, err := exactFields(s, "keyid", "sig"); err != nil {
			return malformed(err)
		}
	}
	e := &dsse.Envelope{}
	if err := json.Unmarshal(data, e); err != nil {
		return malformed(err)
	}
	if e.PayloadType != StatementType {
		return malformed(fmt.Errorf("its payload is %.64q, want %s", e.PayloadType, StatementType))
	}
	if err := checkBase64(e.Payload); err != nil {
		return malformed(fmt.Errorf("payload: %w", err))
	}
	for _, s := range e.Signatures {
		if err := checkBase64(s.Sig); err != nil {
			return malformed(fmt.Errorf("signature: %w", err))
		}
	}
	return e, nil
}

// checkBase64 takes the one way to write bytes: decoders skip line feeds, and
// bits beyond the last byte.
func checkBase64(s string) error {
	data, err := base64.StdEncoding.DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(data) != s {
		err = errors.New("it is not canonical base64")
	}
	return err
}
