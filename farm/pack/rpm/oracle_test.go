package rpm

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("rpm --root and mount namespaces need root: run the tests as root")
	}
}

// tags are what rpm reads of a package that says something about it.
func tags(t testing.TB, file string) string {
	t.Helper()
	return run(t, "rpm", "-qp", "--qf", "%{NAME}|%{VERSION}|%{RELEASE}|%{ARCH}|%{SUMMARY}|%{DESCRIPTION}|%{LICENSE}|%{GROUP}|%{URL}|%{SIZE}\n"+
		"[%{PROVIDES}|%{PROVIDEFLAGS}|%{PROVIDEVERSION}\n][%{REQUIRES}|%{REQUIREFLAGS}|%{REQUIREVERSION}\n]"+
		"[%{SUPPLEMENTS}|%{SUPPLEMENTFLAGS}|%{SUPPLEMENTVERSION}\n][%{ENHANCES}|%{ENHANCEFLAGS}|%{ENHANCEVERSION}\n]"+
		"%{POSTIN}|%{POSTINPROG}|%{POSTUN}|%{POSTUNPROG}|%{PREUN}|%{PREUNPROG}|%{POSTTRANS}|%{POSTTRANSPROG}\n"+
		"[%{FILENAMES}|%{FILEMODES:octal}|%{FILESIZES}|%{FILEDIGESTS}|%{FILELINKTOS}|%{FILEFLAGS}|%{FILEUSERNAME}|%{FILEGROUPNAME}\n]", file)
}

// specs are what one would write for rpmbuild to get the packages of the styles.
var specs = map[Style]string{
	Kmod: `Name: kmod-hello-%{kernel}
Version: 1.0
Release: 1
Summary: Kernel modules of hello for %{kernel}
Provides: kernel-modules-for-kernel = %{kernel}
Provides: hello-kmod = %{version}-%{release}
Provides: kmod(hello-mod.ko)
Provides: ksym(hello_call) = 0x0eadbeef
Provides: modalias(dmi*:svnACME%%20Inc:*)
Provides: modalias(hello-alias)
Provides: modalias(pci:v00008086d00001234sv*sd*bc*sc*i*)
Requires: kernel-uname-r = %{kernel}
Requires: kernel(kfree) = 0x00000033
Requires: kernel(module_layout) = 0x11111111
Requires: ksym(other_call) = 0x44444444
`,
	KernelModule: `Name: kernel-module-hello
Version: 1.0
Release: 6.1.192_56.host108
Summary: Kernel modules of hello for %{kernel}
Provides: kmod(hello-mod.ko)
Requires: kernel-uname-r = %{kernel}
`,
	KMP: `%global flavor host108
%global weak /usr/lib/module-init-tools/weak-modules2 /usr/libexec/module-init-tools/weak-modules2
Name: hello-kmp-%{flavor}
Version: 1.0_k6.1.192_56.host108
Release: 1
Summary: Kernel modules of hello for %{kernel}
Provides: hello-kmp = %{version}-%{release}
Provides: multiversion(kernel)
Provides: kmod(hello_mod.ko)
Provides: ksym(%{flavor}:hello_call) = eadbeef
Requires: ksym(%{flavor}:kfree) = 33
Requires: ksym(%{flavor}:module_layout) = 11111111
Requires: ksym(%{flavor}:other_call) = 44444444
Supplements: modalias(kernel-%{flavor}:dmi*:svnACME%%20Inc:*)
Supplements: modalias(kernel-%{flavor}:pci:v00008086d00001234sv*sd*bc*sc*i*)
Enhances: kernel-%{flavor}
`,
}

const specRest = `License: GPL-2.0-only
Group: System Environment/Kernel
URL: https://example.org/hello
AutoReqProv: no
%description
The kernel modules of hello 1.0, built for the kernel
%{kernel} on x86_64.
%install
install -D -m 644 %{_sourcedir}/hello.ko %{buildroot}/lib/modules/%{kernel}/FOLDER/hello-mod.ko
%files
OWNED
%post
POST
%postun
POSTUN
`

// What real rpmbuild makes of an equivalent spec says the same.
func TestLikeRpmbuild(t *testing.T) {
	for _, style := range Styles() {
		t.Run(string(style), func(t *testing.T) {
			file := store(t, t.TempDir(), testPackages(t)[string(style)])
			query := func(format string) string {
				return strings.ReplaceAll(run(t, "rpm", "-qp", "--qf", format, file), "%", "%%")
			}
			places := map[Style][2]string{KMP: {"updates", "/lib/modules/%{kernel}/updates"}}
			place, ok := places[style]
			if !ok {
				place = [2]string{"extra/hello", "/lib/modules/%{kernel}/extra"}
			}
			spec := specs[style] + strings.NewReplacer("FOLDER", place[0], "OWNED", place[1],
				"POSTUN", query("%{POSTUN}"), "POST", query("%{POSTIN}")).Replace(specRest)
			top := t.TempDir()
			path := rig.Write(t, top, "sample.spec", spec)
			run(t, "rpmbuild", "-bb", "--target", "x86_64", "--define", "_topdir "+top, "--define", "_sourcedir "+abs(t, "testdata"), "--define", "kernel "+testRelease,
				"--define", "__os_install_post %{nil}", "--define", "debug_package %{nil}", "--define", "_build_id_links none", path)
			want := tags(t, filepath.Join(top, "RPMS/x86_64", filepath.Base(file)))
			if got := tags(t, file); got != want {
				t.Errorf("got\n%s\nrpmbuild has\n%s", got, want)
			}
		})
	}
}

func abs(t testing.TB, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// stub writes a package with a kernel and the shell, whose depmod says what it
// was called with.
func stub(t *testing.T, withDepmod bool) string {
	t.Helper()
	p := rpmfile.Package{
		Name: "kernel", Version: "1", Release: "1", Arch: "x86_64", Summary: "stub", Description: "stub", License: "GPL-2.0-only",
		BuildTime: testInfo("").Epoch, SourceRPM: "kernel-1-1.src.rpm",
		Provides: []rpmfile.Dependency{is(kernelUname, testRelease), is("kernel(kfree)", "0x00000033"), is("kernel(module_layout)", "0x11111111"),
			is("ksym(other_call)", "0x44444444"), is("ksym(host108:kfree)", "33"), is("ksym(host108:module_layout)", "11111111"), is("ksym(host108:other_call)", "44444444")},
	}
	files := tree{
		"/bin/sh":                     program(t, "/bin/dash"),
		"/lib/modules/" + testRelease: folder(), "/lib/modules/" + testRelease + "/modules.builtin": content(""),
	}
	if withDepmod {
		files["/sbin/depmod"] = executable("#!/bin/sh\necho \"$@\" >> /depmod.log\nexit 1\n")
	}
	for line := range strings.Lines(run(t, "ldd", "/bin/dash")) {
		if lib := regexp.MustCompile(`(/\S+) \(0x`).FindStringSubmatch(line); lib != nil {
			files[lib[1]] = program(t, lib[1])
		}
	}
	var b bytes.Buffer
	if err := writeTree(&b, testSourceInfo().withDefaults(), &p, files); err != nil {
		t.Fatal(err)
	}
	return rig.Write(t, t.TempDir(), "kernel.rpm", b.String())
}

func executable(data string) file {
	return file{mode: rpmfile.TypeFile | 0o755, open: content(data).open}
}

// program is a program or library of this system.
func program(t *testing.T, path string) file {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return executable(string(data))
}

// Real rpm installs, verifies and erases the packages with all dependencies
// checked, and leaves nothing; without the kernel it refuses for that reason.
func TestInstall(t *testing.T) {
	needRoot(t)
	for _, style := range Styles() {
		for _, withDepmod := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s depmod=%v", style, withDepmod), func(t *testing.T) {
				file, root := store(t, t.TempDir(), testPackages(t)[string(style)+" xz"]), t.TempDir()
				rpm := func(args ...string) (string, error) {
					return command(t, "rpm", append([]string{"--root", root}, args...)...)
				}
				want := kernelUname + " = " + testRelease + " is needed by"
				if style == KMP {
					want = "ksym(host108:kfree) = 33 is needed by"
				}
				if out, err := rpm("-i", file); err == nil || !strings.Contains(out, want) {
					t.Errorf("without the kernel: %v\n%s", err, out)
				}
				name := strings.TrimSpace(run(t, "rpm", "-qp", "--qf", "%{NAME}", file))
				for _, args := range [][]string{{"-i", stub(t, withDepmod)}, {"-i", file}, {"-V", name}} {
					if out, err := rpm(args...); err != nil || strings.Contains(out, "failed") {
						t.Fatalf("rpm %q: %v\n%s", args, err, out)
					}
				}
				if withDepmod {
					checkDepmod(t, root, 1)
				}
				if out, err := rpm("-e", name); err != nil || strings.Contains(out, "failed") {
					t.Fatalf("rpm -e: %v\n%s", err, out)
				}
				if withDepmod {
					checkDepmod(t, root, 2)
				}
				left, err := filepath.Glob(root + "/lib/modules/*/*")
				if err != nil || len(left) != 1 {
					t.Errorf("rpm -e left %q, %v", left, err)
				}
			})
		}
	}
}

func checkDepmod(t *testing.T, root string, times int) {
	t.Helper()
	log, err := os.ReadFile(root + "/depmod.log")
	if want := strings.Repeat("-a "+testRelease+"\n", times); err != nil || string(log) != want {
		t.Errorf("depmod was called with %q, %v, want %q", log, err, want)
	}
}

// namespaceScript gives a command folders of its own where packages and dkms
// write, so that real tools can run on this system and leave it as it is.
const namespaceScript = `set -e
for dir in /usr/src /usr/share /lib/modules /var/lib/dkms /run; do
	mkdir -p "$dir"
	mount -t tmpfs kofarm "$dir"
done
`

// inNamespace runs a script with the tree of a fake kernel at hand in $kernel.
func inNamespace(t *testing.T, script string, args ...string) string {
	t.Helper()
	needRoot(t)
	kernel := filepath.Join(t.TempDir(), "kernel")
	rig.Write(t, kernel, "include/config/auto.conf", "CONFIG_CC_VERSION_TEXT=\"gcc (made up)\"\nCONFIG_MODULES=y\n")
	rig.Write(t, kernel, ".config", "CONFIG_MODULES=y\n")
	rig.Write(t, kernel, "Makefile", "all clean:\n\techo compiled for $(KERNELRELEASE)\n\ttest $@ = clean || $(CC) -c -o $(M)/hello.ko $(M)/hello.S\n")
	out, err := command(t, "unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c",
		namespaceScript + "kernel=" + kernel + "\n" + script, "sh"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// Real rpmbuild rebuilds the source package for a kernel without DKMS, and the
// result is like that of the kernel-module style.
func TestRebuild(t *testing.T) {
	top := t.TempDir()
	src := store(t, t.TempDir(), testPackages(t)["source"])
	for _, tt := range []struct{ name, place, defines, want, wantKernel string }{
		{"targetboard", "/usr/src/kernels/6.1.192-56.host108.x86_64",
			`--define "kernelversion 6.1.192" --define "kernelrpmrelease 56" --define "targetboard host108"`,
			"kernel-module-hello-1.0-6.1.192_56.host108.x86_64.rpm", "kernel-uname-r = 6.1.192-56.host108.x86_64"},
		{"vendor", "/lib/modules/6.1.192-56.el9.x86_64/build", `--define "kernelversion 6.1.192" --define "kernelrpmrelease 56.el9"`,
			"kernel-module-hello-1.0-6.1.192_56.el9.x86_64.rpm", "kernel-uname-r = 6.1.192-56.el9.x86_64"},
		{"debian's", "/lib/modules/6.1.0-56-amd64/build", `--define "kernelversion 6.1.0" --define "kernelrpmrelease 56" --define "flavor amd64"`,
			"kernel-module-hello-1.0-6.1.0_56_amd64.x86_64.rpm", "/lib/modules/6.1.0-56-amd64/modules.builtin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := inNamespace(t, `
mkdir -p "$(dirname "$2")" && cp -a "$kernel" "$2"
release=${2%/build}
echo "${release##*/}" > "$2/include/config/kernel.release"
eval rpmbuild --rebuild --target x86_64 --define '"_topdir $1"' "$3" '"$4"'
`, top, tt.place, tt.defines, src)
			file := filepath.Join(top, "RPMS/x86_64", tt.want)
			if _, err := os.Stat(file); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			requires := run(t, "rpm", "-qpR", file)
			if !strings.Contains(requires, tt.wantKernel+"\n") {
				t.Errorf("requires %s", requires)
			}
		})
	}
	like(t, filepath.Join(top, "RPMS/x86_64/kernel-module-hello-1.0-6.1.192_56.host108.x86_64.rpm"))
}

// like compares a rebuilt package with the one that is written for its kernel.
func like(t *testing.T, rebuilt string) {
	t.Helper()
	build := testBuild(t)
	build.Modules[0] = testModule(t, "hello.ko")
	own := store(t, t.TempDir(), pkg{filepath.Base(rebuilt), func(w io.Writer) error { return Package(w, testInfo(KernelModule), build) }})
	for _, format := range []string{"%{NAME} %{VERSION} %{RELEASE} %{ARCH} %{SUMMARY} %{DESCRIPTION} %{LICENSE} %{GROUP} %{URL}",
		"[%{FILENAMES} %{FILEMODES:octal}\n]", "%{POSTIN}", "%{POSTUN}", "[%{REQUIRENEVRS}\n]"} {
		got, want := run(t, "rpm", "-qp", "--qf", format, rebuilt), run(t, "rpm", "-qp", "--qf", format, own)
		if format = strings.TrimSpace(format); got != want {
			t.Errorf("%s: rebuilt has %q, the package of the style %q", format, got, want)
		}
	}
}

// A build tree that is not there, or another kernel's, is said to be so.
func TestRebuildRefused(t *testing.T) {
	src := store(t, t.TempDir(), testPackages(t)["source"])
	for want, script := range map[string]string{
		"no build tree in /lib/modules/6.1.192-56/build or /usr/src/kernels/6.1.192-56": "",
		"is that of kernel 6.1.9": `mkdir -p /usr/src/kernels; cp -a "$kernel" /usr/src/kernels/6.1.192-56; echo 6.1.9 > /usr/src/kernels/6.1.192-56/include/config/kernel.release`,
	} {
		out := inNamespace(t, script+`
! rpmbuild --rebuild --define "_topdir $1" --define "kernelversion 6.1.192" --define "kernelrpmrelease 56" "$2" 2>&1
`, t.TempDir(), src)
		if !strings.Contains(out, want) {
			t.Errorf("want %q in %s", want, out)
		}
	}
}

// Real dkms takes the module from the package: what is prebuilt for a kernel is
// used, for another kernel it is compiled; an upgrade replaces it, erasing the
// package leaves nothing.
func TestDKMS(t *testing.T) {
	packages, dir := testPackages(t), t.TempDir()
	info := testSourceInfo()
	at := func(name string, info Info, prebuilt ...Prebuilt) string {
		return store(t, dir, pkg{name, func(w io.Writer) error {
			src := testSource(t)
			if info.Version != "1.0" {
				src.Conf = bytes.ReplaceAll(src.Conf, []byte("1.0"), []byte(info.Version))
				src.Files = withConf(src.Files, src.Conf)
			}
			return DKMS(w, info, src, prebuilt)
		}})
	}
	first := store(t, dir, packages["dkms prebuilt"])
	info.Release = "2"
	second := at("second.rpm", info, testPrebuilt(t, "6.9.1"))
	info.Version, info.Release = "1.1", "1"
	third := at("third.rpm", info)
	out := inNamespace(t, `
exec 2>&1
mkdir -p /lib/modules/6.9.1/kernel /lib/modules/6.11.0/kernel /lib/modules/6.12.0/kernel
cp -a "$kernel" /lib/modules/6.11.0/build
rpm() { command rpm --dbpath "$1" "$2" --nodeps "$3" || echo "rpm: status $?"; }
state() { echo "== $1"; dkms status; ls /usr/src /usr/share /run; ls -d /lib/modules/*/*/hello.ko* /lib/modules/*/*/dkms/hello.ko* 2> /dev/null || :; }
rpm "$1" -i "$2"; state installed
rpm "$1" -U "$3"; state "same version"
rpm "$1" -U "$4"; state "newer version"
rpm "$1" -e hello-dkms; state erased
`, t.TempDir(), first, second, third)
	golden(t, "dkms-states.txt", states(out))
	if n := strings.Count(out, "Building module"); n != 2 { // each version for the one kernel with headers
		t.Errorf("dkms compiled %d times, want 2", n)
	}
	if strings.Contains(out, "scriptlet failed") || strings.Contains(out, "rpm: status") {
		t.Errorf("a scriptlet failed:\n%s", out)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// withConf replaces the dkms.conf of a source.
func withConf(files iter.Seq2[dkms.File, error], conf []byte) iter.Seq2[dkms.File, error] {
	return func(yield func(dkms.File, error) bool) {
		for f, err := range files {
			if f.Path == "dkms.conf" {
				f.Size, f.Open = int64(len(conf)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(conf)), nil }
			}
			if !yield(f, err) {
				return
			}
		}
	}
}

var stateLine = regexp.MustCompile(`^(== |hello[/-]|hello$|/lib/|/usr/|/run)`)

// states takes what the test's script says of states from its output.
func states(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if stateLine.MatchString(strings.TrimSpace(line)) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// rpmlintOutput is what rpmlint may say, and why that is so.
var rpmlintOutput = map[string]string{
	"E: no-signature":                    "signing is a step of its own, and needs a key",
	"E: no-binary":                       "a meta package is for an architecture, as the kernel is, and holds nothing; the tests' tools are a script",
	"W: no-documentation":                "a module's documentation is with its source",
	"W: unstripped-binary-or-object":     "modules are never stripped here: they may be signed",
	"W: requires-on-release":             "a module is for one build of a kernel",
	"W: no-manual-page-for-binary":       "the build makes none",
	"W: devel-file-in-non-devel-package": "the source is what the package is for",
	"W: dangerous-command-in-%posttrans": "it removes the one file that the scriptlets made",
	"W: no-buildroot-tag":                "rpm wants none since 4.6",
	"W: mixed-use-of-spaces-and-tabs":    "the scriptlets are indented by tabs",
	"W: invalid-license":                 "its list is older than SPDX's names",
	"W: invalid-url":                     "Source0 is made by the package's writer: there is no place to fetch it from",
}

func TestRpmlint(t *testing.T) {
	packages, dir := testPackages(t), t.TempDir()
	kinds := []string{"kmod", "kernel-module", "kmp", "meta", "source", "dkms prebuilt", "tools"}
	var files []string
	for _, kind := range kinds {
		files = append(files, store(t, dir, packages[kind]))
	}
	out, _ := command(t, "rpmlint", files...)
	for line := range strings.Lines(out) {
		m := regexp.MustCompile(`^\S+: ([EW]: \S+)`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if _, ok := rpmlintOutput[m[1]]; !ok {
			t.Error(line)
		}
	}
	if !strings.Contains(out, fmt.Sprintf("%d packages and 0 specfiles checked", len(kinds))) {
		t.Errorf("rpmlint: %s", out)
	}
}

// The modules come out of their compression as they went in, by the real tools.
func TestModuleCompression(t *testing.T) {
	want, err := os.ReadFile("testdata/hello.ko")
	if err != nil {
		t.Fatal(err)
	}
	for c, tool := range map[Compression][]string{XZ: {"xz", "-dc"}, Zstd: {"zstd", "-qdc"}, Gzip: {"gzip", "-dc"}} {
		data, err := c.compress(want)
		if err != nil {
			t.Fatal(err)
		}
		file := rig.Write(t, t.TempDir(), "hello.ko."+string(c), string(data))
		if got := run(t, tool[0], tool[1], file); got != string(want) {
			t.Errorf("%s: %d bytes came out, want %d", c, len(got), len(want))
		}
		if c == XZ && !strings.Contains(run(t, "xz", "--list", file), "CRC32") {
			t.Error("the kernel reads no other check of xz than CRC32")
		}
		// Debian's kmod reads no gzip.
		if got, _ := command(t, "modinfo", "-F", "name", file); c != Gzip && got != "hello\n" {
			t.Errorf("modinfo: %q", got)
		}
	}
}
