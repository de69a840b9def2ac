package deb

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm/pack/dkms"
)

// accepted are the warnings of lintian that stay, and why. Errors never do.
var accepted = map[string]string{
	// The packages are made for an own repository, nobody asked Debian for them.
	"initial-upload-closes-no-bugs": "there is no bug in Debian's tracker to close",
	// MODULE_AUTHOR has no years, and none are made up.
	"copyright-without-copyright-notice": "a notice has a year, for lintian",
	"no-manual-page":                     "what a module's build installs is the module's matter",
}

var tagLine = regexp.MustCompile(`^([EW]): [^:]+(?: source)?: (\S+)`)

// TestLintian takes every error for a failure, and every warning that is not
// accepted. lintian runs once: most of its time goes into its start.
func TestLintian(t *testing.T) {
	if _, err := command(t, ".", "lintian", "--version"); err != nil {
		t.Fatalf("lintian is needed, ci/setup test installs it: %v", err)
	}
	revised := testDKMS()
	revised.Version = "1.2.2-1"
	dual := testModules()
	dual.Licenses, dual.Authors, dual.Version = []string{"Dual BSD/GPL", "GPL v2", "Proprietary"}, nil, "1.2.2"
	dual.Description = "First paragraph, which is long enough that it has to be folded into several lines.\n\n  kept as it is\n\nLast."
	dir := t.TempDir()
	args := []string{"--allow-root", "--no-cfg", "--fail-on", "none"}
	for _, p := range []pkg{testModules(), dual, testMeta(), testPrebuilt(), revised, testTools()} {
		args = append(args, build(t, dir, p))
	}
	for _, d := range []DKMS{testDKMS(), revised} {
		writeSource(t, dir, d)
		names, err := d.SourceNames()
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, names[len(names)-1])
	}
	seen := map[string]bool{}
	for line := range strings.Lines(run(t, dir, "lintian", args...)) {
		m := tagLine.FindStringSubmatch(line)
		if m == nil || m[1] == "E" || accepted[m[2]] == "" {
			t.Error(line)
			continue
		}
		seen[m[2]] = true
	}
	for tag := range accepted {
		if !seen[tag] {
			t.Errorf("%s is accepted, but lintian does not say it", tag)
		}
	}
}

// The source package builds with dpkg's own tools into the package that is
// written here: the same files, fields and scripts.
func TestSourceBuilds(t *testing.T) {
	for _, version := range []string{"", "1:1.2.2-1"} {
		t.Run(version, func(t *testing.T) {
			d := testDKMS()
			d.Version = version
			d.Relations = map[string]string{"Conflicts": "acpi-call-modules", "Recommends": "acpi-call-utils (>= 1.2)"}
			dir := t.TempDir()
			writeSource(t, dir, d)
			names, err := d.SourceNames()
			if err != nil {
				t.Fatal(err)
			}
			run(t, dir, "dpkg-source", "--no-check", "-x", names[len(names)-1], "tree")
			run(t, filepath.Join(dir, "tree"), "dpkg-buildpackage", "-us", "-uc", "-b")
			file, err := d.FileName()
			if err != nil {
				t.Fatal(err)
			}
			got, want := describe(t, filepath.Join(dir, file)), describe(t, build(t, t.TempDir(), d))
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			// The source package can be made anew, with no diff against its own.
			run(t, filepath.Join(dir, "tree"), "dpkg-buildpackage", "-us", "-uc", "-S")
		})
	}
}

// describe lists what matters of a package: fields, files with modes, content.
func describe(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	// dpkg-gencontrol counts its own files as installed, too.
	text := run(t, dir, "sh", "-c", `dpkg-deb --field "$1" | grep -v Installed-Size`, "-", file)
	// Of the gzip-compressed changelog the size may differ.
	text += run(t, dir, "sh", "-c", `dpkg-deb --contents "$1" | grep -v changelog | tr -s ' ' | sed 's/ [0-9: -]* / /' | LC_ALL=C sort`, "-", file)
	run(t, dir, "dpkg-deb", "--raw-extract", file, "tree")
	return text + run(t, dir, "sh", "-c", `cd tree && gunzip -r usr/share/doc && find . -type f ! -name control ! -name md5sums -print0 | sort -z | xargs -0 sha256sum`)
}

// A folder debian of the module's own gives way, in the source package only.
func TestSourceWithDebian(t *testing.T) {
	d := testDKMS()
	d.Source = func(yield func(dkms.File, error) bool) {
		_ = yield(dkms.File{Path: "debian/rules", Size: 3, Open: content("bad")}, nil) &&
			yield(dkms.File{Path: "debian.txt", Size: 3, Open: content("txt")}, nil)
	}
	dir := t.TempDir()
	writeSource(t, dir, d)
	run(t, dir, "dpkg-source", "--no-check", "-x", "acpi-call-dkms_1.2.2.dsc", "tree")
	if data, err := os.ReadFile(filepath.Join(dir, "tree/debian/rules")); err != nil || string(data) == "bad" {
		t.Errorf("debian/rules is the module's: %q (%v)", data, err)
	}
	for _, name := range []string{"debian.txt", "dkms.conf"} {
		if _, err := os.Stat(filepath.Join(dir, "tree", name)); err != nil {
			t.Error(err)
		}
	}
}
