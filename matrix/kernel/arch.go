package kernel

import "slices"

// arch is one architecture under its three names: `uname -m` (which is DKMS's), Debian's and RPM's.
type arch struct{ uname, debian, rpm string }

var archs = []arch{
	{"x86_64", "amd64", "x86_64"},
	{"aarch64", "arm64", "aarch64"},
	{"armv7l", "armhf", "armv7hl"},
	{"i686", "i386", "i686"},
	{"loongarch64", "loong64", "loongarch64"},
	{"ppc64le", "ppc64el", "ppc64le"},
	{"riscv64", "riscv64", "riscv64"},
	{"s390x", "s390x", "s390x"},
}

var rpmArchs = func() map[string]bool {
	set := make(map[string]bool, len(archs))
	for _, a := range archs {
		set[a.rpm] = true
	}
	return set
}()

// CanonicalArch returns the name that `uname -m` and DKMS use ("x86_64") for an architecture under that
// name, Debian's ("amd64") or RPM's; ok is false for a name it does not know.
func CanonicalArch(name string) (canonical string, ok bool) {
	i := slices.IndexFunc(archs, func(a arch) bool { return name == a.uname || name == a.debian || name == a.rpm })
	if i < 0 {
		return "", false
	}
	return archs[i].uname, true
}

// DebianArch returns Debian's name ("amd64") for an architecture under any name that CanonicalArch knows.
func DebianArch(name string) (debian string, ok bool) {
	canonical, ok := CanonicalArch(name)
	if !ok {
		return "", false
	}
	i := slices.IndexFunc(archs, func(a arch) bool { return a.uname == canonical })
	return archs[i].debian, true
}

// ArchNames returns every name that CanonicalArch knows, canonical names first, for a message's hint.
func ArchNames() []string {
	var names []string
	for _, a := range archs {
		names = append(names, a.uname)
	}
	for _, a := range archs {
		if !slices.Contains(names, a.debian) {
			names = append(names, a.debian)
		}
	}
	return names
}
