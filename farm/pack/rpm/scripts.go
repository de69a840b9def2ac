package rpm

import (
	_ "embed"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// The scriptlets, the spec and the build script of the source package. What is
// filled in is checked to be safe in a shell and a spec.
var (
	//go:embed scripts/depmod
	depmodScript string
	//go:embed scripts/weak.add
	weakAdd string
	//go:embed scripts/weak.remove
	weakRemove string
	//go:embed scripts/dkms.post
	dkmsPost string
	//go:embed scripts/dkms.preun
	dkmsPreUn string
	//go:embed scripts/dkms.posttrans
	dkmsPostTrans string
	//go:embed scripts/build-modules
	buildModules string
	//go:embed scripts/spec
	specTemplate string
)

// fill puts values, in pairs of name and value, where a text has @NAME@. The last
// newline goes, as in rpmbuild.
func fill(text string, pairs ...string) string {
	for i := 0; i < len(pairs); i += 2 {
		pairs[i] = "@" + pairs[i] + "@"
	}
	return strings.TrimSuffix(strings.NewReplacer(pairs...).Replace(text), "\n")
}

// scriptlets adds %post and %postun to a package of modules. weak-modules2 of
// SUSE's suse-module-tools gets name-version-release, and on removal the paths of
// the modules.
func (i Info) scriptlets(p *rpmfile.Package, k Kernel, files []string) {
	p.Post = fill(depmodScript, "KERNEL", k.Release)
	p.PostUn = p.Post
	if i.Style != KMP {
		return
	}
	nvr := p.Name + "-" + p.EVR()
	p.Post += "\n" + fill(weakAdd, "NVR", nvr)
	p.PostUn += "\n" + fill(weakRemove, "NVR", nvr, "FILES", strings.Join(files, " "))
}
