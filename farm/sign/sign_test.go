package sign

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

const secret = "correct horse battery"

// gnupg is a GnuPG home folder.
type gnupg string

// newHome makes one; its path is short, because the agent's socket lies in it.
func newHome(t *testing.T) gnupg {
	t.Helper()
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop := exec.Command("gpgconf", "--homedir", dir, "--kill", "all")
		_ = stop.Run() // there may be no agent
		_ = os.RemoveAll(dir)
	})
	write(t, filepath.Join(dir, "gpg-agent.conf"), []byte("s2k-count 65536\n")) // else it measures for seconds
	return gnupg(dir)
}

func (g gnupg) run(t *testing.T, args ...string) []byte {
	t.Helper()
	return run(t, "gpg", append([]string{"--homedir", string(g), "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, &stderr)
	}
	return out
}

// kinds are the keys that real gpg makes for the tests.
var kinds = map[string][]string{
	"rsa":     {"rsa2048", "sign,cert"},
	"ed25519": {"ed25519", "sign,cert"},
}

func (g gnupg) generate(t *testing.T, passphrase, algo, usage string) {
	t.Helper()
	g.run(t, "--passphrase", passphrase, "--quick-generate-key", "Farm <farm@example.org>", algo, usage, "never")
}

func (g gnupg) export(t *testing.T, passphrase string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	g.run(t, append([]string{"--passphrase", passphrase, "--output", path, "--export-secret-keys"}, args...)...)
	return path
}

// gpgv checks a signature with the public key alone, as apt does.
func gpgv(t *testing.T, k *Key, files ...string) (string, error) {
	t.Helper()
	public, err := k.Public()
	if err != nil {
		t.Fatal(err)
	}
	ring := filepath.Join(t.TempDir(), "ring.gpg")
	write(t, ring, public)
	out, err := exec.CommandContext(t.Context(), "gpgv", append([]string{"--status-fd", "1", "--keyring", ring}, files...)...).CombinedOutput()
	return string(out), err
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

const text = "Origin: farm\nSHA256:\n 00 1 main/x\n- a dash\ntrailing blanks  \n"

func TestGPGVerifiesWhatKeysOfItsOwnSign(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			home := newHome(t)
			home.generate(t, "", kind[0], kind[1])
			k, err := Load(Source{File: home.export(t, "")})
			if err != nil {
				t.Fatal(err)
			}
			at := k.floor.Add(time.Hour) // in the future for gpgv, which only says so
			checkSignatures(t, k, k.floor)
			checkRepeats(t, k, at)
		})
	}
}

func checkSignatures(t *testing.T, k *Key, at time.Time) {
	t.Helper()
	dir := t.TempDir()
	plain, clear, armored, binary := filepath.Join(dir, "t"), filepath.Join(dir, "c"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, plain, []byte(text))
	signed, err := k.ClearSign([]byte(text), at)
	if err != nil {
		t.Fatal(err)
	}
	write(t, clear, signed)
	asc, err := k.DetachArmored(strings.NewReader(text), at)
	if err != nil {
		t.Fatal(err)
	}
	write(t, armored, asc)
	sig, err := k.Detach(strings.NewReader(text), at)
	if err != nil {
		t.Fatal(err)
	}
	write(t, binary, sig)
	for _, files := range [][]string{{clear}, {armored, plain}, {binary, plain}} {
		out, err := gpgv(t, k, files...)
		if want := fmt.Sprintf(" %d 0 4 0 ", at.Unix()); err != nil || !strings.Contains(out, "VALIDSIG") || !strings.Contains(out, want) {
			t.Errorf("gpgv %v: %v, want a valid signature of second%s\n%s", files, err, want, out)
		}
	}
	write(t, plain, []byte(text+"x"))
	write(t, clear, bytes.Replace(signed, []byte("farm"), []byte("harm"), 1))
	for _, files := range [][]string{{clear}, {armored, plain}, {binary, plain}} {
		if out, err := gpgv(t, k, files...); err == nil {
			t.Errorf("gpgv %v accepts changed text\n%s", files, out)
		}
	}
	if got, err := k.Verify(signed); err != nil || string(got) != strings.Replace(text, "  \n", "\n", 1) {
		t.Errorf("Verify: %q, %v", got, err)
	}
	if _, err := k.Verify(bytes.Replace(signed, []byte("farm"), []byte("harm"), 1)); !errors.Is(err, ErrSignature) {
		t.Errorf("Verify of changed text: %v", err)
	}
	if err := errors.Join(k.VerifyDetached([]byte(text), sig), k.VerifyDetached([]byte(text), asc)); err != nil {
		t.Error(err)
	}
	if err := k.VerifyDetached([]byte("x"), asc); !errors.Is(err, ErrSignature) {
		t.Errorf("VerifyDetached of other text: %v", err)
	}
}

func checkRepeats(t *testing.T, k *Key, at time.Time) {
	t.Helper()
	for range 3 {
		a, err1 := k.ClearSign([]byte(text), at)
		b, err2 := k.ClearSign([]byte(text), at)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("two signatures differ (%v)", err)
		}
		a, err1 = k.DetachArmored(strings.NewReader(text), at)
		b, err2 = k.DetachArmored(strings.NewReader(text), at)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("two detached signatures differ (%v)", err)
		}
		a, err1 = k.PublicArmored()
		b, err2 = k.PublicArmored()
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("two exports differ (%v)", err)
		}
	}
}

func TestTimeIsNotBeforeTheKey(t *testing.T) {
	home := newHome(t)
	home.generate(t, "", "ed25519", "sign,cert")
	k, err := Load(Source{File: home.export(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c")
	signed, err := k.ClearSign([]byte(text), time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, signed)
	if out, err := gpgv(t, k, path); err != nil {
		t.Errorf("gpgv: %v\n%s", err, out)
	}
}

func TestPassphrase(t *testing.T) {
	home := newHome(t)
	home.generate(t, secret, "rsa2048", "sign,cert")
	path := home.export(t, secret, "--armor")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "passphrase")
	write(t, file, []byte(secret+"\nmore\n"))
	t.Setenv("FARM_KEY", string(data))
	t.Setenv("FARM_PASSPHRASE", secret)
	t.Setenv("FARM_WRONG", secret+"!")
	tests := map[string]struct {
		source Source
		want   string // in the error; "" for none
	}{
		"file, variable":     {Source{File: path, PassphraseEnv: "FARM_PASSPHRASE"}, ""},
		"variable, file":     {Source{Env: "FARM_KEY", PassphraseFile: file}, ""},
		"none":               {Source{File: path}, "passphrase is needed"},
		"wrong":              {Source{File: path, PassphraseEnv: "FARM_WRONG"}, "passphrase does not fit"},
		"both":               {Source{File: path, PassphraseEnv: "FARM_WRONG", PassphraseFile: file}, "either"},
		"variable not there": {Source{File: path, PassphraseEnv: "FARM_NOTHING"}, "FARM_NOTHING is not set"},
		"file not there":     {Source{File: path, PassphraseFile: file + "x"}, "no such file"},
		"no key named":       {Source{}, "either"},
		"two keys named":     {Source{File: path, Env: "FARM_KEY"}, "either"},
		"no key":             {Source{Env: "FARM_NOTHING"}, "FARM_NOTHING is not set"},
		"not a key":          {Source{Env: "FARM_PASSPHRASE"}, "not an OpenPGP key"},
		"a passphrase file":  {Source{File: file}, "not an OpenPGP key"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k, err := Load(tt.source)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkSignatures(t, k, k.floor)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "BEGIN")) {
				t.Errorf("the error has the secret: %v", err)
			}
		})
	}
}

func TestPassphraseFromDescriptor(t *testing.T) {
	home := newHome(t)
	home.generate(t, secret, "ed25519", "sign,cert")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString(secret + "\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := Load(Source{File: home.export(t, secret), PassphraseFile: fmt.Sprintf("/dev/fd/%d", r.Fd())}); err != nil {
		t.Error(err)
	}
}

// Distributors often keep the primary key apart and sign with a subkey.
func TestSubkeySigns(t *testing.T) {
	home := newHome(t)
	home.generate(t, "", "rsa2048", "cert")
	id := fingerprintOf(t, home)
	home.run(t, "--passphrase", "", "--quick-add-key", id, "ed25519", "sign", "never")
	home.run(t, "--passphrase", "", "--quick-add-key", id, "cv25519", "encr", "never")
	path := filepath.Join(t.TempDir(), "sub")
	home.run(t, "--output", path, "--export-secret-subkeys") // without the secret primary key
	k, err := Load(Source{File: path})
	if err != nil {
		t.Fatal(err)
	}
	if k.Algorithm() != EdDSA || k.Fingerprint() != id {
		t.Errorf("algorithm %d, key %s, want the subkey of %s", k.Algorithm(), k.Fingerprint(), id)
	}
	checkSignatures(t, k, k.floor)
}

func fingerprintOf(t *testing.T, home gnupg) string {
	t.Helper()
	for line := range strings.Lines(string(home.run(t, "--list-keys", "--with-colons"))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			return f[9]
		}
	}
	t.Fatal("gpg lists no key")
	return ""
}

func TestPublicKeyIsNotASigningKey(t *testing.T) {
	home := newHome(t)
	home.generate(t, "", "ed25519", "sign,cert")
	path := filepath.Join(t.TempDir(), "public")
	home.run(t, "--output", path, "--export")
	if _, err := Load(Source{File: path}); !errors.Is(err, ErrNoKey) {
		t.Errorf("got %v, want %v", err, ErrNoKey)
	}
	home.generate2(t)
	if _, err := Load(Source{File: home.export(t, "")}); !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "2 keys") {
		t.Errorf("of two keys: got %v", err)
	}
}

func (g gnupg) generate2(t *testing.T) {
	t.Helper()
	g.run(t, "--passphrase", "", "--quick-generate-key", "Other <other@example.org>", "ed25519", "sign,cert", "never")
}

func TestPublicExportIsGPGs(t *testing.T) {
	home := newHome(t)
	home.generate(t, "", "ed25519", "sign,cert")
	id := fingerprintOf(t, home)
	home.run(t, "--passphrase", "", "--quick-add-key", id, "rsa2048", "sign", "never")
	home.run(t, "--passphrase", "", "--quick-add-uid", id, "Another <a@example.org>")
	k, err := Load(Source{File: home.export(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	asc, err := k.PublicArmored()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "asc")
	write(t, path, asc)
	other := newHome(t)
	other.run(t, "--import", path)
	facts := func(g gnupg) []string {
		var all []string
		for line := range strings.Lines(string(g.run(t, "--list-keys", "--with-colons"))) {
			if f := strings.Split(line, ":"); slices.Contains([]string{"pub", "sub", "uid", "fpr"}, f[0]) {
				all = append(all, f[0]+" "+f[9]) // the trust differs
			}
		}
		slices.Sort(all)
		return all
	}
	if got, want := facts(other), facts(home); !slices.Equal(got, want) || len(got) != 6 {
		t.Errorf("gpg imports %v, want %v", got, want)
	}
}

func TestExpires(t *testing.T) {
	home := newHome(t)
	home.run(t, "--passphrase", "", "--quick-generate-key", "Farm <farm@example.org>", "ed25519", "sign,cert", "2y")
	k, err := Load(Source{File: home.export(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Expires().Sub(k.floor); got != 2*365*24*time.Hour {
		t.Errorf("it expires %v after its creation", got)
	}
}

func TestKindsThatAptAndRPMDoNotKnow(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	for name, config := range map[string]*packet.Config{
		"version 6":     {V6Keys: true, Algorithm: packet.PubKeyAlgoEd25519},
		"new algorithm": {Algorithm: packet.PubKeyAlgoEd25519},
		"ecdsa":         {Algorithm: packet.PubKeyAlgoECDSA, Curve: packet.CurveNistP256},
	} {
		t.Run(name, func(t *testing.T) {
			config.Time = func() time.Time { return at }
			e, err := openpgp.NewEntity("x", "", "x@example.org", config)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := e.SerializePrivate(&b, config); err != nil {
				t.Fatal(err)
			}
			if _, err := parse(b.Bytes()); !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "algorithm") {
				t.Errorf("got %v, want %v", err, ErrNoKey)
			}
		})
	}
}

func TestNothingShowsTheSecret(t *testing.T) {
	k := testKey(t)
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("key", "key", k)
	fmt.Fprintf(&b, "%v %+v %#v %s", k, k, k, k)
	if got := strings.Count(b.String(), k.Fingerprint()); got != 5 || b.Len() > 600 {
		t.Errorf("%s", b.String())
	}
}

func testKey(t testing.TB) *Key {
	t.Helper()
	at := time.Unix(1_700_000_000, 0)
	e, err := openpgp.NewEntity("Farm", "", "farm@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKey(e)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func FuzzParse(f *testing.F) {
	k := testKey(f)
	var b bytes.Buffer
	if err := k.entity.SerializePrivateWithoutSigning(&b, nil); err != nil {
		f.Fatal(err)
	}
	asc, err := armored(openpgp.PrivateKeyType, b.Bytes())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(asc)
	f.Add([]byte("-----BEGIN PGP PRIVATE KEY BLOCK-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parse(data)
		if err != nil || k.signer.Encrypted {
			return
		}
		if _, err := k.Public(); err != nil {
			t.Errorf("a key that was read cannot be written: %v", err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	k := testKey(f)
	signed, err := k.ClearSign([]byte(text), time.Unix(1_800_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	want, err := k.Verify(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := k.Verify(data); err == nil && !bytes.Equal(got, want) {
			t.Errorf("accepted %q", data)
		}
	})
}
