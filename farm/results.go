package farm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/matrix"
)

// ReportVersion numbers the form of results.json. A field may be added without
// a new number.
const ReportVersion = 1

// Report is results.json: what became of every cell, and what it was made from.
type Report struct {
	Version int    `json:"version"`       // ReportVersion
	Farm    string `json:"farm,omitzero"` // the farm file's name, without its folder
	Counts  Counts `json:"counts"`
	// PackageSets holds the lists of packages that cells name by their digest.
	PackageSets map[string][]PackageRef `json:"packageSets"`
	Cells       []CellReport            `json:"cells"` // in the plan's order
	Files       []File                  `json:"files"` // the packages, in no cell's order but the output's

	Signing *SigningReport `json:"moduleSigning,omitzero"` // of the modules in the packages

	Attestations       []AttestationReport `json:"attestations,omitzero"` // of the packages, in their order
	Checksums          *File               `json:"checksums,omitzero"`
	ChecksumsSignature *File               `json:"checksumsSignature,omitzero"` // by the OpenPGP key

	Warnings []Warning `json:"warnings,omitzero"`
	// Refused says which packages could not be made of what was built, and why.
	Refused []string `json:"refused,omitzero"`

	digests map[**apt.Package]string // of lists, which cells share
}

// Counts counts cells by outcome. Unchecked are among the built.
type Counts struct {
	Built          int `json:"built"`
	Excluded       int `json:"excluded"`
	Failed         int `json:"failed"`
	Infrastructure int `json:"infrastructure"`
	CheckFailed    int `json:"checkFailed"` // built, but not packed
	TestFailed     int `json:"testFailed"`  // built, but not as expected when booted
	NotYet         int `json:"notYet"`      // only where not everything is built: kofarm package, kofarm build --cell
	Cached         int `json:"cached"`      // not built anew in this run
}

// CellReport is one cell.
type CellReport struct {
	matrix.Row
	Key        string         `json:"key,omitzero"` // sha256 in hex
	Outcome    Outcome        `json:"outcome"`
	Phase      string         `json:"phase,omitzero"` // where it failed
	Message    string         `json:"message,omitzero"`
	FirstError string         `json:"firstError,omitzero"` // of the log
	DKMSExit   int            `json:"dkmsExit,omitzero"`   // what `dkms build` would have exited with
	Check      *CheckReport   `json:"check,omitzero"`      // of a built cell
	Test       *Tested        `json:"test,omitzero"`       // of a built cell that fits: in its own kernel
	Compiler   string         `json:"compiler,omitzero"`
	Unsteady   string         `json:"unsteady,omitzero"` // why DKMS may name other modules elsewhere
	Cached     bool           `json:"cached"`
	Seconds    float64        `json:"seconds"`             // of the build, wall clock
	MemoryPeak int64          `json:"memoryPeak,omitzero"` // bytes
	Inputs     *InputReport   `json:"inputs,omitzero"`
	Modules    []ModuleReport `json:"modules,omitzero"`
	Symvers    *Blob          `json:"symvers,omitzero"`
	Installed  *Blob          `json:"installed,omitzero"` // a tar of user-space files
	Tree       *Blob          `json:"tree,omitzero"`      // a tar of what is for modules that are built upon it
	// Files are the packages that hold the modules, and Log is a path. Those of an
	// earlier run stay where this one has no result: infrastructure, not yet.
	Files []string `json:"files,omitzero"`
	Log   string   `json:"log,omitzero"`
}

// ModuleReport is a built module, unsigned.
type ModuleReport struct {
	Module
	Signed *Blob `json:"signed,omitzero"` // the file in the packages, before it is compressed
}

// SigningReport says who has signed the modules.
type SigningReport struct {
	Subject     string `json:"subject"`     // of the certificate
	Fingerprint string `json:"fingerprint"` // sha256 in hex of the certificate (DER)
	Hash        string `json:"hash"`        // of the signatures: its name, or "kernel" for what each kernel asks
	Certificate File   `json:"certificate"`
	HowTo       File   `json:"howTo"` // how to enroll it
}

// Warning is what users of packages have to know.
type Warning struct {
	Text  string   `json:"text"`
	Files []string `json:"files"` // paths
}

// CheckReport is the farm's judgement of a built cell's modules.
type CheckReport struct {
	OK        bool        `json:"ok"`
	Problems  []Problem   `json:"problems,omitzero"`
	Unchecked []kmod.Kind `json:"unchecked,omitzero"` // kinds of problems that were not looked for
}

// InputReport is what a cell was built from.
type InputReport struct {
	Source    string   `json:"source"` // sha256 in hex of the deb, tarball or tree
	Recipe    string   `json:"recipe"` // sha256 in hex
	Toolchain string   `json:"toolchain"`
	Headers   string   `json:"headers,omitzero"`
	Extra     string   `json:"extra,omitzero"` // the last three name package sets
	Custom    []string `json:"customHeaders,omitzero"`
	MakeArgs  []string `json:"makeArgs,omitzero"`
	Upon      []string `json:"upon,omitzero"` // keys of the cells that it is built upon, in the order of builtUpon
}

// PackageRef is one package of a distribution.
type PackageRef struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	SHA256  string `json:"sha256"`
}

func packageRefs(pkgs []*apt.Package) (refs []PackageRef) {
	for _, p := range pkgs {
		refs = append(refs, PackageRef{p.Name, p.Version, p.Arch, p.SHA256})
	}
	return refs
}

// File is one file in the output folder.
type File struct {
	Path string `json:"path"`
	Blob
}

func newReport(results []*Result, packages []Package, files []File, logs []string) *Report {
	r := &Report{Version: ReportVersion, PackageSets: map[string][]PackageRef{}, digests: map[**apt.Package]string{}, Files: files, Cells: []CellReport{}}
	if r.Files == nil {
		r.Files = []File{}
	}
	of := map[*Cell][]string{}
	for i, p := range packages {
		for _, c := range p.Cells {
			of[c] = append(of[c], files[i].Path)
		}
		r.warn(p.Warnings, files[i].Path)
	}
	for i, res := range results {
		cr := r.cell(res)
		cr.Log, cr.Files = logs[i], of[res.Cell]
		r.Cells = append(r.Cells, cr)
		r.Counts.Add(res)
	}
	return r
}

// warn says each warning once, with the files that it is about.
func (r *Report) warn(texts []string, file string) {
	for _, text := range texts {
		i := slices.IndexFunc(r.Warnings, func(w Warning) bool { return w.Text == text })
		if i < 0 {
			i = len(r.Warnings)
			r.Warnings = append(r.Warnings, Warning{Text: text})
		}
		r.Warnings[i].Files = append(r.Warnings[i].Files, file)
	}
}

// Add counts a result.
func (n *Counts) Add(r *Result) {
	switch r.Outcome {
	case Built:
		n.Built++
		switch {
		case !r.Fits():
			n.CheckFailed++
		case r.Test.Wrong():
			n.TestFailed++
		}
	case Excluded:
		n.Excluded++
	case Failed:
		n.Failed++
	case Infrastructure:
		n.Infrastructure++
	case Outcome(NotYet):
		n.NotYet++
	}
	if r.Cached {
		n.Cached++
	}
}

// cell reports on one result.
func (r *Report) cell(res *Result) CellReport {
	cr := CellReport{Row: res.Cell.Row(), Key: res.Cell.Key, Outcome: res.Outcome, Cached: res.Cached}
	if res.Cell.Excluded {
		cr.Phase, cr.Message = "matrix", res.Cell.Why
		return cr
	}
	cr.Inputs = r.inputs(res.Cell)
	if res.Err != nil {
		cr.Phase, cr.Message = string(Infrastructure), res.Err.Error()
	}
	rec := res.Record
	if rec == nil {
		return cr
	}
	cr.Phase, cr.Message, cr.FirstError, cr.DKMSExit = rec.Phase, rec.Message, rec.FirstError, rec.DKMSExit
	cr.Unsteady, cr.Compiler, cr.Seconds, cr.MemoryPeak = rec.Unsteady, rec.Compiler, rec.Seconds, rec.MemoryPeak
	cr.Symvers, cr.Installed, cr.Tree = rec.Symvers, rec.Installed, rec.Tree
	for _, m := range rec.Modules {
		cr.Modules = append(cr.Modules, ModuleReport{Module: m})
	}
	if rec.Outcome == Built {
		cr.Check = &CheckReport{OK: len(rec.Check.Problems) == 0, Problems: rec.Check.Problems, Unchecked: rec.Check.Unchecked}
		cr.Test = res.Test
	}
	return cr
}

func (r *Report) inputs(c *Cell) *InputReport {
	in := &InputReport{Source: c.Inputs.Source.Digest, Recipe: sha256hex(c.Inputs.Program.Data),
		Toolchain: r.packageSet(c.Inputs.Toolchain), Headers: r.packageSet(c.Inputs.Headers),
		Extra: r.packageSet(c.Inputs.Extra), MakeArgs: c.Module.MakeArgs}
	if c.Inputs.Custom != nil {
		in.Custom = c.Inputs.Custom.Digests
	}
	for _, n := range c.Needs {
		in.Upon = append(in.Upon, n.Key)
	}
	return in
}

// packageSet gives a list's digest, and keeps the list under it.
func (r *Report) packageSet(pkgs []*apt.Package) string {
	if len(pkgs) == 0 {
		return ""
	}
	if digest, ok := r.digests[&pkgs[0]]; ok {
		return digest
	}
	digest := digestPackages(pkgs)
	r.PackageSets[digest] = packageRefs(pkgs)
	r.digests[&pkgs[0]] = digest
	return digest
}

// ErrNoReport says that a results.json is not kofarm's, or not of this version.
var ErrNoReport = errors.New("is no report of kofarm's that this version knows")

// ReadReport reads a results.json. The error is ErrNoReport for what only has
// that name: a report has its version, cells, packages and files, be they none.
func ReadReport(path string) (_ *Report, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := io.ReadAll(io.LimitReader(f, maxResults))
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s %w: %w", path, ErrNoReport, err)
	}
	if r.Version != ReportVersion || r.PackageSets == nil || r.Cells == nil || r.Files == nil {
		return nil, fmt.Errorf("%s %w", path, ErrNoReport)
	}
	return &r, nil
}

// files lists every file that the report names but logs.
func (r *Report) files() []File {
	files := slices.Clone(r.Files)
	if r.Signing != nil {
		files = append(files, r.Signing.Certificate, r.Signing.HowTo)
	}
	for _, a := range r.Attestations {
		files = append(files, a.Statement, a.SBOM)
	}
	for _, f := range []*File{r.Checksums, r.ChecksumsSignature} {
		if f != nil {
			files = append(files, *f)
		}
	}
	return files
}

func hashFile(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
