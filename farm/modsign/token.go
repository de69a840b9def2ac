package modsign

import (
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"crypto/x509/pkix"
)

// Token signs with a key in a token, by OpenSC's pkcs11-tool. A PKCS#11 module
// is a shared library, which a static program cannot load; pkcs11-tool also
// keeps it out of this process.
type Token struct {
	Module string // the PKCS#11 module: a path
	Token  string // the token's label; "": the first that there is
	Object string // the key's label; "": ID names it
	ID     []byte // the key's id; nil: Object names it
	PIN    []byte // nil: the token is not logged into
	RSA    bool   // the kind of key
	// Tool is the program; "" is pkcs11-tool.
	Tool string
}

// ParseToken reads the URI (RFC 7512) of a key in a token:
//
//	pkcs11:token=LABEL;object=LABEL;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// The module's path is needed, and object or id. A PIN has no place in it, as
// URIs are shown to everybody.
func ParseToken(uri string) (*Token, error) {
	t, err := parseToken(uri)
	if err != nil {
		return nil, fmt.Errorf("%w: PKCS#11 URI: %w", ErrKey, err)
	}
	return t, nil
}

func parseToken(uri string) (*Token, error) {
	rest, ok := strings.CutPrefix(uri, "pkcs11:")
	if !ok {
		return nil, fmt.Errorf("it does not begin with pkcs11")
	}
	path, query, _ := strings.Cut(rest, "?")
	t := &Token{}
	if err := attributes(path, ";", t.attribute); err != nil {
		return nil, err
	}
	if err := attributes(query, "&", t.queryAttribute); err != nil {
		return nil, err
	}
	switch {
	case !filepath.IsAbs(t.Module):
		return nil, fmt.Errorf("want module-path with the absolute path of the PKCS#11 module, as in ?module-path=/usr/lib/softhsm/libsofthsm2.so")
	case t.Object == "" && t.ID == nil:
		return nil, fmt.Errorf("want object or id, which name the key")
	}
	return t, nil
}

// attributes splits one part of a URI.
func attributes(part, separator string, take func(name, value string) error) error {
	if part == "" {
		return nil
	}
	seen := map[string]bool{}
	for a := range strings.SplitSeq(part, separator) {
		name, value, ok := strings.Cut(a, "=")
		value, err := url.PathUnescape(value)
		if err != nil || !ok || value == "" || strings.ContainsRune(value, 0) && name != "id" {
			return fmt.Errorf("attribute %q, want name=value", name)
		}
		if seen[name] {
			return fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		if err := take(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (t *Token) attribute(name, value string) error {
	switch name {
	case "token":
		t.Token = value
	case "object":
		t.Object = value
	case "id":
		t.ID = []byte(value)
	case "type":
		if value != "private" {
			return fmt.Errorf("type %q, want a private key", value)
		}
	default:
		return fmt.Errorf("attribute %q, known are token, object, id and type", name)
	}
	return nil
}

func (t *Token) queryAttribute(name, value string) error {
	switch name {
	case "module-path":
		t.Module = value
	case "pin-value", "pin-source":
		return fmt.Errorf("%s has no place in it; name the PIN's environment variable or file beside it", name)
	default:
		return fmt.Errorf("attribute %q, known is module-path", name)
	}
	return nil
}

// pinVariable hands the PIN to pkcs11-tool, whose command line everybody can see.
const pinVariable = "KOFARM_PKCS11_PIN"

// Sign asks the token.
func (t *Token) Sign(ctx context.Context, digest []byte, hash crypto.Hash) ([]byte, error) {
	tool := t.Tool
	if tool == "" {
		tool = "pkcs11-tool"
	}
	args := []string{tool, "--module", t.Module, "--sign"}
	input := digest
	if t.RSA {
		var err error
		if input, err = digestInfo(digest, hash); err != nil {
			return nil, err
		}
		args = append(args, "--mechanism", "RSA-PKCS")
	} else {
		args = append(args, "--mechanism", "ECDSA", "--signature-format", "sequence")
	}
	// With an equals sign, so that no label is taken for an option.
	if t.Token != "" {
		args = append(args, "--token-label="+t.Token)
	}
	if t.Object != "" {
		args = append(args, "--label="+t.Object)
	}
	if t.ID != nil {
		args = append(args, "--id="+hex.EncodeToString(t.ID))
	}
	var env []string
	if t.PIN != nil {
		args = append(args, "--login", "--pin=env:"+pinVariable)
		env = []string{pinVariable + "=" + string(t.PIN)}
	}
	return run(ctx, args, env, input)
}

// digestInfo is what PKCS #1 v1.5 signs (RFC 8017, 9.2).
func digestInfo(digest []byte, hash crypto.Hash) ([]byte, error) {
	name, err := nameOf(hash)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}{pkix.AlgorithmIdentifier{Algorithm: algorithms[name].oid, Parameters: asn1.NullRawValue}, digest})
}

// GoString and String keep the PIN out of what is printed.
func (t *Token) GoString() string {
	return fmt.Sprintf("PKCS#11 key %q of token %q", t.Object, t.Token)
}
func (t *Token) String() string { return t.GoString() }
