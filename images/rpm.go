package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"

	rpmutils "github.com/sassoftware/go-rpmutils"
)

// rpmEntries iterates over the files of a binary RPM.
type rpmEntries struct {
	rpmutils.PayloadReader
	f *os.File
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
	return &rpmEntries{payload, f}, nil
}

// The file types of a mode, as in stat(2).
const (
	modeType    = 0o170000
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeSymlink = 0o120000
)

func (r *rpmEntries) Next() (*tar.Header, error) {
	for {
		fi, err := r.PayloadReader.Next()
		if err != nil {
			return nil, err
		}
		name, err := cleanPath("./" + fi.Name())
		if err != nil {
			return nil, err
		}
		h := &tar.Header{Name: name, Mode: int64(fs.FileMode(fi.Mode()).Perm())}
		switch {
		case name == ".":
			continue
		case fi.Mode()&modeType == modeDir:
			h.Typeflag = tar.TypeDir
		case fi.Mode()&modeType == modeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, fi.Linkname()
		case fi.Mode()&modeType == modeRegular && !r.IsLink():
			h.Typeflag, h.Size = tar.TypeReg, fi.Size()
		case fi.Mode()&modeType == modeRegular:
			return nil, fmt.Errorf("%s: hard links in an RPM are not supported", name)
		default:
			return nil, fmt.Errorf("%s is no file, folder or link (mode %o)", name, fi.Mode())
		}
		return h, nil
	}
}

func (r *rpmEntries) Close() error { return r.f.Close() }
