package images

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const rpmConf = "PACKAGE_NAME=\"hello\"\nPACKAGE_VERSION=\"1.0\"\nBUILT_MODULE_NAME[0]=\"hello\"\nDEST_MODULE_LOCATION[0]=\"/extra\"\n"

// rpmTopdir makes an rpmbuild tree with hello-1.0.tar.gz, with or without a
// dkms.conf, and gives its folder.
func rpmTopdir(t *testing.T, conf bool) string {
	t.Helper()
	top := t.TempDir()
	for _, d := range []string{"SOURCES", "SPECS", "hello-1.0"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(top, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("hello-1.0/hello.c", "int x;\n")
	if conf {
		write("hello-1.0/dkms.conf", rpmConf)
	}
	write("SPECS/hello.spec", `Name: hello
Version: 1.0
Release: 1
Summary: a module
License: GPL-2.0
Source0: hello-1.0.tar.gz
BuildArch: noarch
%description
A module.
%prep
%setup -q
%install
mkdir -p %{buildroot}/usr/src/hello-1.0
cp -a * %{buildroot}/usr/src/hello-1.0/
ln %{buildroot}/usr/src/hello-1.0/hello.c %{buildroot}/usr/src/hello-1.0/again.c
%files
/usr/src/hello-1.0
`)
	command(t, top, "tar", "czf", "SOURCES/hello-1.0.tar.gz", "hello-1.0")
	command(t, top, "rpmbuild", "--define", "_topdir "+top, "-ba", "SPECS/hello.spec")
	return top
}

// command runs a tool that ci/setup installs.
func command(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s (see ci/setup): %v\n%s", name, err, out)
	}
}

func TestRPMSource(t *testing.T) {
	top := rpmTopdir(t, true)
	tests := []struct {
		file string
		want []string
	}{
		{"RPMS/noarch/hello-1.0-1.noarch.rpm", []string{"again.c", "dkms.conf", "hello.c"}},
		{"SRPMS/hello-1.0-1.src.rpm", []string{"dkms.conf", "hello.c"}},
	}
	for _, tt := range tests {
		t.Run(filepath.Base(tt.file), func(t *testing.T) {
			src, err := RPMSource(filepath.Join(top, tt.file))
			if err != nil {
				t.Fatal(err)
			}
			if src.Name != "hello" || src.Version != "1.0" || string(src.Conf) != rpmConf {
				t.Errorf("got %s/%s, dkms.conf %q", src.Name, src.Version, src.Conf)
			}
			if src.Epoch.Unix() <= 0 {
				t.Errorf("epoch %s, want dkms.conf's time", src.Epoch)
			}
			var got []string
			err = src.Walk(func(h *tar.Header, _ io.Reader) error {
				got = append(got, h.Name)
				return nil
			})
			slices.Sort(got)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestRPMSourceWithoutConf(t *testing.T) {
	top := rpmTopdir(t, false)
	for _, file := range []string{"RPMS/noarch/hello-1.0-1.noarch.rpm", "SRPMS/hello-1.0-1.src.rpm"} {
		_, err := RPMSource(filepath.Join(top, file))
		if !errors.Is(err, ErrNoConf) || strings.Contains(err.Error(), top) {
			t.Errorf("%s: got %v", file, err)
		}
	}
}
