package kmod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compressions are told by what a file begins with.
var compressions = []struct{ name, magic string }{
	{"gz", "\x1f\x8b"},
	{"xz", xzMagic},
	{"zst", "\x28\xb5\x2f\xfd"},
}

// detect names the compression of a file, "" for a plain one.
func detect(r io.ReaderAt, size int64) (string, error) {
	var b [6]byte
	n, err := r.ReadAt(b[:min(size, int64(len(b)))], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading module: %w", err)
	}
	for _, c := range compressions {
		if bytes.HasPrefix(b[:n], []byte(c.magic)) {
			return c.name, nil
		}
	}
	return "", nil
}

// maxWindow bounds the history that a compressed module may ask a reader to
// keep, in bytes: xz's presets go to 64 MiB, zstd's decoder takes 128 when
// told to. Kernel builds use 2 MiB or less.
const maxWindow = 64 << 20

// Plain returns a module, or what else may be stored so, without its
// compression, and the compression's name: "" for what is plain, gz, xz or zst.
// Only Limits.Memory counts. Errors wrap [ErrFormat] or [ErrLimit].
func Plain(data []byte, limits Limits) (plain []byte, compression string, err error) {
	limits = limits.withDefaults()
	if compression, err = detect(bytes.NewReader(data), int64(len(data))); err != nil || compression == "" {
		return data, "", err
	}
	if plain, err = decompress(compression, bytes.NewReader(data), limits.Memory); err != nil {
		return nil, "", fmt.Errorf("decompressing module (%s): %w", compression, err)
	}
	return plain, compression, nil
}

// decompress returns the content of a compressed module, at most limit bytes.
func decompress(compression string, r io.Reader, limit int64) ([]byte, error) {
	plain, done, err := decompressor(compression, r)
	if err != nil {
		return nil, formatErr("%v", err)
	}
	defer done()
	data, err := readLimited(plain, limit)
	if err != nil && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrFormat) {
		// The input was in memory or is a file: what fails is the format.
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return data, err
}

func decompressor(compression string, r io.Reader) (plain io.Reader, done func(), err error) {
	switch compression {
	case "gz":
		z, err := gzip.NewReader(bufio.NewReader(r))
		return z, func() {}, err
	case "xz":
		z, err := newXZReader(bufio.NewReader(r))
		return z, func() {}, err
	case "zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return nil, nil, fmt.Errorf("unknown compression %q", compression)
}

// readLimited reads everything, or fails with [ErrLimit] past limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w of %d bytes", ErrLimit, limit)
	}
	return data, nil
}
