package rebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/resign"
)

// file is a package, or a module, that is to be compared.
type file struct {
	path, name string
	recorded   string // what results.json says of its content; "" for a file that was given
	modules    []module
	cells      []*farm.Cell // those which may have made it, for a file that was given
	why        string       // it cannot be verified; or ""
}

func (f *file) given() bool { return f.recorded == "" }

// Files verifies packages and modules that may come from anywhere, by the cells
// of a farm which may have made them. dist is the farm's output folder: it
// tells what packages without modules are made of.
func (v *Verifier) Files(ctx context.Context, cells []*farm.Cell, dist string, paths []string) (*Report, error) {
	known := map[string][]*farm.Cell{} // by module's name and digest
	for _, r := range farm.Stored(v.Store, cells) {
		if r.Outcome == farm.Built {
			for _, m := range r.Record.Modules {
				id := m.Name + " " + m.SHA256
				known[id] = append(known[id], r.Cell)
			}
		}
	}
	byFile, err := cellsByFile(dist, cells)
	if err != nil {
		return nil, err
	}
	var files []*file
	subjects := map[*farm.Cell]*subject{}
	var order []*subject
	for _, path := range paths {
		f := &file{path: path, name: path}
		if f.modules, err = modulesIn(path); err != nil {
			return nil, err
		}
		files = append(files, f)
		for _, m := range f.modules {
			for _, c := range candidates(m, filepath.Base(path), known, cells) {
				s := subjects[c]
				if s == nil {
					s = &subject{cell: c, want: map[string]want{}, any: true}
					subjects[c], order = s, append(order, s)
				}
				f.cells = append(f.cells, c)
				if _, ok := s.want[m.name]; !ok {
					s.want[m.name] = want{hashOf(m.data), func() ([]byte, error) { return m.data, nil }}
				}
			}
		}
		for _, c := range byFile[filepath.Base(path)] {
			if len(f.modules) == 0 {
				f.cells = append(f.cells, c)
				if subjects[c] == nil {
					subjects[c] = &subject{cell: c, want: map[string]want{}, any: true}
					order = append(order, subjects[c])
				}
			}
		}
		if len(f.cells) == 0 {
			f.why = "no cell of the farm file makes what is in it"
		}
	}
	return v.verify(ctx, order, files)
}

// candidates are the cells that may have built a module: those that have built
// just this one, or else those for its kernel, of which the file's name may tell
// the right one.
func candidates(m module, file string, known map[string][]*farm.Cell, cells []*farm.Cell) []*farm.Cell {
	if exact := known[m.name+" "+hashOf(m.data)]; len(exact) > 0 {
		return narrow(exact, file)
	}
	info, err := kmod.ReadAt(bytes.NewReader(m.data), int64(len(m.data)), kmod.Limits{PlainOnly: true})
	if err != nil {
		return nil
	}
	release, _, _ := strings.Cut(info.Vermagic, " ")
	var fit []*farm.Cell
	for _, c := range cells {
		if !c.Excluded && c.Kernel.Release == release {
			fit = append(fit, c)
		}
	}
	return narrow(fit, file)
}

// narrow keeps the cells whose module's name and version the file's name has,
// or else its name, where there are such.
func narrow(cells []*farm.Cell, file string) []*farm.Cell {
	plain := strings.NewReplacer("_", "-", "+", "-", "~", "-").Replace
	for _, has := range []func(*farm.Cell) bool{
		func(c *farm.Cell) bool {
			return strings.Contains(plain(file), plain(c.Module.Name)) && strings.Contains(file, c.Module.Version)
		},
		func(c *farm.Cell) bool { return strings.Contains(plain(file), plain(c.Module.Name)) },
	} {
		var some []*farm.Cell
		for _, c := range cells {
			if has(c) {
				some = append(some, c)
			}
		}
		if len(some) > 0 {
			return some
		}
	}
	return cells
}

// cellsByFile tells by a results.json what each package is made of.
func cellsByFile(dist string, cells []*farm.Cell) (map[string][]*farm.Cell, error) {
	of := map[string][]*farm.Cell{}
	if dist == "" {
		return of, nil
	}
	report, err := farm.ReadReport(filepath.Join(dist, farm.ResultsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return of, nil
	}
	if err != nil {
		return nil, err
	}
	byKey := map[string]*farm.Cell{}
	for _, c := range cells {
		byKey[c.Key] = c
	}
	for _, row := range report.Cells {
		if c := byKey[row.Key]; c != nil && row.Key != "" && row.Outcome == farm.Built {
			for _, f := range row.Files {
				of[filepath.Base(f)] = append(of[filepath.Base(f)], c)
			}
		}
	}
	return of, nil
}

// judgeFile compares a file with what a rebuild has made.
func (v *Verifier) judgeFile(r *FileVerdict, b *Rebuilt) error {
	f := r.file
	if f.why != "" {
		return nil
	}
	var err error
	if r.SHA256, err = fileSum(f.path); err != nil {
		r.seen = true
		r.worse(Cannot, err.Error())
		return nil
	}
	if f.recorded != "" && f.recorded != r.SHA256 {
		r.Reason = "it is not the file that " + farm.ResultsFile + " names"
	}
	name := b.packageOf(f)
	switch {
	case name != "":
		r.seen = true
		return v.judgePackage(r, filepath.Join(b.Dist, name))
	case !f.given():
		r.seen = true
		r.worse(Cannot, strings.Join(append([]string{"building again made no such package"}, b.Report.Refused...), ": "))
	case len(f.modules) == 0:
		r.worse(Cannot, "there are no modules in it, and no "+farm.ResultsFile+" tells what it is made of")
	default:
		return v.judgeModules(r, b)
	}
	return nil
}

// packageOf finds the rebuilt package of a file's name; "" for none, and for
// loose modules.
func (b *Rebuilt) packageOf(f *file) string {
	for _, made := range b.Report.Files {
		if made.Path == f.name || f.given() && filepath.Base(made.Path) == filepath.Base(f.path) {
			return made.Path
		}
	}
	return ""
}

// judgePackage compares a package as a whole: its bytes, or else its bytes
// without signatures.
func (v *Verifier) judgePackage(r *FileVerdict, rebuilt string) error {
	var err error
	if r.Rebuilt, err = fileSum(rebuilt); err != nil {
		return err
	}
	if r.Rebuilt == r.SHA256 {
		return nil
	}
	now, err := unsignedSum(rebuilt)
	if err != nil {
		return err
	}
	was, err := unsignedSum(r.file.path)
	if err != nil {
		r.worse(Differs, "it cannot be read: "+err.Error())
		return nil
	}
	if was == now {
		r.Signed = true
		return nil
	}
	if r.Verdict == Differs { // on another runtime, too
		return nil
	}
	r.worse(Differs, r.Reason)
	if r.Differences, err = explainPackage(r.file.path, rebuilt); err != nil {
		r.worse(Differs, "it cannot be compared: "+err.Error())
		return nil
	}
	r.Kept, err = v.keepPackage(r.file.path, rebuilt)
	return err
}

func (v *Verifier) keepPackage(was, now string) (string, error) {
	a, err := os.ReadFile(was)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(now)
	if err != nil {
		return "", err
	}
	return v.keep("packages", filepath.Base(was), a, b)
}

// judgeModules compares the modules in a file that the farm does not make, or
// makes under another name.
func (v *Verifier) judgeModules(r *FileVerdict, b *Rebuilt) error {
	made := b.cells()
	for _, m := range r.file.modules {
		var sums []string
		var why []string
		for _, c := range r.file.cells {
			if reason := failure(made[c.Key]); reason != "" {
				why = append(why, reason)
				continue
			}
			if sum := files(made[c.Key])[m.name]; sum != "" {
				sums = append(sums, sum)
			}
		}
		switch {
		case slices.Contains(sums, hashOf(m.data)):
			r.seen = true
		case len(sums) == 0:
			r.seen = true
			r.worse(Cannot, strings.Join(append([]string{fmt.Sprintf("no cell of the farm file makes %s for its kernel", m.name)}, why...), "; "))
		default:
			r.seen = true
			if err := v.differentModule(r, m, sums[0], b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Verifier) differentModule(r *FileVerdict, m module, sum string, b *Rebuilt) error {
	if r.Verdict == Differs {
		return nil
	}
	r.worse(Differs, r.Reason)
	now, err := blob(b.Store, sum)
	if err != nil {
		return err
	}
	for _, d := range explain(m.data, now) {
		d.Member = m.at
		r.Differences = append(r.Differences, d)
	}
	if kind, err := resign.KindOf(r.Path); err == nil && kind == resign.Module {
		r.Rebuilt = sum
	}
	r.Kept, err = v.keep("files", filepath.Base(r.Path)+"-"+m.name, m.data, now)
	return err
}

// Limits on diffoscope, which can take long.
const (
	maxDiffoscope  = 4 // reports
	diffoscopeTime = 3 * time.Minute
)

// diffoscope lets diffoscope report on what differs, where it is installed.
func (v *Verifier) diffoscope(ctx context.Context, r *Report) {
	tool, err := exec.LookPath("diffoscope")
	if err != nil {
		return
	}
	left := maxDiffoscope
	one := func(f *FileVerdict) {
		if f.Kept == "" || left == 0 {
			return
		}
		left--
		out := f.Kept + ".diffoscope.txt"
		ctx, cancel := context.WithTimeout(ctx, diffoscopeTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, tool, "--text", out, "--", f.Kept+wasSuffix, f.Kept+nowSuffix)
		said, err := cmd.CombinedOutput()
		if _, serr := os.Stat(out); serr != nil { // status 1 says that they differ
			v.Log.Warn("diffoscope has made no report", "file", f.Path, "err", err, "said", string(said))
			return
		}
		f.Diffoscope = out
	}
	for i := range r.Cells {
		for j := range r.Cells[i].Files {
			one(&r.Cells[i].Files[j])
		}
	}
	for i := range r.Files {
		one(&r.Files[i])
	}
}
