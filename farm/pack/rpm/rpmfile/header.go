package rpmfile

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Tags of a signature header.
const (
	sigRegion      = 62
	sigSHA1        = 269
	sigSHA256      = 273
	sigSize        = 1000
	sigMD5         = 1004
	sigPayloadSize = 1007
)

// Tags of a header.
const (
	tagRegion            = 63
	tagI18NTable         = 100
	tagName              = 1000
	tagVersion           = 1001
	tagRelease           = 1002
	tagSummary           = 1004
	tagDescription       = 1005
	tagBuildTime         = 1006
	tagBuildHost         = 1007
	tagSize              = 1009
	tagLicense           = 1014
	tagPackager          = 1015
	tagGroup             = 1016
	tagSource            = 1018
	tagURL               = 1020
	tagOS                = 1021
	tagArch              = 1022
	tagPostIn            = 1024
	tagPreUn             = 1025
	tagPostUn            = 1026
	tagFileSizes         = 1028
	tagFileModes         = 1030
	tagFileRDevs         = 1033
	tagFileMTimes        = 1034
	tagFileDigests       = 1035
	tagFileLinkTos       = 1036
	tagFileFlags         = 1037
	tagFileUserName      = 1039
	tagFileGroupName     = 1040
	tagSourceRPM         = 1044
	tagFileVerifyFlags   = 1045
	tagProvideName       = 1047
	tagRequireFlags      = 1048
	tagRequireName       = 1049
	tagRequireVersion    = 1050
	tagChangelogTime     = 1080
	tagChangelogName     = 1081
	tagChangelogText     = 1082
	tagPostInProg        = 1086
	tagPreUnProg         = 1087
	tagPostUnProg        = 1088
	tagFileDevices       = 1095
	tagFileInodes        = 1096
	tagFileLangs         = 1097
	tagSourcePackage     = 1106
	tagProvideFlags      = 1112
	tagProvideVersion    = 1113
	tagDirIndexes        = 1116
	tagBaseNames         = 1117
	tagDirNames          = 1118
	tagPayloadFormat     = 1124
	tagPayloadCompressor = 1125
	tagPayloadFlags      = 1126
	tagPostTrans         = 1152
	tagPostTransProg     = 1154
	tagFileDigestAlgo    = 5011
	tagSupplementName    = 5052
	tagSupplementVersion = 5053
	tagSupplementFlags   = 5054
	tagEnhanceName       = 5055
	tagEnhanceVersion    = 5056
	tagEnhanceFlags      = 5057
	tagEncoding          = 5062
	tagPayloadDigest     = 5092
	tagPayloadDigestAlgo = 5093
	tagPayloadDigestAlt  = 5097

	digestSHA256 = 8 // an OpenPGP hash algorithm
)

// Types of a header's values.
const (
	typeInt16       = 3
	typeInt32       = 4
	typeString      = 6
	typeBinary      = 7
	typeStringArray = 8
	typeI18NString  = 9
)

// entry is a value: its type, the number of items and the bytes.
type entry struct {
	kind, count int
	data        []byte
}

// header is a set of values by tag.
type header map[int]entry

func (h header) int16s(tag int, values ...uint16) {
	e := entry{kind: typeInt16, count: len(values)}
	for _, v := range values {
		e.data = binary.BigEndian.AppendUint16(e.data, v)
	}
	h[tag] = e
}

func (h header) int32s(tag int, values ...uint32) {
	e := entry{kind: typeInt32, count: len(values)}
	for _, v := range values {
		e.data = binary.BigEndian.AppendUint32(e.data, v)
	}
	h[tag] = e
}

func (h header) string(tag int, value string) {
	h[tag] = entry{typeString, 1, append([]byte(value), 0)}
}

// i18n stores a text in the one language that the package has, "C".
func (h header) i18n(tag int, value string) {
	h[tag] = entry{typeI18NString, 1, append([]byte(value), 0)}
}

func (h header) strings(tag int, values ...string) {
	e := entry{kind: typeStringArray, count: len(values)}
	for _, v := range values {
		e.data = append(append(e.data, v...), 0)
	}
	h[tag] = e
}

func (h header) binary(tag int, value []byte) { h[tag] = entry{typeBinary, len(value), value} }

const (
	indexSize = 16 // of an entry of the index
	// What rpm reads at most (hdrchkData, hdrchkTags in lib/header.c).
	maxHeaderData = 256 << 20
	maxHeaderTags = 0xffff
)

// marshal returns the header: magic, index and store. Its first entry is the
// region, which says that all others belong to it: its value comes last in the
// store and is an index entry with an offset back to the index's begin.
func (h header) marshal(region int) ([]byte, error) {
	var index, store []byte
	for _, tag := range slices.Sorted(maps.Keys(h)) {
		e := h[tag]
		store = append(store, make([]byte, e.padding(len(store)))...)
		index = appendIndex(index, tag, e.kind, len(store), e.count)
		store = append(store, e.data...)
	}
	n := len(h) + 1
	head := appendIndex(nil, region, typeBinary, len(store), indexSize)
	store = appendIndex(store, region, typeBinary, -n*indexSize, indexSize)
	if n > maxHeaderTags || len(store) > maxHeaderData {
		return nil, fmt.Errorf("a header of %d bytes, rpm reads %d", len(store), maxHeaderData)
	}
	out := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	out = binary.BigEndian.AppendUint32(out, uint32(n))
	out = binary.BigEndian.AppendUint32(out, uint32(len(store)))
	return slices.Concat(out, head, index, store), nil
}

// padding is what aligns a value of numbers at an offset.
func (e entry) padding(offset int) int {
	size := map[int]int{typeInt16: 2, typeInt32: 4, typeInt64: 8}[e.kind]
	if size == 0 {
		return 0
	}
	return (size - offset%size) % size
}

func appendIndex(b []byte, tag, kind, offset, count int) []byte {
	for _, v := range []int{tag, kind, offset, count} {
		b = binary.BigEndian.AppendUint32(b, uint32(int32(v)))
	}
	return b
}

// lead is the 96 bytes in front, of which rpm itself reads only the magic;
// file(1) and others read the name, and that it is a source package.
func lead(p *Package) []byte {
	const size, nameStart, nameLen = 96, 10, 66
	b := make([]byte, size)
	copy(b, []byte{0xed, 0xab, 0xee, 0xdb, 3, 0})
	if p.SourceRPM == "" {
		b[7] = 1
	}
	b[9] = 1 // the architecture's number; 1 for all that have none
	copy(b[nameStart:nameStart+nameLen-1], p.Name+"-"+p.EVR())
	b[77] = 1 // Linux
	b[79] = 5 // header-style signature
	return b
}
