// Package keyfile reads keys' files and passphrases, for those who sign.
package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxPassphrase is in bytes.
const maxPassphrase = 4 << 10

// ErrPassphrase marks a passphrase or PIN that is missing or wrong.
var ErrPassphrase = errors.New("the key's passphrase")

// Read reads a file of at most limit bytes, which need not be a regular one.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return data, nil
}

// Passphrase reads a passphrase or PIN from the environment variable of that
// name, or from a file, whose first line it is. Every error is an
// [ErrPassphrase], and holds nothing of it.
func Passphrase(env, file string) ([]byte, error) {
	switch {
	case env != "" && file != "":
		return nil, fmt.Errorf("%w: name either an environment variable or a file", ErrPassphrase)
	case env != "":
		value, ok := os.LookupEnv(env)
		if !ok {
			return nil, fmt.Errorf("%w: the environment variable %s is not set", ErrPassphrase, env)
		}
		return []byte(value), nil
	case file != "":
		data, err := Read(file, maxPassphrase)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
		}
		line, _, _ := bytes.Cut(data, []byte("\n"))
		return bytes.TrimSuffix(line, []byte("\r")), nil
	}
	return nil, fmt.Errorf("%w is needed: name an environment variable or a file that holds it", ErrPassphrase)
}
