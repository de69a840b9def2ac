package kmod

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// source describes a small module in terms of what it is made of; the real
// assembler turns it to a relocatable object.
type source struct {
	modinfo   []string
	noModinfo bool
	versions  []Version // __versions
	extended  []Version // __version_ext_*
	exports   []Export
	absCRC    bool // __crc_X as absolute symbols (to 5.17), else in __kcrctab
	flags     bool // GPL told by __kflagstab (7.x), else by section
	undefined []string
	weak      []string
	btf       bool
	bits32    bool
	raw       string // more assembler
}

const testRelease = "6.1.0-56-amd64"

// goodSource is a module that fits goodSymvers.
func goodSource() source {
	return source{
		modinfo: []string{
			"license=GPL", "description=a test", "version=1.2", "alias=pci:v1*", "alias=pci:v2*",
			"depends=", "name=good", "vermagic=" + testRelease + " SMP preempt mod_unload modversions ",
		},
		versions:  []Version{{"module_layout", 0x11111111}, {"_printk", 0x22222222}, {"kfree", 0x00000033}},
		exports:   []Export{{"good_call", 0xdeadbeef, true, false, ""}, {"good_gpl", 0x12345678, true, true, "GOOD_NS"}},
		undefined: []string{"_printk", "kfree"},
		weak:      []string{"maybe_there"},
	}
}

const goodSymvers = "0x11111111\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x22222222\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x00000033\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n" +
	"0x44444444\tgpl_only\tkernel/gpl\tEXPORT_SYMBOL_GPL\tSPACE\n"

// assembly writes the source for GNU as, x86.
func (s source) assembly() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if !s.noModinfo {
		p(`.section .modinfo,"a"`)
		for _, kv := range s.modinfo {
			p(`.asciz %q`, kv)
		}
	}
	s.assembleVersions(p)
	s.assembleExports(p)
	p(".text")
	for _, name := range s.undefined {
		p("call %s", name)
	}
	for _, name := range s.weak {
		p(".weak %s\ncall %s", name, name)
	}
	if s.btf {
		p(".section .BTF,\"\"\n.long 0")
	}
	p("%s", s.raw)
	return b.String()
}

func (s source) assembleVersions(p func(string, ...any)) {
	long, name := ".quad", 56
	if s.bits32 {
		long, name = ".long", 60
	}
	if len(s.versions) > 0 {
		p(`.section __versions,"a"`)
	}
	for _, v := range s.versions {
		p("%s %#x\n.ascii %q\n.zero %d", long, v.CRC, v.Name, name-len(v.Name))
	}
	if len(s.extended) > 0 {
		p(".section __version_ext_crcs,\"a\"")
		for _, v := range s.extended {
			p(".long %#x", v.CRC)
		}
		p(".section __version_ext_names,\"a\"")
		for _, v := range s.extended {
			p(".asciz %q", v.Name)
		}
	}
}

func (s source) assembleExports(p func(string, ...any)) {
	for _, x := range s.exports {
		suffix := ""
		if x.GPL && !s.flags {
			suffix = "_gpl"
		}
		p(".section __ksymtab_strings,\"aMS\",@progbits,1\n__kstrtabns_%s: .asciz %q", x.Name, x.Namespace)
		p(".section __ksymtab%s,\"a\"\n__ksymtab_%s: .long %[2]s - ., 0, 0", suffix, x.Name)
		if s.flags {
			flag := 0
			if x.GPL {
				flag = 1
			}
			p(".section __kflagstab,\"a\"\n.byte %d", flag)
		}
		switch {
		case x.HasCRC && s.absCRC:
			p(".globl __crc_%s\n.set __crc_%[1]s, %#x", x.Name, x.CRC)
		case x.HasCRC:
			p(".section __kcrctab%s,\"a\"\n__crc_%s: .long %#x", suffix, x.Name, x.CRC)
		}
		p(".text\n.globl %s\n%[1]s: ret", x.Name)
	}
}

// build assembles a module and returns its path.
func (s source) build(t testing.TB) string {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Fatal("gcc is not installed")
	}
	dir := t.TempDir()
	asm, ko := filepath.Join(dir, "m.s"), filepath.Join(dir, "m.ko")
	if err := os.WriteFile(asm, []byte(s.assembly()), 0o644); err != nil {
		t.Fatal(err)
	}
	bits := "--64"
	if s.bits32 {
		bits = "--32"
	}
	cmd := exec.CommandContext(t.Context(), cc, "-c", "-Wa,"+bits, "-o", ko, asm)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("assembling: %v\n%s", err, out)
	}
	return ko
}

// bytes assembles a module.
func (s source) bytes(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile(s.build(t))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// machine returns the object with another machine in its header.
func withMachine(data []byte, machine uint16) []byte {
	data = bytes.Clone(data)
	binary.LittleEndian.PutUint16(data[18:], machine)
	return data
}
