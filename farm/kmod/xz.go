package kmod

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader reads the first stream of an .xz file as far as its index. The
// container is read here, because the library's reader allocates whatever
// dictionary a block header asks for, up to 4 GiB; the LZMA2 data inside is the
// library's. Format: https://tukaani.org/xz/xz-file-format.txt
type xzReader struct {
	in    *countingReader
	check func() hash.Hash // nil: blocks carry no checksum
	block *xzBlock
}

type xzBlock struct {
	data  io.Reader
	start int64 // of the block's compressed data
	sum   hash.Hash
}

const (
	xzMagic = "\xfd7zXZ\x00"
	// lzma2Filter is the only filter accepted, with a property of one byte;
	// kernel modules are packed with nothing else.
	lzma2Filter = 0x21
)

// xzChecks are the integrity checks of the format, by number. CRC32 and CRC64
// are stored little-endian, SHA-256 as it is.
var xzChecks = map[byte]func() hash.Hash{
	0x00: nil,
	0x01: func() hash.Hash { return crc32.NewIEEE() },
	0x04: func() hash.Hash { return crc64.New(crc64.MakeTable(crc64.ECMA)) },
	0x0a: sha256.New,
}

// countingReader counts what is read through it. It is an io.ByteReader so
// that LZMA2 takes exactly what it needs.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func newXZReader(r *bufio.Reader) (*xzReader, error) {
	x := &xzReader{in: &countingReader{r: r}}
	var h [12]byte
	if _, err := io.ReadFull(x.in, h[:]); err != nil {
		return nil, err
	}
	if string(h[:6]) != xzMagic || h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return nil, formatErr("xz stream header")
	}
	var known bool
	if x.check, known = xzChecks[h[7]]; !known {
		return nil, formatErr("xz check type %#x", h[7])
	}
	return x, nil
}

func (x *xzReader) Read(p []byte) (int, error) {
	for {
		if x.block == nil {
			if err := x.open(); err != nil {
				return 0, err
			}
		}
		n, err := x.block.data.Read(p)
		if x.block.sum != nil {
			x.block.sum.Write(p[:n])
		}
		if errors.Is(err, io.EOF) {
			err = x.close()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// open reads a block header; io.EOF where the index begins.
func (x *xzReader) open() error {
	size, err := x.in.ReadByte()
	if err != nil {
		return noEOF(err)
	}
	if size == 0 {
		return io.EOF
	}
	h := make([]byte, (int(size)+1)*4)
	h[0] = size
	if _, err := io.ReadFull(x.in, h[1:]); err != nil {
		return noEOF(err)
	}
	body, sum := h[:len(h)-4], h[len(h)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return formatErr("checksum of an xz block header")
	}
	dict, err := xzDictionary(body[1:])
	if err != nil {
		return err
	}
	b := &xzBlock{start: x.in.n}
	if b.data, err = (lzma.Reader2Config{DictCap: dict}).NewReader2(x.in); err != nil {
		return err
	}
	if x.check != nil {
		b.sum = x.check()
	}
	x.block = b
	return nil
}

// xzDictionary returns the dictionary size in bytes that a block header
// (after its size byte) asks for.
func xzDictionary(h []byte) (int, error) {
	flags := h[0]
	if flags&0x3f != 0 { // number of filters less one, and reserved bits
		return 0, formatErr("xz block flags %#x", flags)
	}
	h = h[1:]
	for _, bit := range []byte{0x40, 0x80} { // compressed and uncompressed size
		if flags&bit == 0 {
			continue
		}
		_, n := binary.Uvarint(h)
		if n <= 0 {
			return 0, formatErr("xz block header")
		}
		h = h[n:]
	}
	if len(h) < 3 || h[0] != lzma2Filter || h[1] != 1 {
		return 0, formatErr("xz filter other than LZMA2")
	}
	dict, err := lzma.DecodeDictCap(h[2])
	if err != nil {
		return 0, err
	}
	if dict > maxWindow {
		return 0, formatErr("xz dictionary of %d bytes, at most %d are accepted", dict, maxWindow)
	}
	return max(int(dict), lzma.MinDictCap), nil
}

// close reads the padding and the checksum behind a block's data.
func (x *xzReader) close() error {
	b := x.block
	x.block = nil
	for (x.in.n-b.start)%4 != 0 {
		if c, err := x.in.ReadByte(); err != nil || c != 0 {
			return errors.Join(formatErr("xz block padding"), noEOF(err))
		}
	}
	if b.sum == nil {
		return nil
	}
	got := make([]byte, b.sum.Size())
	if _, err := io.ReadFull(x.in, got); err != nil {
		return noEOF(err)
	}
	want := b.sum.Sum(nil)
	if len(want) < sha256.Size {
		slices.Reverse(want)
	}
	if string(got) != string(want) {
		return formatErr("checksum of an xz block")
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
