package matrix

import "time"

// Farm is a farm file after Parse: checked, and with every default applied.
type Farm struct {
	File    string           // the name that Parse was given, for messages
	Modules []*ModuleVersion // module × version, in the order of the file; never empty
	Kernels []KernelEntry    // in the order of the file; never empty
	Exclude []Rule
	Include []Rule
	// Archives is by distribution. "debian" is always there, and so is every distribution that the file uses.
	Archives map[string]Archive
	Output   Output
	Limits   Limits
	Build    Build
	Cache    Cache
	Test     *Test `json:",omitzero"` // nil: what is built is not booted
}

// Word is a name or pattern and where it stands in the file.
type Word struct {
	Text string
	Pos  Pos
}

// ModuleVersion is one version of one module.
type ModuleVersion struct {
	// Name and Version are DKMS's PACKAGE_NAME and PACKAGE_VERSION, both as CheckName wants them. Either is
	// empty after Parse where the file leaves it to the source; the caller fills it in before Expand.
	Name, Version string
	Source        Source
	BuildPackages []Word // packages that the build needs beside the toolchain; the module's, then the version's
	// BuildDepends are modules of the farm that are built before this one and there for its build, as MODULE or
	// MODULE/VERSION; the module's, then the version's.
	BuildDepends []Word `json:",omitzero"`
	// Needs are the module versions that BuildDepends names and those that they need, each after what it needs
	// itself. Expand fills it in.
	Needs     []*ModuleVersion `json:"-"`
	MakeArgs  []string         // appended to the make command; the module's, then the version's
	Timeout   time.Duration    // of one cell; default Limits.Timeout
	Userspace *Userspace       // what its build makes for user space; nil: nothing
	License   string           // an SPDX expression for packages; "": what the modules say
	Test      *ModuleTest      `json:",omitzero"` // how it is booted; nil: as any other
	Pos       Pos
}

// Userspace says which user-space files a module's build makes. They go into a
// package of their own.
type Userspace struct {
	// Install is a shell command that installs them below $DESTDIR. It runs in
	// the build directory after the modules are built.
	Install    string
	DebDepends []string // what the Debian package depends on
}

// Source is where a module version comes from: exactly one of Deb, Tarball, Dir and RPM is set.
type Source struct {
	Deb string // a *-dkms package
	// Distribution and Suite say where the deb is; default those of the first entry of kernels.
	Distribution, Suite string

	Tarball string // an http(s) URL or a path
	SHA256  string // of the tarball or RPM, lower-case hex; "" only for a path

	Dir string // a path

	RPM string // a DKMS-enabled or a source RPM: an http(s) URL or a path

	Pos Pos
}

// Remote says whether the source is a tarball or RPM that has to be downloaded.
func (s Source) Remote() bool { return isURL(s.File()) }

// File is the URL or path of a tarball or RPM; "" of the others.
func (s Source) File() string { return s.Tarball + s.RPM }

// String is the source as a message names it.
func (s Source) String() string {
	switch {
	case s.Deb != "":
		return "deb " + s.Deb
	case s.Tarball != "":
		return "tarball " + s.Tarball
	case s.RPM != "":
		return "rpm " + s.RPM
	}
	return "dir " + s.Dir
}

// KernelEntry is one entry of kernels: exactly one of the two is set.
type KernelEntry struct {
	Set    *KernelSet
	Custom *CustomKernel
}

// KernelSet chooses kernels of a distribution's archive: those that any of Releases chooses, in any of
// Suites, of any of Arch and Flavors.
type KernelSet struct {
	Distribution string // default "debian"
	Suites       []Word // at least one, by name
	Releases     []Selector
	Flavors      []Word // names or globs; empty: all
	Arch         []Word // canonical; default x86_64
	Pos          Pos
}

// Selector chooses releases.
type Selector struct {
	Word
	// Latest, if not 0, takes only the newest releases of those that Text matches (all, if it is empty): as
	// many as it says for every flavor of every arch of every suite.
	Latest int
}

// CustomKernel is a kernel of one's own.
type CustomKernel struct {
	Release   string
	Arch      string   // canonical; default what the release ends with, else x86_64
	Headers   []string // paths of directories, .deb or .rpm files, at least one
	Toolchain Toolchain
	Pos       Pos
}

// Toolchain says which packages a kernel of one's own is built with.
type Toolchain struct {
	Distribution string // default that of the first archive kernels, else "debian"
	Suite        string // default that of the first archive kernels
	Packages     []Word // e.g. gcc-12; empty: whoever assembles the image decides
}

// Rule is one entry of exclude or include. It matches a cell if every axis that is given matches, and an
// axis matches if one of its patterns does. At least one axis is given. A pattern is a name or a glob; of
// Release also an ABI or a range.
type Rule struct {
	Module, Version, Release, Flavor, Suite, Distribution, Arch []Word

	Reason string // free text, or ""
	Pos    Pos
}

// Archive says where a distribution's packages come from.
type Archive struct {
	Mirrors         []string // http(s) URLs, in the order in which they are tried; at least one
	SecurityMirrors []string // likewise of the security pocket; empty: it has none
	Components      []string // default main
	Keyring         string   // path of the OpenPGP keyring that its indexes are verified with
	KeyringPos      Pos      `json:",omitzero"` // zero: it is the default
	// Fallbacks are where packages are that a lock names and the mirrors no longer have, and SecurityFallbacks
	// those of the security pocket: mirrors, or archives of snapshots. In their URLs [Timestamp] stands for
	// the time at which the package was in the archive. Default none.
	Fallbacks, SecurityFallbacks []string

	AllowExpired []string // suites whose Release file may be past its Valid-Until; default none
}

// Timestamp stands in a fallback's URL for a time such as 20260711T101637Z.
const Timestamp = "{timestamp}"

// Size is a number of bytes.
type Size int64

// Binary sizes.
const (
	KiB Size = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

// Limits is what one cell may use. All are greater than 0.
type Limits struct {
	Memory    Size          // default 4 GiB
	Processes int           // default 1024
	Disk      Size          // what the build may write; default 4 GiB
	Log       Size          // default 64 MiB
	Output    Size          // what the build may hand out; default 1 GiB
	Timeout   time.Duration // default 30 minutes
}

// Build says how cells are run.
type Build struct {
	Parallel int // cells at a time; 0, the default: as many as there are cores
	Retries  int // of an infrastructure failure; default 2
	// Runtime is what runs the containers, one of [Runtimes]; "" where the file
	// does not say, nor names daemons of one kind.
	Runtime string
	// Docker and Containerd are the daemons that cells are spread over; empty:
	// the one that the environment says, or the usual one.
	Docker, Containerd []Daemon
}

// The values of Build.Runtime.
const (
	Embedded   = "embedded"
	Docker     = "docker"
	Containerd = "containerd"
	Auto       = "auto"
)

// Runtimes lists the values of Build.Runtime.
func Runtimes() []string { return []string{Embedded, Docker, Containerd, Auto} }

// firstSet is the first entry of kernels that chooses from an archive, or nil.
func (f *Farm) firstSet() *KernelSet {
	for _, entry := range f.Kernels {
		if entry.Set != nil {
			return entry.Set
		}
	}
	return nil
}
