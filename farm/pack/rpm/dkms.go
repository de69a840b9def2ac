package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
)

// SourceTree is a module's source.
type SourceTree struct {
	// Files is read once for each package, see dkms.SourceFS. Where it has a
	// dkms.conf at the top, that one is kept.
	Files iter.Seq2[dkms.File, error]
	// Conf is the module's dkms.conf, word for word.
	Conf []byte
	// Upon are modules that DKMS has to have installed before it builds this one.
	Upon []Info
}

// Prebuilt is a DKMS tarball of one kernel's modules, in the layout
// dkms.BinariesOnly: the others would replace the source.
type Prebuilt struct {
	Kernel      string           // release, as of uname -r
	Arch        string           // as of uname -m
	Compression dkms.Compression // empty: dkms.Gzip
	Size        int64            // in bytes, of what Open gives
	Open        func() (io.ReadCloser, error)
}

// DKMS writes the package <name>-dkms (noarch): the source for the DKMS of the
// target in /usr/src/<name>-<version>, and prebuilt tarballs in /usr/share/<name>,
// which are used where they fit a kernel that is installed. Info.Style does not
// matter, Info.License is needed.
func DKMS(w io.Writer, info Info, src SourceTree, prebuilt []Prebuilt) error {
	if err := writeDKMS(w, info.withDefaults(), src, prebuilt); err != nil {
		return fmt.Errorf("packing %s-%s for dkms: %w", info.Name, info.Version, err)
	}
	return nil
}

// DKMSFileName names the package that [DKMS] writes.
func DKMSFileName(info Info) (string, error) {
	p, err := info.dkmsPackage()
	if err != nil {
		return "", fmt.Errorf("naming the dkms package of %s: %w", info.Name, err)
	}
	return p.FileName(), nil
}

func (i Info) dkmsPackage() (*rpmfile.Package, error) {
	p, err := i.common()
	p.Name, p.Arch = i.Name+"-dkms", "noarch"
	p.Summary = "Kernel modules of " + i.Name + ", as source for dkms"
	p.Change = fmt.Sprintf("Source of %s %s for dkms.", i.Name, i.Version)
	p.Description = fmt.Sprintf("The source of %s %s, from which dkms builds the kernel modules\nfor the kernels that are installed.", i.Name, i.Version)
	p.Requires = []rpmfile.Dependency{{Name: "dkms"}, {Name: "dkms", Flags: rpmfile.ForPost | rpmfile.ForPreUn}}
	return p, errors.Join(err, rpmfile.CheckName(p.Name))
}

func writeDKMS(w io.Writer, info Info, src SourceTree, prebuilt []Prebuilt) (err error) {
	p, err := info.dkmsPackage()
	if err != nil {
		return err
	}
	for _, upon := range src.Upon {
		needed, err := upon.dkmsPackage()
		if err != nil {
			return err
		}
		p.Requires = append(p.Requires, rpmfile.Dependency{Name: needed.Name})
	}
	t := tree{}
	if err := src.addTo(t, "/usr/src/"+info.Name+"-"+info.Version); err != nil {
		return err
	}
	list, err := info.prebuilt(t, prebuilt)
	if err != nil {
		return err
	}
	if list != "" {
		p.Description += "\nFor some kernels the modules are inside, and nothing is compiled."
	}
	values := func(text string) string {
		return fill(text, "NAME", info.Name, "VERSION", info.Version, "PREBUILT", list)
	}
	p.Post = values(dkmsPost)
	p.PreUn = values(dkmsPreUn)
	p.PostTrans = values(dkmsPostTrans)
	return writeTree(w, info, p, t)
}

// writeTree writes a package whose files say nothing about it.
func writeTree(w io.Writer, info Info, p *rpmfile.Package, t tree) (err error) {
	if p.License == "" {
		return errors.New("there is no module to take the license from: it must be given")
	}
	payload, err := t.payload(info)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, payload.Close()) }()
	return p.Write(w, payload)
}

const maxConfSize = 1 << 20

// addTo adds the source at a folder, and the dkms.conf unless it has one.
func (s SourceTree) addTo(t tree, top string) error {
	if len(s.Conf) == 0 || len(s.Conf) > maxConfSize || s.Files == nil {
		return fmt.Errorf("a source and a dkms.conf of 1 to %d bytes are needed, got one of %d", maxConfSize, len(s.Conf))
	}
	if err := t.source(top, s.Files); err != nil {
		return err
	}
	name := top + "/dkms.conf"
	conf, ok := t[name]
	if !ok {
		return t.add(name, content(string(s.Conf)))
	}
	if conf.open == nil {
		return errors.New("the source's dkms.conf is not a regular file")
	}
	return nil
}

// prebuilt adds the tarballs, and lists them for the scriptlet: a line of
// kernel, arch and file each.
func (i Info) prebuilt(t tree, prebuilt []Prebuilt) (list string, err error) {
	if len(prebuilt) == 0 {
		return "", nil
	}
	top := "/usr/share/" + i.Name
	t[top] = folder()
	var lines []string
	for _, b := range prebuilt {
		if err := b.validate(); err != nil {
			return "", fmt.Errorf("prebuilt for kernel %s: %w", b.Kernel, err)
		}
		name := fmt.Sprintf("%s-%s-kernel%s-%s.dkms.tar.%s", i.Name, i.Version, b.Kernel, b.Arch, cmp.Or(b.Compression, dkms.Gzip))
		err := t.add(top+"/"+name, file{open: func() (io.ReadCloser, int64, error) {
			r, err := b.Open()
			return r, b.Size, err
		}})
		if err != nil {
			return "", err
		}
		lines = append(lines, b.Kernel+" "+b.Arch+" "+name)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

func (b Prebuilt) validate() error {
	err := Kernel{Release: b.Kernel, Arch: b.Arch}.validate()
	if b.Size <= 0 || b.Open == nil {
		err = errors.Join(err, fmt.Errorf("%d bytes cannot be read", b.Size))
	}
	return err
}
