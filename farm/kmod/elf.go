package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// elfFile is a relocatable ELF file of which the section headers are read and
// the rest is read on demand. Kernel modules have no program headers.
type elfFile struct {
	r        io.ReaderAt
	size     int64
	order    binary.ByteOrder
	wide     bool // ELFCLASS64
	machine  elf.Machine
	sections []section
	budget   int64 // bytes of tables that may still be read
}

// section is a section header; off and size are checked against the file
// unless typ is SHT_NOBITS.
type section struct {
	name      string
	typ       elf.SectionType
	flags     uint64
	off, size int64
	link      uint32
}

// symbol is an entry of the symbol table.
type symbol struct {
	name  string
	bind  elf.SymBind
	shndx uint16
	value uint64
}

func formatErr(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// newELF reads the header and the section headers of a file of size bytes and
// checks that it is an ET_REL object.
func newELF(r io.ReaderAt, size, budget int64) (*elfFile, error) {
	f := &elfFile{r: r, size: size, budget: budget}
	ident, err := f.read(0, elf.EI_NIDENT)
	if err != nil {
		return nil, fmt.Errorf("reading ELF header: %w", err)
	}
	if string(ident[:4]) != elf.ELFMAG {
		return nil, formatErr("not an ELF file")
	}
	if err := f.ident(ident); err != nil {
		return nil, err
	}
	shoff, shnum, shstrndx, err := f.header()
	if err != nil {
		return nil, err
	}
	if err := f.readSections(shoff, shnum, shstrndx); err != nil {
		return nil, fmt.Errorf("reading section headers: %w", err)
	}
	return f, nil
}

func (f *elfFile) ident(ident []byte) error {
	switch elf.Class(ident[elf.EI_CLASS]) {
	case elf.ELFCLASS32:
	case elf.ELFCLASS64:
		f.wide = true
	default:
		return formatErr("ELF class %d", ident[elf.EI_CLASS])
	}
	switch elf.Data(ident[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return formatErr("ELF data encoding %d", ident[elf.EI_DATA])
	}
	return nil
}

// header reads the rest of the ELF header. Extended section numbering (65280
// sections and more) is refused, as the kernel's loader does.
func (f *elfFile) header() (shoff uint64, shnum, shstrndx int, err error) {
	size, shoffAt, tail := 52, 32, 46
	if f.wide {
		size, shoffAt, tail = 64, 40, 58
	}
	h, err := f.read(0, int64(size))
	if err != nil {
		return 0, 0, 0, fmt.Errorf("reading ELF header: %w", err)
	}
	if t := elf.Type(f.order.Uint16(h[16:])); t != elf.ET_REL {
		return 0, 0, 0, formatErr("ELF type %v, a module is ET_REL", t)
	}
	f.machine = elf.Machine(f.order.Uint16(h[18:]))
	shoff = f.word(h[shoffAt:])
	shentsize := int(f.order.Uint16(h[tail:]))
	shnum = int(f.order.Uint16(h[tail+2:]))
	shstrndx = int(f.order.Uint16(h[tail+4:]))
	if shentsize != f.headerSize() {
		return 0, 0, 0, formatErr("section header size %d, want %d", shentsize, f.headerSize())
	}
	if shnum == 0 || shnum >= int(elf.SHN_LORESERVE) || shstrndx >= shnum {
		return 0, 0, 0, formatErr("%d sections, names in number %d", shnum, shstrndx)
	}
	return shoff, shnum, shstrndx, nil
}

func (f *elfFile) headerSize() int {
	if f.wide {
		return 64
	}
	return 40
}

// word reads a field that is as wide as an address.
func (f *elfFile) word(b []byte) uint64 {
	if f.wide {
		return f.order.Uint64(b)
	}
	return uint64(f.order.Uint32(b))
}

func (f *elfFile) readSections(shoff uint64, shnum, shstrndx int) error {
	if shoff > uint64(f.size) {
		return formatErr("at offset %d of %d", shoff, f.size)
	}
	raw, err := f.read(int64(shoff), int64(shnum*f.headerSize()))
	if err != nil {
		return err
	}
	f.sections = make([]section, shnum)
	names := make([]uint32, shnum)
	for i := range f.sections {
		h := raw[i*f.headerSize():]
		names[i] = f.order.Uint32(h)
		if f.sections[i], err = f.section(h); err != nil {
			return fmt.Errorf("section %d: %w", i, err)
		}
	}
	strs, err := f.data(&f.sections[shstrndx])
	if err != nil {
		return fmt.Errorf("names: %w", err)
	}
	for i := range f.sections {
		if f.sections[i].name, err = cstring(strs, uint64(names[i])); err != nil {
			return fmt.Errorf("name of section %d: %w", i, err)
		}
	}
	return nil
}

// section decodes a section header and checks that the content is in the file.
func (f *elfFile) section(h []byte) (section, error) {
	typ := elf.SectionType(f.order.Uint32(h[4:]))
	w := 4
	if f.wide {
		w = 8
	}
	flags, off, size := f.word(h[8:]), f.word(h[8+2*w:]), f.word(h[8+3*w:])
	link := f.order.Uint32(h[8+4*w:])
	s := section{typ: typ, flags: flags, link: link}
	if typ == elf.SHT_NOBITS || typ == elf.SHT_NULL {
		return s, nil
	}
	if off > uint64(f.size) || size > uint64(f.size)-off {
		return s, formatErr("%d bytes at %d, past the end at %d", size, off, f.size)
	}
	s.off, s.size = int64(off), int64(size)
	return s, nil
}

// read returns n bytes at off and takes them from the budget.
func (f *elfFile) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > f.size || n > f.size-off {
		return nil, formatErr("%d bytes at %d, past the end at %d", n, off, f.size)
	}
	if n > f.budget {
		return nil, fmt.Errorf("tables: %w of bytes", ErrLimit)
	}
	f.budget -= n
	b := make([]byte, n)
	if _, err := f.r.ReadAt(b, off); err != nil && !(errors.Is(err, io.EOF) && off+n == f.size) {
		return nil, err
	}
	return b, nil
}

// data returns the content of a section.
func (f *elfFile) data(s *section) ([]byte, error) {
	if s.typ == elf.SHT_NOBITS || s.typ == elf.SHT_NULL {
		return nil, formatErr("section %q has no content", s.name)
	}
	if s.flags&uint64(elf.SHF_COMPRESSED) != 0 {
		return nil, formatErr("section %q is compressed", s.name)
	}
	return f.read(s.off, s.size)
}

// find returns the first section of that name, nil if there is none.
func (f *elfFile) find(name string) *section {
	for i := range f.sections {
		if f.sections[i].name == name {
			return &f.sections[i]
		}
	}
	return nil
}

// table returns the content of the one section of that name, nil if there is
// none. A second one is refused: readers would differ on which one counts.
func (f *elfFile) table(name string) ([]byte, error) {
	var found *section
	for i := range f.sections {
		if f.sections[i].name != name {
			continue
		}
		if found != nil {
			return nil, formatErr("more than one section %s", name)
		}
		found = &f.sections[i]
	}
	if found == nil {
		return nil, nil
	}
	return f.data(found)
}

// symbols calls yield for every symbol except the null one.
func (f *elfFile) symbols(yield func(symbol) error) error {
	tab, strs, err := f.symbolTables()
	if err != nil || tab == nil {
		return err
	}
	entry := 16
	if f.wide {
		entry = 24
	}
	if len(tab)%entry != 0 {
		return formatErr("symbol table of %d bytes", len(tab))
	}
	for i := entry; i < len(tab); i += entry {
		s, err := f.symbol(tab[i:i+entry], strs)
		if err != nil {
			return fmt.Errorf("symbol %d: %w", i/entry, err)
		}
		if err := yield(s); err != nil {
			return err
		}
	}
	return nil
}

// symbolTables returns the symbol table and its strings, nil if the file has none.
func (f *elfFile) symbolTables() (tab, strs []byte, err error) {
	var found *section
	for i := range f.sections {
		if f.sections[i].typ != elf.SHT_SYMTAB {
			continue
		}
		if found != nil {
			return nil, nil, formatErr("more than one symbol table")
		}
		found = &f.sections[i]
	}
	if found == nil {
		return nil, nil, nil
	}
	if int64(found.link) >= int64(len(f.sections)) {
		return nil, nil, formatErr("symbol names in section %d of %d", found.link, len(f.sections))
	}
	if tab, err = f.data(found); err != nil {
		return nil, nil, err
	}
	if strs, err = f.data(&f.sections[found.link]); err != nil {
		return nil, nil, err
	}
	return tab, strs, nil
}

func (f *elfFile) symbol(b, strs []byte) (symbol, error) {
	name, err := cstring(strs, uint64(f.order.Uint32(b)))
	if err != nil {
		return symbol{}, err
	}
	if f.wide {
		return symbol{name, elf.ST_BIND(b[4]), f.order.Uint16(b[6:]), f.order.Uint64(b[8:])}, nil
	}
	return symbol{name, elf.ST_BIND(b[12]), f.order.Uint16(b[14:]), uint64(f.order.Uint32(b[4:]))}, nil
}

// cstring returns the NUL-terminated string at off.
func cstring(b []byte, off uint64) (string, error) {
	if off > uint64(len(b)) {
		return "", formatErr("string at %d of %d", off, len(b))
	}
	b = b[off:]
	n := bytes.IndexByte(b, 0)
	if n < 0 {
		return "", formatErr("string at %d without an end", off)
	}
	if n > maxName {
		return "", fmt.Errorf("string at %d: %w of %d bytes", off, ErrLimit, maxName)
	}
	return string(b[:n]), nil
}

// maxName bounds the name of a section or symbol; the kernel's own
// KSYM_NAME_LEN is 512.
const maxName = 4096

// ProgramArch gives the DKMS arch of an ELF program or shared library by its
// first 20 bytes, and "" for any other file.
func ProgramArch(r io.ReaderAt) (string, error) {
	data := make([]byte, 20)
	if n, err := r.ReadAt(data, 0); n < len(data) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if string(data[:4]) != elf.ELFMAG {
		return "", nil
	}
	little := elf.Data(data[elf.EI_DATA]) == elf.ELFDATA2LSB
	order := binary.ByteOrder(binary.BigEndian)
	if little {
		order = binary.LittleEndian
	}
	if t := elf.Type(order.Uint16(data[16:])); t != elf.ET_EXEC && t != elf.ET_DYN {
		return "", nil
	}
	return arches[elfKind{elf.Machine(order.Uint16(data[18:])), elf.Class(data[elf.EI_CLASS]) == elf.ELFCLASS64, little}], nil
}

// arches maps what an ELF header says to the DKMS arch, which is uname -m.
var arches = map[elfKind]string{
	{elf.EM_X86_64, true, true}:        "x86_64",
	{elf.EM_386, false, true}:          "i686",
	{elf.EM_AARCH64, true, true}:       "aarch64",
	{elf.EM_ARM, false, true}:          "armv7l",
	{elf.EM_PPC64, true, true}:         "ppc64le",
	{elf.EM_PPC64, true, false}:        "ppc64",
	{elf.EM_PPC, false, false}:         "ppc",
	{elf.EM_S390, true, false}:         "s390x",
	{elf.EM_RISCV, true, true}:         "riscv64",
	{elf.EM_LOONGARCH, true, true}:     "loongarch64",
	{elf.EM_MIPS, true, true}:          "mips64",
	{elf.EM_MIPS, true, false}:         "mips64",
	{elf.EM_MIPS, false, true}:         "mips",
	{elf.EM_MIPS, false, false}:        "mips",
	{elf.EM_SPARCV9, true, false}:      "sparc64",
	{elf.EM_PARISC, false, false}:      "parisc",
	{elf.EM_PARISC, true, false}:       "parisc64",
	{elf.EM_68K, false, false}:         "m68k",
	{elf.EM_ALPHA, true, true}:         "alpha",
	{elf.EM_ALPHA_STD, true, true}:     "alpha",
	{elf.EM_SH, false, true}:           "sh4",
	{elf.EM_IA_64, true, true}:         "ia64",
	{elf.EM_ARC_COMPACT2, false, true}: "arc",
}

// elfKind is what tells machines apart: number, 64 bits, little-endian.
type elfKind struct {
	machine      elf.Machine
	wide, little bool
}

func (f *elfFile) arch() string {
	kind := elfKind{f.machine, f.wide, f.order == binary.LittleEndian}
	if a, ok := arches[kind]; ok {
		return a
	}
	bits, end := 32, "big-endian"
	if kind.wide {
		bits = 64
	}
	if kind.little {
		end = "little-endian"
	}
	return fmt.Sprintf("unknown (%v, %d-bit, %s)", f.machine, bits, end)
}

// readBuildID fills the build-id from its ELF note: the sizes of name and
// description, a type, "GNU\0" and the id.
func readBuildID(f *elfFile, m *Module) error {
	note, err := f.table(".note.gnu.build-id")
	if err != nil || note == nil {
		return err
	}
	const gnu, typeBuildID = "GNU\x00", 3
	if len(note) < 16 || string(note[12:16]) != gnu || f.order.Uint32(note) != 4 || f.order.Uint32(note[8:]) != typeBuildID {
		return formatErr("not a build-id note")
	}
	id := note[16:]
	if n := f.order.Uint32(note[4:]); uint64(n) <= uint64(len(id)) {
		m.BuildID = hex.EncodeToString(id[:n])
		return nil
	}
	return formatErr("note of %d bytes", len(note))
}
