package farm

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/images/store"
)

// Cache holds results of cells outside the store, such as a registry that farms
// share.
type Cache interface {
	// Pull brings a cell's result into the store. The error is
	// store.ErrNotFound where the cache has none, and store.ErrDamaged where
	// what it has cannot be used.
	Pull(ctx context.Context, key string) error
	// Has tells whether the cache has a cell's result.
	Has(ctx context.Context, key string) (bool, error)
	// Push gives the cache a cell's result from the store, in place of another.
	Push(ctx context.Context, key string) error
}

// ReadOnly is a cache that takes nothing.
type ReadOnly struct{ Cache }

// Has says that nothing need be pushed.
func (ReadOnly) Has(context.Context, string) (bool, error) { return true, nil }

// Push does nothing.
func (ReadOnly) Push(context.Context, string) error { return nil }

const (
	cellsAtOnce = 8 // that are looked up
	// maxFaults is how often in a row a cache may fail before it is given up.
	maxFaults = 3
)

// cacheUse is the use of a cache by one run. Whatever goes wrong with it is a
// warning: the cell is built. A nil *cacheUse has nothing and takes nothing.
type cacheUse struct {
	cache Cache
	log   *slog.Logger

	mu     sync.Mutex
	faults int // in a row
}

func newCacheUse(c Cache, log *slog.Logger) *cacheUse {
	if c == nil {
		return nil
	}
	return &cacheUse{cache: c, log: log}
}

// usable says whether the cache is still asked.
func (u *cacheUse) usable() bool {
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.faults < maxFaults
}

// pull reports whether the store has got a result.
func (u *cacheUse) pull(ctx context.Context, c *Cell) bool {
	return u.usable() && u.judge(ctx, c.Name(), u.cache.Pull(ctx, c.Key))
}

// offer pushes a result of an earlier run that the cache lacks.
func (u *cacheUse) offer(ctx context.Context, c *Cell) {
	if !u.usable() {
		return
	}
	has, err := u.cache.Has(ctx, c.Key)
	if err == nil && !has {
		err = u.cache.Push(ctx, c.Key)
	}
	u.judge(ctx, c.Name(), err)
}

// push pushes a new result that is no failure.
func (u *cacheUse) push(ctx context.Context, c *Cell, rec *Record) {
	if rec.Outcome != Failed && u.usable() {
		u.judge(ctx, c.Name(), u.cache.Push(ctx, c.Key))
	}
}

// judge tells a fault of one entry, a cell's, from one of the cache.
func (u *cacheUse) judge(ctx context.Context, cell string, err error) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, store.ErrNotFound):
		u.faults = 0
	case ctx.Err() != nil || u.faults >= maxFaults: // interrupted, or it has been given up meanwhile
	case errors.Is(err, store.ErrDamaged):
		u.log.Warn("the shared cache holds a damaged result, which is not used; have it removed there", "cell", cell, "err", err)
	default:
		if u.faults++; u.faults < maxFaults {
			u.log.Warn("the shared cache cannot be used", "cell", cell, "err", err)
		} else {
			u.log.Warn("the shared cache cannot be used, and is not asked again in this run", "cell", cell, "err", err)
		}
	}
	return err == nil
}

// verdicts is the use of a cache of verdicts (see boot.Shared).
type verdicts struct{ *cacheUse }

func (v verdicts) Pull(ctx context.Context, key, cell string) {
	if v.usable() {
		v.judge(ctx, cell, v.cache.Pull(ctx, key))
	}
}

func (v verdicts) Push(ctx context.Context, key, cell string) {
	if v.usable() {
		v.judge(ctx, cell, v.cache.Push(ctx, key))
	}
}

// SharedVerdicts has tests share verdicts by a cache of boot.VerdictRef.
func SharedVerdicts(c Cache, log *slog.Logger) boot.Shared { return verdicts{newCacheUse(c, log)} }

// exchange looks the missing cells up in the cache, offers it the others, and
// returns the cells that have to be built.
func (b *Builder) exchange(ctx context.Context, cells []*Cell, missing []int, results []*Result) []int {
	if !b.cache.usable() {
		return missing
	}
	var g errgroup.Group
	g.SetLimit(cellsAtOnce)
	for i, c := range cells {
		if results[i] != nil && results[i].Record != nil {
			g.Go(func() error { b.cache.offer(ctx, c); return nil })
		}
	}
	_ = g.Wait() // before there are others' results beside them
	for _, i := range missing {
		g.Go(func() error {
			if results[i] = b.pulled(ctx, cells[i]); results[i] != nil {
				b.Observer.Finished(results[i])
			}
			return nil
		})
	}
	_ = g.Wait()
	return slices.DeleteFunc(missing, func(i int) bool { return results[i] != nil })
}

// pulled gives the result of a cell that the cache has, or nil.
func (b *Builder) pulled(ctx context.Context, c *Cell) *Result {
	if !b.cache.pull(ctx, c) {
		return nil
	}
	r := b.known(c)
	if r == nil {
		b.Log.Warn("the shared cache holds a result that is of no use here; the cell is built", "cell", c.Name())
	}
	return r
}
