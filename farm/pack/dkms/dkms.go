// Package dkms writes the tarballs that `dkms ldtarball` loads, in the format
// of `dkms mktarball`. The same input gives the same bytes: entries are sorted,
// owned by root, dated with the caller's epoch and of normal modes, and the
// compressors run single-threaded with fixed settings.
//
// ldtarball checks next to nothing: whatever is in the tarball is installed,
// and dkms.conf runs as root. So names, links and sizes are checked here, and
// modules have to be checked (package kmod) before they come here.
package dkms

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
)

// Layout says what a tarball holds beside the dkms.conf. The empty value
// means [BinariesOnly]. See [Layout.Warning] for what each is good for.
type Layout string

// The layouts. In all of them dkms_main_tree/<kernel>/<arch>/module holds the
// modules and log/make.log the build's log.
const (
	// BinariesOnly: one kernel and arch; dkms_binaries_only holds dkms.conf.
	BinariesOnly Layout = "binaries-only"
	// Stub: one kernel and arch; dkms_source_tree holds nothing but dkms.conf.
	Stub Layout = "stub"
	// Full: one kernel and arch, and the module's source in dkms_source_tree.
	// The tarball has all of the source, but ldtarball 3.0.10 does not copy
	// dotfiles at its top (3.2.2 does).
	Full Layout = "full"
	// SourceOnly: no modules, only the source.
	SourceOnly Layout = "source-only"
	// Combined: BinariesOnly over several kernels.
	Combined Layout = "combined"
)

// Layouts lists the layouts, the default first.
func Layouts() []Layout { return []Layout{BinariesOnly, Stub, Full, SourceOnly, Combined} }

// Warning is what someone has to know who gets a tarball of this layout of
// the named module; empty for layouts without a trap. The facts were measured
// with dkms 2.6.1 to 3.4.3.
func (l Layout) Warning(name, version string) string {
	nv := name + "-" + version
	switch l {
	case Combined:
		return "dkms 3.x loads only the first kernel of a combined tarball, and with --force puts the modules of the" +
			" others into the first one's place; only dkms 2.x loads all. Use one tarball per kernel where dkms is 3.x"
	case Stub:
		return fmt.Sprintf("on a host that has the real source in /usr/src/%[1]s, `dkms ldtarball --force` of a stub deletes it;"+
			" use the %[2]s layout there", nv, BinariesOnly)
	}
	return ""
}

// Module is one kernel module of a build.
type Module struct {
	// Dest is the file's name as DKMS stores it: DEST_MODULE_NAME and ".ko".
	Dest string
	// Size in bytes of what Open gives: a plain, uncompressed module.
	Size int64
	Open func() (io.ReadCloser, error)
}

// Build is what one kernel's build made.
type Build struct {
	Kernel  string // release, as of uname -r
	Arch    string // as of uname -m: x86_64, never amd64
	Modules []Module
	Symvers []byte // Module.symvers; nil: none
	Log     []byte // make.log, to be the same in every run; nil: none
}

// Info describes a tarball. Name, Version and Conf must be set; the zero
// values of the others mean what their comments say.
type Info struct {
	Name, Version string
	// Conf is the module's dkms.conf, word for word.
	Conf []byte
	// Source is the module's source for [Full] and [SourceOnly], see
	// [SourceFS]. Where it has a dkms.conf at the top, that one is kept.
	Source iter.Seq2[File, error]
	// Epoch dates every entry, in whole seconds. The zero time is refused:
	// someone forgot to set it.
	Epoch       time.Time
	Layout      Layout      // empty: BinariesOnly
	Compression Compression // empty: Gzip
}

// Package writes a tarball to w. Builds are one for [BinariesOnly], [Stub] and
// [Full], none for [SourceOnly], one or more for [Combined]; their order does
// not matter. Errors name the input that is wrong, or are w's own; after an
// error what is in w is of no use.
func Package(w io.Writer, info Info, builds []Build) error {
	info = info.withDefaults()
	if err := errors.Join(info.validate(), validateBuilds(info.Layout, builds)); err != nil {
		return fmt.Errorf("packing %s-%s: %w", info.Name, info.Version, err)
	}
	entries, err := layOut(info, builds)
	if err != nil {
		return fmt.Errorf("packing %s-%s: %w", info.Name, info.Version, err)
	}
	if err := write(w, info, entries); err != nil {
		return fmt.Errorf("writing %s: %w", FileName(info, builds), err)
	}
	return nil
}

func (i Info) withDefaults() Info {
	i.Layout = cmp.Or(i.Layout, BinariesOnly)
	i.Compression = cmp.Or(i.Compression, Gzip)
	return i
}

// maxKernelList is mktarball's: it counts with `echo … | wc -m`, so the newline
// counts as well.
const maxKernelList = 200

// FileName names a tarball as mktarball does:
//
//	<name>-<version>-kernel<release>-<arch>[-kernel…].dkms.tar.gz
//
// with "source-only" for the list of kernels where there are none, and
// "manykernels" where it is over 200 characters. mktarball gives full and
// binaries-only tarballs one name; here [BinariesOnly] and [Combined] have the
// plain name, and "-stub" or "-full" comes before ".dkms.tar" for the others.
func FileName(info Info, builds []Build) string {
	info = info.withDefaults()
	list := "source-only"
	if info.Layout != SourceOnly {
		var kernels []string
		for _, b := range sorted(builds) {
			kernels = append(kernels, "kernel"+b.Kernel+"-"+b.Arch)
		}
		if list = strings.Join(kernels, "-"); len(list)+1 > maxKernelList {
			list = "manykernels"
		}
	}
	suffix := ""
	if info.Layout == Stub || info.Layout == Full {
		suffix = "-" + string(info.Layout)
	}
	return fmt.Sprintf("%s-%s-%s%s.dkms.tar.%s", info.Name, info.Version, list, suffix, info.Compression)
}

// sorted returns the builds by kernel and arch, in the order of bytes.
func sorted(builds []Build) []Build {
	return slices.SortedFunc(slices.Values(builds), func(a, b Build) int {
		return cmp.Or(strings.Compare(a.Kernel, b.Kernel), strings.Compare(a.Arch, b.Arch))
	})
}

// write writes the entries as a compressed tar stream.
func write(w io.Writer, info Info, entries []entry) (err error) {
	z, err := info.Compression.writer(w)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(z)
	for _, e := range entries {
		if err := writeEntry(tw, e, info.Epoch); err != nil {
			z.Close() // ends its goroutines, if any; the tarball is lost anyway
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return errors.Join(tw.Close(), z.Close())
}

// writeEntry writes one entry, as ustar unless its name or size needs PAX.
func writeEntry(tw *tar.Writer, e entry, epoch time.Time) error {
	h := &tar.Header{
		Typeflag: e.typeflag, Name: e.name, Linkname: e.link, Size: e.size, Mode: e.mode,
		Uname: "root", Gname: "root", ModTime: time.Unix(epoch.Unix(), 0).UTC(),
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if e.open == nil {
		return nil
	}
	r, err := e.open()
	if err != nil {
		return err
	}
	n, err := io.Copy(tw, io.LimitReader(r, e.size+1))
	if err = errors.Join(err, r.Close()); n != e.size || errors.Is(err, tar.ErrWriteTooLong) {
		return errors.Join(fmt.Errorf("content is not of the %d bytes announced", e.size), err)
	}
	return err
}
