package rpm

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/kmod"
)

// licenses maps MODULE_LICENSE to SPDX. The kernel's
// Documentation/process/license-rules.rst says what the strings mean: GPL is
// version 2, whether or not a later one may be used, so the package claims no
// more than that; which BSD or MPL is meant they do not say.
var licenses = map[string]string{
	"GPL":                       "GPL-2.0-only",
	"GPL v2":                    "GPL-2.0-only",
	"GPL and additional rights": "GPL-2.0-only",
	"Dual BSD/GPL":              "GPL-2.0-only OR LicenseRef-BSD",
	"Dual MIT/GPL":              "GPL-2.0-only OR MIT",
	"Dual MPL/GPL":              "GPL-2.0-only OR LicenseRef-MPL",
	"Proprietary":               "LicenseRef-Proprietary",
}

// ErrNoLicense says that a module has no MODULE_LICENSE.
var ErrNoLicense = errors.New("the module says no license (MODULE_LICENSE); give the package's in the farm file")

// License is the SPDX expression for a MODULE_LICENSE. One that the kernel does
// not know becomes LicenseRef-<it>, with "-" for what SPDX has no room for.
func License(moduleLicense string) (string, error) {
	if spdx, ok := licenses[moduleLicense]; ok {
		return spdx, nil
	}
	ref := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, moduleLicense)
	const most = 64
	if ref = strings.Trim(ref, "-"); ref == "" {
		return "", ErrNoLicense
	}
	return "LicenseRef-" + ref[:min(len(ref), most)], nil
}

// Licenses is the SPDX expression for several modules together.
func Licenses(modules []*kmod.Module) (string, error) {
	var all []string
	for _, m := range modules {
		spdx, err := License(m.Get("license"))
		if err != nil {
			return "", fmt.Errorf("module %q: %w", m.Name, err)
		}
		all = append(all, spdx)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > 1 {
		for i, spdx := range all {
			if strings.Contains(spdx, " OR ") {
				all[i] = "(" + spdx + ")"
			}
		}
	}
	return strings.Join(all, " AND "), nil
}
