package repo

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kofarm/kofarm/farm/sign"
)

// rpmFile is an RPM that the repository is to hold.
type rpmFile struct {
	digest   // of the file as it is in the repository
	from     string
	resigned bool // the file in the repository has another signature than from
	path     string

	name, arch string
	evr        evr
	record     rpmRecord
}

// identity is what dnf tells packages apart by.
func (f *rpmFile) identity() string {
	return fmt.Sprintf("%s %s:%s-%s %s", f.name, f.evr.Epoch, f.evr.Version, f.evr.Release, f.arch)
}

// base is the usual name of the file.
func (f *rpmFile) base() string {
	return fmt.Sprintf("%s-%s-%s.%s.rpm", f.name, f.evr.Version, f.evr.Release, f.arch)
}

// readRPM reads an RPM, as it is to be signed.
func readRPM(file string, key *sign.Key, when time.Time) (*rpmFile, error) {
	r, size, err := openFile(file)
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	f, err := describeRPM(r, size, key, when)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	f.from = file
	return f, nil
}

func describeRPM(r io.ReaderAt, size int64, key *sign.Key, when time.Time) (*rpmFile, error) {
	o, err := readOutline(r)
	if err != nil {
		return nil, err
	}
	content := io.Reader(io.NewSectionReader(r, 0, size))
	f := &rpmFile{resigned: key != nil}
	start := o.start // of the header, which stays where the signature header's size stays
	if key != nil {
		if err := o.sign(key, when); err != nil {
			return nil, err
		}
		content = o.content(r, size)
		start = leadSize + padded(int64(len(o.sig.raw)))
	}
	if f.digest, err = digestReader(content); err != nil {
		return nil, err
	}
	if err := f.setIdentity(o.main); err != nil {
		return nil, err
	}
	f.record, err = newRecord(f, o, headerRange{start, start + int64(len(o.main.raw))})
	return f, err
}

func (f *rpmFile) setIdentity(h *header) (err error) {
	values := map[uint32]*string{tagName: &f.name, tagVersion: &f.evr.Version, tagRelease: &f.evr.Release, tagArch: &f.arch}
	for tag, value := range values {
		if *value, err = h.text(tag); err != nil {
			return err
		}
	}
	if err := checkNEVRA(f); err != nil {
		return err
	}
	source, err := h.text(tagSourceRPM)
	if err != nil {
		return err
	}
	if _, marked := h.find(tagSourcePackage); marked || source == "" {
		f.arch = "src"
	}
	epoch, err := h.number(tagEpoch)
	f.evr.Epoch = strconv.FormatUint(epoch, 10)
	return err
}

// checkNEVRA refuses what cannot be part of a file's name.
func checkNEVRA(f *rpmFile) error {
	for _, v := range []string{f.name, f.evr.Version, f.evr.Release, f.arch} {
		odd := strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' })
		if v == "" || v[0] == '.' || odd || len(v) > 200 {
			return fmt.Errorf("%w: the name, version, release or architecture %q of an RPM", ErrFormat, v)
		}
	}
	return nil
}

// write gives the file's content for the repository.
func (f *rpmFile) write(key *sign.Key, when time.Time) func(io.Writer) error {
	if !f.resigned {
		return copyFrom(f.from)
	}
	return func(w io.Writer) error {
		r, size, err := openFile(f.from)
		if err != nil {
			return err
		}
		defer r.Close() // only read
		return SignRPM(w, r, size, key, when)
	}
}

func sortRPMs(rpms []*rpmFile) {
	slices.SortFunc(rpms, func(a, b *rpmFile) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.identity(), b.identity()), strings.Compare(a.path, b.path))
	})
}

// Sense flags of a dependency, as rpmds.h has them.
const (
	senseMask = 2 | 4 | 8           // less, greater, equal
	sensePre  = 1<<6 | 1<<9 | 1<<10 // PREREQ, SCRIPT_PRE, SCRIPT_POST
	fileGhost = 1 << 6              // RPMFILE_GHOST
	maxLogs   = 10                  // changelog entries in other.xml, as createrepo_c has it
	libPrefix = "rpmlib("           // dependencies on rpm itself, which are in no index
	sendmail  = "/usr/lib/sendmail" // the one file outside bin and etc that is in primary.xml
	modeMask  = 0o170000            // S_IFMT
	modeDir   = 0o040000            // S_IFDIR
)

var senseNames = map[uint64]string{2: "LT", 4: "GT", 8: "EQ", 2 | 8: "LE", 4 | 8: "GE"}

// dependencyTags are the tags of one kind of dependencies.
type dependencyTags struct{ name, version, flags uint32 }

func weak(name uint32) dependencyTags { return dependencyTags{name, name + 1, name + 2} }

// dependencies reads one kind of dependencies.
func dependencies(h *header, tags dependencyTags) ([]dependency, error) {
	names, err := h.strings(tags.name)
	if err != nil {
		return nil, err
	}
	versions, err := h.strings(tags.version)
	if err != nil {
		return nil, err
	}
	flags, err := h.ints(tags.flags)
	if err != nil {
		return nil, err
	}
	if len(versions) != len(names) || len(flags) != len(names) {
		return nil, fmt.Errorf("%w: %d names, %d versions and %d flags of dependencies (RPM tag %d)", ErrFormat, len(names), len(versions), len(flags), tags.name)
	}
	all := make([]dependency, 0, len(names))
	for i, name := range names {
		d := dependency{Name: name, Flags: senseNames[flags[i]&senseMask], evr: parseEVR(versions[i])}
		if tags.name == tagRequireName && flags[i]&sensePre != 0 {
			d.Pre = "1"
		}
		all = append(all, d)
	}
	return all, nil
}

// parseEVR splits "epoch:version-release".
func parseEVR(s string) evr {
	if s == "" {
		return evr{}
	}
	e := evr{Epoch: "0"}
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		e.Epoch, s = cmp.Or(epoch, "0"), rest
	}
	e.Version, e.Release, _ = strings.Cut(s, "-")
	return e
}

// indexed drops the requirements that createrepo_c leaves out: those on rpm itself, those that the
// package fulfils, and repetitions.
func indexed(requires, provides []dependency, files []rpmEntry) []dependency {
	own := map[dependency]bool{}
	for _, p := range provides {
		own[p] = true
	}
	primary := map[string]bool{}
	for _, f := range files {
		primary[f.Path] = f.primary()
	}
	seen := map[dependency]bool{}
	return slices.DeleteFunc(requires, func(d dependency) bool {
		plain := d
		plain.Pre = ""
		drop := strings.HasPrefix(d.Name, libPrefix) || own[plain] || seen[d] || primary[d.Name]
		seen[d] = true
		return drop
	})
}

// primary says whether a file is in primary.xml, so that packages can depend on it without the list of
// all files.
func (e rpmEntry) primary() bool {
	return strings.HasPrefix(e.Path, "/etc/") || strings.Contains(e.Path, "bin/") || e.Path == sendmail
}

// entries lists the files of an RPM.
func entries(h *header) ([]rpmEntry, error) {
	names, err := h.strings(tagBaseNames)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	dirs, err := h.strings(tagDirNames)
	if err != nil {
		return nil, err
	}
	indexes, err := h.ints(tagDirIndexes)
	if err != nil {
		return nil, err
	}
	modes, err := h.ints(tagFileModes)
	if err != nil {
		return nil, err
	}
	flags, err := h.ints(tagFileFlags)
	if err != nil {
		return nil, err
	}
	if len(indexes) != len(names) || len(modes) != len(names) || len(flags) != len(names) {
		return nil, fmt.Errorf("%w: the lists of files of an RPM differ in length", ErrFormat)
	}
	all := make([]rpmEntry, len(names))
	for i, name := range names {
		if indexes[i] >= uint64(len(dirs)) {
			return nil, fmt.Errorf("%w: the file %q of an RPM is in no folder", ErrFormat, name)
		}
		all[i].Path = dirs[indexes[i]] + name
		switch {
		case modes[i]&modeMask == modeDir:
			all[i].Type = "dir"
		case flags[i]&fileGhost != 0:
			all[i].Type = "ghost"
		}
	}
	return all, nil
}

// changelog lists the newest entries, the oldest of them first.
func changelog(h *header) ([]change, error) {
	names, err := h.strings(tagChangelogName)
	if err != nil {
		return nil, err
	}
	texts, err := h.strings(tagChangelogText)
	if err != nil {
		return nil, err
	}
	times, err := h.ints(tagChangelogTime)
	if err != nil {
		return nil, err
	}
	if len(texts) != len(names) || len(times) != len(names) {
		return nil, fmt.Errorf("%w: the changelog of an RPM", ErrFormat)
	}
	var all []change
	for i := range min(len(names), maxLogs) {
		all = append(all, change{Author: names[i], Date: times[i], Text: texts[i]})
	}
	slices.Reverse(all)
	return all, nil
}

// packagesDir is where the RPMs are.
const packagesDir = "Packages"

// inPackages says whether a path of an index is one of the repository's own.
func inPackages(p string) bool {
	return isLocal(p) && strings.HasPrefix(p, packagesDir+"/") && path.Ext(p) == ".rpm"
}
