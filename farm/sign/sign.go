package sign

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the hash of all signatures
	_ "crypto/sha512" // those of other programs' signatures
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// hash is what every apt and rpm in use accepts.
const hash = crypto.SHA256

// config makes the library deterministic: without the random notation that it adds by itself, and with
// the given time. The time is not marked as critical, as gpg does it too, because old rpms (SUSE's
// 4.14, CentOS 7's) refuse signatures with a critical one.
func (k *Key) config(at time.Time) *packet.Config {
	no := false
	return &packet.Config{
		DefaultHash:                           hash,
		Time:                                  func() time.Time { return at },
		NonDeterministicSignaturesViaNotation: &no,
		InsecureAllowAllKeyFlagsWhenMissing:   true, // as gpg does
		InsecureGenerateNonCriticalSignatureCreationTime: true,
	}
}

// when is the time of a signature: not before the key's own signatures, or nobody would accept it.
func (k *Key) when(at time.Time) time.Time {
	if at.Before(k.floor) {
		return k.floor
	}
	return at
}

// ClearSign returns the text, which is UTF-8 and ends with a line feed, with a signature around it, as
// InRelease has it. The time is that of the signature; where the key is younger, the key's.
func (k *Key) ClearSign(text []byte, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, k.signer, k.config(k.when(at)))
	if err != nil {
		return nil, k.fault(err)
	}
	if _, err := w.Write(text); err != nil {
		return nil, k.fault(err)
	}
	if err := w.Close(); err != nil {
		return nil, k.fault(err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// Detach returns a binary signature packet over all that r has, as RPM headers hold it.
func (k *Key) Detach(r io.Reader, at time.Time) ([]byte, error) {
	h := hash.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, k.fault(err)
	}
	sig := &packet.Signature{
		Version: k.signer.Version, SigType: packet.SigTypeBinary, PubKeyAlgo: k.signer.PubKeyAlgo, Hash: hash,
		CreationTime: k.when(at), IssuerKeyId: &k.signer.KeyId,
	}
	if err := sig.Sign(h, k.signer, k.config(k.when(at))); err != nil {
		return nil, k.fault(err)
	}
	var b bytes.Buffer
	if err := sig.Serialize(&b); err != nil {
		return nil, k.fault(err)
	}
	return b.Bytes(), nil
}

// DetachArmored is Detach in ASCII armor, as Release.gpg and repomd.xml.asc have it.
func (k *Key) DetachArmored(r io.Reader, at time.Time) ([]byte, error) {
	sig, err := k.Detach(r, at)
	if err != nil {
		return nil, err
	}
	return armored(openpgp.SignatureType, sig)
}

func (k *Key) fault(err error) error {
	return fmt.Errorf("signing with %s: %w", k.Fingerprint(), err)
}

// Verify returns the text of what ClearSign has made with this key at any time; ErrSignature for
// everything else.
func (k *Key) Verify(signed []byte) ([]byte, error) {
	block, rest := clearsign.Decode(signed)
	if block == nil || !bytes.HasPrefix(signed, []byte("-----BEGIN PGP ")) || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w (%s): it is no clear-signed text", ErrSignature, k.Fingerprint())
	}
	sig, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxKey))
	if err != nil {
		return nil, fmt.Errorf("%w (%s): %w", ErrSignature, k.Fingerprint(), err)
	}
	if err := k.check(block.Bytes, sig); err != nil {
		return nil, err
	}
	return block.Plaintext, nil
}

// VerifyDetached checks what Detach or DetachArmored has made with this key at any time; ErrSignature
// for everything else.
func (k *Key) VerifyDetached(data, sig []byte) error {
	if block, err := armor.Decode(bytes.NewReader(sig)); err == nil {
		if sig, err = io.ReadAll(io.LimitReader(block.Body, maxKey)); err != nil {
			return fmt.Errorf("%w (%s): %w", ErrSignature, k.Fingerprint(), err)
		}
	}
	return k.check(data, sig)
}

func (k *Key) check(data, sig []byte) error {
	keys := openpgp.EntityList{k.entity}
	_, _, err := openpgp.VerifyDetachedSignature(keys, bytes.NewReader(data), bytes.NewReader(sig), k.config(time.Time{}))
	if err != nil {
		return fmt.Errorf("%w (%s): %w", ErrSignature, k.Fingerprint(), err)
	}
	return nil
}
