// Package debian knows how a Debian archive is laid out: the pockets of a
// suite, the packages that hold a kernel's headers, and what a machine that
// builds modules with DKMS has installed.
package debian

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kofarm/kofarm/images/apt"
)

// Archive says where a distribution's packages are.
type Archive struct {
	Distribution    string // its name in the farm file
	Mirrors         []string
	SecurityMirrors []string // empty: no security pockets
	Components      []string
	Keyring         string   // file of OpenPGP keys
	AllowExpired    []string // suites whose Release may be past its Valid-Until
}

// Suite is a suite with its pockets, for one architecture.
type Suite struct {
	Name string
	*apt.Universe

	kernels *apt.Universe // the pockets whose kernels are this suite's
	indexes []*apt.Index
}

// pocket is one suite of an archive that a suite consists of.
type pocket struct {
	suite    string
	security bool
	kernels  bool // its kernels belong to the suite
}

// KnownSuites are the names of Debian's suites that can be built for.
func KnownSuites() []string {
	var all []string
	for _, s := range []string{"bullseye", "bookworm", "trixie", "forky", "oldoldstable", "oldstable", "stable", "testing"} {
		all = append(all, s, s+"-backports", s+"-proposed-updates")
	}
	return append(all, "sid", "unstable", "experimental")
}

// PocketOf gives the suite whose kernels include those of a pocket.
func PocketOf(pocket string) (suite string, ok bool) {
	for _, suffix := range []string{"-updates", "-security"} {
		if suite, ok := strings.CutSuffix(pocket, suffix); ok && !strings.HasSuffix(suite, "-proposed") {
			return suite, true
		}
	}
	return "", false
}

// pockets lists what a suite consists of. Backports and proposed updates stand
// upon their base suite, experimental upon sid; these two have neither security
// nor updates.
func pockets(suite string) []pocket {
	base, addition := suite, ""
	for _, suffix := range []string{"-backports-sloppy", "-backports", "-proposed-updates"} {
		if b, ok := strings.CutSuffix(suite, suffix); ok {
			base, addition = b, suite
			break
		}
	}
	switch base {
	case "sid", "unstable":
		return []pocket{{suite: base, kernels: true}}
	case "experimental":
		return []pocket{{suite: "sid"}, {suite: base, kernels: true}}
	}
	own := addition == ""
	ps := []pocket{{suite: base, kernels: own}, {suite: base + "-updates", kernels: own}, {suite: base + "-security", security: true, kernels: own}}
	if !own {
		ps = append(ps, pocket{suite: addition, kernels: true})
	}
	return ps
}

// Open opens a suite and its pockets. The base suite must be there; a pocket
// that the archive does not have (apt.ErrSuite) is left out.
func Open(ctx context.Context, client *apt.Client, a Archive, suite, arch string, now time.Time) (*Suite, error) {
	s := &Suite{Name: suite}
	ps := pockets(suite)
	indexes, errs := make([]*apt.Index, len(ps)), make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		mirrors := a.Mirrors
		if p.security {
			mirrors = a.SecurityMirrors
		}
		if len(mirrors) == 0 {
			continue
		}
		wg.Go(func() {
			indexes[i], errs[i] = client.Open(ctx, apt.Source{
				Distribution: a.Distribution, Mirrors: mirrors, Suite: p.suite, Components: a.Components, Arch: arch,
				Keyring: a.Keyring, Now: now,
				AllowExpired: slices.Contains(a.AllowExpired, p.suite) || slices.Contains(a.AllowExpired, suite),
			})
			if i > 0 && p.suite != suite && errors.Is(errs[i], apt.ErrSuite) {
				errs[i] = nil
			}
		})
	}
	wg.Wait()
	err := cmp.Or(errs...)
	var own []*apt.Index
	for i, ix := range indexes {
		if ix == nil {
			continue
		}
		s.indexes = append(s.indexes, ix)
		if ps[i].kernels {
			own = append(own, ix)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.Universe, err = apt.NewUniverse(nil, s.indexes...); err == nil {
		s.kernels, err = apt.NewUniverse(nil, own...)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the suite's indexes.
func (s *Suite) Close() error {
	var err error
	for _, ix := range s.indexes {
		err = errors.Join(err, ix.Close())
	}
	return err
}

// Kernel is a kernel whose headers the suite has.
type Kernel struct {
	Release string // kernel release
	Package string // linux-headers-<release>
	Version string // of the newest package for it
}

const headersPrefix = "linux-headers-"

// Kernels lists the kernels, sorted by the packages' names. A package that
// holds headers depends on its -common part or on the kbuild tools; one that
// only follows the newest kernel depends on another linux-headers package.
func (s *Suite) Kernels() ([]Kernel, error) {
	var kernels []Kernel
	for name := range s.kernels.Names(headersPrefix) {
		release := strings.TrimPrefix(name, headersPrefix)
		if release == "" || release[0] < '0' || release[0] > '9' {
			continue
		}
		found, err := s.kernels.Lookup(name)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 && isKernel(found[0]) {
			kernels = append(kernels, Kernel{release, name, found[0].Version})
		}
	}
	return kernels, nil
}

// isKernel tells a flavor's headers from the packages beside them.
func isKernel(p *apt.Package) bool {
	if strings.HasSuffix(p.Name, "-common") || strings.HasSuffix(p.Name, "-common-rt") || strings.Contains(p.Name, "-all") {
		return false
	}
	for _, d := range p.Depends {
		for _, r := range d {
			if strings.HasPrefix(r.Name, headersPrefix) && strings.Contains(r.Name, "-common") {
				return true
			}
		}
	}
	return false
}

// Closure are the packages that a build needs, by the layer that they go into.
type Closure struct {
	Toolchain, Headers, Extra []*apt.Package // each sorted by name
}

// omitted are what headers depend on and no build needs: the kernel itself and
// what makes its initramfs (Debian's headers from 6.12 on).
var omitted = regexp.MustCompile(`^(linux-image-.*|initramfs-tools.*|linux-initramfs-tool|dracut.*)$`)

// headerPackage are the packages of a kernel's source package that make layers
// of their own.
var headerPackage = regexp.MustCompile(`^linux-(headers|kbuild|compiler|bpf-dev|config|misc-tools)`)

// Resolve finds what a build of modules for the kernel needs: what every Debian
// has and its dkms depends on, a C compiler with its library's headers, the
// kernel's headers with all that they depend on, and the build packages. The
// kernel may be nil for one whose headers come from elsewhere.
func (s *Suite) Resolve(kernel *Kernel, toolchain, build []string) (*Closure, error) {
	c, err := s.Base(kernel, toolchain)
	if err != nil {
		return nil, err
	}
	return s.Extend(c, build)
}

// Base is Resolve without build packages.
func (s *Suite) Base(kernel *Kernel, toolchain []string) (*Closure, error) {
	roots, err := s.toolchainRoots(toolchain)
	if err != nil {
		return nil, err
	}
	if kernel != nil {
		roots = append(roots, fmt.Sprintf("%s (= %s)", kernel.Package, kernel.Version))
	}
	all, err := apt.Resolve(s.Universe, apt.Request{Roots: roots, Omit: omitted.MatchString})
	if err != nil {
		return nil, err
	}
	c := &Closure{}
	for _, p := range all {
		if headerPackage.MatchString(p.Name) && strings.HasPrefix(p.Source, "linux") {
			c.Headers = append(c.Headers, p)
		} else {
			c.Toolchain = append(c.Toolchain, p)
		}
	}
	return c, nil
}

// Extend adds to a closure of the suite what build packages need beside it.
func (s *Suite) Extend(base *Closure, build []string) (*Closure, error) {
	c := *base
	if len(build) == 0 {
		return &c, nil
	}
	all := slices.Concat(base.Toolchain, base.Headers)
	all = slices.DeleteFunc(all, func(p *apt.Package) bool { return p.Arch != "all" && p.Arch != s.Arch() }) // a cross build's
	slices.SortFunc(all, func(a, b *apt.Package) int { return strings.Compare(a.Name, b.Name) })
	var err error
	c.Extra, err = apt.Resolve(s.Universe, apt.Request{Roots: build, Base: all, Omit: omitted.MatchString})
	if err != nil {
		return nil, fmt.Errorf("build packages: %w", err)
	}
	return &c, nil
}

// imagePart are the packages that hold a kernel, beside linux-image itself (Debian's from 6.17 on).
var imagePart = regexp.MustCompile(`^linux-(base|binary|modules)-[0-9]`)

// Busybox is the package whose busybox is the user space that a kernel is booted
// with in a test.
const Busybox = "busybox-static"

// Image finds the packages that a boot of the kernel needs, sorted by name:
// those that hold the kernel itself and its modules, of the headers' version,
// else the newest, [Busybox], and the packages named in more. Where the archive
// does not have the kernel with Debian's signature yet, which comes hours or days
// later, it is the one without. There are none where it has only headers.
func (s *Suite) Image(k Kernel, more ...string) ([]*apt.Package, error) {
	found, err := s.Lookup("linux-image-" + k.Release)
	if err == nil && len(found) == 0 {
		found, err = s.Lookup("linux-image-" + k.Release + "-unsigned")
	}
	if err != nil || len(found) == 0 {
		return nil, err
	}
	image := found[0]
	for _, p := range found {
		if p.Version == k.Version {
			image = p
		}
	}
	pkgs := []*apt.Package{image}
	for _, d := range image.Depends {
		if name := d[0].Name; imagePart.MatchString(name) && strings.HasSuffix(name, "-"+k.Release) {
			parts, err := s.Lookup(name)
			if err != nil {
				return nil, err
			}
			for _, p := range parts {
				if d[0].Version == "" || p.Version == d[0].Version {
					pkgs = append(pkgs, p)
					break
				}
			}
		}
	}
	for _, name := range append([]string{Busybox}, more...) {
		found, err := s.Lookup(name)
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, found[:min(1, len(found))]...)
	}
	slices.SortFunc(pkgs, func(a, b *apt.Package) int { return strings.Compare(a.Name, b.Name) })
	return pkgs, nil
}

// Dates gives, by the names of the pockets, when their indexes were made.
func (s *Suite) Dates() map[string]time.Time {
	dates := map[string]time.Time{}
	for _, ix := range s.indexes {
		dates[ix.Source.Suite] = ix.Release.Date
	}
	return dates
}

// toolchainRoots are the Essential packages, what the suite's dkms depends on,
// a compiler, and the packages that are asked for.
func (s *Suite) toolchainRoots(more []string) ([]string, error) {
	essential, err := s.Essential()
	if err != nil {
		return nil, err
	}
	dkms, err := s.Lookup("dkms")
	if err != nil {
		return nil, err
	}
	if len(dkms) == 0 {
		return nil, fmt.Errorf("suite %s has no dkms package, whose dependencies say what a module's build may use", s.Name)
	}
	roots := slices.Concat(essential, []string{"gcc", "libc6-dev"}, more)
	for _, d := range dkms[0].Depends {
		roots = append(roots, d.String())
	}
	return roots, nil
}

// BuildPackages gives what a *-dkms package depends on, less dkms itself.
func BuildPackages(depends string) ([]string, error) {
	deps, err := apt.ParseDependencies(depends)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range deps {
		if slices.ContainsFunc(d, func(r apt.Relation) bool { return r.Name == "dkms" }) {
			continue
		}
		names = append(names, d.String())
	}
	return names, nil
}
