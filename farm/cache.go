package farm

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kofarm/kofarm/images/store"
)

// Cache holds results of cells outside the store, such as a registry that farms
// share.
type Cache interface {
	// Pull brings a cell's result into the store. The error is
	// store.ErrNotFound where the cache has none, and store.ErrDamaged where
	// what it has cannot be used.
	Pull(ctx context.Context, key string) error
	// Push gives the cache a cell's result from the store.
	Push(ctx context.Context, key string) error
}

// ReadOnly is a cache that takes nothing.
type ReadOnly struct{ Cache }

// Push does nothing.
func (ReadOnly) Push(context.Context, string) error { return nil }

const (
	pullsAtOnce = 8
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
	return u.usable() && u.judge(ctx, c, u.cache.Pull(ctx, c.Key))
}

// push offers a result that is no failure.
func (u *cacheUse) push(ctx context.Context, c *Cell, rec *Record) {
	if rec.Outcome != Failed && u.usable() {
		u.judge(ctx, c, u.cache.Push(ctx, c.Key))
	}
}

// judge tells a fault of one entry from one of the cache.
func (u *cacheUse) judge(ctx context.Context, c *Cell, err error) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, store.ErrNotFound):
		u.faults = 0
	case ctx.Err() != nil || u.faults >= maxFaults: // interrupted, or it has been given up meanwhile
	case errors.Is(err, store.ErrDamaged):
		u.log.Warn("the shared cache holds a damaged result, which is not used; have it removed there", "cell", c.Name(), "err", err)
	default:
		if u.faults++; u.faults < maxFaults {
			u.log.Warn("the shared cache cannot be used", "cell", c.Name(), "err", err)
		} else {
			u.log.Warn("the shared cache cannot be used, and is not asked again in this run", "cell", c.Name(), "err", err)
		}
	}
	return err == nil
}

// pullAll looks cells up in the cache, and returns those that have to be built.
func (b *Builder) pullAll(ctx context.Context, cells []*Cell, missing []int, results []*Result) []int {
	if !b.cache.usable() {
		return missing
	}
	var g errgroup.Group
	g.SetLimit(pullsAtOnce)
	for _, i := range missing {
		g.Go(func() error {
			if !b.cache.pull(ctx, cells[i]) {
				return nil
			}
			if results[i] = b.known(cells[i]); results[i] == nil {
				b.Log.Warn("the shared cache holds a result that is of no use here; the cell is built", "cell", cells[i].Name())
				return nil
			}
			b.Observer.Finished(results[i])
			return nil
		})
	}
	_ = g.Wait()
	var left []int
	for _, i := range missing {
		if results[i] == nil {
			left = append(left, i)
		}
	}
	return left
}
