package deb

import (
	_ "embed"
	"strings"
)

// The scripts that go into packages, see fill.
var (
	//go:embed scripts/modules.postinst
	modulesPostinst string
	//go:embed scripts/modules.postrm
	modulesPostrm string
	//go:embed scripts/dkms.postinst
	dkmsPostinst string
	//go:embed scripts/dkms.prerm
	dkmsPrerm string
	//go:embed scripts/load
	loadScript string
	//go:embed scripts/hook
	hookScript string
	//go:embed scripts/rules
	rulesFile string
)

// fill replaces @KEY@ in a script by the value behind the key. The values have
// no character that a shell treats specially between single quotes, or make
// anywhere: they match the patterns of names, versions and releases.
func fill(script string, keysAndValues ...string) []byte {
	var pairs []string
	for i, s := range keysAndValues {
		if i%2 == 0 {
			s = "@" + s + "@"
		}
		pairs = append(pairs, s)
	}
	return []byte(strings.NewReplacer(pairs...).Replace(script))
}
