package kmod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*source)
		edit   func(*Module)
	}{
		{"as of 6.1", func(*source) {}, func(*Module) {}},
		{"absolute checksums", func(s *source) { s.absCRC = true }, func(*Module) {}},
		{"flags table", func(s *source) { s.flags = true }, func(*Module) {}},
		{"32 bits", func(s *source) { s.bits32 = true }, func(m *Module) { m.Machine = "i686" }},
		{"btf", func(s *source) { s.btf = true }, func(m *Module) { m.HasBTF = true }},
		{"no modversions", func(s *source) {
			s.versions = nil
			for i := range s.exports {
				s.exports[i].HasCRC = false
			}
		}, func(m *Module) {
			m.Versions = nil
			for i := range m.Exports {
				m.Exports[i].HasCRC, m.Exports[i].CRC = false, 0
			}
		}},
		{"extended versions only", func(s *source) { s.versions, s.extended = nil, s.versions }, func(*Module) {}},
		{"both versions", func(s *source) {
			s.extended = append(slices.Clone(s.versions), Version{strings.Repeat("long_", 40), 5})
		}, func(m *Module) {
			m.Versions = slices.Insert(m.Versions, 2, Version{strings.Repeat("long_", 40), 5})
		}},
		{"got symbol", func(s *source) { s.undefined = append(s.undefined, "_GLOBAL_OFFSET_TABLE_") }, func(*Module) {}},
		{"build-id", func(s *source) {
			s.raw = ".section .note.gnu.build-id,\"a\",@note\n.long 4, 3, 3\n.asciz \"GNU\"\n.byte 0xab, 0xcd, 1, 0"
		}, func(m *Module) { m.BuildID = "abcd01" }},
		{"no modinfo", func(s *source) { s.noModinfo = true }, func(m *Module) {
			m.HasModinfo, m.Info, m.Name, m.Vermagic = false, nil, "", ""
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := goodSource()
			tt.change(&s)
			got, err := Read(bytes.NewReader(s.bytes(t)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want := wantGood()
			tt.edit(want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// wantGood is what Read makes of goodSource.
func wantGood() *Module {
	s := goodSource()
	m := &Module{
		Name: "good", Machine: "x86_64", HasModinfo: true,
		Vermagic:  testRelease + " SMP preempt mod_unload modversions ",
		Versions:  []Version{{"_printk", 0x22222222}, {"kfree", 0x33}, {"module_layout", 0x11111111}},
		Undefined: s.undefined, Weak: s.weak, Exports: s.exports,
	}
	for _, kv := range s.modinfo {
		key, value, _ := strings.Cut(kv, "=")
		m.Info = append(m.Info, KV{key, value})
	}
	return m
}

func TestModinfoAgrees(t *testing.T) {
	s := goodSource()
	s.modinfo = append(s.modinfo, "parm=p:what it does", "parmtype=p:int", "author=Ä. Ö <a@b>")
	ko := s.build(t)
	f, err := os.Open(ko)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := Read(f, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(slices.Clone(m.Info), func(kv KV) bool { return strings.HasPrefix(kv.Key, "parm") })
	if want := modinfoFields(t, ko); !slices.Equal(got, want) {
		t.Errorf("got  %q\nmodinfo says %q", got, want)
	}
	want := modprobeVersions(t, ko)
	for _, v := range m.Versions {
		if got := fmt.Sprintf("0x%08x", v.CRC); got != want[v.Name] {
			t.Errorf("%s: got %s, modprobe says %s", v.Name, got, want[v.Name])
		}
	}
	if len(want) != len(m.Versions) {
		t.Errorf("got %d versions, modprobe lists %d", len(m.Versions), len(want))
	}
	if got := m.All("alias"); !slices.Equal(got, []string{"pci:v1*", "pci:v2*"}) {
		t.Errorf("aliases %q", got)
	}
}

func TestCompressed(t *testing.T) {
	plain := goodSource().build(t)
	for _, tt := range []struct {
		name    string
		command []string
		want    string
	}{
		{"gzip", []string{"gzip", "-c"}, "gz"},
		{"xz as kernels", []string{"xz", "-c", "--check=crc32", "--lzma2=dict=1MiB"}, "xz"},
		{"xz crc64", []string{"xz", "-c"}, "xz"},
		{"xz sha256", []string{"xz", "-c", "--check=sha256"}, "xz"},
		{"xz no check", []string{"xz", "-c", "--check=none"}, "xz"},
		{"xz blocks", []string{"xz", "-c", "-T2", "--block-size=1000"}, "xz"},
		{"zstd", []string{"zstd", "-c", "-q"}, "zst"},
		{"zstd ultra", []string{"zstd", "-c", "-q", "--ultra", "-22"}, "zst"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data, err := exec.CommandContext(t.Context(), tool(t, tt.command[0]), append(tt.command[1:], plain)...).Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Read(bytes.NewReader(data), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			want := wantGood()
			want.Compression = tt.want
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			for name, limits := range map[string]Limits{"memory": {Memory: 100}, "file": {File: 100}} {
				if _, err := Read(bytes.NewReader(data), limits); !errors.Is(err, ErrLimit) {
					t.Errorf("limit of %s: %v", name, err)
				}
			}
			if _, err := Read(bytes.NewReader(data), Limits{PlainOnly: true}); !errors.Is(err, ErrFormat) {
				t.Errorf("plain only: %v", err)
			}
			if _, err := Read(bytes.NewReader(data[:len(data)/2]), Limits{}); !errors.Is(err, ErrFormat) {
				t.Errorf("cut off: %v", err)
			}
		})
	}
}

// A block header that asks for a 4 GiB dictionary must not be believed.
func TestXZDictionary(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), tool(t, "xz"), "-c", "--lzma2=dict=128MiB")
	cmd.Stdin = bytes.NewReader(goodSource().bytes(t))
	data, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	_, err = Read(bytes.NewReader(data), Limits{})
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("got %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	good := goodSource().bytes(t)
	edit := func(f func([]byte)) []byte {
		data := bytes.Clone(good)
		f(data)
		return data
	}
	made := func(f func(*source)) []byte {
		s := goodSource()
		f(&s)
		return s.bytes(t)
	}
	for _, tt := range []struct {
		name   string
		data   []byte
		limits Limits
		want   error
		say    string
	}{
		{"empty", nil, Limits{}, ErrFormat, "past the end"},
		{"text", []byte("#!/bin/sh\nexit 0\n# more"), Limits{}, ErrFormat, "not an ELF file"},
		{"header only", good[:64], Limits{}, ErrFormat, "of 64"},
		{"cut off", good[:len(good)-8], Limits{}, ErrFormat, "past the end"},
		{"executable", edit(func(b []byte) { b[16] = 2 }), Limits{}, ErrFormat, "ET_EXEC"},
		{"class", edit(func(b []byte) { b[4] = 7 }), Limits{}, ErrFormat, "class"},
		{"no sections", edit(func(b []byte) { b[60], b[61] = 0, 0 }), Limits{}, ErrFormat, "0 sections"},
		{"far sections", edit(func(b []byte) { b[47] = 0x80 }), Limits{}, ErrFormat, "at offset"},
		{"tables", good, Limits{Tables: 100}, ErrLimit, ""},
		{"file", good, Limits{File: 100}, ErrLimit, ""},
		{"two modinfos", made(func(s *source) {
			s.raw = ".section .modinfo,\"aG\",@progbits,other,comdat\n.asciz \"license=x\""
		}), Limits{}, ErrFormat, "more than one section .modinfo"},
		{"versions of odd size", made(func(s *source) { s.raw = ".section __versions,\"a\"\n.long 1" }), Limits{}, ErrFormat, "multiple of 64"},
		{"version without end", made(func(s *source) { s.versions[0].Name = strings.Repeat("x", 56) }), Limits{}, ErrFormat, "without an end"},
		{"fewer names", made(func(s *source) {
			s.extended = s.versions
			s.raw = ".section __version_ext_crcs,\"a\"\n.long 1"
		}), Limits{}, ErrFormat, "no proper name"},
		{"more names", made(func(s *source) {
			s.extended = s.versions
			s.raw = ".section __version_ext_names,\"a\"\n.asciz \"more\""
		}), Limits{}, ErrFormat, "more names"},
		{"export elsewhere", made(func(s *source) { s.raw = ".data\n__ksymtab_x: .long 0" }), Limits{}, ErrFormat, "in section \".data\""},
		{"checksum past end", made(func(s *source) {
			s.exports[0].HasCRC = false
			s.raw = ".section __kcrctab,\"a\"\n.byte 1\n__crc_good_call: .byte 1"
		}), Limits{}, ErrFormat, "checksum"},
		{"bad build-id", made(func(s *source) { s.raw = ".section .note.gnu.build-id,\"a\",@note\n.long 4" }), Limits{}, ErrFormat, "build-id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Read(bytes.NewReader(tt.data), tt.limits)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %+v, %v; want %v with %q", m, err, tt.want, tt.say)
			}
		})
	}
}

func TestMachine(t *testing.T) {
	good := goodSource().bytes(t)
	for machine, want := range map[uint16]string{
		62: "x86_64", 183: "aarch64", 21: "ppc64le", 243: "riscv64", 258: "loongarch64", 8: "mips64",
		3: "unknown (EM_386, 64-bit, little-endian)",
	} {
		m, err := Read(bytes.NewReader(withMachine(good, machine)), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Machine != want {
			t.Errorf("machine %d: got %q, want %q", machine, m.Machine, want)
		}
	}
}

// appendSignature appends what scripts/sign-file does.
func appendSignature(ko, sig []byte) []byte {
	head := make([]byte, signatureHeader)
	head[2] = idPKCS7
	binary.BigEndian.PutUint32(head[8:], uint32(len(sig)))
	return slices.Concat(ko, sig, head, []byte(signatureMagic))
}

// sign makes a detached CMS signature with the real openssl.
func sign(t *testing.T, data []byte, args ...string) []byte {
	t.Helper()
	openssl, dir := tool(t, "openssl"), t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), openssl, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert",
		"-subj", "/O=Farm/CN=The signer", "-set_serial", "0x1234ab")
	run(append([]string{"cms", "-sign", "-binary", "-noattr", "-nocerts", "-in", "data", "-signer", "cert",
		"-inkey", "key", "-outform", "DER", "-out", "sig"}, args...)...)
	sig, err := os.ReadFile(filepath.Join(dir, "sig"))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestSignature(t *testing.T) {
	good := goodSource().bytes(t)
	sig := sign(t, good, "-md", "sha512")
	signed, path := appendSignature(good, sig), filepath.Join(t.TempDir(), "signed.ko")
	if err := os.WriteFile(path, signed, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := Read(bytes.NewReader(signed), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := &Signature{IDType: 2, Signer: "The signer", KeyID: "12:34:AB", Hash: "sha512", Algorithm: "rsa", Raw: sig}
	if !reflect.DeepEqual(m.Signature, want) {
		t.Errorf("got  %+v\nwant %+v", m.Signature, want)
	}
	said := map[string]string{}
	for _, kv := range modinfoFields(t, path) {
		said[kv.Key] = kv.Value
	}
	if said["signer"] != m.Signature.Signer || said["sig_key"] != m.Signature.KeyID || said["sig_hashalgo"] != m.Signature.Hash {
		t.Errorf("got %+v, modinfo says %v", m.Signature, said)
	}
	m.Signature = nil
	if !reflect.DeepEqual(m, wantGood()) {
		t.Errorf("got %+v", m)
	}
}

func TestSignatureOddities(t *testing.T) {
	good := goodSource().bytes(t)
	byKey, err := Read(bytes.NewReader(appendSignature(good, sign(t, good, "-keyid", "-md", "sha256"))), Limits{})
	if err != nil || byKey.Signature.Signer != "" || len(byKey.Signature.KeyID) != 20*3-1 || byKey.Signature.Hash != "sha256" {
		t.Errorf("by key id: %+v, %v", byKey, err)
	}
	junk, err := Read(bytes.NewReader(appendSignature(good, []byte("junk"))), Limits{})
	if err != nil || !reflect.DeepEqual(junk.Signature, &Signature{IDType: 2, Raw: []byte("junk")}) {
		t.Errorf("junk: %+v, %v", junk, err)
	}
	long := appendSignature(good, nil)
	binary.BigEndian.PutUint32(long[len(long)-len(signatureMagic)-4:], maxSignature)
	if _, err := Read(bytes.NewReader(long), Limits{}); !errors.Is(err, ErrFormat) {
		t.Errorf("longer than the file: %v", err)
	}
	binary.BigEndian.PutUint32(long[len(long)-len(signatureMagic)-4:], maxSignature+1)
	if _, err := Read(bytes.NewReader(long), Limits{}); !errors.Is(err, ErrLimit) {
		t.Errorf("over the limit: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	good := goodSource()
	good.extended, good.btf = good.versions, true
	f.Add(good.bytes(f))
	good.bits32, good.flags, good.absCRC = true, true, true
	f.Add(good.bytes(f))
	f.Add(appendSignature(good.bytes(f), []byte("0\x03\x06\x01\x00")))
	for _, c := range [][]string{{"gzip", "-nc"}, {"xz", "-c", "--block-size=1000"}, {"xz", "-c", "--check=sha256"}, {"zstd", "-qc"}} {
		cmd := exec.CommandContext(f.Context(), tool(f, c[0]), c[1:]...)
		cmd.Stdin = bytes.NewReader(good.bytes(f))
		data, err := cmd.Output()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		limits := Limits{Memory: 1 << 20, Tables: 1 << 20}
		m, err := Read(bytes.NewReader(data), limits)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrLimit) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		Check(m, Target{Release: testRelease, Arch: "x86_64"})
		if !slices.IsSorted(m.Undefined) {
			t.Errorf("not sorted: %q", m.Undefined)
		}
	})
}
