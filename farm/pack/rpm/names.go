package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
	"github.com/kofarm/kofarm/matrix/kernel"
)

// ErrStyle says that a style cannot express a kernel's release.
var ErrStyle = errors.New("the style cannot express this kernel's release")

// Names are parts of paths, words in scriptlets and in the macros of a spec.
var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
	kernelPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9._+~-]*$`)
	flavorPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_+.-]*$`)
	archPattern   = regexp.MustCompile(`^[a-z0-9_]+$`)
	modulePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*\.ko$`)
)

const (
	// DefaultPackager stands where a package says who made it.
	DefaultPackager = "kofarm <kofarm@users.noreply.github.com>"

	maxNameLen   = 64 // of a module's name or version, of a kernel's release
	maxDestLen   = 128
	maxModules   = 4096
	buildHost    = "kofarm"
	groupOfAll   = "System Environment/Kernel"
	modulesTop   = "/lib/modules/"
	kernelUname  = "kernel-uname-r"
	moduleSource = "kernel-module-"
)

func check(what, value string, pattern *regexp.Regexp, most int) error {
	if len(value) > most || !pattern.MatchString(value) {
		return fmt.Errorf("%s %.*q, want at most %d characters that match %s", what, most, value, most, pattern)
	}
	return nil
}

// Version is the version of a package of a module version. RPM takes letters,
// digits and ._+~^; a "-" becomes "_", as SUSE has it. "~" stays, and sorts before
// the end: 1.0~rc1 is older than 1.0. Two versions that become one (1-2 and 1_2)
// make two packages of one name: whoever plans packages has to look for that.
func Version(version string) (string, error) {
	if err := check("module version", version, namePattern, maxNameLen); err != nil {
		return "", err
	}
	v := strings.ReplaceAll(version, "-", "_")
	return v, rpmfile.CheckVersion(v)
}

// common is a package with what all packages of a module version share.
func (i Info) common() (*rpmfile.Package, error) {
	version, err := Version(i.Version)
	p := &rpmfile.Package{
		Version: version, Release: cmp.Or(i.Release, "1"), License: i.License, Group: groupOfAll, URL: i.URL,
		BuildHost: buildHost, BuildTime: i.Epoch, Packager: cmp.Or(i.Packager, DefaultPackager),
	}
	p.SourceRPM = moduleSource + i.Name + "-" + p.EVR() + ".src.rpm"
	return p, errors.Join(err, check("module name", i.Name, namePattern, maxNameLen), rpmfile.CheckVersion(p.Release))
}

// kernelPackage is the package for a kernel, without what its modules say.
func (i Info) kernelPackage(k Kernel) (*rpmfile.Package, error) {
	p, err := i.common()
	if err := errors.Join(err, k.validate()); err != nil {
		return nil, err
	}
	p.Arch = k.rpmArch()
	p.Summary = "Kernel modules of " + i.Name + " for " + k.Release
	p.Change = fmt.Sprintf("Modules of %s %s for kernel %s.", i.Name, i.Version, k.Release)
	p.Description = fmt.Sprintf("The kernel modules of %s %s, built for the kernel\n%s on %s.", i.Name, i.Version, k.Release, k.Arch)
	switch i.Style {
	case Kmod:
		err = i.kmod(p, k)
	case KernelModule:
		i.kernelModule(p, k)
	case KMP:
		err = i.kmp(p, k)
	default:
		err = fmt.Errorf("style %q, known are %v", i.Style, Styles())
	}
	if err != nil {
		return nil, err
	}
	return p, errors.Join(rpmfile.CheckName(p.Name), rpmfile.CheckVersion(p.Version), rpmfile.CheckVersion(p.Release))
}

// is is a dependency on exactly that version.
func is(name, version string) rpmfile.Dependency {
	return rpmfile.Dependency{Name: name, Flags: rpmfile.Equal, Version: version}
}

func (i Info) kmod(p *rpmfile.Package, k Kernel) error {
	if err := rpmfile.CheckEVR(k.Release); err != nil {
		return fmt.Errorf("kernel %s as %q: %w (%w); use the style %q", k.Release, kernelUname+" = "+k.Release, ErrStyle, err, KernelModule)
	}
	p.Name = "kmod-" + i.Name + "-" + k.Release
	p.Provides = []rpmfile.Dependency{is("kernel-modules-for-kernel", k.Release), is(i.Name+"-kmod", p.EVR())}
	p.Requires = []rpmfile.Dependency{is(kernelUname, k.Release)}
	return nil
}

func (i Info) kernelModule(p *rpmfile.Package, k Kernel) {
	p.Name = moduleSource + i.Name
	p.Release = k.short()
	if i.Release != "" {
		p.Release += "." + i.Release
	}
	p.Requires = []rpmfile.Dependency{is(kernelUname, k.Release)}
	if rpmfile.CheckEVR(k.Release) != nil {
		// No version of a dependency says it, but a file does that every kernel has.
		p.Requires = []rpmfile.Dependency{{Name: modulesTop + k.Release + "/modules.builtin"}}
	}
}

func (i Info) kmp(p *rpmfile.Package, k Kernel) error {
	if err := check("flavor (which the KMP style needs)", k.Flavor, flavorPattern, maxNameLen); err != nil {
		return err
	}
	k.Release = strings.TrimSuffix(k.Release, "-"+k.Flavor)
	p.Name = i.Name + "-kmp-" + k.Flavor
	p.Version += "_k" + k.short()
	p.Provides = []rpmfile.Dependency{is(i.Name+"-kmp", p.EVR()), {Name: "multiversion(kernel)"}}
	p.Enhances = []rpmfile.Dependency{{Name: "kernel-" + k.Flavor}}
	return nil
}

func (i Info) metaPackage(k Kernel) (*rpmfile.Package, error) {
	if i.Style != Kmod {
		return nil, fmt.Errorf("the style %q has no meta package", i.Style)
	}
	of, err := i.kernelPackage(k)
	if err != nil {
		return nil, err
	}
	p, err := i.common()
	p.Name = "kmod-" + i.Name
	p.Arch = of.Arch
	p.Release += "." + k.short()
	p.Summary = "Kernel modules of " + i.Name + " for the newest kernel"
	p.Change = fmt.Sprintf("Follows kernel %s.", k.Release)
	p.Description = fmt.Sprintf("This package holds nothing, it requires the kernel modules of %s\nfor the newest kernel", i.Name)
	if k.Flavor != "" {
		p.Name += "-" + k.Flavor
		p.Description += " of the flavor " + k.Flavor
	}
	p.Description += "."
	p.Provides = []rpmfile.Dependency{is(i.Name+"-kmod", of.EVR())}
	p.Requires = []rpmfile.Dependency{{Name: of.Name, Flags: rpmfile.Greater | rpmfile.Equal, Version: of.EVR()}}
	return p, errors.Join(err, rpmfile.CheckName(p.Name), rpmfile.CheckVersion(p.Release))
}

// rpmArch is RPM's name of the architecture, which may not be that of uname -m.
func (k Kernel) rpmArch() string {
	if name, ok := kernel.RPMArch(k.Arch); ok {
		return name
	}
	return k.Arch
}

// short is the kernel's release as part of a version: without the arch at its
// end, and with "_" for "-".
func (k Kernel) short() string {
	return strings.ReplaceAll(strings.TrimSuffix(k.Release, "."+k.Arch), "-", "_")
}

func (k Kernel) validate() error {
	err := errors.Join(check("kernel release", k.Release, kernelPattern, maxNameLen), check("arch", k.Arch, archPattern, maxNameLen))
	if want, ok := kernel.CanonicalArch(k.Arch); ok && want != k.Arch {
		err = errors.Join(err, fmt.Errorf("arch %q is called %q by rpm", k.Arch, want))
	}
	if k.Flavor != "" {
		err = errors.Join(err, check("flavor", k.Flavor, flavorPattern, maxNameLen))
	}
	return err
}

func (b Build) validate() error {
	var errs []error
	if len(b.Modules) == 0 || len(b.Modules) > maxModules {
		errs = append(errs, fmt.Errorf("%d modules, want 1 to %d", len(b.Modules), maxModules))
	}
	if !slices.Contains(ModuleCompressions(), b.Compression) {
		errs = append(errs, fmt.Errorf("module compression %q, known are %q", b.Compression, ModuleCompressions()))
	}
	seen := map[string]bool{}
	for _, m := range b.Modules {
		if err := check("module file", m.Dest, modulePattern, maxDestLen); err != nil {
			errs = append(errs, err)
		}
		// A kernel takes a-b and a_b for the same module, modprobe too.
		key := underscored(m.Dest)
		if seen[key] {
			errs = append(errs, fmt.Errorf("two modules called %s", m.Dest))
		}
		seen[key] = true
		if m.Size <= 0 || m.Open == nil {
			errs = append(errs, fmt.Errorf("module file %q of %d bytes cannot be read", m.Dest, m.Size))
		}
	}
	return errors.Join(errs...)
}

// place is the folder of the modules, and those that the package owns.
type place struct {
	path  string
	owned []string
}

func (i Info) moduleFolder(k Kernel) place {
	if i.Style == KMP {
		dir := modulesTop + k.Release + "/updates"
		return place{dir, []string{dir}}
	}
	dir := modulesTop + k.Release + "/extra"
	return place{dir + "/" + i.Name, []string{dir, dir + "/" + i.Name}}
}

// underscored is a module's file as the kernel names it.
func underscored(dest string) string { return strings.ReplaceAll(dest, "-", "_") }
