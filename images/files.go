package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"

	"github.com/kofarm/kofarm/images/apt"
)

// Files calls f for every file and link of a package, which is fetched and
// verified before, and decompressed meanwhile. Names are clean and relative.
func (a *Assembler) Files(ctx context.Context, p *apt.Package, f func(h *tar.Header, r io.Reader) error) (err error) {
	file, err := a.Fetcher.Package(ctx, p)
	if err != nil {
		return err
	}
	if err := VerifyFile(file, p.SHA256); err != nil {
		return err
	}
	e := readAhead(ctx, func(context.Context) (entries, error) { return openDeb(file) })
	defer func() { err = errors.Join(err, e.Close()) }()
	return each(e, f)
}
