package farm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/kofarm/kofarm/farm/repo"
)

// repositories updates the repositories that the output asks for, from the
// packages that are in the folder.
func (c *Collector) repositories(ctx context.Context, packages []Package) error {
	if deb := c.Output.Deb; deb != nil && deb.Repository != nil {
		r := deb.Repository
		apt := repo.APT{Dir: filepath.Join(c.Dir, r.Directory), Suite: r.Suite, Component: r.Component, Origin: r.Origin,
			Label: r.Label, Epoch: c.repositoryEpoch(packages), Signer: c.Signer}
		if err := apt.Update(ctx, c.files(packages, ".deb")); err != nil {
			return err
		}
	}
	if rpm := c.Output.RPM; rpm != nil && rpm.Repository != nil {
		yum := repo.YUM{Dir: filepath.Join(c.Dir, rpm.Repository.Directory), Epoch: c.repositoryEpoch(packages), Signer: c.Signer}
		if err := yum.Update(ctx, c.files(packages, ".rpm")); err != nil {
			return err
		}
	}
	return nil
}

// files are the packages in the folder whose names end so. Source packages are
// not for these repositories.
func (c *Collector) files(packages []Package, suffix string) []repo.File {
	var files []repo.File
	for _, p := range packages {
		if strings.HasSuffix(p.Name, suffix) && !strings.HasSuffix(p.Name, ".src.rpm") {
			files = append(files, repo.File{Path: filepath.Join(c.Dir, p.Name)})
		}
	}
	return files
}

// repositoryEpoch dates the indexes: SOURCE_DATE_EPOCH, else the newest source.
func (c *Collector) repositoryEpoch(packages []Package) time.Time {
	if c.Epoch != nil {
		return *c.Epoch
	}
	var newest time.Time
	for _, p := range packages {
		for _, cell := range p.Cells {
			if t := cell.Inputs.Source.Epoch; t.After(newest) {
				newest = t
			}
		}
	}
	return newest
}

// signed wraps an RPM so that it is signed, where there is a key. The unsigned
// one stays in the store: another key makes nothing anew but the signature.
func (c *Collector) signed(p Package) Package {
	if c.Signer == nil {
		return p
	}
	s := p
	s.Key = sha256hex([]byte("signed by " + c.Signer.Fingerprint() + "\n" + p.Key))
	s.Write = func(ctx context.Context, w io.Writer) error {
		blob, err := c.stored(ctx, p)
		if err != nil {
			return err
		}
		data, err := c.Store.Get(blob.hash(), maxModule)
		if err != nil {
			return err
		}
		if err := repo.SignRPM(w, bytes.NewReader(data), int64(len(data)), c.Signer, p.Cells[0].Inputs.Source.Epoch); err != nil {
			return fmt.Errorf("signing: %w", err)
		}
		return nil
	}
	return s
}
