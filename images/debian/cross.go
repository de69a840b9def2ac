package debian

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/images/apt"
)

// compilerPackage are the packages by which headers and toolchains name the
// kernel's compiler: gcc-12; gcc-16-for-host (Debian's headers from 7.0 on);
// linux-compiler-gcc-10-arm.
var compilerPackage = regexp.MustCompile(`^(?:(gcc(?:-[0-9]+)?)(?:-for-host)?|linux-compiler-(gcc-[0-9]+)-[a-z0-9]+)$`)

// Cross says what headers of another architecture need here to be built with.
type Cross struct {
	Kernels *Suite // of that architecture
	Triplet string // GNU's name of it: "aarch64-linux-gnu"
}

// compiler gives the package of the cross compiler that stands for one of the
// kernel's own architecture; "" for a package that is no compiler.
func (c Cross) compiler(name string) string {
	m := compilerPackage.FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	return m[1] + m[2] + "-" + c.Triplet
}

// CrossBase is Base for a kernel of another architecture: its headers are that
// architecture's, and all else is the suite's own: the programs of its build
// tree (linux-kbuild), the cross compiler for what the headers name as their
// compiler, and that one's C library. Of a kernel whose headers come from
// elsewhere the packages of the toolchain name the compiler; where they do not,
// it is the suite's default.
func (s *Suite) CrossBase(c Cross, kernel *Kernel, toolchain []string) (*Closure, error) {
	headers, roots, err := c.headers(kernel)
	if err != nil {
		return nil, err
	}
	for _, p := range toolchain {
		if cross := c.compiler(p); cross != "" {
			p = cross
		}
		roots = append(roots, p)
	}
	if !slices.ContainsFunc(roots, func(r string) bool { return strings.HasSuffix(r, c.Triplet) }) {
		roots = append(roots, "gcc-"+c.Triplet)
	}
	roots = append(roots, "libc6-dev-"+c.Kernels.Arch()+"-cross") // for programs beside the modules
	closure, err := s.Base(nil, roots)
	if err != nil {
		return nil, err
	}
	closure.Headers = append(closure.Headers, headers...)
	slices.SortFunc(closure.Headers, func(a, b *apt.Package) int { return strings.Compare(a.Name, b.Name) })
	return closure, nil
}

// headers follows the dependencies of a kernel's headers, by the rules of
// multiarch but for the compiler: roots are those that the build machine's
// architecture meets.
func (c Cross) headers(kernel *Kernel) (headers []*apt.Package, roots []string, err error) {
	if kernel == nil {
		return nil, nil, nil
	}
	first := apt.Relation{Name: kernel.Package, Op: "=", Version: kernel.Version}
	p, err := c.Kernels.Find(first)
	if err != nil {
		return nil, nil, err
	}
	if p == nil {
		return nil, nil, fmt.Errorf("%w: suite %s has no %s for %s", apt.ErrUnmet, c.Kernels.Name, first, c.Kernels.Arch())
	}
	headers = []*apt.Package{p}
	for i := 0; i < len(headers); i++ {
		for _, d := range slices.Concat(headers[i].PreDepends, headers[i].Depends) {
			more, root, err := c.follow(d)
			if err != nil {
				return nil, nil, fmt.Errorf("%s (%s) for %s depends on %s: %w", headers[i].Name, headers[i].Version, c.Kernels.Arch(), d, err)
			}
			if more != nil && !slices.Contains(headers, more) {
				headers = append(headers, more)
			}
			if root != "" {
				roots = append(roots, root)
			}
		}
	}
	return headers, roots, nil
}

// follow gives the package of the kernel's architecture that meets a dependency
// of its headers, or the dependency that the build machine's meets in its place;
// neither where no build needs what is asked for.
func (c Cross) follow(d apt.Dependency) (header *apt.Package, root string, err error) {
	if slices.ContainsFunc(d, func(r apt.Relation) bool { return omitted.MatchString(r.Name) || imagePart.MatchString(r.Name) }) {
		return nil, "", nil
	}
	if cross := c.compiler(d[0].Name); cross != "" {
		return nil, cross, nil
	}
	for _, r := range d {
		p, err := c.Kernels.Find(r)
		if err != nil {
			return nil, "", err
		}
		switch {
		case p == nil:
		case p.Arch == "all" && !headerPackage.MatchString(p.Name), p.Arch != "all" && p.MultiArch == "foreign":
			return nil, d.String(), nil
		default:
			return p, "", nil
		}
	}
	return nil, "", fmt.Errorf("%w: not available in %s", apt.ErrUnmet, strings.Join(c.Kernels.Suites(), ", "))
}
