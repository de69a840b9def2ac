package deb

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// spoolMemory is how much of a compressed archive stays in memory, in bytes;
// the ar header wants its size first, so it cannot be streamed.
const spoolMemory = 8 << 20

// spool keeps what is written, in memory at first and in a temporary file when
// it grows.
type spool struct {
	memory bytes.Buffer
	file   *os.File
	size   int64
}

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.memory.Len()+len(p) <= spoolMemory {
		n, err := s.memory.Write(p)
		s.size += int64(n)
		return n, err
	}
	if s.file == nil {
		f, err := os.CreateTemp("", "kofarm-deb-")
		if err != nil {
			return 0, err
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil { // the open file is all we need
			return 0, err
		}
	}
	n, err := s.file.Write(p)
	s.size += int64(n)
	return n, err
}

// reader gives what was written; use it once.
func (s *spool) reader() io.Reader {
	if s.file == nil {
		return &s.memory
	}
	return io.MultiReader(&s.memory, io.NewSectionReader(s.file, 0, s.size-int64(s.memory.Len())))
}

func (s *spool) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// member is one file of an ar archive.
type member struct {
	name string // at most 15 characters
	r    io.Reader
	size int64
}

// writeAr writes a .deb's outer archive: ar in its common form, deb(5).
func writeAr(w io.Writer, epoch time.Time, members []member) error {
	if _, err := io.WriteString(w, "!<arch>\n"); err != nil {
		return err
	}
	for _, m := range members {
		if m.size >= 1e10 {
			return fmt.Errorf("%s of %d bytes does not fit into a Debian package", m.name, m.size)
		}
		// name, mtime, uid, gid, mode, size
		if _, err := fmt.Fprintf(w, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, epoch.Unix(), 0, 0, "100644", m.size); err != nil {
			return err
		}
		if n, err := io.Copy(w, m.r); err != nil || n != m.size {
			return errors.Join(fmt.Errorf("%s: wrote %d of %d bytes", m.name, n, m.size), err)
		}
		if m.size%2 == 1 {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
	}
	return nil
}

// sum is the MD5 of a file, which dpkg keeps to find changed files.
type sum struct{ name, md5 string }

// writeTar writes a tree as a compressed tar stream, and gives the MD5 of the
// files and the size installed in KiB as dpkg-gencontrol counts it.
func writeTar(w io.Writer, t tree, c Compression, epoch time.Time) (sums []sum, size int64, err error) {
	entries := t.sorted()
	z, err := c.writer(w, contentSize(entries))
	if err != nil {
		return nil, 0, err
	}
	tw := tar.NewWriter(z)
	for _, e := range entries {
		md5, n, err := writeEntry(tw, e, epoch)
		if err != nil {
			z.Close() // ends its goroutines, if any; the archive is lost anyway
			return nil, 0, fmt.Errorf("%s: %w", e.name, err)
		}
		if e.typeflag == tar.TypeReg {
			sums = append(sums, sum{strings.TrimPrefix(e.name, "./"), md5})
			size += (n + 1023) / 1024
		} else if e.name != "./" {
			size++
		}
	}
	return sums, size, errors.Join(tw.Close(), z.Close())
}

// contentSize is about the size of a tar stream in bytes.
func contentSize(entries []entry) int64 {
	var n int64
	for _, e := range entries {
		n += e.size + 1024
	}
	return n
}

// writeEntry writes one entry, as GNU tar does: dpkg does not read PAX headers.
func writeEntry(tw *tar.Writer, e entry, epoch time.Time) (md5sum string, size int64, err error) {
	r := io.NopCloser(strings.NewReader(""))
	size = e.size
	if e.open != nil {
		if r, size, err = e.content(); err != nil {
			return "", 0, err
		}
	}
	h := &tar.Header{
		Format: tar.FormatGNU, Typeflag: e.typeflag, Name: e.name, Linkname: e.link, Size: size, Mode: e.mode,
		Uname: "root", Gname: "root", ModTime: time.Unix(epoch.Unix(), 0).UTC(),
	}
	if err := tw.WriteHeader(h); err != nil {
		return "", 0, errors.Join(err, r.Close())
	}
	hash := md5.New()
	n, err := io.Copy(io.MultiWriter(tw, hash), io.LimitReader(r, size+1))
	if err = errors.Join(err, r.Close()); n != size || errors.Is(err, tar.ErrWriteTooLong) {
		return "", 0, errors.Join(fmt.Errorf("content is not of the %d bytes announced", size), err)
	}
	return hex.EncodeToString(hash.Sum(nil)), size, err
}
