package deb

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kofarm/kofarm/farm/pack/edit"
)

// Module compresses a module as the packages here have it, which kmod reads.
func (c Compression) Module(plain []byte) ([]byte, error) { return c.module(plain) }

// maxControl bounds the control files of a package, in bytes.
const maxControl = 64 << 20

// Rewrite writes the package in r with some files changed, with their digests
// and the installed size in its control files, and all else as it is. It need
// not be one of kofarm's. What a package has beside the three members of
// deb(5), as signatures, would be wrong: it is dropped, and named.
func Rewrite(w io.Writer, r io.Reader, e edit.Edit) (dropped []string, err error) {
	p := &rewriting{edit: e, sums: map[string]string{}}
	if err := p.read(r); err != nil {
		return nil, errors.Join(fmt.Errorf("package: %w", err), p.close())
	}
	members := []member{{"debian-binary", strings.NewReader("2.0\n"), 4},
		{p.controlName, p.control.reader(), p.control.size}, {p.dataName, p.data.reader(), p.data.size}}
	return p.dropped, errors.Join(writeAr(w, p.time, members), p.close())
}

// rewriting is a package that is being rewritten.
type rewriting struct {
	edit                  edit.Edit
	time                  time.Time
	control, data         spool
	controlName, dataName string
	dropped               []string

	// What has changed in the data.
	sums  map[string]string // a changed file → its MD5
	grown int64             // KiB
}

func (p *rewriting) close() error { return errors.Join(p.control.Close(), p.data.Close()) }

// read reads the members of the ar archive in order. Control files come first,
// and are written last.
func (p *rewriting) read(r io.Reader) error {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return fmt.Errorf("%w: it is no ar archive", edit.ErrFormat)
	}
	var control []byte
	for n := 0; ; n++ {
		h, err := readArHeader(r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		body := io.LimitReader(r, h.size)
		switch {
		case n == 0 && h.name == "debian-binary":
			p.time = h.time
		case n == 0:
			return fmt.Errorf("%w: it does not begin with debian-binary", edit.ErrFormat)
		case strings.HasPrefix(h.name, "control.tar") && p.controlName == "" && p.dataName == "":
			if h.size > maxControl {
				return fmt.Errorf("%s of %d bytes: %w of %d", h.name, h.size, edit.ErrLimit, int64(maxControl))
			}
			if control, err = io.ReadAll(body); err != nil {
				return err
			}
			p.controlName = h.name
		case strings.HasPrefix(h.name, "data.tar") && p.controlName != "" && p.dataName == "":
			if err := p.rewriteData(body); err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			p.dataName = h.name
		default:
			p.dropped = append(p.dropped, h.name)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return err
		}
		if h.size%2 == 1 {
			if _, err := io.CopyN(io.Discard, r, 1); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
	if p.dataName == "" {
		return fmt.Errorf("%w: it has no control.tar and data.tar", edit.ErrFormat)
	}
	if err := p.rewriteControl(bytes.NewReader(control)); err != nil {
		return fmt.Errorf("%s: %w", p.controlName, err)
	}
	return nil
}

type arHeader struct {
	name string
	time time.Time
	size int64
}

func readArHeader(r io.Reader) (arHeader, error) {
	b := make([]byte, 60)
	n, err := io.ReadFull(r, b)
	if n == 0 && errors.Is(err, io.EOF) {
		return arHeader{}, io.EOF
	}
	bad := fmt.Errorf("%w: malformed ar header", edit.ErrFormat)
	if err != nil || string(b[58:]) != "`\n" {
		return arHeader{}, bad
	}
	field := func(from, to int) string { return strings.TrimRight(string(b[from:to]), " ") }
	at, err := strconv.ParseUint(field(16, 28), 10, 40)
	if err != nil {
		return arHeader{}, bad
	}
	size, err := strconv.ParseUint(field(48, 58), 10, 40)
	if err != nil {
		return arHeader{}, bad
	}
	return arHeader{strings.TrimSuffix(field(0, 16), "/"), time.Unix(int64(at), 0), int64(size)}, nil
}

// repack copies a compressed tar.
func (p *rewriting) repack(w *spool, r io.Reader, e edit.Edit, each func(old, now *tar.Header, changed []byte) error) error {
	plain, compression, err := edit.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	if compression == "" {
		compression = string(None)
	}
	var raw spool
	defer raw.Close()
	tw := tar.NewWriter(&raw)
	var size int64 // as contentSize counts it
	err = e.Tar(tw, tar.NewReader(plain), func(old, now *tar.Header, changed []byte) error {
		size += now.Size + 1024
		return each(old, now, changed)
	})
	if err == nil {
		_, err = io.Copy(io.Discard, plain) // so that the compressed stream's checksum is looked at
	}
	if err = errors.Join(err, tw.Close()); err != nil {
		return err
	}
	z, err := Compression(compression).writer(w, size)
	if err != nil {
		return err
	}
	_, err = io.Copy(z, raw.reader())
	return errors.Join(err, z.Close())
}

func (p *rewriting) rewriteData(r io.Reader) error {
	return p.repack(&p.data, r, p.edit, func(old, now *tar.Header, changed []byte) error {
		if changed != nil {
			sum := md5.Sum(changed)
			p.sums[edit.Clean(now.Name)] = hex.EncodeToString(sum[:])
			p.grown += (now.Size+1023)/1024 - (old.Size+1023)/1024
		}
		return nil
	})
}

func (p *rewriting) rewriteControl(r io.Reader) error {
	e := edit.Edit{
		Wants: func(name string) bool { return name == "md5sums" || name == "control" },
		Change: func(name string, data []byte) ([]byte, error) {
			if name == "control" {
				return p.resize(data), nil
			}
			return p.resum(data), nil
		},
	}
	return p.repack(&p.control, r, e, func(_, _ *tar.Header, _ []byte) error { return nil })
}

// resum gives changed files their new digests in md5sums.
func (p *rewriting) resum(md5sums []byte) []byte {
	lines := strings.SplitAfter(string(md5sums), "\n")
	for i, line := range lines {
		_, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if sum, changed := p.sums[edit.Clean(name)]; ok && changed {
			lines[i] = sum + "  " + name + strings.Repeat("\n", strings.Count(line, "\n"))
		}
	}
	return []byte(strings.Join(lines, ""))
}

var installedSize = regexp.MustCompile(`(?m)^Installed-Size: *([0-9]{1,12}) *$`)

// resize adds what the files have grown to the installed size.
func (p *rewriting) resize(control []byte) []byte {
	m := installedSize.FindSubmatchIndex(control)
	if m == nil {
		return control
	}
	size, err := strconv.ParseInt(string(control[m[2]:m[3]]), 10, 64)
	if err != nil {
		return control
	}
	return slices.Concat(control[:m[2]], strconv.AppendInt(nil, max(0, size+p.grown), 10), control[m[3]:])
}
