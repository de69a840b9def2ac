package deb

import (
	"bytes"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression is how an archive or a module is compressed. What the empty
// value means, a field says that has this type.
type Compression string

// The compressions. Bytes are the same for the same version of the compressing
// libraries, which go.mod pins.
const (
	XZ   Compression = "xz"
	Gzip Compression = "gz"
	Zstd Compression = "zst"
	None Compression = "none"
)

// Compressions lists the compressions, an archive's default first.
func Compressions() []Compression { return []Compression{XZ, Gzip, Zstd, None} }

// suffix ends the name of a file.
func (c Compression) suffix() string {
	if c == None {
		return ""
	}
	return "." + string(c)
}

// The history that xz and zstd keep, in bytes. An archive's is at least its
// content, up to the limit; a writer takes about six times as much memory.
const (
	minWindow = 64 << 10
	maxWindow = 4 << 20
)

// gzipLevel is the best that is not slow, see package dkms.
const gzipLevel = 8

// window is the history for content of a size in bytes: a power of two.
func window(size int64) int {
	size = min(max(size, minWindow), maxWindow)
	return 1 << bits.Len64(uint64(size-1))
}

// writer starts a compressor for content of about a size in bytes. Closing it
// does not close w.
func (c Compression) writer(w io.Writer, size int64) (io.WriteCloser, error) {
	switch c {
	case XZ:
		return xz.WriterConfig{DictCap: window(size), CheckSum: xz.CRC64}.NewWriter(w)
	case Gzip:
		return gzip.NewWriterLevel(w, gzipLevel)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window(size)), zstd.WithEncoderCRC(true))
	case None:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("compression %q, known are %v", c, Compressions())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// moduleWindow is what the kernel's build gives xz (scripts/Makefile.modinst).
const moduleWindow = 1 << 20

// module compresses a module so that kmod and the kernel itself
// (kernel/module/decompress.c) read it: one stream, and of xz a CRC32, the
// only checksum that lib/xz is sure to know.
func (c Compression) module(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch c {
	case None, "":
		return plain, nil
	case XZ:
		w, err = xz.WriterConfig{DictCap: moduleWindow, CheckSum: xz.CRC32}.NewWriter(&b)
	case Gzip:
		w, err = gzip.NewWriterLevel(&b, gzip.BestCompression)
	case Zstd:
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(moduleWindow), zstd.WithEncoderCRC(true))
		if err != nil {
			return nil, err
		}
		return enc.EncodeAll(plain, nil), enc.Close()
	default:
		return nil, fmt.Errorf("compression %q, known are %v", c, Compressions())
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// gzipBest compresses documents as Debian wants them: gzip -9n.
func gzipBest(data []byte) ([]byte, error) { return Gzip.module(data) }
