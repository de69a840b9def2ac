package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Policy says what Collect removes. The zero value removes only what runs that
// were killed have left in tmp/.
type Policy struct {
	MaxAge  time.Duration // what was last used longer ago goes; 0: no limit
	MaxSize int64         // bytes; what was used least recently goes until the rest is no more; 0: no limit
	DryRun  bool          // only count
	Now     time.Time     // required
	Others  []Item        // what is kept beside the store and counts like its own
}

// Item is something that Collect may remove.
type Item struct {
	Kind string    // as Report names it
	Used time.Time // the last time
	Size int64     // bytes
	// Remove removes it unless it was used since that time. It reports whether
	// it has.
	Remove func(unusedSince time.Time) (bool, error)

	blobs []string // of a ref: those that it names, by their hex digest
}

// Tally counts things and their bytes.
type Tally struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

func (t *Tally) add(size int64) { t.Count++; t.Bytes += size }

// Report says what Collect has done.
type Report struct {
	Freed map[string]*Tally `json:"freed"` // by kind; with DryRun what would have been
	Total Tally             `json:"total"` // of Freed
	Kept  int64             `json:"kept"`  // bytes
	Users int               `json:"users"` // other processes that have the store open
}

// Kinds of items, beside the kinds of refs.
const (
	blobKind     = "download" // a blob that no ref names: packages and sources, mostly
	partialKind  = "partial download"
	indexKind    = "index"
	leftoverKind = "leftover" // in tmp/
)

// maxRefManifest bounds the bytes of a manifest that is read for the blobs that
// it names.
const maxRefManifest = 16 << 20

// Collect removes what the policy says and nobody uses: refs with the blobs
// that no other ref names, blobs without a ref, unfinished downloads, unpacked
// indexes, and Others. It may run beside builds (see Use). Where it is
// interrupted, or a process is killed meanwhile, what is left is whole: a ref
// goes before its blobs.
func (s *Store) Collect(ctx context.Context, p Policy) (*Report, error) {
	return s.collect(ctx, p, slack)
}

func (s *Store) collect(ctx context.Context, p Policy, slack time.Duration) (*Report, error) {
	c := &collection{s: s, p: p, report: &Report{Freed: map[string]*Tally{}}}
	var err error
	if c.horizon, c.report.Users, err = s.horizon(p.Now); err != nil {
		return nil, fmt.Errorf("collecting garbage: %w", err)
	}
	c.horizon = c.horizon.Add(-slack)
	if err := c.scan(); err != nil {
		return nil, fmt.Errorf("collecting garbage: %w", err)
	}
	err = c.run(ctx)
	if err == nil && !p.DryRun {
		err = s.WriteIndex()
	}
	if err != nil {
		err = fmt.Errorf("collecting garbage: %w", err)
	}
	return c.report, err
}

// collection is one run of Collect.
type collection struct {
	s       *Store
	p       Policy
	horizon time.Time // what was used since is kept
	report  *Report

	queue []Item           // sorted by Used
	blobs map[string]*blob // by hex digest
}

type blob struct {
	used time.Time
	size int64
	refs int
}

// scan finds all that there is.
func (c *collection) scan() error {
	if err := c.scanBlobs(); err != nil {
		return err
	}
	err := errors.Join(c.scanRefs(),
		c.scanFiles(c.s.PartialDir(), partialKind, c.removePartial),
		c.scanFiles(c.s.CacheDir("indexes"), indexKind, c.removeFile))
	for hex, b := range c.blobs {
		if b.refs == 0 {
			c.queue = append(c.queue, c.orphan(hex, b))
		}
	}
	c.queue = append(c.queue, c.p.Others...)
	for _, i := range c.p.Others {
		c.report.Kept += i.Size
	}
	slices.SortFunc(c.queue, older)
	return err
}

// older orders by the time of use, and else so that dry runs tell the same.
func older(a, b Item) int {
	if d := a.Used.Compare(b.Used); d != 0 {
		return d
	}
	return strings.Compare(a.Kind, b.Kind)
}

func (c *collection) scanBlobs() error {
	c.blobs = map[string]*blob{}
	return c.each(c.s.BlobDir(), func(path string, info fs.FileInfo) {
		c.blobs[info.Name()] = &blob{used: info.ModTime(), size: info.Size()}
		c.report.Kept += info.Size()
	})
}

// each calls f for the files of a folder.
func (c *collection) each(dir string, f func(path string, info fs.FileInfo)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		info, ierr := e.Info()
		if errors.Is(ierr, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if ierr != nil {
			return ierr
		}
		if info.Mode().IsRegular() {
			f(filepath.Join(dir, e.Name()), info)
		}
	}
	return err
}

func (c *collection) scanFiles(dir, kind string, remove func(path string, unusedSince time.Time) (bool, error)) error {
	return c.each(dir, func(path string, info fs.FileInfo) {
		c.report.Kept += info.Size()
		c.queue = append(c.queue, Item{Kind: kind, Used: info.ModTime(), Size: info.Size(),
			Remove: func(since time.Time) (bool, error) { return remove(path, since) }})
	})
}

func (c *collection) scanRefs() error {
	kinds, err := os.ReadDir(c.s.path("refs"))
	if err != nil {
		return err
	}
	for _, k := range kinds {
		kind := k.Name()
		err := c.each(c.s.path("refs", kind), func(path string, info fs.FileInfo) {
			item := Item{Kind: kind, Used: info.ModTime(), blobs: c.named(kind, info.Name()),
				Remove: func(since time.Time) (bool, error) { return c.removeFile(path, since) }}
			for _, hex := range item.blobs {
				c.blobs[hex].refs++
			}
			c.queue = append(c.queue, item)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// named lists the blobs that a ref names, each once: its own, and those that a
// manifest lists. Blobs that are missing are left out.
func (c *collection) named(kind, name string) []string {
	d, err := c.s.readRef(kind, name)
	if err != nil {
		return nil
	}
	found := map[string]bool{}
	add := func(d v1.Descriptor) {
		if d.Digest.Algorithm == "sha256" && c.blobs[d.Digest.Hex] != nil {
			found[d.Digest.Hex] = true
		}
	}
	add(d)
	if d.MediaType.IsImage() {
		if data, err := c.s.Get(d.Digest, maxRefManifest); err == nil {
			if m, err := v1.ParseManifest(bytes.NewReader(data)); err == nil {
				add(m.Config)
				for _, l := range m.Layers {
					add(l)
				}
			}
		}
	}
	return slices.Collect(maps.Keys(found))
}

// orphan is a blob that no ref names.
func (c *collection) orphan(hex string, b *blob) Item {
	path := filepath.Join(c.s.BlobDir(), hex)
	return Item{Kind: blobKind, Used: b.used, Size: b.size,
		Remove: func(since time.Time) (bool, error) { return c.removeFile(path, since) }}
}

// run removes items, the longest unused first.
func (c *collection) run(ctx context.Context) error {
	if err := c.leftovers(); err != nil {
		return err
	}
	for len(c.queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		item := c.queue[0]
		c.queue = c.queue[1:]
		tooOld := c.p.MaxAge > 0 && item.Used.Before(c.p.Now.Add(-c.p.MaxAge))
		tooMuch := c.p.MaxSize > 0 && c.report.Kept > c.p.MaxSize
		if !tooOld && !tooMuch || !item.Used.Before(c.horizon) {
			return nil // and so it is with all that follow
		}
		if err := c.remove(item); err != nil {
			return err
		}
	}
	return nil
}

// remove removes an item, and with a ref the blobs that only it has named.
func (c *collection) remove(item Item) error {
	if !c.p.DryRun {
		if gone, err := item.Remove(c.horizon); err != nil || !gone {
			return err
		}
	}
	c.freed(item.Kind, item.Size)
	for _, hex := range item.blobs {
		b := c.blobs[hex]
		if b.refs--; b.refs > 0 {
			continue
		}
		o := c.orphan(hex, b)
		if b.used.After(item.Used) { // it was used since by other means, such as a download
			at, _ := slices.BinarySearchFunc(c.queue, o, older)
			c.queue = slices.Insert(c.queue, at, o)
			continue
		}
		if !c.p.DryRun {
			if gone, err := o.Remove(c.horizon); err != nil {
				return err
			} else if !gone {
				continue
			}
		}
		c.report.Freed[item.Kind].Bytes += o.Size
		c.report.Total.Bytes += o.Size
		c.report.Kept -= o.Size
	}
	return nil
}

func (c *collection) freed(kind string, size int64) {
	t := c.report.Freed[kind]
	if t == nil {
		t = &Tally{}
		c.report.Freed[kind] = t
	}
	t.add(size)
	c.report.Total.add(size)
	c.report.Kept -= size
}

// removeFile removes a file unless it was used since.
func (c *collection) removeFile(path string, since time.Time) (gone bool, err error) {
	err = c.s.locked(unix.LOCK_EX, func() error {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !info.ModTime().Before(since) {
			return err
		}
		gone = true
		return os.Remove(path)
	})
	return gone && err == nil, err
}

// removePartial removes an unfinished download that nobody is at: who is keeps
// it locked, as package fetch does.
func (c *collection) removePartial(path string, since time.Time) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false, nil
	}
	return c.removeFile(path, since)
}

// leftovers removes what was left in tmp/ by processes that are gone: what those
// that live write there is younger than they are.
func (c *collection) leftovers() error {
	entries, err := os.ReadDir(c.s.TempDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(c.s.TempDir(), e.Name())
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.ModTime().Before(c.horizon) {
			continue
		}
		size, err := Size(path)
		if err == nil && !c.p.DryRun {
			err = os.RemoveAll(path)
		}
		if err != nil {
			return err
		}
		c.report.Kept += size
		c.freed(leftoverKind, size)
	}
	return nil
}

// Size adds up the bytes of the files of a tree.
func Size(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return total, err
}
