package rpmfile

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// spoolMemory is what of a payload is held in memory, in bytes; a larger one
// goes to a temporary file. The header, which comes first, has its digest.
const spoolMemory = 8 << 20

// spool is a buffer that moves to a file when it grows. A file has no name, so
// that none is left whatever happens.
type spool struct {
	mem  bytes.Buffer
	file *os.File
	size int64
}

func (s *spool) Write(b []byte) (int, error) {
	if s.file == nil && s.mem.Len()+len(b) > spoolMemory {
		if err := s.toFile(); err != nil {
			return 0, err
		}
	}
	s.size += int64(len(b))
	if s.file != nil {
		return s.file.Write(b)
	}
	return s.mem.Write(b)
}

func (s *spool) toFile() error {
	f, err := os.CreateTemp("", "kofarm-rpm-")
	if err != nil {
		return err
	}
	if err := os.Remove(f.Name()); err != nil {
		return errors.Join(err, f.Close())
	}
	s.file = f
	_, err = s.mem.WriteTo(f)
	s.mem = bytes.Buffer{}
	return err
}

// reader gives the content, which it leaves in place.
func (s *spool) reader() io.Reader {
	if s.file != nil {
		return io.NewSectionReader(s.file, 0, s.size)
	}
	return bytes.NewReader(s.mem.Bytes())
}

func (s *spool) close() error {
	s.mem = bytes.Buffer{}
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
