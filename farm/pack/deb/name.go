package deb

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Name maps a module's name or a kernel's release to what may stand in a
// Debian package's name: "_" becomes "-" and capitals become small; what
// Debian does not know there ("~") is an error. Different names may map to
// one: whoever packages several has to compare.
func Name(s string) (string, error) {
	name := strings.ToLower(strings.ReplaceAll(s, "_", "-"))
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("%q makes no package name: %w", s, err)
	}
	return name, nil
}

func checkName(name string) error { return check("package name", name, namePattern, maxNameLen) }

// ModulesName is the name of the package of a module for a kernel,
// <name>-modules-<kernel>. Name is a package's, release the kernel's own.
func ModulesName(name, release string) (string, error) {
	if err := check("kernel release", release, kernelPattern, maxKernelLen); err != nil {
		return "", err
	}
	kernel, err := Name(release)
	if err != nil {
		return "", err
	}
	full := name + "-modules-" + kernel
	return full, checkName(full)
}

// MetaName is the name of the package that follows the newest kernel of a
// flavor, <name>-modules-<flavor>.
func MetaName(name, flavor string) (string, error) {
	f, err := Name(flavor)
	if err != nil {
		return "", fmt.Errorf("flavor: %w", err)
	}
	if kernelPattern.MatchString(f) {
		return "", fmt.Errorf("flavor %q reads like a kernel release", flavor)
	}
	full := name + "-modules-" + f
	return full, checkName(full)
}

// startsWithLetter is a version that Debian would take if it began with a digit.
var startsWithLetter = regexp.MustCompile(`^[A-Za-z]`)

// Version maps a module's version to a Debian version:
//
//   - letters, digits, ".", "+", "~" and "-" stay as they are; a "-" makes the
//     last part a Debian revision, which does not change the order
//   - "_" becomes "."
//   - where the first character is a letter, "0+" is put in front (r57: 0+r57),
//     so such versions come before all numbered ones
//   - anything else is an error: give a version of your own
//
// Different versions may map to one: whoever packages several has to compare.
func Version(s string) (string, error) {
	v := strings.ReplaceAll(s, "_", ".")
	if startsWithLetter.MatchString(v) {
		v = "0+" + v
	}
	if strings.Contains(v, ":") {
		return "", fmt.Errorf("module version %q makes no Debian version: what comes before a colon is an epoch there", s)
	}
	if err := CheckVersion(v); err != nil {
		return "", fmt.Errorf("module version %q makes no Debian version: %w", s, err)
	}
	return v, nil
}

// WithKernel is a module's version with the kernel's appended, as in
// 1.2.2+6.1.170-1. Kernel is the version of the kernel's package, which must
// have no epoch, or, where it is not packaged, its release; both are mapped by
// [Version]. The result grows with either, the module's first; and it is
// greater than the module's version alone.
func WithKernel(moduleVersion, kernel string) (string, error) {
	module, err := Version(moduleVersion)
	if err != nil {
		return "", err
	}
	k, err := Version(kernel)
	if err != nil {
		return "", fmt.Errorf("kernel version: %w", err)
	}
	v := module + "+" + k
	return v, CheckVersion(v)
}

// CheckVersion takes the versions that dpkg takes (Debian policy 5.6.12), and
// no letter at their start.
func CheckVersion(v string) error {
	if err := check("version", v, versionPattern, maxVersionLen); err != nil {
		return err
	}
	if strings.HasSuffix(v, "-") {
		return fmt.Errorf("version %q has an empty revision behind its last hyphen", v)
	}
	return nil
}

// withoutEpoch is a version as file names have it.
func withoutEpoch(version string) string {
	return version[strings.Index(version, ":")+1:]
}

// upstream is a version without epoch and revision; native says that it has no
// revision.
func upstream(version string) (v string, native bool) {
	v = withoutEpoch(version)
	if i := strings.LastIndex(v, "-"); i >= 0 {
		return v[:i], false
	}
	return v, true
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
