// Package boot_test boots Debian's kernels with real modules and with faults that
// are made on purpose.
package boot_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/worker"
)

// built is a farm whose cells are in the store.
type built struct {
	store   *store.Store
	images  *images.Assembler
	results []*farm.Result
}

// build builds a farm in the store that tests share. more is what else its file
// has when it says what boots the kernels.
func build(t testing.TB, yaml, more string) *built {
	t.Helper()
	dir := t.TempDir()
	yaml = strings.ReplaceAll(yaml, "TESTDATA", filepath.Join(rig.Root(), "testdata/boot"))
	file := rig.Write(t, dir, "farm.yaml", yaml)
	rig.Kofarm(t, 0, dir, rig.Store(t), "build", file, "--output", filepath.Join(dir, "dist"))
	f, _, err := matrix.Parse(file, []byte(yaml+more))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(rig.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	client := &fetch.Client{Dir: s.BlobDir(), Kept: s.CacheDir("releases"), Partial: s.PartialDir(), Use: s.Use}
	p := &farm.Preparer{Fetch: client, Apt: &apt.Client{Fetch: client, Dir: s.CacheDir("indexes")}, Now: time.Now(), Dir: dir, Boots: true,
		Program: images.Program{Path: worker.RecipePath, Data: worker.Recipe}}
	plan, err := p.Prepare(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return &built{s, &images.Assembler{Store: s, Fetcher: farm.Packages{Client: client}}, farm.Stored(s, plan.Cells)}
}

// kernel is what boots the kernel of that flavor.
func (b *built) kernel(t testing.TB, flavor string) boot.Kernel {
	t.Helper()
	for _, r := range b.results {
		if c := r.Cell; c.Kernel.Flavor == flavor {
			return boot.Kernel{Release: c.Kernel.Release, Arch: c.Kernel.Arch, Packages: c.Boot}
		}
	}
	t.Fatalf("no kernel of flavor %s", flavor)
	return boot.Kernel{}
}

// kernels are what boots each of the farm's kernels.
func (b *built) kernels() []boot.Kernel {
	var kernels []boot.Kernel
	for _, r := range b.results {
		k := r.Cell.Kernel
		if !slices.ContainsFunc(kernels, func(other boot.Kernel) bool { return other.Release == k.Release }) {
			kernels = append(kernels, boot.Kernel{Release: k.Release, Arch: k.Arch, Packages: r.Cell.Boot})
		}
	}
	return kernels
}

// module reads what was built for the kernel of a flavor.
func (b *built) module(t testing.TB, flavor, name string) []byte {
	t.Helper()
	return b.moduleFor(t, b.kernel(t, flavor).Release, name)
}

// moduleFor reads what was built for a kernel.
func (b *built) moduleFor(t testing.TB, release, name string) []byte {
	t.Helper()
	for _, r := range b.results {
		if r.Cell.Kernel.Release != release || r.Record == nil {
			continue
		}
		for _, m := range r.Record.Modules {
			if m.Name != name+".ko" {
				continue
			}
			r, err := b.store.OpenFile(hashOf(t, m.SHA256))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var data bytes.Buffer
			if _, err := data.ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			return data.Bytes()
		}
	}
	t.Fatalf("no module %s for %s", name, release)
	return nil
}

// tester has a store of its own for verdicts, so that each test boots, and the
// shared one's kernels.
func (b *built) tester(t testing.TB) *boot.Tester {
	t.Helper()
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	rig.Clone(t, b.store.Dir(), s.Dir(), "refs/boot")
	for _, ref := range refs(t, s) {
		to := filepath.Join(s.BlobDir(), ref)
		if _, err := os.Stat(to); err != nil {
			if err := rig.LinkOrCopy(filepath.Join(b.store.BlobDir(), ref), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &boot.Tester{Store: s, Packages: b.images, Accel: boot.TCG, Timeout: 30 * time.Second}
}

// warm reads the kernels' packages into the shared store, once.
func (b *built) warm(t testing.TB, kernels ...boot.Kernel) {
	t.Helper()
	rig.Locked(t, "boot-kernels", func() {
		shared := &boot.Tester{Store: b.store, Packages: b.images, Accel: boot.TCG}
		for _, k := range kernels {
			if err := shared.Prepare(t.Context(), k, "dummy", "crc32c"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// unit is one module under test.
func unit(name string, data []byte, parameters ...string) *boot.Unit {
	return &boot.Unit{Name: name, Modules: []boot.Module{module(name, data, parameters...)}}
}

func module(name string, data []byte, parameters ...string) boot.Module {
	return boot.Module{File: name + ".ko", SHA256: sum(data), Parameters: parameters, Open: func() ([]byte, error) { return data, nil }}
}

// patch replaces a string in a module by one of the same length.
func patch(t testing.TB, data []byte, old, new string) []byte {
	t.Helper()
	if len(old) != len(new) || bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("%q is there %d times", old, bytes.Count(data, []byte(old)))
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

// wrongCRC changes the checksum of a symbol in __versions.
func wrongCRC(t testing.TB, data []byte, symbol string) []byte {
	t.Helper()
	record := append([]byte(symbol), make([]byte, 56-len(symbol))...)
	i := bytes.Index(data, record)
	if i < 8 {
		t.Fatalf("no version of %s", symbol)
	}
	data = slices.Clone(data)
	data[i-8] ^= 1
	return data
}

const faultsFarm = `
modules:
  - source: {dir: TESTDATA/pair}
  - source: {dir: TESTDATA/faults}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [amd64, rt-amd64]
exclude:
  - {module: kf-faults, flavor: rt-amd64}
`

// want is a verdict, its reason, and what the kernel says.
type want struct {
	verdict boot.Verdict
	reason  string
	message string
}

func check(t *testing.T, name string, r boot.Result, w want) {
	t.Helper()
	if r.Err != nil {
		t.Errorf("%s: %v", name, r.Err)
		return
	}
	m := r.Report.Modules[len(r.Report.Modules)-1]
	if r.Report.Verdict != w.verdict || m.Reason != w.reason {
		t.Errorf("%s: %s (%s), want %s (%s): %q", name, r.Report.Verdict, m.Reason, w.verdict, w.reason, m.Messages)
	}
	if w.message != "" && !slices.ContainsFunc(m.Messages, func(l string) bool { return strings.Contains(l, w.message) }) {
		t.Errorf("%s: the kernel does not say %q: %q", name, w.message, m.Messages)
	}
}

// TestVerdicts has all faults that leave the kernel alive.
func TestVerdicts(t *testing.T) {
	b := build(t, faultsFarm, "")
	k := b.kernel(t, "amd64")
	b.warm(t, k)
	get := func(name string) []byte { return b.module(t, "amd64", name) }
	script, err := os.ReadFile(filepath.Join(rig.Root(), "testdata/boot/pair/test.sh"))
	if err != nil {
		t.Fatal(err)
	}
	pair := &boot.Unit{Name: "pair", Script: script, Modules: []boot.Module{module("kf_user", get("kf_user")), module("kf_base", get("kf_base"), "answer=7")}}
	badScript := unit("kf_good", get("kf_good"))
	badScript.Script = []byte("echo not today; exit 7\n")
	first := unit("kf_good", get("kf_good"), "number=1")
	first.First, first.Script = []string{"crc32c", "nosuch"}, []byte("grep -q ^crc32c_generic /proc/modules\n")
	good := get("kf_good")
	tests := []struct {
		name string
		unit *boot.Unit
		want want
	}{
		{"two modules that need each other, a softdep, parameters and a script", pair, want{boot.Loaded, "", "kf_base says 8"}},
		{"no hardware", unit("kf_nodev", get("kf_nodev")), want{boot.Refused, "ENODEV", ""}},
		{"its init fails", unit("kf_inval", get("kf_inval")), want{boot.Failed, "EINVAL", "kf_inval: number 0"}},
		{"its script fails", badScript, want{boot.Failed, "", ""}},
		{"modules to load first", first, want{boot.Loaded, "", "number 1"}},
		{"a bad value of a parameter", unit("kf_param", get("kf_param"), "number=abc"), want{boot.Rejected, "parameter", "invalid for parameter `number'"}},
		{"an unknown parameter", unit("kf_param", get("kf_param"), "nosuch=1"), want{boot.Rejected, "parameter", "unknown parameter 'nosuch' ignored"}},
		{"a warning that is not in the log", unit("kf_taint", get("kf_taint")), want{boot.Crashed, "warning", ""}},
		{"a warning", unit("kf_warn", get("kf_warn")), want{boot.Crashed, "warning", "WARNING: CPU: 0"}},
		{"a wrong checksum", unit("kf_good", wrongCRC(t, good, "_printk")), want{boot.Rejected, "crc", "disagrees about version of symbol _printk"}},
		{"another kernel's headers", unit("kf_base", b.module(t, "rt-amd64", "kf_base")), want{boot.Rejected, "crc", "disagrees about version of symbol module_layout"}},
		{"another vermagic", unit("kf_good", patch(t, good, k.Release+" SMP ", k.Release+" SMQ ")), want{boot.Rejected, "vermagic", "version magic '" + k.Release + " SMQ"}},
		{"a missing dependency", unit("kf_user", get("kf_user")), want{boot.Rejected, "symbol", "Unknown symbol kf_base_answer"}},
		{"half a module", unit("kf_good", good[:len(good)/2]), want{boot.Rejected, "format", ""}},
		{"prints what looks like a report", unit("kf_forge", get("kf_forge")), want{boot.Refused, "ENXIO", "end 0 Live 0 0 OE"}},
		{"a file of another name", unit("kf_dest", get("kf_param")), want{boot.Loaded, "", "kf_param: number 0"}},
		{"after all of them", unit("kf_good", good), want{boot.Loaded, "", ""}},
		{"no exit function", unit("kf_noexit", get("kf_noexit")), want{boot.Loaded, "", ""}},
	}
	tester := b.tester(t)
	var units []*boot.Unit
	for _, tt := range tests {
		units = append(units, tt.unit)
	}
	results, err := tester.Test(t.Context(), k, units, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range tests {
		check(t, tt.name, results[i], tt.want)
	}
	if kept := results[len(tests)-1].Report.Modules[0].Kept; kept != "Device or resource busy" {
		t.Errorf("no exit function: kept %q", kept)
	}
	if r := results[3].Report; r.Script == nil || r.Script.Status != 7 || !slices.Equal(r.Script.Output, []string{"not today"}) {
		t.Errorf("its script fails: %+v", r.Script)
	}
	if n := results[4].Report.Notes; !slices.Equal(n, []string{"the kernel has no module nosuch"}) {
		t.Errorf("modules to load first: %q", n)
	}
	boots := tester.Stats().Boots
	t.Logf("%+v", tester.Stats())
	again, err := tester.Test(t.Context(), k, units, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range again {
		if !r.Cached || r.Report.Verdict != results[i].Report.Verdict {
			t.Errorf("%s: not from the store", tests[i].name)
		}
	}
	if got := tester.Stats().Boots; got != boots {
		t.Errorf("%d boots for the same once more", got-boots)
	}
}

// TestSplit has modules between others that end the kernel, or the boot's report:
// each of them has the verdict that it deserves.
func TestSplit(t *testing.T) {
	b := build(t, faultsFarm, "")
	k := b.kernel(t, "amd64")
	b.warm(t, k)
	tester := b.tester(t)
	get := func(name string) *boot.Unit { return unit(name, b.module(t, "amd64", name)) }
	units := []*boot.Unit{get("kf_good"), get("kf_oops"), get("kf_nodev"), get("kf_port")}
	results, err := tester.Test(t.Context(), k, units, nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "before", results[0], want{boot.Loaded, "", ""})
	check(t, "the culprit", results[1], want{boot.Crashed, "oops", "BUG: kernel NULL pointer dereference"})
	check(t, "after", results[2], want{boot.Refused, "ENODEV", ""})
	check(t, "writes to the report's port", results[3], want{boot.Crashed, "report", "not a line of the report: unit 1"})
	if got := tester.Stats().Boots; got != 4 {
		t.Errorf("%d boots, want 4: all, the culprit alone, what comes after it, and the next alone", got)
	}
}

// TestSignatures boots a kernel that loads none but signed modules.
func TestSignatures(t *testing.T) {
	b := build(t, faultsFarm, "")
	k := b.kernel(t, "amd64")
	b.warm(t, k)
	good := b.module(t, "amd64", "kf_good")
	key := testKey(t)
	signed, err := key.Sign(t.Context(), good, modsign.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	tampered := patch(t, signed, k.Release+" SMP ", k.Release+" SMQ ")
	tester := b.tester(t)
	tester.Options = "module.sig_enforce=1"
	results, err := tester.Test(t.Context(), k, []*boot.Unit{unit("kf_good", good), unit("kf_good", signed), unit("kf_good", tampered)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range []want{
		{boot.Rejected, "signature", "Loading of unsigned module is rejected"},
		{boot.Rejected, "signature", "Loading of module with unavailable key is rejected"},
		{boot.Rejected, "signature", "is rejected"},
	} {
		check(t, []string{"unsigned", "an unknown key", "tampered"}[i], results[i], w)
	}
	if got := tester.Stats().Boots; got != 3 {
		t.Errorf("%d boots, want 3: of each version of a module one", got)
	}
}

// testKey makes a key and a certificate.
func testKey(t *testing.T) *modsign.Key {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	var pems bytes.Buffer
	for kind, der := range map[string][]byte{"PRIVATE KEY": der, "CERTIFICATE": cert} {
		if err := pem.Encode(&pems, &pem.Block{Type: kind, Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	key, err := modsign.Load(modsign.Source{Key: rig.Write(t, t.TempDir(), "key.pem", pems.String())})
	if err != nil {
		t.Fatal(err)
	}
	return key
}
