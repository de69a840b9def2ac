// Package trial finds out whether a runtime works at all, by a task that needs
// nothing from anywhere: its image holds one program of some 160 bytes.
package trial

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/worker"
)

// ErrArch says that there is no program for this machine.
var ErrArch = errors.New("no trial program for this architecture")

const (
	path = "/bin/trial"
	word = "it works\n" // what the program says on its standard output
)

// Run runs the program. An error says what the runtime does not do.
func Run(ctx context.Context, r worker.Runner) error {
	img, err := image(runtime.GOARCH)
	if err != nil {
		return err
	}
	var out, log bytes.Buffer
	res, err := r.Run(ctx, worker.Task{Name: "trial", Image: img, Args: []string{path}, Env: worker.Env(), Output: &out, Log: &log,
		Limits: worker.Limits{Memory: 256 << 20, Processes: 64, Disk: 1 << 20, Output: 1 << 20, Log: 1 << 20, Timeout: time.Minute}})
	switch {
	case err != nil:
		return err
	case res.Ending != worker.Exited || res.ExitCode != 0:
		return fmt.Errorf("a program that does nothing has ended by %s with status %d %s", res.Ending, res.ExitCode, strings.TrimSpace(log.String()))
	case out.String() != word:
		return fmt.Errorf("a program has written %q, and %q has arrived", word, out.String())
	}
	return nil
}

// image makes the program's image for an architecture.
func image(arch string) (v1.Image, error) {
	program, err := elf(arch)
	if err != nil {
		return nil, err
	}
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	folders := []string{"bin", "dev", "etc", "proc", "sys", "var", "var/lib"}
	for _, d := range worker.Scratch() {
		folders = append(folders, strings.TrimPrefix(d, "/"))
	}
	for _, d := range folders {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

// programs are machine code by architecture: write(1, word, len(word)) and
// exit(0), with the word right behind. Each with its ELF machine (ELF
// specification, e_machine).
var programs = map[string]struct {
	machine uint16
	code    []byte
}{
	"amd64": {62, []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1: write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]
		0xba, byte(len(word)), 0, 0, 0, // mov edx, len
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, 60: exit
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}},
	"arm64": {183, words(
		0xd2800020,                      // movz x0, #1
		0x100000e1,                      // adr x1, #28
		0xd2800002|uint32(len(word))<<5, // movz x2, #len
		0xd2800008|64<<5,                // movz x8, #64: write
		0xd4000001,                      // svc #0
		0xd2800000,                      // movz x0, #0
		0xd2800008|93<<5,                // movz x8, #93: exit
		0xd4000001,                      // svc #0
	)},
}

func words(list ...uint32) []byte {
	var b []byte
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// elf writes a static executable of one segment: header, program header, code.
func elf(arch string) ([]byte, error) {
	p, ok := programs[arch]
	if !ok {
		return nil, fmt.Errorf("%s: %w", arch, ErrArch)
	}
	const base, header, segment = 0x400000, 64, 56
	size := uint64(header + segment + len(p.code) + len(word))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01") // 64 bits, little-endian, version 1
	b.Write(make([]byte, 9))
	for _, field := range []any{
		uint16(2), p.machine, uint32(1), uint64(base + header + segment), // EXEC; entry
		uint64(header), uint64(0), uint32(0), // where the program headers are; no sections; flags
		uint16(header), uint16(segment), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x10000), // LOAD, read and execute
	} {
		if err := binary.Write(&b, binary.LittleEndian, field); err != nil {
			return nil, err
		}
	}
	b.Write(p.code)
	b.WriteString(word)
	return b.Bytes(), nil
}
