package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxConfig bounds a kernel's configuration in bytes (Debian's has 260 kB).
const maxConfig = 8 << 20

// ModuleCompression tells how a kernel's own modules are compressed, by the
// configuration in its headers: "" for not at all (or where they do not say),
// gz, xz or zst.
func (a *Assembler) ModuleCompression(ctx context.Context, in Inputs, release string) (string, error) {
	found, err := a.configs(ctx, in, release)
	return found.compression(), err
}

// ModuleHash names the hash that a kernel's own modules are signed with, as
// CONFIG_MODULE_SIG_HASH in its headers has it: sha256; "" where they do not say.
func (a *Assembler) ModuleHash(ctx context.Context, in Inputs, release string) (string, error) {
	found, err := a.configs(ctx, in, release)
	return found.hash(), err
}

// configs reads a kernel's configuration; nothing where its headers have none.
func (a *Assembler) configs(ctx context.Context, in Inputs, release string) (kernelConfigs, error) {
	for _, p := range in.Headers {
		if p.Name != "linux-headers-"+release {
			continue
		}
		file, err := a.Fetcher.Package(ctx, p)
		if err != nil {
			return nil, err
		}
		src := Source{open: func() (entries, error) { return openDeb(file) }}
		return readConfigs(src.all)
	}
	if in.Custom != nil {
		return readConfigs(in.Custom.each)
	}
	return nil, nil
}

// kernelConfigs are the files in which a kernel's configuration was found.
type kernelConfigs [][]byte

// configs are where a kernel's configuration is in its build tree, the surest
// first.
var configs = []string{"include/config/auto.conf", ".config"}

func readConfigs(each func(func(*tar.Header, io.Reader) error) error) (kernelConfigs, error) {
	found := make(kernelConfigs, len(configs))
	err := each(func(h *tar.Header, r io.Reader) (err error) {
		i := slices.IndexFunc(configs, func(name string) bool { return strings.HasSuffix(h.Name, "/"+name) })
		if i < 0 || h.Typeflag != tar.TypeReg || h.Size > maxConfig || path.Base(path.Dir(h.Name)) == "scripts" {
			return nil
		}
		found[i], err = io.ReadAll(r)
		return err
	})
	return found, err
}

func (c kernelConfigs) compression() string {
	for _, config := range c {
		for _, o := range []struct{ option, suffix string }{
			{"CONFIG_MODULE_COMPRESS_GZIP=y", "gz"}, {"CONFIG_MODULE_COMPRESS_XZ=y", "xz"}, {"CONFIG_MODULE_COMPRESS_ZSTD=y", "zst"},
		} {
			if bytes.HasPrefix(config, []byte(o.option+"\n")) || bytes.Contains(config, []byte("\n"+o.option+"\n")) {
				return o.suffix
			}
		}
	}
	return ""
}

var moduleHash = regexp.MustCompile(`(?m)^CONFIG_MODULE_SIG_HASH="([a-z0-9-]+)"$`)

func (c kernelConfigs) hash() string {
	for _, config := range c {
		if m := moduleHash.FindSubmatch(config); m != nil {
			return string(m[1])
		}
	}
	return ""
}
