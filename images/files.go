package images

import (
	"archive/tar"
	"context"
	"io"

	"github.com/kofarm/kofarm/images/apt"
)

// Files calls f for every file and link of a package, which is fetched and
// verified before. Names are clean and relative.
func (a *Assembler) Files(ctx context.Context, p *apt.Package, f func(h *tar.Header, r io.Reader) error) error {
	file, err := a.Fetcher.Package(ctx, p)
	if err != nil {
		return err
	}
	if err := VerifyFile(file, p.SHA256); err != nil {
		return err
	}
	src := Source{open: func() (entries, error) { return openDeb(file) }}
	return src.all(func(h *tar.Header, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f(h, r)
	})
}
