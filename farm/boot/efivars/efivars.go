// Package efivars puts certificates into the variables of UEFI firmware, as edk2
// keeps them in flash: a firmware volume (Platform Initialization specification,
// volume 3, 3.2) that holds a store of authenticated variables (edk2,
// MdeModulePkg/Include/Guid/VariableFormat.h).
package efivars

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// MaxSize bounds a variable store in bytes (OVMF's has 528 kB).
const MaxSize = 16 << 20

// ErrFormat says that data is no empty store of variables.
var ErrFormat = errors.New("no empty store of UEFI variables")

// GUIDs as they are stored: the first three parts are little-endian.
var (
	// d719b2cb-3d3a-4596-a3bc-dad00e67656f, of db and dbx (UEFI 2.10, 32.6.1)
	imageSecurity = []byte("\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f")
	// a5c059a1-94e4-4aa7-87b5-ab155c2bf072, of lists of certificates (UEFI 2.10, 32.4.1)
	x509Type = []byte("\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72")
	// aaf32c78-947b-439a-a180-2e144ec37792, of a store of authenticated variables
	authenticated = []byte("\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92")
	// fff12b8d-7696-4c8b-a985-2747075b4f50, of a volume that holds variables
	variableVolume = []byte("\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50")
	// owner says who has put a certificate there: 6b6f6661-726d-4000-8000-000000000001, kofarm.
	owner = []byte("\x61\x66\x6f\x6b\x6d\x72\x00\x40\x80\x00\x00\x00\x00\x00\x00\x01")
)

// What a store and its variables have in their headers.
const (
	storeFormatted, storeHealthy = 0x5a, 0xfe

	startID  = 0x55aa
	varAdded = 0x3f // its header and its data are valid

	// attributes: non-volatile, for boot and runtime services, authenticated with a time.
	attributes = 0x01 | 0x02 | 0x04 | 0x20
)

// Trust gives a copy of an empty variable store, as firmware is delivered with,
// in whose signature database db are the certificates, in DER. There is no
// platform key in it: Secure Boot is not on, and the firmware starts what it is
// given. The same certificates give the same bytes. The error is ErrFormat where
// the store is none, or has variables already.
func Trust(store []byte, certificates ...[]byte) ([]byte, error) {
	begin, end, err := room(store)
	if err != nil {
		return nil, err
	}
	var list []byte
	for _, der := range certificates {
		list = append(list, signatureList(der)...)
	}
	v := variable("db", imageSecurity, list)
	if len(v) > end-begin {
		return nil, fmt.Errorf("certificates of %d bytes do not fit into a store of UEFI variables of %d", len(list), end-begin)
	}
	out := slices.Clone(store)
	copy(out[begin:], v)
	return out, nil
}

// room finds where the variables of an empty store are: from its header to its end.
func room(volume []byte) (begin, end int, err error) {
	const (
		typeAt, magicAt, lengthAt = 16, 40, 48 // in the volume's header
		sizeAt, formatAt, headEnd = 16, 20, 28 // in the store's
	)
	if len(volume) < lengthAt+2 || len(volume) > MaxSize || !bytes.Equal(volume[typeAt:typeAt+16], variableVolume) || string(volume[magicAt:magicAt+4]) != "_FVH" {
		return 0, 0, fmt.Errorf("%w: no volume that holds variables", ErrFormat)
	}
	at := int(binary.LittleEndian.Uint16(volume[lengthAt:]))
	if at+headEnd > len(volume) || !bytes.Equal(volume[at:at+16], authenticated) {
		return 0, 0, fmt.Errorf("%w: no store of authenticated variables", ErrFormat)
	}
	head := volume[at:]
	size := binary.LittleEndian.Uint32(head[sizeAt:])
	if head[formatAt] != storeFormatted || head[formatAt+1] != storeHealthy || size < headEnd || uint64(size) > uint64(len(head)) {
		return 0, 0, fmt.Errorf("%w: its header is damaged", ErrFormat)
	}
	begin, end = at+headEnd, at+int(size)
	if slices.ContainsFunc(volume[begin:end], func(b byte) bool { return b != 0xff }) {
		return 0, 0, fmt.Errorf("%w: it has variables", ErrFormat)
	}
	return begin, end, nil
}

// signatureList is an EFI_SIGNATURE_LIST with one certificate (UEFI 2.10, 32.4.1).
func signatureList(der []byte) []byte {
	const head = 28
	entry := len(owner) + len(der)
	b := slices.Clone(x509Type)
	b = binary.LittleEndian.AppendUint32(b, uint32(head+entry))
	b = binary.LittleEndian.AppendUint32(b, 0) // bytes of a header
	b = binary.LittleEndian.AppendUint32(b, uint32(entry))
	return append(append(b, owner...), der...)
}

// variable is an AUTHENTICATED_VARIABLE_HEADER with name and data.
func variable(name string, vendor, data []byte) []byte {
	var text []byte
	for _, unit := range utf16.Encode([]rune(name + "\x00")) {
		text = binary.LittleEndian.AppendUint16(text, unit)
	}
	b := binary.LittleEndian.AppendUint16(nil, startID)
	b = append(b, varAdded, 0)
	b = binary.LittleEndian.AppendUint32(b, attributes)
	b = binary.LittleEndian.AppendUint64(b, 0) // count of changes, for variables of another kind
	b = append(b, "\xd0\x07\x01\x01"...)       // EFI_TIME: 2000-01-01, no clock
	b = append(b, make([]byte, 12)...)         // 00:00:00 UTC
	b = binary.LittleEndian.AppendUint32(b, 0) // index of a public key, for variables of another kind
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(append(append(b, vendor...), text...), data...)
}
