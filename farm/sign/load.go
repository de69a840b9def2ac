package sign

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/farm/keyfile"
)

// maxKey is in bytes; a key with hundreds of certifications has some 100 kB.
const maxKey = 1 << 20

// Source says where a secret key and its passphrase are. Exactly one of File and Env names the key,
// which is armored or binary, as `gpg --export-secret-keys` writes it.
type Source struct {
	File string // a path
	Env  string // the name of an environment variable that holds the key itself

	// The passphrase, where the key has one: the name of an environment variable that holds it, or a
	// path whose first line it is (/dev/fd/3 for an open file).
	PassphraseEnv  string
	PassphraseFile string
}

// Load reads a key. Neither it nor its passphrase is part of an error.
func Load(s Source) (*Key, error) {
	data, from, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("reading the signing key: %w", err)
	}
	k, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("signing key from %s: %w", from, err)
	}
	if err := k.unlock(s); err != nil {
		return nil, fmt.Errorf("signing key from %s: %w", from, err)
	}
	return k, nil
}

// read returns the key's bytes and where they are from.
func (s Source) read() (data []byte, from string, err error) {
	switch {
	case (s.File == "") == (s.Env == ""):
		return nil, "", errors.New("name either a file or an environment variable")
	case s.File != "":
		data, err = keyfile.Read(s.File, maxKey)
		return data, s.File, err
	}
	value, ok := os.LookupEnv(s.Env)
	if !ok || value == "" {
		return nil, "", fmt.Errorf("the environment variable %s is not set", s.Env)
	}
	return []byte(value), "$" + s.Env, nil
}

// parse reads the one key in data.
func parse(data []byte) (*Key, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN PGP ")) {
		read = openpgp.ReadArmoredKeyRing
		data = bytes.TrimSpace(data)
	}
	keys, err := read(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: this is not an OpenPGP key: %w", ErrNoKey, err)
	}
	if len(keys) != 1 {
		return nil, fmt.Errorf("%w: there are %d keys; export the one to sign with: gpg --export-secret-keys FINGERPRINT", ErrNoKey, len(keys))
	}
	return newKey(keys[0])
}

// unlock decrypts the secret part of the key that signs.
func (k *Key) unlock(s Source) error {
	if !k.signer.Encrypted {
		return nil
	}
	passphrase, err := keyfile.Passphrase(s.PassphraseEnv, s.PassphraseFile)
	if err != nil {
		return err
	}
	defer clear(passphrase)
	if err := k.signer.Decrypt(passphrase); err != nil {
		return fmt.Errorf("%w does not fit (%s)", ErrPassphrase, fingerprint(&k.signer.PublicKey))
	}
	return nil
}
