// Package kernel reads and orders Linux kernel releases, the strings that `uname -r` prints.
package kernel

import (
	"errors"
	"fmt"
	"strings"
)

// maxRelease is the longest release in bytes: the kernel's __NEW_UTS_LEN.
const maxRelease = 64

// ErrRelease is wrapped by every error of Parse and ParseRange.
var ErrRelease = errors.New("not a kernel release")

// Release is a kernel release such as "6.1.0-56-cloud-amd64". Its methods are total: on a string that
// Parse would refuse they return something, and never panic.
type Release string

// Parse checks that s is a kernel release: at most 64 bytes of [A-Za-z0-9._+~-], beginning with two
// dotted numbers and without "..". A release that passes is safe as one component of a path.
func Parse(s string) (Release, error) {
	if err := checkRelease(s); err != nil {
		return "", err
	}
	base := baseVersion(s)
	if !strings.Contains(base, ".") {
		return "", fmt.Errorf("%w: %q does not begin with a version such as 6.1", ErrRelease, clip(s))
	}
	return Release(s), nil
}

// checkRelease checks the length and the bytes of a release or a range's bound.
func checkRelease(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty", ErrRelease)
	case len(s) > maxRelease:
		return fmt.Errorf("%w: %q is longer than %d bytes", ErrRelease, clip(s), maxRelease)
	case strings.Contains(s, ".."):
		return fmt.Errorf("%w: %q holds \"..\"", ErrRelease, s)
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && !strings.ContainsRune("._+~-", rune(s[i])) {
			return fmt.Errorf("%w: %q holds %q", ErrRelease, s, s[i])
		}
	}
	if !isDigit(s[0]) {
		return fmt.Errorf("%w: %q does not begin with a version such as 6.1", ErrRelease, s)
	}
	return nil
}

// clip shortens a hostile value for an error message.
func clip(s string) string {
	if len(s) > maxRelease {
		return s[:maxRelease] + "..."
	}
	return s
}

// ABI returns the release without its flavor and architecture: "6.1.0-56" of "6.1.0-56-cloud-amd64",
// "5.14.0-427.el9" of "5.14.0-427.el9.x86_64".
func (r Release) ABI() string {
	abi, _, _ := r.split()
	return abi
}

// Flavor returns what follows the ABI: "cloud-amd64" of "6.1.0-56-cloud-amd64", "generic" of
// "6.8.0-31-generic", "rt" of "5.14.0-427.el9.x86_64+rt"; "" where there is none.
func (r Release) Flavor() string {
	_, flavor, _ := r.split()
	return flavor
}

// Arch returns the architecture that an RPM distribution's release ends with, as it stands there
// ("x86_64" of "5.14.0-427.el9.x86_64"), and "" for any other release: Debian's "amd64" is a flavor.
func (r Release) Arch() string {
	_, _, arch := r.split()
	return arch
}

func (r Release) split() (abi, flavor, arch string) {
	s := string(r)
	if abi, flavor, arch, ok := splitRPM(s); ok {
		return abi, flavor, arch
	}
	end := abiEnd(s)
	return s[:end], strings.TrimPrefix(s[end:], "-"), ""
}

// splitRPM splits the form of Fedora, RHEL and their kin: ABI.ARCH or ABI.ARCH+FLAVOR.
func splitRPM(s string) (abi, flavor, arch string, ok bool) {
	dot := strings.LastIndexByte(s, '.')
	if dot < 0 {
		return "", "", "", false
	}
	arch, flavor, _ = strings.Cut(s[dot+1:], "+")
	if !rpmArchs[arch] {
		return "", "", "", false
	}
	return s[:dot], flavor, arch, true
}

// abiEnd returns where the ABI ends in a release whose parts are separated by "-".
func abiEnd(s string) int {
	end := 0
	for i := 0; end < len(s); i++ {
		start := end
		if i > 0 {
			start++
		}
		part, _, _ := strings.Cut(s[start:], "-")
		if i > 0 && !isABIPart(part, i) {
			break
		}
		end = start + len(part)
	}
	return end
}

// isABIPart says whether the i-th part (from 1) after the version belongs to the ABI: a number, or a
// word with a number by which a distribution counts. Debian's flavors 686 and 686-pae look like a number.
func isABIPart(part string, i int) bool {
	if part == "" {
		return false
	}
	if isDigit(part[0]) {
		return i < 2 || part != "686"
	}
	word := strings.TrimRight(part, "0123456789")
	return word != part && countingWords[word]
}

// countingWords are the words that count builds, not flavors: release candidates (7.0-rc3-amd64),
// Arch Linux (6.8.1-arch1-1, -zen1-1-zen, -hardened1-1-hardened) and Raspberry Pi OS (6.1.0-rpi7-rpi-v8).
var countingWords = map[string]bool{"rc": true, "arch": true, "zen": true, "hardened": true, "rpi": true}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isAlpha(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

func isAlnum(c byte) bool { return isDigit(c) || isAlpha(c) }
