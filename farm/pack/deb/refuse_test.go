package deb

import (
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

func refused(t *testing.T, p pkg, say string) {
	t.Helper()
	if err := p.Write(io.Discard); err == nil || !strings.Contains(err.Error(), say) {
		t.Errorf("got %v, want %q", err, say)
	}
}

func TestInfoRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Info)
		say    string
	}{
		{"name with slash", func(i *Info) { i.Module = "../x" }, `"../x"`},
		{"name for a shell", func(i *Info) { i.Module, i.Name = "a'b", "ab" }, "module name"},
		{"tilde", func(i *Info) { i.Module = "a~b" }, "makes no package name"},
		{"capital in given name", func(i *Info) { i.Name = "Ab" }, "package name"},
		{"no version", func(i *Info) { i.ModuleVersion = "" }, "version"},
		{"version for a shell", func(i *Info) { i.ModuleVersion, i.Version = "1'", "1" }, "module version"},
		{"given version", func(i *Info) { i.Version = "v1" }, `version "v1"`},
		{"kernel's arch", func(i *Info) { i.Arch = "x86_64" }, `called "amd64"`},
		{"arch all", func(i *Info) { i.Arch = "all" }, "architecture"},
		{"no arch", func(i *Info) { i.Arch = "" }, "architecture"},
		{"no license", func(i *Info) { i.Licenses = nil }, "no MODULE_LICENSE"},
		{"empty license", func(i *Info) { i.Licenses = []string{"GPL", ""} }, "no MODULE_LICENSE"},
		{"license with lines", func(i *Info) { i.Licenses = []string{"GPL\n\nx"} }, "not a line"},
		{"author with lines", func(i *Info) { i.Authors = []string{"a\nb"} }, "not a line"},
		{"author not UTF-8", func(i *Info) { i.Authors = []string{"\xff"} }, "not a line"},
		{"many authors", func(i *Info) { i.Authors = make([]string, 1001) }, "at most 1000"},
		{"summary with field", func(i *Info) { i.Summary = "x\nDepends: y" }, "summary"},
		{"escape in description", func(i *Info) { i.Description = "\x1b[2J" }, "description"},
		{"long description", func(i *Info) { i.Description = strings.Repeat("x", 1<<20+1) }, "description"},
		{"maintainer", func(i *Info) { i.Maintainer = "nobody" }, "maintainer"},
		{"maintainer with field", func(i *Info) { i.Maintainer = "a\nb <c@d>" }, "maintainer"},
		{"homepage", func(i *Info) { i.Homepage = "javascript:x" }, "homepage"},
		{"section", func(i *Info) { i.Section = "a b" }, "section"},
		{"priority", func(i *Info) { i.Priority = "high" }, "priority"},
		{"relation", func(i *Info) { i.Relations = map[string]string{"Essential": "yes"} }, `relation "Essential"`},
		{"relation with field", func(i *Info) { i.Relations = map[string]string{"Breaks": "a\nEssential: yes"} }, "Breaks"},
		{"no epoch", func(i *Info) { i.Epoch = time.Time{} }, "epoch"},
		{"far epoch", func(i *Info) { i.Epoch = time.Unix(1<<33, 0) }, "epoch"},
		{"compression", func(i *Info) { i.Compression = "bz2" }, `compression "bz2"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := testModules()
			tt.change(&m.Info)
			refused(t, m, tt.say)
			n := testMeta()
			tt.change(&n.Info)
			refused(t, n, tt.say)
			u := testTools()
			tt.change(&u.Info)
			refused(t, u, tt.say)
			d := testDKMS()
			tt.change(&d.Info)
			if !strings.Contains(tt.name, "arch") {
				refused(t, d, tt.say)
			}
		})
	}
}

func TestModulesRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Modules)
		say    string
	}{
		{"kernel", func(m *Modules) { m.Kernel = "6.1/../.." }, "kernel release"},
		{"kernel for a shell", func(m *Modules) { m.Kernel = "6.1'" }, "kernel release"},
		{"kernel with tilde", func(m *Modules) { m.Kernel = "6.1~rc1" }, "makes no package name"},
		{"kernel version", func(m *Modules) { m.KernelVersion = "1:6.1" }, "epoch"},
		{"folder of another kernel", func(m *Modules) { m.Dir = "/lib/modules/6.2/x" }, "folder"},
		{"folder that leaves", func(m *Modules) { m.Dir = "/lib/modules/" + testKernel + "/../x" }, "folder"},
		{"the kernel's folder", func(m *Modules) { m.Dir = "/lib/modules/" + testKernel }, "folder"},
		{"depends", func(m *Modules) { m.Depends = "a\nEssential: yes" }, "Depends"},
		{"module compression", func(m *Modules) { m.Compress = "bz2" }, `compression "bz2"`},
		{"no modules", func(m *Modules) { m.Files = nil }, "no modules"},
		{"compressed module", func(m *Modules) { m.Files[0].Dest = "a.ko.xz" }, "module file"},
		{"module with slash", func(m *Modules) { m.Files[0].Dest = "a/b.ko" }, "module file"},
		{"module twice", func(m *Modules) { m.Files[1].Dest = "acpi-call.ko" }, "two modules called"},
		{"empty module", func(m *Modules) { m.Files[0].Size = 0 }, "of 0 bytes"},
		{"shorter module", func(m *Modules) { m.Files[0].Size++ }, "content is not of the"},
		{"longer module", func(m *Modules) { m.Files[0].Size-- }, "content is not of the"},
		{"unreadable module", func(m *Modules) {
			m.Files[0].Open = func() (io.ReadCloser, error) { return nil, os.ErrNotExist }
		}, "file does not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, c := range []Compression{"", XZ} {
				m := testModules()
				m.Compress = c
				tt.change(&m)
				refused(t, m, tt.say)
			}
		})
	}
}

func files(list ...dkms.File) iter.Seq2[dkms.File, error] {
	return func(yield func(dkms.File, error) bool) {
		for _, f := range list {
			if !yield(f, nil) {
				return
			}
		}
	}
}

func TestFilesRefused(t *testing.T) {
	one := func(p string) dkms.File { return dkms.File{Path: p, Size: 1, Open: content("x")} }
	for _, tt := range []struct {
		name  string
		files iter.Seq2[dkms.File, error]
		say   string
	}{
		{"path leaves", files(one("../x")), "leaves the tree"},
		{"line break", files(one("usr/a\nb")), "control character"},
		{"device", files(dkms.File{Path: "usr/x", Mode: os.ModeDevice}), "neither file"},
		{"link out", files(dkms.File{Path: "usr/x", Mode: os.ModeSymlink, Link: "../../y"}), "leads out"},
		{"twice", files(one("usr/x"), one("usr/x")), "there twice"},
		{"below a file", files(one("usr/x"), one("usr/x/y")), "not a folder"},
		{"below a link", files(dkms.File{Path: "usr/x", Mode: os.ModeSymlink, Link: "y"}, one("usr/x/y")), "not a folder"},
		{"error", func(yield func(dkms.File, error) bool) { yield(dkms.File{}, os.ErrPermission) }, "permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, d := testTools(), testDKMS()
			u.Files, d.Source = tt.files, tt.files
			refused(t, u, tt.say)
			refused(t, d, tt.say)
			err := d.WriteSource(func(string) (io.WriteCloser, error) { return nopCloser{io.Discard}, nil })
			if err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("source: got %v, want %q", err, tt.say)
			}
		})
	}
	for _, p := range []string{"root/.ssh/x", "vmlinuz", "lib/modules/6.1/x.ko", "var/lib/dpkg/status", "usr"} {
		u := testTools()
		u.Files = files(one(p))
		refused(t, u, `"`+p[:3])
	}
}

func TestDKMSRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*DKMS)
		say    string
	}{
		{"no conf", func(d *DKMS) { d.Conf = nil }, "dkms.conf"},
		{"no source", func(d *DKMS) { d.Source = nil }, "a source"},
		{"conf is a link", func(d *DKMS) {
			d.Source = files(dkms.File{Path: "dkms.conf", Mode: os.ModeSymlink, Link: "x"})
		}, "not a regular file"},
		{"prebuilt twice", func(d *DKMS) { d.Prebuilt = slices.Concat(d.Prebuilt, d.Prebuilt) }, "there twice"},
		{"prebuilt for Debian's arch", func(d *DKMS) { d.Prebuilt[0].Arch = "amd64" }, `"x86_64"`},
		{"prebuilt for no kernel", func(d *DKMS) { d.Prebuilt[0].Kernel = "../x" }, "kernel release"},
		{"empty prebuilt", func(d *DKMS) { d.Prebuilt[0].Size = 0 }, "cannot be read"},
		{"prebuilt's compression", func(d *DKMS) { d.Prebuilt[0].Compression = "../x" }, "compression"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := testPrebuilt()
			tt.change(&d)
			refused(t, d, tt.say)
		})
	}
}

// Two modules that map to one package name can be told before anything is
// written.
func TestClash(t *testing.T) {
	a, b := testModules(), testModules()
	b.Module = "ACPI-call"
	first, err := a.FileName()
	if err != nil {
		t.Fatal(err)
	}
	if second, err := b.FileName(); err != nil || second != first {
		t.Errorf("%s and %s (%v)", first, second, err)
	}
}
