package dkms

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/matrix/kernel"
)

// What names may look like. They become parts of paths in /var/lib/dkms,
// /usr/src and /lib/modules, words in DKMS's shell and parts of a file name,
// so the characters are those that are safe in all of these.
var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
	kernelPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9._+~-]*$`)
	archPattern   = regexp.MustCompile(`^[a-z0-9_]+$`)
	modulePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]*\.ko$`)
)

const (
	maxNameLen   = 64  // of a module's name or version; the file name has to fit in 255
	maxKernelLen = 64  // __NEW_UTS_LEN (include/uapi/linux/utsname.h)
	maxDestLen   = 128 // the kernel takes 55 without .ko
	maxConfSize  = 1 << 20
)

// check matches a value against a pattern and a length.
func check(what, value string, pattern *regexp.Regexp, most int) error {
	if len(value) > most {
		return fmt.Errorf("%s %.20q… is longer than %d characters", what, value, most)
	}
	if !pattern.MatchString(value) {
		return fmt.Errorf("%s %q does not match %s", what, value, pattern)
	}
	return nil
}

func (i Info) validate() error {
	errs := []error{
		check("module name", i.Name, namePattern, maxNameLen),
		check("module version", i.Version, namePattern, maxNameLen),
	}
	if !slices.Contains(Layouts(), i.Layout) {
		errs = append(errs, fmt.Errorf("layout %q, known are %v", i.Layout, Layouts()))
	}
	if !slices.Contains(Compressions(), i.Compression) {
		errs = append(errs, fmt.Errorf("compression %q, known are %v", i.Compression, Compressions()))
	}
	if len(i.Conf) == 0 || len(i.Conf) > maxConfSize {
		errs = append(errs, fmt.Errorf("dkms.conf of %d bytes, want 1 to %d", len(i.Conf), maxConfSize))
	}
	if i.Source == nil && (i.Layout == Full || i.Layout == SourceOnly) {
		errs = append(errs, fmt.Errorf("the %s layout needs the module's source", i.Layout))
	}
	// What a ustar header holds in 11 octal digits.
	if s := i.Epoch.Unix(); s < 0 || s >= 1<<33 {
		errs = append(errs, fmt.Errorf("epoch %d, want seconds from 0 to 2^33", s))
	}
	return errors.Join(errs...)
}

func validateBuilds(layout Layout, builds []Build) error {
	var errs []error
	switch n := len(builds); {
	case layout == SourceOnly && n != 0:
		errs = append(errs, fmt.Errorf("the %s layout takes no builds, got %d", layout, n))
	case layout == Combined && n == 0:
		errs = append(errs, errors.New("no builds"))
	case layout != SourceOnly && layout != Combined && n != 1:
		errs = append(errs, fmt.Errorf("the %s layout takes one build, got %d", layout, n))
	}
	seen := map[string]bool{}
	for _, b := range builds {
		key := b.Kernel + " " + b.Arch
		if seen[key] {
			errs = append(errs, fmt.Errorf("two builds for kernel %s", key))
		}
		seen[key] = true
		if err := b.validate(); err != nil {
			errs = append(errs, fmt.Errorf("build for kernel %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

func (b Build) validate() error {
	errs := []error{
		check("kernel release", b.Kernel, kernelPattern, maxKernelLen),
		check("arch", b.Arch, archPattern, maxKernelLen),
	}
	if want, ok := kernel.CanonicalArch(b.Arch); ok && want != b.Arch {
		errs = append(errs, fmt.Errorf("arch %q is called %q by dkms", b.Arch, want))
	}
	if len(b.Modules) == 0 {
		errs = append(errs, errors.New("no modules"))
	}
	seen := map[string]bool{}
	for _, m := range b.Modules {
		if err := check("module file", m.Dest, modulePattern, maxDestLen); err != nil {
			errs = append(errs, err)
		}
		if m.Size <= 0 || m.Open == nil {
			errs = append(errs, fmt.Errorf("module file %q of %d bytes cannot be read", m.Dest, m.Size))
		}
		// A kernel takes a-b and a_b for the same module, modprobe too.
		key := strings.ReplaceAll(m.Dest, "-", "_")
		if seen[key] {
			errs = append(errs, fmt.Errorf("two modules called %s", m.Dest))
		}
		seen[key] = true
	}
	return errors.Join(errs...)
}
