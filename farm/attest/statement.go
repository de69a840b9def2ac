package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// predicateType is SLSA's (https://slsa.dev/spec/v1.0/provenance).
const predicateType = "https://slsa.dev/provenance/v1"

// Parameters are a statement's externalParameters: what the farm file asks for.
type Parameters struct {
	Module   string           `json:"module"`
	Version  string           `json:"version"`
	Package  string           `json:"package"` // kind of package
	Options  map[string]any   `json:"options,omitzero"`
	License  string           `json:"license,omitzero"`
	MakeArgs []string         `json:"makeArgs,omitzero"`
	Install  string           `json:"install,omitzero"`
	Epoch    int64            `json:"sourceDateEpoch"` // seconds since 1970
	Cells    []CellParameters `json:"cells"`
}

// CellParameters name a cell.
type CellParameters struct {
	Kernel       string `json:"kernel"`
	Arch         string `json:"arch"`
	Distribution string `json:"distribution,omitzero"`
	Suite        string `json:"suite,omitzero"`
	Key          string `json:"key"`
}

func (a *Artifact) parameters() Parameters {
	p := Parameters{Module: a.Module, Version: a.Version, Package: a.Kind, Options: a.Options, License: a.License,
		MakeArgs: a.MakeArgs, Install: a.Install, Epoch: a.Epoch.Unix(), Cells: []CellParameters{}}
	for _, c := range a.Cells {
		p.Cells = append(p.Cells, CellParameters{c.Kernel, c.Arch, c.Distribution, c.Suite, c.Key})
	}
	return p
}

// Statement makes the statement about the artifact's files, in one line of JSON.
// What is made along with them, as an SBOM, may be among the byproducts.
func (a *Artifact) Statement(b Builder, byproducts ...File) ([]byte, error) {
	p, err := a.provenance(b, byproducts)
	if err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	predicate := &structpb.Struct{}
	if err := convert(p, predicate); err != nil {
		return nil, fmt.Errorf("provenance: %w", err)
	}
	s := &intoto.Statement{Type: intoto.StatementTypeUri, PredicateType: predicateType, Predicate: predicate}
	for _, f := range a.Files {
		s.Subject = append(s.Subject, descriptor(f))
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	data, err := protojson.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return canonical(data)
}

func descriptor(f File) *intoto.ResourceDescriptor {
	return &intoto.ResourceDescriptor{Name: f.Name, Digest: map[string]string{"sha256": f.SHA256}}
}

// TestResult is a verdict on a cell's modules: what the byproduct of a statement
// holds as JSON.
type TestResult struct {
	Cell    string `json:"cell"` // its key
	Kernel  string `json:"kernel"`
	Arch    string `json:"arch"`
	Verdict string `json:"verdict"`         // loaded, refused, failed, rejected, crashed or hung
	Signed  bool   `json:"signed,omitzero"` // the modules were, and the kernel loads no others
}

const testResultType = "application/vnd.kofarm.test-result.v1+json"

// testResults describes the verdicts on the artifact's modules.
func (a *Artifact) testResults() ([]*intoto.ResourceDescriptor, error) {
	var all []*intoto.ResourceDescriptor
	for _, c := range a.Cells {
		if !a.Built || c.Test == nil {
			continue
		}
		data, err := json.Marshal(TestResult{c.Key, c.Kernel, c.Arch, c.Test.Verdict, c.Test.Signed})
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		d := descriptor(File{fmt.Sprintf("test of %s (%s)", c.Kernel, c.Arch), hex.EncodeToString(sum[:])})
		d.MediaType, d.Content = testResultType, data
		all = append(all, d)
	}
	return all, nil
}

func (a *Artifact) provenance(b Builder, byproducts []File) (*slsa.Provenance, error) {
	external, err := toStruct(a.parameters())
	if err != nil {
		return nil, err
	}
	internal, err := toStruct(map[string]any{"layerFormat": a.LayerFormat})
	if err != nil {
		return nil, err
	}
	dependencies, err := a.dependencies()
	if err != nil {
		return nil, err
	}
	p := &slsa.Provenance{
		BuildDefinition: &slsa.BuildDefinition{BuildType: BuildType, ExternalParameters: external, InternalParameters: internal,
			ResolvedDependencies: dependencies},
		RunDetails: &slsa.RunDetails{
			Builder:  &slsa.Builder{Id: b.ID, Version: map[string]string{"kofarm": b.Version}},
			Metadata: &slsa.BuildMetadata{InvocationId: a.invocation()},
		},
	}
	for _, f := range byproducts {
		p.RunDetails.Byproducts = append(p.RunDetails.Byproducts, descriptor(f))
	}
	tests, err := a.testResults()
	p.RunDetails.Byproducts = append(p.RunDetails.Byproducts, tests...)
	return p, err
}

// invocation is the key of the cell, or the hash of those of several.
func (a *Artifact) invocation() string {
	keys := make([]string, len(a.Cells))
	for i, c := range a.Cells {
		keys[i] = c.Key
	}
	if len(keys) == 1 {
		return keys[0]
	}
	sum := sha256.Sum256([]byte(strings.Join(keys, "\n")))
	return hex.EncodeToString(sum[:])
}

// dependencies are the source, the recipe, and the packages.
func (a *Artifact) dependencies() ([]*intoto.ResourceDescriptor, error) {
	all := []*intoto.ResourceDescriptor{{Name: a.Module, Uri: a.sourceURI(), DownloadLocation: a.Source.URL, Digest: map[string]string{"sha256": a.Source.SHA256}}}
	notes := []map[string]any{{"role": string(RoleSource)}}
	if p := a.Source.Package; p != nil {
		notes[0]["path"], notes[0]["size"] = p.Path, p.Size
	}
	if a.Built {
		all = append(all, descriptor(File{string(RoleRecipe), a.Recipe}))
		notes = append(notes, map[string]any{"role": string(RoleRecipe)})
	}
	for _, in := range a.inputs() {
		all = append(all, &intoto.ResourceDescriptor{Name: in.Name, Uri: in.uri(), Digest: map[string]string{"sha256": in.SHA256}})
		notes = append(notes, in.annotations())
	}
	for i, d := range all {
		var err error
		if d.Annotations, err = toStruct(notes[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (in *input) annotations() map[string]any {
	notes := map[string]any{"role": string(in.role)}
	if in.Path != "" {
		notes["path"], notes["size"] = in.Path, in.Size
	}
	if in.kernels != nil {
		notes["kernels"] = in.kernels
	}
	return notes
}

// toStruct makes a protobuf Struct of what JSON holds.
func toStruct(v any) (*structpb.Struct, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	return s, protojson.Unmarshal(data, s)
}

// convert turns one message into another by way of JSON.
func convert(from, to proto.Message) error {
	data, err := protojson.Marshal(from)
	if err != nil {
		return err
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, to)
}

// canonical writes JSON anew, in one line: protojson varies its blanks on
// purpose.
func canonical(data []byte) ([]byte, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v) // sorts the keys
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
