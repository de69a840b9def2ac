package apt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Limits on OpenPGP input.
const (
	maxKeyring    = 16 << 20 // Debian's has 56 kB
	maxSignatures = 32       // of one file; Debian's have up to three
)

// Why an InRelease is refused. The error around it names the suite and what can be done.
var (
	ErrUnsigned     = errors.New("not signed")
	ErrUnknownKey   = errors.New("signed by an unknown key")
	ErrBadSignature = errors.New("wrongly signed")
	ErrKeyExpired   = errors.New("signed by an expired key")
	ErrExpired      = errors.New("expired")
	ErrFuture       = errors.New("dated in the future")
	ErrWrongSuite   = errors.New("of another suite")
)

// ReleaseError says why the InRelease of a suite is refused and what accepts it, if anything does.
type ReleaseError struct {
	Distribution, Suite string
	Err                 error  // one of the sentinels, with details
	Advice              string // what the user can do
}

func (e *ReleaseError) Error() string {
	return fmt.Sprintf("InRelease of suite %s (%s) is %v; %s", e.Suite, e.Distribution, e.Err, e.Advice)
}

// Unwrap returns the cause.
func (e *ReleaseError) Unwrap() error { return e.Err }

// releaseError adds the advice that fits the sentinel in err.
func (s Source) releaseError(err error) error {
	advice := "another mirror may have a sound one"
	option := "archives." + s.Distribution
	switch {
	case errors.Is(err, ErrExpired):
		advice = fmt.Sprintf("the mirror may hold back updates; if you want this old state, set %s.allow-expired: [%s]", option, s.Suite)
	case errors.Is(err, ErrFuture):
		advice = "check this machine's clock"
	case errors.Is(err, ErrUnknownKey), errors.Is(err, ErrKeyExpired):
		advice = fmt.Sprintf("the keyring is %s; if another one has the archive's current key, set %s.keyring: FILE", s.Keyring, option)
	case errors.Is(err, ErrUnsigned):
		advice = fmt.Sprintf("check %s.mirrors: they should be those of an archive that signs", option)
	case errors.Is(err, ErrBadSignature):
		advice = "the mirror or something on the way to it changed the file; no option accepts this"
	}
	return &ReleaseError{Distribution: s.Distribution, Suite: s.Suite, Err: err, Advice: advice}
}

// checkRelease verifies an InRelease and returns what it says. Errors are *ReleaseError, except
// those of a signed file that cannot be read.
func (s Source) checkRelease(data []byte, keys openpgp.EntityList) (*Release, error) {
	text, err := verify(data, keys, s.Now)
	if err != nil {
		return nil, s.releaseError(err)
	}
	r, err := parseRelease(text)
	if err != nil {
		return nil, fmt.Errorf("InRelease of suite %s (%s): %w", s.Suite, s.Distribution, err)
	}
	if err := s.checkSuite(r); err != nil {
		return nil, s.releaseError(err)
	}
	if err := s.checkDates(r); err != nil {
		return nil, s.releaseError(err)
	}
	return r, nil
}

// checkSuite refuses a file that was signed for another suite: with the same keyring its signature
// is good. Archives that name neither suite nor codename cannot be checked, for apt neither.
func (s Source) checkSuite(r *Release) error {
	if r.Suite == "" && r.Codename == "" || s.Suite == r.Suite || s.Suite == r.Codename {
		return nil
	}
	return fmt.Errorf("%w: it is for suite %q, codename %q", ErrWrongSuite, r.Suite, r.Codename)
}

func (s Source) checkDates(r *Release) error {
	if r.Date.After(s.Now.Add(maxFuture)) {
		return fmt.Errorf("%w: its Date is %s, and here it is %s", ErrFuture, stamp(r.Date), stamp(s.Now))
	}
	if !s.AllowExpired && !r.ValidUntil.IsZero() && s.Now.After(r.ValidUntil) {
		return fmt.Errorf("%w: it was valid until %s", ErrExpired, stamp(r.ValidUntil))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// readKeyring reads public keys, binary or armored.
func readKeyring(path string) (openpgp.EntityList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxKeyring+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyring {
		return nil, fmt.Errorf("%s: %w of %d bytes", path, ErrLimit, maxKeyring)
	}
	keys, err := parseKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

var armorBegin = []byte("-----BEGIN PGP ")

func parseKeyring(data []byte) (openpgp.EntityList, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(data), armorBegin) {
		return openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	var all openpgp.EntityList
	for _, block := range bytes.SplitAfter(data, []byte("-----END PGP PUBLIC KEY BLOCK-----")) {
		if !bytes.Contains(block, armorBegin) {
			continue
		}
		keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(block))
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
	return all, nil
}

// verify returns the signed text of a clear-signed file that one key of the keyring signed. Other
// signatures do not matter: archives sign with old and new keys at once.
func verify(data []byte, keys openpgp.EntityList, now time.Time) ([]byte, error) {
	block, rest := clearsign.Decode(data)
	if block == nil || !bytes.HasPrefix(data, armorBegin) {
		return nil, fmt.Errorf("%w: it is no clear-signed text", ErrUnsigned)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: text follows the signature", ErrBadSignature)
	}
	sigs, err := readSignatures(block.ArmoredSignature)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, sig := range sigs {
		err := verifyOne(block.Bytes, sig, keys, now)
		if err == nil {
			return block.Plaintext, nil
		}
		faults = append(faults, err)
	}
	return nil, summary(faults)
}

// readSignatures skips packets that the library does not know, as those of newer algorithms.
func readSignatures(block *armor.Block) ([]*packet.Signature, error) {
	var sigs []*packet.Signature
	packets := packet.NewReader(block.Body)
	for range maxSignatures {
		p, err := packets.Next()
		if err == io.EOF {
			break
		}
		if _, unknown := errors.AsType[pgperrors.UnsupportedError](err); unknown {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the signature cannot be read: %w", ErrBadSignature, err)
		}
		if sig, ok := p.(*packet.Signature); ok && sig.IssuerKeyId != nil {
			sigs = append(sigs, sig)
		}
	}
	if len(sigs) == 0 {
		return nil, fmt.Errorf("%w: the signature block has no known signature", ErrUnsigned)
	}
	return sigs, nil
}

// verifyOne checks one signature with the keys that have its issuer's id; there may be several
// copies of a key, of which the newer one has a later expiry.
func verifyOne(signed []byte, sig *packet.Signature, keys openpgp.EntityList, now time.Time) error {
	id := *sig.IssuerKeyId
	holders := keys.EntitiesById(id)
	if len(holders) == 0 {
		return fmt.Errorf("%w %016X", ErrUnknownKey, id)
	}
	var raw bytes.Buffer
	if err := sig.Serialize(&raw); err != nil {
		return fmt.Errorf("%w by key %016X: %w", ErrBadSignature, id, err)
	}
	config := &packet.Config{Time: func() time.Time { return now }}
	var fault error
	for _, holder := range holders {
		_, _, err := openpgp.VerifyDetachedSignature(openpgp.EntityList{holder}, bytes.NewReader(signed), bytes.NewReader(raw.Bytes()), config)
		if err == nil {
			err = usable(holder, id, now, config)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, pgperrors.ErrKeyExpired):
			fault = fmt.Errorf("%w %016X", ErrKeyExpired, id)
		default:
			fault = fmt.Errorf("%w by key %016X: %w", ErrBadSignature, id, err)
		}
	}
	return fault
}

// usable says whether the key may be used now. The library asks only whether it was valid when it
// signed; gpgv, and with it apt, does not take a signature of a key that has expired since
// (EXPKEYSIG), because whoever gets hold of such a key can sign with any date.
func usable(holder *openpgp.Entity, id uint64, now time.Time, config *packet.Config) error {
	if _, err := holder.VerifyPrimaryKey(now, config); err != nil {
		return err
	}
	for _, sub := range holder.Subkeys {
		if sub.PublicKey.KeyId == id {
			_, err := sub.Verify(now, config)
			return err
		}
	}
	return nil
}

// summary makes one error of those of all signatures: the worst one that a known key has, else all
// unknown keys.
func summary(faults []error) error {
	for _, worst := range []error{ErrBadSignature, ErrKeyExpired} {
		if i := slices.IndexFunc(faults, func(err error) bool { return errors.Is(err, worst) }); i >= 0 {
			return faults[i]
		}
	}
	ids := make([]string, len(faults))
	for i, err := range faults {
		ids[i] = strings.TrimPrefix(err.Error(), ErrUnknownKey.Error()+" ")
	}
	return fmt.Errorf("%w: %s", ErrUnknownKey, strings.Join(ids, ", "))
}
