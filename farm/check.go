package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix/kernel"
	"github.com/kofarm/kofarm/worker"
)

// checkFormat numbers the checks that are made of a built module. A record of
// another format is built again.
const checkFormat = 2

// check judges built modules against the cell's kernel and what they are built
// upon, before anything packs them. A finding is no error.
func (b *Builder) check(ctx context.Context, c *Cell, upon []*Result, out worker.Output) (Checked, error) {
	checked := Checked{Format: checkFormat}
	files := out.Modules
	if len(files) == 0 {
		return checked, nil
	}
	symvers, err := b.symvers.get(ctx, c)
	if err != nil && !errors.Is(err, images.ErrNoSymvers) {
		return checked, fmt.Errorf("reading the kernel's Module.symvers: %w", err)
	}
	if symvers == nil {
		checked.Unchecked = []kmod.Kind{kmod.KindModversions, kmod.KindSymbol}
	}
	target := kmod.Target{Release: c.Kernel.Release, Arch: c.Kernel.Arch, Symvers: symvers}
	modules := make([]*kmod.Module, len(files))
	for i, f := range files {
		m, err := kmod.ReadAt(f.Data, f.Data.Size(), kmod.Limits{PlainOnly: true})
		if err != nil {
			checked.Problems = append(checked.Problems, Problem{f.Name, kmod.KindFormat, clip(err.Error())})
			continue
		}
		modules[i] = m
		target.Siblings = append(target.Siblings, m.Exports...)
	}
	for _, r := range upon {
		for _, ko := range r.Record.Modules {
			m, err := records{b.Store}.parsed(ko)
			if err != nil {
				return checked, err
			}
			target.Siblings = append(target.Siblings, m.Exports...)
		}
	}
	for i, m := range modules {
		if m == nil {
			continue
		}
		for _, p := range kmod.Check(m, target) {
			checked.Problems = append(checked.Problems, Problem{files[i].Name, p.Kind, clip(p.Detail)})
		}
	}
	programs, err := checkPrograms(c, out.Installed)
	checked.Problems = append(checked.Problems, programs...)
	return checked, err
}

// uncheckedWarning is for packages of modules that were not fully checked.
const uncheckedWarning = "the kernel's headers have no Module.symvers, so modversions and symbols were not checked: " +
	"the kernel may refuse the modules; add its Module.symvers to the headers"

// checkPrograms finds what of a build for another architecture was built for
// this machine, by Makefiles that ask for no other compiler.
func checkPrograms(c *Cell, files []worker.Installed) (found []Problem, err error) {
	machine := kernel.Machine()
	if c.Kernel.Arch == machine {
		return nil, nil
	}
	for _, f := range files {
		if f.Data == nil {
			continue
		}
		arch, err := kmod.ProgramArch(f.Data)
		if err != nil {
			return nil, err
		}
		if arch == machine {
			found = append(found, Problem{f.Name, kmod.KindMachine, fmt.Sprintf("the program is for %s, the kernel is %s: build it by $CC, which is the cross compiler", machine, c.Kernel.Arch)})
		}
	}
	return found, nil
}

// symversKept is how many kernels' symbols are kept at a time: cells of one
// kernel are not far from each other, and one has 2 MB.
const symversKept = 8

// symversCache reads each kernel's Module.symvers once, as long as it is in use.
type symversCache struct {
	load func(ctx context.Context, in images.Inputs, release string) ([]byte, error)

	once  singleflight.Group
	mu    sync.Mutex
	order []string
	known map[string]*kmod.Symvers
}

func (s *symversCache) get(ctx context.Context, c *Cell) (*kmod.Symvers, error) {
	key := c.Kernel.Release + " " + c.Kernel.Arch
	s.mu.Lock()
	v, ok := s.known[key]
	s.mu.Unlock()
	if ok {
		return v, nil
	}
	got, err, _ := s.once.Do(key, func() (any, error) {
		data, err := s.load(ctx, c.Inputs, c.Kernel.Release)
		if err != nil {
			return nil, err
		}
		return kmod.ParseSymvers(bytes.NewReader(data))
	})
	if err != nil {
		return nil, err
	}
	s.put(key, got.(*kmod.Symvers))
	return got.(*kmod.Symvers), nil
}

func (s *symversCache) put(key string, v *kmod.Symvers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]*kmod.Symvers{}
	}
	if _, ok := s.known[key]; !ok {
		s.order = append(s.order, key)
	}
	s.known[key] = v
	if len(s.order) > symversKept {
		delete(s.known, s.order[0])
		s.order = slices.Delete(s.order, 0, 1)
	}
}
