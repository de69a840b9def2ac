package modsign

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm/kmod"
)

// signFile finds the kernel's own tool.
func signFile(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/linux-kbuild-*/scripts/sign-file")
	if len(found) == 0 {
		t.Fatal("no /usr/lib/linux-kbuild-*/scripts/sign-file; `ci/setup test` installs it")
	}
	return found[0]
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// keyKinds are the keys that kernels take, as openssl req makes them.
var keyKinds = map[string][]string{
	"rsa2048": {"-newkey", "rsa:2048"},
	"rsa4096": {"-newkey", "rsa:4096"},
	"p256":    {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
	"p384":    {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"},
	"p521":    {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"},
}

// newPair makes a key and a certificate.
func newPair(t testing.TB, kind string) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "mok.key"), filepath.Join(dir, "mok.der")
	args := append([]string{"req", "-new", "-x509", "-nodes", "-days", "3650", "-subj", "/O=Example/CN=Module key " + kind,
		"-outform", "DER", "-out", cert, "-keyout", key}, keyKinds[kind]...)
	tool(t, "openssl", args...)
	return key, cert
}

func load(t testing.TB, s Source) *Key {
	t.Helper()
	k, err := Load(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newModule compiles what passes for a module.
func newModule(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	src, obj := filepath.Join(dir, "m.c"), filepath.Join(dir, "m.o")
	const c = `__attribute__((section(".modinfo"), used)) static const char info[] = "license=GPL\0name=example\0vermagic=6.1.0 SMP";`
	if err := os.WriteFile(src, []byte(c), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "gcc", "-c", "-o", obj, src)
	data, err := os.ReadFile(obj)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSameBytesAsSignFile(t *testing.T) {
	module := newModule(t)
	for _, kind := range []string{"rsa2048", "rsa4096"} {
		key, cert := newPair(t, kind)
		k := load(t, Source{Key: key, Certificate: cert})
		for _, hash := range Hashes() {
			t.Run(kind+"/"+string(hash), func(t *testing.T) {
				path := write(t, "m.ko", module)
				tool(t, signFile(t), string(hash), key, cert, path)
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := k.Sign(t.Context(), module, hash)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d bytes, sign-file makes %d others:\n%x\n%x", len(got), len(want), got[len(module):], want[len(module):])
				}
			})
		}
	}
}

// What sign-file makes of an EC key differs each time, but in nothing else than the value.
func TestECAsSignFile(t *testing.T) {
	module := newModule(t)
	for _, kind := range []string{"p256", "p384", "p521"} {
		key, cert := newPair(t, kind)
		k := load(t, Source{Key: key, Certificate: cert})
		for _, hash := range Hashes() {
			t.Run(kind+"/"+string(hash), func(t *testing.T) {
				path := write(t, "m.ko", module)
				tool(t, signFile(t), string(hash), key, cert, path)
				theirs, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := Verify(theirs, k.cert); err != nil {
					t.Errorf("sign-file's: %v", err)
				}
				ours, err := k.Sign(t.Context(), module, hash)
				if err != nil {
					t.Fatal(err)
				}
				again, err := k.Sign(t.Context(), module, hash)
				if err != nil || !bytes.Equal(ours, again) {
					t.Errorf("signed twice, two results (%v)", err)
				}
				if got, want := parse(t, ours), parse(t, theirs); fmt.Sprint(got.ID, got.Digest, got.Algorithm, got.Version) != fmt.Sprint(want.ID, want.Digest, want.Algorithm, want.Version) {
					t.Errorf("got signer %+v, sign-file's is %+v", got, want)
				}
			})
		}
	}
}

func parse(t *testing.T, module []byte) *signerInfo {
	t.Helper()
	sig, _, err := kmod.ReadSignature(bytes.NewReader(module), int64(len(module)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := signer(sig.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenSSLAndModinfoAccept(t *testing.T) {
	module := newModule(t)
	for kind := range keyKinds {
		t.Run(kind, func(t *testing.T) {
			key, cert := newPair(t, kind)
			k := load(t, Source{Key: key, Certificate: cert})
			signed, err := k.Sign(t.Context(), module, SHA512)
			if err != nil {
				t.Fatal(err)
			}
			sig, size, err := kmod.ReadSignature(bytes.NewReader(signed), int64(len(signed)))
			if err != nil {
				t.Fatal(err)
			}
			pem := filepath.Join(t.TempDir(), "mok.pem")
			tool(t, "openssl", "x509", "-in", cert, "-inform", "DER", "-out", pem)
			content, p7 := write(t, "m.ko", signed[:size]), write(t, "m.p7s", sig.Raw)
			verify := []string{"cms", "-verify", "-binary", "-inform", "DER", "-in", p7, "-certfile", pem, "-CAfile", pem, "-purpose", "any", "-out", os.DevNull}
			tool(t, "openssl", append(verify, "-content", content)...)
			changed := bytes.Clone(signed[:size])
			changed[len(changed)/2] ^= 1
			if out, err := exec.Command("openssl", append(verify, "-content", write(t, "m.ko", changed))...).CombinedOutput(); err == nil {
				t.Errorf("openssl verifies a changed module: %s", out)
			}
			path := write(t, "m.ko", signed)
			algo := "rsaEncryption"
			if strings.HasPrefix(kind, "p") {
				algo = "ecdsa-with-SHA512"
			}
			for field, want := range map[string]string{
				"sig_id": "PKCS#7", "signer": "Module key " + kind, "sig_hashalgo": "sha512", "sig_key": sig.KeyID,
			} {
				if got := strings.TrimSpace(tool(t, "modinfo", "-F", field, path)); got != want {
					t.Errorf("modinfo's %s is %q, want %q", field, got, want)
				}
			}
			asn1 := tool(t, "openssl", "asn1parse", "-inform", "DER", "-in", p7)
			if !strings.Contains(asn1, ":"+algo) {
				t.Errorf("no %s in\n%s", algo, asn1)
			}
		})
	}
}

func TestStrip(t *testing.T) {
	module := newModule(t)
	key, cert := newPair(t, "rsa2048")
	k := load(t, Source{Key: key, Certificate: cert})
	once, err := k.Sign(t.Context(), module, SHA256)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := k.Sign(t.Context(), once, SHA256)
	if err != nil || !bytes.Equal(once, twice) {
		t.Errorf("signing what is signed changes it (%v)", err)
	}
	stacked := write(t, "m.ko", once)
	tool(t, signFile(t), "sha256", key, cert, stacked) // signs what is signed, over the signature
	data, err := os.ReadFile(stacked)
	if err != nil {
		t.Fatal(err)
	}
	for name, signed := range map[string][]byte{"unsigned": module, "once": once, "over another": data} {
		got, err := Strip(signed)
		if err != nil || !bytes.Equal(got, module) {
			t.Errorf("%s: stripped to %d bytes, want the %d that were built (%v)", name, len(got), len(module), err)
		}
	}
	many := module
	for range maxSignatures + 1 {
		trailer, err := kmod.Trailer(nil)
		if err != nil {
			t.Fatal(err)
		}
		many = append(many, trailer...)
	}
	if _, err := Strip(many); !errors.Is(err, kmod.ErrFormat) {
		t.Errorf("%d signatures: got error %v", maxSignatures+1, err)
	}
}

func TestRefused(t *testing.T) {
	module := newModule(t)
	key, cert := newPair(t, "rsa2048")
	k := load(t, Source{Key: key, Certificate: cert})
	signed, err := k.Sign(t.Context(), module, SHA256)
	if err != nil {
		t.Fatal(err)
	}
	otherKey, otherCert := newPair(t, "p256")
	other := load(t, Source{Key: otherKey, Certificate: otherCert})
	size := func(n uint32) []byte { // announces another length of the signature
		b := bytes.Clone(signed)
		binary.BigEndian.PutUint32(b[len(b)-28-4:], n)
		return b
	}
	attrs := write(t, "m.ko", module)
	tool(t, "openssl", "x509", "-in", cert, "-inform", "DER", "-out", cert+".pem")
	tool(t, "openssl", "cms", "-sign", "-binary", "-in", attrs, "-signer", cert+".pem", "-inkey", key, "-outform", "DER", "-out", attrs+".p7s", "-nocerts")
	withAttrs, err := os.ReadFile(attrs + ".p7s")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		module []byte
		cert   *Key
		is     error
		want   string
	}{
		{"good", signed, k, nil, ""},
		{"unsigned", module, k, ErrUnsigned, "not signed"},
		{"another certificate", signed, other, ErrSignature, `issuer "CN=Module key rsa2048,O=Example"`},
		{"changed module", append([]byte{signed[0] ^ 1}, signed[1:]...), k, ErrSignature, "changed after it was signed"},
		{"a byte more", append(bytes.Clone(module), append([]byte{0}, signed[len(module):]...)...), k, ErrSignature, "changed after it was signed"},
		{"truncated magic", signed[:len(signed)-1], k, ErrUnsigned, "not signed"},
		{"truncated signature", append(bytes.Clone(signed[:len(module)+20]), signed[len(signed)-40:]...), k, ErrSignature, "no PKCS#7"},
		{"giant length", size(1 << 31), k, kmod.ErrLimit, "2147483648 bytes"},
		{"length over the file", size(60 << 10), k, kmod.ErrFormat, "in a file of"},
		{"a shorter length", size(10), k, ErrSignature, "no PKCS#7"},
		{"a longer length", size(uint32(len(signed)-len(module)-40) + 1), k, ErrSignature, "no PKCS#7"},
		{"another kind", func() []byte { b := bytes.Clone(signed); b[len(b)-40+2] = 1; return b }(), k, ErrSignature, "kind 1"},
		{"signed attributes", trailed(t, module, withAttrs), k, ErrSignature, "signed attributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Verify(c.module, c.cert.cert)
			if !errors.Is(err, c.is) || c.want != "" && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one of %q", err, c.want)
			}
		})
	}
}

func trailed(t *testing.T, module, pkcs7 []byte) []byte {
	t.Helper()
	trailer, err := kmod.Trailer(pkcs7)
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(module), trailer...)
}

// A signature of another hash's name, or of another key under the
// certificate's name, holds for nobody.
func TestForged(t *testing.T) {
	module := []byte("not even a module")
	key, cert := newPair(t, "p256")
	k := load(t, Source{Key: key, Certificate: cert})
	otherKey, otherCert := newPair(t, "p256")
	other := load(t, Source{Key: otherKey, Certificate: otherCert})
	digest := func(h crypto.Hash) []byte { w := h.New(); w.Write(module); return w.Sum(nil) }
	value, err := k.signer.Sign(t.Context(), digest(crypto.SHA256), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.signer.Sign(t.Context(), digest(crypto.SHA256), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for name, forged := range map[string]struct {
		a     algorithm
		value []byte
		ok    bool
	}{
		"good":         {algorithms[SHA256], value, true},
		"another hash": {algorithms[SHA384], value, false},
		"another key":  {algorithms[SHA256], foreign, false},
		"empty":        {algorithms[SHA256], nil, false},
	} {
		der, err := encode(k.cert, forged.a, forged.value)
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifyDetached(der, module, k.cert); errors.Is(err, ErrSignature) == forged.ok {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	key, cert := newPair(f, "p256")
	k := load(f, Source{Key: key, Certificate: cert})
	module := []byte("a module")
	signed, err := k.Sign(f.Context(), module, SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(module)
	f.Add(signed[:len(signed)-1])
	f.Add(append(bytes.Clone(signed), signed[len(module):]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		plain, err := Strip(data)
		if err == nil && !bytes.HasPrefix(data, plain) {
			t.Error("stripped to something else")
		}
		if Verify(data, k.cert) == nil && !bytes.HasPrefix(data, module) {
			t.Errorf("accepts %q", data)
		}
	})
}
