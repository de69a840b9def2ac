package images

import (
	"archive/tar"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestKernelConfigs(t *testing.T) {
	for _, c := range []struct {
		name, file, text  string
		compression, hash string
	}{
		{"Debian", "./usr/src/linux-headers-6.1.0-9-amd64/.config", "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_SHA1 is not set\nCONFIG_MODULE_SIG_HASH=\"sha256\"\nCONFIG_MODULE_COMPRESS_NONE=y\n", "", "sha256"},
		{"Fedora", "./usr/src/kernels/6.12/include/config/auto.conf", "CONFIG_MODULE_COMPRESS_XZ=y\nCONFIG_MODULE_SIG_HASH=\"sha512\"\n", "xz", "sha512"},
		{"unsigned", "./b/.config", "# CONFIG_MODULE_SIG is not set\nCONFIG_MODULE_COMPRESS_ZSTD=y\n", "zst", ""},
		{"another option", "./b/.config", "CONFIG_XMODULE_SIG_HASH=\"sha1\"\n#CONFIG_MODULE_SIG_HASH=\"sha1\"\n", "", ""},
		{"nonsense", "./b/.config", "CONFIG_MODULE_SIG_HASH=\"a b; c\"\n", "", ""},
		{"another file", "./b/scripts/.config", "CONFIG_MODULE_SIG_HASH=\"sha1\"\n", "", ""},
	} {
		found, err := readConfigs(func(f func(*tar.Header, io.Reader) error) error {
			other := &tar.Header{Name: "./b/Makefile", Typeflag: tar.TypeReg}
			h := &tar.Header{Name: c.file, Typeflag: tar.TypeReg, Size: int64(len(c.text))}
			return errors.Join(f(other, strings.NewReader("")), f(h, strings.NewReader(c.text)))
		})
		if err != nil || found.compression() != c.compression || found.hash() != c.hash {
			t.Errorf("%s: compression %q, hash %q, %v, want %q and %q", c.name, found.compression(), found.hash(), err, c.compression, c.hash)
		}
	}
}
