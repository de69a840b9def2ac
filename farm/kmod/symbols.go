package kmod

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// versionRecord is the size of struct modversion_info: MODULE_NAME_LEN is
// 64 - sizeof(unsigned long), and the checksum is an unsigned long.
const versionRecord = 64

// readVersions fills the modversions records from both forms.
func readVersions(f *elfFile, m *Module) error {
	basic, err := f.basicVersions()
	if err != nil {
		return fmt.Errorf("__versions: %w", err)
	}
	extended, err := f.extendedVersions()
	if err != nil {
		return fmt.Errorf("__version_ext_*: %w", err)
	}
	all := append(basic, extended...)
	slices.SortFunc(all, func(a, b Version) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.CRC, b.CRC))
	})
	m.Versions = slices.Compact(all)
	return nil
}

func (f *elfFile) basicVersions() ([]Version, error) {
	data, err := f.table("__versions")
	if err != nil {
		return nil, err
	}
	if len(data)%versionRecord != 0 {
		return nil, formatErr("%d bytes, not a multiple of %d", len(data), versionRecord)
	}
	long := 4
	if f.wide {
		long = 8
	}
	var vs []Version
	for i := 0; i < len(data); i += versionRecord {
		rec := data[i : i+versionRecord]
		crc := f.word(rec)
		name, err := cstring(rec[long:], 0)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i/versionRecord, err)
		}
		if crc != uint64(uint32(crc)) || name == "" {
			return nil, formatErr("record %d: checksum %#x of symbol %q", i/versionRecord, crc, name)
		}
		vs = append(vs, Version{f.undot(name), uint32(crc)})
	}
	return vs, nil
}

func (f *elfFile) extendedVersions() ([]Version, error) {
	crcs, err := f.table("__version_ext_crcs")
	if err != nil {
		return nil, err
	}
	names, err := f.table("__version_ext_names")
	if err != nil {
		return nil, err
	}
	if len(crcs)%4 != 0 {
		return nil, formatErr("%d bytes of checksums", len(crcs))
	}
	var vs []Version
	for i := 0; i < len(crcs); i += 4 {
		name, rest, ok := bytes.Cut(names, []byte{0})
		if !ok || len(name) == 0 || len(name) > maxName {
			return nil, formatErr("checksum %d has no proper name", i/4)
		}
		vs = append(vs, Version{f.undot(string(name)), f.order.Uint32(crcs[i:])})
		names = rest
	}
	if len(bytes.Trim(names, "\x00")) != 0 {
		return nil, formatErr("more names than checksums")
	}
	return vs, nil
}

// undot takes the dot from the name of a function's entry point: on ppc64
// with ABI v1 a module refers to .foo where the kernel exports foo.
func (f *elfFile) undot(name string) string {
	if f.machine == elf.EM_PPC64 && name != ".TOC." {
		return strings.TrimPrefix(name, ".")
	}
	return name
}

// loaderSymbols are undefined in a finished module and made by the loader of
// the machine that has them (ignored by modpost and by the loaders).
var loaderSymbols = map[string]bool{"_GLOBAL_OFFSET_TABLE_": true, ".TOC.": true}

// readSymbols fills Undefined, Weak and Exports from the symbol table.
func readSymbols(f *elfFile, m *Module) error {
	e := exports{f: f, ksymtab: map[string]symbol{}, crc: map[string]symbol{}, ns: map[string]symbol{}, cache: map[uint16][]byte{}}
	err := f.symbols(func(s symbol) error {
		switch {
		case elf.SectionIndex(s.shndx) != elf.SHN_UNDEF:
			e.note(s)
		case loaderSymbols[s.name]:
		case s.bind == elf.STB_WEAK:
			m.Weak = append(m.Weak, f.undot(s.name))
		default:
			m.Undefined = append(m.Undefined, f.undot(s.name))
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(m.Undefined)
	m.Undefined = slices.Compact(m.Undefined)
	slices.Sort(m.Weak)
	m.Weak = slices.Compact(m.Weak)
	m.Exports, err = e.list()
	return err
}

// exports collects the symbols behind a module's export tables. The tables
// hold relocations, so the symbols that name their entries are read instead.
type exports struct {
	f                *elfFile
	ksymtab, crc, ns map[string]symbol
	cache            map[uint16][]byte
}

// note keeps a defined symbol that says something about an export.
func (e *exports) note(s symbol) {
	if !strings.HasPrefix(s.name, "__") {
		return
	}
	if name, ok := strings.CutPrefix(s.name, "__ksymtab_"); ok {
		e.ksymtab[name] = s
	} else if name, ok := strings.CutPrefix(s.name, "__crc_"); ok {
		e.crc[name] = s
	} else if name, ok := strings.CutPrefix(s.name, "__kstrtabns_"); ok {
		e.ns[name] = s
	}
}

// list returns the exports sorted by name.
func (e *exports) list() ([]Export, error) {
	var all []Export
	for _, name := range slices.Sorted(maps.Keys(e.ksymtab)) {
		x, err := e.export(name, e.ksymtab[name])
		if err != nil {
			return nil, fmt.Errorf("export %q: %w", name, err)
		}
		all = append(all, x)
	}
	return all, nil
}

func (e *exports) export(name string, s symbol) (Export, error) {
	x := Export{Name: name}
	var err error
	if x.GPL, err = e.gpl(s); err != nil {
		return x, err
	}
	if crc, ok := e.crc[name]; ok {
		x.HasCRC = true
		if x.CRC, err = e.checksum(crc); err != nil {
			return x, fmt.Errorf("checksum: %w", err)
		}
	}
	if ns, ok := e.ns[name]; ok {
		if x.Namespace, err = e.text(ns); err != nil {
			return x, fmt.Errorf("namespace: %w", err)
		}
	}
	return x, nil
}

// gpl says whether an entry of the export table is for GPL-compatible modules:
// by its section, or since 7.0 by bit 0 of the flag beside it in __kflagstab.
func (e *exports) gpl(s symbol) (bool, error) {
	sec, err := e.section(s)
	if err != nil {
		return false, err
	}
	switch sec.name {
	case "__ksymtab_gpl", "__ksymtab_gpl_future", "__ksymtab_unused_gpl":
		return true, nil
	case "__ksymtab", "__ksymtab_unused":
	default:
		return false, formatErr("entry in section %q", sec.name)
	}
	flags, err := e.f.tableOnce("__kflagstab", e.cache)
	if err != nil || len(flags) == 0 {
		return false, err
	}
	size := uint64(sec.size) / uint64(len(flags))
	if size == 0 || s.value/size >= uint64(len(flags)) {
		return false, formatErr("entry at %d has no flag", s.value)
	}
	const gplOnly = 1
	return flags[s.value/size]&gplOnly != 0, nil
}

// checksum returns the value of __crc_X: the symbol's value where that is
// absolute (to 5.17), else the 32-bit word that it points to.
func (e *exports) checksum(s symbol) (uint32, error) {
	if elf.SectionIndex(s.shndx) == elf.SHN_ABS {
		return uint32(s.value), nil
	}
	data, err := e.data(s)
	if err != nil {
		return 0, err
	}
	if s.value > uint64(len(data)) || uint64(len(data))-s.value < 4 {
		return 0, formatErr("at %d of %d", s.value, len(data))
	}
	return e.f.order.Uint32(data[s.value:]), nil
}

func (e *exports) text(s symbol) (string, error) {
	data, err := e.data(s)
	if err != nil {
		return "", err
	}
	return cstring(data, s.value)
}

func (e *exports) section(s symbol) (*section, error) {
	if int(s.shndx) >= len(e.f.sections) {
		return nil, formatErr("symbol %q in section %d of %d", s.name, s.shndx, len(e.f.sections))
	}
	return &e.f.sections[s.shndx], nil
}

// data returns the content of a symbol's section and keeps it.
func (e *exports) data(s symbol) ([]byte, error) {
	if d, ok := e.cache[s.shndx]; ok {
		return d, nil
	}
	sec, err := e.section(s)
	if err != nil {
		return nil, err
	}
	d, err := e.f.data(sec)
	if err == nil {
		e.cache[s.shndx] = d
	}
	return d, err
}

// tableOnce is table with a cache by section number.
func (f *elfFile) tableOnce(name string, cache map[uint16][]byte) ([]byte, error) {
	for i := range f.sections {
		if f.sections[i].name != name {
			continue
		}
		if d, ok := cache[uint16(i)]; ok {
			return d, nil
		}
		d, err := f.table(name)
		if err == nil {
			cache[uint16(i)] = d
		}
		return d, err
	}
	return nil, nil
}
