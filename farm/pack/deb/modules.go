package deb

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

const (
	maxKernelLen = 64  // __NEW_UTS_LEN (include/uapi/linux/utsname.h)
	maxDirLen    = 256 // of Modules.Dir
	maxDestLen   = 128 // the kernel takes 55 without .ko
	maxModule    = 1 << 30
)

// Modules is the package of one kernel's modules: <name>-modules-<kernel>.
// Its scripts run depmod for that kernel only, where depmod and the kernel are
// there; what depmod writes belongs to the kernel's package.
type Modules struct {
	Info
	// Kernel is the release, as of uname -r.
	Kernel string
	// KernelVersion is the version of the kernel's package. Where it is set and
	// Info.Version is not, it is appended to the version, see [WithKernel].
	KernelVersion string
	// Dir is where the modules go, in /lib/modules/<Kernel> or
	// /usr/lib/modules/<Kernel> (the same place from Debian bookworm on, and
	// the only one that Debian's policy likes from trixie on).
	// Empty: /lib/modules/<Kernel>/updates/dkms.
	Dir string
	// Depends is what the package depends on. Empty: the kernel's image as
	// Debian has it, signed or not.
	Depends string
	// Upon are modules that these were built upon, for the same kernel: the
	// package depends on theirs, too.
	Upon []Modules
	// Compress is how the modules are stored, best as the kernel's own modules
	// are: kmod has to read it (in Debian XZ, Zstd from bookworm on, never
	// Gzip). Empty: plain.
	Compress Compression
	// Files are plain modules, which may be signed.
	Files []dkms.Module
}

// Package is the package's name.
func (m Modules) Package() (string, error) {
	base, err := m.base()
	if err != nil {
		return "", err
	}
	return ModulesName(base, m.Kernel)
}

// FileName is the package file's name.
func (m Modules) FileName() (string, error) {
	name, err := m.Package()
	if err != nil {
		return "", err
	}
	version, err := m.version(m.KernelVersion)
	return fileName(name, version, m.Arch), errors.Join(err, m.checkArch())
}

// relation is a dependency on exactly this package.
func (m Modules) relation() (string, error) {
	name, err := m.Package()
	if err != nil {
		return "", err
	}
	version, err := m.version(m.KernelVersion)
	return fmt.Sprintf("%s (= %s)", name, version), err
}

// Write writes the package. Errors name the input that is wrong, or are w's
// own; after an error what is in w is of no use.
func (m Modules) Write(w io.Writer) error {
	b, err := m.binary()
	if err == nil {
		err = b.write(w)
	}
	return wrap("modules", m.Info, err)
}

// ImageDepends is the dependency on a kernel's image as Debian names it. A
// kernel's unsigned image does not provide the signed one's name.
func ImageDepends(release string) (string, error) {
	kernel, err := Name(release)
	return fmt.Sprintf("linux-image-%[1]s | linux-image-%[1]s-unsigned", kernel), err
}

func (m Modules) binary() (binary, error) {
	m.Info = m.withDefaults()
	name, err := m.Package()
	if err != nil {
		return binary{}, err
	}
	version, err := m.version(m.KernelVersion)
	if err := errors.Join(err, m.validate(), m.checkArch()); err != nil {
		return binary{}, err
	}
	base, err := m.base()
	if err != nil {
		return binary{}, err
	}
	if m.Depends == "" {
		if m.Depends, err = ImageDepends(m.Kernel); err != nil {
			return binary{}, err
		}
	}
	for _, upon := range m.Upon {
		relation, err := upon.relation()
		if err != nil {
			return binary{}, err
		}
		m.Depends += ", " + relation
	}
	files, err := m.tree()
	if err := errors.Join(err, checkRelation("Depends", m.Depends)); err != nil {
		return binary{}, err
	}
	return binary{
		info: m.Info, name: name, version: version, arch: m.Arch, tree: files,
		fields: []field{{"Depends", m.Depends}, {"Provides", base + "-modules"}},
		about: m.about(fmt.Sprintf("%s kernel modules for Linux %s", m.Module, m.Kernel),
			fmt.Sprintf("This package has the modules of %s %s, built for the kernel %s, which loads nothing built for another one.",
				m.Module, m.ModuleVersion, m.Kernel)),
		news: fmt.Sprintf("Modules of %s %s for Linux %s.", m.Module, m.ModuleVersion, m.Kernel),
		scripts: map[string][]byte{
			"postinst": fill(modulesPostinst, "KERNEL", m.Kernel),
			"postrm":   fill(modulesPostrm, "KERNEL", m.Kernel),
		},
	}, nil
}

// dir is where the modules go, relative to the root.
func (m Modules) dir() (string, error) {
	if m.Dir == "" {
		return path.Join("lib/modules", m.Kernel, "updates/dkms"), nil
	}
	for _, root := range []string{"/lib/modules/", "/usr/lib/modules/"} {
		rest, ok := strings.CutPrefix(m.Dir, root+m.Kernel+"/")
		if ok && path.Clean(m.Dir) == m.Dir && checkLine("", m.Dir) == nil && rest != "" && len(m.Dir) <= maxDirLen {
			return m.Dir[1:], nil
		}
	}
	return "", fmt.Errorf("folder %q for the modules, want one in /lib/modules/%[2]s or /usr/lib/modules/%[2]s", m.Dir, m.Kernel)
}

func (m Modules) tree() (tree, error) {
	dir, err := m.dir()
	if err != nil {
		return nil, err
	}
	if len(m.Files) == 0 {
		return nil, errors.New("no modules")
	}
	t := newTree()
	seen := map[string]bool{}
	suffix := ""
	if m.Compress != "" {
		suffix = m.Compress.suffix()
	}
	for _, f := range m.Files {
		if err := check("module file", f.Dest, filePattern, maxDestLen); err != nil {
			return nil, err
		}
		if f.Size <= 0 || f.Size > maxModule || f.Open == nil {
			return nil, fmt.Errorf("module file %q of %d bytes cannot be read", f.Dest, f.Size)
		}
		// A kernel takes a-b and a_b for the same module, modprobe too.
		key := strings.ReplaceAll(f.Dest, "-", "_")
		if seen[key] {
			return nil, fmt.Errorf("two modules called %s", f.Dest)
		}
		seen[key] = true
		e := entry{typeflag: tar.TypeReg, mode: 0o644, size: f.Size, open: f.Open, compress: m.Compress}
		if err := t.add(path.Join(dir, f.Dest+suffix), e); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Meta is the package that follows the newest kernel of a flavor:
// <name>-modules-<flavor>, which depends on that kernel's package of modules.
//
// Its version is the module's with the kernel's appended, see [WithKernel], so
// it grows with each kernel and with each version of the module.
type Meta struct {
	Info
	Flavor string // as in amd64, cloud-amd64
	Kernel string // release of the newest kernel
	// KernelVersion is the version of that kernel's package. Empty: Kernel.
	KernelVersion string
}

// Package is the package's name.
func (m Meta) Package() (string, error) {
	base, err := m.base()
	if err != nil {
		return "", err
	}
	return MetaName(base, m.Flavor)
}

func (m Meta) kernelVersion() string {
	if m.KernelVersion == "" {
		return m.Kernel
	}
	return m.KernelVersion
}

// FileName is the package file's name.
func (m Meta) FileName() (string, error) {
	name, err := m.Package()
	if err != nil {
		return "", err
	}
	version, err := m.version(m.kernelVersion())
	return fileName(name, version, m.Arch), errors.Join(err, m.checkArch())
}

// Write writes the package, see [Modules.Write].
func (m Meta) Write(w io.Writer) error {
	b, err := m.binary()
	if err == nil {
		err = b.write(w)
	}
	return wrap("meta", m.Info, err)
}

func (m Meta) binary() (binary, error) {
	m.Info = m.withDefaults()
	name, err := m.Package()
	if err != nil {
		return binary{}, err
	}
	base, err := m.base()
	if err != nil {
		return binary{}, err
	}
	modules, err := ModulesName(base, m.Kernel)
	if err != nil {
		return binary{}, err
	}
	version, err := m.version(m.kernelVersion())
	if err := errors.Join(err, m.validate(), m.checkArch()); err != nil {
		return binary{}, err
	}
	return binary{
		info: m.Info, name: name, version: version, arch: m.Arch, tree: newTree(),
		fields: []field{{"Depends", modules}},
		about: m.about(fmt.Sprintf("%s kernel modules for the newest %s kernel (meta-package)", m.Module, m.Flavor),
			fmt.Sprintf("This package depends on the modules of %s for the newest kernel of the flavor %s, now %s.",
				m.Module, m.Flavor, m.Kernel)),
		news: fmt.Sprintf("Depends on the modules for Linux %s.", m.Kernel),
	}, nil
}
