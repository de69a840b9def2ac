package modsign

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Limits on a program that signs.
const (
	maxValue   = 4 << 10         // of a signature's value in bytes; RSA-8192 has 1 KiB
	maxMessage = 2 << 10         // of what it says on stderr
	signTime   = 5 * time.Minute // somebody may have to touch a token
	endTime    = 5 * time.Second // from its end to that of what it has started
)

// Command signs by running a program, once for each signature:
//
//   - its standard input is the hash, as bytes, and nothing else of a module;
//   - KOFARM_SIGN_HASH says which hash it is (sha256), KOFARM_SIGN_KEY the kind
//     of the certificate's key, rsa or ec;
//   - its standard output is the signature, as bytes: for rsa PKCS #1 v1.5 (with
//     the DigestInfo of the hash), for ec an ECDSA-Sig-Value in DER;
//   - it exits with 0, or says on standard error why not.
//
// `openssl pkeyutl -sign -inkey F -pkeyopt digest:sha256` is such a program.
// What it gives is checked with the certificate before it is used.
type Command struct {
	Args []string // the program and its arguments; no shell sees them
	RSA  bool     // the kind of the certificate's key
}

// Sign runs the program.
func (c *Command) Sign(ctx context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
	name, err := nameOf(hash)
	if err != nil {
		return nil, err
	}
	kind := "ec"
	if c.RSA {
		kind = "rsa"
	}
	return run(ctx, c.Args, []string{"KOFARM_SIGN_HASH=" + string(name), "KOFARM_SIGN_KEY=" + kind}, digest)
}

func nameOf(hash crypto.Hash) (Hash, error) {
	for name, a := range algorithms {
		if a.hash == hash {
			return name, nil
		}
	}
	return "", fmt.Errorf("hash %s, modules can be signed with %q", hash, Hashes())
}

// run runs a program that signs what it reads.
func run(ctx context.Context, args, env []string, input []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = endTime
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(input)
	out, said := &bounded{limit: maxValue}, &bounded{limit: maxMessage}
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", args[0], context.Cause(ctx))
	case err != nil:
		return nil, &ProgramError{args[0], strings.TrimSpace(printable(said.buf.String())), err}
	case out.over:
		return nil, fmt.Errorf("%s: it has written more than %d bytes, which is no signature", args[0], maxValue)
	case out.buf.Len() == 0:
		return nil, &ProgramError{args[0], strings.TrimSpace(printable(said.buf.String())), errors.New("it has written no signature")}
	}
	return out.buf.Bytes(), nil
}

// ProgramError says that a program has not signed.
type ProgramError struct {
	Program string
	Said    string // on its standard error, what of it can be printed
	Err     error
}

func (e *ProgramError) Error() string {
	if e.Said == "" {
		return fmt.Sprintf("%s: %v", e.Program, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, e.Said)
}

// Unwrap gives how the program ended.
func (e *ProgramError) Unwrap() error { return e.Err }

// printable keeps a terminal safe from what a program says.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && r != 0xfffd {
			return r
		}
		return -1
	}, s)
}

// bounded keeps the first bytes of what is written to it.
type bounded struct {
	buf   bytes.Buffer
	limit int
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.buf.Len())
	b.over = b.over || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}
