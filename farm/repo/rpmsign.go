package repo

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/kofarm/kofarm/farm/sign"
)

// ErrNoPayloadDigest refuses an RPM whose header has no digest of the payload: a signature of the
// header would say nothing of the content. rpm has written one since 4.14.
var ErrNoPayloadDigest = errors.New("the RPM's header has no digest of its payload")

// SignRPM writes the RPM in r with a signature of its header, in place of those that it has. The time
// of the signature is that of the build, so signing again changes nothing. An RPM without one is
// signed at the time when.
func SignRPM(w io.Writer, r io.ReaderAt, size int64, key *sign.Key, when time.Time) error {
	o, err := readOutline(r)
	if err != nil {
		return err
	}
	if err := o.sign(key, when); err != nil {
		return err
	}
	_, err = io.Copy(w, o.content(r, size))
	return err
}

// sign puts a new signature header into the outline.
func (o *rpmOutline) sign(key *sign.Key, when time.Time) error {
	if digests, err := o.main.strings(tagPayloadDigest); err != nil || len(digests) == 0 {
		return errors.Join(ErrNoPayloadDigest, err)
	}
	built, err := o.main.number(tagBuildTime)
	if err != nil {
		return err
	}
	if built != 0 {
		when = time.Unix(int64(built), 0)
	}
	signature, err := key.Detach(bytes.NewReader(o.main.raw), when)
	if err != nil {
		return err
	}
	tag := uint32(sigRSA)
	if key.Algorithm() != sign.RSA {
		tag = sigDSA
	}
	o.sig, err = o.sig.withSignature(tag, signature)
	return err
}

// content is the whole file: the lead and the signature header of the outline, the rest as it is in r.
func (o *rpmOutline) content(r io.ReaderAt, size int64) io.Reader {
	sig := append(slices.Clone(o.sig.raw), make([]byte, padded(int64(len(o.sig.raw)))-int64(len(o.sig.raw)))...)
	return io.MultiReader(bytes.NewReader(o.lead), bytes.NewReader(sig), io.NewSectionReader(r, o.start, size-o.start))
}

// replaced are the tags of a signature header that a new signature replaces: other signatures, the
// region (it is made again), and the room that rpm leaves for signatures.
var replaced = []uint32{sigRegion, sigDSA, sigRSA, sigOpenPGP, sigPGP, sigPGP5, sigGPG, sigReservedSpace}

// withSignature makes a signature header with a signature; its tags are in order.
func (h *header) withSignature(tag uint32, signature []byte) (*header, error) {
	tags := []tagData{{headerEntry{tag: tag, kind: typeBin, count: uint32(len(signature))}, signature}}
	for _, e := range h.entries {
		if slices.Contains(replaced, e.tag) {
			continue
		}
		data, err := h.content(e)
		if err != nil {
			return nil, fmt.Errorf("signature header: %w", err)
		}
		tags = append(tags, tagData{e, data})
	}
	return readHeader(bytes.NewReader(newHeader(sigRegion, tags)), 0, maxSigHeader)
}

// tagData is a tag of a header with its data.
type tagData struct {
	headerEntry
	data []byte
}

// newHeader writes a header of the tags, in order, with a region around it: its entry comes first, and
// its data, last, points back to it.
func newHeader(region uint32, tags []tagData) []byte {
	slices.SortStableFunc(tags, func(a, b tagData) int { return cmp.Compare(a.tag, b.tag) })
	var index, data bytes.Buffer
	for _, t := range tags {
		align(&data, t.kind)
		t.offset = uint32(data.Len())
		index.Write(t.bytes())
		data.Write(t.data)
	}
	first := headerEntry{region, typeBin, uint32(data.Len()), entrySize}
	back := headerEntry{region, typeBin, uint32(-(entrySize * int32(len(tags)+1))), entrySize}
	data.Write(back.bytes())
	raw := binary.BigEndian.AppendUint32([]byte(introMagic), uint32(len(tags)+1))
	raw = binary.BigEndian.AppendUint32(raw, uint32(data.Len()))
	return slices.Concat(raw, first.bytes(), index.Bytes(), data.Bytes())
}

func (e headerEntry) bytes() []byte {
	var b []byte
	for _, v := range []uint32{e.tag, e.kind, e.offset, e.count} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// align fills up to where a value of the type may begin.
func align(b *bytes.Buffer, kind uint32) {
	width := map[uint32]int{typeInt16: 2, typeInt32: 4, typeInt64: 8}[kind]
	if width > 0 {
		b.Write(make([]byte, (width-b.Len()%width)%width))
	}
}
