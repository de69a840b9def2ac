package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// digest identifies the content of a file.
type digest struct {
	sha256 string // in hex
	size   int64
}

func digestOf(data []byte) digest {
	sum := sha256.Sum256(data)
	return digest{hex.EncodeToString(sum[:]), int64(len(data))}
}

// digestReader reads r to its end.
func digestReader(r io.Reader) (digest, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return digest{hex.EncodeToString(h.Sum(nil)), n}, err
}

// tree is a repository's folder. Its files appear complete, under their name, by a rename. Nothing
// leaves the folder, whatever links are in it.
type tree struct {
	root *os.Root
	lock *os.File
	temp atomic.Int64
	step func(op, name string) error // before each change; tests stop it there

	mu       sync.Mutex
	unsynced []string // files that the disk may not have yet
	durable  bool     // from now on a file is on the disk before it has its name
}

// openTree makes the folder where needed, locks it against other updates, and removes what a killed
// one was writing below the given folders.
func openTree(dir string, step func(op, name string) error, owned ...string) (_ *tree, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	t := &tree{step: step}
	if t.root, err = os.OpenRoot(dir); err != nil {
		return nil, err
	}
	if t.lock, err = t.root.Open("."); err != nil {
		return nil, errors.Join(err, t.root.Close())
	}
	if err := unix.Flock(int(t.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, errors.Join(fmt.Errorf("locking %s: %w", dir, err), t.close())
	}
	for _, d := range owned {
		err = errors.Join(err, t.clean(d, func(name string) bool { return !strings.HasPrefix(path.Base(name), tempPrefix) }))
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *tree) close() error { return errors.Join(t.lock.Close(), t.root.Close()) }

func (t *tree) before(op, name string) error {
	if t.step == nil {
		return nil
	}
	return t.step(op, name)
}

// has says whether the file is there with that content.
func (t *tree) has(name string, want digest) (bool, error) {
	fi, err := t.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!fi.Mode().IsRegular() || fi.Size() != want.size) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f, err := t.root.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close() // only read
	got, err := digestReader(f)
	return got == want, err
}

// putBytes writes a file, unless it is there with that content.
func (t *tree) putBytes(name string, data []byte) error {
	want := digestOf(data)
	if ok, err := t.has(name, want); ok || err != nil {
		return err
	}
	return t.put(name, want, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(data))
		return err
	})
}

const tempPrefix = ".kofarm-tmp-"

// put writes a file under a temporary name, checks what was written and renames it.
func (t *tree) put(name string, want digest, write func(io.Writer) error) error {
	if err := t.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), tempPrefix+strconv.FormatInt(t.temp.Add(1), 10))
	if err := t.before("create", temp); err != nil {
		return err
	}
	f, err := t.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = t.fill(f, name, want, write)
	if err = errors.Join(err, f.Close()); err == nil {
		err = t.before("rename", name)
	}
	if err == nil {
		err = t.root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", name, err), t.discard(temp))
	}
	t.written(name)
	return nil
}

func (t *tree) written(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.durable {
		t.unsynced = append(t.unsynced, name)
	}
}

// flush puts on the disk what has been written, before an index names it. Many files at once take one
// commit of a journal, file by file one each. What is written from then on is synced at once.
func (t *tree) flush() error {
	for _, name := range t.unsynced {
		f, err := t.root.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("syncing %s: %w", name, err)
		}
	}
	t.unsynced, t.durable = nil, true
	return nil
}

// discard removes a temporary file after an error.
func (t *tree) discard(temp string) error {
	if err := t.before("remove", temp); err != nil {
		return nil // stopped: the error before says so
	}
	return t.root.Remove(temp)
}

func (t *tree) fill(f *os.File, name string, want digest, write func(io.Writer) error) error {
	h := sha256.New()
	count := &counter{w: io.MultiWriter(f, h)}
	if err := write(count); err != nil {
		return err
	}
	if got := (digest{hex.EncodeToString(h.Sum(nil)), count.n}); got != want {
		return fmt.Errorf("its content changed meanwhile: sha256 %s, %d bytes, not %s, %d", got.sha256, got.size, want.sha256, want.size)
	}
	if err := f.Chmod(0o644); err != nil { // whatever the umask is
		return err
	}
	if err := t.age(f, name); err != nil {
		return err
	}
	if !t.durable {
		return nil
	}
	return f.Sync()
}

// age makes a file that replaces another at least a second younger: web servers and apt tell files
// apart by that, and would miss the second of two updates within a second.
func (t *tree) age(f *os.File, name string) error {
	old, err := t.root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil || fi.ModTime().Unix() > old.ModTime().Unix() {
		return err
	}
	at := unix.NsecToTimeval(old.ModTime().Add(time.Second).UnixNano())
	return unix.Futimes(int(f.Fd()), []unix.Timeval{at, at})
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// mkdirs makes folders that everyone can read, whatever the umask is.
func (t *tree) mkdirs(dir string) error {
	if _, err := t.root.Stat(dir); err == nil {
		return nil
	}
	if parent := path.Dir(dir); parent != dir {
		if err := t.mkdirs(parent); err != nil {
			return err
		}
	}
	if err := t.before("mkdir", dir); err != nil {
		return err
	}
	if err := t.root.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return t.root.Chmod(dir, 0o755)
}

// remove removes a file, if it is there.
func (t *tree) remove(name string) error {
	if _, err := t.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := t.before("remove", name); err != nil {
		return err
	}
	return t.root.Remove(name)
}

// files lists the files below a folder, in order; none where there is no folder.
func (t *tree) files(dir string) ([]string, error) {
	var all []string
	err := fs.WalkDir(t.root.FS(), dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, name)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// clean removes the files below a folder that are not to be kept, and folders that are empty then.
func (t *tree) clean(dir string, keep func(name string) bool) error {
	names, err := t.files(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if keep(name) {
			continue
		}
		if err := t.remove(name); err != nil {
			return err
		}
		if err := t.prune(dir, path.Dir(name)); err != nil {
			return err
		}
	}
	return nil
}

// prune removes empty folders from dir up to top, which stays.
func (t *tree) prune(top, dir string) error {
	for ; dir != top && dir != "."; dir = path.Dir(dir) {
		entries, err := fs.ReadDir(t.root.FS(), dir)
		if err != nil || len(entries) > 0 {
			return err
		}
		if err := t.remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a folder and what is in it.
func (t *tree) removeAll(dir string) error {
	if _, err := t.root.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := t.clean(dir, func(string) bool { return false }); err != nil {
		return err
	}
	return t.remove(dir)
}

// link gives a file of the tree a second name, in a folder that is there.
func (t *tree) link(from, to string) error {
	if err := t.before("link", to); err != nil {
		return err
	}
	return t.root.Link(from, to)
}

// exchange swaps two folders at the top in one step. Not every file system can; errNoExchange then.
func (t *tree) exchange(a, b string) error {
	if err := t.before("exchange", a); err != nil {
		return err
	}
	fd := int(t.lock.Fd())
	err := unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", errNoExchange, err)
	}
	return err
}

var errNoExchange = errors.New("this file system cannot exchange folders")

// read returns a file of at most limit bytes; nil where there is none.
func (t *tree) read(name string, limit int64) ([]byte, error) {
	f, err := t.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: %w of %d bytes", name, ErrLimit, limit)
	}
	return data, nil
}
