package farm

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/attest"
	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/pack/rpm"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/images/apt"
)

// The kinds of refs to what says where packages and results are from.
const (
	statementRef = "statement" // all that a statement depends on, and the key → the statement or envelope
	sbomRef      = "sbom"      // the same without the key → the SPDX document

	// ReferrerRef is the kind of refs to manifests about a result: the digest of
	// the result's manifest in hex, a hyphen and what it is → the manifest.
	ReferrerRef = "referrer"
)

const (
	maxSBOM = 64 << 20 // bytes
	// attestFormat numbers the form of statements and SPDX documents: raise it
	// when their bytes change.
	attestFormat = 1
)

// emptyType is that of the config of a manifest that has none, {} (OCI
// image-spec v1.1, "Guidance for an Empty Descriptor").
const emptyType types.MediaType = "application/vnd.oci.empty.v1+json"

// Attester makes statements on what packages and results were made from.
type Attester struct {
	Key     *modsign.Key // nil: they are not signed
	Builder attest.Builder
}

// AttestationReport names the files about a package.
type AttestationReport struct {
	Package   string `json:"package"` // path
	Statement File   `json:"statement"`
	Signed    bool   `json:"signed"`
	SBOM      File   `json:"sbom"`
}

// attestation makes the statements of one run.
type attestation struct {
	*Attester
	c       *Collector
	m       *material
	results map[*Cell]*Result
	// modules memoizes what is known of modules, by cell: several packages hold
	// the same ones.
	modules sync.Map

	mu    sync.Mutex
	fault error // of the Sharer, the first one
}

// Sharer gives others what the store has about a cell's result.
type Sharer interface {
	Attach(ctx context.Context, key string) error
}

// share gives others what is said about a result. After a fault nothing more is
// tried: it is not worth a failed run.
func (a *attestation) share(ctx context.Context, key string) {
	if a.c.Sharer == nil || a.faulty(nil) {
		return
	}
	if err := a.c.Sharer.Attach(ctx, key); err != nil {
		a.faulty(err)
	}
}

// faulty notes the first fault, and tells whether there is one.
func (a *attestation) faulty(err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fault == nil {
		a.fault = err
	}
	return a.fault != nil
}

// all writes statements and SBOMs beside the packages, and into the store
// those on the results, which refer to them as OCI referrers.
func (a *attestation) all(ctx context.Context, results []*Result, packages []Package, files []File) ([]AttestationReport, error) {
	if a.Attester == nil {
		return nil, nil
	}
	a.results = map[*Cell]*Result{}
	for _, r := range results {
		a.results[r.Cell] = r
	}
	reports := make([]AttestationReport, len(packages))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, p := range packages {
		g.Go(func() (err error) {
			if reports[i], err = a.pack(ctx, p, files[i]); err != nil {
				err = fmt.Errorf("attesting %s: %w", p.Name, err)
			}
			return err
		})
	}
	for _, r := range results {
		if r.Packable() {
			g.Go(func() error {
				if err := a.result(ctx, r); err != nil {
					return fmt.Errorf("attesting the result of %s: %w", r.Cell.Name(), err)
				}
				return nil
			})
		}
	}
	return reports, g.Wait()
}

// pack writes the files about a package.
func (a *attestation) pack(ctx context.Context, p Package, file File) (AttestationReport, error) {
	artifact := a.artifact(p.Cells, p.Kind, p.Holds, p.Options)
	artifact.Files = []attest.File{{Name: p.Name, SHA256: file.SHA256}}
	statement, sbom, err := a.make(ctx, artifact, func() error {
		if p.Holds&HoldsModules == 0 {
			return nil
		}
		for _, c := range p.Cells {
			modules, err := a.known(a.results[c])
			if err != nil {
				return err
			}
			artifact.Modules = append(artifact.Modules, modules...)
		}
		return nil
	})
	if err != nil {
		return AttestationReport{}, err
	}
	r := AttestationReport{Package: p.Name, Signed: a.Key != nil,
		SBOM:      File{Path: p.Name + attest.SBOMSuffix, Blob: blobOf(sbom)},
		Statement: File{Path: p.Name + a.suffix(), Blob: blobOf(statement)}}
	for _, f := range []File{r.SBOM, r.Statement} {
		if err := a.c.place(f.Path, func() (io.ReadCloser, error) { return a.c.Store.Open(f.hash()) }, f.Blob); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (a *attestation) suffix() string {
	if a.Key == nil {
		return attest.UnsignedSuffix
	}
	return attest.SignedSuffix
}

// mediaType is that of a statement.
func (a *attestation) mediaType() string {
	if a.Key == nil {
		return attest.StatementType
	}
	return attest.EnvelopeType
}

// artifact describes what was made of cells, which are of one module version.
func (a *attestation) artifact(cells []*Cell, kind string, holds Holds, options map[string]any) *attest.Artifact {
	first := cells[0]
	src, module := first.Inputs.Source, first.Module
	artifact := &attest.Artifact{Kind: kind, Module: src.Name, Version: src.Version, License: module.License,
		MakeArgs: module.MakeArgs, Install: first.install(), Options: options, Epoch: a.m.epochOf(src),
		Source: attest.Source{SHA256: src.Digest}, Recipe: sha256hex(first.Inputs.Program.Data), LayerFormat: images.LayerFormat,
		Built: holds&(HoldsModules|HoldsTools) != 0, HoldsSource: holds&HoldsSource != 0}
	if src.Package != nil {
		p := attestPackages([]*apt.Package{src.Package})[0]
		artifact.Source.Package = &p
	}
	if module.Source.Remote() {
		artifact.Source.URL = module.Source.File()
	}
	if s := a.m.signing; s != nil && holds&HoldsModules != 0 && kind != resultKind {
		artifact.Options = map[string]any{"signModules": map[string]any{"certificate": s.key.Fingerprint(), "hash": s.hash}}
		maps.Copy(artifact.Options, options)
	}
	for _, c := range cells {
		cell := a.cell(c)
		if holds&HoldsModules != 0 {
			cell.Test = attestTest(a.results[c])
		}
		artifact.Cells = append(artifact.Cells, cell)
	}
	return artifact
}

func (a *attestation) cell(c *Cell) attest.Cell {
	cell := attest.Cell{Kernel: c.Kernel.Release, Arch: c.Kernel.Arch, Distribution: c.Kernel.Distribution, Suite: c.Kernel.Suite, Key: c.Key,
		Toolchain: attestPackages(c.Inputs.Toolchain), Headers: attestPackages(c.Inputs.Headers), Extra: attestPackages(c.Inputs.Extra)}
	if c.Inputs.Custom != nil {
		cell.Custom = c.Inputs.Custom.Digests
	}
	for _, n := range c.Needs {
		if r := a.results[n]; r != nil && r.Record != nil {
			for _, m := range r.Record.Modules {
				cell.Upon = append(cell.Upon, attest.Package{Name: n.Module.Name + "/" + m.Name, Version: n.Module.Version, SHA256: m.SHA256})
			}
		}
	}
	return cell
}

// attestTest tells what a test of a result has found; nil where there is no verdict.
func attestTest(r *Result) *attest.Test {
	if r == nil || r.Test == nil || r.Test.Verdict == "" {
		return nil
	}
	return &attest.Test{Verdict: string(r.Test.Verdict), Signed: r.Test.Signed, Kernel: attestPackages(r.Cell.Boot)}
}

func attestPackages(list []*apt.Package) []attest.Package {
	all := make([]attest.Package, len(list))
	for i, p := range list {
		all[i] = attest.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, SHA256: p.SHA256,
			Distribution: p.Distribution, Suite: p.Suite, Path: p.Filename, Size: p.Size}
	}
	return all
}

// make finds the statement and the SBOM, which the statement names, among the
// blobs of the store, or makes them. fill adds the modules, for an SBOM that is
// not there yet: before that, the digest of the file stands for what is in it.
func (a *attestation) make(ctx context.Context, artifact *attest.Artifact, fill func() error) (statement, sbom v1.Descriptor, err error) {
	artifact.Epoch = artifact.Epoch.UTC()
	inputs, err := json.Marshal([]any{attestFormat, artifact, a.Builder})
	if err != nil {
		return statement, sbom, err
	}
	if sbom, err = a.sbom(artifact, sha256hex(inputs), fill); err != nil {
		return statement, sbom, err
	}
	signer := ""
	if a.Key != nil {
		if signer, err = attest.KeyID(a.Key.Public()); err != nil {
			return statement, sbom, err
		}
	}
	name := sha256hex(fmt.Appendf(nil, "%s\n%s\n%s", signer, sbom.Digest, inputs))
	if d, ok := a.stored(ctx, name); ok {
		return d, sbom, nil
	}
	data, err := artifact.Statement(a.Builder, attest.File{Name: artifact.Name() + attest.SBOMSuffix, SHA256: sbom.Digest.Hex})
	if err != nil {
		return statement, sbom, err
	}
	if a.Key != nil {
		data, err = attest.Sign(ctx, a.Key, data)
	} else {
		data = append(data, '\n')
	}
	if err != nil {
		return statement, sbom, err
	}
	if statement, err = a.c.Store.Put(data, types.MediaType(a.mediaType())); err != nil {
		return statement, sbom, err
	}
	return statement, sbom, a.c.Store.SetRef(statementRef, name, statement)
}

// stored finds a statement of an earlier run, so that it is not signed again: a
// token may sign differently each time.
func (a *attestation) stored(ctx context.Context, name string) (v1.Descriptor, bool) {
	d, err := a.c.Store.Ref(statementRef, name)
	if err != nil {
		return d, false
	}
	data, err := a.c.Store.Get(d.Digest, maxSBOM)
	if err == nil && a.Key != nil {
		_, err = attest.Open(ctx, data, a.Key.Public())
	}
	return d, err == nil
}

// sbom finds an artifact's SBOM by the hash of all that it depends on, or makes it.
func (a *attestation) sbom(artifact *attest.Artifact, name string, fill func() error) (v1.Descriptor, error) {
	if d, err := a.c.Store.Ref(sbomRef, name); err == nil {
		if _, err := a.c.Store.Get(d.Digest, maxSBOM); err == nil {
			return d, nil
		}
	}
	if err := fill(); err != nil {
		return v1.Descriptor{}, err
	}
	data, err := artifact.SBOM(a.Builder)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := a.c.Store.Put(data, attest.SBOMType)
	if err != nil {
		return d, err
	}
	return d, a.c.Store.SetRef(sbomRef, name, d)
}

// known tells what SBOMs say about a result's modules, as they are packed.
func (a *attestation) known(r *Result) ([]attest.Module, error) {
	if all, ok := a.modules.Load(r.Cell); ok {
		return all.([]attest.Module), nil
	}
	packed, err := a.m.modules(r)
	if err != nil {
		return nil, err
	}
	var all []attest.Module
	for _, m := range packed {
		f, err := m.Open()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(f)
		f.Close() // only read
		if err != nil {
			return nil, err
		}
		known, err := about(r, m.Dest, data)
		if err != nil {
			return nil, err
		}
		all = append(all, known)
	}
	a.modules.Store(r.Cell, all)
	return all, nil
}

// about tells what an SBOM says about a module.
func about(r *Result, name string, data []byte) (attest.Module, error) {
	k, err := kmod.ReadAt(bytes.NewReader(data), int64(len(data)), kmod.Limits{PlainOnly: true})
	if err != nil {
		return attest.Module{}, fmt.Errorf("%s: %w", name, err)
	}
	s1, s256 := sha1.Sum(data), sha256.Sum256(data) // SPDX wants SHA-1 of each file
	m := attest.Module{Name: name, Kernel: r.Cell.Kernel.Release, Arch: r.Cell.Kernel.Arch, License: k.Get("license"),
		SHA1: hex.EncodeToString(s1[:]), SHA256: hex.EncodeToString(s256[:])}
	if m.License != "" {
		if m.SPDX, err = rpm.License(m.License); err != nil {
			m.SPDX = "" // its name says nothing
		}
	}
	return m, nil
}

// resultKind is the kind of package of a statement about a result.
const resultKind = "result"

// result makes the statement and the SBOM on what a cell's build has given, and
// manifests that refer to the result's.
func (a *attestation) result(ctx context.Context, r *Result) error {
	subject, err := a.c.Store.Ref(resultRef, r.Cell.Key)
	if err != nil {
		return err
	}
	artifact := a.artifact([]*Cell{r.Cell}, resultKind, HoldsModules, nil)
	for _, l := range r.Record.layers() {
		if l.MediaType != logType {
			artifact.Files = append(artifact.Files, attest.File{Name: l.Annotations[titleKey], SHA256: l.Digest.Hex})
		}
	}
	if len(artifact.Files) == 0 {
		return nil
	}
	statement, sbom, err := a.make(ctx, artifact, func() error {
		for _, ko := range r.Record.Modules {
			data, err := a.m.records.module(ko)
			if err != nil {
				return err
			}
			m, err := about(r, ko.Name, data)
			if err != nil {
				return err
			}
			artifact.Modules = append(artifact.Modules, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	subject.Annotations = nil
	if err := a.refer(subject, statement, "provenance", a.mediaType()); err != nil {
		return err
	}
	if err := a.refer(subject, sbom, "sbom", attest.SBOMType); err != nil {
		return err
	}
	a.share(ctx, r.Cell.Key)
	return nil
}

// refer stores the manifest that says of a blob what it is about.
func (a *attestation) refer(subject, blob v1.Descriptor, what, artifactType string) error {
	config, err := a.c.Store.Put([]byte("{}"), emptyType)
	if err != nil {
		return err
	}
	blob = v1.Descriptor{MediaType: types.MediaType(artifactType), Digest: blob.Digest, Size: blob.Size, Annotations: map[string]string{titleKey: what}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType, Config: config,
		Layers: []v1.Descriptor{blob}, Subject: &subject}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	d, err := a.c.Store.Put(data, types.OCIManifestSchema1)
	if err != nil {
		return err
	}
	d.ArtifactType = artifactType
	return a.c.Store.SetRef(ReferrerRef, subject.Digest.Hex+"-"+what, d)
}

// Files that list the others.
const (
	checksumsFile = "SHA256SUMS"
	signatureFile = checksumsFile + ".asc"
)

// checksums writes SHA256SUMS over what users download: packages, what is said
// about them, and certificates. Repositories have indexes of their own, and
// results.json and the logs tell of a run.
func (c *Collector) checksums(r *Report, packages []Package) error {
	if len(packages) == 0 {
		return nil
	}
	list := slices.Clone(r.Files)
	for _, a := range r.Attestations {
		list = append(list, a.Statement, a.SBOM)
	}
	if r.Signing != nil {
		list = append(list, r.Signing.Certificate, r.Signing.HowTo)
	}
	slices.SortFunc(list, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	var b strings.Builder
	for _, f := range list {
		b.WriteString(f.checksum())
	}
	var err error
	if r.Checksums, err = c.placeText(checksumsFile, b.String()); err != nil || c.Signer == nil {
		return err
	}
	asc, err := c.Signer.DetachArmored(strings.NewReader(b.String()), c.repositoryEpoch(packages))
	if err != nil {
		return fmt.Errorf("signing %s: %w", checksumsFile, err)
	}
	r.ChecksumsSignature, err = c.placeText(signatureFile, string(asc))
	return err
}

// placeText writes a small file into the folder.
func (c *Collector) placeText(name, text string) (*File, error) {
	f := &File{Path: name, Blob: Blob{sha256hex([]byte(text)), int64(len(text))}}
	return f, c.place(name, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }, f.Blob)
}
