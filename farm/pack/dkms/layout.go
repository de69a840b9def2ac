package dkms

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// The folders of a tarball, as mktarball names them.
const (
	mainTree     = "dkms_main_tree"
	sourceTree   = "dkms_source_tree"
	binariesOnly = "dkms_binaries_only"
	confName     = "dkms.conf"
	// dbVersion is what dkms 2.6 wants to find in dkms_main_tree/dkms_dbversion;
	// 3.x ignores it.
	dbVersion = "2.0.0\n"
)

// entry is one member of the archive.
type entry struct {
	name     string // "./…", of a folder with a slash at the end
	typeflag byte
	mode     int64
	size     int64
	link     string
	open     func() (io.ReadCloser, error) // nil: no content
}

// tree collects entries by path.
type tree map[string]entry

// layOut returns all entries of a tarball, sorted by name.
func layOut(info Info, builds []Build) ([]entry, error) {
	t := tree{".": {name: "./", typeflag: tar.TypeDir, mode: 0o755}}
	err := t.content(path.Join(mainTree, "dkms_dbversion"), []byte(dbVersion))
	for _, b := range builds {
		err = errors.Join(err, t.build(b))
	}
	err = errors.Join(err, t.conf(info))
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(t))
	for _, e := range t {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// build adds what one build made.
func (t tree) build(b Build) error {
	dir := path.Join(mainTree, b.Kernel, b.Arch)
	var errs []error
	for _, m := range b.Modules {
		errs = append(errs, t.add(path.Join(dir, "module", m.Dest), entry{
			typeflag: tar.TypeReg, mode: 0o644, size: m.Size, open: m.Open,
		}))
	}
	if b.Symvers != nil {
		errs = append(errs, t.content(path.Join(dir, "module", "Module.symvers"), b.Symvers))
	}
	if b.Log != nil {
		errs = append(errs, t.content(path.Join(dir, "log", "make.log"), b.Log))
	}
	return errors.Join(errs...)
}

// conf adds the dkms.conf and what the layout puts beside it.
func (t tree) conf(info Info) error {
	conf := UnixLines(info.Conf)
	switch info.Layout {
	case BinariesOnly, Combined:
		return errors.Join(
			t.content(path.Join(binariesOnly, "PACKAGE_NAME"), []byte(info.Name+"\n")),
			t.content(path.Join(binariesOnly, "PACKAGE_VERSION"), []byte(info.Version+"\n")),
			t.content(path.Join(binariesOnly, confName), conf))
	case Stub:
		return t.content(path.Join(sourceTree, confName), conf)
	}
	if err := t.source(info.Source); err != nil {
		return fmt.Errorf("adding the source: %w", err)
	}
	there, ok := t[path.Join(sourceTree, confName)]
	if !ok {
		return t.content(path.Join(sourceTree, confName), conf)
	}
	if there.typeflag != tar.TypeReg {
		return fmt.Errorf("adding the source: its %s is not a regular file", confName)
	}
	return nil
}

// content adds a file that is in memory.
func (t tree) content(name string, data []byte) error {
	return t.add(name, entry{
		typeflag: tar.TypeReg, mode: 0o644, size: int64(len(data)),
		open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	})
}

// add puts an entry at a path and the folders above it. A path that is taken,
// or leads through something that is no folder, is an error.
func (t tree) add(name string, e entry) error {
	if name != "." {
		if err := t.folder(path.Dir(name)); err != nil {
			return err
		}
	}
	if old, ok := t[name]; ok {
		if old.typeflag == tar.TypeDir && e.typeflag == tar.TypeDir {
			return nil
		}
		return fmt.Errorf("%q is there twice", name)
	}
	e.name = "./" + name
	if e.typeflag == tar.TypeDir {
		e.name += "/"
	}
	t[name] = e
	return nil
}

// folder makes sure that there is a folder at a path.
func (t tree) folder(name string) error {
	if old, ok := t[name]; ok {
		if old.typeflag != tar.TypeDir {
			return fmt.Errorf("%q is not a folder, but something is inside", name)
		}
		return nil
	}
	return t.add(name, entry{typeflag: tar.TypeDir, mode: 0o755})
}

// source adds the module's source below dkms_source_tree.
func (t tree) source(files func(func(File, error) bool)) error {
	if err := t.folder(sourceTree); err != nil {
		return err
	}
	for f, err := range files {
		if err != nil {
			return err
		}
		e, err := f.entry()
		if err != nil {
			return err
		}
		if len(t) > maxSourceFiles {
			return fmt.Errorf("more than %d files", maxSourceFiles)
		}
		if err := t.add(path.Join(sourceTree, f.Path), e); err != nil {
			return err
		}
	}
	return nil
}

// entry decides how a file of the source is stored: of the mode only the
// execute bit is kept.
func (f File) entry() (entry, error) {
	if err := f.Validate(); err != nil {
		return entry{}, err
	}
	switch {
	case f.Mode.IsDir():
		return entry{typeflag: tar.TypeDir, mode: 0o755}, nil
	case f.Mode.Type() == fs.ModeSymlink:
		return entry{typeflag: tar.TypeSymlink, mode: 0o777, link: f.Link}, nil
	}
	mode := int64(0o644)
	if f.Mode&0o111 != 0 {
		mode = 0o755
	}
	return entry{typeflag: tar.TypeReg, mode: mode, size: f.Size, open: f.Open}, nil
}

// checkLink refuses a link that leads out of the source: root unpacks it, and
// builds in a copy. A ".." behind a name is refused as well, since where it
// leads depends on whether that name is a link.
func checkLink(name, target string) error {
	rest := target
	for strings.HasPrefix(rest, "../") {
		rest = rest[len("../"):]
	}
	if target == "" || path.IsAbs(target) || strings.ContainsRune(target, 0) ||
		!fs.ValidPath(path.Join(path.Dir(name), target)) ||
		rest != ".." && slices.Contains(strings.Split(rest, "/"), "..") {
		return fmt.Errorf("link %q leads out of the source, or may, to %q; put a copy of the file there", name, target)
	}
	return nil
}
