package matrix

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Output says what is written where. A kind of package that the file does not
// name is not written; where it names none, DKMS tarballs are.
type Output struct {
	Directory string // default "dist"
	// Modules says how modules in debs and RPMs are compressed; default KernelsOwn.
	Modules Compression
	DKMS    *DKMSOutput // nil: no DKMS tarballs
	Deb     *DebOutput  // nil: no debs
	RPM     *RPMOutput  // nil: no RPMs
	Sign    *Signing    // nil: repositories, RPMs and SHA256SUMS are not signed
	// SignModules says how modules are signed; nil: they are not.
	SignModules *ModuleSigning `json:",omitzero"`
	// Attest asks for statements on what each package was made from; nil: there
	// are none.
	Attest *Attestation `json:",omitzero"`
}

// Attestation says who makes the statements on packages.
type Attestation struct {
	Key     *ModuleSigning // signs them; its Hash is not used; nil: they are not signed
	Builder string         // the URI of who builds; "": nobody in particular
	Pos     Pos
}

// DKMSOutput says which DKMS tarballs are written.
type DKMSOutput struct {
	Layouts     []Layout    // default binaries-only
	Compression Compression // of the tarball: gz (default), xz or zst
}

// Layout is a kind of DKMS tarball.
type Layout string

// The layouts of a DKMS tarball.
const (
	BinariesOnly Layout = "binaries-only" // modules and dkms.conf, for a host that has the source
	Stub         Layout = "stub"          // modules and dkms.conf in the source's place, for a host without it
	Full         Layout = "full"          // modules and source
	SourceOnly   Layout = "source-only"
	Combined     Layout = "combined" // modules of several kernels in one
)

// Compression is how a tarball or a module is compressed.
type Compression string

// The compressions. KernelsOwn and Plain are of modules only.
const (
	KernelsOwn Compression = "kernel" // as the kernel's own modules are
	Plain      Compression = "none"
	Gzip       Compression = "gz"
	XZ         Compression = "xz"
	Zstd       Compression = "zst"
)

// PackageKind is a kind of package that a format has.
type PackageKind string

// The kinds of packages.
const (
	ModulesPackage PackageKind = "modules" // built modules for one kernel
	MetaPackage    PackageKind = "meta"    // follows the newest kernel of a flavor
	DKMSPackage    PackageKind = "dkms"    // the source, for DKMS to build
	SourcePackage  PackageKind = "source"  // what the distribution's own tools build from
)

// DebOutput says which Debian packages are written.
type DebOutput struct {
	Packages       []PackageKind // default modules and meta
	Prebuilt       bool          // the dkms package carries prebuilt tarballs
	KernelRevision bool          // the kernel's version is part of the modules' one
	Maintainer     string        // "Name <address>", or ""
	Repository     *APTRepository
}

// APTRepository is an apt repository to put the debs into.
type APTRepository struct {
	Directory string // below the output; default "apt"
	Suite     string // default "stable"
	Component string // default "main"
	Origin    string // default "kofarm"
	Label     string // default the origin
}

// RPMStyle is a naming style of kernel-module RPMs.
type RPMStyle string

// The styles.
const (
	Kmod         RPMStyle = "kmod"          // Fedora, RHEL
	KernelModule RPMStyle = "kernel-module" // the older one, with the flavor in the name
	KMP          RPMStyle = "kmp"           // SUSE
)

// RPMOutput says which RPMs are written.
type RPMOutput struct {
	Style      RPMStyle      // default kmod
	Packages   []PackageKind // default modules and meta
	Prebuilt   bool          // the dkms package carries prebuilt tarballs
	Release    string        // of the RPMs; "": the style's own, "1" or for kernel-module the kernel's alone
	Packager   string        // "Name <address>", or ""
	Repository *YUMRepository
}

// YUMRepository is a yum repository to put the RPMs into.
type YUMRepository struct {
	Directory string // below the output; default "yum"
}

// Signing names the OpenPGP key that signs repositories, RPMs and SHA256SUMS:
// exactly one of Key and KeyEnv is set.
type Signing struct {
	Key    string // a file
	KeyEnv string // an environment variable that holds the key
	// The passphrase, where the key has one, is in an environment variable or
	// the first line of a file (/dev/fd/3 for an open one).
	PassphraseEnv, PassphraseFile string
	Pos                           Pos
}

// ModuleSigning names the key and the certificate that modules are signed with:
// exactly one of Key, KeyEnv, PKCS11 and Command is set.
type ModuleSigning struct {
	Key     string   // a file
	KeyEnv  string   // an environment variable that holds the key
	PKCS11  string   // the URI of a key in a token
	Command []string // a program that signs hashes; its path is absolute, or found in PATH
	// Certificate is a file; "" where the key's holds it too.
	Certificate string
	// Hash is KernelsHash (the default), sha224, sha256, sha384 or sha512.
	Hash string
	// The passphrase or PIN, where the key has one, is in an environment variable
	// or the first line of a file (/dev/fd/3 for an open one).
	PassphraseEnv, PassphraseFile string
	Pos                           Pos
}

// KernelsHash is the hash that a kernel's own modules are signed with.
const KernelsHash = "kernel"

func (d *decoder) output(n *yaml.Node, o *Output) {
	d.mapping(n, "output", fields{
		"directory": func(n *yaml.Node) { o.Directory = d.str(n, "directory", checkPath).Text },
		"modules": func(n *yaml.Node) {
			o.Modules = Compression(d.word(n, "modules", []string{string(KernelsOwn), string(Plain), string(Gzip), string(XZ), string(Zstd)}))
		},
		"dkms":         func(n *yaml.Node) { o.DKMS = d.dkms(n) },
		"deb":          func(n *yaml.Node) { o.Deb = d.deb(n) },
		"rpm":          func(n *yaml.Node) { o.RPM = d.rpm(n) },
		"sign":         func(n *yaml.Node) { o.Sign = d.sign(n) },
		"sign-modules": func(n *yaml.Node) { o.SignModules = d.signModules(n) },
		"attest":       func(n *yaml.Node) { o.Attest = d.attest(n) },
	})
}

// outputDefaults fills in what the file leaves out.
func (d *decoder) outputDefaults(o *Output) {
	if o.Modules == "" {
		o.Modules = KernelsOwn
	}
	if o.DKMS == nil && o.Deb == nil && o.RPM == nil {
		o.DKMS = defaultDKMS()
	}
}

func defaultDKMS() *DKMSOutput {
	return &DKMSOutput{Layouts: []Layout{BinariesOnly}, Compression: Gzip}
}

func (d *decoder) dkms(n *yaml.Node) *DKMSOutput {
	o := defaultDKMS()
	d.mapping(n, "dkms", fields{
		"layouts": func(n *yaml.Node) {
			o.Layouts = someOf(d, n, "layouts", BinariesOnly, Stub, Full, SourceOnly, Combined)
		},
		"compression": func(n *yaml.Node) {
			o.Compression = Compression(d.word(n, "compression", []string{string(Gzip), string(XZ), string(Zstd)}))
		},
	})
	return o
}

// someOf reads a list of words out of those that are allowed.
func someOf[T ~string](d *decoder, n *yaml.Node, what string, allowed ...T) []T {
	var known []string
	for _, a := range allowed {
		known = append(known, string(a))
	}
	var list []T
	for _, w := range d.someWords(n, what, nil) {
		if !slices.Contains(known, w.Text) {
			d.fail(w.Pos, w.Text, "unknown "+strings.TrimSuffix(what, "s")+" "+quote(w.Text), oneOf(w.Text, known))
			continue
		}
		list = append(list, T(w.Text))
	}
	return list
}

func (d *decoder) packages(n *yaml.Node) []PackageKind {
	return someOf(d, n, "packages", ModulesPackage, MetaPackage, DKMSPackage, SourcePackage)
}

func (d *decoder) deb(n *yaml.Node) *DebOutput {
	o := &DebOutput{Packages: []PackageKind{ModulesPackage, MetaPackage}}
	d.mapping(n, "deb", fields{
		"packages":        func(n *yaml.Node) { o.Packages = d.packages(n) },
		"prebuilt":        func(n *yaml.Node) { d.boolean(n, "prebuilt", &o.Prebuilt) },
		"kernel-revision": func(n *yaml.Node) { d.boolean(n, "kernel-revision", &o.KernelRevision) },
		"maintainer":      func(n *yaml.Node) { o.Maintainer = d.str(n, "maintainer", checkPerson).Text },
		"repository":      func(n *yaml.Node) { o.Repository = d.aptRepository(n) },
	})
	return o
}

func (d *decoder) aptRepository(n *yaml.Node) *APTRepository {
	r := &APTRepository{Directory: "apt", Suite: "stable", Component: "main", Origin: "kofarm"}
	d.mapping(n, "repository", fields{
		"directory": func(n *yaml.Node) { r.Directory = d.str(n, "directory", checkBelow).Text },
		"suite":     func(n *yaml.Node) { r.Suite = d.str(n, "suite", checkSuite).Text },
		"component": func(n *yaml.Node) { r.Component = d.str(n, "component", checkComponent).Text },
		"origin":    func(n *yaml.Node) { r.Origin = d.str(n, "origin", nil).Text },
		"label":     func(n *yaml.Node) { r.Label = d.str(n, "label", nil).Text },
	})
	if r.Label == "" {
		r.Label = r.Origin
	}
	return r
}

func (d *decoder) rpm(n *yaml.Node) *RPMOutput {
	o := &RPMOutput{Style: Kmod, Packages: []PackageKind{ModulesPackage, MetaPackage}}
	d.mapping(n, "rpm", fields{
		"style": func(n *yaml.Node) {
			o.Style = RPMStyle(d.word(n, "style", []string{string(Kmod), string(KernelModule), string(KMP)}))
		},
		"packages":   func(n *yaml.Node) { o.Packages = d.packages(n) },
		"prebuilt":   func(n *yaml.Node) { d.boolean(n, "prebuilt", &o.Prebuilt) },
		"release":    func(n *yaml.Node) { o.Release = d.str(n, "release", checkRPMRelease).Text },
		"packager":   func(n *yaml.Node) { o.Packager = d.str(n, "packager", checkPerson).Text },
		"repository": func(n *yaml.Node) { o.Repository = d.yumRepository(n) },
	})
	return o
}

func (d *decoder) yumRepository(n *yaml.Node) *YUMRepository {
	r := &YUMRepository{Directory: "yum"}
	d.mapping(n, "repository", fields{
		"directory": func(n *yaml.Node) { r.Directory = d.str(n, "directory", checkBelow).Text },
	})
	return r
}

func (d *decoder) sign(n *yaml.Node) *Signing {
	s := &Signing{Pos: posOf(n)}
	given := d.mapping(n, "sign", fields{
		"key":             func(n *yaml.Node) { s.Key = d.str(n, "key", checkPath).Text },
		"key-env":         func(n *yaml.Node) { s.KeyEnv = d.str(n, "key-env", checkVariable).Text },
		"passphrase-env":  func(n *yaml.Node) { s.PassphraseEnv = d.str(n, "passphrase-env", checkVariable).Text },
		"passphrase-file": func(n *yaml.Node) { s.PassphraseFile = d.str(n, "passphrase-file", checkPath).Text },
	})
	if given != nil && given["passphrase-env"] != nil && given["passphrase-file"] != nil {
		d.fail(s.Pos, "", "sign: both passphrase-env and passphrase-file", "give one of them")
	}
	if given != nil && (given["key"] == nil) == (given["key-env"] == nil) {
		d.fail(s.Pos, "", "sign: want exactly one of key and key-env", "key names a file, key-env an environment variable")
	}
	return s
}

func (d *decoder) signModules(n *yaml.Node) *ModuleSigning {
	s := &ModuleSigning{Hash: KernelsHash, Pos: posOf(n)}
	known := d.keyFields(s)
	known["hash"] = func(n *yaml.Node) {
		s.Hash = d.word(n, "hash", []string{KernelsHash, "sha224", "sha256", "sha384", "sha512"})
	}
	if given := d.mapping(n, "sign-modules", known); given != nil {
		d.checkKey("sign-modules", s, given)
	}
	return s
}

// attest reads who makes statements. Without a key they are not signed.
func (d *decoder) attest(n *yaml.Node) *Attestation {
	a := &Attestation{Pos: posOf(n)}
	key := &ModuleSigning{Pos: posOf(n)}
	known := d.keyFields(key)
	known["builder"] = func(n *yaml.Node) { a.Builder = d.str(n, "builder", checkURI).Text }
	given := d.mapping(n, "attest", known)
	delete(given, "builder")
	if len(given) > 0 {
		d.checkKey("attest", key, given)
		a.Key = key
	}
	return a
}

// keyFields are those that say where a key and its certificate are.
func (d *decoder) keyFields(s *ModuleSigning) fields {
	return fields{
		"key":             func(n *yaml.Node) { s.Key = d.str(n, "key", checkPath).Text },
		"key-env":         func(n *yaml.Node) { s.KeyEnv = d.str(n, "key-env", checkVariable).Text },
		"pkcs11":          func(n *yaml.Node) { s.PKCS11 = d.token(n) },
		"command":         func(n *yaml.Node) { s.Command = d.strs(n, "command", nil) },
		"certificate":     func(n *yaml.Node) { s.Certificate = d.str(n, "certificate", checkPath).Text },
		"passphrase-env":  func(n *yaml.Node) { s.PassphraseEnv = d.str(n, "passphrase-env", checkVariable).Text },
		"passphrase-file": func(n *yaml.Node) { s.PassphraseFile = d.str(n, "passphrase-file", checkPath).Text },
	}
}

// checkKey checks that a key is named in one way.
func (d *decoder) checkKey(what string, s *ModuleSigning, given map[string]*yaml.Node) {
	ways := 0
	for _, key := range []string{"key", "key-env", "pkcs11", "command"} {
		if given[key] != nil {
			ways++
		}
	}
	if ways != 1 {
		d.fail(s.Pos, "", what+": want exactly one of key, key-env, pkcs11 and command",
			"a file, an environment variable that holds the key, the URI of a key in a token, or a program that signs hashes")
	}
	if given["certificate"] == nil && (given["pkcs11"] != nil || given["command"] != nil) {
		d.fail(s.Pos, "", what+": want certificate", "a file, PEM or DER, with the certificate of the key")
	}
	if given["passphrase-env"] != nil && given["passphrase-file"] != nil {
		d.fail(s.Pos, "", what+": both passphrase-env and passphrase-file", "give one of them")
	}
	if given["command"] != nil && len(s.Command) == 0 {
		d.fail(s.Pos, "", what+": command names no program", "give a list: the program and its arguments")
	}
	if given["command"] != nil && (given["passphrase-env"] != nil || given["passphrase-file"] != nil) {
		d.fail(s.Pos, "", what+": a command gets no passphrase", "it has the environment, and opens its own files")
	}
}

// token reads the URI of a key in a token; what reads it then says more. A PIN
// in it is not shown.
func (d *decoder) token(n *yaml.Node) string {
	w := d.str(n, "pkcs11", nil)
	switch {
	case w.Text == "":
	case strings.Contains(w.Text, "pin-"):
		d.fail(w.Pos, "", "pkcs11: a PIN has no place in an URI", "see passphrase-env and passphrase-file")
	case !strings.HasPrefix(w.Text, "pkcs11:"):
		d.fail(w.Pos, w.Text, "pkcs11: want an URI of RFC 7512, got "+quote(w.Text), "as in pkcs11:token=T;object=O?module-path=/usr/lib/softhsm/libsofthsm2.so")
	}
	return w.Text
}

func (d *decoder) boolean(n *yaml.Node, what string, into *bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		d.wrongKind(n, what, "true or false")
		return
	}
	*into = strings.EqualFold(n.Value, "true")
}

var (
	person      = regexp.MustCompile(`^[^<>"]+ <[^<>@\s]+@[^<>@\s]+>$`)
	rpmRelease  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+]*$`)
	environment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	license     = regexp.MustCompile(`^[A-Za-z0-9.+() -]+$`)
	uri         = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[!-~]+$`)
	below       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
)

var (
	checkPerson     = like(person, `"Name <address@host>"`)
	checkRPMRelease = like(rpmRelease, "letters, digits, dots, _ and +")
	checkLicense    = like(license, "an SPDX license expression such as GPL-2.0-only")
	checkURI        = like(uri, "an URI such as https://example.org/farm")
	checkVariable   = like(environment, "the name of an environment variable")
)

// checkBelow takes the name of a folder in the output folder.
func checkBelow(s string) error {
	if !below.MatchString(s) || s == "logs" {
		return errors.New("want the name of a folder in the output folder, other than logs")
	}
	return nil
}
