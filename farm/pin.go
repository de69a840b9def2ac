package farm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/kernel"
	"github.com/kofarm/kofarm/matrix/lock"
)

// Pinned is a lock that Pin has made.
type Pinned struct {
	Lock     *lock.Lock
	Warnings []matrix.Warning
	Left     []string // what could not be pinned, and why
}

// Pin makes a lock of a farm file. What p.Lock pins, and the farm file still
// asks for, stays as it is; the rest is resolved. No package is fetched: of
// sources only folders and files that are at hand are read.
func (p *Preparer) Pin(ctx context.Context, f *matrix.Farm) (_ *Pinned, err error) {
	kept := *p
	if p.Lock != nil {
		kept.Lock, _ = p.Lock.Without(nil) // a copy: kernels in it may become stale
	}
	kept.Locked = false
	s := &pinner{prepared: kept.begin(f), known: map[*apt.Package]*lock.Package{}}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.checkArchs(); err != nil {
		return nil, err
	}
	if err := s.openSuites(ctx, s.needed()); err != nil {
		return nil, err
	}
	out := &lock.Lock{}
	if out.Modules, err = s.pinSources(ctx); err != nil {
		return nil, err
	}
	catalogue, err := s.catalogue(ctx)
	if err != nil {
		return nil, err
	}
	selection, warnings, err := matrix.Choose(f, catalogue)
	if err != nil {
		return nil, err
	}
	if s.named() { // then rules can be judged as well
		if _, warnings, err = matrix.Expand(f, catalogue); err != nil {
			return nil, err
		}
	}
	if err := s.pinKernels(ctx, out, selection); err != nil {
		return nil, err
	}
	return &Pinned{out, warnings, s.left}, nil
}

// pinner is the state of one Pin.
type pinner struct {
	*prepared
	needs map[*matrix.ModuleVersion][]string // build packages
	known map[*apt.Package]*lock.Package     // what the archive gave
	left  []string
}

// needed are the suites that have to be open: those whose kernels are chosen,
// and those of debs that the lock does not have. Others are opened when
// something turns out to be missing.
func (s *pinner) needed() []matrix.Index {
	var list []matrix.Index
	for _, ix := range s.farm.Indexes() {
		debs := slices.ContainsFunc(s.farm.Modules, func(m *matrix.ModuleVersion) bool {
			return m.Source.Deb != "" && m.Source.Distribution == ix.Distribution && m.Source.Suite == ix.Suite && s.Lock.Module(m.Source) == nil
		})
		need := ix
		need.Archs = slices.DeleteFunc(slices.Clone(ix.Archs), func(arch string) bool {
			_, ok := s.lockedKernels(ix, arch)
			return !debs && (ok || !ix.Kernels)
		})
		list = append(list, need)
	}
	return list
}

// named says whether every module's name and version are known.
func (s *pinner) named() bool {
	return !slices.ContainsFunc(s.farm.Modules, func(m *matrix.ModuleVersion) bool { return m.Name == "" || m.Version == "" })
}

// pinSources pins every source, each once, and finds out what modules need.
func (s *pinner) pinSources(ctx context.Context) ([]*lock.Module, error) {
	pinned := make([]*lock.Module, len(s.farm.Modules))
	errs := make([]error, len(s.farm.Modules))
	var g errgroup.Group
	g.SetLimit(4)
	for i, m := range s.farm.Modules {
		g.Go(func() error {
			pinned[i], errs[i] = s.pinSource(ctx, m)
			return nil
		})
	}
	_ = g.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.needs = map[*matrix.ModuleVersion][]string{}
	for i, m := range s.farm.Modules {
		s.needs[m] = slices.Concat(pinned[i].Needs, matrix.Texts(m.BuildPackages))
	}
	var once []*lock.Module
	for _, p := range pinned {
		if !slices.ContainsFunc(once, func(m *lock.Module) bool { return m.Source == p.Source }) {
			once = append(once, p)
		}
	}
	return once, nil
}

func (s *pinner) pinSource(ctx context.Context, m *matrix.ModuleVersion) (*lock.Module, error) {
	out := &lock.Module{Source: lock.SourceName(m.Source)}
	switch {
	case m.Source.Deb != "":
		if old := s.Lock.Module(m.Source); old != nil {
			return old, nil
		}
		return out, s.pinDeb(ctx, m.Source, out)
	case m.Source.Remote():
		out.SHA256 = m.Source.SHA256
		return out, nil
	}
	src, err := s.readSource(ctx, m)
	if err != nil {
		return nil, err
	}
	out.SHA256 = src.Digest
	return out, nil
}

func (s *pinner) pinDeb(ctx context.Context, src matrix.Source, out *lock.Module) error {
	found, err := s.findDeb(ctx, src)
	if err != nil {
		return s.blame(src.Pos, src.String(), err)
	}
	depends := make([]string, len(found.Depends))
	for i, d := range found.Depends {
		depends[i] = d.String()
	}
	if out.Needs, err = debian.BuildPackages(strings.Join(depends, ", ")); err != nil {
		return fmt.Errorf("what %s depends on: %w", found, err)
	}
	suite, err := s.anySuite(ctx, src.Distribution, src.Suite)
	if err != nil {
		return err
	}
	out.Deb = convert(found, suite.Dates())
	out.SHA256 = found.SHA256
	return nil
}

// convert pins a package of the archive.
func convert(p *apt.Package, dates map[string]time.Time) *lock.Package {
	return &lock.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Size: p.Size, SHA256: p.SHA256,
		Pocket: p.Suite, Date: dates[p.Suite].UTC().Format("20060102T150405Z"), Path: strings.TrimPrefix(p.Filename, "./")}
}

// pinKernels pins the chosen kernels, suite by suite.
func (s *pinner) pinKernels(ctx context.Context, out *lock.Lock, selection *matrix.Selection) error {
	for _, ix := range s.farm.Indexes() {
		for _, arch := range ix.Archs {
			of := &lock.Suite{Distribution: ix.Distribution, Name: ix.Suite, Arch: arch}
			in := func(k *matrix.Kernel) bool {
				return k.Distribution == ix.Distribution && k.Suite == ix.Suite && k.Arch == arch
			}
			for _, a := range s.farm.Asks() {
				if a.Distribution == ix.Distribution && a.Suite == ix.Suite && a.Arch == arch && !slices.Contains(of.Asks, a.Text) {
					of.Asks = append(of.Asks, a.Text)
				}
			}
			for _, k := range selection.Kernels {
				if !in(k) {
					continue
				}
				pinned, err := s.pinKernel(ctx, k, selection)
				if err != nil {
					return err
				}
				of.Kernels = append(of.Kernels, pinned)
			}
			for _, k := range selection.Twins {
				if in(k) && k.Custom == nil {
					of.Kernels = append(of.Kernels, &lock.Kernel{Release: k.Release})
				}
			}
			if len(of.Asks) > 0 || len(of.Kernels) > 0 {
				s.unify(of)
				out.Suites = append(out.Suites, of)
			}
		}
	}
	return nil
}

// wants lists the build packages of the modules that are built for a kernel,
// each set once, with the module that first wants it.
func (s *pinner) wants(k *matrix.Kernel, selection *matrix.Selection) (modules []*matrix.ModuleVersion) {
	seen := map[string]bool{}
	for _, m := range s.farm.Modules {
		name := strings.Join(s.needs[m], ", ")
		if seen[name] || m.Name != "" && m.Version != "" && selection.Excluded(m, k) {
			continue
		}
		seen[name] = true
		modules = append(modules, m)
	}
	return modules
}

// pinKernel pins the packages of one kernel. Where the archive has moved on
// beneath a part of them, all are taken from it, so that one kernel's cells have
// one toolchain.
func (s *pinner) pinKernel(ctx context.Context, k *matrix.Kernel, selection *matrix.Selection) (*lock.Kernel, error) {
	out := &lock.Kernel{Release: k.Release}
	if k.Custom != nil {
		h, err := s.customHeaders(k.Custom)
		if err != nil {
			return nil, err
		}
		out.Own = &lock.Own{Packages: matrix.Texts(k.Custom.Toolchain.Packages), Headers: h.Digests}
	}
	modules := s.wants(k, selection)
	if len(modules) == 0 {
		return out, nil
	}
	closures, err := s.closures(ctx, k, modules)
	if err != nil {
		return nil, err
	}
	first := closures[modules[0]]
	for _, c := range closures {
		if digestPackages(c.Toolchain, c.Headers) != digestPackages(first.Toolchain, first.Headers) {
			s.pinned(k).Stale = true
			s.kernels[k].byPackages = map[string]*closure{}
			if closures, err = s.closures(ctx, k, modules); err != nil {
				return nil, err
			}
			first = closures[modules[0]]
			break
		}
	}
	dates, err := s.dates(ctx, k)
	if err != nil {
		return nil, err
	}
	out.Toolchain, out.Headers = s.pkgs(first.Toolchain, dates), s.pkgs(first.Headers, dates)
	for _, m := range modules {
		if c := closures[m]; c != nil && len(s.needs[m]) > 0 {
			out.Extras = append(out.Extras, lock.Extra{Build: strings.Join(s.needs[m], ", "), Packages: s.pkgs(c.Extra, dates)})
		}
	}
	return out, s.pinImage(ctx, k, out, dates)
}

// closures resolves what each of the modules needs. What one needs whose name is
// not known, so that it may be excluded, need not be there.
func (s *pinner) closures(ctx context.Context, k *matrix.Kernel, modules []*matrix.ModuleVersion) (map[*matrix.ModuleVersion]*closure, error) {
	all := map[*matrix.ModuleVersion]*closure{}
	for _, m := range modules {
		c, err := s.closure(ctx, k, s.needs[m], m.Pos)
		switch {
		case err == nil:
			all[m] = c
		case ctx.Err() != nil || isInfrastructure(err):
			return nil, err
		case m.Name == "" || m.Version == "":
			s.left = append(s.left, fmt.Sprintf("%s on %s: %v", m.Source, k.Release, err))
		default:
			return nil, s.unresolved(ctx, m, k, fmt.Errorf("%s/%s on %s: %w", m.Name, m.Version, k.Release, err))
		}
	}
	if all[modules[0]] == nil { // its toolchain is another's as well, if it is there at all
		c, err := s.closure(ctx, k, nil, modules[0].Pos)
		if err != nil {
			return nil, s.unresolved(ctx, modules[0], k, fmt.Errorf("kernel %s: %w", k.Release, err))
		}
		all[modules[0]] = c
	}
	return all, nil
}

// dates are when the indexes of a kernel's suite were made, which its packages
// come from; none where the lock was enough.
func (s *pinner) dates(ctx context.Context, k *matrix.Kernel) (map[string]time.Time, error) {
	dates := map[string]time.Time{}
	for _, arch := range []string{kernel.Machine(), k.Arch} {
		if suite := s.suites[suiteKey{k.Distribution, k.Suite, arch}]; suite != nil {
			maps.Copy(dates, suite.Dates())
		}
	}
	return dates, ctx.Err()
}

// pkgs pins packages: the lock's as they are, the archive's with their dates.
func (s *pinner) pkgs(list []*apt.Package, dates map[string]time.Time) []*lock.Package {
	out := make([]*lock.Package, len(list))
	for i, p := range list {
		if out[i] = s.pins.lockOf(p); out[i] != nil {
			continue
		}
		if s.known[p] == nil {
			s.known[p] = convert(p, dates)
		}
		out[i] = s.known[p]
	}
	return out
}

// pinImage pins the kernel itself.
func (s *pinner) pinImage(ctx context.Context, k *matrix.Kernel, out *lock.Kernel, dates map[string]time.Time) error {
	old := s.pinned(k)
	if old.Pinned() {
		out.Image = old.Image
	}
	// A farm file that asks for firmware since then gets it.
	if k.Custom != nil || old.Pinned() && (len(s.firmware(k)) == 0 || s.bootable(k, old.Image)) {
		return nil
	}
	suite, err := s.suite(ctx, suiteKey{k.Distribution, k.Suite, k.Arch})
	if err != nil {
		return err
	}
	version := k.Version
	for _, p := range out.Headers {
		if p.Name == k.Package {
			version = p.Version
		}
	}
	image, err := suite.Image(debian.Kernel{Release: k.Release, Package: k.Package, Version: version}, s.firmware(k)...)
	if len(image) > 0 {
		out.Image = s.pkgs(image, dates)
	}
	return err
}

// unify makes one of packages that both the lock and the archive have brought,
// the archive's, which is there now.
func (s *pinner) unify(of *lock.Suite) {
	fresh := map[string]*lock.Package{} // by sha256
	for _, arch := range []string{of.Arch, kernel.Machine()} {
		suite := s.suites[suiteKey{of.Distribution, of.Name, arch}]
		if suite == nil {
			continue
		}
		for _, p := range of.Packages() {
			found, err := suite.Lookup(p.Name)
			if err != nil {
				continue // then it stays as it is
			}
			for _, now := range found {
				if made := convert(now, suite.Dates()); made.Same(p) {
					fresh[p.SHA256] = made
				}
			}
		}
	}
	swap := func(list []*lock.Package) []*lock.Package {
		out := make([]*lock.Package, len(list))
		for i, p := range list {
			if out[i] = fresh[p.SHA256]; out[i] == nil || !out[i].Same(p) {
				out[i] = p
			}
		}
		return out
	}
	for _, k := range of.Kernels {
		k.Headers, k.Image, k.Toolchain = swap(k.Headers), swap(k.Image), swap(k.Toolchain)
		for i := range k.Extras {
			k.Extras[i].Packages = swap(k.Extras[i].Packages)
		}
	}
}
