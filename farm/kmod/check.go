package kmod

import (
	"fmt"
	"slices"
	"strings"
)

// Target is the kernel that a module has to fit.
type Target struct {
	// Release is the kernel release, as `uname -r` prints it.
	Release string
	// Arch is the DKMS arch: x86_64, aarch64, ppc64le …
	Arch string
	// Symvers is what the kernel exports. Nil where that is not known: then
	// neither checksums nor undefined symbols can be judged.
	Symvers *Symvers
	// Siblings are the exports of the other modules that are loaded with this
	// one; they come before what the kernel exports under the same name.
	Siblings []Export
}

// Kind says what a [Problem] is about.
type Kind string

// The kinds, in the order in which [Check] reports them.
const (
	KindFormat      Kind = "format"      // not a proper module
	KindMachine     Kind = "machine"     // built for another machine
	KindVermagic    Kind = "vermagic"    // built for another kernel
	KindModversions Kind = "modversions" // a checksum is wrong or missing
	KindSymbol      Kind = "symbol"      // a symbol that the kernel will not resolve
)

// Problem is a reason why a module must not be packed.
type Problem struct {
	Kind   Kind   `json:"kind"`
	Detail string `json:"detail"`
}

func (p Problem) String() string { return string(p.Kind) + ": " + p.Detail }

// maxDetails bounds the problems of one kind that are spelled out: a module
// built against the wrong kernel has hundreds, a hostile one a million.
const maxDetails = 20

// Check says why a kernel would refuse the module, or resolve its symbols to
// something else than it was built for; nothing if it fits. The order is
// deterministic. Weak undefined symbols may stay unresolved. Namespaces are
// not judged (a kernel may be configured to ignore them).
func Check(m *Module, want Target) []Problem {
	c := checker{m: m, want: want, siblings: make(map[string]Export, len(want.Siblings))}
	for _, x := range want.Siblings {
		if _, ok := c.siblings[x.Name]; !ok {
			c.siblings[x.Name] = x
		}
	}
	return slices.Concat(
		c.format(), c.machine(), c.vermagic(),
		c.modversions().problems(KindModversions), c.symbols().problems(KindSymbol))
}

type checker struct {
	m        *Module
	want     Target
	siblings map[string]Export
}

func (c *checker) format() []Problem {
	if !c.m.HasModinfo {
		return []Problem{{KindFormat, "the module has no .modinfo section"}}
	}
	return nil
}

// sameArch lists the names of uname -m that one ELF machine goes by.
var sameArch = map[string]string{
	"i386": "i686", "i486": "i686", "i586": "i686",
	"arm": "armv7l", "armv5tel": "armv7l", "armv6l": "armv7l", "armv7hl": "armv7l", "armv8l": "armv7l",
	"mips64el": "mips64", "sh4a": "sh4",
}

func (c *checker) machine() []Problem {
	want := c.want.Arch
	if same, ok := sameArch[want]; ok {
		want = same
	}
	if c.m.Machine == want {
		return nil
	}
	return []Problem{{KindMachine, fmt.Sprintf("the module is for %s, the kernel is %s", c.m.Machine, c.want.Arch)}}
}

func (c *checker) vermagic() []Problem {
	if !c.m.HasModinfo {
		return nil // said by format
	}
	words := strings.Fields(c.m.Vermagic)
	if len(words) == 0 {
		return []Problem{{KindVermagic, "the module has no vermagic"}}
	}
	var ps []Problem
	if words[0] != c.want.Release {
		ps = append(ps, Problem{KindVermagic, fmt.Sprintf("the module is for kernel %s, not %s", quote(words[0]), c.want.Release)})
	}
	if c.want.Symvers == nil || c.want.Symvers.Len() == 0 {
		return ps
	}
	switch has, kernel := slices.Contains(words, "modversions"), c.want.Symvers.HasCRCs(); {
	case kernel && !has:
		ps = append(ps, Problem{KindVermagic, "the module is built without modversions, which the kernel has"})
	case has && !kernel:
		ps = append(ps, Problem{KindVermagic, "the module is built with modversions, which the kernel has not"})
	}
	return ps
}

// provider is who exports a symbol.
type provider struct {
	name        string // fit for output
	crc         uint32
	hasCRC, gpl bool
}

func (c *checker) find(symbol string) (provider, bool) {
	if x, ok := c.siblings[symbol]; ok {
		return provider{"a module built with it", x.CRC, x.HasCRC, x.GPL}, true
	}
	if c.want.Symvers == nil {
		return provider{}, false
	}
	s, ok := c.want.Symvers.Lookup(symbol)
	return provider{quote(s.Module), s.CRC, ok && c.want.Symvers.HasCRCs(), s.GPL}, ok
}

// moduleLayout is the symbol by whose checksum the loader compares struct
// module itself; it is not among a module's undefined symbols.
const moduleLayout = "module_layout"

// modversions compares checksums where the kernel has them.
func (c *checker) modversions() (d details) {
	if c.want.Symvers == nil || !c.want.Symvers.HasCRCs() {
		return d
	}
	if len(c.m.Versions) == 0 {
		d.add("the module carries no checksums (no __versions section), which the kernel asks for")
		return d
	}
	have := make(map[string]bool, len(c.m.Versions))
	for _, v := range c.m.Versions {
		have[v.Name] = true
		p, ok := c.find(v.Name)
		_, undefined := slices.BinarySearch(c.m.Undefined, v.Name)
		switch {
		case !ok && !undefined: // else said by symbols
			d.add("%s has checksum %#08x, but nothing exports it", quote(v.Name), v.CRC)
		case ok && p.hasCRC && p.crc != v.CRC:
			d.add("%s has checksum %#08x, but %s exports it with %#08x", quote(v.Name), v.CRC, p.name, p.crc)
		}
	}
	for _, name := range append([]string{moduleLayout}, c.m.Undefined...) {
		if p, ok := c.find(name); ok && p.hasCRC && !have[name] {
			d.add("%s has no checksum in the module", quote(name))
		}
	}
	return d
}

// symbols looks for whoever resolves the undefined symbols.
func (c *checker) symbols() (d details) {
	if c.want.Symvers == nil {
		return d
	}
	for _, name := range c.m.Undefined {
		p, ok := c.find(name)
		switch {
		case !ok:
			d.add("nothing exports %s", quote(name))
		case p.gpl && !c.gplCompatible():
			d.add("%s is for GPL-compatible modules, the license is %s", quote(name), quote(c.m.Get("license")))
		}
	}
	return d
}

// gplCompatible is the kernel's license_is_gpl_compatible (include/linux/license.h).
func (c *checker) gplCompatible() bool {
	switch c.m.Get("license") {
	case "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL":
		return true
	}
	return false
}

// details collects what is wrong: the first maxDetails in words, of the rest
// the number.
type details struct {
	said []string
	more int
}

func (d *details) add(format string, args ...any) {
	if len(d.said) == maxDetails {
		d.more++
		return
	}
	d.said = append(d.said, fmt.Sprintf(format, args...))
}

func (d details) problems(kind Kind) []Problem {
	if d.more > 0 {
		d.said = append(d.said, fmt.Sprintf("and %d more", d.more))
	}
	var ps []Problem
	for _, s := range d.said {
		ps = append(ps, Problem{kind, s})
	}
	return ps
}

// quote makes a string of a hostile module fit for one line of output; plain
// names stay as they are.
func quote(s string) string {
	const most = 200
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "…"
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' {
			return fmt.Sprintf("%q", s) + cut
		}
	}
	if s == "" {
		return `""`
	}
	return s + cut
}
