package deb

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The format of ar(5), as far as deb(5) uses it.
const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
	arHeaderEnd  = "`\n"
	maxMembers   = 64 // of the outer archive; there are three, and a few "_" ones at most
)

// member is one file of the archive.
type member struct {
	name   string
	r      io.ReaderAt
	offset int64
	size   int64
}

func (m member) open() io.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(m.r, m.offset, m.size), 64<<10)
}

// arReader walks over the members.
type arReader struct {
	r       io.ReaderAt
	at, end int64
	n       int
}

func newArReader(r io.ReaderAt, size int64) (*arReader, error) {
	magic := make([]byte, len(arMagic))
	if _, err := r.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if string(magic) != arMagic {
		return nil, fmt.Errorf("%w: it does not begin as an ar archive", ErrFormat)
	}
	return &arReader{r: r, at: int64(len(arMagic)), end: size}, nil
}

// next returns io.EOF after the last member.
func (a *arReader) next() (member, error) {
	if a.at >= a.end {
		return member{}, io.EOF
	}
	if a.n++; a.n > maxMembers {
		return member{}, fmt.Errorf("%w of %d members", ErrLimit, maxMembers)
	}
	header := make([]byte, arHeaderSize)
	if n, err := a.r.ReadAt(header, a.at); n < len(header) {
		return member{}, fmt.Errorf("%w: truncated at byte %d: %w", ErrFormat, a.at, err)
	}
	size, err := strconv.ParseUint(strings.TrimRight(string(header[48:58]), " "), 10, 62)
	if err != nil || string(header[58:]) != arHeaderEnd {
		return member{}, fmt.Errorf("%w: bad member header at byte %d", ErrFormat, a.at)
	}
	m := member{
		name:   strings.TrimSuffix(strings.TrimRight(string(header[:16]), " "), "/"),
		r:      a.r,
		offset: a.at + arHeaderSize,
		size:   int64(size),
	}
	if m.offset > a.end || m.size > a.end-m.offset {
		return member{}, fmt.Errorf("%w: truncated: member %q of %d bytes goes beyond the end", ErrFormat, m.name, m.size)
	}
	a.at = m.offset + m.size + m.size&1 // members begin at even offsets
	return m, nil
}
