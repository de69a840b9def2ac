package apt

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Limits on a Packages index; sid's main has 65 MB and 77,000 packages, its longest line 40 kB.
const (
	maxIndexBytes  = 1 << 30
	maxIndexLine   = 1 << 20
	maxStanza      = 4 << 20
	maxIndexStanza = 2_000_000
)

// table knows where the stanzas of one Packages file are. It keeps names and offsets only: the
// file stays on disk and a stanza is parsed when it is asked for.
type table struct {
	file      *os.File
	entries   []entry   // by name, then position
	provides  []provide // by name, then entry
	essential []string
}

type entry struct {
	name   string
	offset uint32
	length uint32
}

// provide says that entries[entry] provides name.
type provide struct {
	name  string
	entry int32
}

var (
	fieldPackage   = []byte("Package: ")
	fieldProvides  = []byte("Provides: ")
	fieldEssential = []byte("Essential: yes")
)

// openTable scans a Packages file. The table owns the file from then on.
func openTable(path string) (*table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t, err := scanTable(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	t.file = f
	return t, nil
}

// span is a part of the scanner's arena.
type span struct{ from, to uint32 }

// scanner collects names in one arena, so that a table of 77,000 packages is a handful of
// allocations.
type scanner struct {
	arena     []byte
	packages  []span
	offsets   [][2]uint32
	provides  []span
	owners    []int32
	essential []int32

	at, start int64 // bytes: of the current line, of the current stanza
	inside    bool  // a stanza
}

// scanTable reads the fields of each stanza that a table needs. It looks at each line of tens of megabytes, so
// it takes them from a buffer of its own.
func scanTable(r io.Reader) (*table, error) {
	var s scanner
	buf := make([]byte, maxIndexLine)
	held := 0 // bytes in buf: a line's beginning
	for {
		n, err := r.Read(buf[held:])
		rest := buf[:held+n]
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			if err := s.next(rest[:i+1]); err != nil {
				return nil, err
			}
			rest = rest[i+1:]
		}
		if err == io.EOF {
			if len(rest) > 0 {
				if err := s.next(rest); err != nil {
					return nil, err
				}
			}
			s.end()
			return s.table()
		}
		if err != nil {
			return nil, err
		}
		if len(rest) == len(buf) {
			return nil, fmt.Errorf("line at byte %d: %w of %d bytes", s.at, ErrLimit, maxIndexLine)
		}
		held = copy(buf, rest)
	}
}

// next takes up one line.
func (s *scanner) next(line []byte) error {
	if len(line) <= 1 {
		s.end()
	} else {
		if !s.inside {
			if len(s.packages) == maxIndexStanza {
				return fmt.Errorf("%w of %d packages", ErrLimit, maxIndexStanza)
			}
			s.start, s.inside = s.at, true
			s.packages = append(s.packages, span{})
		}
		if line[0] == 'P' || line[0] == 'E' {
			s.field(line)
		}
	}
	if s.at += int64(len(line)); s.at > maxIndexBytes {
		return fmt.Errorf("%w of %d bytes", ErrLimit, maxIndexBytes)
	}
	return nil
}

// field takes up a line of the current stanza that may be a field which a table needs.
func (s *scanner) field(line []byte) {
	current := int32(len(s.packages) - 1)
	if name, ok := bytes.CutPrefix(line, fieldPackage); ok {
		s.packages[current] = s.keep(bytes.TrimSpace(name))
	} else if list, ok := bytes.CutPrefix(line, fieldProvides); ok {
		for part := range bytes.SplitSeq(list, []byte(",")) {
			if name := nameOf(part); len(name) > 0 {
				s.provides = append(s.provides, s.keep(name))
				s.owners = append(s.owners, current)
			}
		}
	} else if bytes.HasPrefix(line, fieldEssential) {
		s.essential = append(s.essential, current)
	}
}

// nameOf cuts " libfoo:any (= 1)" down to "libfoo".
func nameOf(part []byte) []byte {
	part = bytes.TrimLeft(part, " ")
	if i := bytes.IndexAny(part, " (:\n\r"); i >= 0 {
		return part[:i]
	}
	return part
}

func (s *scanner) keep(name []byte) span {
	from := uint32(len(s.arena))
	s.arena = append(s.arena, name...)
	return span{from, uint32(len(s.arena))}
}

// end ends the current stanza, if there is one, before the current line.
func (s *scanner) end() {
	if s.inside {
		s.offsets = append(s.offsets, [2]uint32{uint32(s.start), uint32(s.at - s.start)})
	}
	s.inside = false
}

// table sorts what was collected.
func (s *scanner) table() (*table, error) {
	names := string(s.arena)
	t := &table{entries: make([]entry, len(s.packages)), provides: make([]provide, len(s.provides))}
	for i, p := range s.packages {
		if p.from == p.to {
			return nil, fmt.Errorf("the stanza at byte %d has no Package field", s.offsets[i][0])
		}
		t.entries[i] = entry{names[p.from:p.to], s.offsets[i][0], s.offsets[i][1]}
	}
	for _, i := range s.essential {
		t.essential = append(t.essential, t.entries[i].name)
	}
	position := t.sortEntries()
	for i, p := range s.provides {
		owner := s.owners[i]
		if position != nil {
			owner = position[owner]
		}
		t.provides[i] = provide{names[p.from:p.to], owner}
	}
	slices.SortFunc(t.provides, func(a, b provide) int {
		return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.entry, b.entry))
	})
	return t, nil
}

// sortEntries returns where each entry went; nil where all stayed, as in Debian's own indexes.
func (t *table) sortEntries() []int32 {
	order := func(a, b entry) int {
		return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.offset, b.offset))
	}
	if slices.IsSortedFunc(t.entries, order) {
		return nil
	}
	byOffset := slices.Clone(t.entries)
	slices.SortFunc(t.entries, order)
	position := make([]int32, len(t.entries))
	for now, e := range t.entries {
		before, _ := slices.BinarySearchFunc(byOffset, e.offset, func(e entry, offset uint32) int { return cmp.Compare(e.offset, offset) })
		position[before] = int32(now)
	}
	return position
}

// find returns the range of the entries called name.
func (t *table) find(name string) (from, to int) {
	from, _ = slices.BinarySearchFunc(t.entries, name, func(e entry, n string) int { return strings.Compare(e.name, n) })
	for to = from; to < len(t.entries) && t.entries[to].name == name; to++ {
	}
	return from, to
}

// providers returns the entries that provide name.
func (t *table) providers(name string) []int {
	i, _ := slices.BinarySearchFunc(t.provides, name, func(p provide, n string) int { return strings.Compare(p.name, n) })
	var all []int
	for ; i < len(t.provides) && t.provides[i].name == name; i++ {
		if e := int(t.provides[i].entry); len(all) == 0 || all[len(all)-1] != e {
			all = append(all, e)
		}
	}
	return all
}

// stanza reads and parses one entry.
func (t *table) stanza(i int) (*Package, error) {
	e := t.entries[i]
	if e.length > maxStanza {
		return nil, fmt.Errorf("package %q: %w of %d bytes", e.name, ErrLimit, maxStanza)
	}
	data := make([]byte, e.length)
	if _, err := t.file.ReadAt(data, int64(e.offset)); err != nil {
		return nil, fmt.Errorf("package %q: %w", e.name, err)
	}
	return parsePackage(data)
}
