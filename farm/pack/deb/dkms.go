package deb

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/matrix/kernel"
)

// DKMS is the package with the source for dkms: <name>-dkms. Its scripts hand
// the module to dkms as those of Debian's own *-dkms packages do, but use what
// is prebuilt where it fits the kernel, also for kernels that come later.
type DKMS struct {
	Info
	// Conf is the module's dkms.conf, word for word.
	Conf []byte
	// Source is the module's source, see dkms.SourceFS; it is read once for
	// each package. Where it has a dkms.conf at the top, that one is kept.
	Source iter.Seq2[dkms.File, error]
	// Prebuilt are tarballs in the layout dkms.BinariesOnly: the others would
	// replace the source. They need no headers on the target, and are installed
	// whatever AUTOINSTALL says.
	Prebuilt []Prebuilt
	// Upon are modules that dkms has to have installed before it builds this one:
	// the package depends on theirs.
	Upon []DKMS
}

// Prebuilt is a tarball of one kernel's modules, see package dkms.
type Prebuilt struct {
	Kernel      string           // release, as of uname -r
	Arch        string           // as of uname -m: x86_64, never amd64
	Compression dkms.Compression // empty: dkms.Gzip
	Size        int64            // in bytes, of what Open gives
	Open        func() (io.ReadCloser, error)
}

// dkmsDepends is the oldest dkms that the scripts were tried with.
const dkmsDepends = "dkms (>= 2.8)"

// Package is the package's name, of the binary and of the source package.
func (d DKMS) Package() (string, error) {
	base, err := d.base()
	if err != nil {
		return "", err
	}
	return base + "-dkms", checkName(base + "-dkms")
}

// FileName is the package file's name.
func (d DKMS) FileName() (string, error) {
	name, err := d.Package()
	if err != nil {
		return "", err
	}
	version, err := d.version("")
	return fileName(name, version, "all"), err
}

// Write writes the package, see [Modules.Write].
func (d DKMS) Write(w io.Writer) error {
	b, err := d.binary()
	if err == nil {
		err = b.write(w)
	}
	return wrap("dkms", d.Info, err)
}

func (d DKMS) binary() (binary, error) {
	b, err := d.outline()
	if err != nil {
		return binary{}, err
	}
	if err := d.source(b.tree, path.Join("usr/src", d.Module+"-"+d.ModuleVersion), nil); err != nil {
		return binary{}, fmt.Errorf("adding the source: %w", err)
	}
	return b, d.prebuilt(b.tree, b.name)
}

// outline is the package without its files.
func (d DKMS) outline() (binary, error) {
	d.Info = d.withDefaults()
	name, err := d.Package()
	if err != nil {
		return binary{}, err
	}
	version, err := d.version("")
	if err := errors.Join(err, d.validate()); err != nil {
		return binary{}, err
	}
	if len(d.Conf) == 0 || len(d.Conf) > maxConfSize || d.Source == nil {
		return binary{}, fmt.Errorf("a source and a dkms.conf of 1 to %d bytes are needed, got one of %d", maxConfSize, len(d.Conf))
	}
	depends := []string{dkmsDepends}
	for _, upon := range d.Upon {
		needed, err := upon.Package()
		if err != nil {
			return binary{}, err
		}
		depends = append(depends, needed)
	}
	return binary{
		info: d.Info, name: name, version: version, arch: "all", tree: newTree(),
		fields: []field{{"Depends", strings.Join(depends, ", ")}},
		about: d.about(fmt.Sprintf("%s kernel modules, as source for dkms", d.Module),
			fmt.Sprintf("This package has the source of %s %s, from which dkms builds the modules for the kernels that are installed.%s",
				d.Module, d.ModuleVersion, d.prebuiltText())),
		news:    fmt.Sprintf("Source of %s %s for dkms.", d.Module, d.ModuleVersion),
		scripts: map[string][]byte{"postinst": d.fill(dkmsPostinst, name), "prerm": d.fill(dkmsPrerm, name)},
	}, nil
}

func (d DKMS) prebuiltText() string {
	if len(d.Prebuilt) == 0 {
		return ""
	}
	return " For some kernels the modules are inside, and nothing is compiled."
}

func (d DKMS) fill(script, name string) []byte {
	return fill(script, "MODULE", d.Module, "VERSION", d.ModuleVersion, "PACKAGE", name)
}

// source adds the module's source below a folder.
func (d DKMS) source(t tree, dir string, skip func(dkms.File) bool) error {
	if err := t.folder(dir); err != nil {
		return err
	}
	if err := t.files(dir, d.Source, skip); err != nil {
		return err
	}
	name := path.Join(dir, "dkms.conf")
	conf, ok := t[name]
	if !ok {
		return t.file(name, 0o644, d.Conf)
	}
	if conf.typeflag != tar.TypeReg {
		return errors.New("its dkms.conf is not a regular file")
	}
	return nil
}

// notForHook is what run-parts does not take in a name.
var notForHook = strings.NewReplacer(".", "-", "+", "-")

// prebuilt adds the tarballs, and what loads them: at install and, by hooks,
// when a kernel or its headers come.
func (d DKMS) prebuilt(t tree, name string) error {
	if len(d.Prebuilt) == 0 {
		return nil
	}
	share := path.Join("usr/share", name)
	for _, p := range d.Prebuilt {
		p.Compression = cmp.Or(p.Compression, dkms.Gzip)
		if err := p.validate(); err != nil {
			return err
		}
		file := fmt.Sprintf("%s-%s.dkms.tar.%s", p.Kernel, p.Arch, p.Compression)
		e := entry{typeflag: tar.TypeReg, mode: 0o644, size: p.Size, open: p.Open}
		if err := t.add(path.Join(share, "prebuilt", file), e); err != nil {
			return err
		}
	}
	hook := d.fill(hookScript, name)
	return errors.Join(
		t.file(path.Join(share, "load"), 0o755, d.fill(loadScript, name)),
		// "00" sorts before "dkms", the hook that would compile.
		t.file("etc/kernel/postinst.d/00-"+notForHook.Replace(name), 0o755, hook),
		t.file("etc/kernel/header_postinst.d/00-"+notForHook.Replace(name), 0o755, hook))
}

func (p Prebuilt) validate() error {
	if want, ok := kernel.CanonicalArch(p.Arch); ok && want != p.Arch {
		return fmt.Errorf("prebuilt for arch %q, which dkms calls %q", p.Arch, want)
	}
	if p.Size <= 0 || p.Open == nil {
		return fmt.Errorf("prebuilt for %s of %d bytes cannot be read", p.Kernel, p.Size)
	}
	return errors.Join(
		check("prebuilt for kernel release", p.Kernel, kernelPattern, maxKernelLen),
		check("prebuilt for arch", p.Arch, machinePattern, 32),
		check("compression of a prebuilt", string(p.Compression), compressionPattern, 3))
}

// Tools is a package of what a module's build makes for user space:
// <name>-utils, of Arch.
type Tools struct {
	Info
	// Depends is a Depends field; empty: none.
	Depends string
	// Files are the files by their path on the target, without the first "/".
	// What is in etc is a conffile.
	Files iter.Seq2[dkms.File, error]
}

// Package is the package's name.
func (u Tools) Package() (string, error) {
	base, err := u.base()
	if err != nil {
		return "", err
	}
	return base + "-utils", checkName(base + "-utils")
}

// FileName is the package file's name.
func (u Tools) FileName() (string, error) {
	name, err := u.Package()
	if err != nil {
		return "", err
	}
	version, err := u.version("")
	return fileName(name, version, u.Arch), errors.Join(err, u.checkArch())
}

// Write writes the package, see [Modules.Write].
func (u Tools) Write(w io.Writer) error {
	b, err := u.binary()
	if err == nil {
		err = b.write(w)
	}
	return wrap("utils", u.Info, err)
}

func (u Tools) binary() (binary, error) {
	if u.Section == "" {
		u.Section = "utils"
	}
	u.Info = u.withDefaults()
	name, err := u.Package()
	if err != nil {
		return binary{}, err
	}
	version, err := u.version("")
	if err := errors.Join(err, u.validate(), u.checkArch()); err != nil {
		return binary{}, err
	}
	if u.Depends != "" {
		if err := checkRelation("Depends", u.Depends); err != nil {
			return binary{}, err
		}
	}
	b := binary{
		info: u.Info, name: name, version: version, arch: u.Arch, tree: newTree(),
		fields: []field{{"Depends", u.Depends}},
		about: u.about(fmt.Sprintf("user-space files of the %s kernel modules", u.Module),
			fmt.Sprintf("This package has what the build of %s %s makes beside the kernel modules.", u.Module, u.ModuleVersion)),
		news: fmt.Sprintf("User-space files of %s %s.", u.Module, u.ModuleVersion),
	}
	if u.Files == nil {
		return binary{}, errors.New("no files")
	}
	if err := b.tree.files(".", u.Files, nil); err != nil {
		return binary{}, err
	}
	return b, b.tree.checkPlaces()
}

// places are the folders at the top that a package may have.
var places = map[string]bool{"bin": true, "etc": true, "lib": true, "opt": true, "sbin": true, "srv": true, "usr": true, "var": true}

// checkPlaces refuses files where a package of tools has no business.
func (t tree) checkPlaces() error {
	for _, name := range sortedKeys(t) {
		top, rest, _ := strings.Cut(name, "/")
		switch {
		case name == ".":
		case !places[top] || rest == "" && t[name].typeflag != tar.TypeDir:
			return fmt.Errorf("%q is not in a place for packages, as usr and etc are", name)
		case strings.HasPrefix(name, "lib/modules/") || strings.HasPrefix(name, "usr/lib/modules/"):
			return fmt.Errorf("%q belongs into a package of modules", name)
		case strings.HasPrefix(name, "var/lib/dpkg"):
			return fmt.Errorf("%q is dpkg's own", name)
		}
	}
	return nil
}
