package farm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/kernel"
	"github.com/kofarm/kofarm/matrix/lock"
)

// Preparer finds out what a farm file asks for: it reads the archives' indexes
// and the modules' sources, and resolves every cell's packages. It builds
// nothing.
type Preparer struct {
	Fetch   *fetch.Client
	Apt     *apt.Client
	Program images.Program // the recipe
	Now     time.Time      // decides whether an index has expired
	Dir     string         // the farm file's folder, which its paths are relative to
	// Own are the files and folders that are kofarm's: the farm file, its lock, the
	// output, the store. Of a source's folder that they lie in they are no part.
	Own []string

	// Lock pins what it covers; nil: everything is resolved.
	Lock *lock.Lock
	// Locked makes every drift between the farm file and the lock an error, a
	// *DriftError. Else what the lock does not cover is resolved.
	Locked bool
	// Boots makes the plan say what boots each kernel, even if the farm file does
	// not ask for a test.
	Boots bool
	// Files says where files and folders are that the farm file names by
	// path; one that is not there is where the path says.
	Files map[string]string
}

// Plan is a farm file with everything resolved.
type Plan struct {
	Farm     *matrix.Farm
	Cells    []*Cell // in the order of matrix.Plan
	Warnings []matrix.Warning
	// Drift is what of the farm file the lock does not cover, and the other way
	// round, by the places.
	Drift []lock.Drift
}

// suiteKey names an opened suite.
type suiteKey struct{ distribution, suite, arch string }

// prepared is the state of one Prepare.
type prepared struct {
	*Preparer
	farm    *matrix.Farm
	pins    *pins
	kernels map[*matrix.Kernel]*kernelInputs
	sources map[*matrix.ModuleVersion]*images.Source
	custom  map[*matrix.CustomKernel]*images.Headers
	boots   map[*matrix.Kernel][]*apt.Package

	opening sync.Mutex // held while a suite is opened
	suites  map[suiteKey]*debian.Suite
}

// kernelInputs memoizes what a kernel's cells share, by their build packages.
type kernelInputs struct {
	byPackages map[string]*closure
	base       *debian.Closure // resolved without build packages; nil: not yet
}

// closure is the packages of a cell, with their digest for its key.
type closure struct {
	*debian.Closure
	digest string
}

// Prepare makes the plan. Mistakes in the farm file are errors of type
// *matrix.Error, joined.
func (p *Preparer) Prepare(ctx context.Context, f *matrix.Farm) (plan *Plan, err error) {
	s := p.begin(f)
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.checkArchs(); err != nil {
		return nil, err
	}
	if err := s.compare(); err != nil {
		return nil, err
	}
	if p.Lock == nil {
		if err := s.openSuites(ctx, f.Indexes()); err != nil {
			return nil, err
		}
	}
	if err := s.readSources(ctx); err != nil {
		return nil, err
	}
	catalogue, err := s.catalogue(ctx)
	if err != nil {
		return nil, err
	}
	expanded, warnings, err := matrix.Expand(f, catalogue)
	if err != nil {
		return nil, err
	}
	cells, err := s.cells(ctx, expanded)
	if err != nil {
		return nil, err
	}
	if err := s.refused(); err != nil {
		return nil, err
	}
	return &Plan{Farm: f, Cells: cells, Warnings: warnings, Drift: s.pins.sorted()}, nil
}

// checkArchs refuses architectures that this machine does not build for.
func (s *prepared) checkArchs() error {
	machine := kernel.Machine()
	able := kernel.Buildable(machine)
	var errs []error
	for _, a := range s.farm.Archs() {
		if !slices.Contains(able, a.Text) {
			errs = append(errs, s.farm.Mistake(a.Pos, a.Text, fmt.Sprintf("building for %s is not supported on a machine of %s", a.Text, machine),
				"arch: "+strings.Join(able, " or ")))
		}
	}
	return errors.Join(errs...)
}

// begin is the state before anything is read.
func (p *Preparer) begin(f *matrix.Farm) *prepared {
	return &prepared{Preparer: p, farm: f, pins: newPins(), suites: map[suiteKey]*debian.Suite{},
		kernels: map[*matrix.Kernel]*kernelInputs{}, sources: map[*matrix.ModuleVersion]*images.Source{},
		custom: map[*matrix.CustomKernel]*images.Headers{}, boots: map[*matrix.Kernel][]*apt.Package{}}
}

func (s *prepared) close() error {
	var err error
	for _, suite := range s.suites {
		err = errors.Join(err, suite.Close())
	}
	return err
}

// openSuites opens suites, several at a time, also for this machine, whose
// packages are what builds for any. It tells all mistakes, unless something else
// is wrong.
func (s *prepared) openSuites(ctx context.Context, indexes []matrix.Index) error {
	var keys []suiteKey
	for _, ix := range indexes {
		archs := ix.Archs
		if machine := kernel.Machine(); len(archs) > 0 && !slices.Contains(archs, machine) {
			archs = append(slices.Clone(archs), machine)
		}
		for _, arch := range archs {
			keys = append(keys, suiteKey{ix.Distribution, ix.Suite, arch})
		}
	}
	suites, mistakes := make([]*debian.Suite, len(keys)), make([]error, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, key := range keys {
		g.Go(func() (err error) {
			suites[i], err = s.openSuite(ctx, key)
			if _, ok := errors.AsType[*matrix.Error](err); ok {
				mistakes[i], err = err, nil
			}
			return err
		})
	}
	err := g.Wait()
	for i, suite := range suites {
		if suite != nil {
			s.suites[keys[i]] = suite
		}
	}
	mistakes = slices.DeleteFunc(mistakes, func(err error) bool { return err == nil })
	mistakes = slices.CompactFunc(mistakes, func(a, b error) bool { return a.Error() == b.Error() }) // of several architectures
	return cmp.Or(err, errors.Join(mistakes...))
}

func (s *prepared) openSuite(ctx context.Context, key suiteKey) (*debian.Suite, error) {
	a := s.farm.Archives[key.distribution]
	archive := debian.Archive{Distribution: key.distribution, Mirrors: a.Mirrors, SecurityMirrors: a.SecurityMirrors,
		Components: a.Components, Keyring: s.path(a.Keyring), AllowExpired: a.AllowExpired}
	debArch, ok := kernel.DebianArch(key.arch)
	if !ok {
		return nil, fmt.Errorf("suite %s: %s is no architecture of Debian's", key.suite, key.arch)
	}
	suite, err := debian.Open(ctx, s.Apt, archive, key.suite, debArch, s.Now)
	switch {
	case errors.Is(err, apt.ErrArch):
		return nil, s.noArch(key, err)
	case errors.Is(err, apt.ErrSuite):
		return nil, s.noSuite(key, err)
	case errors.Is(err, apt.ErrKeyring) && a.KeyringPos != matrix.Pos{}:
		return nil, s.farm.Mistake(a.KeyringPos, a.Keyring, err.Error(), "")
	case err != nil:
		return nil, fmt.Errorf("opening suite %s: %w", key.suite, err)
	}
	suite.Prefer(s.Lock.Versions(key.distribution, key.suite, debArch))
	return suite, nil
}

// noSuite is the error of a suite that is not there.
func (s *prepared) noSuite(key suiteKey, err error) error {
	indexes := s.farm.Indexes()
	i := slices.IndexFunc(indexes, func(ix matrix.Index) bool { return ix.Distribution == key.distribution && ix.Suite == key.suite })
	if i < 0 {
		return err
	}
	known, hint := debian.KnownSuites(), ""
	if of, ok := debian.PocketOf(key.suite); ok {
		hint = fmt.Sprintf("%s is part of suite %s: give that", key.suite, of)
	} else if !slices.Contains(known, key.suite) {
		hint = matrix.DidYouMean(key.suite, known)
	}
	hint = cmp.Or(hint, fmt.Sprintf("archives.%s.mirrors says where it is looked for", key.distribution))
	return s.farm.Mistake(indexes[i].Pos, key.suite, fmt.Sprintf("suite %q: %v", key.suite, err), hint)
}

// noArch is the error of a suite that is not there for an architecture which the
// farm file names.
func (s *prepared) noArch(key suiteKey, err error) error {
	for _, a := range s.farm.Archs() {
		if a.Text == key.arch && (a.Distribution == key.distribution || a.Distribution == "") &&
			(slices.Contains(a.Suites, key.suite) || len(a.Suites) == 0) {
			return s.farm.Mistake(a.Pos, a.Text, err.Error(), "")
		}
	}
	return err
}

// suite gives a suite, and opens it where it is not open.
func (s *prepared) suite(ctx context.Context, key suiteKey) (*debian.Suite, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if found := s.suites[key]; found != nil {
		return found, nil
	}
	suite, err := s.openSuite(ctx, key)
	if err == nil {
		s.suites[key] = suite
	}
	return suite, err
}

// path resolves a path of the farm file.
func (s *prepared) path(p string) string {
	if at, ok := s.Files[p]; ok {
		return at
	}
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(s.Dir, p)
}

// anySuite gives a suite for packages of architecture all.
func (s *prepared) anySuite(ctx context.Context, distribution, suite string) (*debian.Suite, error) {
	for _, ix := range s.farm.Indexes() {
		if ix.Distribution == distribution && ix.Suite == suite && len(ix.Archs) > 0 {
			return s.suite(ctx, suiteKey{distribution, suite, kernel.Machine()})
		}
	}
	return nil, fmt.Errorf("suite %q of %s is not open", suite, distribution)
}

// readSources reads every module version's source, and takes from it the names
// that the farm file leaves open.
func (s *prepared) readSources(ctx context.Context) error {
	errs := make([]error, len(s.farm.Modules))
	sources := make([]*images.Source, len(s.farm.Modules))
	var g errgroup.Group
	g.SetLimit(4)
	for i, m := range s.farm.Modules {
		g.Go(func() error {
			sources[i], errs[i] = s.readSource(ctx, m)
			return nil
		})
	}
	_ = g.Wait()
	for i, m := range s.farm.Modules {
		s.sources[m] = sources[i]
	}
	return errors.Join(errs...)
}

func (s *prepared) readSource(ctx context.Context, m *matrix.ModuleVersion) (*images.Source, error) {
	src, err := s.openSource(ctx, m)
	if err != nil {
		return nil, s.blame(m.Source.Pos, m.Source.String(), err)
	}
	name, version, err := names(m, src)
	if err != nil {
		return nil, s.farm.Mistake(m.Pos, m.Source.String(), err.Error(), "")
	}
	m.Name, m.Version, src.Name, src.Version = name, version, name, version
	s.checkSource(m, src)
	return src, nil
}

// names settles a module's name and version between the farm file and its source.
func names(m *matrix.ModuleVersion, src *images.Source) (name, version string, err error) {
	settle := func(what, farm, source string) (string, error) {
		switch {
		case farm == "" && source == "":
			return "", fmt.Errorf("%s: its dkms.conf does not say PACKAGE_%s literally, so give the %s here: `%s: …`",
				m.Source, strings.ToUpper(what), what, what)
		case farm != "" && source != "" && farm != source:
			return "", fmt.Errorf("the farm file says %s %q, the source of %s %q", what, farm, m.Source, source)
		case farm != "":
			return farm, nil
		}
		if err := matrix.CheckName(source); err != nil {
			return "", fmt.Errorf("%s: its %s %q: %w", m.Source, what, source, err)
		}
		return source, nil
	}
	name, nameErr := settle("name", m.Name, src.Name)
	version, versionErr := settle("version", m.Version, src.Version)
	return name, version, errors.Join(nameErr, versionErr)
}

func (s *prepared) openSource(ctx context.Context, m *matrix.ModuleVersion) (*images.Source, error) {
	src := m.Source
	switch {
	case src.Deb != "":
		return s.debSource(ctx, src)
	case src.Dir != "":
		return images.DirSource(s.path(src.Dir), s.Own...)
	}
	open := images.TarSource
	if src.RPM != "" {
		open = images.RPMSource
	}
	if src.Remote() {
		file, err := s.fetchFile(ctx, remoteFile(src))
		if err != nil {
			return nil, err
		}
		return open(file)
	}
	found, err := open(s.path(src.File()))
	if err == nil && src.SHA256 != "" && src.SHA256 != found.Digest {
		return nil, fmt.Errorf("it has sha256 %s, the farm file says %s", found.Digest, src.SHA256)
	}
	return found, err
}

func (s *prepared) debSource(ctx context.Context, src matrix.Source) (*images.Source, error) {
	found, err := s.findDeb(ctx, src)
	if err != nil {
		return nil, err
	}
	file, err := s.fetchFile(ctx, found.File())
	if err != nil {
		return nil, unavailable(found, err)
	}
	source, err := images.DebSource(file)
	if err != nil {
		return nil, err
	}
	source.Package = found
	return source, nil
}

// findDeb looks a deb up in the lock, or else in its suite.
func (s *prepared) findDeb(ctx context.Context, src matrix.Source) (*apt.Package, error) {
	if pinned := s.Lock.Module(src); pinned != nil && pinned.Deb != nil {
		return s.pins.aptOf(s.farm, src.Distribution, pinned.Deb), nil
	}
	suite, err := s.anySuite(ctx, src.Distribution, src.Suite)
	if err != nil {
		return nil, err
	}
	found, err := suite.Lookup(src.Deb)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, s.noPackage(matrix.Word{Text: src.Deb, Pos: src.Pos}, suite)
	}
	return found[0], nil
}

// fetchFile fetches a source, and verifies it even if it was there already.
func (s *prepared) fetchFile(ctx context.Context, f fetch.File) (string, error) {
	file, err := s.Fetch.Fetch(ctx, f)
	if err != nil {
		return "", err
	}
	if err := images.VerifyFile(file, f.SHA256); err != nil {
		return "", fmt.Errorf("%w: %w", errDamaged, err)
	}
	return file, nil
}

// errDamaged marks a fault of the disk.
var errDamaged = errors.New("a file of the store")

// blame makes an error a mistake at a place of the farm file, in the value there,
// unless it is one already, or a fault of the world.
func (s *prepared) blame(pos matrix.Pos, value string, err error) error {
	if _, ok := errors.AsType[*matrix.Error](err); ok || isInfrastructure(err) || errors.Is(err, context.Canceled) {
		return err
	}
	return s.farm.Mistake(pos, value, value+": "+err.Error(), "")
}

// noPackage is the mistake of a word that names no package of a suite.
func (s *prepared) noPackage(w matrix.Word, suite *debian.Suite) error {
	return s.farm.Mistake(w.Pos, w.Text, fmt.Sprintf("suite %s has no package %s", suite.Name, w.Text),
		matrix.DidYouMean(w.Text, slices.Collect(suite.Names(""))))
}

// unresolved is the mistake that keeps a cell's packages from being found: the
// words that name none, else what asks for them, the kernel or the module.
func (s *prepared) unresolved(ctx context.Context, m *matrix.ModuleVersion, k *matrix.Kernel, err error) error {
	pos, words := m.Pos, m.BuildPackages
	if s.kernels[k].base == nil {
		pos, words = s.place(k), nil
		if k.Custom != nil {
			words = k.Custom.Toolchain.Packages
		}
	}
	suite, openErr := s.suite(ctx, suiteKey{k.Distribution, k.Suite, kernel.Machine()})
	if openErr != nil {
		return s.blame(pos, k.Release, openErr)
	}
	var unknown []error
	for _, w := range words {
		named, nameErr := suite.Lookup(w.Text)
		provided, provideErr := suite.Providers(w.Text)
		if err := cmp.Or(nameErr, provideErr); err != nil {
			return err
		}
		if len(named)+len(provided) == 0 {
			unknown = append(unknown, s.noPackage(w, suite))
		}
	}
	return cmp.Or(errors.Join(unknown...), s.farm.Mistake(pos, "", err.Error(), ""))
}

// place is where the farm file asks for a kernel, or first for its suite.
func (s *prepared) place(k *matrix.Kernel) matrix.Pos {
	if k.Custom != nil {
		return k.Custom.Pos
	}
	for _, ix := range s.farm.Indexes() {
		if ix.Distribution == k.Distribution && ix.Suite == k.Suite {
			return ix.Pos
		}
	}
	return matrix.Pos{}
}

// isInfrastructure tells faults of the network or the disk from mistakes.
func isInfrastructure(err error) bool {
	if _, ok := errors.AsType[*PackageError](err); ok {
		return true
	}
	for _, fault := range []error{fetch.ErrUnavailable, fetch.ErrOffline, errDamaged, syscall.ENOSPC, syscall.EIO} {
		if errors.Is(err, fault) {
			return true
		}
	}
	return false
}

// catalogue lists the kernels that the farm may choose from: the lock's where
// that answers the farm file, else the archive's.
func (s *prepared) catalogue(ctx context.Context) ([]matrix.Kernel, error) {
	var all []matrix.Kernel
	for _, ix := range s.farm.Indexes() {
		if !ix.Kernels {
			continue
		}
		for _, arch := range ix.Archs {
			kernels, ok := s.lockedKernels(ix, arch)
			if !ok {
				var err error
				if kernels, err = s.archiveKernels(ctx, ix, arch); err != nil {
					return nil, err
				}
			}
			all = append(all, kernels...)
		}
	}
	return all, nil
}

func (s *prepared) archiveKernels(ctx context.Context, ix matrix.Index, arch string) ([]matrix.Kernel, error) {
	suite, err := s.suite(ctx, suiteKey{ix.Distribution, ix.Suite, arch})
	if err != nil {
		return nil, err
	}
	kernels, err := suite.Kernels()
	if err != nil {
		return nil, fmt.Errorf("listing the kernels of %s: %w", ix.Suite, err)
	}
	all := make([]matrix.Kernel, len(kernels))
	for i, k := range kernels {
		all[i] = matrix.Kernel{Release: k.Release, Arch: arch, Distribution: ix.Distribution,
			Suite: ix.Suite, Package: k.Package, Version: k.Version}
	}
	return all, nil
}

// cells completes the expanded cells with their inputs and keys.
func (s *prepared) cells(ctx context.Context, plan *matrix.Plan) ([]*Cell, error) {
	cells := make([]*Cell, len(plan.Cells))
	for i := range plan.Cells {
		c := &Cell{Cell: &plan.Cells[i], Timeout: plan.Cells[i].Module.Timeout}
		cells[i] = c
		if c.Excluded {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.inputs(ctx, c); err != nil {
			return nil, err
		}
		if s.Boots || s.farm.Test != nil {
			var err error
			if c.Boot, err = s.bootPackages(ctx, c.Kernel, c.Module.Pos); err != nil {
				return nil, fmt.Errorf("%s: finding its kernel: %w", c.Name(), err)
			}
		}
	}
	connect(cells)
	return cells, nil
}

// inputs fills in what the cell is built from.
func (s *prepared) inputs(ctx context.Context, c *Cell) error {
	c.Inputs.Source, c.Inputs.Program = s.sources[c.Module], s.Program
	build, err := debian.BuildPackages(c.Inputs.Source.Depends)
	if err != nil {
		return fmt.Errorf("%s: Depends of its source: %w", c.Name(), err)
	}
	all, err := s.closure(ctx, c.Kernel, slices.Concat(build, matrix.Texts(c.Module.BuildPackages)), c.Module.Pos)
	if err != nil {
		if ctx.Err() != nil || isInfrastructure(err) {
			return fmt.Errorf("%s: %w", c.Name(), err)
		}
		return s.unresolved(ctx, c.Module, c.Kernel, fmt.Errorf("%s: %w", c.Name(), err))
	}
	c.Inputs.Toolchain, c.Inputs.Headers, c.Inputs.Extra, c.packages = all.Toolchain, all.Headers, all.Extra, all.digest
	if c.Kernel.Custom != nil {
		c.Inputs.Custom, err = s.customHeaders(c.Kernel.Custom)
	}
	return err
}

// closure gives the packages of a kernel and build packages, once: the lock's,
// or else those that the archive resolves. at is who wants the build packages.
func (s *prepared) closure(ctx context.Context, k *matrix.Kernel, build []string, at matrix.Pos) (*closure, error) {
	known := s.kernels[k]
	if known == nil {
		known = &kernelInputs{byPackages: map[string]*closure{}}
		s.kernels[k] = known
	}
	name := strings.Join(build, ",")
	if c := known.byPackages[name]; c != nil {
		return c, nil
	}
	c := s.lockedClosure(k, build, at)
	if c == nil {
		var err error
		if c, err = s.resolve(ctx, k, known, build); err != nil {
			return nil, err
		}
	}
	known.byPackages[name] = &closure{c, digestPackages(c.Toolchain, c.Headers, c.Extra)}
	return known.byPackages[name], nil
}

// resolve asks the archive for the packages of a kernel and build packages. In
// a run that refuses drift it has been noted, and nothing is resolved.
func (s *prepared) resolve(ctx context.Context, k *matrix.Kernel, known *kernelInputs, build []string) (*debian.Closure, error) {
	if s.Locked {
		return &debian.Closure{}, nil
	}
	suite, err := s.suite(ctx, suiteKey{k.Distribution, k.Suite, kernel.Machine()})
	if err != nil {
		return nil, err
	}
	if known.base == nil {
		if known.base, err = s.base(ctx, suite, k); err != nil {
			return nil, err
		}
	}
	return suite.Extend(known.base, build)
}

// base resolves what a kernel's cells share, whose toolchain is of the suite.
func (s *prepared) base(ctx context.Context, suite *debian.Suite, k *matrix.Kernel) (*debian.Closure, error) {
	kernels := suite
	if k.Arch != kernel.Machine() {
		var err error
		if kernels, err = s.suite(ctx, suiteKey{k.Distribution, k.Suite, k.Arch}); err != nil {
			return nil, err
		}
	}
	var packages []string
	var headers *debian.Kernel
	if k.Custom != nil {
		packages = matrix.Texts(k.Custom.Toolchain.Packages)
	} else {
		version, err := headersVersion(kernels, k)
		if err != nil {
			return nil, err
		}
		headers = &debian.Kernel{Release: k.Release, Package: k.Package, Version: version}
	}
	if kernels == suite {
		return suite.Base(headers, packages)
	}
	triplet, _ := kernel.CrossTriplet(k.Arch) // checkArchs has asked
	return suite.CrossBase(debian.Cross{Kernels: kernels, Triplet: triplet}, headers, packages)
}

// headersVersion is the version of a kernel's headers that the catalogue has;
// where a lock's is no longer in the archive, the newest one.
func headersVersion(suite *debian.Suite, k *matrix.Kernel) (string, error) {
	found, err := suite.Lookup(k.Package)
	if err != nil {
		return "", err
	}
	if len(found) > 0 && !slices.ContainsFunc(found, func(p *apt.Package) bool { return p.Version == k.Version }) {
		return found[0].Version, nil
	}
	return k.Version, nil
}

// customHeaders reads the headers of a kernel of one's own, once.
func (s *prepared) customHeaders(k *matrix.CustomKernel) (*images.Headers, error) {
	if h := s.custom[k]; h != nil {
		return h, nil
	}
	paths := make([]string, len(k.Headers))
	for i, p := range k.Headers {
		paths[i] = s.path(p)
	}
	h, err := images.OpenHeaders(k.Release, paths, s.Own...)
	if err != nil {
		return nil, s.farm.Mistake(k.Pos, k.Release, err.Error(), "")
	}
	s.checkHeaders(k, h)
	s.custom[k] = h
	return h, nil
}
