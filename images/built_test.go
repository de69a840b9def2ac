package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func builtFile(name, data string) BuiltFile {
	return BuiltFile{Name: name, SHA256: strings.Repeat("0", 62) + data[:2], Size: int64(len(data)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil }}
}

// treeFile is a tar of entries.
func treeFile(t testing.TB, headers ...*tar.Header) *BuiltFile {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := builtFile("tree.tar", b.String())
	return &f
}

func TestBuiltLayer(t *testing.T) {
	s := openStore(t)
	b := Built{Source: &Source{Name: "zfs", Version: "2.1"}, Kernel: "6.1.0-9-amd64", Arch: "x86_64",
		Files: []BuiltFile{builtFile("module/zfs.ko", "ELF"), builtFile("module/Module.symvers", "0x1")}}
	first, err := b.layer(s)
	if err != nil {
		t.Fatal(err)
	}
	const dir = "usr/lib/kofarm/dkms/zfs/2.1/6.1.0-9-amd64/x86_64/"
	want := []string{"5 755 " + dir, `0 644 ` + dir + `module/zfs.ko "ELF"`, `0 644 ` + dir + `module/Module.symvers "0x1"`}
	wantList(t, first, want...)
	b.Tree = treeFile(t, &tar.Header{Name: "zfs_config.h", Typeflag: tar.TypeReg, Size: 2, Mode: 0o600, Uid: 7}, &tar.Header{Name: "sub/", Typeflag: tar.TypeDir},
		&tar.Header{Name: "module/zfs.ko", Typeflag: tar.TypeReg, Size: 5})
	second, err := b.layer(s)
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, second, append(want, "0 644 "+dir+`zfs_config.h "xx"`, "5 755 "+dir+"sub/")...) // what was built stays
	for _, h := range []*tar.Header{{Name: "../x", Typeflag: tar.TypeReg}, {Name: "/x", Typeflag: tar.TypeReg},
		{Name: "x", Typeflag: tar.TypeLink, Linkname: "zfs_config.h"}, {Name: "x", Typeflag: tar.TypeChar}} {
		b.Tree = treeFile(t, h)
		b.Tree.SHA256 = h.Name + string(h.Typeflag)
		if l, err := b.layer(s); err == nil {
			t.Errorf("%q: %v", h.Name, list(t, l))
		}
	}
	b.Tree = sparseTree(t)
	if l, err := b.layer(s); err == nil || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("a sparse file: %v, %v", l, err)
	}
}

// sparseTree is a tar of a file of a gigabyte that is all hole (GNU tar's format
// 0.1 of sparse files), which archive/tar does not write.
func sparseTree(t *testing.T) *BuiltFile {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"GNU_sparse.size": "1073741824", "GNU_sparse.numblocks": "1", "GNU_sparse.map": "1073741824,0"}}
	if err := errors.Join(w.WriteHeader(h), w.Close()); err != nil {
		t.Fatal(err)
	}
	f := builtFile("tree.tar", strings.ReplaceAll(b.String(), "GNU_sparse", "GNU.sparse"))
	return &f
}
