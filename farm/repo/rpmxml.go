package repo

import (
	"bytes"
	"encoding/xml"
	"fmt"
)

// The XML of a yum repository, in createrepo_c's order.
const (
	commonSpace    = "http://linux.duke.edu/metadata/common"
	rpmSpace       = "http://linux.duke.edu/metadata/rpm"
	filelistsSpace = "http://linux.duke.edu/metadata/filelists"
	otherSpace     = "http://linux.duke.edu/metadata/other"
	repoSpace      = "http://linux.duke.edu/metadata/repo"
)

type evr struct {
	Epoch   string `xml:"epoch,attr,omitempty"`
	Version string `xml:"ver,attr,omitempty"`
	Release string `xml:"rel,attr,omitempty"`
}

type dependency struct {
	Name  string `xml:"name,attr"`
	Flags string `xml:"flags,attr,omitempty"`
	evr
	Pre string `xml:"pre,attr,omitempty"`
}

type dependencyList struct {
	Entries []dependency `xml:"rpm:entry"`
}

// list is nil for no dependencies, which leaves the element out.
func list(d []dependency) *dependencyList {
	if len(d) == 0 {
		return nil
	}
	return &dependencyList{d}
}

type rpmEntry struct {
	Type string `xml:"type,attr,omitempty"`
	Path string `xml:",chardata"`
}

type change struct {
	Author string `xml:"author,attr"`
	Date   uint64 `xml:"date,attr"`
	Text   string `xml:",chardata"`
}

type checksum struct {
	Type  string `xml:"type,attr"`
	PkgID string `xml:"pkgid,attr,omitempty"`
	Value string `xml:",chardata"`
}

type packageTimes struct {
	File  int64  `xml:"file,attr"`
	Build uint64 `xml:"build,attr"`
}

type packageSizes struct {
	Package   int64  `xml:"package,attr"`
	Installed uint64 `xml:"installed,attr"`
	Archive   uint64 `xml:"archive,attr"`
}

type location struct {
	Href string `xml:"href,attr"`
}

type headerRange struct {
	Start int64 `xml:"start,attr"`
	End   int64 `xml:"end,attr"`
}

// primaryRecord is a package in primary.xml.
type primaryRecord struct {
	XMLName     xml.Name      `xml:"package"`
	Type        string        `xml:"type,attr"`
	Name        string        `xml:"name"`
	Arch        string        `xml:"arch"`
	Version     evr           `xml:"version"`
	Checksum    checksum      `xml:"checksum"`
	Summary     string        `xml:"summary"`
	Description string        `xml:"description"`
	Packager    string        `xml:"packager"`
	URL         string        `xml:"url"`
	Time        packageTimes  `xml:"time"`
	Size        packageSizes  `xml:"size"`
	Location    location      `xml:"location"`
	Format      primaryFormat `xml:"format"`
}

type primaryFormat struct {
	License     string          `xml:"rpm:license"`
	Vendor      string          `xml:"rpm:vendor"`
	Group       string          `xml:"rpm:group"`
	BuildHost   string          `xml:"rpm:buildhost"`
	SourceRPM   string          `xml:"rpm:sourcerpm"`
	Range       headerRange     `xml:"rpm:header-range"`
	Provides    *dependencyList `xml:"rpm:provides"`
	Requires    *dependencyList `xml:"rpm:requires"`
	Conflicts   *dependencyList `xml:"rpm:conflicts"`
	Obsoletes   *dependencyList `xml:"rpm:obsoletes"`
	Suggests    *dependencyList `xml:"rpm:suggests"`
	Enhances    *dependencyList `xml:"rpm:enhances"`
	Recommends  *dependencyList `xml:"rpm:recommends"`
	Supplements *dependencyList `xml:"rpm:supplements"`
	Files       []rpmEntry      `xml:"file"`
}

// shortRecord is a package in filelists.xml and in other.xml.
type shortRecord struct {
	XMLName   xml.Name   `xml:"package"`
	PkgID     string     `xml:"pkgid,attr"`
	Name      string     `xml:"name,attr"`
	Arch      string     `xml:"arch,attr"`
	Version   evr        `xml:"version"`
	Files     []rpmEntry `xml:"file"`
	Changelog []change   `xml:"changelog"`
}

// rpmRecord is all that the three files say of a package.
type rpmRecord struct {
	primary          primaryRecord
	filelists, other shortRecord
}

func newRecord(f *rpmFile, o *rpmOutline, headers headerRange) (rpmRecord, error) {
	files, err := entries(o.main)
	if err != nil {
		return rpmRecord{}, err
	}
	logs, err := changelog(o.main)
	if err != nil {
		return rpmRecord{}, err
	}
	p := primaryRecord{Type: "rpm", Name: f.name, Arch: f.arch, Version: f.evr, Checksum: checksum{"sha256", "YES", f.sha256}}
	p.Format.Range = headers
	p.Size.Package = f.size
	for _, read := range []func(*primaryRecord, *rpmOutline) error{readTexts, readNumbers} {
		if err := read(&p, o); err != nil {
			return rpmRecord{}, err
		}
	}
	if err := p.Format.readDependencies(o.main, files); err != nil {
		return rpmRecord{}, err
	}
	for _, e := range files {
		if e.primary() {
			p.Format.Files = append(p.Format.Files, e)
		}
	}
	short := shortRecord{PkgID: f.sha256, Name: f.name, Arch: f.arch, Version: f.evr}
	r := rpmRecord{p, short, short}
	r.filelists.Files, r.other.Changelog = files, logs
	return r, nil
}

func readTexts(p *primaryRecord, o *rpmOutline) error {
	f := &p.Format
	for _, v := range []struct {
		tag uint32
		to  *string
	}{
		{tagSummary, &p.Summary}, {tagDescription, &p.Description}, {tagPackager, &p.Packager}, {tagURL, &p.URL}, {tagLicense, &f.License},
		{tagVendor, &f.Vendor}, {tagGroup, &f.Group}, {tagBuildHost, &f.BuildHost}, {tagSourceRPM, &f.SourceRPM},
	} {
		var err error
		if *v.to, err = o.main.text(v.tag); err != nil {
			return err
		}
	}
	return nil
}

func readNumbers(p *primaryRecord, o *rpmOutline) (err error) {
	if p.Time.Build, err = o.main.number(tagBuildTime); err != nil {
		return err
	}
	p.Time.File = int64(p.Time.Build) // a copy's own time would say nothing
	if p.Size.Installed, err = o.main.number(tagLongSize, tagSize); err != nil {
		return err
	}
	if p.Size.Archive, err = o.sig.number(sigLongArchiveSize, sigPayloadSize); err == nil && p.Size.Archive == 0 {
		p.Size.Archive, err = o.main.number(tagArchiveSize)
	}
	return err
}

func (f *primaryFormat) readDependencies(h *header, files []rpmEntry) error {
	for _, v := range []struct {
		tags dependencyTags
		to   **dependencyList
	}{
		{dependencyTags{tagProvideName, tagProvideVersion, tagProvideFlags}, &f.Provides},
		{dependencyTags{tagRequireName, tagRequireVersion, tagRequireFlags}, &f.Requires},
		{dependencyTags{tagConflictName, tagConflictVersion, tagConflictFlags}, &f.Conflicts},
		{dependencyTags{tagObsoleteName, tagObsoleteVersion, tagObsoleteFlags}, &f.Obsoletes},
		{weak(tagSuggestName), &f.Suggests}, {weak(tagEnhanceName), &f.Enhances},
		{weak(tagRecommendName), &f.Recommends}, {weak(tagSupplementName), &f.Supplements},
	} {
		all, err := dependencies(h, v.tags)
		if err != nil {
			return err
		}
		if v.tags.name == tagRequireName && f.Provides != nil {
			all = indexed(all, f.Provides.Entries, files)
		}
		*v.to = list(all)
	}
	return nil
}

// indexes are the plain XML files of a repository, by type.
func indexes(rpms []*rpmFile) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, v := range []struct {
		name, head, tail string
		record           func(*rpmFile) any
	}{
		{"primary", `<metadata xmlns="` + commonSpace + `" xmlns:rpm="` + rpmSpace + `"`, "</metadata>", func(f *rpmFile) any {
			p := f.record.primary
			p.Location.Href = f.path
			return p
		}},
		{"filelists", `<filelists xmlns="` + filelistsSpace + `"`, "</filelists>", func(f *rpmFile) any { return f.record.filelists }},
		{"other", `<otherdata xmlns="` + otherSpace + `"`, "</otherdata>", func(f *rpmFile) any { return f.record.other }},
	} {
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s%s packages=\"%d\">\n", xml.Header, v.head, len(rpms))
		e := xml.NewEncoder(&b)
		e.Indent("", "  ")
		for _, f := range rpms {
			if err := e.Encode(v.record(f)); err != nil {
				return nil, fmt.Errorf("%s.xml: %s: %w", v.name, f.identity(), err)
			}
			b.WriteByte('\n')
		}
		b.WriteString(v.tail + "\n")
		files[v.name] = b.Bytes()
	}
	return files, nil
}

// repomd is repomd.xml.
type repomd struct {
	XMLName  xml.Name     `xml:"repomd"`
	Space    string       `xml:"xmlns,attr"`
	Revision int64        `xml:"revision"`
	Data     []repomdData `xml:"data"`
}

type repomdData struct {
	Type         string   `xml:"type,attr"`
	Checksum     checksum `xml:"checksum"`
	OpenChecksum checksum `xml:"open-checksum"`
	Location     location `xml:"location"`
	Timestamp    int64    `xml:"timestamp"`
	Size         int64    `xml:"size"`
	OpenSize     int64    `xml:"open-size"`
}

func (r *repomd) bytes() ([]byte, error) {
	r.Space = repoSpace
	data, err := xml.MarshalIndent(r, "", "  ")
	return append(append([]byte(xml.Header), data...), '\n'), err
}

// parseRepomd reads a repomd.xml; paths that leave the repository are an error.
func parseRepomd(data []byte) (*repomd, error) {
	var r repomd
	if err := xml.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%w: repomd.xml: %w", ErrFormat, err)
	}
	for _, d := range r.Data {
		if !isLocal(d.Location.Href) || !isSHA256(d.Checksum.Value) {
			return nil, fmt.Errorf("%w: repomd.xml: the entry %q", ErrFormat, d.Type)
		}
	}
	return &r, nil
}

// listedRPM is what primary.xml says of where a package is.
type listedRPM struct {
	Name     string   `xml:"name"`
	Arch     string   `xml:"arch"`
	Version  evr      `xml:"version"`
	Checksum checksum `xml:"checksum"`
	Location location `xml:"location"`
	Size     struct {
		Package int64 `xml:"package,attr"`
	} `xml:"size"`
}

func parsePrimary(data []byte) ([]listedRPM, error) {
	var p struct {
		Packages []listedRPM `xml:"package"`
	}
	if err := xml.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%w: primary.xml: %w", ErrFormat, err)
	}
	return p.Packages, nil
}
