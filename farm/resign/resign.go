// Package resign reaches the modules in files that exist already, to sign them,
// to check their signatures or to take those off: loose modules, DKMS tarballs,
// debs and RPMs, with the tarballs that some of these carry.
//
// Everything else in a package stays as it is. The same file gives the same
// bytes, as long as the signatures are the same.
package resign

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/edit"
	"github.com/kofarm/kofarm/farm/pack/rpm"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// Kind is a kind of file that holds modules.
type Kind string

// The kinds.
const (
	Module  Kind = "module"
	Tarball Kind = "DKMS tarball"
	Deb     Kind = "deb"
	RPM     Kind = "RPM"
)

var (
	moduleName  = regexp.MustCompile(`\.ko(\.(gz|xz|zst))?$`)
	tarballName = regexp.MustCompile(`\.dkms\.tar(\.(gz|xz|zst))?$`)
)

// KindOf tells by its name what a file is.
func KindOf(name string) (Kind, error) {
	switch base := path.Base(name); {
	case moduleName.MatchString(base):
		return Module, nil
	case tarballName.MatchString(base):
		return Tarball, nil
	case strings.HasSuffix(base, ".deb"):
		return Deb, nil
	case strings.HasSuffix(base, ".src.rpm"):
		return "", fmt.Errorf("%s: a source package holds no modules", name)
	case strings.HasSuffix(base, ".rpm"):
		return RPM, nil
	}
	return "", fmt.Errorf("%s: want a module (.ko, .ko.gz, .ko.xz, .ko.zst), a DKMS tarball (.dkms.tar.gz, .xz, .zst), a .deb or an .rpm", name)
}

// Found says what a file held.
type Found struct {
	Modules []string // names in the file, in its order
	// Dropped names what a changed package cannot keep: signatures of the package.
	Dropped []string
}

// Change gives what stands for a plain module of the name.
type Change func(name string, module []byte) ([]byte, error)

// Rewrite copies a file of the kind and changes the modules in it, each under
// the compression that it has.
func Rewrite(w io.Writer, r io.Reader, kind Kind, change Change) (*Found, error) {
	f := &Found{}
	switch kind {
	case Module:
		return f, f.loose(w, r, change)
	case Tarball:
		return f, dkms.Rewrite(w, r, f.inTarball("", change))
	case Deb:
		var err error
		f.Dropped, err = deb.Rewrite(w, r, f.inPackage(change, compressDeb))
		return f, err
	case RPM:
		signed, err := rpmfile.Rewrite(w, r, f.inPackage(change, compressRPM))
		if signed {
			f.Dropped = []string{"the package's signature"}
		}
		return f, err
	}
	return f, fmt.Errorf("unknown kind %q", kind)
}

// compress compresses a module.
type compress func(compression string, plain []byte) ([]byte, error)

func compressDeb(c string, plain []byte) ([]byte, error) { return deb.Compression(c).Module(plain) }
func compressRPM(c string, plain []byte) ([]byte, error) { return rpm.Compression(c).Compress(plain) }

func (f *Found) loose(w io.Writer, r io.Reader, change Change) error {
	data, err := io.ReadAll(io.LimitReader(r, edit.MaxFile+1))
	if err != nil {
		return err
	}
	if len(data) > edit.MaxFile {
		return fmt.Errorf("%w of %d bytes", edit.ErrLimit, edit.MaxFile)
	}
	if data, err = f.module("", data, change, compressDeb); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// module changes a module as it is stored.
func (f *Found) module(name string, stored []byte, change Change, again compress) ([]byte, error) {
	plain, compression, err := kmod.Plain(stored, kmod.Limits{})
	if err != nil {
		return nil, err
	}
	if _, err := kmod.ReadAt(bytes.NewReader(plain), int64(len(plain)), kmod.Limits{PlainOnly: true}); err != nil {
		return nil, err
	}
	changed, err := change(name, plain)
	if err != nil {
		return nil, err
	}
	f.Modules = append(f.Modules, name)
	switch {
	case bytes.Equal(changed, plain):
		return stored, nil // and not compressed as somebody else does
	case compression == "":
		return changed, nil
	}
	return again(compression, changed)
}

// inTarball changes the modules that a DKMS tarball has built; a .ko in its
// source is source.
func (f *Found) inTarball(at string, change Change) edit.Edit {
	return edit.Edit{
		Wants: func(name string) bool {
			return strings.HasPrefix(name, "dkms_main_tree/") && moduleName.MatchString(name)
		},
		Change: func(name string, data []byte) ([]byte, error) {
			return f.module(path.Join(at, name), data, change, compressDeb)
		},
	}
}

// inPackage changes the modules where a package installs them, and those in the
// DKMS tarballs that it carries.
func (f *Found) inPackage(change Change, again compress) edit.Edit {
	return edit.Edit{
		Wants: func(name string) bool {
			return moduleName.MatchString(name) && (strings.HasPrefix(name, "lib/modules/") || strings.HasPrefix(name, "usr/lib/modules/")) ||
				tarballName.MatchString(name)
		},
		Change: func(name string, data []byte) ([]byte, error) {
			if moduleName.MatchString(name) {
				return f.module(name, data, change, again)
			}
			var b bytes.Buffer
			err := dkms.Rewrite(&b, bytes.NewReader(data), f.inTarball(name, change))
			return b.Bytes(), err
		},
	}
}

// Each shows every plain module in a file of the kind, and changes nothing.
func Each(r io.Reader, kind Kind, show func(name string, module []byte) error) (*Found, error) {
	return Rewrite(io.Discard, bufio.NewReader(r), kind, func(name string, module []byte) ([]byte, error) {
		return module, show(name, module)
	})
}

// ErrNoModules says that there is nothing to sign.
var ErrNoModules = errors.New("there are no modules in any of the files")
