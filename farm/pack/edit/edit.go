// Package edit changes files in packages that exist already: what the packers'
// Rewrite functions share.
//
// A package that somebody hands in is hostile. It is never unpacked to disk;
// what is read of it has limits, and names mean nothing but what they are
// compared with.
package edit

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// Errors that a caller may branch on.
var (
	// ErrFormat marks a package that is malformed, or of a kind that is not known.
	ErrFormat = errors.New("not as expected")
	// ErrLimit marks a package that is larger than a limit allows.
	ErrLimit = errors.New("over the limit")
)

// Limits on a package, in bytes unless they say otherwise.
const (
	MaxFile    = 1 << 30  // of a file that is changed
	MaxContent = 16 << 30 // of all files, uncompressed
	maxEntries = 1_000_000
	maxWindow  = 64 << 20 // of what a compressor may ask to be kept
)

// Edit says which files of a package to change, and how.
type Edit struct {
	// Wants tells it by a file's path in the package, clean and relative.
	Wants func(name string) bool
	// Change gives what stands for a file's content.
	Change func(name string, data []byte) ([]byte, error)
}

// Apply reads a file of a size, and gives what stands for its content.
func (e Edit) Apply(name string, r io.Reader, size int64) ([]byte, error) {
	if size < 0 || size > MaxFile {
		return nil, fmt.Errorf("%s of %d bytes: %w of %d", name, size, ErrLimit, int64(MaxFile))
	}
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(r, size)); err != nil || n != size {
		return nil, fmt.Errorf("%s: %d of %d bytes: %w", name, n, size, errors.Join(ErrFormat, err))
	}
	data, err := e.Change(name, b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// Clean gives a path as Wants gets it.
func Clean(name string) string { return path.Clean("/" + name)[1:] }

// Tar copies a tar stream and applies the edit. Each entry's new header is
// shown, with the content where that is another one, before it is written.
func (e Edit) Tar(w *tar.Writer, r *tar.Reader, each func(old, now *tar.Header, changed []byte) error) error {
	for range maxEntries {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		if err := e.entry(w, r, h, each); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w of %d entries", ErrLimit, maxEntries)
}

func (e Edit) entry(w *tar.Writer, r io.Reader, h *tar.Header, each func(old, now *tar.Header, changed []byte) error) error {
	now, content := *h, r
	var changed []byte
	if name := Clean(h.Name); h.Typeflag == tar.TypeReg && e.Wants(name) {
		var err error
		if changed, err = e.Apply(name, r, h.Size); err != nil {
			return err
		}
		now.Size, content = int64(len(changed)), bytes.NewReader(changed)
	}
	if err := each(h, &now, changed); err != nil {
		return err
	}
	if err := w.WriteHeader(&now); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if _, err := io.Copy(w, content); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

// Decompress finds out by its first bytes how a stream is compressed: gz, xz,
// zst, or "" for not at all. At most [MaxContent] bytes come out.
func Decompress(r io.Reader) (plain io.ReadCloser, compression string, err error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	limited := func(r io.Reader, closer func()) io.ReadCloser { return &content{r, MaxContent, closer} }
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return limited(z, func() {}), "gz", nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(in, maxWindow)
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return limited(z, func() {}), "xz", nil
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return limited(z, z.Close), "zst", nil
	}
	return limited(in, func() {}), "", nil
}

// content gives at most so many bytes.
type content struct {
	r     io.Reader
	left  int64
	close func()
}

func (c *content) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("%w of %d bytes", ErrLimit, int64(MaxContent))
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return n, err
}

func (c *content) Close() error {
	c.close()
	return nil
}
