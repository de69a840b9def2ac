package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"path"
	"slices"
	"strings"
)

// maxConfig bounds a kernel's configuration in bytes (Debian's has 260 kB).
const maxConfig = 8 << 20

// ModuleCompression tells how a kernel's own modules are compressed, by the
// configuration in its headers: "" for not at all (or where they do not say),
// gz, xz or zst.
func (a *Assembler) ModuleCompression(ctx context.Context, in Inputs, release string) (string, error) {
	for _, p := range in.Headers {
		if p.Name != "linux-headers-"+release {
			continue
		}
		file, err := a.Fetcher.Package(ctx, p)
		if err != nil {
			return "", err
		}
		src := Source{open: func() (entries, error) { return openDeb(file) }}
		return moduleCompression(src.all)
	}
	if in.Custom != nil {
		return moduleCompression(in.Custom.each)
	}
	return "", nil
}

// configs are where a kernel's configuration is in its build tree, the surest
// first.
var configs = []string{"include/config/auto.conf", ".config"}

func moduleCompression(each func(func(*tar.Header, io.Reader) error) error) (string, error) {
	found := make([][]byte, len(configs))
	err := each(func(h *tar.Header, r io.Reader) (err error) {
		i := slices.IndexFunc(configs, func(name string) bool { return strings.HasSuffix(h.Name, "/"+name) })
		if i < 0 || h.Typeflag != tar.TypeReg || h.Size > maxConfig || path.Base(path.Dir(h.Name)) == "scripts" {
			return nil
		}
		found[i], err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return "", err
	}
	for _, config := range found {
		for _, c := range []struct{ option, suffix string }{
			{"CONFIG_MODULE_COMPRESS_GZIP=y", "gz"}, {"CONFIG_MODULE_COMPRESS_XZ=y", "xz"}, {"CONFIG_MODULE_COMPRESS_ZSTD=y", "zst"},
		} {
			if bytes.HasPrefix(config, []byte(c.option+"\n")) || bytes.Contains(config, []byte("\n"+c.option+"\n")) {
				return c.suffix, nil
			}
		}
	}
	return "", nil
}
