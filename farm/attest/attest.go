// Package attest says of a file what it was made from, so that others can check
// it: an in-toto statement with SLSA provenance, in a DSSE envelope where there
// is a key, and an SPDX document (SBOM). It reads such statements, too.
//
// Both depend on nothing but their inputs: no clock, no host, no mirror. With a
// key that is in a file the same inputs give the same bytes.
//
// BUILDTYPE.md defines the parameters of a statement.
package attest

import (
	"errors"
	"fmt"
	"time"

	packageurl "github.com/package-url/packageurl-go"
)

// Suffixes of the files beside an artifact.
const (
	SignedSuffix   = ".intoto.jsonl" // a DSSE envelope in one line, as in-toto's bundles have them
	UnsignedSuffix = ".intoto.json"  // the bare statement
	SBOMSuffix     = ".spdx.json"
)

// Media types of the files' content.
const (
	EnvelopeType  = "application/vnd.dsse.envelope.v1+json"
	StatementType = "application/vnd.in-toto+json"
	SBOMType      = "application/spdx+json"
)

// BuildType names what the parameters of a statement mean.
const BuildType = "https://github.com/kofarm/kofarm/blob/main/farm/attest/BUILDTYPE.md#v1"

// DefaultBuilder is the builder of a farm that does not say who it is: any
// kofarm that anyone runs.
const DefaultBuilder = "https://github.com/kofarm/kofarm/builder"

// Errors that a caller may branch on.
var (
	// ErrMalformed marks what is no statement or envelope.
	ErrMalformed = errors.New("malformed")
	// ErrRefused marks a well-formed statement that is not of this file, of this
	// key or of this builder.
	ErrRefused = errors.New("refused")
)

// Builder says who builds.
type Builder struct {
	ID      string // a URI
	Version string // of kofarm
}

// File is a file by name and content.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex
}

// Artifact is what is attested: one or more files that were made together.
type Artifact struct {
	Files   []File
	Kind    string // of package, as "dkms binaries-only", "deb modules" or "result"
	Module  string
	Version string

	// What the farm file says.
	License  string         // an SPDX expression; "" for what the modules say
	MakeArgs []string       // appended to the make command
	Install  string         // the command that installs user-space files
	Options  map[string]any // of the kind of package: what JSON holds

	Epoch       time.Time // of the source, or SOURCE_DATE_EPOCH: dates the SBOM
	Source      Source
	Recipe      string // sha256 in hex of the program that runs the build
	LayerFormat int    // of the images that the builds run in

	Cells []Cell
	// Built says that the artifact holds what compilers have made; else it is made
	// of the source alone, and the cells' packages are not among its inputs.
	Built       bool
	HoldsSource bool     // the module's source is in it
	Modules     []Module // that are in it; for the SBOM
}

// Name is the file's, or where there are several the module's with its kernel.
func (a *Artifact) Name() string {
	if len(a.Files) == 1 {
		return a.Files[0].Name
	}
	name := a.Module + "-" + a.Version
	if len(a.Cells) == 1 {
		name += "-" + a.Cells[0].Kernel + "-" + a.Cells[0].Arch
	}
	return name
}

// Cell is one build.
type Cell struct {
	Kernel       string // release
	Arch         string
	Distribution string
	Suite        string
	Key          string // sha256 in hex of all that its result depends on

	Toolchain, Headers, Extra []Package
	Custom                    []string // sha256 in hex of the headers of a kernel of one's own

	Upon []Package `json:",omitzero"` // modules that it is built upon: name and version of theirs, and a file's SHA256

	Test *Test `json:",omitzero"` // nil: its modules were not tested
}

// Test is what became of a cell's modules in their kernel.
type Test struct {
	Verdict string
	Signed  bool      // the modules were, and the kernel loads no others
	Kernel  []Package // what was booted
}

// Package is one package of a distribution.
type Package struct {
	Name, Version, Arch string
	SHA256              string // in hex, of the file
	Distribution, Suite string
	Path                string // in the archive
	Size                int64  // bytes
}

// purl names the package (https://github.com/package-url/purl-spec, type deb).
func (p Package) purl() string {
	q := packageurl.QualifiersFromMap(map[string]string{"arch": p.Arch, "distro": p.Suite})
	return packageurl.NewPackageURL(packageurl.TypeDebian, p.Distribution, p.Name, p.Version, q, "").ToString()
}

// Source is a module's source. Package and URL are set where it comes from an
// archive or from the net.
type Source struct {
	SHA256  string // in hex: of the file, or of a folder's canonical tar
	Package *Package
	URL     string
}

// sourceURI names the source: a package URL.
func (a *Artifact) sourceURI() string {
	if a.Source.Package != nil {
		return a.Source.Package.purl()
	}
	q := map[string]string{"checksum": "sha256:" + a.Source.SHA256}
	if a.Source.URL != "" {
		q["download_url"] = a.Source.URL
	}
	return packageurl.NewPackageURL(packageurl.TypeGeneric, "", a.Module, a.Version, packageurl.QualifiersFromMap(q), "").ToString()
}

// Module is a kernel module in an artifact, before it is compressed there.
type Module struct {
	Name         string // file name, with .ko
	Kernel, Arch string
	SHA1, SHA256 string // in hex
	License      string // its MODULE_LICENSE; "" where it has none
	SPDX         string // the expression for it, "" for none
}

// Role says what an input is for.
type Role string

// The roles.
const (
	RoleSource    Role = "source"
	RoleRecipe    Role = "recipe"
	RoleToolchain Role = "toolchain"
	RoleHeaders   Role = "headers"
	RoleExtra     Role = "extra"  // what the module's build needs beyond the toolchain
	RoleUpon      Role = "upon"   // modules that were built before it
	RoleKernel    Role = "kernel" // what was booted to test the modules
)

// input is a package and what it is for. kernels are the releases that it is
// for, where it is not for all of the artifact's.
type input struct {
	Package
	role    Role
	kernels []string
}

// inputs are the packages of all cells, each once, in the order of the cells.
func (a *Artifact) inputs() []*input {
	if !a.Built {
		return nil
	}
	type identity struct {
		role Role
		sum  string
	}
	seen := map[identity]*input{}
	var all []*input
	for _, c := range a.Cells {
		for _, list := range []struct {
			role     Role
			packages []Package
		}{{RoleToolchain, c.Toolchain}, {RoleHeaders, c.Headers}, {RoleHeaders, c.custom()}, {RoleExtra, c.Extra}, {RoleUpon, c.Upon}, {RoleKernel, c.booted()}} {
			for _, p := range list.packages {
				id := identity{list.role, p.SHA256}
				if seen[id] == nil {
					seen[id] = &input{Package: p, role: list.role}
					all = append(all, seen[id])
				}
				seen[id].kernels = append(seen[id].kernels, c.Kernel)
			}
		}
	}
	for _, in := range all {
		if len(in.kernels) == len(a.Cells) {
			in.kernels = nil
		}
	}
	return all
}

// custom are the headers of a kernel of one's own, which no archive has.
func (c Cell) custom() []Package {
	var all []Package
	for i, sum := range c.Custom {
		all = append(all, Package{Name: fmt.Sprintf("headers-%d", i+1), Version: c.Kernel, SHA256: sum})
	}
	return all
}

// booted are the packages that the cell's test has booted.
func (c Cell) booted() []Package {
	if c.Test == nil {
		return nil
	}
	return c.Test.Kernel
}

// uri names the input.
func (in *input) uri() string {
	if in.Distribution != "" {
		return in.purl()
	}
	q := packageurl.QualifiersFromMap(map[string]string{"checksum": "sha256:" + in.SHA256})
	return packageurl.NewPackageURL(packageurl.TypeGeneric, "", in.Name, in.Version, q, "").ToString()
}
