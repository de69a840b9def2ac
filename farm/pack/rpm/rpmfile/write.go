package rpmfile

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
)

// Write writes the package with the payload's files to w, and ends the payload:
// nothing can be added to it any more.
func (p *Package) Write(w io.Writer, payload *Payload) error {
	if err := p.validate(); err != nil {
		return err
	}
	if err := payload.finish(); err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	h, err := p.header(payload)
	if err != nil {
		return err
	}
	head, err := h.marshal(tagRegion)
	if err != nil {
		return err
	}
	signature, err := signatures(head, payload)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{lead(p), signature, head} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, payload.spool.reader())
	return err
}

// signatures is the signature header, padded to eight bytes. It has digests
// for every rpm: MD5 and SHA1 for those before 4.14, SHA256 for the others.
func signatures(head []byte, payload *Payload) ([]byte, error) {
	size := int64(len(head)) + payload.spool.size
	if size > math.MaxUint32 || payload.written > math.MaxUint32 {
		return nil, fmt.Errorf("%w: %d bytes", errTooLarge, max(size, int64(payload.written)))
	}
	sum := md5.New()
	sum.Write(head)
	if _, err := io.Copy(sum, payload.spool.reader()); err != nil {
		return nil, err
	}
	h := header{}
	h.string(sigSHA1, fmt.Sprintf("%x", sha1.Sum(head)))
	h.string(sigSHA256, fmt.Sprintf("%x", sha256.Sum256(head)))
	h.int32s(sigSize, uint32(size))
	h.binary(sigMD5, sum.Sum(nil))
	h.int32s(sigPayloadSize, uint32(payload.written))
	b, err := h.marshal(sigRegion)
	return append(b, make([]byte, -len(b)&7)...), err
}

// header collects all that the package says.
func (p *Package) header(payload *Payload) (header, error) {
	h := header{}
	p.describe(h)
	payload.describe(h)
	for _, d := range []struct {
		deps                 []Dependency
		name, version, flags int
	}{
		{p.provides(), tagProvideName, tagProvideVersion, tagProvideFlags},
		{p.requires(payload.compression), tagRequireName, tagRequireVersion, tagRequireFlags},
		{sorted(p.Supplements), tagSupplementName, tagSupplementVersion, tagSupplementFlags},
		{sorted(p.Enhances), tagEnhanceName, tagEnhanceVersion, tagEnhanceFlags},
	} {
		if len(d.deps) > 0 {
			h.dependencies(d.deps, d.name, d.version, d.flags)
		}
	}
	if p.SourceRPM != "" {
		h.string(tagSourceRPM, p.SourceRPM)
		return h, nil
	}
	h.int32s(tagSourcePackage, 1)
	var sources []string
	for _, f := range payload.files {
		if f.dir != "" {
			return nil, fmt.Errorf("a source package has no folders, got %s%s", f.dir, f.base)
		}
		if f.flags&FlagSpec == 0 {
			sources = append(sources, f.base)
		}
	}
	h.strings(tagSource, sources...)
	return h, nil
}

// describe stores what is no dependency and no file.
func (p *Package) describe(h header) {
	group := p.Group
	if group == "" {
		group = "Unspecified"
	}
	h.strings(tagI18NTable, "C")
	h.string(tagName, p.Name)
	h.string(tagVersion, p.Version)
	h.string(tagRelease, p.Release)
	h.i18n(tagSummary, p.Summary)
	h.i18n(tagDescription, p.Description)
	h.int32s(tagBuildTime, uint32(p.BuildTime.Unix()))
	h.string(tagLicense, p.License)
	h.i18n(tagGroup, group)
	h.string(tagOS, "linux")
	h.string(tagArch, p.Arch)
	h.string(tagEncoding, "utf-8")
	if p.BuildHost != "" {
		h.string(tagBuildHost, p.BuildHost)
	}
	if p.URL != "" {
		h.string(tagURL, p.URL)
	}
	if p.Packager != "" {
		h.string(tagPackager, p.Packager)
	}
	if p.Change != "" {
		h.int32s(tagChangelogTime, uint32(p.BuildTime.Unix()))
		h.strings(tagChangelogName, p.Packager+" - "+p.EVR())
		h.strings(tagChangelogText, "- "+p.Change)
	}
	for _, s := range p.scripts() {
		if s.body != "" {
			h.string(s.tag, s.body)
			h.string(s.shell, "/bin/sh")
		}
	}
}

func (h header) dependencies(deps []Dependency, name, version, flags int) {
	var names, versions []string
	var bits []uint32
	for _, d := range deps {
		names, versions, bits = append(names, d.Name), append(versions, d.Version), append(bits, uint32(d.Flags))
	}
	h.strings(name, names...)
	h.strings(version, versions...)
	h.int32s(flags, bits...)
}

// describe stores what a header says of the payload and its files.
func (p *Payload) describe(h header) {
	h.int32s(tagSize, uint32(p.size))
	h.string(tagPayloadFormat, "cpio")
	h.string(tagPayloadCompressor, string(p.compression))
	h.string(tagPayloadFlags, p.compression.level())
	h.strings(tagPayloadDigest, hex.EncodeToString(p.compressed.Sum(nil)))
	h.strings(tagPayloadDigestAlt, hex.EncodeToString(p.plain.Sum(nil)))
	h.int32s(tagPayloadDigestAlgo, digestSHA256)
	if len(p.files) == 0 {
		return // a package without files has none of these
	}
	h.int32s(tagFileDigestAlgo, digestSHA256)
	h.int32s(tagFileSizes, each(p, func(f fileInfo) uint32 { return f.size })...)
	h.int16s(tagFileModes, each(p, func(f fileInfo) uint16 { return f.mode })...)
	h.int16s(tagFileRDevs, each(p, func(fileInfo) uint16 { return 0 })...)
	h.int32s(tagFileMTimes, each(p, func(fileInfo) uint32 { return p.epoch })...)
	h.strings(tagFileDigests, each(p, func(f fileInfo) string { return f.digest })...)
	h.strings(tagFileLinkTos, each(p, func(f fileInfo) string { return f.link })...)
	h.int32s(tagFileFlags, each(p, func(f fileInfo) uint32 { return f.flags })...)
	h.strings(tagFileUserName, each(p, func(fileInfo) string { return "root" })...)
	h.strings(tagFileGroupName, each(p, func(fileInfo) string { return "root" })...)
	h.int32s(tagFileVerifyFlags, each(p, func(fileInfo) uint32 { return math.MaxUint32 })...)
	h.int32s(tagFileDevices, each(p, func(fileInfo) uint32 { return 1 })...)
	h.strings(tagFileLangs, each(p, func(fileInfo) string { return "" })...)
	h.strings(tagBaseNames, each(p, func(f fileInfo) string { return f.base })...)
	inode := uint32(0)
	h.int32s(tagFileInodes, each(p, func(fileInfo) uint32 { inode++; return inode })...)
	dirs, indexes := p.directories()
	h.strings(tagDirNames, dirs...)
	h.int32s(tagDirIndexes, indexes...)
}

// directories lists the folders of the files in the order in which they come
// up, and the number of each file's.
func (p *Payload) directories() (dirs []string, indexes []uint32) {
	number := map[string]uint32{}
	for _, f := range p.files {
		n, ok := number[f.dir]
		if !ok {
			n = uint32(len(dirs))
			number[f.dir], dirs = n, append(dirs, f.dir)
		}
		indexes = append(indexes, n)
	}
	return dirs, indexes
}

// each maps the payload's files.
func each[T any](p *Payload, f func(fileInfo) T) []T {
	values := make([]T, 0, len(p.files))
	for _, file := range p.files {
		values = append(values, f(file))
	}
	return values
}
