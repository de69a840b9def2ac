package farm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

// Package is one file that a farm puts out.
type Package struct {
	Name    string // file name
	Cells   []*Cell
	Warning string // what a user of the package has to know, or ""
	// Key is the sha256 in hex of all that the package's bytes depend on.
	Key   string
	Write func(w io.Writer) error
}

// tarballFormat numbers the form of DKMS tarballs: raise it when their bytes
// change.
const tarballFormat = 1

// tarballs plans the DKMS tarballs of the results.
type tarballs struct {
	records records
	output  *matrix.DKMSOutput // nil: none
	epoch   *time.Time         // SOURCE_DATE_EPOCH; nil: each source's own
}

// packages lists the tarballs, by layout as the farm file has them, then in the
// order of the cells.
func (t *tarballs) packages(results []*Result) []Package {
	var all []Package
	if t.output == nil {
		return nil
	}
	for _, layout := range t.output.Layouts {
		switch layout {
		case matrix.SourceOnly, matrix.Combined:
			all = append(all, t.grouped(dkms.Layout(layout), results)...)
		default:
			for _, r := range results {
				if r.Packable() {
					all = append(all, t.tarball(dkms.Layout(layout), []*Result{r}))
				}
			}
		}
	}
	return all
}

// grouped makes one tarball of each module version that has a packable result.
func (t *tarballs) grouped(layout dkms.Layout, results []*Result) []Package {
	var all []Package
	var group []*Result
	flush := func() {
		if len(group) > 0 {
			all = append(all, t.tarball(layout, group))
		}
		group = nil
	}
	var last *matrix.ModuleVersion
	for _, r := range results { // a version's cells stand together
		if r.Cell.Module != last {
			flush()
			last = r.Cell.Module
		}
		if r.Packable() {
			group = append(group, r)
		}
	}
	flush()
	return all
}

func (t *tarballs) tarball(layout dkms.Layout, results []*Result) Package {
	src := results[0].Cell.Inputs.Source
	info := dkms.Info{Name: src.Name, Version: src.Version, Conf: src.Conf, Epoch: src.Epoch, Layout: layout,
		Compression: dkms.Compression(t.output.Compression)}
	if t.epoch != nil {
		info.Epoch = *t.epoch
	}
	var builds []dkms.Build
	var cells []*Cell
	h := sha256.New()
	fmt.Fprintf(h, "dkms tarball %d\n%s\n%s\n%d\n%s\n", tarballFormat, layout, info.Compression, info.Epoch.Unix(), src.Digest)
	for _, r := range results {
		cells = append(cells, r.Cell)
		fmt.Fprintln(h, r.Cell.Key)
		if layout != dkms.SourceOnly {
			builds = append(builds, t.build(r, h))
		}
	}
	return Package{
		Name: dkms.FileName(info, builds), Cells: cells, Warning: layout.Warning(info.Name, info.Version),
		Key: hex.EncodeToString(h.Sum(nil)),
		Write: func(w io.Writer) error {
			if layout != dkms.Full && layout != dkms.SourceOnly {
				return t.load(w, info, builds, results)
			}
			return t.withTree(src, func(root *os.Root) error {
				info.Source = dkms.SourceFS(root.FS())
				return t.load(w, info, builds, results)
			})
		},
	}
}

// build describes a result's modules, and adds their digests to the key.
func (t *tarballs) build(r *Result, key io.Writer) dkms.Build {
	b := dkms.Build{Kernel: r.Cell.Kernel.Release, Arch: r.Cell.Kernel.Arch, Log: makeLog(r)}
	fmt.Fprintf(key, "%x\n", sha256.Sum256(b.Log))
	for _, m := range r.Record.Modules {
		fmt.Fprintf(key, "%s %s\n", m.Name, m.SHA256)
		b.Modules = append(b.Modules, dkms.Module{Dest: m.Name, Size: m.Size, Open: func() (io.ReadCloser, error) {
			data, err := t.records.module(m) // whole, so that it is verified before it is packed
			return io.NopCloser(bytes.NewReader(data)), err
		}})
	}
	if r.Record.Symvers != nil {
		fmt.Fprintf(key, "symvers %s\n", r.Record.Symvers.SHA256)
	}
	return b
}

// load reads the Module.symvers that go along, and writes the tarball.
func (t *tarballs) load(w io.Writer, info dkms.Info, builds []dkms.Build, results []*Result) error {
	for i := range builds {
		if s := results[i].Record.Symvers; s != nil {
			data, err := t.records.s.Get(s.hash(), maxModule)
			if err != nil {
				return err
			}
			builds[i].Symvers = data
		}
	}
	return dkms.Package(w, info, builds)
}

// makeLog is the make.log of a tarball. A real log differs from run to run, as
// make works in parallel, so the tarball says where its modules are from.
func makeLog(r *Result) []byte {
	return fmt.Appendf(nil, "kofarm: %s/%s for kernel %s (%s)\ncompiler: %s\nkey: sha256:%s\n",
		r.Cell.Module.Name, r.Cell.Module.Version, r.Cell.Kernel.Release, r.Cell.Kernel.Arch, r.Record.Compiler, r.Cell.Key)
}

// withTree unpacks a source into a temporary folder for the time of use.
func (t *tarballs) withTree(src *images.Source, use func(*os.Root) error) (err error) {
	dir, err := os.MkdirTemp(t.records.s.TempDir(), "source-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := src.Unpack(root); err != nil {
		return fmt.Errorf("unpacking the source: %w", err)
	}
	return use(root)
}
