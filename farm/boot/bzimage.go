package boot

import (
	"bytes"
	"compress/bzip2"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxVMLinux bounds an uncompressed kernel in bytes (Debian's have up to 80 MB).
const maxVMLinux = 512 << 20

// The header of an x86 kernel (Documentation/arch/x86/boot.rst): offsets.
const (
	headerMagic   = 0x202 // "HdrS"
	setupSectors  = 0x1f1
	headerVersion = 0x206
	payloadOffset = 0x248
	payloadLength = 0x24c
	headerEnd     = 0x250
)

// errNoPayload says that a kernel has to be booted as it is.
var errNoPayload = errors.New("no kernel in a bzImage that can be entered directly")

// vmlinux takes the uncompressed kernel out of a bzImage. qemu enters it at the
// address that its PVH note says, which saves the guest the decompression: under
// emulation more than half of a boot. The error is errNoPayload for any other
// kernel.
func vmlinux(image []byte) ([]byte, error) {
	payload, err := bzPayload(image)
	if err != nil {
		return nil, err
	}
	data, err := inflate(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPayload, err)
	}
	if !hasPVH(data) {
		return nil, fmt.Errorf("%w: it has no PVH entry", errNoPayload)
	}
	return data, nil
}

func bzPayload(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" ||
		binary.LittleEndian.Uint16(image[headerVersion:]) < 0x208 {
		return nil, fmt.Errorf("%w: no header", errNoPayload)
	}
	sectors := int(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := uint64(sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if end > uint64(len(image)) || end-start < 8 {
		return nil, fmt.Errorf("%w: its payload is outside of it", errNoPayload)
	}
	return image[start:end], nil
}

// inflate decompresses a payload. Behind all but gzip's there are four bytes
// more: the size of what comes out.
func inflate(payload []byte) ([]byte, error) {
	body := bytes.NewReader(payload[:len(payload)-4])
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(payload)); err == nil {
			z.Multistream(false)
			r = z
		}
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(body, xz.DefaultDictMax)
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxVMLinux)); err == nil {
			defer z.Close()
			r = z
		}
	case bytes.HasPrefix(payload, []byte(lz4Magic)):
		return lz4Legacy(payload[:len(payload)-4], maxVMLinux)
	case bytes.HasPrefix(payload, []byte("BZh")):
		r = bzip2.NewReader(body)
	case bytes.HasPrefix(payload, []byte("\x5d\x00\x00")):
		r, err = lzma.NewReader(body)
	default:
		return nil, errors.New("its compression is not known here")
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxVMLinux+1))
	if err == nil && len(data) > maxVMLinux {
		err = fmt.Errorf("it has more than %d bytes", maxVMLinux)
	}
	return data, err
}

// pvhNote is the type of the note "Xen" that holds the PVH entry
// (include/xen/interface/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
const pvhNote = 18

func hasPVH(kernel []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE && p.Filesz <= 1<<20 {
			notes, err := io.ReadAll(p.Open())
			if err == nil && hasNote(notes, "Xen", pvhNote) {
				return true
			}
		}
	}
	return false
}

// hasNote looks for a note of that owner and type in a segment of notes.
func hasNote(notes []byte, owner string, kind uint32) bool {
	for len(notes) >= 12 {
		name := uint64(binary.LittleEndian.Uint32(notes))
		desc := uint64(binary.LittleEndian.Uint32(notes[4:]))
		size := 12 + (name+3)&^3 + (desc+3)&^3
		if size > uint64(len(notes)) {
			return false
		}
		if binary.LittleEndian.Uint32(notes[8:]) == kind && string(bytes.TrimRight(notes[12:12+name], "\x00")) == owner {
			return true
		}
		notes = notes[size:]
	}
	return false
}
