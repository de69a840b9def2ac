package modsign

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const passphrase = "correct horse"

// forms writes one key in every form that Load knows.
func forms(t *testing.T, kind string) (files map[string]string, cert string) {
	t.Helper()
	key, cert := newPair(t, kind)
	dir := filepath.Dir(key)
	at := func(name string) string { return filepath.Join(dir, name) }
	pem := at("cert.pem")
	tool(t, "openssl", "x509", "-inform", "DER", "-in", cert, "-out", pem)
	pass := "pass:" + passphrase
	tool(t, "openssl", "pkey", "-in", key, "-outform", "DER", "-out", at("pkcs8.der"))
	tool(t, "openssl", "pkey", "-in", key, "-traditional", "-out", at("traditional.pem"))
	tool(t, "openssl", "pkey", "-in", key, "-traditional", "-outform", "DER", "-out", at("traditional.der"))
	tool(t, "openssl", "pkcs8", "-topk8", "-in", key, "-passout", pass, "-out", at("encrypted.pem"))
	tool(t, "openssl", "pkcs8", "-topk8", "-in", key, "-passout", pass, "-scrypt", "-outform", "DER", "-out", at("encrypted.der"))
	tool(t, "openssl", "pkcs12", "-export", "-inkey", key, "-in", pem, "-passout", pass, "-out", at("encrypted.p12"))
	tool(t, "openssl", "pkcs12", "-export", "-inkey", key, "-in", pem, "-passout", "pass:", "-out", at("empty.p12"))
	var both []byte
	for _, f := range []string{key, pem} {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	return map[string]string{"pkcs8.pem": key, "pkcs8.der": at("pkcs8.der"), "traditional.pem": at("traditional.pem"),
		"traditional.der": at("traditional.der"), "encrypted.pem": at("encrypted.pem"), "encrypted.der": at("encrypted.der"),
		"encrypted.p12": at("encrypted.p12"), "empty.p12": at("empty.p12"), "both.pem": write(t, "both.pem", both)}, cert
}

func TestLoadForms(t *testing.T) {
	t.Setenv("PASSPHRASE", passphrase)
	t.Setenv("WRONG", "incorrect horse")
	for _, kind := range []string{"rsa2048", "p384"} {
		files, cert := forms(t, kind)
		for name, file := range files {
			t.Run(kind+"/"+name, func(t *testing.T) {
				s := Source{Key: file, Certificate: cert}
				encrypted := strings.HasPrefix(name, "encrypted")
				if encrypted {
					if _, err := Load(s); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), "is needed") {
						t.Errorf("without a passphrase: got error %v", err)
					}
					s.PassphraseEnv = "WRONG"
					if _, err := Load(s); !errors.Is(err, ErrPassphrase) || strings.Contains(err.Error(), "horse") {
						t.Errorf("with a wrong passphrase: got error %v", err)
					}
					s.PassphraseEnv = "PASSPHRASE"
				}
				if name == "both.pem" || name == "encrypted.p12" {
					s.Certificate = ""
				}
				k := load(t, s)
				if _, err := k.Sign(t.Context(), []byte("module"), SHA256); err != nil {
					t.Error(err)
				}
				if shown := fmt.Sprintf("%v %+v %#v %v", k, k, k, k.LogValue()); strings.Contains(shown, passphrase) || strings.Count(shown, k.Fingerprint()) != 4 {
					t.Errorf("printed as %s", shown)
				}
			})
		}
	}
}

func TestLoadPassphraseFileAndEnvKey(t *testing.T) {
	files, cert := forms(t, "p256")
	load(t, Source{Key: files["encrypted.pem"], Certificate: cert, PassphraseFile: write(t, "p", []byte(passphrase+"\r\nanother line\n"))})
	data, err := os.ReadFile(files["both.pem"])
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MODULE_KEY", string(data))
	load(t, Source{KeyEnv: "MODULE_KEY"})
}

func TestLoadRefuses(t *testing.T) {
	key, cert := newPair(t, "p256")
	_, other := newPair(t, "p256")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	tool(t, "openssl", "req", "-new", "-x509", "-nodes", "-newkey", "ed25519", "-subj", "/CN=x", "-keyout", at("ed.key"), "-out", at("ed.pem"))
	tool(t, "openssl", "req", "-new", "-x509", "-nodes", "-newkey", "rsa:1024", "-subj", "/CN=x", "-keyout", at("weak.key"), "-out", at("weak.pem"))
	tool(t, "openssl", "req", "-new", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-subj", "/CN=x", "-keyout", at("k1.key"), "-out", at("k1.pem"))
	tool(t, "openssl", "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", at("old.key"))
	token := "pkcs11:object=mok?module-path=/usr/lib/x.so"
	for _, c := range []struct {
		name string
		s    Source
		want string
	}{
		{"nothing", Source{}, "name one of"},
		{"two keys", Source{Key: key, Command: []string{"true"}, Certificate: cert}, "name one of"},
		{"no file", Source{Key: at("none"), Certificate: cert}, "no such file"},
		{"no variable", Source{KeyEnv: "KOFARM_NO_SUCH", Certificate: cert}, "KOFARM_NO_SUCH is not set"},
		{"no certificate beside", Source{Key: key}, "certificate is not beside it"},
		{"no certificate for a command", Source{Command: []string{"true"}}, "certificate of the key is needed"},
		{"not the certificate's", Source{Key: key, Certificate: other}, "not that of the certificate"},
		{"certificate for key", Source{Key: cert, Certificate: cert}, "neither PKCS #8"},
		{"key for certificate", Source{Key: key, Certificate: key}, "no X.509"},
		{"giant", Source{Key: write(t, "k", make([]byte, maxKey+1)), Certificate: cert}, "more than"},
		{"Ed25519", Source{Key: at("ed.key"), Certificate: at("ed.pem")}, "RSA and EC"},
		{"weak", Source{Key: at("weak.key"), Certificate: at("weak.pem")}, "1024 bits"},
		{"another curve", Source{Key: at("k1.key"), Certificate: at("k1.pem")}, "curve"},
		{"old encryption", Source{Key: at("old.key"), Certificate: cert}, "openssl pkcs8 -topk8"},
		{"two ways to the PIN", Source{PKCS11: token, Certificate: cert, PassphraseEnv: "A", PassphraseFile: "B"}, "either"},
		{"no PIN", Source{PKCS11: token, Certificate: cert, PassphraseEnv: "KOFARM_NO_SUCH"}, "KOFARM_NO_SUCH is not set"},
		{"bad URI", Source{PKCS11: "mok", Certificate: cert}, "does not begin with pkcs11"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Load(c.s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one of %q", err, c.want)
			}
		})
	}
}

func TestParseToken(t *testing.T) {
	got, err := ParseToken("pkcs11:token=My%20token;object=mok;id=%01%00;type=private?module-path=/usr/lib/x.so")
	if err != nil {
		t.Fatal(err)
	}
	if got.Token != "My token" || got.Object != "mok" || string(got.ID) != "\x01\x00" || got.Module != "/usr/lib/x.so" {
		t.Errorf("got %+v", *got)
	}
	for uri, want := range map[string]string{
		"pkcs11:object=a":                                             "module-path",
		"pkcs11:object=a?module-path=x.so":                            "absolute",
		"pkcs11:token=a?module-path=/x.so":                            "object or id",
		"pkcs11:object=a;object=b?module-path=/x.so":                  "twice",
		"pkcs11:object=a;shoe=b?module-path=/x.so":                    `"shoe"`,
		"pkcs11:object=%zz?module-path=/x.so":                         "name=value",
		"pkcs11:object=%00?module-path=/x.so":                         "name=value",
		"pkcs11:object=a;type=public?module-path=/x.so":               "private",
		"pkcs11:object=a?module-path=/x.so&pin-value=1234":            "no place",
		"pkcs11:object=a?module-path=/x.so&pin-source=file:/etc/pin":  "no place",
		"pkcs11:object=a?module-path=/x.so&module-name=softhsm2":      "module-name",
		"pkcs11:object=a;?module-path=/usr/lib/softhsm/libsofthsm.so": "name=value",
	} {
		_, err := ParseToken(uri)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want one of %q", uri, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "1234") {
			t.Errorf("an error shows the PIN: %v", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("pkcs11:token=t;object=mok;id=%01?module-path=/usr/lib/x.so")
	f.Add("pkcs11:?&;=%")
	f.Fuzz(func(t *testing.T, uri string) {
		if k, err := ParseToken(uri); err == nil && (k.Module == "" || k.Object == "" && k.ID == nil || strings.Contains(k.Module+k.Object+k.Token, "\x00")) {
			t.Errorf("%q gives %+v", uri, *k)
		}
	})
}

func FuzzParse(f *testing.F) {
	key, cert := newPair(f, "p256")
	for _, file := range []string{key, cert} {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		k, _, err := Source{}.parse(data)
		if err == nil && k.Signer == nil {
			t.Error("no key and no error")
		}
	})
}
