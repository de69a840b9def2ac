package deb

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

// standards is the version of Debian's policy that the packages follow.
const standards = "4.6.2"

// sourceFile is one tarball of a source package.
type sourceFile struct {
	name string
	dir  string // the folder at its top; empty: none
	pack bool   // has debian/
	orig bool   // has the module's source
}

// sourceFiles are the tarballs of the source package: one where the version has
// no revision (format 3.0 (native)), else the module's and Debian's part
// (format 3.0 (quilt)).
func sourceFiles(name, version string) (format string, files []sourceFile) {
	v, native := upstream(version)
	dir := name + "-" + v
	if native {
		return "3.0 (native)", []sourceFile{{name: name + "_" + v + ".tar.xz", dir: dir, orig: true, pack: true}}
	}
	return "3.0 (quilt)", []sourceFile{
		{name: name + "_" + v + ".orig.tar.xz", dir: dir, orig: true},
		{name: name + "_" + withoutEpoch(version) + ".debian.tar.xz", pack: true},
	}
}

// SourceNames are the names of the files of the Debian source package, the .dsc
// last.
func (d DKMS) SourceNames() ([]string, error) {
	name, err := d.Package()
	if err != nil {
		return nil, err
	}
	version, err := d.version("")
	if err != nil {
		return nil, err
	}
	_, files := sourceFiles(name, version)
	var names []string
	for _, f := range files {
		names = append(names, f.name)
	}
	return append(names, dscName(name, version)), nil
}

func dscName(name, version string) string { return name + "_" + withoutEpoch(version) + ".dsc" }

// WriteSource writes the Debian source package from which dpkg-buildpackage
// makes this package, without what is prebuilt; it needs make and dpkg-dev. The
// files are those of SourceNames, in their order: create opens each for
// writing, and it is closed before the next. A folder "debian" at the top of
// the module's source is left out, for the package's own.
func (d DKMS) WriteSource(create func(name string) (io.WriteCloser, error)) error {
	return wrap("source", d.Info, d.writeSource(create))
}

func (d DKMS) writeSource(create func(name string) (io.WriteCloser, error)) error {
	d.Prebuilt = nil
	b, err := d.outline()
	if err != nil {
		return err
	}
	format, files := sourceFiles(b.name, b.version)
	var sums []fileSum
	for _, f := range files {
		t, err := d.sourceTree(f, b, format)
		if err != nil {
			return err
		}
		s, err := writeSourceFile(f.name, t, b.info, create)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		sums = append(sums, s)
	}
	name := dscName(b.name, b.version)
	w, err := create(name)
	if err != nil {
		return err
	}
	_, err = w.Write(b.dsc(format, sums))
	return errors.Join(err, w.Close())
}

func inDebian(f dkms.File) bool {
	return f.Path == "debian" || strings.HasPrefix(f.Path, "debian/")
}

// sourceTree lays out one tarball.
func (d DKMS) sourceTree(f sourceFile, b binary, format string) (tree, error) {
	t := newTree()
	if f.orig {
		if err := d.source(t, f.dir, inDebian); err != nil {
			return nil, fmt.Errorf("adding the source: %w", err)
		}
	}
	if !f.pack {
		return t, nil
	}
	rules := fill(string(d.fill(rulesFile, b.name)), "CHANGELOG", changelogName(b.version))
	var errs []error
	for _, file := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"changelog", 0o644, b.info.changelog(b.name, b.version, b.news)},
		{"control", 0o644, b.sourceControl()},
		{"copyright", 0o644, b.info.copyright()},
		{"postinst", 0o644, b.scripts["postinst"]},
		{"prerm", 0o644, b.scripts["prerm"]},
		{"rules", 0o755, rules},
		{"source/format", 0o644, []byte(format + "\n")},
	} {
		errs = append(errs, t.file(strings.TrimPrefix(f.dir+"/debian/"+file.name, "/"), file.mode, file.data))
	}
	return t, errors.Join(errs...)
}

// sourceControl is debian/control.
func (b binary) sourceControl() []byte {
	source := paragraph([]field{{"Source", b.name}, {"Section", b.info.Section}, {"Priority", b.info.Priority},
		{"Maintainer", b.info.Maintainer}, {"Standards-Version", standards}, {"Rules-Requires-Root", "no"},
		{"Homepage", b.info.Homepage}})
	fields := append([]field{{"Package", b.name}, {"Architecture", "all"}}, b.fields...)
	fields = append(fields, b.info.relations()...)
	return bytes.Join([][]byte{source, paragraph(append(fields, field{"Description", description(b.about)}))}, []byte("\n"))
}

// dsc describes the source package (Debian policy 5.4), unsigned.
func (b binary) dsc(format string, sums []fileSum) []byte {
	list := func(i int) string {
		var s strings.Builder
		for _, f := range sums {
			fmt.Fprintf(&s, "\n %s %d %s", f.sums[i], f.size, f.name)
		}
		return s.String()
	}
	return paragraph([]field{{"Format", format}, {"Source", b.name}, {"Binary", b.name}, {"Architecture", "all"},
		{"Version", b.version}, {"Maintainer", b.info.Maintainer}, {"Homepage", b.info.Homepage},
		{"Standards-Version", standards},
		{"Package-List", fmt.Sprintf("\n %s deb %s %s arch=all", b.name, b.info.Section, b.info.Priority)},
		{"Checksums-Sha1", list(1)}, {"Checksums-Sha256", list(2)}, {"Files", list(0)}})
}

// fileSum is a file's size and its MD5, SHA-1 and SHA-256.
type fileSum struct {
	name string
	size int64
	sums [3]string
}

// writeSourceFile writes one tarball and sums it up on the way.
func writeSourceFile(name string, t tree, info Info, create func(string) (io.WriteCloser, error)) (fileSum, error) {
	w, err := create(name)
	if err != nil {
		return fileSum{}, err
	}
	hashes := [3]hash.Hash{md5.New(), sha1.New(), sha256.New()}
	var n counter
	_, _, err = writeTar(io.MultiWriter(w, hashes[0], hashes[1], hashes[2], &n), t, XZ, info.Epoch)
	s := fileSum{name: name, size: int64(n)}
	for i, h := range hashes {
		s.sums[i] = fmt.Sprintf("%x", h.Sum(nil))
	}
	return s, errors.Join(err, w.Close())
}

// counter counts the bytes that are written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
