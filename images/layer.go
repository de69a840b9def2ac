package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"

	"github.com/kofarm/kofarm/images/store"
)

// LayerFormat numbers the way in which packages and sources become layers. It
// is part of every cell's key and of every layer's name: raise it whenever the
// bytes of a layer change.
const LayerFormat = 2

// layerTime is the time of every entry of a layer. It is not zero, which some
// programs take for "no time", but the earliest that a zip file can hold.
var layerTime = time.Unix(315532800, 0).UTC() // 1980-01-01

// merged are the folders that a merged /usr holds (Debian's usrmerge).
var merged = map[string]bool{"bin": true, "sbin": true, "lib": true, "lib32": true, "lib64": true, "libx32": true}

// layerWriter writes one layer into the store: normal modes, owner 0, one time
// for all. An entry whose path is there already is left out.
type layerWriter struct {
	blob   *store.Writer
	zip    *gzip.Writer
	diffID hash.Hash
	tar    *tar.Writer
	seen   map[string]bool
}

func newLayerWriter(s *store.Store) (*layerWriter, error) {
	blob, err := s.Create()
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return nil, errors.Join(err, blob.Abort())
	}
	l := &layerWriter{blob: blob, zip: zip, diffID: sha256.New(), seen: map[string]bool{}}
	l.tar = tar.NewWriter(io.MultiWriter(zip, l.diffID))
	return l, nil
}

// add writes an entry. Names are relative to the root; those below /bin, /lib
// and their like move below /usr.
func (l *layerWriter) add(h *tar.Header, r io.Reader) error {
	name := usrMerged(h.Name)
	if name == "." || l.seen[name] || (h.Typeflag == tar.TypeDir && merged[name]) {
		return nil
	}
	out := &tar.Header{Typeflag: h.Typeflag, Name: name, ModTime: layerTime, Format: tar.FormatPAX, Mode: 0o644}
	switch h.Typeflag {
	case tar.TypeDir:
		out.Name, out.Mode = name+"/", 0o755
	case tar.TypeReg:
		out.Size = h.Size
		if h.FileInfo().Mode()&0o111 != 0 {
			out.Mode = 0o755
		}
	case tar.TypeSymlink:
		out.Linkname, out.Mode = h.Linkname, 0o777
	case tar.TypeLink:
		out.Linkname = usrMerged(h.Linkname)
		if !l.seen[out.Linkname] {
			return fmt.Errorf("%s: hard link to %q, which is not there", name, out.Linkname)
		}
	default:
		return fmt.Errorf("%s: a layer cannot hold an entry of type %q", name, h.Typeflag)
	}
	l.seen[name] = true
	if err := l.tar.WriteHeader(out); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(l.tar, r)
	return err
}

// file, dir and link add entries of the layer's own.
func (l *layerWriter) file(name string, mode fs.FileMode, data string) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode), Size: int64(len(data))}
	return l.add(h, strings.NewReader(data))
}

func (l *layerWriter) dir(name string) error {
	return l.add(&tar.Header{Typeflag: tar.TypeDir, Name: name}, nil)
}

func (l *layerWriter) link(name, target string) error {
	return l.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, nil)
}

// mountPoint adds a folder with a mode of its own, or 0755 if that is 0.
func (l *layerWriter) mountPoint(name string, mode int64) error {
	if mode == 0 {
		return l.dir(name)
	}
	l.seen[name] = true
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: layerTime, Format: tar.FormatPAX})
}

// rootLink adds a link that stands in the root itself, such as /lib.
func (l *layerWriter) rootLink(name, target string) error {
	if l.seen["/"+name] {
		return nil
	}
	l.seen["/"+name] = true
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777,
		ModTime: layerTime, Format: tar.FormatPAX})
}

// commit ends the layer and names it.
func (l *layerWriter) commit(s *store.Store, name string) (*store.Layer, error) {
	if err := errors.Join(l.tar.Close(), l.zip.Close()); err != nil {
		return nil, errors.Join(err, l.blob.Abort())
	}
	digest, size, err := l.blob.Commit()
	if err != nil {
		return nil, err
	}
	diffID := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(l.diffID.Sum(nil))}
	return s.NewLayer(name, digest, size, diffID)
}

// usrMerged gives the path that a file has in a system with a merged /usr:
// clean, without a leading slash.
func usrMerged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	if first, _, below := strings.Cut(name, "/"); below && merged[first] {
		return "usr/" + name
	}
	return name
}

// makeLayer gives the layer of that name, which fill makes where it is not yet
// in the store.
func makeLayer(s *store.Store, name string, fill func(*layerWriter) error) (*store.Layer, error) {
	if l, err := s.Layer(name); !errors.Is(err, store.ErrNotFound) {
		return l, err
	}
	w, err := newLayerWriter(s)
	if err != nil {
		return nil, err
	}
	if err := fill(w); err != nil {
		return nil, errors.Join(err, w.blob.Abort())
	}
	return w.commit(s, name)
}
