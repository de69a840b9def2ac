package kernel

import (
	"runtime"
	"slices"
)

// arch is one architecture under its three names: `uname -m` (which is DKMS's), Debian's and RPM's. Where
// cross is not empty, machines of other architectures build for it, by the compiler of that GNU triplet; the
// recipe has a line on each of these, too.
type arch struct{ uname, debian, rpm, cross string }

var archs = []arch{
	{"x86_64", "amd64", "x86_64", ""},
	{"aarch64", "arm64", "aarch64", "aarch64-linux-gnu"},
	{"armv7l", "armhf", "armv7hl", ""},
	{"i686", "i386", "i686", ""},
	{"loongarch64", "loong64", "loongarch64", ""},
	{"ppc64le", "ppc64el", "ppc64le", ""},
	{"riscv64", "riscv64", "riscv64", ""},
	{"s390x", "s390x", "s390x", ""},
}

// find gives the architecture that is called so by anyone; nil for a name that is not known.
func find(name string) *arch {
	i := slices.IndexFunc(archs, func(a arch) bool { return name == a.uname || name == a.debian || name == a.rpm })
	if i < 0 {
		return nil
	}
	return &archs[i]
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
	if a := find(name); a != nil {
		return a.uname, true
	}
	return "", false
}

// DebianArch returns Debian's name ("amd64") for an architecture under any name that CanonicalArch knows.
func DebianArch(name string) (debian string, ok bool) {
	if a := find(name); a != nil {
		return a.debian, true
	}
	return "", false
}

// RPMArch returns RPM's name ("armv7hl") for an architecture under any name that CanonicalArch knows.
func RPMArch(name string) (rpm string, ok bool) {
	if a := find(name); a != nil {
		return a.rpm, true
	}
	return "", false
}

// Machine is the canonical name of the architecture that this program runs on, and so do the builds.
func Machine() string {
	if a := find(runtime.GOARCH); a != nil { // Go says what Debian, or else uname does, of all that matter here
		return a.uname
	}
	return runtime.GOARCH
}

// CrossTriplet returns the GNU triplet, such as "aarch64-linux-gnu", of the compiler that builds for an
// architecture on a machine of another one; ok is false where there is none.
func CrossTriplet(name string) (triplet string, ok bool) {
	a := find(name)
	if a == nil || a.cross == "" {
		return "", false
	}
	return a.cross, true
}

// Buildable lists the canonical names of the architectures that machines of one build for, their own first.
func Buildable(machine string) []string {
	list := []string{machine}
	for _, a := range archs {
		if a.cross != "" && a.uname != machine {
			list = append(list, a.uname)
		}
	}
	return list
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
