package apt

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits on a Release file; Debian's are near 200 kB with 3,000 files.
const (
	maxInRelease    = 16 << 20
	maxReleaseFiles = 200_000
	// maxFuture is how far ahead of this machine's clock a Date may be: apt's Acquire::Max-FutureTime.
	maxFuture = 10 * time.Second
)

// apt_preferences(5): the priority of a release's packages where nobody pinned them.
const (
	rankDefault      = 500
	rankUpgrades     = 100 // NotAutomatic with ButAutomaticUpgrades, as backports
	rankNotAutomatic = 1   // NotAutomatic, as experimental
)

// Release is the verified description of a suite.
type Release struct {
	Origin, Label, Suite, Codename, Version string

	Date       time.Time
	ValidUntil time.Time // zero where the release does not expire

	NotAutomatic         bool
	ButAutomaticUpgrades bool
	AcquireByHash        bool
	Architectures        []string
	Components           []string

	noAllPackages bool // packages of architecture all are in every architecture's index
	files         map[string]releaseFile
}

// releaseFile is what a Release says of a file below it.
type releaseFile struct {
	size   int64
	sha256 string
}

// rank is apt's priority for this release's packages.
func (r *Release) rank() int {
	switch {
	case r.NotAutomatic && r.ButAutomaticUpgrades:
		return rankUpgrades
	case r.NotAutomatic:
		return rankNotAutomatic
	}
	return rankDefault
}

// parseRelease reads the text of a Release file.
func parseRelease(text []byte) (*Release, error) {
	r := &Release{}
	err := eachField(text, func(name, value string) error {
		if err := r.setField(name, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("release file: %w", err)
	}
	if len(r.files) == 0 {
		return nil, errors.New("release file: it lists no SHA256 of any file")
	}
	if r.Date.IsZero() {
		return nil, errors.New("release file: it has no Date")
	}
	return r, nil
}

func (r *Release) setField(name, value string) (err error) {
	switch name {
	case "Origin":
		r.Origin = value
	case "Label":
		r.Label = value
	case "Suite":
		r.Suite = value
	case "Codename":
		r.Codename = value
	case "Version":
		r.Version = value
	case "Date":
		r.Date, err = parseDate(value)
	case "Valid-Until":
		r.ValidUntil, err = parseDate(value)
	case "NotAutomatic":
		r.NotAutomatic = isYes(value)
	case "ButAutomaticUpgrades":
		r.ButAutomaticUpgrades = isYes(value)
	case "Acquire-By-Hash":
		r.AcquireByHash = isYes(value)
	case "Architectures":
		r.Architectures = strings.Fields(value)
	case "Components":
		r.Components = strings.Fields(value)
	case "No-Support-for-Architecture-all":
		r.noAllPackages = slices.Contains(strings.Fields(value), "Packages")
	case "SHA256":
		r.files, err = parseReleaseFiles(value)
	}
	return err
}

// parseReleaseFiles reads lines of "sha256 size path".
func parseReleaseFiles(value string) (map[string]releaseFile, error) {
	files := map[string]releaseFile{}
	for line := range strings.Lines(value) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("%.80q is not \"sha256 size path\"", strings.TrimSpace(line))
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("size %q of %s is not a number", f[1], f[2])
		}
		if len(files) == maxReleaseFiles {
			return nil, fmt.Errorf("%w of %d files", ErrLimit, maxReleaseFiles)
		}
		files[f[2]] = releaseFile{size: size, sha256: f[0]}
	}
	return files, nil
}

// parseDate reads RFC 2822's date in UTC, as a Release has it.
func parseDate(value string) (time.Time, error) {
	for _, zone := range []string{"UTC", "GMT", "Z", "+0000"} {
		t, err := time.Parse("Mon, _2 Jan 2006 15:04:05 "+zone, value)
		if err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no date in UTC such as \"Sat, 11 Jul 2026 10:16:37 UTC\"", value)
}
