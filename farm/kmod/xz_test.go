package kmod

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os/exec"
	"testing"
)

// FuzzXZBlocks feeds what is behind the stream header, with checksums of the
// block header put right so that the fuzzer gets past them.
func FuzzXZBlocks(f *testing.F) {
	for _, arg := range []string{"-6", "-0", "--block-size=10"} {
		cmd := exec.CommandContext(f.Context(), tool(f, "xz"), "-c", "--check=none", arg)
		cmd.Stdin = bytes.NewReader([]byte("some text, some text, some text"))
		data, err := cmd.Output()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[12:])
	}
	head := append([]byte(xzMagic), 0, 0)
	head = binary.LittleEndian.AppendUint32(head, crc32.ChecksumIEEE(head[6:8]))
	f.Fuzz(func(t *testing.T, blocks []byte) {
		data := append(bytes.Clone(head), blocks...)
		if len(blocks) > 0 {
			if n := (int(blocks[0]) + 1) * 4; n <= len(blocks) {
				binary.LittleEndian.PutUint32(data[12+n-4:], crc32.ChecksumIEEE(data[12:12+n-4]))
			}
		}
		x, err := newXZReader(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readLimited(x, 1<<16); err == io.EOF {
			t.Error("io.EOF is not an error of reading all")
		}
	})
}
