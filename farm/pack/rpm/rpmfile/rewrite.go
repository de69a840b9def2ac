package rpmfile

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/kofarm/kofarm/farm/pack/edit"
)

// Rewrite writes the package in r with some files changed, with their sizes and
// digests in its header, and all else as it is. It need not be one of kofarm's.
// Its signatures would be wrong: they are dropped, and dropped says whether
// there were some.
func Rewrite(w io.Writer, r io.Reader, e edit.Edit) (dropped bool, err error) {
	p := &rewriting{edit: e}
	dropped, err = p.rewrite(w, r)
	if p.payload != nil {
		err = errors.Join(err, p.payload.Close())
	}
	if err != nil {
		return dropped, fmt.Errorf("package: %w", err)
	}
	return dropped, nil
}

// rewriting is a package that is being rewritten.
type rewriting struct {
	edit    edit.Edit
	head    header
	payload *Payload

	index   map[string]int // a file's path → its number
	sizes   []uint32
	digests []string
	newHash func() hash.Hash
	grown   int64
}

func (p *rewriting) rewrite(w io.Writer, r io.Reader) (dropped bool, err error) {
	start := make([]byte, leadSize)
	if _, err := io.ReadFull(r, start); err != nil || !bytes.HasPrefix(start, []byte{0xed, 0xab, 0xee, 0xdb}) {
		return false, fmt.Errorf("%w: it is no RPM", edit.ErrFormat)
	}
	signature, n, err := readHeader(r, sigRegion)
	if err != nil {
		return false, fmt.Errorf("signatures: %w", err)
	}
	if _, err := io.CopyN(io.Discard, r, -n&7); err != nil {
		return false, fmt.Errorf("%w: it ends in the signatures", edit.ErrFormat)
	}
	for _, tag := range signatureTags {
		_, there := signature[tag]
		dropped = dropped || there
	}
	if p.head, _, err = readHeader(r, tagRegion); err != nil {
		return dropped, err
	}
	if err := p.files(); err != nil {
		return dropped, err
	}
	if err := p.copyPayload(r); err != nil {
		return dropped, fmt.Errorf("payload: %w", err)
	}
	p.describe()
	head, err := p.head.marshal(tagRegion)
	if err != nil {
		return dropped, err
	}
	sigs, err := signatures(head, p.payload)
	if err != nil {
		return dropped, err
	}
	for _, part := range [][]byte{start, sigs, head} {
		if _, err := w.Write(part); err != nil {
			return dropped, err
		}
	}
	_, err = io.Copy(w, p.payload.spool.reader())
	return dropped, err
}

const leadSize = 96

// signatureTags are what may stand in a signature header that a key has made:
// DSA, RSA, OpenPGP, PGP, GPG, file signatures and fs-verity's.
var signatureTags = []int{267, 268, 278, 1002, 1005, 1006, 274, 276}

// fileHashes are the hashes that FILEDIGESTALGO may name, by OpenPGP's numbers.
var fileHashes = map[uint32]func() hash.Hash{1: md5.New, 2: sha1.New, digestSHA256: sha256.New, 9: sha512.New384, 10: sha512.New}

// files learns the files that the header names.
func (p *rewriting) files() error {
	bases, dirs, numbers := p.head.texts(tagBaseNames), p.head.texts(tagDirNames), p.head.numbers(tagDirIndexes)
	p.sizes, p.digests = p.head.numbers(tagFileSizes), p.head.texts(tagFileDigests)
	if len(numbers) == 0 {
		bases, p.digests = nil, nil
	}
	if len(numbers) != len(bases) || len(p.sizes) != len(bases) || len(p.digests) != len(bases) {
		return fmt.Errorf("%w: the header's lists of files are not of one length (or files are of 4 GiB and more)", edit.ErrFormat)
	}
	p.index = map[string]int{}
	for i, base := range bases {
		if int64(numbers[i]) >= int64(len(dirs)) {
			return fmt.Errorf("%w: file %q is in folder %d of %d", edit.ErrFormat, base, numbers[i], len(dirs))
		}
		p.index[edit.Clean(dirs[numbers[i]]+base)] = i
	}
	algorithm := uint32(1) // MD5, where nothing is said
	if n := p.head.numbers(tagFileDigestAlgo); len(n) > 0 {
		algorithm = n[0]
	}
	if p.newHash = fileHashes[algorithm]; p.newHash == nil {
		return fmt.Errorf("%w: digests of files by algorithm %d", edit.ErrFormat, algorithm)
	}
	return nil
}

// copyPayload copies the cpio archive, compressed as it is.
func (p *rewriting) copyPayload(r io.Reader) error {
	plain, compression, err := edit.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	name, ok := map[string]Compression{"gz": Gzip, "xz": XZ, "zst": Zstd}[compression]
	if !ok {
		return fmt.Errorf("%w: it is compressed by none of %v", edit.ErrFormat, Compressions())
	}
	p.payload = &Payload{compression: name, spool: &spool{}, compressed: sha256.New(), plain: sha256.New()}
	if p.payload.z, err = name.writer(io.MultiWriter(p.payload.spool, p.payload.compressed)); err != nil {
		return err
	}
	for {
		last, err := p.copyEntry(plain)
		if err != nil {
			return err
		}
		if last {
			break
		}
	}
	if _, err := io.Copy(io.Discard, plain); err != nil { // so that the compressed stream's checksum is looked at
		return err
	}
	return p.payload.z.Close()
}

// Where a "new ASCII" cpio header has its numbers, of eight digits each.
const (
	cpioSize     = 110
	cpioMode     = 14
	cpioLinks    = 38
	cpioFileSize = 54
	cpioNameSize = 94

	trailer = "TRAILER!!!" // the name of the last entry
)

// copyEntry copies an entry of the archive, and tells whether it was the trailer.
func (p *rewriting) copyEntry(r io.Reader) (last bool, err error) {
	h := make([]byte, cpioSize)
	if _, err := io.ReadFull(r, h); err != nil || string(h[:6]) != "070701" {
		return false, fmt.Errorf("%w: it is no cpio archive of the kind that holds files under 4 GiB", edit.ErrFormat)
	}
	var faults []error
	number := func(at int) int64 {
		n, err := strconv.ParseUint(string(h[at:at+8]), 16, 32)
		faults = append(faults, err)
		return int64(n)
	}
	mode, links, size, nameSize := number(cpioMode), number(cpioLinks), number(cpioFileSize), number(cpioNameSize)
	if err := errors.Join(faults...); err != nil || nameSize < 1 || nameSize > maxName+2 {
		return false, errors.Join(fmt.Errorf("%w: malformed cpio header", edit.ErrFormat), err)
	}
	rest := make([]byte, nameSize+(-(cpioSize+nameSize))&3)
	if _, err := io.ReadFull(r, rest); err != nil {
		return false, fmt.Errorf("%w: it ends in a name", edit.ErrFormat)
	}
	raw := string(bytes.TrimRight(rest[:nameSize], "\x00"))
	name := edit.Clean(raw)
	body, padding := io.LimitReader(r, size), -size&3
	var content io.Reader = body
	if raw != trailer && uint16(mode)&typeMask == TypeFile && p.edit.Wants(name) {
		if links > 1 {
			return false, fmt.Errorf("%w: %s has several names", edit.ErrFormat, name)
		}
		changed, err := p.change(name, body, size)
		if err != nil {
			return false, err
		}
		copy(h[cpioFileSize:], fmt.Sprintf("%08x", len(changed)))
		content = bytes.NewReader(changed)
	}
	for _, part := range []io.Reader{bytes.NewReader(h), bytes.NewReader(rest), content} {
		if _, err := io.Copy(p.payload, part); err != nil {
			return false, err
		}
	}
	if left := body.(*io.LimitedReader).N; left != 0 {
		return false, fmt.Errorf("%w: it ends in %s", edit.ErrFormat, name)
	}
	if _, err := io.CopyN(io.Discard, r, padding); err != nil && raw != trailer {
		return false, fmt.Errorf("%w: it ends in %s", edit.ErrFormat, name)
	}
	return raw == trailer, p.payload.pad()
}

// change changes a file's content, and what the header says of it.
func (p *rewriting) change(name string, r io.Reader, size int64) ([]byte, error) {
	i, ok := p.index[name]
	if !ok {
		return nil, fmt.Errorf("%w: the header does not name %s", edit.ErrFormat, name)
	}
	data, err := p.edit.Apply(name, r, size)
	if err != nil {
		return nil, err
	}
	h := p.newHash()
	h.Write(data)
	p.sizes[i], p.digests[i] = uint32(len(data)), hex.EncodeToString(h.Sum(nil))
	p.grown += int64(len(data)) - size
	return data, nil
}

// describe brings the header up to date.
func (p *rewriting) describe() {
	if len(p.sizes) > 0 {
		p.head.int32s(tagFileSizes, p.sizes...)
		p.head.strings(tagFileDigests, p.digests...)
	}
	if n := p.head.numbers(tagSize); len(n) > 0 {
		p.head.int32s(tagSize, uint32(int64(n[0])+p.grown))
	}
	// rpm before 4.14 wrote none, but SignRPM wants one.
	p.head.strings(tagPayloadDigest, hex.EncodeToString(p.payload.compressed.Sum(nil)))
	p.head.strings(tagPayloadDigestAlt, hex.EncodeToString(p.payload.plain.Sum(nil)))
	p.head.int32s(tagPayloadDigestAlgo, digestSHA256)
}
