package matrix

import (
	"reflect"
	"testing"
)

func TestSignModules(t *testing.T) {
	for text, want := range map[string]ModuleSigning{
		`{key: mok.pem, certificate: mok.der}`:                             {Key: "mok.pem", Certificate: "mok.der", Hash: KernelsHash},
		`{key-env: KEY, hash: sha512, passphrase-file: /dev/fd/3}`:         {KeyEnv: "KEY", Hash: "sha512", PassphraseFile: "/dev/fd/3"},
		`{command: [./sign, --fast, --fast], certificate: c}`:              {Command: []string{"./sign", "--fast", "--fast"}, Certificate: "c", Hash: KernelsHash},
		`{pkcs11: "pkcs11:object=a", certificate: c, passphrase-env: PIN}`: {PKCS11: "pkcs11:object=a", Certificate: "c", Hash: KernelsHash, PassphraseEnv: "PIN"},
	} {
		f, _, err := Parse("farm.yaml", []byte("modules:\n  - source: {deb: a-dkms, suite: bookworm}\nkernels:\n  - suites: [bookworm]\noutput:\n  sign-modules: "+text+"\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := *f.Output.SignModules
		if got.Pos.Line != 6 {
			t.Errorf("%s: in line %d, want 6", text, got.Pos.Line)
		}
		if got.Pos = (Pos{}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
}
