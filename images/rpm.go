package images

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"time"

	rpmutils "github.com/sassoftware/go-rpmutils"
)

// rpmEntries iterates over the files of a binary RPM. There the last of several
// hard links holds the content; here it comes first, and the others follow.
type rpmEntries struct {
	rpmutils.PayloadReader
	f     *os.File
	links map[int][]string // names without content, by inode
	ready []*tar.Header    // hard links whose content has been
}

// openRPM reads an RPM's payload with go-rpmutils, which knows every
// compression that rpm has used.
func openRPM(file string) (entries, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	pkg, err := rpmutils.ReadRpm(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	payload, err := pkg.PayloadReaderExtended()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rpmEntries{PayloadReader: payload, f: f, links: map[int][]string{}}, nil
}

// The file types of a mode, as in stat(2).
const (
	modeType    = 0o170000
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeSymlink = 0o120000
)

func (r *rpmEntries) Next() (*tar.Header, error) {
	for len(r.ready) == 0 {
		fi, err := r.PayloadReader.Next()
		if err != nil {
			return nil, err
		}
		h, err := rpmHeader(fi)
		switch {
		case err != nil:
			return nil, err
		case h.Name == ".":
		case r.IsLink():
			r.links[fi.Inode()] = append(r.links[fi.Inode()], h.Name)
		case h.Typeflag == tar.TypeReg:
			for _, name := range r.links[fi.Inode()] {
				r.ready = append(r.ready, &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: h.Name})
			}
			delete(r.links, fi.Inode())
			return h, nil
		default:
			return h, nil
		}
	}
	h := r.ready[0]
	r.ready = r.ready[1:]
	return h, nil
}

// rpmHeader describes a file of an RPM as a tar does.
func rpmHeader(fi rpmutils.FileInfo) (*tar.Header, error) {
	name, err := cleanPath("./" + fi.Name())
	if err != nil {
		return nil, err
	}
	h := &tar.Header{Name: name, Mode: int64(fs.FileMode(fi.Mode()).Perm()), ModTime: time.Unix(int64(fi.Mtime()), 0)}
	switch fi.Mode() & modeType {
	case modeDir:
		h.Typeflag = tar.TypeDir
	case modeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, fi.Linkname()
	case modeRegular:
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	default:
		return nil, fmt.Errorf("%s is no file, folder or link (mode %o)", name, fi.Mode())
	}
	return h, nil
}

func (r *rpmEntries) Close() error { return r.f.Close() }

// archiveName tells files that may be a module's source within an RPM.
var archiveName = regexp.MustCompile(`\.(tar|tgz|tbz2|txz|tar\.[a-z0-9]+)$`)

// RPMSource reads a DKMS-enabled RPM, whose tree is where the uppermost
// dkms.conf is, or a source RPM (or one that carries a DKMS tarball), whose tree
// is in the first of its archives that has a dkms.conf. A spec's patches are not
// applied.
func RPMSource(file string) (*Source, error) {
	s := fileSource(file, openRPM)
	err := s.read(func(string) bool { return true })
	if errors.Is(err, ErrNoConf) {
		s, err = nestedSource(file)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// nestedSource looks for the source in the archives that an RPM holds.
func nestedSource(file string) (*Source, error) {
	var archives []string
	err := fileSource(file, openRPM).all(func(h *tar.Header, _ io.Reader) error {
		if h.Typeflag == tar.TypeReg && archiveName.MatchString(h.Name) {
			archives = append(archives, h.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	errs := []error{fmt.Errorf("%w, and neither has any of the archives in it", ErrNoConf)}
	for _, name := range archives {
		s := fileSource(file, func(string) (entries, error) { return openNested(file, name) })
		if err = s.read(func(string) bool { return true }); err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return nil, errors.Join(errs...)
}

// openNested opens an archive in an RPM.
func openNested(file, name string) (entries, error) {
	outer, err := openRPM(file)
	if err != nil {
		return nil, err
	}
	for {
		h, err := outer.Next()
		if err != nil {
			return nil, errors.Join(err, outer.Close())
		}
		if h.Name == name {
			break
		}
	}
	r, closeDecoder, err := decompress(bufio.NewReader(outer))
	if err != nil {
		return nil, errors.Join(err, outer.Close())
	}
	return tarEntries{tar.NewReader(r), func() error {
		closeDecoder()
		return outer.Close()
	}}, nil
}
