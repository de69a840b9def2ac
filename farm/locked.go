package farm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/matrix"
	"github.com/kofarm/kofarm/matrix/lock"
)

// DriftError says that a farm file and its lock differ, which was not to be.
type DriftError struct {
	Farm, Lock string // the files
	Drift      []lock.Drift
}

// ErrNoLock says that a farm file has no lock, where one has to be.
var ErrNoLock = errors.New("there is no lock beside it")

// Error names each difference on a line, with its places.
func (e *DriftError) Error() string {
	lines := []string{fmt.Sprintf("%s does not pin what %s says; `kofarm lock %s` brings it up to date:", e.Lock, e.Farm, e.Farm)}
	for _, d := range e.Drift {
		lines = append(lines, d.Text(e.Farm, e.Lock))
	}
	return strings.Join(lines, "\n")
}

// pins is what a Prepare knows of the lock's packages.
type pins struct {
	mu     sync.Mutex
	drift  []lock.Drift
	apt    map[*lock.Package]*apt.Package
	pinned map[*apt.Package]*lock.Package    // the way back
	lists  map[**lock.Package][]*apt.Package // by their first elements: lists that many kernels share
}

func newPins() *pins {
	return &pins{apt: map[*lock.Package]*apt.Package{}, pinned: map[*apt.Package]*lock.Package{}, lists: map[**lock.Package][]*apt.Package{}}
}

// note adds a drift, once.
func (p *pins) note(d lock.Drift) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.drift, d) {
		p.drift = append(p.drift, d)
	}
}

func (p *pins) sorted() []lock.Drift {
	lock.Sort(p.drift)
	return p.drift
}

// aptOf is a lock's package as the archive would have it: with the mirrors'
// addresses, and those of the fallbacks behind them.
func (p *pins) aptOf(f *matrix.Farm, distribution string, pinned *lock.Package) *apt.Package {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.convert(f, distribution, pinned)
}

func (p *pins) convert(f *matrix.Farm, distribution string, pinned *lock.Package) *apt.Package {
	if known := p.apt[pinned]; known != nil {
		return known
	}
	made := &apt.Package{Name: pinned.Name, Version: pinned.Version, Arch: pinned.Arch, Filename: pinned.Path,
		Size: pinned.Size, SHA256: pinned.SHA256, URLs: packageURLs(f.Archives[distribution], pinned),
		Distribution: distribution, Suite: pinned.Pocket}
	p.apt[pinned], p.pinned[made] = made, pinned
	return made
}

// lockOf gives the lock's package that a package was made from; nil for one of
// the archive.
func (p *pins) lockOf(made *apt.Package) *lock.Package {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pinned[made]
}

// aptList converts a list, once.
func (p *pins) aptList(f *matrix.Farm, distribution string, list []*lock.Package) []*apt.Package {
	if len(list) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.lists[&list[0]]; known != nil {
		return known
	}
	made := make([]*apt.Package, len(list))
	for i, pinned := range list {
		made[i] = p.convert(f, distribution, pinned)
	}
	p.lists[&list[0]] = made
	return made
}

// packageURLs lists every place where a pinned package may be: the mirrors, then
// the fallbacks, each at the time at which the archive had the package.
func packageURLs(a matrix.Archive, p *lock.Package) []string {
	mirrors, fallbacks := a.Mirrors, a.Fallbacks
	if strings.HasSuffix(p.Pocket, "-security") {
		mirrors, fallbacks = a.SecurityMirrors, a.SecurityFallbacks
	}
	bases := slices.Clone(mirrors)
	for _, base := range fallbacks {
		bases = append(bases, strings.ReplaceAll(base, matrix.Timestamp, p.Date))
	}
	return apt.URLs(bases, p.Path)
}

// compare notes where the farm file and the lock differ.
func (s *prepared) compare() error {
	if s.Lock == nil {
		if s.Locked {
			return fmt.Errorf("%s: %w: `kofarm lock %s` makes one", s.farm.File, ErrNoLock, s.farm.File)
		}
		return nil
	}
	for _, d := range s.Lock.Compare(s.farm) {
		s.pins.note(d)
	}
	return s.refused()
}

// refused is the error of a run that refuses drift.
func (s *prepared) refused() error {
	if !s.Locked || len(s.pins.drift) == 0 {
		return nil
	}
	return &DriftError{s.farm.File, s.Lock.File, s.pins.sorted()}
}

// checkSource notes a source that is not what the lock says.
func (s *prepared) checkSource(m *matrix.ModuleVersion, src *images.Source) {
	pinned := s.Lock.Module(m.Source)
	if pinned == nil || pinned.SHA256 == src.Digest || m.Source.SHA256 != "" {
		return
	}
	s.pins.note(lock.Drift{Pos: m.Source.Pos, Line: pinned.Line,
		Msg: fmt.Sprintf("%s has changed: it has sha256 %s, the lock says %s", pinned.Source, src.Digest, pinned.SHA256)})
}

// checkHeaders notes headers that are not what the lock says.
func (s *prepared) checkHeaders(k *matrix.CustomKernel, h *images.Headers) {
	if pinned := s.Lock.Own(k); pinned != nil && !slices.Equal(pinned.Own.Headers, h.Digests) {
		s.pins.note(lock.Drift{Pos: k.Pos, Line: pinned.Line,
			Msg: fmt.Sprintf("the headers of kernel %s have changed: they have sha256 %q, the lock says %q", k.Release, h.Digests, pinned.Own.Headers)})
	}
}

// lockedKernels gives the lock's kernels of a suite; ok is false where they are
// no answer to what the farm file asks for.
func (s *prepared) lockedKernels(ix matrix.Index, arch string) (kernels []matrix.Kernel, ok bool) {
	if s.Lock == nil || !s.Lock.Answers(s.farm, ix.Distribution, ix.Suite, arch) {
		return nil, s.Lock != nil && !s.asked(ix, arch)
	}
	for _, k := range s.Lock.Suite(ix.Distribution, ix.Suite, arch).Kernels {
		if k.Own != nil {
			continue
		}
		name := "linux-headers-" + k.Release
		version := ""
		for _, p := range k.Headers {
			if p.Name == name {
				version = p.Version
			}
		}
		kernels = append(kernels, matrix.Kernel{Release: k.Release, Arch: arch, Distribution: ix.Distribution,
			Suite: ix.Suite, Package: name, Version: version, Locked: true})
	}
	return kernels, true
}

// asked says whether the farm asks a suite for kernels of an architecture at all.
func (s *prepared) asked(ix matrix.Index, arch string) bool {
	return slices.ContainsFunc(s.farm.Asks(), func(a matrix.Ask) bool {
		return a.Distribution == ix.Distribution && a.Suite == ix.Suite && a.Arch == arch
	})
}

// pinned finds a kernel in the lock.
func (s *prepared) pinned(k *matrix.Kernel) *lock.Kernel {
	if k.Custom == nil {
		return s.Lock.Suite(k.Distribution, k.Suite, k.Arch).Kernel(k.Release, false)
	}
	found := s.Lock.Own(k.Custom)
	if found == nil || !slices.Equal(found.Own.Packages, matrix.Texts(k.Custom.Toolchain.Packages)) {
		return nil
	}
	return found
}

// lockedClosure gives the packages of a kernel and build packages that the lock
// names; nil where it does not, which is noted.
func (s *prepared) lockedClosure(k *matrix.Kernel, build []string, at matrix.Pos) *debian.Closure {
	if s.Lock == nil {
		return nil
	}
	pinned := s.pinned(k)
	if !pinned.Pinned() {
		if pinned != nil {
			s.pins.note(lock.Drift{Pos: at, Line: pinned.Line, Msg: fmt.Sprintf("the lock names no packages for kernel %s", k.Release)})
		} else if s.Lock.Answers(s.farm, k.Distribution, k.Suite, k.Arch) {
			s.pins.note(lock.Drift{Pos: at, Msg: fmt.Sprintf("the lock does not have kernel %s", k.Release)})
		}
		return nil
	}
	extra, ok := pinned.Extra(build)
	if !ok {
		s.pins.note(lock.Drift{Pos: at, Line: pinned.Line,
			Msg: fmt.Sprintf("the lock does not say what %s needs beside kernel %s", strings.Join(build, ", "), k.Release)})
		return nil
	}
	list := func(l []*lock.Package) []*apt.Package { return s.pins.aptList(s.farm, k.Distribution, l) }
	return &debian.Closure{Toolchain: list(pinned.Toolchain), Headers: list(pinned.Headers), Extra: list(extra)}
}

// PackageError says that a package's file could not be had from anywhere.
type PackageError struct {
	Package *apt.Package
	Err     error
}

// Error names the package, its digest, the places that were tried, and ways out.
func (e *PackageError) Error() string {
	p := e.Package
	missing := fmt.Sprintf("package %s (%s) is not in the store, and cannot be had: ", p, p.Arch)
	if errors.Is(e.Err, fetch.ErrOffline) {
		return missing + "this run is offline\n" +
			"Ways out: run without --offline; or build from a bundle that has it, which `kofarm bundle` makes where there is a network"
	}
	return fmt.Sprintf("%s%v\nwant sha256 %s, %d bytes\n"+
		"Ways out: run again later, with a mirror that has it, or with an archive of snapshots in archives.%s.fallbacks, such as https://snapshot.debian.org/archive/debian/%s/; "+
		"build from a bundle; or, where the lock pins it, move on with `kofarm lock --update %s`",
		missing, e.Err, p.SHA256, p.Size, p.Distribution, matrix.Timestamp, p.Name)
}

// Unwrap gives the fetcher's error.
func (e *PackageError) Unwrap() error { return e.Err }

// unavailable makes a PackageError of a fetcher's error that is about the
// package, and leaves others alone.
func unavailable(p *apt.Package, err error) error {
	for _, about := range []error{fetch.ErrNotFound, fetch.ErrChecksum, fetch.ErrUnavailable, fetch.ErrOffline} {
		if errors.Is(err, about) {
			return &PackageError{p, err}
		}
	}
	return err
}

// Packages fetches packages for an image assembler.
type Packages struct{ *fetch.Client }

// Package brings a package's file to the local disk. The error is a
// *PackageError where it is nowhere.
func (f Packages) Package(ctx context.Context, p *apt.Package) (string, error) {
	file, err := f.Fetch(ctx, p.File())
	return file, unavailable(p, err)
}
