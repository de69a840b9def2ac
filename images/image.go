// Package images turns what a cell needs into an OCI image.
//
// The image's layers, lowest first, are: the toolchain, one layer for each
// header package, a layer for what the module wants beyond that, two layers for
// each module that it is built upon, the module's source, and the base with the
// program to run. Each is made from packages or
// files in one fixed way (see [LayerFormat]), so the same inputs give the same
// bytes everywhere, and is made once: two kernels of a suite share all but
// their headers.
//
// No maintainer script runs. What the scripts of the usual packages would have
// done that a build can see is done here: the links of a merged /usr, of
// update-alternatives, and four files in /etc.
package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/singleflight"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/store"
)

// Inputs are what one image is made of.
type Inputs struct {
	Toolchain []*apt.Package // sorted by name
	Headers   []*apt.Package // each a layer of its own
	Custom    *Headers       // headers of a kernel of one's own, or nil
	Extra     []*apt.Package // beyond the toolchain
	Upon      []Built        // what was built before, each after what it was built upon itself
	Source    *Source
	Program   Program
}

// Assembler makes images in a store. It is safe for concurrent use.
type Assembler struct {
	Store   *store.Store
	Fetcher Fetcher
	Shared  Shared // where layers of packages may come from and go to; nil: nowhere

	once    singleflight.Group
	offered sync.Map // names of layers
}

// Image makes the image, from the layers that are there and those that it makes.
func (a *Assembler) Image(ctx context.Context, in Inputs) (v1.Image, error) {
	layers, err := a.layers(ctx, in)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, fmt.Errorf("assembling the image: %w", err)
	}
	return mutate.ConfigFile(img, config(img, in.Program))
}

// config is the image's, for the machine that runs the build, whatever it builds for.
func config(img v1.Image, p Program) *v1.ConfigFile {
	c := &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", Config: v1.Config{Entrypoint: []string{"/bin/bash", p.Path}}}
	if old, err := img.ConfigFile(); err == nil {
		c.RootFS = old.RootFS
	}
	return c
}

func (a *Assembler) layers(ctx context.Context, in Inputs) ([]v1.Layer, error) {
	var layers []v1.Layer
	add := func(what string, make func() (*store.Layer, error)) error {
		l, err := make()
		if err != nil {
			return fmt.Errorf("making the layer of %s: %w", what, err)
		}
		layers = append(layers, l)
		return nil
	}
	err := add("the toolchain", func() (*store.Layer, error) { return a.packages(ctx, in.Toolchain) })
	for _, p := range in.Headers {
		if err == nil {
			err = add(p.Name, func() (*store.Layer, error) { return a.packages(ctx, []*apt.Package{p}) })
		}
	}
	if err == nil && in.Custom != nil {
		err = add("the kernel's own headers", func() (*store.Layer, error) { return a.single(in.Custom.layerName(), in.Custom.layer(a.Store)) })
	}
	if err == nil && len(in.Extra) > 0 {
		err = add("the build packages", func() (*store.Layer, error) { return a.packages(ctx, in.Extra) })
	}
	for _, b := range in.Upon {
		if err == nil {
			err = add("the source of "+b.Source.Name, a.source(b.Source))
		}
		if err == nil {
			err = add(b.Source.Name, func() (*store.Layer, error) {
				return a.single(b.layerName(), func() (*store.Layer, error) { return b.layer(a.Store) })
			})
		}
	}
	if err == nil {
		err = add("the source", a.source(in.Source))
	}
	if err == nil {
		err = add("the base", func() (*store.Layer, error) {
			return a.single("base", func() (*store.Layer, error) { return baseLayer(a.Store, in.Program) })
		})
	}
	return layers, err
}

func (a *Assembler) source(src *Source) func() (*store.Layer, error) {
	return func() (*store.Layer, error) {
		return a.single("source "+src.Digest+src.Name+src.Version, func() (*store.Layer, error) { return sourceLayer(a.Store, src) })
	}
}

// Shared holds layers outside the store, such as a registry that farms share.
// Sources are not among them: they may be private.
type Shared interface {
	// Find brings a layer into the store, and reports whether it is there now.
	Find(ctx context.Context, name string) bool
	// Offer gives a layer of the store to those who want it.
	Offer(ctx context.Context, name string)
}

func (a *Assembler) packages(ctx context.Context, pkgs []*apt.Package) (*store.Layer, error) {
	name := packagesName("packages", pkgs)
	return a.single(name, func() (*store.Layer, error) {
		if a.Shared == nil {
			return packageLayer(ctx, a.Store, a.Fetcher, pkgs)
		}
		if _, err := a.Store.Layer(name); errors.Is(err, store.ErrNotFound) && a.Shared.Find(ctx, name) {
			return a.Store.Layer(name)
		}
		l, err := packageLayer(ctx, a.Store, a.Fetcher, pkgs)
		if _, known := a.offered.LoadOrStore(name, true); err == nil && !known {
			a.Shared.Offer(ctx, name)
		}
		return l, err
	})
}

// single makes a layer once, however many cells want it at the same time.
func (a *Assembler) single(name string, make func() (*store.Layer, error)) (*store.Layer, error) {
	l, err, _ := a.once.Do(name, func() (any, error) { return make() })
	if err != nil {
		return nil, err
	}
	return l.(*store.Layer), nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
