package attest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
)

// noAssertion says that a fact is not known: a package index names no license,
// and nobody has looked for one.
const noAssertion = "NOASSERTION"

// document collects an SPDX document.
type document struct {
	*spdx.Document
	refs map[string]string // LicenseRef-… → the text
}

// SBOM makes the SPDX 2.3 document about the artifact: the modules in it, its
// source, and the packages that it was built with.
func (a *Artifact) SBOM(b Builder) ([]byte, error) {
	d := &document{refs: map[string]string{}, Document: &spdx.Document{SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense,
		SPDXIdentifier: "DOCUMENT", DocumentName: a.Name(),
		CreationInfo: &spdx.CreationInfo{Created: a.Epoch.UTC().Format(time.RFC3339),
			Creators:       []common.Creator{{CreatorType: "Tool", Creator: "kofarm-" + b.Version}},
			CreatorComment: "The time is that of the module's source, or SOURCE_DATE_EPOCH: the same inputs give the same document."}}}
	artifact := a.artifactPackage(d)
	source := a.sourcePackage()
	d.Packages = append(d.Packages, artifact, source)
	d.relate("DOCUMENT", common.TypeRelationshipDescribe, artifact.PackageSPDXIdentifier)
	d.relate(artifact.PackageSPDXIdentifier, common.TypeRelationshipGeneratedFrom, source.PackageSPDXIdentifier)
	if a.HoldsSource {
		d.relate(artifact.PackageSPDXIdentifier, common.TypeRelationshipContains, source.PackageSPDXIdentifier)
	}
	modules := a.addModules(d, artifact, source)
	for _, in := range a.inputs() {
		if in.role != RoleKernel { // nothing was built with it
			a.addInput(d, in, artifact, modules)
		}
	}
	for _, ref := range slices.Sorted(maps.Keys(d.refs)) {
		d.OtherLicenses = append(d.OtherLicenses, &spdx.OtherLicense{LicenseIdentifier: ref, ExtractedText: d.refs[ref], LicenseName: noAssertion})
	}
	if err := spdxlib.ValidateDocument(d.Document); err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	return d.encode()
}

// encode writes the document. Its namespace has to be unique, so it has the hash
// of all the rest.
func (d *document) encode() ([]byte, error) {
	var b bytes.Buffer
	write := func() error {
		b.Reset()
		return spdxjson.Write(d.Document, &b, spdxjson.Indent(" "), spdxjson.EscapeHTML(false))
	}
	if err := write(); err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	sum := sha256.Sum256(b.Bytes())
	d.DocumentNamespace = fmt.Sprintf("https://spdx.org/spdxdocs/kofarm-%s-%s", clean(d.DocumentName), hex.EncodeToString(sum[:]))
	if err := write(); err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	return b.Bytes(), nil
}

func (d *document) relate(a common.ElementID, how string, b common.ElementID) {
	d.Relationships = append(d.Relationships, &spdx.Relationship{RefA: common.DocElementID{ElementRefID: a}, RefB: common.DocElementID{ElementRefID: b}, Relationship: how})
}

var unclean = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// clean makes a part of an SPDX identifier, which knows letters, digits, dots and
// hyphens.
func clean(s string) string { return unclean.ReplaceAllString(s, "-") }

// id makes an identifier that is unique by the content.
func id(kind, name, sum string) common.ElementID {
	return common.ElementID(kind + "-" + clean(name) + "-" + sum[:min(len(sum), 16)])
}

func checksum(sum string) []common.Checksum {
	return []common.Checksum{{Algorithm: common.SHA256, Value: sum}}
}

func purlRef(uri string) []*spdx.PackageExternalReference {
	return []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: uri}}
}

// newPackage is a package of which nothing is asserted but its name and content.
func newPackage(kind, name, version, sum string) *spdx.Package {
	return &spdx.Package{PackageName: name, PackageVersion: version, PackageSPDXIdentifier: id(kind, name, sum), PackageChecksums: checksum(sum),
		PackageSupplier: &common.Supplier{Supplier: noAssertion}, PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion,
		PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion}
}

func (a *Artifact) artifactPackage(d *document) *spdx.Package {
	p := newPackage("Artifact", a.Name(), a.Version, a.Files[0].SHA256)
	p.PackageFileName = a.Name()
	if len(a.Files) > 1 { // no file
		p.PackageFileName, p.PackageChecksums = "", nil
	}
	p.PackageLicenseDeclared = d.known(cmp.Or(a.License, a.moduleLicenses()), a.licenseText)
	p.PackageSummary = fmt.Sprintf("%s %s: %s", a.Module, a.Version, a.Kind)
	p.PrimaryPackagePurpose = "INSTALL"
	if strings.HasPrefix(a.Kind, "dkms ") {
		p.PrimaryPackagePurpose = "ARCHIVE"
	}
	return p
}

func (a *Artifact) sourcePackage() *spdx.Package {
	p := newPackage("Source", a.Module, a.Version, a.Source.SHA256)
	p.PrimaryPackagePurpose = "SOURCE"
	p.PackageExternalReferences = purlRef(a.sourceURI())
	if a.Source.URL != "" {
		p.PackageDownloadLocation = a.Source.URL
	}
	if s := a.Source.Package; s != nil {
		p.PackageName, p.PackageVersion = s.Name, s.Version
		p.PackageSourceInfo, p.PackageFileName = "module "+a.Module+" "+a.Version, s.Path
		p.PackageSupplier = supplier(*s)
	}
	return p
}

// supplier is who distributes a package: the distribution, as the farm file
// calls it.
func supplier(p Package) *common.Supplier {
	if p.Distribution == "" {
		return &common.Supplier{Supplier: noAssertion}
	}
	return &common.Supplier{SupplierType: "Organization", Supplier: p.Distribution}
}

// moduleLicenses is the expression for all modules together, "" where some have
// none.
func (a *Artifact) moduleLicenses() string {
	var all []string
	for _, m := range a.Modules {
		switch {
		case m.SPDX == "":
			return ""
		case strings.Contains(m.SPDX, " OR "):
			all = append(all, "("+m.SPDX+")")
		default:
			all = append(all, m.SPDX)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) == 1 {
		return strings.TrimSuffix(strings.TrimPrefix(all[0], "("), ")")
	}
	return strings.Join(all, " AND ")
}

// licenseText is what an expression's LicenseRef stands for.
func (a *Artifact) licenseText(ref string) string {
	for _, m := range a.Modules {
		if slices.Contains(licenseID.FindAllString(m.SPDX, -1), ref) {
			return fmt.Sprintf("MODULE_LICENSE(%q)", m.License)
		}
	}
	return "as the farm file has it: " + a.License
}

// licenseID finds the identifiers of an expression.
var licenseID = regexp.MustCompile(`[A-Za-z0-9][A-Za-z0-9.+-]*`)

// known notes what an expression refers to, and returns it, or NOASSERTION for none.
func (d *document) known(expression string, text func(ref string) string) string {
	for _, ref := range licenseID.FindAllString(expression, -1) {
		if strings.HasPrefix(ref, "LicenseRef-") {
			d.refs[ref] = text(ref)
		}
	}
	return cmp.Or(expression, noAssertion)
}

// addModules adds the files, and returns their identifiers by kernel.
func (a *Artifact) addModules(d *document, artifact, source *spdx.Package) map[string][]common.ElementID {
	modules := map[string][]common.ElementID{}
	if !a.Built {
		return modules
	}
	for _, m := range a.Modules {
		f := &spdx.File{FileName: "./" + m.Kernel + "/" + m.Arch + "/" + m.Name, FileTypes: []string{"BINARY"},
			FileSPDXIdentifier: id("File-"+clean(m.Kernel)+"-"+clean(m.Arch), m.Name, m.SHA256),
			Checksums:          []common.Checksum{{Algorithm: common.SHA1, Value: m.SHA1}, {Algorithm: common.SHA256, Value: m.SHA256}},
			LicenseConcluded:   noAssertion, FileCopyrightText: noAssertion,
			FileComment: "kernel module for " + m.Kernel + " (" + m.Arch + "); the checksums are those of the file before it is compressed in the package"}
		d.known(m.SPDX, a.licenseText)
		for _, id := range licenseID.FindAllString(m.SPDX, -1) {
			if id != "OR" && id != "AND" && id != "WITH" {
				f.LicenseInfoInFiles = append(f.LicenseInfoInFiles, id)
			}
		}
		if f.LicenseInfoInFiles == nil {
			f.LicenseInfoInFiles = []string{noAssertion}
		}
		d.Files = append(d.Files, f)
		d.relate(artifact.PackageSPDXIdentifier, common.TypeRelationshipContains, f.FileSPDXIdentifier)
		d.relate(f.FileSPDXIdentifier, common.TypeRelationshipGeneratedFrom, source.PackageSPDXIdentifier)
		modules[m.Kernel] = append(modules[m.Kernel], f.FileSPDXIdentifier)
	}
	return modules
}

// addInput adds a package that the build has used: for the modules of its
// kernels, or for the whole artifact.
func (a *Artifact) addInput(d *document, in *input, artifact *spdx.Package, modules map[string][]common.ElementID) {
	p := newPackage("Package-"+string(in.role), in.Name, in.Version, in.SHA256)
	p.PackageExternalReferences = purlRef(in.uri())
	p.PackageFileName, p.PackageSupplier = in.Path, supplier(in.Package)
	d.Packages = append(d.Packages, p)
	if in.role == RoleToolchain {
		d.relate(p.PackageSPDXIdentifier, common.TypeRelationshipBuildToolOf, artifact.PackageSPDXIdentifier)
		return
	}
	related := false
	for _, k := range in.kernels {
		for _, module := range modules[k] {
			d.relate(p.PackageSPDXIdentifier, common.TypeRelationshipBuildDependencyOf, module)
			related = true
		}
	}
	if !related {
		d.relate(p.PackageSPDXIdentifier, common.TypeRelationshipBuildDependencyOf, artifact.PackageSPDXIdentifier)
	}
}
