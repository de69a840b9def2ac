package rpmfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kofarm/kofarm/farm/pack/edit"
)

// Limits on headers that are read, in bytes. kernel-devel's has some 3 MB.
const maxParsedHeader = 64 << 20

const (
	typeChar  = 1
	typeInt8  = 2
	typeInt64 = 5
)

// readHeader reads a header, and gives what it holds without its region. What
// is written of that again belongs to a new region, all of it.
func readHeader(r io.Reader, region int) (header, int64, error) {
	bad := func(what string) (header, int64, error) {
		return nil, 0, fmt.Errorf("%w: malformed header: %s", edit.ErrFormat, what)
	}
	intro := make([]byte, 16)
	if _, err := io.ReadFull(r, intro); err != nil || !bytes.HasPrefix(intro, []byte{0x8e, 0xad, 0xe8, 1}) {
		return bad("magic")
	}
	tags, size := int64(binary.BigEndian.Uint32(intro[8:])), int64(binary.BigEndian.Uint32(intro[12:]))
	if tags > maxHeaderTags || size > maxParsedHeader {
		return nil, 0, fmt.Errorf("header of %d tags and %d bytes: %w", tags, size, edit.ErrLimit)
	}
	index, store := make([]byte, tags*indexSize), make([]byte, size)
	if _, err := io.ReadFull(r, index); err != nil {
		return bad("index")
	}
	if _, err := io.ReadFull(r, store); err != nil {
		return bad("store")
	}
	h := header{}
	for i := range int(tags) {
		field := func(n int) int64 { return int64(int32(binary.BigEndian.Uint32(index[i*indexSize+n*4:]))) }
		tag, kind, offset, count := field(0), field(1), field(2), field(3)
		if offset < 0 || offset > size || count < 0 || count > size {
			return bad(fmt.Sprintf("tag %d", tag))
		}
		data, ok := value(store[offset:], int(kind), int(count))
		if _, twice := h[int(tag)]; !ok || twice {
			return bad(fmt.Sprintf("tag %d", tag))
		}
		h[int(tag)] = entry{int(kind), int(count), data}
	}
	delete(h, region)
	return h, 16 + int64(len(index)) + size, nil
}

// value gives the bytes of a value at the begin of data.
func value(data []byte, kind, count int) ([]byte, bool) {
	size := 0
	switch kind {
	case typeChar, typeInt8, typeBinary:
		size = count
	case typeInt16:
		size = 2 * count
	case typeInt32:
		size = 4 * count
	case typeInt64:
		size = 8 * count
	case typeString, typeStringArray, typeI18NString:
		if kind == typeString {
			count = 1
		}
		for range count {
			n := bytes.IndexByte(data[size:], 0)
			if n < 0 {
				return nil, false
			}
			size += n + 1
		}
	default:
		return nil, false
	}
	if size > len(data) {
		return nil, false
	}
	return data[:size], true
}

// texts gives the strings of a tag.
func (h header) texts(tag int) []string {
	e := h[tag]
	if e.kind != typeString && e.kind != typeStringArray && e.kind != typeI18NString {
		return nil
	}
	var list []string
	for s := range bytes.SplitSeq(bytes.TrimSuffix(e.data, []byte{0}), []byte{0}) {
		list = append(list, string(s))
	}
	return list
}

// numbers gives the 32-bit numbers of a tag.
func (h header) numbers(tag int) []uint32 {
	e := h[tag]
	if e.kind != typeInt32 {
		return nil
	}
	var list []uint32
	for i := range e.count {
		list = append(list, binary.BigEndian.Uint32(e.data[4*i:]))
	}
	return list
}
