package kmod

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// What a caller may branch on.
var (
	// ErrFormat marks input that is not a well-formed module or Module.symvers.
	ErrFormat = errors.New("malformed")
	// ErrLimit marks input that is larger than a limit allows.
	ErrLimit = errors.New("over the limit")
)

// Limits bound what reading one module may cost. The zero value means the
// defaults; sizes are in bytes.
type Limits struct {
	// File bounds the module as stored. Default [DefaultFile].
	File int64
	// Memory bounds a module that has to be held in memory: one from a
	// stream, or a compressed one when decompressed. Default [DefaultMemory].
	Memory int64
	// Tables bounds the sum of the tables read from one module: section
	// headers, symbols, strings, modinfo, versions, signature.
	// Default [DefaultTables].
	Tables int64
	// PlainOnly refuses compressed modules. Set it for what a build made:
	// the farm's recipe hands out plain modules, so anything else is a trick.
	PlainOnly bool
}

// Defaults of [Limits]. The largest modules known (GPU drivers built with
// STRIP=no) take some 300 MB of file and under 30 MB of tables.
const (
	DefaultFile   = 1 << 30
	DefaultMemory = 512 << 20
	DefaultTables = 64 << 20
)

func (l Limits) withDefaults() Limits {
	if l.File <= 0 {
		l.File = DefaultFile
	}
	if l.Memory <= 0 {
		l.Memory = DefaultMemory
	}
	if l.Tables <= 0 {
		l.Tables = DefaultTables
	}
	return l
}

// KV is one string of .modinfo; Value is empty where the string has no "=".
type KV struct{ Key, Value string }

// Version is one modversions record: the checksum that the named symbol had
// when the module was built.
type Version struct {
	Name string
	CRC  uint32
}

// Export is a symbol that a module offers to others.
type Export struct {
	Name      string
	CRC       uint32 // 0 unless HasCRC
	HasCRC    bool   // false without modversions, or where genksyms knew no prototype
	GPL       bool   // for GPL-compatible modules only
	Namespace string // empty: none
}

// Module is what the farm knows about one .ko file. Slices are sorted by name
// (Info keeps the file's order), strings are as found in the file and may
// hold any byte except NUL.
type Module struct {
	// Name is modinfo's "name"; empty before kernel 4.13 and where .modinfo is missing.
	Name string
	// Machine is the DKMS arch (uname -m) of the ELF header, as x86_64,
	// aarch64, ppc64le; "unknown (EM_…)" for others.
	Machine string
	// Vermagic is modinfo's "vermagic", first word the kernel release.
	Vermagic string
	// HasModinfo tells a module without .modinfo from one with an empty one.
	HasModinfo bool
	// Info are the strings of .modinfo in the order of the file.
	Info []KV
	// Versions are the modversions records, both forms together.
	Versions []Version
	// Undefined are the symbols that a kernel must resolve at load, without
	// weak ones; Weak are those it may leave unresolved.
	Undefined, Weak []string
	// Exports are the symbols offered to other modules.
	Exports []Export
	// Signature is nil for an unsigned module.
	Signature *Signature
	// Compression is "", "gz", "xz" or "zst", as the file was stored.
	Compression string
	// BuildID is the GNU build-id in hexadecimal; empty if there is none.
	BuildID string
	// HasBTF says that there is a .BTF section.
	HasBTF bool
}

// Get returns the first value of a .modinfo key, as the kernel's loader does;
// empty if there is none.
func (m *Module) Get(key string) string {
	for _, kv := range m.Info {
		if kv.Key == key {
			return kv.Value
		}
	}
	return ""
}

// All returns every value of a .modinfo key in the order of the file.
func (m *Module) All(key string) []string {
	var values []string
	for _, kv := range m.Info {
		if kv.Key == key {
			values = append(values, kv.Value)
		}
	}
	return values
}

// Read reads a module from a stream: plain or compressed (gz, xz, zst, by
// magic), signed or not. The module is held in memory while it is read. Errors
// wrap [ErrFormat], [ErrLimit] or the reader's own.
func Read(r io.Reader, limits Limits) (*Module, error) {
	limits = limits.withDefaults()
	data, err := readLimited(r, min(limits.File, limits.Memory))
	if err != nil {
		return nil, fmt.Errorf("reading module: %w", err)
	}
	return ReadAt(bytes.NewReader(data), int64(len(data)), limits)
}

// ReadAt is [Read] for a module of the given size in bytes that can be read at
// any offset. A compressed one is decompressed to memory, within limits.
func ReadAt(r io.ReaderAt, size int64, limits Limits) (*Module, error) {
	limits = limits.withDefaults()
	if size > limits.File {
		return nil, fmt.Errorf("reading module of %d bytes: %w of %d", size, ErrLimit, limits.File)
	}
	compression, err := detect(r, size)
	if err != nil {
		return nil, err
	}
	if compression == "" {
		return readPlain(r, size, limits)
	}
	if limits.PlainOnly {
		return nil, fmt.Errorf("%w: compressed (%s), a plain module was expected", ErrFormat, compression)
	}
	data, err := decompress(compression, io.NewSectionReader(r, 0, size), limits.Memory)
	if err != nil {
		return nil, fmt.Errorf("decompressing module (%s): %w", compression, err)
	}
	m, err := readPlain(bytes.NewReader(data), int64(len(data)), limits)
	if err != nil {
		return nil, err
	}
	m.Compression = compression
	return m, nil
}

// readPlain reads a decompressed module.
func readPlain(r io.ReaderAt, size int64, limits Limits) (*Module, error) {
	sig, size, err := ReadSignature(r, size)
	if err != nil {
		return nil, err
	}
	f, err := newELF(r, size, limits.Tables)
	if err != nil {
		return nil, err
	}
	m := &Module{Machine: f.arch(), Signature: sig, HasBTF: f.find(".BTF") != nil}
	for _, part := range []struct {
		name string
		read func(*elfFile, *Module) error
	}{
		{".modinfo", readModinfo},
		{"modversions", readVersions},
		{"symbols", readSymbols},
		{"build-id", readBuildID},
	} {
		if err := part.read(f, m); err != nil {
			return nil, fmt.Errorf("reading %s: %w", part.name, err)
		}
	}
	return m, nil
}

// readModinfo fills what comes from .modinfo.
func readModinfo(f *elfFile, m *Module) error {
	data, err := f.table(".modinfo")
	if err != nil {
		return err
	}
	m.HasModinfo = data != nil
	for s := range bytes.SplitSeq(data, []byte{0}) {
		if len(s) == 0 {
			continue
		}
		key, value, _ := strings.Cut(string(s), "=")
		m.Info = append(m.Info, KV{key, value})
	}
	m.Name = m.Get("name")
	m.Vermagic = m.Get("vermagic")
	return nil
}
