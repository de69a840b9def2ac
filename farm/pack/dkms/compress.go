package dkms

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression is how a tarball is compressed, and the end of its name. The
// empty value means [Gzip]. ldtarball lets tar find out, so the target needs
// the program of that name.
type Compression string

// The compressions. Bytes are the same for the same version of the compressing
// libraries, which go.mod pins.
const (
	Gzip Compression = "gz"
	XZ   Compression = "xz"
	Zstd Compression = "zst"
)

// Compressions lists the compressions, the default first.
func Compressions() []Compression { return []Compression{Gzip, XZ, Zstd} }

// window is the history that xz and zstd keep, in bytes. Modules of one
// tarball resemble each other, so it covers several. The writer takes about six
// times as much memory, a reader as much.
const window = 4 << 20

// gzipLevel is the best that is not slow: of 134 modules (4.0 MB) level 7 made
// 1.028 MB in 0.11 s, 8 made 1.016 MB in 0.22 s, and 9 made 1.019 MB in 1.7 s.
const gzipLevel = 8

// writer starts a compressor. Closing it does not close w.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		// No name and no time in the header unless one is set.
		return gzip.NewWriterLevel(w, gzipLevel)
	case XZ:
		return xz.WriterConfig{DictCap: window, CheckSum: xz.CRC64}.NewWriter(w)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithEncoderCRC(true))
	}
	return nil, fmt.Errorf("compression %q, known are %v", c, Compressions())
}
