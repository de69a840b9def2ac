package modsign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const softhsm = "/usr/lib/softhsm/libsofthsm2.so"

// newToken makes a token with an imported key.
func newToken(t *testing.T, pin, key string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("SOFTHSM2_CONF", write(t, "softhsm2.conf", []byte("directories.tokendir = "+dir+"\n")))
	tool(t, "softhsm2-util", "--init-token", "--free", "--label", "a token", "--so-pin", "87654321", "--pin", pin)
	tool(t, "softhsm2-util", "--import", key, "--token", "a token", "--label", "--odd label", "--id", "0a01", "--pin", pin)
}

func TestToken(t *testing.T) {
	module := newModule(t)
	for _, kind := range []string{"rsa2048", "p256", "p384"} {
		t.Run(kind, func(t *testing.T) {
			const pin = "secret-pin"
			key, cert := newPair(t, kind)
			newToken(t, pin, key)
			t.Setenv("PIN", pin)
			t.Setenv("WRONG", "wrong-pin")
			file := load(t, Source{Key: key, Certificate: cert})
			for _, name := range []string{"object=--odd%20label", "id=%0a%01", "id=%0a%01;object=--odd%20label"} {
				s := Source{PKCS11: "pkcs11:token=a%20token;" + name + "?module-path=" + softhsm, Certificate: cert, PassphraseEnv: "PIN"}
				for _, hash := range Hashes() {
					signed, err := load(t, s).Sign(t.Context(), module, hash)
					if err != nil {
						t.Fatal(err)
					}
					if err := Verify(signed, file.cert); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					same, err := file.Sign(t.Context(), module, hash)
					if err != nil || kind == "rsa2048" && !bytes.Equal(signed, same) {
						t.Errorf("%s %s: the token's signature is another one (%v)", name, hash, err)
					}
				}
			}
			_, otherCert := newPair(t, kind)
			good := "pkcs11:token=a%20token;id=%0a%01?module-path=" + softhsm
			for name, s := range map[string]Source{
				"wrong PIN":           {PKCS11: good, Certificate: cert, PassphraseEnv: "WRONG"},
				"no PIN":              {PKCS11: good, Certificate: cert},
				"no such key":         {PKCS11: "pkcs11:id=%02?module-path=" + softhsm, Certificate: cert, PassphraseEnv: "PIN"},
				"no such token":       {PKCS11: "pkcs11:token=other;id=%0a%01?module-path=" + softhsm, Certificate: cert, PassphraseEnv: "PIN"},
				"no such module":      {PKCS11: "pkcs11:id=%0a%01?module-path=/nowhere.so", Certificate: cert, PassphraseEnv: "PIN"},
				"another certificate": {PKCS11: good, Certificate: otherCert, PassphraseEnv: "PIN"},
			} {
				_, err := load(t, s).Sign(t.Context(), module, SHA256)
				if err == nil || strings.Contains(err.Error(), pin) || strings.Contains(err.Error(), "wrong-pin") {
					t.Errorf("%s: got error %v", name, err)
				}
			}
		})
	}
}

// The PIN is on no command line, where every user could read it.
func TestPINStaysOffTheCommandLine(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "tool")
	script := fmt.Sprintf("#!/bin/sh\nprintf '%%s\\n' \"$@\" >%s/args\nprintf %%s \"$%s\" >%s/pin\nexit 7\n", dir, pinVariable, dir)
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	token := &Token{Tool: fake, Module: "/x.so", Object: "o", PIN: []byte("1234567"), RSA: true}
	_, err := token.Sign(t.Context(), make([]byte, 32), algorithms[SHA256].hash)
	if _, ok := errors.AsType[*ProgramError](err); !ok {
		t.Fatalf("got error %v", err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := os.ReadFile(filepath.Join(dir, "pin"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(args), "1234567") || string(pin) != "1234567" {
		t.Errorf("arguments %q, PIN in the environment %q", args, pin)
	}
	if shown := fmt.Sprintf("%v %+v %#v", token, token, token); strings.Contains(shown, "1234567") {
		t.Errorf("printed as %s", shown)
	}
}

func TestCommand(t *testing.T) {
	module := newModule(t)
	for _, kind := range []string{"rsa2048", "p256"} {
		key, cert := newPair(t, kind)
		args := []string{"/bin/sh", "-c", `exec openssl pkeyutl -sign -inkey "$0" -pkeyopt digest:$KOFARM_SIGN_HASH`, key}
		file, command := load(t, Source{Key: key, Certificate: cert}), load(t, Source{Command: args, Certificate: cert})
		signed, err := command.Sign(t.Context(), module, SHA384)
		if err != nil {
			t.Fatal(err)
		}
		if err := Verify(signed, file.cert); err != nil {
			t.Error(err)
		}
		if same, err := file.Sign(t.Context(), module, SHA384); err != nil || kind == "rsa2048" && !bytes.Equal(same, signed) {
			t.Errorf("the command's signature is another one (%v)", err)
		}
	}
}

// What a command sees is the hash, and what is wrong with it is said.
func TestCommandFaults(t *testing.T) {
	_, cert := newPair(t, "rsa2048")
	otherKey, _ := newPair(t, "rsa2048")
	dir := t.TempDir()
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script, dir} }
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"exit status", sh(`cat >"$0/input"; echo "$KOFARM_SIGN_HASH $KOFARM_SIGN_KEY" >"$0/env"; echo "vault is sealed" >&2; exit 3`), "exit status 3: vault is sealed"},
		{"nothing", sh(`cat >/dev/null`), "no signature"},
		{"nonsense", sh(`echo hello`), "signature of 6 bytes that does not fit"},
		{"too much", sh(`head -c 100000 /dev/zero`), "more than 4096 bytes"},
		{"escapes", sh(`printf '\033[2Jgone\n' >&2; exit 1`), "exit status 1: [2Jgone"},
		{"another key", []string{"openssl", "pkeyutl", "-sign", "-inkey", otherKey, "-pkeyopt", "digest:sha256"}, "does not fit"},
		{"no such program", []string{filepath.Join(dir, "none")}, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, Source{Command: c.args, Certificate: cert}).Sign(t.Context(), []byte("module"), SHA256)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one of %q", err, c.want)
			}
		})
	}
	input, err := os.ReadFile(filepath.Join(dir, "input"))
	if err != nil || len(input) != 32 {
		t.Errorf("the command has read %d bytes, want the 32 of the hash (%v)", len(input), err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || string(env) != "sha256 rsa\n" {
		t.Errorf("the command's environment says %q (%v)", env, err)
	}
}

func TestCommandIsStopped(t *testing.T) {
	_, cert := newPair(t, "rsa2048")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		time.Sleep(50 * time.Millisecond)
		cancel()
	}()
	_, err := load(t, Source{Command: []string{"sleep", "600"}, Certificate: cert}).Sign(ctx, []byte("module"), SHA256)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}
