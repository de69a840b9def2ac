package repo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// The format of RPM packages, as rpm's own docs/manual/format.md has it: a lead, the signature header
// (padded to 8 bytes), the header, the payload.
const (
	leadSize   = 96
	introSize  = 16
	entrySize  = 16
	leadMagic  = "\xed\xab\xee\xdb"
	introMagic = "\x8e\xad\xe8\x01\x00\x00\x00\x00"

	maxEntries   = 65_535   // rpm's own limit
	maxSigHeader = 16 << 20 // signatures of 20,000 files have some 10 MB
	maxRPMHeader = 64 << 20 // kernel-devel's has some 3 MB
)

// Types of an entry.
const (
	typeInt8        = 2
	typeInt16       = 3
	typeInt32       = 4
	typeInt64       = 5
	typeString      = 6
	typeBin         = 7
	typeStringArray = 8
	typeI18N        = 9
)

// Tags of the header.
const (
	tagName            = 1000
	tagVersion         = 1001
	tagRelease         = 1002
	tagEpoch           = 1003
	tagSummary         = 1004
	tagDescription     = 1005
	tagBuildTime       = 1006
	tagBuildHost       = 1007
	tagSize            = 1009
	tagVendor          = 1011
	tagLicense         = 1014
	tagPackager        = 1015
	tagGroup           = 1016
	tagURL             = 1020
	tagArch            = 1022
	tagFileModes       = 1030
	tagFileFlags       = 1037
	tagSourceRPM       = 1044
	tagArchiveSize     = 1046
	tagProvideName     = 1047
	tagRequireFlags    = 1048
	tagRequireName     = 1049
	tagRequireVersion  = 1050
	tagConflictFlags   = 1053
	tagConflictName    = 1054
	tagConflictVersion = 1055
	tagChangelogTime   = 1080
	tagChangelogName   = 1081
	tagChangelogText   = 1082
	tagObsoleteName    = 1090
	tagSourcePackage   = 1106
	tagProvideFlags    = 1112
	tagProvideVersion  = 1113
	tagObsoleteFlags   = 1114
	tagObsoleteVersion = 1115
	tagDirIndexes      = 1116
	tagBaseNames       = 1117
	tagDirNames        = 1118
	tagLongSize        = 5009
	tagRecommendName   = 5046 // then version, flags; so are the three after it
	tagSuggestName     = 5049
	tagSupplementName  = 5052
	tagEnhanceName     = 5055
	tagPayloadDigest   = 5092
)

// Tags of the signature header.
const (
	sigRegion          = 62  // RPMTAG_HEADERSIGNATURES
	sigDSA             = 267 // over the header; of EdDSA keys too
	sigRSA             = 268 // over the header
	sigLongArchiveSize = 271
	sigOpenPGP         = 278
	sigPGP             = 1002 // over header and payload, of old rpms
	sigPGP5            = 1003
	sigGPG             = 1005
	sigPayloadSize     = 1007
	sigReservedSpace   = 1008
)

// headerEntry describes a tag's data.
type headerEntry struct {
	tag, kind, offset, count uint32
}

// header is one of an RPM's two. Nothing in it is trusted: the getters check every offset and count.
type header struct {
	raw     []byte // as it is in the file, without padding
	entries []headerEntry
	data    []byte
}

// readHeader reads the header at an offset.
func readHeader(r io.ReaderAt, offset, limit int64) (*header, error) {
	intro := make([]byte, introSize)
	if err := readAt(r, intro, offset); err != nil {
		return nil, err
	}
	if string(intro[:8]) != introMagic {
		return nil, fmt.Errorf("%w: no RPM header at byte %d", ErrFormat, offset)
	}
	n, size := int64(binary.BigEndian.Uint32(intro[8:])), int64(binary.BigEndian.Uint32(intro[12:]))
	if n > maxEntries || size > limit {
		return nil, fmt.Errorf("RPM header of %d tags and %d bytes: %w of %d and %d", n, size, ErrLimit, maxEntries, limit)
	}
	total := introSize + n*entrySize + size
	raw, err := io.ReadAll(io.NewSectionReader(r, offset, total)) // grows with what is there
	if err == nil && int64(len(raw)) < total {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("%w: an RPM that ends too early: %w", ErrFormat, err)
	}
	h := &header{raw: raw, data: raw[introSize+n*entrySize:]}
	for i := range n {
		e := raw[introSize+i*entrySize:]
		h.entries = append(h.entries, headerEntry{binary.BigEndian.Uint32(e), binary.BigEndian.Uint32(e[4:]),
			binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])})
	}
	return h, nil
}

func readAt(r io.ReaderAt, p []byte, offset int64) error {
	if n, err := r.ReadAt(p, offset); n < len(p) {
		return fmt.Errorf("%w: an RPM that ends too early: %w", ErrFormat, err)
	}
	return nil
}

func (h *header) find(tag uint32) (headerEntry, bool) {
	i := slices.IndexFunc(h.entries, func(e headerEntry) bool { return e.tag == tag })
	if i < 0 {
		return headerEntry{}, false
	}
	return h.entries[i], true
}

// content is an entry's data.
func (h *header) content(e headerEntry) ([]byte, error) {
	bad := fmt.Errorf("%w: RPM tag %d of type %d", ErrFormat, e.tag, e.kind)
	if int64(e.offset) > int64(len(h.data)) {
		return nil, bad
	}
	rest := h.data[e.offset:]
	var size int64
	switch e.kind {
	case typeInt8, typeBin, 1: // 1 is a character
		size = int64(e.count)
	case typeInt16:
		size = 2 * int64(e.count)
	case typeInt32:
		size = 4 * int64(e.count)
	case typeInt64:
		size = 8 * int64(e.count)
	case typeString, typeStringArray, typeI18N:
		for range e.count {
			i := bytes.IndexByte(rest[size:], 0)
			if i < 0 {
				return nil, bad
			}
			size += int64(i) + 1
		}
	default:
		return nil, bad
	}
	if size > int64(len(rest)) {
		return nil, bad
	}
	return rest[:size], nil
}

// strings are the values of a tag; none where it is missing.
func (h *header) strings(tag uint32) ([]string, error) {
	e, ok := h.find(tag)
	if !ok {
		return nil, nil
	}
	if e.kind != typeString && e.kind != typeStringArray && e.kind != typeI18N {
		return nil, fmt.Errorf("%w: RPM tag %d is no text", ErrFormat, tag)
	}
	data, err := h.content(e)
	if err != nil {
		return nil, err
	}
	var all []string
	for s := range bytes.SplitSeq(bytes.TrimSuffix(data, []byte{0}), []byte{0}) {
		all = append(all, string(s))
	}
	return all[:min(len(all), int(e.count))], nil
}

// text is the first value of a tag (the one of the C locale), "" where it is missing.
func (h *header) text(tag uint32) (string, error) {
	all, err := h.strings(tag)
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[0], nil
}

// ints are the values of a tag of whole numbers; none where it is missing.
func (h *header) ints(tag uint32) ([]uint64, error) {
	e, ok := h.find(tag)
	if !ok {
		return nil, nil
	}
	data, err := h.content(e)
	if err != nil {
		return nil, err
	}
	width := map[uint32]int{typeInt8: 1, 1: 1, typeInt16: 2, typeInt32: 4, typeInt64: 8}[e.kind]
	if width == 0 {
		return nil, fmt.Errorf("%w: RPM tag %d is no number", ErrFormat, tag)
	}
	all := make([]uint64, 0, e.count)
	for word := range slices.Chunk(data, width) {
		var v uint64
		for _, b := range word {
			v = v<<8 | uint64(b)
		}
		all = append(all, v)
	}
	return all, nil
}

// number is the first value of the first tag that is there, else 0.
func (h *header) number(tags ...uint32) (uint64, error) {
	for _, tag := range tags {
		all, err := h.ints(tag)
		if err != nil {
			return 0, err
		}
		if len(all) > 0 {
			return all[0], nil
		}
	}
	return 0, nil
}

// rpmOutline is where the parts of an RPM are.
type rpmOutline struct {
	lead       []byte
	sig, main  *header
	start, end int64 // of the header in the file
}

func readOutline(r io.ReaderAt) (*rpmOutline, error) {
	o := &rpmOutline{lead: make([]byte, leadSize)}
	if err := readAt(r, o.lead, 0); err != nil {
		return nil, err
	}
	if string(o.lead[:4]) != leadMagic {
		return nil, fmt.Errorf("%w: it does not begin as an RPM", ErrFormat)
	}
	var err error
	if o.sig, err = readHeader(r, leadSize, maxSigHeader); err != nil {
		return nil, fmt.Errorf("signature header: %w", err)
	}
	o.start = leadSize + padded(int64(len(o.sig.raw)))
	if o.main, err = readHeader(r, o.start, maxRPMHeader); err != nil {
		return nil, err
	}
	o.end = o.start + int64(len(o.main.raw))
	return o, nil
}

// padded rounds up to 8 bytes.
func padded(n int64) int64 { return (n + 7) / 8 * 8 }
