package kmod

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestParseSymvers(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       Symbol
		crcs       bool
	}{
		{"namespace last", "0x4c9d28b0\tfoo\tvmlinux\tEXPORT_SYMBOL_GPL\tCXL\n", Symbol{"foo", 0x4c9d28b0, "vmlinux", true, "CXL"}, true},
		{"no namespace", "0x4c9d28b0\tfoo\tvmlinux\tEXPORT_SYMBOL\t\n", Symbol{"foo", 0x4c9d28b0, "vmlinux", false, ""}, true},
		{"to 5.3", "0x4c9d28b0\tfoo\tdrivers/a/b\tEXPORT_SYMBOL_GPL\n", Symbol{"foo", 0x4c9d28b0, "drivers/a/b", true, ""}, true},
		{"5.4.0", "0x4c9d28b0\tfoo\tUSB\tdrivers/a/b\tEXPORT_SYMBOL\n", Symbol{"foo", 0x4c9d28b0, "drivers/a/b", false, "USB"}, true},
		{"5.4.0, none", "0x4c9d28b0\tfoo\t\tdrivers/a/b\tEXPORT_SYMBOL_GPL_FUTURE\n", Symbol{"foo", 0x4c9d28b0, "drivers/a/b", true, ""}, true},
		{"for modules", "0x00000000\tfoo\tvmlinux\tEXPORT_SYMBOL_GPL\tmodule:kvm,kvm-amd\n", Symbol{"foo", 0, "vmlinux", true, "module:kvm,kvm-amd"}, false},
		{"unused", "0x1\tfoo\tvmlinux\tEXPORT_UNUSED_SYMBOL_GPL\t", Symbol{"foo", 1, "vmlinux", true, ""}, true},
		{"listed twice", "0x1\tfoo\tvmlinux\tEXPORT_SYMBOL\t\n0x2\tfoo\tother\tEXPORT_SYMBOL\t\n", Symbol{"foo", 1, "vmlinux", false, ""}, true},
		{"among others", "0x1\tz\tm\tEXPORT_SYMBOL\t\n0x2\tfoo\tm\tEXPORT_SYMBOL\t\n0x3\ta\tm\tEXPORT_SYMBOL\t\n", Symbol{"foo", 2, "m", false, ""}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseSymvers(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := s.Lookup("foo"); !ok || got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if s.HasCRCs() != tt.crcs {
				t.Errorf("HasCRCs %v", s.HasCRCs())
			}
			if _, ok := s.Lookup("fo"); ok {
				t.Error("found fo")
			}
		})
	}
}

func TestParseSymversRefuses(t *testing.T) {
	for _, tt := range []struct {
		text, say string
		want      error
	}{
		{"0x1\tfoo\n", "Module.symvers:1: malformed: 2 columns", ErrFormat},
		{"0x1\ta\tm\tEXPORT_SYMBOL\t\n\n", "Module.symvers:2: malformed: 1 columns", ErrFormat},
		{"0x123456789\tfoo\tm\tEXPORT_SYMBOL\t\n", `checksum "0x123456789"`, ErrFormat},
		{"12\tfoo\tm\tEXPORT_SYMBOL\t\n", `checksum "12"`, ErrFormat},
		{"0x1\tfoo\tm\tSYMBOL\t\n", "EXPORT_SYMBOL", ErrFormat},
		{"0x1\t\tm\tEXPORT_SYMBOL\t\n", "symbol", ErrFormat},
		{strings.Repeat("x", maxSymversLine+1), "in a line", ErrLimit},
	} {
		_, err := ParseSymvers(strings.NewReader(tt.text))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%.40q: got %v, want %q", tt.text, err, tt.say)
		}
	}
}

// A coordinator holds several of these: 25,000 symbols must stay under 2 MB.
func TestSymversMemory(t *testing.T) {
	var b strings.Builder
	for i := range 25000 {
		fmt.Fprintf(&b, "0x%08x\tsome_subsystem_function_%d\tdrivers/some/where/module%d\tEXPORT_SYMBOL_GPL\tNS%d\n", i, i, i/5, i%50)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, err := ParseSymvers(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 2<<20 {
		t.Errorf("%d symbols take %d bytes", s.Len(), got)
	}
	runtime.KeepAlive(s)
}

func FuzzParseSymvers(f *testing.F) {
	f.Add(goodSymvers)
	f.Add("0x1\tfoo\tNS\tm\tEXPORT_SYMBOL\n0x1\tfoo\tm\tEXPORT_SYMBOL")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSymvers(strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrLimit) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		for i := range s.Len() {
			if got, ok := s.Lookup(s.name(i)); !ok || got.Name != s.name(i) {
				t.Errorf("%q is not found", s.name(i))
			}
		}
	})
}
