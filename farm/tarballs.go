package farm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/matrix"
)

// tarballFormat numbers the form of DKMS tarballs: raise it when their bytes
// change.
const tarballFormat = 2

// tarballs plans the DKMS tarballs of the results.
type tarballs struct {
	*material
	out *matrix.DKMSOutput
}

// packages lists the tarballs, by layout as the farm file has them, then in the
// order of the cells.
func (t *tarballs) packages(results []*Result) []Package {
	var all []Package
	for _, layout := range t.out.Layouts {
		switch layout {
		case matrix.SourceOnly, matrix.Combined:
			for _, group := range byVersion(results) {
				all = append(all, t.tarball(dkms.Layout(layout), group))
			}
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

func (t *tarballs) tarball(layout dkms.Layout, results []*Result) Package {
	src := results[0].Cell.Inputs.Source
	info := dkms.Info{Name: src.Name, Version: src.Version, Conf: src.Conf, Epoch: t.epochOf(src), Layout: layout,
		Compression: dkms.Compression(t.out.Compression)}
	var builds []dkms.Build
	var warnings []string
	if w := layout.Warning(info.Name, info.Version); w != "" {
		warnings = append(warnings, w)
	}
	h := t.packageKey(tarballFormat, "dkms tarball", src, layout, info.Compression)
	for _, r := range results {
		addResult(h, r)
		if layout != dkms.SourceOnly {
			t.signing.addTo(h, r)
			builds = append(builds, t.build(r, h))
			if u := r.Record.Unsteady; u != "" && !slices.Contains(warnings, unsteadyWarning(u)) {
				warnings = append(warnings, unsteadyWarning(u))
			}
		}
	}
	return Package{
		Name: dkms.FileName(info, builds), Cells: cellsOf(results), Warnings: warnings, Key: sum(h),
		Kind: "dkms " + string(layout), Options: map[string]any{"compression": string(info.Compression)}, Holds: tarballHolds(layout),
		Write: func(_ context.Context, w io.Writer) error {
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

// unsteadyWarning is for tarballs whose modules dkms may not find in dkms.conf.
func unsteadyWarning(why string) string {
	return why + ": there dkms may install only some of the modules, or refuse to"
}

func tarballHolds(layout dkms.Layout) Holds {
	switch layout {
	case dkms.Full:
		return HoldsModules | HoldsSource
	case dkms.SourceOnly:
		return HoldsSource
	}
	return HoldsModules
}

// build describes what a result holds, and adds what else a tarball has to the key.
func (t *tarballs) build(r *Result, key io.Writer) dkms.Build {
	b := dkms.Build{Kernel: r.Cell.Kernel.Release, Arch: r.Cell.Kernel.Arch, Log: makeLog(r)}
	fmt.Fprintf(key, "%x\n", sha256.Sum256(b.Log))
	if r.Record.Symvers != nil {
		fmt.Fprintf(key, "symvers %s\n", r.Record.Symvers.SHA256)
	}
	return b
}

// load reads the modules and the Module.symvers that go along, and writes the
// tarball.
func (t *tarballs) load(w io.Writer, info dkms.Info, builds []dkms.Build, results []*Result) (err error) {
	for i := range builds {
		if builds[i].Modules, err = t.modules(results[i]); err != nil {
			return err
		}
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

// warningsOf are those of all the packages.
func warningsOf(packages []Package) (all []string) {
	for _, p := range packages {
		all = append(all, p.Warnings...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// prebuilt are the tarballs that a package with the source carries, one of each
// result; none where they are not asked for.
func (m *material) prebuilt(results []*Result, asked bool) []Package {
	if !asked {
		return nil
	}
	t := &tarballs{material: m, out: &matrix.DKMSOutput{Compression: matrix.Gzip}}
	var all []Package
	for _, r := range results {
		all = append(all, t.tarball(dkms.BinariesOnly, []*Result{r}))
	}
	return all
}
