package farm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix/kernel"
	"github.com/kofarm/kofarm/worker"
)

// maxInstalled bounds the user-space files of one module version, in bytes.
const maxInstalled = 4 << 30

// packInstalled writes a tar of user-space files, whose bytes depend on nothing
// else.
func packInstalled(to io.Writer, files []worker.Installed) error {
	w := tar.NewWriter(to)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Typeflag: tar.TypeReg, Mode: int64(f.Mode.Perm()), Format: tar.FormatPAX}
		switch f.Mode.Type() {
		case fs.ModeDir:
			h.Typeflag, h.Name = tar.TypeDir, f.Name+"/"
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		default:
			h.Size = f.Data.Size()
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := io.Copy(w, f.Data); err != nil {
				return err
			}
		}
	}
	return w.Close()
}

// installed iterates over a result's user-space files.
func (m *material) installed(r *Result) iter.Seq2[dkms.File, error] {
	return func(yield func(dkms.File, error) bool) {
		data, err := m.records.s.Get(r.Record.Installed.hash(), maxInstalled)
		if err != nil {
			yield(dkms.File{}, err)
			return
		}
		for t := tar.NewReader(bytes.NewReader(data)); ; {
			h, err := t.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			f, err := installedFile(h, t, err)
			if !yield(f, err) || err != nil {
				return
			}
		}
	}
}

func installedFile(h *tar.Header, r io.Reader, err error) (dkms.File, error) {
	if err != nil {
		return dkms.File{}, err
	}
	name := strings.TrimSuffix(h.Name, "/")
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\n\x00\\") {
		return dkms.File{}, fmt.Errorf("the result installs %q: not a plain path", name)
	}
	if images.Sparse(h) {
		return dkms.File{}, fmt.Errorf("the result installs %q: it is sparse", name)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return dkms.File{}, err
	}
	return dkms.File{Path: name, Mode: h.FileInfo().Mode(), Size: h.Size, Link: h.Linkname,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}, nil
}

// withInstalled picks the results whose user-space files are packed: of each
// arch that of the newest kernel.
func withInstalled(group []*Result) []*Result {
	at := map[string]int{}
	var picked []*Result
	for _, r := range group {
		if r.Cell.Module.Userspace == nil {
			continue
		}
		k := r.Cell.Kernel
		i, ok := at[k.Arch]
		switch {
		case !ok:
			at[k.Arch] = len(picked)
			picked = append(picked, r)
		case kernel.Compare(kernel.Release(picked[i].Cell.Kernel.Release), kernel.Release(k.Release)) < 0:
			picked[i] = r
		}
	}
	return picked
}

// errNothingInstalled says that a record lacks the user-space files which the
// recipe makes sure of.
var errNothingInstalled = errors.New("the result holds no user-space files")

func (d *debs) toolsPackage(r *Result) (Package, error) {
	p := deb.Tools{Info: d.info(r), Depends: strings.Join(r.Cell.Module.Userspace.DebDepends, ", ")}
	name, err := p.FileName()
	h := d.packageKey(debFormat, "deb tools", r.Cell.Inputs.Source, p.Maintainer, p.Depends, r.Cell.Module.License, r.Record.Installed)
	addResult(h, r)
	options := map[string]any{"maintainer": p.Maintainer, "depends": p.Depends}
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "deb tools", Options: options, Holds: HoldsTools, Write: func(_ context.Context, w io.Writer) (err error) {
		if r.Record.Installed == nil {
			return errNothingInstalled
		}
		if p.Info, err = d.filled(p.Info, r); err != nil {
			return err
		}
		p.Files = d.installed(r)
		return p.Write(w)
	}}, err
}

func (p *rpms) toolsPackage(r *Result) (Package, error) {
	info, arch := p.info(r), r.Cell.Kernel.Arch
	name, err := rpm.ToolsFileName(info, arch)
	h := p.packageKey(rpmFormat, "rpm tools", r.Cell.Inputs.Source, append(p.key("", info, r.Cell.Inputs.Source), r.Record.Installed)...)
	addResult(h, r)
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "rpm tools", Options: p.options(nil), Holds: HoldsTools, Write: func(_ context.Context, w io.Writer) (err error) {
		if r.Record.Installed == nil {
			return errNothingInstalled
		}
		if info.License, err = p.license(info.License, r); err != nil {
			return err
		}
		return rpm.Tools(w, info, arch, p.installed(r))
	}}, err
}
