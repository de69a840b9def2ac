package boot_test

import (
	"testing"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/modsign"
)

const uefiFarm = `
modules:
  - source: {dir: TESTDATA/counter}
kernels:
  - {suite: bookworm, releases: [{latest: 1, of: "6.1.*"}], flavors: [amd64]}
  - {suite: trixie, releases: [{latest: 1, of: "6.12.*"}], flavors: [cloud-amd64]}
`

// TestUEFI boots kernels from firmware that has a certificate in its db: they
// trust its key as much as Debian's.
func TestUEFI(t *testing.T) {
	b := build(t, uefiFarm, "output: {sign-modules: {key: none}}\ntest: {signatures: enforce}\n")
	for _, k := range b.kernels() {
		t.Run(k.Release, func(t *testing.T) {
			b.warm(t, k)
			good := b.moduleFor(t, k.Release, "kf_counter")
			key, other := testKey(t), testKey(t)
			sign := func(by *modsign.Key) []byte {
				signed, err := by.Sign(t.Context(), good, modsign.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				return signed
			}
			signed := sign(key)
			tester := b.tester(t)
			tester.Options, tester.Trust = "module.sig_enforce=1", key.Certificate()
			own := unit("kf_counter", signed)
			own.First = []string{"dummy"} // of Debian's, with Debian's signature
			results, err := tester.Test(t.Context(), k, []*boot.Unit{
				unit("kf_counter", good),
				unit("kf_counter", sign(other)),
				unit("kf_counter", patch(t, signed, "a device that counts", "a device that cheats")),
				own,
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range []want{
				{boot.Rejected, "signature", "Loading of unsigned module is rejected"},
				{boot.Rejected, "signature", "Loading of module with unavailable key is rejected"},
				{boot.Rejected, "signature", ""},
				{boot.Loaded, "", ""},
			} {
				check(t, []string{"unsigned", "an unknown key", "tampered", "trusted"}[i], results[i], w)
			}
			r := results[3].Report
			if r == nil || r.Modules[0].Taint != "O" || len(r.Notes) > 0 {
				t.Errorf("trusted: %+v", r)
			}
			t.Logf("%+v", tester.Stats())
		})
	}
}
