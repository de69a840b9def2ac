package dkms

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/kofarm/kofarm/farm/pack/edit"
)

// Rewrite writes the tarball in r with some files changed and all else as it
// is, compressed as it is: gz, xz, zst or not at all. It need not be one of
// kofarm's.
func Rewrite(w io.Writer, r io.Reader, e edit.Edit) error {
	plain, compression, err := edit.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	out, done := w, func() error { return nil }
	if compression != "" {
		z, err := Compression(compression).writer(w)
		if err != nil {
			return err
		}
		out, done = z, z.Close
	}
	tw := tar.NewWriter(out)
	err = e.Tar(tw, tar.NewReader(plain), func(_, _ *tar.Header, _ []byte) error { return nil })
	if err == nil {
		_, err = io.Copy(io.Discard, plain) // so that the compressed stream's checksum is looked at
	}
	if err != nil {
		return errors.Join(fmt.Errorf("tarball: %w", err), done())
	}
	return errors.Join(tw.Close(), done())
}
