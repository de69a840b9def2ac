package rpm

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression is how modules are stored: the end of their names, without the
// dot. The empty value means plain.
type Compression string

// The compressions. Bytes are the same for the same version of the compressing
// libraries.
const (
	Plain Compression = ""
	XZ    Compression = "xz"
	Zstd  Compression = "zst"
	Gzip  Compression = "gz"
)

// ModuleCompressions lists the compressions, the default first.
func ModuleCompressions() []Compression { return []Compression{Plain, XZ, Zstd, Gzip} }

func (c Compression) suffix() string {
	if c == Plain {
		return ""
	}
	return "." + string(c)
}

// kernelWindow is the history, in bytes, that the kernel's own Makefiles use
// (--lzma2=dict=1MiB in scripts/Makefile.modinst); the kernel's decompressor
// takes no check of xz but CRC32.
const kernelWindow = 1 << 20

// Compress returns a module as packages have it.
func (c Compression) Compress(plain []byte) ([]byte, error) { return c.compress(plain) }

// compress returns a module as it is stored.
func (c Compression) compress(data []byte) ([]byte, error) {
	if c == Plain {
		return data, nil
	}
	var b bytes.Buffer
	w, err := c.writer(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case XZ:
		return xz.WriterConfig{DictCap: kernelWindow, CheckSum: xz.CRC32}.NewWriter(w)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(kernelWindow),
			zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderCRC(true))
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.BestCompression)
	}
	return nil, fmt.Errorf("module compression %q, known are %q", c, ModuleCompressions())
}
