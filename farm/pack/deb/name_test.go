package deb

import (
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for _, tt := range []struct{ in, want, say string }{
		{"acpi_call", "acpi-call", ""},
		{"NVIDIA", "nvidia", ""},
		{"lib++x.y", "lib++x.y", ""},
		{"6.1.192-56.host108.x86_64", "6.1.192-56.host108.x86-64", ""},
		{"a~b", "", `"a~b" makes no package name`},
		{"x", "", "does not match"}, // Debian wants two characters
		{"_x", "", "does not match"},
		{"", "", "does not match"},
		{"../x", "", "does not match"},
		{"a b", "", "does not match"},
		{"ä1", "", "does not match"},
		{"aa\n", "", "does not match"},
		{strings.Repeat("a", 129), "", "longer than 128"},
	} {
		got, err := Name(tt.in)
		if got != tt.want || (err == nil) != (tt.say == "") || err != nil && !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%q: got %q, %v", tt.in, got, err)
		}
	}
}

func TestPackageNames(t *testing.T) {
	name, err := ModulesName("acpi-call", "6.1.0-56-AMD64_x")
	if name != "acpi-call-modules-6.1.0-56-amd64-x" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	if name, err := ModulesName("acpi-call", "amd64"); err == nil {
		t.Errorf("a flavor for a release gives %q", name)
	}
	if name, err := MetaName("acpi-call", "6.1.0-56-amd64"); err == nil {
		t.Errorf("a release for a flavor gives %q", name)
	}
	name, err = MetaName("acpi-call", "cloud_amd64")
	if name != "acpi-call-modules-cloud-amd64" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
}

var versions = []struct{ in, want, say string }{
	{"1.2.2", "1.2.2", ""},
	{"1.2-3", "1.2-3", ""},
	{"1.2-rc1-3", "1.2-rc1-3", ""},
	{"1.0~rc1+git20200101", "1.0~rc1+git20200101", ""},
	{"1_2", "1.2", ""},
	{"r57", "0+r57", ""},
	{"V1.0", "0+V1.0", ""},
	{"20230101.ABC", "20230101.ABC", ""},
	{"1:2", "", "epoch"},
	{"1.2-", "", "empty revision"},
	{"", "", "does not match"},
	{".5", "", "does not match"},
	{"1 2", "", "does not match"},
	{"1.2\n", "", "does not match"},
	{"1/2", "", "does not match"},
	{"$(id)", "", "does not match"},
	{strings.Repeat("1", 101), "", "longer than 100"},
}

func TestVersion(t *testing.T) {
	for _, tt := range versions {
		got, err := Version(tt.in)
		if got != tt.want || (err == nil) != (tt.say == "") || err != nil && !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%q: got %q, %v", tt.in, got, err)
		}
		if err == nil {
			run(t, ".", "dpkg", "--validate-version", got)
		}
	}
}

// The order of what is derived, as dpkg sees it.
func TestVersionOrder(t *testing.T) {
	with := func(module, kernel string) string {
		v, err := WithKernel(module, kernel)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ascending := []string{
		"0+r57",
		"1.2.2~rc1",
		"1.2.2",
		with("1.2.2", "6.1.0-9-amd64"),
		with("1.2.2", "6.1.0-10-amd64"),
		with("1.2.2", "6.1.170-1~bpo11+1"),
		with("1.2.2", "6.1.170-1"),
		with("1.2.2", "6.1.170-2"),
		with("1.2.2", "6.1.174-1"),
		with("1.2.2", "6.12.5-1"),
		with("1.2.2-3", "6.1.170-1"),
		with("1.3", "5.10.1-1"),
	}
	for i := 1; i < len(ascending); i++ {
		run(t, ".", "dpkg", "--compare-versions", ascending[i-1], "lt", ascending[i])
	}
	if ascending[6] != "1.2.2+6.1.170-1" {
		t.Error(ascending[6])
	}
	if v, err := WithKernel("1.0", "4:6.1"); err == nil {
		t.Errorf("a kernel version with an epoch gives %q", v)
	}
}

// Whatever Version gives, dpkg takes.
func FuzzVersion(f *testing.F) {
	for _, tt := range versions {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := Version(s)
		if err != nil {
			return
		}
		run(t, ".", "dpkg", "--validate-version", v)
		if len(v) < len(s) {
			t.Errorf("%q lost something: %q", s, v)
		}
	})
}

func TestUpstream(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		native   bool
	}{{"1.2", "1.2", true}, {"1.2-3", "1.2", false}, {"2:1-2-3", "1-2", false}, {"2:1", "1", true}} {
		if got, native := upstream(tt.in); got != tt.want || native != tt.native {
			t.Errorf("%s: got %s, %v", tt.in, got, native)
		}
	}
}
