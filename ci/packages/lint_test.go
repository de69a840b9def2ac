package packages_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lintianSays is what lintian may say, and why that is so.
var lintianSays = map[string]string{
	"W: copyright-without-copyright-notice": "MODULE_AUTHOR has no years, and none are made up",
}

// rpmlintSays is what rpmlint may say, and why that is so. The first has an E for
// the meta package, whose architecture is its kernel's.
var rpmlintSays = map[string]string{
	"E: no-binary":                       "a meta package holds nothing",
	"W: no-documentation":                "a module's documentation is with its source",
	"W: unstripped-binary-or-object":     "modules are never stripped here: they may be signed",
	"W: devel-file-in-non-devel-package": "the source is what the package is for",
	"W: dangerous-command-in-%posttrans": "it removes the one file that the scriptlets made",
	"W: requires-on-release":             "a module is for one build of a kernel",
	"W: no-buildroot-tag":                "rpm wants none since 4.6",
	"W: mixed-use-of-spaces-and-tabs":    "the scriptlets are indented by tabs",
	"W: invalid-license":                 "its list is older than SPDX's names",
	"W: invalid-url":                     "Source0 is made by the package's writer: there is no place to fetch it from",
	"W: no-url-tag":                      "the farm file does not say where a module is at home",
}

// TestLint has lintian and rpmlint look at one package of each kind.
func TestLint(t *testing.T) {
	dirs := map[string]string{}
	for _, style := range []string{"kernel-module", "kmp"} {
		dirs[style] = t.TempDir()
		build(t, dirs[style], debianFarm(fmt.Sprintf("  deb: {packages: [modules, meta, dkms, source], prebuilt: true}\n  rpm: {style: %s}\n%s", style, signed(t))))
	}
	dirs["kmod"] = t.TempDir()
	build(t, dirs["kmod"], vendorFarm(t, "{packages: [modules, meta, dkms, source], prebuilt: true}", vendorKernels(t)[0]))

	debs := files(t, dirs["kmp"], "*.deb", "*.dsc")
	out := run(t, "/", "lintian", append([]string{"--allow-root", "--no-cfg", "--fail-on", "none"}, debs...)...)
	judge(t, out, regexp.MustCompile(`^([EW]): [^:]+(?: source)?: (\S+)`), lintianSays)

	var rpms []string
	for _, dir := range dirs {
		rpms = append(rpms, files(t, dir, "*.rpm")...)
	}
	run(t, "/", "rpm", "--import", publicKey(t)) // into the home of the tests
	out, _ = try(t, "/", "rpmlint", rpms...)
	contains(t, out, fmt.Sprintf("%d packages and 0 specfiles checked", len(rpms)))
	judge(t, out, regexp.MustCompile(`^\S+: ([EW]): (\S+)`), rpmlintSays)
}

func files(t testing.TB, dir string, patterns ...string) []string {
	t.Helper()
	var all []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(dir, "dist", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %q, %v", pattern, found, err)
		}
		all = append(all, found...)
	}
	return all
}

// judge takes a tag that is not expected for a failure, and one that is expected
// and never comes.
func judge(t testing.TB, out string, line *regexp.Regexp, expected map[string]string) {
	t.Helper()
	seen := map[string]bool{}
	for text := range strings.Lines(out) {
		m := line.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		tag := m[1] + ": " + m[2]
		if seen[tag] = true; expected[tag] == "" {
			t.Error(text)
		}
	}
	for tag := range expected {
		if !seen[tag] {
			t.Errorf("%s is expected, but never comes", tag)
		}
	}
}
