package repo

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	xzreader "github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz"
)

// maxIndex is how large an index may be, plain; Debian's largest has some 60 MB.
const maxIndex = 1 << 30

// window is the history that xz keeps, in bytes.
const window = 4 << 20

// gzipped compresses an index; no name and no time are in it.
func gzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	return finish(&b, w, data)
}

func xzipped(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := xz.WriterConfig{DictCap: window, CheckSum: xz.CRC64}.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	return finish(&b, w, data)
}

func finish(b *bytes.Buffer, w io.WriteCloser, data []byte) ([]byte, error) {
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// unpacked returns an index, whatever its compression is.
func unpacked(data []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xzreader.NewReader(bytes.NewReader(data), xzreader.DefaultDictMax)
	default:
		return data, nil
	}
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxIndex+1))
	if err == nil && len(plain) > maxIndex {
		err = fmt.Errorf("%w of %d bytes, plain", ErrLimit, maxIndex)
	}
	return plain, err
}
