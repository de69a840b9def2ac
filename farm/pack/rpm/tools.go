package rpm

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// Tools writes the package <name>-utils: what a module's build makes for user
// space, by path on the target without the first "/". What is in /etc is
// configuration. Info.Style does not matter, Info.License is needed.
func Tools(w io.Writer, info Info, arch string, files iter.Seq2[dkms.File, error]) error {
	if err := writeTools(w, info.withDefaults(), arch, files); err != nil {
		return fmt.Errorf("packing the user-space files of %s-%s: %w", info.Name, info.Version, err)
	}
	return nil
}

// ToolsFileName names the package that [Tools] writes.
func ToolsFileName(info Info, arch string) (string, error) {
	p, err := info.toolsPackage(arch)
	if err != nil {
		return "", fmt.Errorf("naming the package of user-space files of %s: %w", info.Name, err)
	}
	return p.FileName(), nil
}

func (i Info) toolsPackage(arch string) (*rpmfile.Package, error) {
	p, err := i.common()
	p.Name, p.Arch, p.Group = i.Name+"-utils", Kernel{Arch: arch}.rpmArch(), "System Environment/Base"
	p.Summary = "User-space files of the kernel modules of " + i.Name
	p.Change = fmt.Sprintf("User-space files of %s %s.", i.Name, i.Version)
	p.Description = fmt.Sprintf("What the build of %s %s makes beside the kernel modules.", i.Name, i.Version)
	return p, errors.Join(err, rpmfile.CheckName(p.Name), Kernel{Release: "0", Arch: arch}.validate())
}

func writeTools(w io.Writer, info Info, arch string, files iter.Seq2[dkms.File, error]) error {
	p, err := info.toolsPackage(arch)
	if err != nil {
		return err
	}
	t := tree{}
	if err := t.source("/", files); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		f := t[name]
		switch {
		case f.mode == folder().mode && everywhere(name):
			delete(t, name)
		case strings.HasPrefix(name, modulesTop) || strings.HasPrefix(name, "/usr"+modulesTop):
			return fmt.Errorf("%q belongs into a package of modules", name)
		case !placePattern.MatchString(name):
			return fmt.Errorf("%q is not in a place for packages, as /usr and /etc are", name)
		case f.open != nil && strings.HasPrefix(name, "/etc/"):
			f.flags |= rpmfile.FlagConfig | rpmfile.FlagNoReplace
			t[name] = f
		}
	}
	if len(t) == 0 {
		return errors.New("no files")
	}
	return writeTree(w, info, p, t)
}

// placePattern is where a package of tools has business.
var placePattern = regexp.MustCompile(`^/(bin|etc|lib|lib64|opt|sbin|srv|usr|var)/.`)

// everywhere says whether a folder is every system's, and so not the package's.
func everywhere(name string) bool {
	return shared[name] || strings.HasPrefix(name, "/usr/share/man/")
}

var shared = func() map[string]bool {
	all := map[string]bool{}
	for name := range strings.FieldsSeq(`/ /bin /etc /lib /lib64 /opt /sbin /srv /usr /var
		/usr/bin /usr/include /usr/lib /usr/lib64 /usr/libexec /usr/sbin /usr/share /usr/src
		/usr/lib/depmod.d /usr/lib/firmware /usr/lib/modprobe.d /usr/lib/modules-load.d /usr/lib/systemd /usr/lib/systemd/system
		/usr/lib/udev /usr/lib/udev/rules.d /lib/udev /lib/udev/rules.d /lib/firmware /lib/systemd /lib/systemd/system
		/usr/share/doc /usr/share/licenses /usr/share/man
		/etc/depmod.d /etc/modprobe.d /etc/modules-load.d /etc/udev /etc/udev/rules.d /var/lib`) {
		all[name] = true
	}
	return all
}()
