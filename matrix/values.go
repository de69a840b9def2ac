package matrix

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// MaxName is the longest name or version of a module in bytes: both fit in a file's name (255 bytes) together
// with a release, which has at most as many, and what packagers add; they take as many.
const MaxName = 64

var (
	nameRegexp         = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
	debRegexp          = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	packageRegexp      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]*$`)
	suiteRegexp        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	distributionRegexp = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	sha256Regexp       = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
)

// CheckName says whether s may be the name or the version of a module: a letter or digit, then letters,
// digits and ._+~-, at most MaxName bytes. Such a string is safe as one component of a path.
func CheckName(s string) error {
	if len(s) > MaxName {
		return fmt.Errorf("want at most %d bytes", MaxName)
	}
	if !nameRegexp.MatchString(s) {
		return errors.New("want a letter or digit, then letters, digits and ._+~-")
	}
	return nil
}

// checkModule says whether s may be MODULE or MODULE/VERSION.
func checkModule(s string) error {
	name, version, both := strings.Cut(s, "/")
	if CheckName(name) != nil || both && CheckName(version) != nil {
		return errors.New("want MODULE or MODULE/VERSION")
	}
	return nil
}

// like makes a check of a regular expression; want is how a message describes it.
func like(re *regexp.Regexp, want string) check {
	return func(s string) error {
		if len(s) > maxText || !re.MatchString(s) {
			return errors.New("want " + want)
		}
		return nil
	}
}

var (
	checkDeb          = like(debRegexp, "the name of a Debian package")
	checkPackage      = like(packageRegexp, "the name of a package")
	checkSuite        = like(suiteRegexp, "the name of a suite: letters, digits and ._-")
	checkComponent    = like(suiteRegexp, "the name of a component: letters, digits and ._-")
	checkDistribution = like(distributionRegexp, "the name of a distribution: lower-case letters, digits and -")
	checkSHA256       = like(sha256Regexp, "64 hexadecimal digits")
)

func isURL(s string) bool { return strings.Contains(s, "://") }

// checkURL accepts http and https with a host.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("want an http or https URL")
	}
	return nil
}

// checkTarball accepts an http(s) URL or a path.
func checkTarball(s string) error {
	if isURL(s) {
		return checkURL(s)
	}
	return nil
}

// checkPath accepts a local path.
func checkPath(s string) error {
	if isURL(s) {
		return errors.New("want a path, not a URL")
	}
	return nil
}

// isGlob says whether s is a pattern of path.Match rather than a name.
func isGlob(s string) bool { return strings.ContainsAny(s, `*?[\`) }

// checkGlob accepts a name or a pattern of path.Match.
func checkGlob(s string) error {
	if _, err := path.Match(s, ""); err != nil {
		return errors.New("want a name or a glob: * ? [a-z]")
	}
	return nil
}

// checkVersions is checkGlob; no version is what looks like a range.
func checkVersions(s string) error {
	if kernel.IsRange(s) {
		return errors.New("want a version or a glob: only release takes a range")
	}
	return checkGlob(s)
}

// checkRelease accepts what chooses releases: a release, an ABI, a glob or a range.
func checkRelease(s string) error {
	switch {
	case kernel.IsRange(s):
		_, err := kernel.ParseRange(s)
		return err
	case isGlob(s):
		return checkGlob(s)
	}
	_, err := kernel.Parse(s)
	return err
}

var sizeUnits = []struct {
	suffix string
	bytes  Size
}{{"KiB", KiB}, {"MiB", MiB}, {"GiB", GiB}, {"TiB", TiB}}

// ParseSize parses a size greater than 0: a whole number of bytes, KiB, MiB, GiB or TiB, as in "512MiB".
func ParseSize(s string) (Size, error) {
	unit, number := Size(1), s
	for _, u := range sizeUnits {
		if digits, ok := strings.CutSuffix(s, u.suffix); ok {
			unit, number = u.bytes, strings.TrimSpace(digits)
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n == 0 || n > uint64(math.MaxInt64/unit) {
		return 0, errors.New("want a size such as 512MiB or 4GiB (KiB, MiB, GiB, TiB, or plain bytes), greater than 0")
	}
	return Size(n) * unit, nil
}

// String is the size with the largest unit that divides it.
func (s Size) String() string {
	for i := len(sizeUnits) - 1; i >= 0; i-- {
		if u := sizeUnits[i]; s >= u.bytes && s%u.bytes == 0 {
			return fmt.Sprintf("%d%s", s/u.bytes, u.suffix)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
