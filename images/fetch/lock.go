package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a partial file that another process holds is tried.
const lockPoll = 50 * time.Millisecond

// OpenLocked opens an unfinished file, creating it, and takes its lock, which lives until it is closed and
// so ends with the process, however that ends.
func OpenLocked(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
		if err != nil {
			return nil, &localError{err}
		}
		if err := flock(ctx, f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		same, err := stillThere(f, path)
		if err != nil {
			return nil, &localError{errors.Join(err, f.Close())}
		}
		if same {
			return f, nil
		}
		if err := f.Close(); err != nil { // the holder renamed or removed it meanwhile
			return nil, &localError{err}
		}
	}
}

// flock waits for the lock; it polls, since a blocking flock(2) would not end with the context.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return &localError{fmt.Errorf("locking %s: %w", f.Name(), err)}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the lock of %s: %w", f.Name(), context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// stillThere says whether path still names the file that f has open.
func stillThere(f *os.File, path string) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, named), err
}
