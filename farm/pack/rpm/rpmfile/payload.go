package rpmfile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compression is how the payload is compressed; empty means [Gzip]. What is
// compressed already, as modules often are, gains nothing from a better one.
type Compression string

// The compressions, by rpm's names. Every rpm reads gzip, rpm since 4.6 xz, since
// 4.14 zstd. Bytes are the same for the same version of the compressing libraries.
const (
	Gzip Compression = "gzip"
	XZ   Compression = "xz"
	Zstd Compression = "zstd"
)

// Compressions lists the compressions, the default first.
func Compressions() []Compression { return []Compression{Gzip, XZ, Zstd} }

// level is what PAYLOADFLAGS says, which nothing acts on.
func (c Compression) level() string {
	return map[Compression]string{Gzip: "8", XZ: "6", Zstd: "19"}[c]
}

// window is the history that xz and zstd keep, in bytes.
const window = 4 << 20

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, 8) // 9 takes seven times as long for the same size
	case XZ:
		return xz.WriterConfig{DictCap: window, CheckSum: xz.CRC64}.NewWriter(w)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithEncoderCRC(true))
	}
	return nil, fmt.Errorf("compression %q, known are %v", c, Compressions())
}

// The file types of a mode, as in stat(2).
const (
	TypeFile    uint16 = 0o100000
	TypeDir     uint16 = 0o040000
	TypeSymlink uint16 = 0o120000
	typeMask    uint16 = 0o170000
)

// What a file is beside its content (FILEFLAGS).
const (
	FlagConfig    = 1 << 0
	FlagNoReplace = 1 << 4 // a changed FlagConfig stays
	FlagSpec      = 1 << 5
)

// File is one file of a package, owned by root.
type File struct {
	// Name is the absolute path; in a source package a name without slash.
	Name  string
	Mode  uint16 // type and permissions
	Flags uint32
	Link  string // target of a symbolic link
	// Size in bytes of what Body gives; files only. Body is read to its end and
	// not closed.
	Size int64
	Body io.Reader
}

// Payload collects the files of a package, which must come sorted by path, as
// rpm searches them. Close it when done.
type Payload struct {
	compression Compression
	epoch       uint32
	files       []fileInfo
	last        string // the path added last
	size        uint64 // sum of the files' sizes
	spool       *spool
	compressed  hash.Hash
	plain       hash.Hash
	written     uint64 // bytes of the cpio archive
	z           io.WriteCloser
}

// fileInfo is what the header says of a file.
type fileInfo struct {
	dir, base, digest, link string
	mode                    uint16
	size, flags             uint32
}

// NewPayload starts a payload whose files are dated with the epoch.
func NewPayload(c Compression, epoch time.Time) (*Payload, error) {
	if c == "" {
		c = Gzip
	}
	p := &Payload{compression: c, epoch: uint32(epoch.Unix()), spool: &spool{}, compressed: sha256.New(), plain: sha256.New()}
	var err error
	p.z, err = c.writer(io.MultiWriter(p.spool, p.compressed))
	return p, err
}

// Close frees what the payload holds; what it was is lost.
func (p *Payload) Close() error { return p.spool.close() }

// Add adds a file.
func (p *Payload) Add(f File) error {
	if err := p.add(f); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
}

func (p *Payload) add(f File) error {
	info, err := newFileInfo(f)
	if err != nil {
		return err
	}
	if f.Name <= p.last {
		return fmt.Errorf("comes after %s, out of order", p.last)
	}
	p.last = f.Name
	if p.size += uint64(info.size); p.size > maxPayload {
		return fmt.Errorf("%w: all files together are over %d bytes", errTooLarge, uint64(maxPayload))
	}
	name := f.Name
	if info.dir != "" {
		name = "." + name
	}
	if err := p.header(len(p.files)+1, info.mode, info.size, p.epoch, name); err != nil {
		return err
	}
	if info.digest, err = p.content(f, info); err != nil {
		return err
	}
	p.files = append(p.files, info)
	return nil
}

// maxPayload bounds the sum of the files, so that every size fits in the 32 bits
// of the tags that every rpm knows.
const maxPayload = math.MaxUint32 - 64<<20

var errTooLarge = errors.New("too large for an rpm")

// maxName is the longest path of Linux.
const maxName = 4096

func newFileInfo(f File) (fileInfo, error) {
	info := fileInfo{link: f.Link, mode: f.Mode, flags: f.Flags}
	info.dir, info.base = path.Split(f.Name)
	if info.base == "" || len(f.Name) >= maxName || strings.ContainsRune(f.Name+f.Link, 0) ||
		info.dir != "" && (f.Name[0] != '/' || path.Clean(f.Name) != f.Name) || info.dir == "" && path.Clean("/"+f.Name) != "/"+f.Name {
		return info, fmt.Errorf("no path of a package: %q", f.Name)
	}
	switch f.Mode & typeMask {
	case TypeDir:
	case TypeSymlink:
		if f.Link == "" || len(f.Link) >= maxName {
			return info, fmt.Errorf("link to %q", f.Link)
		}
		info.size = uint32(len(f.Link))
	case TypeFile:
		if f.Size < 0 || f.Size > maxPayload {
			return info, fmt.Errorf("%w: %d bytes", errTooLarge, f.Size)
		}
		info.size = uint32(f.Size)
	default:
		return info, fmt.Errorf("file type of mode %o", f.Mode)
	}
	return info, nil
}

// content writes a file's bytes, and gives the digest of a regular file.
func (p *Payload) content(f File, info fileInfo) (string, error) {
	var body io.Reader
	switch f.Mode & typeMask {
	case TypeDir:
		return "", nil
	case TypeSymlink:
		body = strings.NewReader(f.Link)
	default:
		body = f.Body
		if body == nil {
			body = strings.NewReader("")
		}
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(p, sum), io.LimitReader(body, int64(info.size)+1))
	if err != nil {
		return "", err
	}
	if n != int64(info.size) {
		return "", fmt.Errorf("content is not of the %d bytes announced", info.size)
	}
	if f.Mode&typeMask == TypeSymlink {
		return "", p.pad()
	}
	return hex.EncodeToString(sum.Sum(nil)), p.pad()
}

// header writes the header of an entry of a "new ASCII" cpio archive: numbers
// in eight digits of base 16, then the name.
func (p *Payload) header(inode int, mode uint16, size, mtime uint32, name string) error {
	const links = 1
	fmt.Fprintf(p, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, mode, 0, 0, links, mtime, size, 0, 0, 0, 0, len(name)+1, 0, name)
	return p.pad()
}

// pad fills up to a multiple of four.
func (p *Payload) pad() error {
	_, err := p.Write(make([]byte, -p.written&3))
	return err
}

// Write is for the payload's own use: it takes bytes of the archive.
func (p *Payload) Write(b []byte) (int, error) {
	p.plain.Write(b)
	p.written += uint64(len(b))
	return p.z.Write(b)
}

// finish ends the archive.
func (p *Payload) finish() error {
	if err := p.header(0, 0, 0, 0, "TRAILER!!!"); err != nil {
		return err
	}
	return p.z.Close()
}
