// Package rpm writes RPM packages of kernel modules: what was built for one
// kernel, in the naming style of a distribution ([Package]); a meta package that
// follows the newest kernel ([Meta]); a package with the source for the DKMS of
// the target ([DKMS]); and a source package that any user rebuilds for a kernel
// of his own ([Source]).
//
// The same input gives the same bytes. Modules are packed as they are: never
// stripped, so that a signature stays valid. What is in the dependencies comes
// from the modules themselves, which are read as hostile input.
package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// Style is how a package for one kernel is named and what it depends on. The
// empty value means [Kmod].
type Style string

// The styles.
const (
	// Kmod is that of Fedora, RPM Fusion and RHEL: kmod-<name>-<kernel release>,
	// modules in /lib/modules/<kernel release>/extra/<name>, symbols by
	// kernel(<symbol>) and ksym(<symbol>) as in RHEL's kernel-srpm-macros.
	Kmod Style = "kmod"
	// KernelModule is the older one: kernel-module-<name>, the module's version,
	// and as release the kernel's with its flavor: the packages of several
	// kernels are versions of one package. `rpm -i` puts them side by side, dnf
	// replaces the older kernel's. No dependencies on symbols.
	KernelModule Style = "kernel-module"
	// KMP is SUSE's: <name>-kmp-<flavor>, version <version>_k<kernel>, modules
	// in /lib/modules/<kernel release>/updates, symbols by ksym(<flavor>:<symbol>),
	// and weak-modules2, which makes them known to compatible kernels.
	KMP Style = "kmp"
)

// Styles lists the styles, the default first.
func Styles() []Style { return []Style{Kmod, KernelModule, KMP} }

// Info describes a module version. Name, Version and Epoch must be set; the zero
// values of the others mean what their comments say.
type Info struct {
	Style Style
	// Name and Version are the module's, as DKMS has them. [Version] says what
	// becomes of a version that RPM does not take.
	Name, Version string
	// Release is the packages' own. Empty: "1", and of the [KernelModule] style
	// nothing; there it follows the kernel's, after a dot.
	Release string
	// License is an SPDX expression. Empty: that of the modules, by [License];
	// packages of sources need it.
	License  string
	URL      string // empty: none
	Packager string // name and mail address; empty: DefaultPackager
	// Epoch dates the package and its files, in whole seconds.
	Epoch   time.Time
	Payload rpmfile.Compression // empty: gzip
}

// Kernel is the kernel that modules were built for.
type Kernel struct {
	Release string // as of uname -r
	Arch    string // as of uname -m: x86_64, aarch64
	Flavor  string // default, amd64, rt …; only the KMP style needs it
	// Symvers is what the kernel exports. Nil: the package depends on no
	// symbols, for kernels whose packages do not provide them (Fedora's).
	Symvers *kmod.Symvers
}

// Build is what one kernel's build made.
type Build struct {
	Kernel  Kernel
	Modules []dkms.Module // plain
	// Upon are modules that these were built upon: their packages for the same
	// kernel are required.
	Upon []Info
	// Compression is how the modules are stored; what is best is how that
	// kernel's own are.
	Compression Compression
}

func (i Info) withDefaults() Info {
	i.Style = cmp.Or(i.Style, Kmod)
	i.Payload = cmp.Or(i.Payload, rpmfile.Gzip)
	return i
}

// FileName names the package that [Package] writes. An error says why there is
// none: then it wraps [ErrStyle] if another style would work.
func FileName(info Info, kernel Kernel) (string, error) {
	p, err := info.withDefaults().kernelPackage(kernel)
	if err != nil {
		return "", fmt.Errorf("naming a package of %s for kernel %s: %w", info.Name, kernel.Release, err)
	}
	return p.FileName(), nil
}

// Package writes the package of what was built for one kernel to w. Errors name
// the input that is wrong, or are w's own; after an error what is in w is of no
// use.
func Package(w io.Writer, info Info, build Build) error {
	if err := writeModules(w, info.withDefaults(), build); err != nil {
		return fmt.Errorf("packing %s-%s for kernel %s: %w", info.Name, info.Version, build.Kernel.Release, err)
	}
	return nil
}

func writeModules(w io.Writer, info Info, build Build) (err error) {
	p, err := info.kernelPackage(build.Kernel)
	if err := errors.Join(err, build.validate()); err != nil {
		return err
	}
	for _, upon := range build.Upon {
		required, err := upon.withDefaults().kernelPackage(build.Kernel)
		if err != nil {
			return err
		}
		p.Requires = append(p.Requires, is(required.Name, required.EVR()))
	}
	found := &findings{style: info.Style, kernel: build.Kernel}
	t, top := tree{}, info.moduleFolder(build.Kernel)
	for _, dir := range top.owned {
		t[dir] = folder()
	}
	var files []string
	for _, m := range build.Modules {
		name := top.path + "/" + m.Dest + build.Compression.suffix()
		files = append(files, name)
		if err := t.add(name, file{open: func() (io.ReadCloser, int64, error) { return found.load(m, build.Compression) }}); err != nil {
			return err
		}
	}
	info.scriptlets(p, build.Kernel, files)
	payload, err := t.payload(info)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, payload.Close()) }()
	if err := found.finish(p, info.License); err != nil { // after every module was read
		return err
	}
	return p.Write(w, payload)
}

// Meta writes the package kmod-<name> (with a flavor kmod-<name>-<flavor>),
// which holds nothing and requires the package for that kernel: to be written
// for the newest one. Its release has the kernel's in it, so that it is newer
// than the one for an older kernel. Only the [Kmod] style has it: the packages of
// the others have one name for all kernels of a flavor, so the newest version of
// it is the newest kernel's. Info.License is needed.
func Meta(w io.Writer, info Info, kernel Kernel) error {
	info = info.withDefaults()
	p, err := info.metaPackage(kernel)
	if err != nil {
		return fmt.Errorf("packing the meta package of %s: %w", info.Name, err)
	}
	return writeTree(w, info, p, tree{})
}

// MetaFileName names the package that [Meta] writes.
func MetaFileName(info Info, kernel Kernel) (string, error) {
	p, err := info.withDefaults().metaPackage(kernel)
	if err != nil {
		return "", fmt.Errorf("naming the meta package of %s: %w", info.Name, err)
	}
	return p.FileName(), nil
}
