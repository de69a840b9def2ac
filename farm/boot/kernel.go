package boot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kofarm/kofarm/farm/boot/efivars"
	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/store"
)

// Packages reads packages of a distribution, verified.
type Packages interface {
	Files(ctx context.Context, p *apt.Package, f func(h *tar.Header, r io.Reader) error) error
}

// Kernel is a kernel that can be booted: the packages that hold its image, its
// modules and a static busybox; and with the one that holds UEFI firmware (see
// Firmware) it is booted by that.
type Kernel struct {
	Release  string
	Arch     string // DKMS's name
	Packages []*apt.Package
}

// Firmware names the package of the firmware by which kernels of an architecture
// boot from UEFI; "" where this version does not.
func Firmware(arch string) string {
	if u := machines[arch].uefi; u != nil {
		return u.deb
	}
	return ""
}

// uefi says how it boots from firmware; nil where it does not.
func (k Kernel) uefi() *uefi {
	u := machines[k.Arch].uefi
	if u == nil || !slices.ContainsFunc(k.Packages, func(p *apt.Package) bool { return p.Name == u.deb }) {
		return nil
	}
	return u
}

// digest names the kernel by the content of its packages.
func (k Kernel) digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "kofarm boot kernel %d\n%s\n%s\n", indexVersion, k.Release, k.Arch)
	for _, p := range k.Packages {
		fmt.Fprintln(h, p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ErrNoKernel says that packages do not hold what a boot needs.
var ErrNoKernel = errors.New("no kernel to boot")

// Limits on what a kernel's packages hold, in bytes.
const (
	maxImage     = 256 << 20
	maxOwnModule = 128 << 20 // the largest of Debian's has 25 MB
	maxList      = 16 << 20  // modules.builtin and the like
	maxBusybox   = 32 << 20
)

// refKind is the kind of the refs that name what was taken out of a kernel's
// packages.
const refKind = "boot"

const blobType types.MediaType = "application/octet-stream"

// library keeps in a store what was taken out of kernels' packages: of each its
// image, ready to boot, an index of its modules, and those modules that were
// needed until now. Reading them from the packages takes half a minute.
type library struct {
	store    *store.Store
	packages Packages
}

// prepared is a kernel that is ready to boot.
type prepared struct {
	Kernel
	digest         string
	index          *index
	image, busybox v1.Descriptor
	code, vars     v1.Descriptor // firmware, if it boots by that
}

// blobs are what is taken out of the packages beside the index, by name.
func (p *prepared) blobs() map[string]*v1.Descriptor {
	blobs := map[string]*v1.Descriptor{"image": &p.image, "busybox": &p.busybox}
	if p.uefi() != nil {
		blobs["code"], blobs["variables"] = &p.code, &p.vars
	}
	return blobs
}

// prepare looks a kernel up in the store, or else reads its packages.
func (l *library) prepare(ctx context.Context, k Kernel) (*prepared, error) {
	p := &prepared{Kernel: k, digest: k.digest()}
	if l.stored(p) {
		return p, nil
	}
	if err := l.read(ctx, p, nil); err != nil {
		return nil, fmt.Errorf("preparing kernel %s for a boot: %w", k.Release, err)
	}
	return p, nil
}

func (l *library) stored(p *prepared) bool {
	for name, d := range p.blobs() {
		var err error
		if *d, err = l.store.Ref(refKind, p.digest+"-"+name); err != nil || !l.store.Has(d.Digest, d.Size) {
			return false
		}
	}
	d, err := l.store.Ref(refKind, p.digest+"-index")
	if err != nil {
		return false
	}
	data, err := l.store.Get(d.Digest, maxImage)
	if err != nil {
		return false
	}
	p.index = newIndex()
	return json.Unmarshal(data, p.index) == nil && p.index.Version == indexVersion
}

// modules gives modules of the kernel's own by their names, plain.
func (l *library) modules(ctx context.Context, p *prepared, names []string) (map[string][]byte, error) {
	found := map[string][]byte{}
	missing := map[string]bool{}
	for _, name := range names {
		data, err := l.module(p, name)
		if err != nil {
			missing[name] = true
			continue
		}
		found[name] = data
	}
	if len(missing) == 0 {
		return found, nil
	}
	if err := l.read(ctx, p, missing); err != nil {
		return nil, fmt.Errorf("reading modules of kernel %s: %w", p.Release, err)
	}
	for name := range missing {
		data, err := l.module(p, name)
		if err != nil {
			return nil, fmt.Errorf("module %s of kernel %s: %w", name, p.Release, err)
		}
		found[name] = data
	}
	return found, nil
}

func (l *library) module(p *prepared, name string) ([]byte, error) {
	d, err := l.store.Ref(refKind, p.digest+"-module-"+name)
	if err != nil {
		return nil, err
	}
	return l.store.Get(d.Digest, maxOwnModule)
}

func (l *library) put(p *prepared, what string, data []byte) (v1.Descriptor, error) {
	d, err := l.store.Put(data, blobType)
	if err != nil {
		return d, err
	}
	return d, l.store.SetRef(refKind, p.digest+"-"+what, d)
}

// reading is one pass over a kernel's packages.
type reading struct {
	*prepared
	found map[string][]byte // by the names of prepared.blobs
}

// read reads the kernel's packages. It stores the named modules, and where there
// are none it makes the index, the image, and busybox.
func (l *library) read(ctx context.Context, p *prepared, modules map[string]bool) (err error) {
	r := &reading{prepared: p, found: map[string][]byte{}}
	if modules == nil {
		p.index = newIndex()
	}
	for _, pkg := range p.Packages {
		err := l.packages.Files(ctx, pkg, func(h *tar.Header, file io.Reader) error {
			if modules != nil {
				return l.keep(p, modules, h, file)
			}
			return r.file(h, file)
		})
		if err != nil {
			return fmt.Errorf("package %s: %w", pkg, err)
		}
	}
	if modules != nil {
		return nil
	}
	return l.storeKernel(r)
}

var ownModulePath = regexp.MustCompile(`(^|/)lib/modules/[^/]+/kernel/.*\.ko(\.gz|\.xz|\.zst)?$`)

// isModule says whether a file is one of the kernel's modules, by its name.
func isModule(name string) bool { return ownModulePath.MatchString(name) }

// keep stores a module, if it is one of the wanted.
func (l *library) keep(p *prepared, wanted map[string]bool, h *tar.Header, file io.Reader) error {
	name := moduleName(path.Base(h.Name))
	if h.Typeflag != tar.TypeReg || !isModule(h.Name) || !wanted[name] {
		return nil
	}
	data, err := readModule(h, file)
	if err != nil {
		return err
	}
	_, err = l.put(p, "module-"+name, data)
	return err
}

func readModule(h *tar.Header, file io.Reader) ([]byte, error) {
	data, err := readLimited(h, file, maxOwnModule)
	if err != nil {
		return nil, err
	}
	data, _, err = kmod.Plain(data, kmod.Limits{Memory: maxOwnModule})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	return data, nil
}

func readLimited(h *tar.Header, file io.Reader, most int64) ([]byte, error) {
	if h.Size > most {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", h.Name, h.Size, most)
	}
	return io.ReadAll(io.LimitReader(file, most))
}

// file takes from a package's file what a boot needs.
func (r *reading) file(h *tar.Header, file io.Reader) (err error) {
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	read := func(most int64, use func([]byte)) error {
		data, err := readLimited(h, file, most)
		if err == nil {
			use(data)
		}
		return err
	}
	switch base := path.Base(h.Name); {
	case base == "vmlinuz-"+r.Release && strings.HasPrefix(h.Name, "boot/"), strings.HasSuffix(h.Name, "lib/modules/"+r.Release+"/vmlinuz"):
		return read(maxImage, func(data []byte) { r.found["image"] = data })
	case base == "busybox" && path.Base(path.Dir(h.Name)) == "bin":
		return read(maxBusybox, func(data []byte) { r.found["busybox"] = data })
	case r.uefi() != nil && strings.HasSuffix(h.Name, r.uefi().code):
		return read(efivars.MaxSize, func(data []byte) { r.found["code"] = data })
	case r.uefi() != nil && strings.HasSuffix(h.Name, r.uefi().variables):
		return read(efivars.MaxSize, func(data []byte) { r.found["variables"] = data })
	case base == "modules.builtin":
		return read(maxList, r.index.builtin)
	case base == "modules.builtin.modinfo":
		return read(maxList, r.index.builtinInfo)
	case isModule(h.Name):
		data, err := readModule(h, file)
		if err != nil {
			return err
		}
		m, err := kmod.ReadAt(bytes.NewReader(data), int64(len(data)), kmod.Limits{PlainOnly: true})
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		r.index.add(moduleName(base), m)
	}
	return nil
}

// storeKernel stores what a pass has found. The index comes last: where it is,
// all is.
func (l *library) storeKernel(r *reading) (err error) {
	if r.Arch == "x86_64" && r.uefi() == nil {
		switch plain, err := vmlinux(r.found["image"]); {
		case err == nil:
			r.found["image"] = plain
		case !errors.Is(err, errNoPayload):
			return err
		}
	}
	for name, d := range r.blobs() {
		if r.found[name] == nil {
			return fmt.Errorf("%w: no %s in %v", ErrNoKernel, name, r.Packages)
		}
		if *d, err = l.put(r.prepared, name, r.found[name]); err != nil {
			return err
		}
	}
	r.index.finish()
	data, err := json.Marshal(r.index)
	if err == nil {
		_, err = l.put(r.prepared, "index", data)
	}
	return err
}
