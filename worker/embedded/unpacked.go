package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A layer is marked, by a file of its name in "used", before it is looked for,
// and it is removed only if it was not marked since some time. A mark and a
// removal exclude each other by the lock "use.lock", each for a moment.

// use marks a layer as used now, and tells whether it is there.
func (l *layers) use(name string) (there bool, err error) {
	err = locked(filepath.Dir(l.dir), syscall.LOCK_SH, func() error {
		mark := usedMark(l.dir, name)
		f, err := os.OpenFile(mark, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if errors.Is(err, fs.ErrNotExist) { // the first mark of all
			if err = os.MkdirAll(filepath.Dir(mark), 0o755); err == nil {
				f, err = os.OpenFile(mark, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
			}
		}
		if err != nil {
			return err
		}
		now := time.Now() // truncating an empty file need not change its time
		if err := errors.Join(f.Close(), os.Chtimes(mark, now, now)); err != nil {
			return err
		}
		_, err = os.Lstat(filepath.Join(l.dir, name))
		there = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return there, err
}

func usedMark(layersDir, name string) string {
	return filepath.Join(filepath.Dir(layersDir), "used", name)
}

// locked runs f with a lock of the runtime's folder.
func locked(dir string, how int, f func() error) (err error) {
	lock, err := os.OpenFile(filepath.Join(dir, "use.lock"), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	for {
		err := syscall.Flock(int(lock.Fd()), how)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("locking %s: %w", lock.Name(), err)
		}
		return f()
	}
}

// Unpacked is a layer that a Runner has unpacked in its folder.
type Unpacked struct {
	DiffID string    // hex
	Used   time.Time // the last time
	Size   int64     // bytes of its files

	dir string // the layers' folder
}

// ListUnpacked lists the unpacked layers of a Runner's folder. There need not be
// one.
func ListUnpacked(dir string) ([]Unpacked, error) {
	l := newLayers(dir)
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Unpacked
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // being unpacked, or removed
		}
		used, uerr := l.lastUse(e.Name())
		size, serr := sizeOf(filepath.Join(l.dir, e.Name()))
		if errors.Is(uerr, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err := errors.Join(uerr, serr); err != nil {
			return nil, fmt.Errorf("looking at unpacked layer %s: %w", e.Name(), err)
		}
		all = append(all, Unpacked{DiffID: e.Name(), Used: used, Size: size, dir: l.dir})
	}
	return all, err
}

// lastUse is the time of a layer's mark, or that of its unpacking: its folder
// was given its name then, and nothing has changed it since.
func (l *layers) lastUse(name string) (time.Time, error) {
	info, err := os.Stat(filepath.Join(l.dir, name))
	if err != nil {
		return time.Time{}, err
	}
	var used time.Time
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		used = time.Unix(st.Ctim.Unix())
	}
	mark, err := os.Stat(usedMark(l.dir, name))
	if err == nil && mark.ModTime().After(used) {
		used = mark.ModTime()
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return used, err
}

func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // somebody removes it
		return total, nil
	}
	return total, err
}

// Remove removes the layer, unless it was used since, and tells whether it has.
func (u Unpacked) Remove(unusedSince time.Time) (gone bool, err error) {
	l := &layers{dir: u.dir}
	doomed := filepath.Join(u.dir, tmpPrefix+"gc-"+u.DiffID)
	err = locked(filepath.Dir(u.dir), syscall.LOCK_EX, func() error {
		used, err := l.lastUse(u.DiffID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !used.Before(unusedSince) {
			return err
		}
		if err := os.Remove(usedMark(u.dir, u.DiffID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := removeAll(doomed); err != nil { // of an earlier try that was killed
			return err
		}
		err = os.Rename(filepath.Join(u.dir, u.DiffID), doomed)
		gone = err == nil
		return err
	})
	if err != nil || !gone {
		return false, err
	}
	return true, removeAll(doomed)
}
