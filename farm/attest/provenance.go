package attest

import (
	"encoding/json"
	"fmt"
	"regexp"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// Provenance is what a statement says.
type Provenance struct {
	Subjects     []File       `json:"subjects"`
	Builder      Builder      `json:"builder"`
	Parameters   Parameters   `json:"parameters"`
	LayerFormat  int          `json:"layerFormat"`
	Dependencies []Dependency `json:"dependencies"`
	Byproducts   []File       `json:"byproducts"`
	Tests        []TestResult `json:"tests,omitzero"`
}

// Dependency is one input.
type Dependency struct {
	Name    string   `json:"name"`
	URI     string   `json:"uri,omitzero"` // a package URL
	URL     string   `json:"url,omitzero"` // where it was fetched from, if the farm file says so
	SHA256  string   `json:"sha256"`
	Role    Role     `json:"role"`
	Path    string   `json:"path,omitzero"`    // in the archive
	Size    int64    `json:"size,omitzero"`    // bytes
	Kernels []string `json:"kernels,omitzero"` // that it is for; none: for all of the artifact's
}

// Parse reads a statement that kofarm has made. Its error is [ErrMalformed]. It
// says nothing about who made the statement: see [Open].
func Parse(statement []byte) (*Provenance, error) {
	p, err := parse(statement)
	if err != nil {
		return nil, fmt.Errorf("%w statement: %w", ErrMalformed, err)
	}
	return p, nil
}

func parse(data []byte) (*Provenance, error) {
	if err := checkJSON(data, maxStatement); err != nil {
		return nil, err
	}
	s := &intoto.Statement{}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 4 * maxDepth} // in-toto: unknown fields are ignored
	if err := lenient.Unmarshal(data, s); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.PredicateType != predicateType || s.Type != intoto.StatementTypeUri {
		return nil, fmt.Errorf("it is a %.64q with a predicate %.64q, want %s and %s", s.Type, s.PredicateType, intoto.StatementTypeUri, predicateType)
	}
	predicate := &slsa.Provenance{}
	if err := convert(s.Predicate, predicate); err != nil {
		return nil, fmt.Errorf("predicate: %w", err)
	}
	if err := predicate.Validate(); err != nil {
		return nil, fmt.Errorf("predicate: %w", err)
	}
	p, err := read(predicate)
	if err != nil {
		return nil, fmt.Errorf("predicate: %w", err)
	}
	p.Subjects, err = files(s.Subject)
	return p, err
}

func read(predicate *slsa.Provenance) (*Provenance, error) {
	def, run := predicate.BuildDefinition, predicate.RunDetails
	if def.BuildType != BuildType {
		return nil, fmt.Errorf("buildType %.96q, this kofarm knows %s", def.BuildType, BuildType)
	}
	p := &Provenance{Builder: Builder{ID: run.Builder.Id, Version: run.Builder.Version["kofarm"]}}
	external, err := protojson.Marshal(def.ExternalParameters)
	if err == nil {
		err = json.Unmarshal(external, &p.Parameters)
	}
	if err == nil {
		err = p.Parameters.check()
	}
	if err != nil {
		return nil, fmt.Errorf("externalParameters: %w", err)
	}
	internal := struct {
		LayerFormat int `json:"layerFormat"`
	}{}
	data, err := protojson.Marshal(def.InternalParameters)
	if err == nil {
		err = json.Unmarshal(data, &internal)
	}
	if err != nil {
		return nil, fmt.Errorf("internalParameters: %w", err)
	}
	p.LayerFormat = internal.LayerFormat
	for i, d := range def.ResolvedDependencies {
		dep, err := dependency(d)
		if err != nil {
			return nil, fmt.Errorf("resolvedDependencies[%d]: %w", i, err)
		}
		p.Dependencies = append(p.Dependencies, dep)
	}
	if p.Byproducts, err = files(run.Byproducts); err != nil {
		return nil, fmt.Errorf("byproducts: %w", err)
	}
	p.Tests, err = testResults(run.Byproducts)
	return p, err
}

// testResults reads the byproducts that are verdicts.
func testResults(byproducts []*intoto.ResourceDescriptor) ([]TestResult, error) {
	var all []TestResult
	for i, d := range byproducts {
		if d.MediaType != testResultType {
			continue
		}
		var r TestResult
		if err := json.Unmarshal(d.Content, &r); err != nil {
			return nil, fmt.Errorf("byproducts[%d]: %w", i, err)
		}
		if r.Verdict == "" || r.Kernel == "" || r.Arch == "" || !sha256Hex.MatchString(r.Cell) {
			return nil, fmt.Errorf("byproducts[%d]: want verdict, kernel, arch and cell (a sha256 in hex), there are %.64q, %.64q, %.64q and %.70q", i, r.Verdict, r.Kernel, r.Arch, r.Cell)
		}
		all = append(all, r)
	}
	return all, nil
}

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (p *Parameters) check() error {
	if p.Module == "" || p.Version == "" || p.Package == "" || len(p.Cells) == 0 {
		return fmt.Errorf("module, version, package and cells are needed, there are %.64q, %.64q, %.64q and %d", p.Module, p.Version, p.Package, len(p.Cells))
	}
	for i, c := range p.Cells {
		if c.Kernel == "" || c.Arch == "" || !sha256Hex.MatchString(c.Key) {
			return fmt.Errorf("cells[%d]: want kernel, arch and key (a sha256 in hex), there are %.64q, %.64q and %.70q", i, c.Kernel, c.Arch, c.Key)
		}
	}
	return nil
}

func dependency(d *intoto.ResourceDescriptor) (Dependency, error) {
	sum := d.Digest["sha256"]
	if !sha256Hex.MatchString(sum) {
		return Dependency{}, fmt.Errorf("%.64q has the sha256 %.70q", d.Name, sum)
	}
	dep := Dependency{Name: d.Name, URI: d.Uri, URL: d.DownloadLocation, SHA256: sum}
	if d.Annotations == nil {
		return dep, nil
	}
	data, err := protojson.Marshal(d.Annotations)
	if err != nil {
		return dep, err
	}
	notes := struct {
		Role    Role     `json:"role"`
		Path    string   `json:"path"`
		Size    int64    `json:"size"`
		Kernels []string `json:"kernels"`
	}{}
	err = json.Unmarshal(data, &notes)
	dep.Role, dep.Path, dep.Size, dep.Kernels = notes.Role, notes.Path, notes.Size, notes.Kernels
	return dep, err
}

func files(list []*intoto.ResourceDescriptor) ([]File, error) {
	all := []File{}
	for _, d := range list {
		f := File{d.Name, d.Digest["sha256"]}
		if f.Name == "" || !sha256Hex.MatchString(f.SHA256) {
			return nil, fmt.Errorf("a file %.64q with the sha256 %.70q", f.Name, f.SHA256)
		}
		all = append(all, f)
	}
	return all, nil
}

// Subject checks that the statement is about a file with this sha256 in hex. Its
// name does not matter: who downloads a file may call it anything. The error is
// [ErrRefused].
func (p *Provenance) Subject(sum string) (File, error) {
	for _, f := range p.Subjects {
		if f.SHA256 == sum {
			return f, nil
		}
	}
	return File{}, fmt.Errorf("%w: the file has the sha256 %s, the statement is about %s (%s): it was changed, or is another one",
		ErrRefused, sum, p.Subjects[0].Name, p.Subjects[0].SHA256)
}

// SBOM is the SPDX document that was written with the artifact; false where the
// statement names none.
func (p *Provenance) SBOM() (File, bool) {
	for _, f := range p.Byproducts {
		if len(f.Name) > len(SBOMSuffix) && f.Name[len(f.Name)-len(SBOMSuffix):] == SBOMSuffix {
			return f, true
		}
	}
	return File{}, false
}

// Of counts the dependencies of a role.
func (p *Provenance) Of(role Role) []Dependency {
	var all []Dependency
	for _, d := range p.Dependencies {
		if d.Role == role {
			all = append(all, d)
		}
	}
	return all
}
