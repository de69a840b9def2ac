package rpm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// maxDependencies bounds what modules put into one package's header; the
// largest known module has 3,000 symbols and aliases.
const maxDependencies = 1 << 16

// findings is what the modules of a package say, collected as they are packed.
type findings struct {
	style   Style
	kernel  Kernel
	dests   []string
	modules []*kmod.Module
}

// load reads a module, notes what it says, and gives it as it is stored.
func (f *findings) load(m dkms.Module, c Compression) (io.ReadCloser, int64, error) {
	data, err := readModule(m)
	if err != nil {
		return nil, 0, err
	}
	mod, err := kmod.ReadAt(bytes.NewReader(data), m.Size, kmod.Limits{PlainOnly: true})
	if err != nil {
		return nil, 0, err
	}
	f.dests, f.modules = append(f.dests, m.Dest), append(f.modules, mod)
	data, err = c.compress(data)
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), err
}

func readModule(m dkms.Module) ([]byte, error) {
	if m.Size > kmod.DefaultMemory {
		return nil, fmt.Errorf("%d bytes, at most %d can be packed", m.Size, int64(kmod.DefaultMemory))
	}
	r, err := m.Open()
	if err != nil {
		return nil, err
	}
	data := make([]byte, m.Size)
	_, err = io.ReadFull(r, data)
	if err == nil {
		if n, _ := io.CopyN(io.Discard, r, 1); n > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("content is not of the %d bytes announced", m.Size)
	}
	return data, errors.Join(err, r.Close())
}

// finish adds license and dependencies to the package.
func (f *findings) finish(p *rpmfile.Package, license string) (err error) {
	if p.License = license; license == "" {
		if p.License, err = Licenses(f.modules); err != nil {
			return err
		}
	}
	for _, dest := range f.dests {
		if f.style == KMP { // SUSE's generator has the kernel's name of it
			dest = underscored(dest)
		}
		p.Provides = append(p.Provides, rpmfile.Dependency{Name: "kmod(" + dest + ")"})
	}
	if f.style != KernelModule {
		f.aliases(p)
		err = f.symbols(p)
	}
	if n := len(p.Provides) + len(p.Requires) + len(p.Supplements); err == nil && n > maxDependencies {
		err = fmt.Errorf("the modules make %d dependencies, at most %d fit", n, maxDependencies)
	}
	return err
}

// aliases adds what hardware the modules are for.
func (f *findings) aliases(p *rpmfile.Package) {
	for _, m := range f.modules {
		for _, alias := range m.All("alias") {
			if f.style == Kmod {
				p.Provides = append(p.Provides, rpmfile.Dependency{Name: "modalias(" + encoded(alias, "*:-_.,+=@/?[]") + ")"})
			} else if strings.Contains(alias, ":") { // an alias of hardware, not a name
				p.Supplements = append(p.Supplements,
					rpmfile.Dependency{Name: "modalias(kernel-" + f.kernel.Flavor + ":" + encoded(alias, "*:") + ")"})
			}
		}
	}
}

// encoded writes all but letters, digits and the characters of also as %XX, the
// way SUSE's find-supplements.ksyms does with "*:".
func encoded(s, also string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(also, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// symbolPattern is what a symbol may be called in a dependency.
var symbolPattern = regexp.MustCompile(`^[A-Za-z0-9_.$]+$`)

// symbols adds the checksums of what the modules export, and of what they need
// and do not export themselves. Without modversions there are none.
func (f *findings) symbols(p *rpmfile.Package) error {
	if f.kernel.Symvers == nil {
		return nil
	}
	own := map[string]bool{}
	for _, m := range f.modules {
		for _, x := range m.Exports {
			own[x.Name] = true
			if !x.HasCRC {
				continue
			}
			if !symbolPattern.MatchString(x.Name) {
				return fmt.Errorf("exported symbol %.100q cannot be named in a dependency", x.Name)
			}
			p.Provides = append(p.Provides, f.symbol("ksym", x.Name, x.CRC))
		}
	}
	for _, m := range f.modules {
		for _, v := range m.Versions {
			if own[v.Name] {
				continue
			}
			if !symbolPattern.MatchString(v.Name) {
				return fmt.Errorf("symbol %.100q cannot be named in a dependency", v.Name)
			}
			kind := "ksym"
			if _, ok := f.kernel.Symvers.Lookup(v.Name); ok {
				kind = "kernel"
			}
			p.Requires = append(p.Requires, f.symbol(kind, v.Name, v.CRC))
		}
	}
	return nil
}

// symbol is a dependency on a symbol with its checksum: in the style of SUSE by
// flavor, always ksym, and without the zeros in front.
func (f *findings) symbol(kind, name string, crc uint32) rpmfile.Dependency {
	if f.style == KMP {
		return is("ksym("+f.kernel.Flavor+":"+name+")", fmt.Sprintf("%x", crc))
	}
	return is(kind+"("+name+")", fmt.Sprintf("0x%08x", crc))
}
