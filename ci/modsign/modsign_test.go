// Package modsign_test builds real modules, signs them in every format, and
// looks at them with the tools of those who load them: the kernel's sign-file,
// openssl, modinfo, dpkg-deb, rpm and tar. A token is softhsm2's.
package modsign_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/kmod"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		println("these tests start containers: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// pair makes NAME.key, NAME.der and NAME.pem.
func pair(t testing.TB, dir, name string, kind ...string) {
	t.Helper()
	rig.Command(t, dir, "openssl", append([]string{"req", "-new", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=" + name,
		"-outform", "DER", "-out", name + ".der", "-keyout", name + ".key", "-newkey"}, kind...)...)
	rig.Command(t, dir, "openssl", "x509", "-inform", "DER", "-in", name+".der", "-out", name+".pem")
}

// farmFile packs one real module in every format. signing is the value of
// output.sign-modules, or "".
func farmFile(modules, signing string) string {
	s := `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
output:
  modules: ` + modules + `
  dkms: {layouts: [binaries-only, stub, full], compression: zst}
  deb: {packages: [modules, meta, dkms], prebuilt: true, repository: {}}
  rpm: {style: kernel-module, packages: [modules, dkms], prebuilt: true}
  sign: {key: openpgp.asc}
`
	if signing != "" {
		s += "  sign-modules: " + signing + "\n"
	}
	return s
}

// openPGP makes the key that signs packages and repositories.
func openPGP(t testing.TB, dir string) {
	t.Helper()
	home := filepath.Join(dir, "gnupg")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	rig.Command(t, dir, "gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", "farm", "ed25519", "sign", "never")
	rig.Command(t, dir, "gpg", "--homedir", home, "--batch", "--quiet", "--armor", "--output", "openpgp.asc", "--export-secret-keys")
	rig.Command(t, dir, "gpgconf", "--homedir", home, "--kill", "gpg-agent")
}

// build builds into dir/name, and tells how many cells were in the store.
func build(t testing.TB, dir, store, name, yaml string) (*farm.Report, string) {
	t.Helper()
	rig.Write(t, dir, name+".yaml", yaml)
	out := rig.Kofarm(t, 0, dir, store, "build", name+".yaml", "-o", name)
	var r farm.Report
	if err := json.Unmarshal(rig.Read(t, filepath.Join(dir, name, farm.ResultsFile)), &r); err != nil {
		t.Fatal(err)
	}
	return &r, out.Stdout
}

// unpack gives every module in a dist, plain, as the formats' own tools find
// it there, by the package's name.
func unpack(t testing.TB, dist string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, e := range entries(t, dist) {
		file, into := filepath.Join(dist, e), t.TempDir()
		switch {
		case strings.HasSuffix(e, ".deb"):
			rig.Command(t, into, "dpkg-deb", "-x", file, ".")
		case strings.HasSuffix(e, ".rpm"):
			rig.Command(t, into, "sh", "-c", `rpm2cpio "$1" | cpio --quiet -id`, "sh", file)
		case strings.Contains(e, ".dkms.tar."):
			rig.Command(t, into, "tar", "xf", file)
		default:
			continue
		}
		rig.Command(t, into, "sh", "-c", `find . -name '*.dkms.tar.*' -execdir tar xf {} \; ; find . -name '*.ko.xz' -exec xz -d {} + ; find . -name '*.ko.zst' -exec zstd -q -d --rm {} +`)
		for name := range strings.FieldsSeq(rig.Command(t, into, "find", ".", "-name", "*.ko")) {
			all[e+": "+name] = rig.Read(t, filepath.Join(into, name))
		}
	}
	return all
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// accepted checks a signed module with the certificate NAME.pem.
func accepted(t *testing.T, dir, name string, signed []byte) (unsigned []byte) {
	t.Helper()
	sig, size, err := kmod.ReadSignature(bytes.NewReader(signed), int64(len(signed)))
	if err != nil || sig == nil {
		t.Fatalf("signature %v, %v", sig, err)
	}
	tmp := t.TempDir()
	rig.Write(t, tmp, "m.ko", string(signed[:size]))
	rig.Write(t, tmp, "m.p7s", string(sig.Raw))
	pem := filepath.Join(dir, name+".pem")
	rig.Command(t, tmp, "openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "m.p7s", "-content", "m.ko", "-certfile", pem, "-CAfile", pem, "-purpose", "any", "-out", os.DevNull)
	rig.Write(t, tmp, "s.ko", string(signed))
	for field, want := range map[string]string{"signer": name, "sig_id": "PKCS#7", "sig_hashalgo": "sha256"} { // as Debian's configuration asks
		if got := strings.TrimSpace(rig.Command(t, tmp, "modinfo", "-F", field, "./s.ko")); got != want {
			t.Errorf("modinfo's %s: got %q, want %q", field, got, want)
		}
	}
	return signed[:size]
}

// signFile signs as the kernel's build does.
func signFile(t testing.TB, dir, name string, module []byte) []byte {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/linux-kbuild-*/scripts/sign-file")
	if len(found) == 0 {
		t.Fatal("no sign-file; ci/setup test installs linux-kbuild")
	}
	path := rig.Write(t, t.TempDir(), "m.ko", string(module))
	rig.Command(t, dir, found[0], "sha256", name+".key", name+".der", path)
	return rig.Read(t, path)
}

func same(t *testing.T, dir, got, want string) {
	t.Helper()
	names := entries(t, filepath.Join(dir, want))
	if other := entries(t, filepath.Join(dir, got)); !slices.Equal(other, names) {
		t.Errorf("%s has %q, %s has %q", got, other, want, names)
	}
	for _, name := range names {
		if name == farm.ResultsFile {
			continue
		}
		if !bytes.Equal(rig.Read(t, filepath.Join(dir, got, name)), rig.Read(t, filepath.Join(dir, want, name))) {
			t.Errorf("%s/%s is not %s/%s", got, name, want, name)
		}
	}
}

func TestFarm(t *testing.T) {
	dir := t.TempDir()
	openPGP(t, dir)
	pair(t, dir, "First", "rsa:3072")
	pair(t, dir, "Second", "ec", "-pkeyopt", "ec_paramgen_curve:P-384")
	plain, _ := build(t, dir, rig.Store(t), "plain", farmFile("xz", ""))
	store := t.TempDir() // whose signatures are dropped
	rig.Clone(t, rig.Store(t), store, "blobs", "cache", "refs/layer", "refs/symvers", "refs/result")
	built := plain.Cells[0].Modules[0].SHA256
	first, out := build(t, dir, store, "first", farmFile("xz", "{key: First.key, certificate: First.der}"))
	cached := func(t *testing.T, r *farm.Report, out string) {
		t.Helper()
		if !strings.Contains(out, "1 built (1 of 1 cells were in the store)") || r.Cells[0].Key != plain.Cells[0].Key || r.Cells[0].Modules[0].SHA256 != built {
			t.Errorf("another key has built something: %s%+v", out, r.Cells[0])
		}
	}
	cached(t, first, out)
	signed := func(t *testing.T, r *farm.Report) {
		t.Helper()
		if got, want := r.Cells[0].Modules[0].Signed.SHA256, first.Cells[0].Modules[0].Signed.SHA256; got != want {
			t.Errorf("the signed module is %s, with the key's file it is %s", got, want)
		}
	}

	t.Run("signed as by sign-file", func(t *testing.T) {
		found := unpack(t, filepath.Join(dir, "first"))
		if len(found) < 7 {
			t.Errorf("modules in %d packages, want 7", len(found))
		}
		var want []byte
		for name, module := range found {
			unsigned := accepted(t, dir, "First", module)
			if sum(unsigned) != built || sum(module) != first.Cells[0].Modules[0].Signed.SHA256 {
				t.Errorf("%s: %s, of the unsigned %s: results.json has others", name, sum(module), sum(unsigned))
			}
			if want == nil {
				want = signFile(t, dir, "First", unsigned)
			}
			if !bytes.Equal(module, want) {
				t.Errorf("%s: sign-file makes something else", name)
			}
		}
		if got := strings.ToLower(strings.ReplaceAll(rig.Command(t, dir, "openssl", "x509", "-inform", "DER", "-in", "first/mok.der", "-noout", "-fingerprint", "-sha256"), ":", "")); !strings.Contains(got, first.Signing.Fingerprint) {
			t.Errorf("openssl's fingerprint of mok.der is %s, results.json's %s", got, first.Signing.Fingerprint)
		}
		if text := string(rig.Read(t, filepath.Join(dir, "first/mok.txt"))); !strings.Contains(text, first.Signing.Fingerprint) {
			t.Errorf("mok.txt says\n%s", text)
		}
	})
	t.Run("another key, zstd", func(t *testing.T) {
		second, out := build(t, dir, store, "second", farmFile("zst", "{key: Second.key, certificate: Second.pem, hash: kernel}"))
		cached(t, second, out)
		for name, module := range unpack(t, filepath.Join(dir, "second")) {
			if unsigned := accepted(t, dir, "Second", module); sum(unsigned) != built {
				t.Errorf("%s: stripped it is not what was built", name)
			}
		}
		again, _ := build(t, dir, store, "again", farmFile("zst", "{key: Second.key, certificate: Second.pem, hash: kernel}"))
		if again.Cells[0].Modules[0].Signed.SHA256 != second.Cells[0].Modules[0].Signed.SHA256 {
			t.Error("signed again, it is another one")
		}
		same(t, dir, "again", "second")
	})
	t.Run("token", func(t *testing.T) {
		const pin = "my-secret-pin"
		tokens := t.TempDir()
		t.Setenv("SOFTHSM2_CONF", rig.Write(t, tokens, "softhsm2.conf", "directories.tokendir = "+tokens+"\n"))
		rig.Command(t, dir, "openssl", "pkey", "-in", "First.key", "-out", "First.p8")
		rig.Command(t, dir, "softhsm2-util", "--init-token", "--free", "--label", "mok", "--so-pin", "12345678", "--pin", pin)
		rig.Command(t, dir, "softhsm2-util", "--import", "First.p8", "--token", "mok", "--label", "modules", "--id", "01", "--pin", pin)
		yaml := farmFile("xz", `{pkcs11: "pkcs11:token=mok;object=modules?module-path=/usr/lib/softhsm/libsofthsm2.so", certificate: First.der, passphrase-env: MOK_PIN}`)
		t.Setenv("MOK_PIN", "wrong-pin")
		rig.Write(t, dir, "token.yaml", yaml)
		r := rig.Kofarm(t, 2, dir, store, "build", "token.yaml", "-o", "token")
		if strings.Contains(r.Stderr, "wrong-pin") || !strings.Contains(r.Stderr, "token.yaml:14:17: ") || !strings.Contains(r.Stderr, "PIN_INCORRECT") {
			t.Errorf("with a wrong PIN: %s", r.Stderr)
		}
		t.Setenv("MOK_PIN", pin)
		forget(t, store)
		token, out := build(t, dir, store, "token", yaml)
		cached(t, token, out)
		signed(t, token)
		same(t, dir, "token", "first")
	})
	t.Run("command", func(t *testing.T) {
		rig.Write(t, dir, "bin/sign", "#!/bin/sh\ntee -a log.hashes | openssl pkeyutl -sign -inkey First.key -pkeyopt digest:$KOFARM_SIGN_HASH\n")
		if err := os.Chmod(filepath.Join(dir, "bin/sign"), 0o755); err != nil {
			t.Fatal(err)
		}
		forget(t, store)
		command, _ := build(t, dir, store, "command", farmFile("xz", "{command: [bin/sign], certificate: First.der}"))
		signed(t, command)
		same(t, dir, "command", "first")
		if n := len(rig.Read(t, filepath.Join(dir, "log.hashes"))); n != 2*32 { // a trial, and the module
			t.Errorf("the command has seen %d bytes, want two hashes", n)
		}
	})
	t.Run("sign, verify, strip", func(t *testing.T) { afterwards(t, dir, store) })
}

// forget drops the store's signatures, so that what signs is asked again.
func forget(t *testing.T, store string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(store, "refs", "signature")); err != nil {
		t.Fatal(err)
	}
}

// afterwards signs the packages of the unsigned dist.
func afterwards(t *testing.T, dir, store string) {
	var files []string
	var meta string
	for _, name := range entries(t, filepath.Join(dir, "plain")) {
		if !strings.Contains(name, ".dkms.tar.") && !strings.HasSuffix(name, ".deb") && !strings.HasSuffix(name, ".rpm") {
			continue
		}
		if strings.HasSuffix(name, ".deb") && strings.Contains(name, "-modules-cloud-amd64_") {
			meta = name // it follows the newest kernel, and holds nothing
			continue
		}
		files = append(files, filepath.Join("plain", name))
	}
	kofarm := func(want int, args ...string) rig.Result {
		return rig.Kofarm(t, want, dir, store, append([]string{"sign"}, args...)...)
	}
	kofarm(0, append([]string{"--farm", "first.yaml", "-o", "signed", filepath.Join("plain", meta)}, files...)...)
	if !bytes.Equal(rig.Read(t, filepath.Join(dir, "signed", meta)), rig.Read(t, filepath.Join(dir, "plain", meta))) {
		t.Error("a package without modules is changed")
	}
	if r := kofarm(1, "--verify", "--farm", "first.yaml", filepath.Join("plain", meta)); !strings.Contains(r.Stderr, "no modules") {
		t.Errorf("nothing to verify: %s", r.Stderr)
	}
	var signed []string
	for _, f := range files {
		name := filepath.Base(f)
		signed = append(signed, filepath.Join("signed", name))
		if !bytes.Equal(rig.Read(t, filepath.Join(dir, "signed", name)), rig.Read(t, filepath.Join(dir, "first", name))) {
			t.Errorf("signed afterwards, %s is not as it is when it is built signed", name)
		}
	}
	kofarm(0, append([]string{"--verify", "--certificate", "First.pem"}, signed...)...)
	kofarm(0, append([]string{"--verify", "--farm", "first.yaml"}, signed...)...)
	r := kofarm(1, append([]string{"--verify", "--certificate", "Second.pem"}, signed...)...)
	if n := strings.Count(r.Stderr, "the signature names the certificate of issuer \"CN=First\""); n != len(signed) {
		t.Errorf("another certificate: %d of %d packages are refused\n%s", n, len(signed), r.Stderr)
	}
	if r := kofarm(1, append([]string{"--verify", "--certificate", "First.pem"}, files...)...); strings.Count(r.Stderr, "the module is not signed") != len(files) {
		t.Errorf("unsigned: %s", r.Stderr)
	}
	kofarm(0, append([]string{"--strip", "--farm", "plain.yaml", "-o", "stripped"}, signed...)...)
	for _, f := range files {
		if !bytes.Equal(rig.Read(t, filepath.Join(dir, "stripped", filepath.Base(f))), rig.Read(t, filepath.Join(dir, f))) {
			t.Errorf("stripped, %s is not what it was", f)
		}
	}
	if r := kofarm(0, append([]string{"--key", "Second.key", "--certificate", "Second.der", "-o", "other"}, signed...)...); strings.Count(r.Stderr, "dropped") != 2 { // RPMs
		t.Errorf("without output.sign: %s", r.Stderr)
	}
	for _, module := range unpack(t, filepath.Join(dir, "other")) {
		accepted(t, dir, "Second", module)
	}
	tampered(t, dir, kofarm)
	if r := kofarm(2, "--key", "First.key", "--certificate", "Second.der", files[0]); !strings.Contains(r.Stderr, "is not that of the certificate") {
		t.Errorf("a key with another certificate: %s", r.Stderr)
	}
	if r := kofarm(2, "first/results.json", "--key", "First.key"); !strings.Contains(r.Stderr, "want a module") {
		t.Errorf("no package: %s", r.Stderr)
	}
}

// tampered changes a loose signed module in several ways.
func tampered(t *testing.T, dir string, kofarm func(int, ...string) rig.Result) {
	t.Helper()
	for _, module := range unpack(t, filepath.Join(dir, "first")) {
		rig.Write(t, dir, "good.ko", string(module))
		kofarm(0, "--verify", "--certificate", "First.der", "good.ko")
		flipped := bytes.Clone(module)
		flipped[len(flipped)/3] ^= 4
		short := append(bytes.Clone(module[:len(module)-300]), module[len(module)-40:]...)
		for want, data := range map[string][]byte{
			"changed after it was signed": flipped,
			"malformed":                   short,
			"not signed":                  module[:len(module)-5],
		} {
			rig.Write(t, dir, "bad.ko", string(data))
			if r := kofarm(1, "--verify", "--certificate", "First.der", "bad.ko"); !strings.Contains(r.Stderr, want) {
				t.Errorf("want %q, got %s", want, r.Stderr)
			}
		}
		rig.Command(t, dir, "xz", "--check=crc32", "good.ko")
		kofarm(0, "--strip", "good.ko.xz")
		rig.Command(t, dir, "xz", "-d", "good.ko.xz")
		if rig.Command(t, dir, "modinfo", "-F", "signer", "./good.ko") != "" {
			t.Error("stripped, it has a signer")
		}
		return
	}
	t.Fatal("no modules")
}
