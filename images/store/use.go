package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Collect may run beside builds because of two rules. Whoever finds something
// in the store marks it as used before it relies on it: the file's modification
// time becomes now. And Collect keeps all that was used since the oldest process
// which has the store open has opened it. So what a process has found stays
// until that process is done with it.
//
// A mark and a removal exclude each other by the lock "use.lock", shared for a
// mark and exclusive for a removal, each for a moment. When a process has
// opened the store is the modification time of a file in "users", which it
// keeps locked.

// Use marks a file of the store as used now. The error is ErrNotFound where it
// is not there (any more).
func (s *Store) Use(path string) error {
	return s.using(func() error { return touch(path) })
}

// touch makes a file's times now. Where that is not allowed, as in a store that
// belongs to another user, it only looks whether the file is there.
func touch(path string) error {
	now := unix.Timespec{Nsec: unix.UTIME_NOW} // the file system's own clock
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, 0)
	if err != nil {
		_, err = os.Stat(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(path), ErrNotFound)
	}
	return err
}

// using runs f while nothing is removed.
func (s *Store) using(f func() error) error { return s.locked(unix.LOCK_SH, f) }

func (s *Store) locked(how int, f func() error) (err error) {
	lock, err := os.OpenFile(s.path("use.lock"), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := flock(lock, how); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	return f()
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// register tells Collect that this process has the store open from now on.
func (s *Store) register() error {
	return s.using(func() error {
		f, err := os.CreateTemp(s.path("users"), "user-")
		if err != nil {
			return err
		}
		s.user = f
		return flock(f, unix.LOCK_EX)
	})
}

// unregister takes that back.
func (s *Store) unregister() error {
	f := s.user
	if s.user = nil; f == nil {
		return nil
	}
	err := os.Remove(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Waive lets Collect remove what this process has used, too: for a long-lived
// one which looks everything up anew. It is not for concurrent use.
func (s *Store) Waive() error { return s.unregister() }

// slack is how much coarser a file system's clock may be than a process's (FAT
// counts in two seconds).
const slack = 2 * time.Second

// horizon is the time since when all that was used is kept, and the number of
// processes that have the store open beside this one. Processes that open the
// store from now on are safe, too: what they use, they use later.
func (s *Store) horizon(now time.Time) (oldest time.Time, others int, err error) {
	oldest = now
	err = s.locked(unix.LOCK_EX, func() error {
		entries, err := os.ReadDir(s.path("users"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := s.path("users", e.Name())
			if s.user != nil && path == s.user.Name() {
				continue
			}
			since, alive, err := userSince(path)
			if err != nil {
				return err
			}
			if !alive {
				continue
			}
			others++
			if since.Before(oldest) {
				oldest = since
			}
		}
		return nil
	})
	return oldest, others, err
}

// userSince says since when a process has the store open, and removes the file
// of one that is gone.
func userSince(path string) (since time.Time, alive bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return time.Time{}, false, err
	}
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return info.ModTime(), true, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, false, err
	}
	return time.Time{}, false, nil
}
