package deb

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// Limits on what a decompressor may allocate for its window.
const (
	maxXZDict     = xz.DefaultDictMax // 64 MiB, what xz -9 uses
	maxZstdWindow = 128 << 20         // what zstd takes without --long
)

// decompress opens a member by the suffix of its name.
func decompress(m member, suffix string) (io.ReadCloser, error) {
	switch suffix {
	case "":
		return io.NopCloser(m.open()), nil
	case ".gz":
		return gzip.NewReader(m.open())
	case ".xz":
		r, err := xz.NewReader(m.open(), maxXZDict)
		return io.NopCloser(r), err
	case ".zst":
		r, err := zstd.NewReader(m.open(), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("%w %q", ErrUnsupported, suffix)
}

// limitReader ends with ErrLimit, not with io.EOF, where there is more than allowed.
type limitReader struct {
	r    io.Reader
	left int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, fmt.Errorf("%w of uncompressed bytes", ErrLimit)
	}
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	if l.left < 0 {
		return n - 1, fmt.Errorf("%w of uncompressed bytes", ErrLimit)
	}
	return n, err
}
