package workertest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Busybox is the static program that the image's commands are. Debian's package
// busybox-static holds it.
const Busybox = "/bin/busybox"

// crasher is a program in the image whose first instruction is no memory of its
// own: SIGSEGV, of which not even a container's first process is safe.
const crasher = "/bin/crash"

// Entry is one entry of a layer made by [Layer].
type Entry struct {
	Name string
	Type byte // of package archive/tar; 0: a file, or a folder if Name ends in /
	Mode int64
	Data string // content, or the target of a link
}

// Tar writes entries as a tar archive.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Type, Mode: e.Mode}
		switch {
		case e.Type == 0 && e.Name[len(e.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case e.Type == 0, e.Type == tar.TypeReg:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.Data))
		default:
			h.Linkname = e.Data
		}
		if e.Mode == 0 {
			h.Mode = 0o755
		}
		if !utf8.ValidString(e.Name) {
			h.Format = tar.FormatGNU // which has names of any bytes
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer makes a layer of the entries.
func Layer(t testing.TB, entries ...Entry) v1.Layer {
	t.Helper()
	data := Tar(t, entries...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Image makes an image of the layers on top of one with [Busybox] as /bin/sh,
// the program crasher, and the folders that a runtime mounts something on.
func Image(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	program, err := os.ReadFile(Busybox)
	if err != nil {
		t.Fatalf("the tests' image needs Debian's package busybox-static (see ci/setup): %v", err)
	}
	crash := bytes.Clone(program)
	binary.LittleEndian.PutUint64(crash[24:], 16) // e_entry of an ELF header of 64 bits
	base := Layer(t,
		Entry{Name: "bin/"}, Entry{Name: "bin/busybox", Data: string(program)},
		Entry{Name: "bin/sh", Type: tar.TypeSymlink, Data: "busybox"}, Entry{Name: crasher[1:], Data: string(crash)},
		Entry{Name: "dev/"}, Entry{Name: "etc/"}, Entry{Name: "proc/"}, Entry{Name: "root/", Mode: 0o700}, Entry{Name: "run/"},
		Entry{Name: "sys/"}, Entry{Name: "tmp/", Mode: 0o1777}, Entry{Name: "var/lib/dkms/"}, Entry{Name: "var/tmp/", Mode: 0o1777})
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, append([]v1.Layer{base}, layers...)...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// lying is a layer whose content is not what its diffID says.
type lying struct{ v1.Layer }

func (l lying) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	return io.NopCloser(bytes.NewReader(bytes.ReplaceAll(data, []byte("truth"), []byte("a lie")))), err
}

func (l lying) Compressed() (io.ReadCloser, error) { return l.Uncompressed() }
