package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLiterals(t *testing.T) {
	tests := []struct{ conf, name, version string }{
		{"PACKAGE_NAME=hello\nPACKAGE_VERSION=1.0\n", "hello", "1.0"},
		{"PACKAGE_NAME=\"hello\" # comment\nPACKAGE_VERSION='1.0'\r\n", "hello", "1.0"},
		{"  PACKAGE_NAME=hello  \n\tPACKAGE_VERSION=1.0", "hello", "1.0"},
		{"PACKAGE_VERSION=1:2.0~rc1-3\n", "", "1:2.0~rc1-3"},
		{"PACKAGE_NAME=\"$NAME\"\nPACKAGE_VERSION=`cat VERSION`\n", "", ""},
		{"PACKAGE_NAME=$(basename $PWD)\nPACKAGE_VERSION=1\\ 0\n", "", ""},
		{"PACKAGE_NAME=a; PACKAGE_VERSION=1\n", "", ""},
		{"PACKAGE_NAME=a\nif x; then PACKAGE_NAME=b; fi\n", "", ""},
		{"PACKAGE_NAME=a\nPACKAGE_NAME=b\n", "", ""},
		{"# PACKAGE_NAME=a\nPACKAGE_VERSION=1\n", "", "1"},
		{"MY_PACKAGE_NAME=a\n", "", ""},
		{"", "", ""},
	}
	for _, tt := range tests {
		s := Source{Conf: []byte(tt.conf)}
		if s.literals(); s.Name != tt.name || s.Version != tt.version {
			t.Errorf("%q: got %q %q, want %q %q", tt.conf, s.Name, s.Version, tt.name, tt.version)
		}
	}
}

// FuzzLiterals takes bash for an oracle: what is read literally is what bash
// assigns.
func FuzzLiterals(f *testing.F) {
	for _, s := range []string{"PACKAGE_NAME=a\nPACKAGE_VERSION=1", "PACKAGE_NAME=\"a b\"", "PACKAGE_NAME='x'#c", "PACKAGE_NAME=a#b", "PACKAGE_VERSION=~"} {
		f.Add(s)
	}
	plain := func(s string) bool { // nothing that runs or opens anything
		return len(s) < 200 && strings.Trim(s, "PACKGENMVRSIOabc123.\"'=#~-+ \n\r\t") == ""
	}
	f.Fuzz(func(t *testing.T, conf string) {
		s := Source{Conf: []byte(conf)}
		s.literals()
		if s.Name == "" || !plain(conf) {
			return
		}
		// As DKMS does, a trailing carriage return is dropped.
		out, err := exec.Command("bash", "-c", "eval \"$1\" 2>/dev/null; printf %s \"${PACKAGE_NAME%$'\\r'}\"", "bash", conf).Output()
		if err == nil && len(out) > 0 && string(out) != s.Name {
			t.Errorf("%q: got %q, bash says %q", conf, s.Name, out)
		}
	})
}

func TestSplitDir(t *testing.T) {
	tests := []struct{ dir, name, version, wantName, wantVersion string }{
		{"acpi-call-1.2.2", "", "", "acpi-call", "1.2.2"},
		{"r8168-8.051.02", "", "", "r8168", "8.051.02"},
		{"acpi-call-1.2.2", "acpi-call", "", "acpi-call", "1.2.2"},
		{"x-git20200101-1", "", "git20200101-1", "x", "git20200101-1"},
		{"a-1-b-2", "", "", "a-1-b", "2"},
		{"foo-1.0-2", "foo", "9", "foo", "1.0-2"},
		{"nothing", "", "", "", ""},
		{"-1", "", "", "", ""},
	}
	for _, tt := range tests {
		if n, v := splitDir(tt.dir, tt.name, tt.version); n != tt.wantName || v != tt.wantVersion {
			t.Errorf("%q with %q, %q: got %q %q, want %q %q", tt.dir, tt.name, tt.version, n, v, tt.wantName, tt.wantVersion)
		}
	}
}

const conf = "PACKAGE_NAME=hello\nPACKAGE_VERSION=1.0\n"

func TestDebSource(t *testing.T) {
	p := debFile(t, "hello-dkms", "dkms (>= 2.1), libfoo-dev | bar", "", func(dir string) {
		write(t, dir, "usr/src/hello-1.0/dkms.conf", conf, 0o644)
		write(t, dir, "usr/src/hello-1.0/sub/dkms.conf", "PACKAGE_NAME=other\n", 0o644)
		write(t, dir, "usr/share/doc/hello-dkms/dkms.conf", "PACKAGE_NAME=example\n", 0o644)
		write(t, dir, "usr/src/hello-1.0/hello.c", "int x;", 0o644)
		write(t, dir, "usr/src/hello-1.0/sub/hello.c", "int y;", 0o644)
		write(t, dir, "usr/src/hello-1.0/hello.h", "int z;", 0o644)
		write(t, dir, "etc/dkms/hello.conf", "x", 0o644)
	})
	s, err := DebSource(p.Filename)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "hello" || s.Version != "1.0" || s.Digest != p.SHA256 || string(s.Conf) != conf || s.Depends != "dkms (>= 2.1), libfoo-dev | bar" {
		t.Errorf("got %+v", s)
	}
	if want := int64(len("int x;int y;")); s.Code != want {
		t.Errorf("%d bytes of code, want %d", s.Code, want)
	}
	l, err := sourceLayer(openStore(t), s)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(list(t, l), "\n")
	for _, want := range []string{"usr/src/hello-1.0/dkms.conf", "usr/src/hello-1.0/sub/dkms.conf", "etc/dkms/hello.conf"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	none := debFile(t, "none", "", "", func(dir string) { write(t, dir, "usr/src/dkms.conf", conf, 0o644) })
	if _, err := DebSource(none.Filename); !errors.Is(err, ErrNoConf) {
		t.Errorf("without a dkms.conf: %v", err)
	}
}

// tarball writes a tarball and gives its path.
func tarball(t *testing.T, headers ...*tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		data := ""
		if h.Typeflag == tar.TypeReg || h.Typeflag == 0 {
			data = h.Linkname
			h.Linkname, h.Size = "", int64(len(data))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x.tar")
	write(t, "", file, b.String(), 0o644)
	return file
}

// file is a regular file; tarball takes its content from Linkname.
func file(name, data string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: data, Mode: 0o644, ModTime: time.Unix(1e9, 0)}
}

func TestTarSource(t *testing.T) {
	plain := tarball(t, file("hello-1.0/sub/dkms.conf", "x"), file("hello-1.0/dkms.conf", conf), file("hello-1.0/.version", "v"),
		file("README", "outside"), &tar.Header{Typeflag: tar.TypeLink, Name: "hello-1.0/v", Linkname: "hello-1.0/.version"})
	for name, compress := range map[string][]string{
		"plain": {"cat"}, "gz": {"gzip", "-c"}, "xz": {"xz", "-c"}, "xz -9": {"xz", "-9c"}, "zst": {"zstd", "-c"}, "bz2": {"bzip2", "-c"},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := os.Open(plain)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			cmd := exec.Command(compress[0], compress[1:]...)
			cmd.Stdin = in
			data, err := cmd.Output()
			if err != nil {
				t.Fatalf("%q: %v", compress, err)
			}
			packed := filepath.Join(t.TempDir(), "hello")
			write(t, "", packed, string(data), 0o644)
			s, err := TarSource(packed)
			if err != nil {
				t.Fatal(err)
			}
			if s.Name != "hello" || s.Version != "1.0" || !s.Epoch.Equal(time.Unix(1e9, 0)) {
				t.Errorf("got %q %q %s", s.Name, s.Version, s.Epoch)
			}
			l, err := sourceLayer(openStore(t), s)
			if err != nil {
				t.Fatal(err)
			}
			wantList(t, l, `0 644 usr/src/hello-1.0/sub/dkms.conf "x"`, `0 644 usr/src/hello-1.0/dkms.conf "PACKAGE_NAME=hello\nP"`,
				`0 644 usr/src/hello-1.0/.version "v"`, `1 644 usr/src/hello-1.0/v -> usr/src/hello-1.0/.version`)
		})
	}
}

func TestHostileTar(t *testing.T) {
	good := file("h/dkms.conf", conf)
	huge := filepath.Join(t.TempDir(), "huge.tar.gz")
	write(t, "", huge, hugeTar(t), 0o644)
	tests := []struct{ name, file, want string }{
		{"a path that leaves", tarball(t, good, file("h/../../x", "")), "leaves"},
		{"an absolute path", tarball(t, good, file("/x", "")), "leaves"},
		{"a newline", tarball(t, good, file("h/a\nb", "")), "leaves"},
		{"a hard link that leaves", tarball(t, good, &tar.Header{Typeflag: tar.TypeLink, Name: "h/x", Linkname: "../../etc/shadow"}), "leaves"},
		{"a device", tarball(t, good, &tar.Header{Typeflag: tar.TypeChar, Name: "h/x"}), "no file, folder or link"},
		{"a pipe", tarball(t, good, &tar.Header{Typeflag: tar.TypeFifo, Name: "h/x"}), "no file, folder or link"},
		{"dkms.conf is a link", tarball(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "h/dkms.conf", Linkname: "/etc/passwd"}), "h/dkms.conf is a link to /etc/passwd"},
		{"dkms.conf is huge", tarball(t, file("h/dkms.conf", strings.Repeat("#", maxConf+1))), "is no file of at most"},
		{"more than the limit", huge, "a source may have"},
		{"no dkms.conf", tarball(t, file("h/x", "")), "no dkms.conf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := TarSource(tt.file); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// hugeTar is a small file that claims to hold more than a source may.
func hugeTar(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "x", Size: maxSourceBytes + 1}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestHardLinkOut links to a file beside the tree, which a layer leaves out.
func TestHardLinkOut(t *testing.T) {
	s, err := TarSource(tarball(t, file("secret", "s"), file("h/dkms.conf", conf), &tar.Header{Typeflag: tar.TypeLink, Name: "h/x", Linkname: "secret"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sourceLayer(openStore(t), s); err == nil || !strings.Contains(err.Error(), "out of the source") {
		t.Errorf("layer: %v", err)
	}
}

// TestUnpack tries to write through a link that a source brings.
func TestUnpack(t *testing.T) {
	outside := t.TempDir()
	s, err := TarSource(tarball(t, file("dkms.conf", conf), &tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: outside}, file("out/x", "escaped")))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := s.Unpack(root); err == nil {
		t.Error("a path through a link that leaves was taken")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Error("the source has escaped")
	}
}

func TestDirSource(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "dkms.conf", conf, 0o644)
	write(t, dir, ".git/config", "x", 0o644)
	write(t, dir, "sub/.git", "gitdir: /home/somebody", 0o644)
	write(t, dir, ".version", "1", 0o600)
	write(t, dir, "run", "#!/bin/sh", 0o700)
	link(t, os.Symlink, "run", filepath.Join(dir, "again"))
	s, err := DirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.Name, s.Version = "hello", "2" // as a farm file may say
	l, err := sourceLayer(openStore(t), s)
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, l, `0 644 usr/src/hello-2/.version "1"`, `2 777 usr/src/hello-2/again -> run`, `0 644 usr/src/hello-2/dkms.conf "PACKAGE_NAME=hello\nP"`,
		`0 755 usr/src/hello-2/run "#!/bin/sh"`, `5 755 usr/src/hello-2/sub/`)

	write(t, dir, "run", "changed", 0o755)
	if _, err := sourceLayer(openStore(t), s); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("a changed source: %v", err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := DirSource(dir); err == nil || !strings.Contains(err.Error(), "no file, folder or link") {
		t.Errorf("a pipe: %v", err)
	}
}

// TestDirSourceWithout has a module's folder before and after kofarm has written
// into it.
func TestDirSourceWithout(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"dkms.conf", "ci/run", "output/of.c"} {
		write(t, dir, name, conf, 0o644)
	}
	without := []string{at("ci/farm.yaml"), at("only/here/dist"), at("out"), filepath.Join(t.TempDir(), "store"), filepath.Dir(dir)}
	take := func(without ...string) (digest, packed string) {
		t.Helper()
		s, err := DirSource(dir, without...)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := PackTree(&b, dir, without...); err != nil {
			t.Fatal(err)
		}
		return s.Digest, b.String()
	}
	digest, packed := take()
	if d, p := take(without...); d != digest || p != packed {
		t.Error("what is not there makes a difference")
	}
	for _, name := range []string{"ci/farm.yaml", "only/here/dist/x.tar.gz", "elsewhere/results.json", "kofarm-differences/x", "ci/kofarm-differences/x", ".kofarm-tmp-1"} {
		write(t, dir, name, "x", 0o644)
	}
	link(t, os.Symlink, "elsewhere", at("out"))
	if d, p := take(without...); d != digest || p != packed {
		t.Error("what kofarm has written makes a difference")
	}
	s, err := DirSource(dir, without...)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]bool{
		at("new"): true, dir: true, at("only/new"): true, at("outer"): true,
		at("out"): false, at("elsewhere/x"): false, at("only/here/dist/a/b"): false, at("kofarm-differences"): false, filepath.Dir(dir): false, dir + "2": false,
	} {
		if s.Holds(file) != want {
			t.Errorf("it holds %s: want %t", file, want)
		}
	}
	write(t, dir, "only/new", "x", 0o644)
	if d, _ := take(without...); d == digest {
		t.Error("a file beside the output makes no difference")
	}
	if _, err := DirSource(dir, dir); err == nil || !strings.Contains(err.Error(), "a folder of its own") {
		t.Errorf("an output that is the source: %v", err)
	}
}

// TestDigest changes one thing of a folder at a time.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "dkms.conf", conf, 0o644)
	write(t, dir, "a", "a", 0o644)
	seen := map[string]string{}
	step := func(name string, same bool, change func()) {
		t.Helper()
		if change != nil {
			change()
		}
		s, err := DirSource(dir)
		if err != nil {
			t.Fatal(err)
		}
		before, known := seen[s.Digest]
		if known != same {
			t.Errorf("%s: digest known %t (%s), want %t", name, known, before, same)
		}
		seen[s.Digest] = name
	}
	a := filepath.Join(dir, "a")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step("first", false, nil)
	step("time", true, func() { must(os.Chtimes(a, time.Unix(1, 0), time.Unix(1, 0))) })
	step("read permission", true, func() { must(os.Chmod(a, 0o640)) })
	step("execute permission", false, func() { must(os.Chmod(a, 0o755)) })
	step("content", false, func() { write(t, dir, "a", "b", 0o755) })
	step("name", false, func() { must(os.Rename(a, a+"b")) })
	step("link", false, func() { must(os.Symlink("x", a)) })
	step("target", false, func() { must(os.Remove(a)); must(os.Symlink("y", a)) })
	step("folder", false, func() { must(os.Mkdir(filepath.Join(dir, "d"), 0o755)) })
}

func TestHeaders(t *testing.T) {
	const release = "6.1.0-9-amd64"
	tree := func(dir string) {
		write(t, dir, "include/generated/utsrelease.h", "#define UTS_RELEASE \""+release+"\"\n", 0o644)
		write(t, dir, "include/config/kernel.release", "6.1.99\n", 0o644)
		write(t, dir, "Module.symvers", "0x0\tx\tvmlinux\tEXPORT_SYMBOL\t\n", 0o644)
		write(t, dir, "tools/Module.symvers", "another\n", 0o644)
		write(t, dir, "scripts/run", "#!/bin/sh\n", 0o755)
	}
	dir := t.TempDir()
	tree(dir)
	deb := debFile(t, "headers", "", "", func(d string) { tree(filepath.Join(d, "usr/src/linux-headers-x")) })
	rpm := headersRPM(t, release, tree)
	for name, tt := range map[string]struct{ path, build string }{
		"folder": {dir, "usr/src/linux-headers-" + release},
		"deb":    {deb.Filename, "usr/src/linux-headers-x"},
		"rpm":    {rpm, "usr/src/kernels/" + release},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := OpenHeaders(release, []string{tt.path})
			if err != nil {
				t.Fatal(err)
			}
			symvers, err := h.Symvers()
			if err != nil || !strings.HasPrefix(string(symvers), "0x0\tx\t") {
				t.Errorf("symvers: %q, %v", symvers, err)
			}
			l, err := h.layer(openStore(t))()
			if err != nil {
				t.Fatal(err)
			}
			got := list(t, l)
			for _, want := range []string{"2 777 usr/lib/modules/" + release + "/build -> /" + tt.build, "0 755 " + tt.build + `/scripts/run "#!/bin/sh\n"`} {
				if !slices.Contains(got, want) {
					t.Errorf("no %q in\n  %s", want, strings.Join(got, "\n  "))
				}
			}
			if name == "rpm" {
				links := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.Contains(s, "/linked") })
				want := []string{`0 644 ` + tt.build + `/linked3 "linked"`, `1 644 ` + tt.build + `/linked1 -> ` + tt.build + `/linked3`, `1 644 ` + tt.build + `/linked2 -> ` + tt.build + `/linked3`}
				if !slices.Equal(links, want) {
					t.Errorf("hard links: got\n  %s\nwant\n  %s", strings.Join(links, "\n  "), strings.Join(want, "\n  "))
				}
			}
			if _, err := OpenHeaders("6.6.6", []string{tt.path}); err == nil || !strings.Contains(err.Error(), release) {
				t.Errorf("of another kernel: %v", err)
			}
		})
	}
	empty := t.TempDir()
	if _, err := OpenHeaders(release, []string{empty}); err == nil || !strings.Contains(err.Error(), "utsrelease.h") {
		t.Errorf("of no kernel: %v", err)
	}
	write(t, empty, "include/config/kernel.release", release+"\n", 0o644)
	h, err := OpenHeaders(release, []string{empty})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Symvers(); !errors.Is(err, ErrNoSymvers) {
		t.Errorf("without Module.symvers: %v", err)
	}
	if _, err := OpenHeaders(release, []string{filepath.Join(empty, "include/config/kernel.release")}); err == nil {
		t.Error("a text was taken for headers")
	}
}

// headersRPM makes a kernel-devel with rpmbuild, with hard links in it.
func headersRPM(t *testing.T, release string, tree func(string)) string {
	t.Helper()
	top, src := t.TempDir(), t.TempDir()
	tree(src)
	write(t, src, "linked1", "linked", 0o644)
	link(t, os.Link, filepath.Join(src, "linked1"), filepath.Join(src, "linked2"))
	link(t, os.Link, filepath.Join(src, "linked1"), filepath.Join(src, "linked3"))
	write(t, top, "kernel.spec", `Name: kernel-devel
Version: 1
Release: 1
Summary: x
License: GPL-2.0
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/usr/src/kernels
cp -a `+src+` %{buildroot}/usr/src/kernels/`+release+`
%files
/usr/src/kernels
`, 0o644)
	cmd := exec.Command("rpmbuild", "-bb", "--quiet", "--define", "_topdir "+top, "--define", "__os_install_post %{nil}", filepath.Join(top, "kernel.spec"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rpmbuild, of the package rpm: %v\n%s", err, out)
	}
	return filepath.Join(top, "RPMS/noarch/kernel-devel-1-1.noarch.rpm")
}
