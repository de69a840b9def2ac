package farm

import (
	"errors"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

func TestPackageName(t *testing.T) {
	for file, want := range map[string]string{
		"foo-modules-6.1.0-56-amd64_1.0_amd64.deb":                "foo-modules-6.1.0-56-amd64.deb",
		"foo-dkms_1.0.dsc":                                        "foo-dkms.dsc",
		"foo-dkms_1.0.tar.xz":                                     "foo-dkms_1.0.tar.xz",
		"kmod-foo_bar-6.1.192-56.el9.x86_64-1.0~rc1-1.x86_64.rpm": "kmod-foo_bar-6.1.192-56.el9.x86_64.rpm",
		"kernel-module-foo-1.0-6.1.0_56_amd64.x86_64.rpm":         "kernel-module-foo.rpm",
		"kernel-module-foo-1.0-1.src.rpm":                         "kernel-module-foo.rpm",
		"foo_bar-1.0-kernel6.1.0-56-amd64-x86_64.dkms.tar.gz":     "foo_bar-1.0-kernel6.1.0-56-amd64-x86_64.dkms.tar.gz",
	} {
		if got := packageName(file); got != want {
			t.Errorf("%s: got %s, want %s", file, got, want)
		}
	}
}

// TestUnsteady warns of what dkms loads by a dkms.conf that may say other things
// there, and of nothing else.
func TestUnsteady(t *testing.T) {
	c, results := publisher(t)
	c.Output.DKMS.Layouts = []matrix.Layout{matrix.BinariesOnly, matrix.Stub, matrix.Full, matrix.SourceOnly, matrix.Combined}
	results[0].Record.Unsteady = "dkms.conf throws dice"
	got, err := c.Collect(t.Context(), results)
	if err != nil {
		t.Fatal(err)
	}
	kernel := results[0].Cell.Kernel.Release
	for _, f := range got.Report.Files {
		dkms := strings.HasSuffix(f.Path, ".dkms.tar.gz") && strings.Contains(f.Path, kernel) || strings.Contains(f.Path, "-dkms_")
		if warned := strings.Contains(strings.Join(got.Report.warnings(f.Path), "\n"), "throws dice: there dkms may install only"); warned != dkms {
			t.Errorf("%s: warned is %v", f.Path, warned)
		}
	}
	if got.Report.Cells[0].Unsteady == "" {
		t.Error("the cell does not have it")
	}
}

// Versions of one module are versions of one package; those of two are not.
func TestClash(t *testing.T) {
	file := func(name, module, version string) Package {
		c := &Cell{Cell: &matrix.Cell{Module: &matrix.ModuleVersion{Name: module, Version: version}}}
		c.Inputs.Source = &images.Source{Name: module, Version: version}
		return Package{Name: name, Cells: []*Cell{c}}
	}
	first := file("foo-bar-dkms_1.0_all.deb", "foo_bar", "1.0")
	for _, tt := range []struct {
		second Package
		clash  string
	}{
		{file("foo-bar-dkms_2.0_all.deb", "foo_bar", "2.0"), ""},
		{file("foo-bar-dkms_2.0_all.deb", "foo-bar", "2.0"), "foo-bar-dkms.deb"},
		{file("foo-bar-dkms_1.0_all.deb", "foo_bar", "1_0"), "foo-bar-dkms_1.0_all.deb"},
		{file("foo-bar-dkms-2.0-1.noarch.rpm", "foo-bar", "2.0"), ""},
	} {
		err := clash([]Package{first, tt.second})
		named, ok := errors.AsType[*NameError](err)
		if ok != (tt.clash != "") || ok && named.Name != tt.clash {
			t.Errorf("%s of %s: %v, want a clash on %q", tt.second.Name, tt.second.Cells[0].Inputs.Source.Name, err, tt.clash)
		}
	}
}
