// Package sign signs with the user's OpenPGP key: what repositories need, and the headers of RPMs.
//
// Signatures are deterministic. RSA (PKCS #1 v1.5) and EdDSA draw no random numbers, and the time of a
// signature is an argument; so the same key, text and time give the same bytes.
package sign

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/farm/keyfile"
)

// Errors that a caller may branch on.
var (
	ErrNoKey      = errors.New("no usable secret key")
	ErrPassphrase = keyfile.ErrPassphrase
	ErrSignature  = errors.New("not signed by this key")
)

// Algorithm is that of a key.
type Algorithm int

// The algorithms: those that apt, dnf and zypper of all supported releases verify.
const (
	RSA Algorithm = iota + 1
	EdDSA
)

// Key is a secret key that is ready to sign. It is safe for concurrent use.
type Key struct {
	entity *openpgp.Entity
	signer *packet.PrivateKey // the primary key or a subkey
	floor  time.Time          // the earliest time of a signature
	until  time.Time          // zero: forever
}

// newKey chooses the signing key of an entity. The choice depends on nothing but the key's file, not
// on the time of day.
func newKey(e *openpgp.Entity) (*Key, error) {
	k := &Key{entity: e, floor: latest(e)}
	var fault error
	for _, secret := range candidates(e) {
		chosen, err := k.usable(secret)
		if err == nil {
			k.signer, k.until = secret, k.expiry(chosen)
			return k, nil
		}
		fault = errors.Join(fault, err)
	}
	if fault == nil {
		fault = errors.New("it has only the public part, or the secret part is elsewhere (a card, another file)")
	}
	return nil, fmt.Errorf("%w in %s: %w", ErrNoKey, fingerprint(e.PrimaryKey), fault)
}

// candidates lists the keys whose secret part is there: as gpg has it, the newest subkey comes first,
// and the primary key last.
func candidates(e *openpgp.Entity) []*packet.PrivateKey {
	var all []*packet.PrivateKey
	for _, s := range e.Subkeys {
		all = append(all, s.PrivateKey)
	}
	slices.SortStableFunc(all, func(a, b *packet.PrivateKey) int {
		if a == nil || b == nil {
			return 0
		}
		return b.CreationTime.Compare(a.CreationTime)
	})
	all = append(all, e.PrivateKey)
	return slices.DeleteFunc(all, func(p *packet.PrivateKey) bool { return p == nil || p.Dummy() })
}

// latest is the time of the newest of a key's signatures on itself. Verifiers ask whether the key was
// valid at the time of a signature; some (Sequoia in rpm from 4.20 on) look for the key's own
// signature of that time, and there may be only the newest.
func latest(e *openpgp.Entity) time.Time {
	at := e.PrimaryKey.CreationTime
	later := func(sigs []*packet.VerifiableSignature) {
		for _, s := range sigs {
			if s.Packet.CreationTime.After(at) {
				at = s.Packet.CreationTime
			}
		}
	}
	later(e.DirectSignatures)
	for _, id := range e.Identities {
		later(id.SelfCertifications)
	}
	for _, s := range e.Subkeys {
		later(s.Bindings)
		if s.PublicKey.CreationTime.After(at) {
			at = s.PublicKey.CreationTime
		}
	}
	return at
}

// usable says why a key cannot sign.
func (k *Key) usable(secret *packet.PrivateKey) (openpgp.Key, error) {
	name := fingerprint(&secret.PublicKey)
	if secret.Version != 4 || algorithm(&secret.PublicKey) == 0 {
		return openpgp.Key{}, fmt.Errorf("%s: version 4 and RSA or EdDSA (ed25519) are what apt and rpm verify; this one is of version %d and algorithm %d",
			name, secret.Version, secret.PubKeyAlgo)
	}
	chosen, ok := k.entity.SigningKeyById(k.floor, secret.KeyId, k.config(k.floor))
	if !ok {
		return openpgp.Key{}, fmt.Errorf("%s: expired, revoked, too short or not made for signing", name)
	}
	return chosen, nil
}

func algorithm(p *packet.PublicKey) Algorithm {
	switch p.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		return RSA
	case packet.PubKeyAlgoEdDSA:
		return EdDSA
	}
	return 0
}

// expiry is the time from which verifiers refuse the chosen key.
func (k *Key) expiry(chosen openpgp.Key) time.Time {
	primary := ends(k.entity.PrimaryKey, chosen.PrimarySelfSignature)
	own := ends(chosen.PublicKey, chosen.SelfSignature)
	if primary.IsZero() || !own.IsZero() && own.Before(primary) {
		return own
	}
	return primary
}

func ends(p *packet.PublicKey, self *packet.Signature) time.Time {
	if self == nil || self.KeyLifetimeSecs == nil || *self.KeyLifetimeSecs == 0 {
		return time.Time{}
	}
	return p.CreationTime.Add(time.Duration(*self.KeyLifetimeSecs) * time.Second).UTC()
}

// Fingerprint is that of the primary key, in upper-case hex.
func (k *Key) Fingerprint() string { return fingerprint(k.entity.PrimaryKey) }

func fingerprint(p *packet.PublicKey) string { return fmt.Sprintf("%X", p.Fingerprint) }

// Algorithm is that of the key that signs.
func (k *Key) Algorithm() Algorithm { return algorithm(&k.signer.PublicKey) }

// Expires is the time from which verifiers refuse the key and all that it has signed; zero where it
// does not expire.
func (k *Key) Expires() time.Time { return k.until }

// Name is the key's user id; where it has several, the first in alphabetical order.
func (k *Key) Name() string {
	names := make([]string, 0, len(k.entity.Identities))
	for name := range k.entity.Identities {
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// String, GoString and LogValue show the fingerprint and nothing of the secret.
func (k *Key) String() string { return "OpenPGP key " + k.Fingerprint() }

// GoString is String.
func (k *Key) GoString() string { return k.String() }

// LogValue is String.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Public is the public key for apt (signed-by=….gpg) and gpgv.
func (k *Key) Public() ([]byte, error) {
	var b bytes.Buffer
	for _, p := range k.publicPackets() {
		if err := p.Serialize(&b); err != nil {
			return nil, fmt.Errorf("writing the public key %s: %w", k.Fingerprint(), err)
		}
	}
	return b.Bytes(), nil
}

// PublicArmored is the public key for apt (signed-by=….asc), rpm --import and gpgkey=.
func (k *Key) PublicArmored() ([]byte, error) {
	data, err := k.Public()
	if err != nil {
		return nil, err
	}
	return armored(openpgp.PublicKeyType, data)
}

// armored adds the checksum, without which rpm 4.18 imports no key.
func armored(kind string, data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.EncodeWithChecksumOption(&b, kind, nil, true)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

type serializer interface{ Serialize(w io.Writer) error }

// publicPackets lists the key in an order that does not change: the library keeps user ids in a map.
func (k *Key) publicPackets() []serializer {
	e := k.entity
	all := []serializer{e.PrimaryKey}
	add := func(sigs []*packet.VerifiableSignature) {
		for _, s := range sigs {
			all = append(all, s.Packet)
		}
	}
	add(e.Revocations)
	add(e.DirectSignatures)
	ids := make([]*openpgp.Identity, 0, len(e.Identities))
	for _, id := range e.Identities {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b *openpgp.Identity) int {
		return cmp.Or(-cmp.Compare(primaryID(a), primaryID(b)), strings.Compare(a.Name, b.Name))
	})
	for _, id := range ids {
		all = append(all, id.UserId)
		add(id.Revocations)
		add(id.SelfCertifications)
	}
	for _, s := range e.Subkeys {
		all = append(all, s.PublicKey)
		add(s.Revocations)
		add(s.Bindings)
	}
	return all
}

// primaryID is 1 for the user id that the owner has marked as the main one.
func primaryID(id *openpgp.Identity) int {
	for _, s := range id.SelfCertifications {
		if p := s.Packet.IsPrimaryId; p != nil && *p {
			return 1
		}
	}
	return 0
}
