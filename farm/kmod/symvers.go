package kmod

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Limits of a Module.symvers. The largest kernels export some 30,000 symbols
// in 2.5 MB.
const (
	maxSymversBytes = 128 << 20
	maxSymversLine  = 16 << 10
	maxSymbols      = 1 << 20
)

// Symbol is one line of a Module.symvers.
type Symbol struct {
	Name      string
	CRC       uint32 // 0 throughout for a kernel without modversions
	Module    string // "vmlinux", or a module's path without .ko
	GPL       bool   // for GPL-compatible modules only
	Namespace string // empty: none
}

// Symvers is a Module.symvers in a compact form: about 40 bytes a symbol,
// which is 1 MB for the 25,000 of a large kernel. It is safe for concurrent use.
type Symvers struct {
	names   string // all names in sorted order, without separators
	ends    []uint32
	crcs    []uint32
	modules []uint32 // indexes of strings
	spaces  []uint32 // indexes of strings
	gpl     []bool
	strings []string
	hasCRCs bool
}

// Len returns the number of symbols.
func (s *Symvers) Len() int { return len(s.ends) }

// HasCRCs says whether the kernel was built with modversions: without, every
// checksum is 0.
func (s *Symvers) HasCRCs() bool { return s.hasCRCs }

// Lookup finds an exported symbol.
func (s *Symvers) Lookup(name string) (Symbol, bool) {
	i, ok := s.search(name)
	if !ok {
		return Symbol{}, false
	}
	return Symbol{
		Name: s.name(i), CRC: s.crcs[i], Module: s.strings[s.modules[i]],
		GPL: s.gpl[i], Namespace: s.strings[s.spaces[i]],
	}, true
}

func (s *Symvers) search(name string) (int, bool) {
	lo, hi := 0, len(s.ends)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := strings.Compare(s.name(mid), name); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

func (s *Symvers) name(i int) string {
	start := uint32(0)
	if i > 0 {
		start = s.ends[i-1]
	}
	return s.names[start:s.ends[i]]
}

// ParseSymvers reads a Module.symvers. The columns, divided by tabs, are
//
//	checksum symbol module export             to 5.3
//	checksum symbol namespace module export   5.4 to 5.6, first releases
//	checksum symbol module export namespace   since 5.7, and stable 5.4 from .29
//
// The order is told by the column that says EXPORT_…. Of a symbol that is
// listed twice the first counts, as for modpost. Errors name the line and wrap
// [ErrFormat] or [ErrLimit].
func ParseSymvers(r io.Reader) (*Symvers, error) {
	p := symversParser{index: map[string]uint32{"": 0}, strings: []string{""}}
	limited := &io.LimitedReader{R: r, N: maxSymversBytes + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 4096), maxSymversLine)
	n := 0
	for lines.Scan() {
		n++
		if err := p.line(lines.Text()); err != nil {
			return nil, fmt.Errorf("reading Module.symvers:%d: %w", n, err)
		}
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fmt.Errorf("%w of %d bytes in a line", ErrLimit, maxSymversLine)
	} else if err == nil && limited.N <= 0 {
		err = fmt.Errorf("%w of %d bytes", ErrLimit, maxSymversBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("reading Module.symvers:%d: %w", n+1, err)
	}
	return p.symvers(), nil
}

// symversParser collects rows; the names of modules and namespaces are kept once.
type symversParser struct {
	rows    []symversRow
	names   []byte
	index   map[string]uint32
	strings []string
}

type symversRow struct {
	start, end          uint32 // of the name in names
	crc, module, nspace uint32
	gpl                 bool
}

func (p *symversParser) line(line string) error {
	cols := strings.Split(line, "\t")
	if len(cols) < 4 || len(cols) > 5 {
		return formatErr("%d columns", len(cols))
	}
	crc, err := strconv.ParseUint(cols[0], 0, 32)
	if err != nil || !strings.HasPrefix(cols[0], "0x") {
		return formatErr("checksum %q", cols[0])
	}
	module, export, namespace, err := symversColumns(cols)
	if err != nil {
		return err
	}
	name := cols[1]
	if name == "" || len(name) > maxName {
		return formatErr("symbol %.40q", name)
	}
	if len(p.rows) >= maxSymbols {
		return fmt.Errorf("%w of %d symbols", ErrLimit, maxSymbols)
	}
	start := uint32(len(p.names))
	p.names = append(p.names, name...)
	p.rows = append(p.rows, symversRow{
		start: start, end: uint32(len(p.names)), crc: uint32(crc),
		module: p.intern(module), nspace: p.intern(namespace),
		gpl: strings.Contains(export, "_GPL"),
	})
	return nil
}

// symversColumns tells the orders of the columns apart.
func symversColumns(cols []string) (module, export, namespace string, err error) {
	switch {
	case isExport(cols[3]) && len(cols) == 4:
		return cols[2], cols[3], "", nil
	case isExport(cols[3]):
		return cols[2], cols[3], cols[4], nil
	case len(cols) == 5 && isExport(cols[4]):
		return cols[3], cols[4], cols[2], nil
	}
	return "", "", "", formatErr("no column says EXPORT_SYMBOL")
}

func isExport(s string) bool {
	return strings.HasPrefix(s, "EXPORT_SYMBOL") || strings.HasPrefix(s, "EXPORT_UNUSED_SYMBOL")
}

func (p *symversParser) intern(s string) uint32 {
	if i, ok := p.index[s]; ok {
		return i
	}
	i := uint32(len(p.strings))
	s = strings.Clone(s) // not the whole line
	p.index[s] = i
	p.strings = append(p.strings, s)
	return i
}

// symvers sorts the rows into the compact form.
func (p *symversParser) symvers() *Symvers {
	name := func(r symversRow) []byte { return p.names[r.start:r.end] }
	slices.SortFunc(p.rows, func(a, b symversRow) int {
		return cmp.Or(bytes.Compare(name(a), name(b)), cmp.Compare(a.start, b.start))
	})
	p.rows = slices.CompactFunc(p.rows, func(a, b symversRow) bool { return bytes.Equal(name(a), name(b)) })
	n := len(p.rows)
	s := &Symvers{
		ends: make([]uint32, n), crcs: make([]uint32, n), modules: make([]uint32, n),
		spaces: make([]uint32, n), gpl: make([]bool, n), strings: p.strings,
	}
	var names strings.Builder
	names.Grow(len(p.names))
	for i, r := range p.rows {
		names.Write(name(r))
		s.ends[i] = uint32(names.Len())
		s.crcs[i], s.modules[i], s.spaces[i], s.gpl[i] = r.crc, r.module, r.nspace, r.gpl
		s.hasCRCs = s.hasCRCs || r.crc != 0
	}
	s.names = names.String()
	return s
}
