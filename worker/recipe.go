package worker

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Recipe is the script that builds a module inside the container, installed
// there at [RecipePath]. Its bytes are part of every cell's key.
//
//go:embed recipe.sh
var Recipe []byte

// RecipePath is where an image holds the recipe.
const RecipePath = "/usr/lib/kofarm/build"

// Build names what the recipe shall build.
type Build struct {
	Module, Version string
	Kernel          string // kernel release
	Arch            string // DKMS's name: x86_64, aarch64
	Jobs            int    // make -j
	Install         string // command that installs user-space files below $DESTDIR; "": none
	MakeArgs        []string
}

// Command gives the command line of the recipe.
func (b Build) Command() []string {
	args := []string{"/bin/bash", RecipePath, b.Module, b.Version, b.Kernel, b.Arch, strconv.Itoa(max(b.Jobs, 1)), b.Install}
	return append(args, b.MakeArgs...)
}

// jobsArg is where [Build.Command] has the number of jobs.
const jobsArg = 6

// WithJobs gives a command line of the recipe with another number of jobs. Any
// other command line stays as it is.
func WithJobs(args []string, jobs int) []string {
	if len(args) <= jobsArg || args[1] != RecipePath {
		return args
	}
	args = slices.Clone(args)
	args[jobsArg] = strconv.Itoa(max(jobs, 1))
	return args
}

// Env is the whole environment of a build.
func Env() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TZ=UTC",
	}
}

// The outcomes that a recipe reports.
const (
	Built    = "built"
	Excluded = "excluded" // a BUILD_EXCLUSIVE directive does not match
	Failed   = "failed"
)

// Report is the recipe's own account of a build, result.json in its output.
type Report struct {
	Version int    `json:"version"` // 1
	Outcome string `json:"outcome"` // Built, Excluded or Failed
	// Phase is where a build failed: conf, exclusion, headers, toolchain,
	// depends, copy, patch, pre_build, make, modules, strip, post_build or install.
	Phase string `json:"phase"`
	// DKMSExit is the exit status that `dkms build` gives for this fault.
	DKMSExit int    `json:"dkmsExit"`
	Message  string `json:"message"`
	Compiler string `json:"compiler"` // first line of its --version
	// Unsteady says why DKMS, where it installs what was built, may take dkms.conf
	// to name other modules; "" if it names these.
	Unsteady string `json:"unsteady"`
	// DiskFull tells that a failed build has left a scratch file system full,
	// which not every backend can see.
	DiskFull bool           `json:"diskFull"`
	Modules  []ReportModule `json:"modules"`
}

// ReportModule is one module as dkms.conf names it.
type ReportModule struct {
	Name     string `json:"name"`     // DEST_MODULE_NAME, without .ko
	Location string `json:"location"` // DEST_MODULE_LOCATION
}

// Output is what a build's standard output held. The files' data stays where it
// is: it is read out of that.
type Output struct {
	Report  Report
	Modules []File            // in the report's order
	Symvers *io.SectionReader // Module.symvers, nil if there was none
	// Installed are the user-space files, sorted by name.
	Installed []Installed
	// Tree is what the build has left for modules that are built upon it, below
	// DKMS's folder of the build, sorted by name.
	Tree []Installed
}

// Installed is a file, folder or symbolic link for user space, or of a tree.
type Installed struct {
	Name string            // clean, relative to the target's root, or the tree's
	Mode fs.FileMode       // its type, and whether a file is executable
	Link string            // of a symbolic link
	Data *io.SectionReader // of a file
}

// File is one module of an output.
type File struct {
	Name string // with .ko
	Data *io.SectionReader
}

// Limits on an output, beside Limits.Output.
const (
	maxReport      = 4 << 20
	maxOutputFiles = 4096 + 2
	maxInstalled   = 100_000
)

// reportFile is the recipe's report in the output.
const reportFile = "result.json"

// Where the output has user-space files, and what is for other modules.
const (
	installedPrefix = "files"
	treePrefix      = "tree"
)

// ReadOutput reads the tar that the recipe has written, of size bytes. It takes
// nothing on trust: it must be one archive whose entries are regular files with
// the names that the report announces, each once.
func ReadOutput(r io.ReaderAt, size int64) (Output, error) {
	var out Output
	files := map[string]*io.SectionReader{}
	whole := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(whole)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return out, fmt.Errorf("reading the build's output: %w", err)
		}
		data, err := section(h, whole)
		switch {
		case err != nil:
		case inside(h.Name, installedPrefix):
			err = install(&out.Installed, installedPrefix, h, data)
		case inside(h.Name, treePrefix):
			err = install(&out.Tree, treePrefix, h, data)
		default:
			err = addEntry(files, h, data)
		}
		if err != nil {
			return out, fmt.Errorf("the build's output: %q: %w", h.Name, err)
		}
	}
	if err := onlyZeros(whole); err != nil {
		return out, fmt.Errorf("the build's output: %w", err)
	}
	return assemble(files, out)
}

// section gives an entry's data in the archive whose header was just read.
func section(h *tar.Header, archive *io.SectionReader) (*io.SectionReader, error) {
	if len(h.PAXRecords) > 0 {
		return nil, errors.New("an extended header, of a sparse file perhaps; the recipe writes none")
	}
	at, err := archive.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	if h.Typeflag == tar.TypeReg && h.Size > archive.Size()-at {
		return nil, io.ErrUnexpectedEOF
	}
	return io.NewSectionReader(archive, at, h.Size), nil
}

// onlyZeros reads the rest of an archive, which fills its last record. More
// would be an archive behind the one that was read.
func onlyZeros(r io.Reader) error {
	block := make([]byte, 512)
	for {
		n, err := r.Read(block)
		if bytes.ContainsFunc(block[:n], func(c rune) bool { return c != 0 }) {
			return errors.New("the archive has something after its end")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func inside(name, prefix string) bool {
	return name == prefix || strings.HasPrefix(name, prefix+"/")
}

// install takes a file of a tree. Owners, times, and all of the mode but whether
// a file is executable are dropped.
func install(to *[]Installed, prefix string, h *tar.Header, data *io.SectionReader) error {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, prefix), "/")
	f := Installed{Name: strings.TrimPrefix(name, "/")}
	if f.Name == "" {
		return nil
	}
	switch {
	case len(*to) >= maxInstalled:
		return fmt.Errorf("more than %d files to install", maxInstalled)
	case !fs.ValidPath(f.Name) || strings.ContainsAny(f.Name, "\n\x00\\"):
		return errors.New("not a plain path")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		f.Mode = fs.ModeDir | 0o755
	case tar.TypeSymlink:
		f.Mode, f.Link = fs.ModeSymlink|0o777, h.Linkname
	case tar.TypeReg:
		f.Mode = 0o644
		if h.Mode&0o111 != 0 {
			f.Mode = 0o755
		}
		f.Data = data
	default:
		return fmt.Errorf("neither a file, a folder nor a symbolic link (tar type %q)", h.Typeflag)
	}
	*to = append(*to, f)
	return nil
}

func addEntry(files map[string]*io.SectionReader, h *tar.Header, data *io.SectionReader) error {
	switch {
	case h.Typeflag != tar.TypeReg:
		return fmt.Errorf("not a regular file (tar type %q)", h.Typeflag)
	case len(files) >= maxOutputFiles:
		return fmt.Errorf("more than %d files", maxOutputFiles)
	case files[h.Name] != nil:
		return errors.New("is there twice")
	case h.Name == reportFile && h.Size > maxReport:
		return fmt.Errorf("%d bytes", h.Size)
	}
	files[h.Name] = data
	return nil
}

func assemble(files map[string]*io.SectionReader, out Output) (Output, error) {
	for _, tree := range [][]Installed{out.Installed, out.Tree} {
		slices.SortFunc(tree, func(a, b Installed) int { return strings.Compare(a.Name, b.Name) })
		for i := range tree[min(1, len(tree)):] {
			if tree[i].Name == tree[i+1].Name {
				return out, fmt.Errorf("the build's output installs %q twice", tree[i].Name)
			}
		}
	}
	report, ok := files[reportFile]
	if !ok {
		return out, errors.New("the build's output has no " + reportFile)
	}
	data, err := io.ReadAll(report)
	if err != nil {
		return out, fmt.Errorf("reading the build's output: %w", err)
	}
	if err := json.Unmarshal(data, &out.Report); err != nil {
		return out, fmt.Errorf("the build's %s: %w", reportFile, err)
	}
	if err := out.Report.check(); err != nil {
		return out, fmt.Errorf("the build's %s: %w", reportFile, err)
	}
	delete(files, reportFile)
	out.Symvers = files["module/Module.symvers"]
	delete(files, "module/Module.symvers")
	if out.Report.Outcome == Built {
		for _, m := range out.Report.Modules {
			name := "module/" + m.Name + ".ko"
			data, ok := files[name]
			if !ok {
				return out, fmt.Errorf("the build's output lacks %s", name)
			}
			out.Modules = append(out.Modules, File{Name: m.Name + ".ko", Data: data})
			delete(files, name)
		}
	}
	if len(files) > 0 {
		return out, fmt.Errorf("the build's output holds %q, which its report does not name", slices.Min(slices.Collect(maps.Keys(files))))
	}
	return out, nil
}

// CheckModuleName says whether a module's name, without .ko, can be a file's.
func CheckModuleName(name string) error {
	if name == "" || name != path.Base(name) || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "\\\n\x00") {
		return fmt.Errorf("%q is no module name", name)
	}
	return nil
}

func (r Report) check() error {
	if r.Version != 1 {
		return fmt.Errorf("version %d is not known", r.Version)
	}
	switch r.Outcome {
	case Built, Excluded, Failed:
	default:
		return fmt.Errorf("outcome %q is not known", r.Outcome)
	}
	seen := map[string]bool{}
	for _, m := range r.Modules {
		if r.Outcome != Built {
			break
		}
		if err := CheckModuleName(m.Name); err != nil {
			return err
		}
		if seen[m.Name] {
			return fmt.Errorf("module %q is there twice", m.Name)
		}
		seen[m.Name] = true
	}
	return nil
}
