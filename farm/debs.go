package farm

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/kernel"
)

// debFormat numbers the form of Debian packages: raise it when their bytes
// change.
const debFormat = 2

// debs plans the Debian packages of the results.
type debs struct {
	*material
	out *matrix.DebOutput
}

func (d *debs) packages(results []*Result) ([]Package, error) {
	var all []Package
	var errs []error
	add := func(p Package, err error) {
		all = append(all, p)
		errs = append(errs, err)
	}
	for _, group := range byVersion(results) {
		for _, r := range group {
			if wants(d.out.Packages, matrix.ModulesPackage) {
				add(d.modulesPackage(r))
			}
		}
		for _, r := range withInstalled(group) {
			if wants(d.out.Packages, matrix.ModulesPackage) {
				add(d.toolsPackage(r))
			}
		}
		for _, r := range newest(group) {
			if wants(d.out.Packages, matrix.MetaPackage) && r.Cell.Kernel.Flavor != "" {
				add(d.metaPackage(r))
			}
		}
		if wants(d.out.Packages, matrix.DKMSPackage) {
			add(d.dkmsPackage(group))
		}
		if wants(d.out.Packages, matrix.SourcePackage) {
			ps, err := d.sourcePackages(group)
			all, errs = append(all, ps...), append(errs, err)
		}
	}
	return all, firstOf(errs)
}

// info is what all packages of a result have in common, but what its modules say.
func (d *debs) info(r *Result) deb.Info {
	src := r.Cell.Inputs.Source
	arch, _ := kernel.DebianArch(r.Cell.Kernel.Arch)
	return deb.Info{Module: src.Name, ModuleVersion: src.Version, Arch: arch, Maintainer: d.out.Maintainer,
		Epoch: d.epochOf(src)}
}

// filled adds license and authors, of the farm file or else of the modules.
func (d *debs) filled(info deb.Info, r *Result) (deb.Info, error) {
	modules, err := d.read(r)
	if err != nil {
		return info, err
	}
	given := r.Cell.Module.License
	for _, m := range modules {
		if given == "" && m.Get("license") == "" {
			return info, &LicenseError{r.Cell}
		}
		info.Licenses = append(info.Licenses, m.All("license")...)
		info.Authors = append(info.Authors, m.All("author")...)
	}
	if given != "" {
		info.Licenses = []string{given}
	}
	return info, nil
}

// packed is the package of a result's modules, without what is in it.
func (d *debs) packed(r *Result) deb.Modules {
	m := deb.Modules{Info: d.info(r), Kernel: r.Cell.Kernel.Release}
	if d.out.KernelRevision {
		m.KernelVersion = r.Cell.Kernel.Version
	}
	return m
}

func (d *debs) modulesPackage(r *Result) (Package, error) {
	m := d.packed(r)
	for _, n := range r.Cell.Needs {
		m.Upon = append(m.Upon, d.packed(&Result{Cell: n}))
	}
	name, err := m.FileName()
	h := d.packageKey(debFormat, "deb modules", r.Cell.Inputs.Source, m.Maintainer, m.KernelVersion, d.output.Modules, r.Cell.Module.License)
	d.signing.addTo(h, r)
	addResult(h, r)
	options := map[string]any{"maintainer": m.Maintainer, "kernelRevision": d.out.KernelRevision, "modules": string(d.output.Modules)}
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "deb modules", Options: options, Holds: HoldsModules, Write: func(ctx context.Context, w io.Writer) (err error) {
		if m.Info, err = d.filled(m.Info, r); err != nil {
			return err
		}
		suffix, err := d.compression(ctx, r)
		if err != nil {
			return err
		}
		m.Compress = deb.Compression(suffix)
		if m.Files, err = d.modules(r); err != nil {
			return err
		}
		return m.Write(w)
	}}, err
}

func (d *debs) metaPackage(r *Result) (Package, error) {
	m := deb.Meta{Info: d.info(r), Flavor: r.Cell.Kernel.Flavor, Kernel: r.Cell.Kernel.Release, KernelVersion: r.Cell.Kernel.Version}
	name, err := m.FileName()
	h := d.packageKey(debFormat, "deb meta", r.Cell.Inputs.Source, m.Maintainer, m.KernelVersion, m.Flavor, r.Cell.Module.License)
	addResult(h, r)
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "deb meta", Options: map[string]any{"maintainer": m.Maintainer}, Write: func(_ context.Context, w io.Writer) (err error) {
		if m.Info, err = d.filled(m.Info, r); err != nil {
			return err
		}
		return m.Write(w)
	}}, err
}

// source is the package of a result's source, without what is in it.
func (d *debs) source(r *Result) deb.DKMS {
	p := deb.DKMS{Info: d.info(r), Conf: dkms.UnixLines(r.Cell.Inputs.Source.Conf)}
	for _, n := range r.Cell.Needs {
		p.Upon = append(p.Upon, deb.DKMS{Info: d.info(&Result{Cell: n})})
	}
	return p
}

// dkmsPackage has the source, and where the farm file says so every kernel's
// prebuilt tarball.
func (d *debs) dkmsPackage(group []*Result) (Package, error) {
	src := group[0].Cell.Inputs.Source
	p := d.source(group[0])
	name, err := p.FileName()
	h := d.packageKey(debFormat, "deb dkms", src, p.Maintainer, d.out.Prebuilt, group[0].Cell.Module.License)
	prebuilt := d.prebuilt(group, d.out.Prebuilt)
	for _, t := range prebuilt {
		fmt.Fprintln(h, t.Key)
	}
	addResult(h, group[0])
	options := map[string]any{"maintainer": p.Maintainer, "prebuilt": d.out.Prebuilt}
	holds := HoldsSource | holdsModules(d.out.Prebuilt)
	return Package{Name: name, Cells: cellsOf(group), Key: sum(h), Kind: "deb dkms", Warnings: warningsOf(prebuilt), Options: options, Holds: holds, Write: func(ctx context.Context, w io.Writer) (err error) {
		if p.Info, err = d.filled(p.Info, group[0]); err != nil {
			return err
		}
		for i, t := range prebuilt {
			blob, err := d.stored(ctx, t)
			if err != nil {
				return err
			}
			k := group[i].Cell.Kernel
			p.Prebuilt = append(p.Prebuilt, deb.Prebuilt{Kernel: k.Release, Arch: k.Arch, Size: blob.Size,
				Open: func() (io.ReadCloser, error) { return d.records.s.Open(blob.hash()) }})
		}
		return d.withTree(src, func(root *os.Root) error {
			p.Source = dkms.SourceFS(root.FS())
			return p.Write(w)
		})
	}}, err
}

// sourcePackages are the files of the Debian source package, the .dsc last.
func (d *debs) sourcePackages(group []*Result) ([]Package, error) {
	src := group[0].Cell.Inputs.Source
	p := d.source(group[0])
	names, err := p.SourceNames()
	if err != nil {
		return nil, err
	}
	var all []Package
	for _, name := range names {
		h := d.packageKey(debFormat, "deb source", src, p.Maintainer, name, group[0].Cell.Module.License)
		addResult(h, group[0])
		options := map[string]any{"maintainer": p.Maintainer}
		all = append(all, Package{Name: name, Cells: cellsOf(group), Key: sum(h), Kind: "deb source", Options: options, Holds: HoldsSource, Write: func(_ context.Context, w io.Writer) error {
			return d.writeSource(p, group[0], name, w)
		}})
	}
	return all, nil
}

// writeSource makes the whole source package, and keeps the one file of it.
func (d *debs) writeSource(p deb.DKMS, r *Result, want string, w io.Writer) (err error) {
	if p.Info, err = d.filled(p.Info, r); err != nil {
		return err
	}
	return d.withTree(r.Cell.Inputs.Source, func(root *os.Root) error {
		p.Source = dkms.SourceFS(root.FS())
		return p.WriteSource(func(name string) (io.WriteCloser, error) {
			if name != want {
				return nopCloser{io.Discard}, nil
			}
			return nopCloser{w}, nil
		})
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
