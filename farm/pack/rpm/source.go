package rpm

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// Source writes the source package kernel-module-<name>: the source as a
// tarball, a build script and a spec with which
//
//	rpmbuild --rebuild --define "kernelversion 6.1.192" --define "kernelrpmrelease 56" \
//	    --define "targetboard host108" kernel-module-<name>-<version>-1.src.rpm
//
// makes a package of the [KernelModule] style for the kernel
// 6.1.192-56.host108.x86_64, where its build tree is installed; DKMS is not
// needed. Info.Style does not matter, Info.License is needed.
func Source(w io.Writer, info Info, src SourceTree) error {
	if err := writeSource(w, info.withDefaults(), src); err != nil {
		return fmt.Errorf("packing the source package of %s-%s: %w", info.Name, info.Version, err)
	}
	return nil
}

// SourceFileName names the package that [Source] writes.
func SourceFileName(info Info) (string, error) {
	p, err := info.sourcePackage()
	if err != nil {
		return "", fmt.Errorf("naming the source package of %s: %w", info.Name, err)
	}
	return p.FileName(), nil
}

func (i Info) sourcePackage() (*rpmfile.Package, error) {
	p, err := i.common()
	// rpmbuild writes the machine's arch into a source package; here it is the
	// same everywhere.
	p.SourceRPM, p.Name, p.Arch = "", moduleSource+i.Name, "x86_64"
	p.Summary = "Kernel modules of " + i.Name
	p.Change = fmt.Sprintf("Modules of %s %s.", i.Name, i.Version)
	p.Description = fmt.Sprintf("The source of the kernel modules of %s %s.", i.Name, i.Version)
	p.Requires = []rpmfile.Dependency{{Name: "gcc"}, {Name: "make"}, {Name: "patch"}}
	return p, errors.Join(err, rpmfile.CheckName(p.Name))
}

func writeSource(w io.Writer, info Info, src SourceTree) (err error) {
	p, err := info.sourcePackage()
	if err == nil {
		err = info.checkSpec()
	}
	if err != nil {
		return err
	}
	tarball, err := info.tarball(src)
	if err != nil {
		return err
	}
	spec := content(info.spec(p))
	spec.flags = rpmfile.FlagSpec
	return writeTree(w, info, p, tree{
		p.Name + ".spec": spec,
		"build-modules":  content(buildModules),
		info.Name + "-" + info.Version + ".tar.gz": tarball,
	})
}

// checkSpec refuses what would be more than a value in a spec.
func (i Info) checkSpec() error {
	for _, value := range []string{i.License, i.URL, i.Packager} {
		if strings.ContainsAny(value, "%\n") {
			return fmt.Errorf("%q cannot stand in a spec", value)
		}
	}
	return nil
}

func (i Info) spec(p *rpmfile.Package) string {
	url, release := "", ""
	if i.URL != "" {
		url = "URL: " + i.URL + "\n"
	}
	if i.Release != "" {
		release = "." + i.Release
	}
	return fill(specTemplate, "NAME", i.Name, "VERSION", i.Version, "RPMVERSION", p.Version, "DOTRELEASE", release,
		"LICENSE", i.License, "URL", url, "PACKAGER", p.Packager, "DATE", i.Epoch.UTC().Format("Mon Jan 02 2006"), "CHANGE", p.Change, "DEPMOD", fill(depmodScript, "KERNEL", "%{kernelrelease}")) + "\n"
}

// tarball packs the source below <name>-<version>/.
func (i Info) tarball(src SourceTree) (file, error) {
	top := i.Name + "-" + i.Version
	t := tree{}
	if err := src.addTo(t, top); err != nil {
		return file{}, err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return file{}, err
	}
	tw := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if err := t[name].tarTo(tw, name, i.Epoch); err != nil {
			return file{}, errors.Join(fmt.Errorf("%s: %w", name, err), z.Close())
		}
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		return file{}, err
	}
	return content(b.String()), nil
}

// tarTo writes a file to a tarball, as ustar unless its name or size needs PAX.
func (f file) tarTo(w *tar.Writer, name string, epoch time.Time) error {
	mode := cmp.Or(f.mode, rpmfile.TypeFile|0o644)
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Linkname: f.link, Mode: int64(mode & 0o777),
		Uname: "root", Gname: "root", ModTime: time.Unix(epoch.Unix(), 0).UTC(),
	}
	switch {
	case f.link != "":
		h.Typeflag = tar.TypeSymlink
	case f.open == nil:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	default:
		r, size, err := f.open()
		if err != nil {
			return err
		}
		h.Size = size
		return errors.Join(copyTo(w, h, r), r.Close())
	}
	return w.WriteHeader(h)
}

func copyTo(w *tar.Writer, h *tar.Header, r io.Reader) error {
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, h.Size+1))
	if n != h.Size || errors.Is(err, tar.ErrWriteTooLong) {
		return fmt.Errorf("content is not of the %d bytes announced", h.Size)
	}
	return err
}
