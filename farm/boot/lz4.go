package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// lz4Magic begins a legacy frame of LZ4, as `lz4 -l` writes it for kernels.
const lz4Magic = "\x02\x21\x4c\x18"

var errLZ4 = errors.New("malformed LZ4")

// lz4Legacy decompresses a legacy frame: blocks, each with its compressed size
// before it (lz4_Frame_format.md, "Legacy frame").
func lz4Legacy(frame []byte, most int) (out []byte, err error) {
	in := frame[len(lz4Magic):]
	for len(in) >= 4 {
		size := binary.LittleEndian.Uint32(in)
		in = in[4:]
		if uint64(size) > uint64(len(in)) {
			return nil, fmt.Errorf("%w: a block is cut off", errLZ4)
		}
		if out, err = lz4Block(out, in[:size], most); err != nil {
			return nil, err
		}
		in = in[size:]
	}
	return out, nil
}

// lz4Block appends what a block holds (lz4_Block_format.md): sequences of
// literals and of a match, which lies in the block's own output.
func lz4Block(out, in []byte, most int) ([]byte, error) {
	begin := len(out)
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(int(token>>4), in[1:])
		if !ok || literals > len(rest) || literals > most-len(out) {
			return nil, fmt.Errorf("%w: literals", errLZ4)
		}
		out = append(out, rest[:literals]...)
		in = rest[literals:]
		if len(in) == 0 {
			return out, nil
		}
		if len(in) < 2 {
			return nil, fmt.Errorf("%w: a match without an offset", errLZ4)
		}
		offset := int(binary.LittleEndian.Uint16(in))
		match, rest, ok := lz4Length(int(token&15), in[2:])
		match += 4
		if !ok || offset == 0 || offset > len(out)-begin || match > most-len(out) {
			return nil, fmt.Errorf("%w: a match", errLZ4)
		}
		for from := len(out) - offset; match > 0; {
			n := min(match, offset)
			out = append(out, out[from:from+n]...)
			from, match = from+n, match-n
		}
		in = rest
	}
	return out, nil
}

// lz4Length reads the bytes that follow a length of 15.
func lz4Length(n int, in []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		n += int(b)
		if b != 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
