package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

// rpmFormat numbers the form of RPMs: raise it when their bytes change.
const rpmFormat = 2

// rpms plans the RPMs of the results.
type rpms struct {
	*material
	out *matrix.RPMOutput
}

func (p *rpms) packages(results []*Result) ([]Package, error) {
	var all []Package
	var errs []error
	add := func(pkg Package, err error) {
		all = append(all, pkg)
		errs = append(errs, err)
	}
	for _, group := range byVersion(results) {
		for _, r := range group {
			if wants(p.out.Packages, matrix.ModulesPackage) {
				add(p.modulesPackage(r))
			}
		}
		for _, r := range withInstalled(group) {
			if wants(p.out.Packages, matrix.ModulesPackage) {
				add(p.toolsPackage(r))
			}
		}
		for _, r := range newest(group) {
			if wants(p.out.Packages, matrix.MetaPackage) && p.out.Style == matrix.Kmod {
				add(p.metaPackage(r))
			}
		}
		if wants(p.out.Packages, matrix.DKMSPackage) {
			add(p.dkmsPackage(group))
		}
		if wants(p.out.Packages, matrix.SourcePackage) {
			add(p.sourcePackage(group))
		}
	}
	return all, firstOf(errs)
}

func (p *rpms) info(r *Result) rpm.Info {
	src := r.Cell.Inputs.Source
	return rpm.Info{Style: rpm.Style(p.out.Style), Name: src.Name, Version: src.Version, Release: p.out.Release,
		License: r.Cell.Module.License, Packager: p.out.Packager, Epoch: p.epochOf(src)}
}

// upon are the modules that a result is built upon.
func (p *rpms) upon(r *Result) []rpm.Info {
	var all []rpm.Info
	for _, n := range r.Cell.Needs {
		all = append(all, p.info(&Result{Cell: n}))
	}
	return all
}

// options are those of all RPMs.
func (p *rpms) options(more map[string]any) map[string]any {
	o := map[string]any{"style": string(p.out.Style), "release": p.out.Release, "packager": p.out.Packager}
	maps.Copy(o, more)
	return o
}

func (p *rpms) kernel(r *Result) rpm.Kernel {
	k := r.Cell.Kernel
	return rpm.Kernel{Release: k.Release, Arch: k.Arch, Flavor: k.Flavor}
}

// key begins an RPM's key.
func (p *rpms) key(kind string, info rpm.Info, src *images.Source) []any {
	return []any{kind, info.Style, info.Release, info.License, info.Packager, src.Digest}
}

func (p *rpms) modulesPackage(r *Result) (Package, error) {
	info, build := p.info(r), rpm.Build{Kernel: p.kernel(r)}
	name, err := rpm.FileName(info, build.Kernel)
	h := p.packageKey(rpmFormat, "rpm modules", r.Cell.Inputs.Source, append(p.key("", info, r.Cell.Inputs.Source), p.output.Modules)...)
	p.signing.addTo(h, r)
	addResult(h, r)
	build.Upon = p.upon(r)
	options := p.options(map[string]any{"modules": string(p.output.Modules)})
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "rpm modules", Options: options, Holds: HoldsModules, Write: func(ctx context.Context, w io.Writer) error {
		symvers, err := p.kernels.Symvers(ctx, r.Cell.Inputs, r.Cell.Kernel.Release)
		if err != nil && !errors.Is(err, images.ErrNoSymvers) {
			return err
		}
		if err == nil {
			if build.Kernel.Symvers, err = kmod.ParseSymvers(bytes.NewReader(symvers)); err != nil {
				return err
			}
		}
		suffix, err := p.compression(ctx, r)
		if err != nil {
			return err
		}
		build.Compression = rpm.Compression(suffix)
		if build.Modules, err = p.modules(r); err != nil {
			return err
		}
		return licensed(r, rpm.Package(w, info, build))
	}}, err
}

func (p *rpms) metaPackage(r *Result) (Package, error) {
	info, k := p.info(r), p.kernel(r)
	name, err := rpm.MetaFileName(info, k)
	h := p.packageKey(rpmFormat, "rpm meta", r.Cell.Inputs.Source, p.key("", info, r.Cell.Inputs.Source)...)
	addResult(h, r)
	return Package{Name: name, Cells: []*Cell{r.Cell}, Key: sum(h), Kind: "rpm meta", Options: p.options(nil), Write: func(_ context.Context, w io.Writer) (err error) {
		if info.License, err = p.license(info.License, r); err != nil {
			return err
		}
		return rpm.Meta(w, info, k)
	}}, err
}

// license is the farm file's, or else that of the modules.
func (p *rpms) license(given string, r *Result) (string, error) {
	if given != "" {
		return given, nil
	}
	modules, err := p.read(r)
	if err != nil {
		return "", err
	}
	license, err := rpm.Licenses(modules)
	return license, licensed(r, err)
}

// licensed says of a module without a license whose it is.
func licensed(r *Result, err error) error {
	if errors.Is(err, rpm.ErrNoLicense) {
		return &LicenseError{r.Cell}
	}
	return err
}

// dkmsPackage has the source, and where the farm file says so every kernel's
// prebuilt tarball.
func (p *rpms) dkmsPackage(group []*Result) (Package, error) {
	src, info := group[0].Cell.Inputs.Source, p.info(group[0])
	name, err := rpm.DKMSFileName(info)
	h := p.packageKey(rpmFormat, "rpm dkms", src, p.key("", info, src)...)
	prebuilt := p.prebuilt(group, p.out.Prebuilt)
	for _, t := range prebuilt {
		fmt.Fprintln(h, t.Key)
	}
	addResult(h, group[0])
	options, holds := p.options(map[string]any{"prebuilt": p.out.Prebuilt}), HoldsSource|holdsModules(p.out.Prebuilt)
	return Package{Name: name, Cells: cellsOf(group), Key: sum(h), Kind: "rpm dkms", Warnings: warningsOf(prebuilt), Options: options, Holds: holds, Write: func(ctx context.Context, w io.Writer) (err error) {
		if info.License, err = p.license(info.License, group[0]); err != nil {
			return err
		}
		var tarballs []rpm.Prebuilt
		for i, t := range prebuilt {
			blob, err := p.stored(ctx, t)
			if err != nil {
				return err
			}
			k := group[i].Cell.Kernel
			tarballs = append(tarballs, rpm.Prebuilt{Kernel: k.Release, Arch: k.Arch, Size: blob.Size,
				Open: func() (io.ReadCloser, error) { return p.records.s.Open(blob.hash()) }})
		}
		return p.withTree(src, func(root *os.Root) error {
			return rpm.DKMS(w, info, rpm.SourceTree{Files: dkms.SourceFS(root.FS()), Conf: dkms.UnixLines(src.Conf), Upon: p.upon(group[0])}, tarballs)
		})
	}}, err
}

func (p *rpms) sourcePackage(group []*Result) (Package, error) {
	src, info := group[0].Cell.Inputs.Source, p.info(group[0])
	name, err := rpm.SourceFileName(info)
	h := p.packageKey(rpmFormat, "rpm source", src, p.key("", info, src)...)
	addResult(h, group[0])
	return Package{Name: name, Cells: cellsOf(group), Key: sum(h), Kind: "rpm source", Options: p.options(nil), Holds: HoldsSource, Write: func(_ context.Context, w io.Writer) (err error) {
		if info.License, err = p.license(info.License, group[0]); err != nil {
			return err
		}
		return p.withTree(src, func(root *os.Root) error {
			return rpm.Source(w, info, rpm.SourceTree{Files: dkms.SourceFS(root.FS()), Conf: dkms.UnixLines(src.Conf)})
		})
	}}, err
}
