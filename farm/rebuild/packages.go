package rebuild

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/farm/modsign"
	"github.com/kofarm/kofarm/farm/pack/deb"
	"github.com/kofarm/kofarm/farm/pack/dkms"
	"github.com/kofarm/kofarm/farm/pack/edit"
	"github.com/kofarm/kofarm/farm/pack/rpm/rpmfile"
	"github.com/kofarm/kofarm/farm/resign"
)

// module is a plain module without signatures.
type module struct {
	name string // file name, with .ko
	at   string // its path in the file that it was found in
	data []byte
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// modulesIn reads the modules of a loose module or a package, each as it was
// built: not compressed, and without signatures.
func modulesIn(file string) ([]module, error) {
	kind, err := resign.KindOf(file)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	var all []module
	_, err = resign.Each(f, kind, func(name string, data []byte) error {
		plain, err := modsign.Strip(data)
		if name == "" {
			name = file
		}
		all = append(all, module{moduleName(name), name, bytes.Clone(plain)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

// moduleName is a module's file name without the suffix of a compressed one.
func moduleName(name string) string {
	name = path.Base(name)
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		if cut, ok := strings.CutSuffix(name, suffix); ok {
			return cut
		}
	}
	return name
}

// unsignedSum is the sha256 in hex of a package without the signatures of the
// modules in it, and without its own.
func unsignedSum(file string) (string, error) {
	kind, err := resign.KindOf(file)
	if err != nil {
		return "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read
	h := sha256.New()
	_, err = resign.Rewrite(h, f, kind, func(_ string, m []byte) ([]byte, error) { return modsign.Strip(m) })
	return hex.EncodeToString(h.Sum(nil)), err
}

func fileSum(file string) (_ string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// members shows every file in a package, those in tarballs inside it, too.
// Modules are shown as they were built.
func members(file string, show func(name string, data []byte)) error {
	kind, err := resign.KindOf(file)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	return walk(f, kind, "", show)
}

func walk(r io.Reader, kind resign.Kind, at string, show func(name string, data []byte)) error {
	all := edit.Edit{Wants: func(string) bool { return true }, Change: func(name string, data []byte) ([]byte, error) {
		inner, err := resign.KindOf(name)
		name = path.Join(at, name)
		switch {
		case err == nil && inner == resign.Tarball && at == "":
			return data, walk(bytes.NewReader(data), inner, name, show)
		case err == nil && inner == resign.Module:
			if plain, ok := asBuilt(data); ok {
				show(name, plain)
				return data, nil
			}
		}
		show(name, data)
		return data, nil
	}}
	var err error
	switch kind {
	case resign.Tarball:
		err = dkms.Rewrite(io.Discard, r, all)
	case resign.Deb:
		_, err = deb.Rewrite(io.Discard, r, all)
	case resign.RPM:
		_, err = rpmfile.Rewrite(io.Discard, r, all)
	default:
		err = fmt.Errorf("a %s has no members", kind)
	}
	return err
}

// asBuilt takes compression and signatures off; not ok for what is no module.
func asBuilt(data []byte) (_ []byte, ok bool) {
	plain, _, err := kmod.Plain(data, kmod.Limits{})
	if err == nil {
		plain, err = modsign.Strip(plain)
	}
	return plain, err == nil
}

// maxExplained is how many members of a package are looked into.
const maxExplained = 6

// explainPackage lists where two packages differ.
func explainPackage(was, now string) ([]Difference, error) {
	before, after := map[string]string{}, map[string]string{}
	var order []string
	err := members(was, func(name string, data []byte) {
		order = append(order, name)
		before[name] = hashOf(data)
	})
	err = errors.Join(err, members(now, func(name string, data []byte) {
		if _, ok := before[name]; !ok {
			order = append(order, name)
		}
		after[name] = hashOf(data)
	}))
	if err != nil {
		return nil, err
	}
	wanted := slices.DeleteFunc(order, func(name string) bool { return before[name] == after[name] })
	if len(wanted) == 0 {
		return []Difference{{Sizes: [2]int64{fileSize(was), fileSize(now)}, Offset: -1,
			Note: "all files in it are the same: names, order, modes, times or compression of the package itself differ"}}, nil
	}
	return explainMembers(was, now, wanted[:min(len(wanted), maxExplained)])
}

func fileSize(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return -1
	}
	return info.Size()
}

// explainMembers reads the members again that differ.
func explainMembers(was, now string, wanted []string) ([]Difference, error) {
	before, after := map[string][]byte{}, map[string][]byte{}
	keep := func(in map[string][]byte) func(string, []byte) {
		return func(name string, data []byte) {
			if slices.Contains(wanted, name) {
				in[name] = bytes.Clone(data)
			}
		}
	}
	if err := errors.Join(members(was, keep(before)), members(now, keep(after))); err != nil {
		return nil, err
	}
	var all []Difference
	for _, name := range wanted {
		old, wasThere := before[name]
		data, isThere := after[name]
		switch {
		case !wasThere:
			all = append(all, Difference{Member: name, Sizes: [2]int64{-1, int64(len(data))}, now: data})
		case !isThere:
			all = append(all, Difference{Member: name, Sizes: [2]int64{int64(len(old)), -1}, was: old})
		default:
			for _, d := range explain(old, data) {
				d.Member = name
				all = append(all, d)
			}
		}
	}
	return all, nil
}
