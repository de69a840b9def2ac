package worker

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// The labels by which what a backend makes in a daemon is found again.
const (
	StoreLabel = "dev.kofarm.store" // Claim.Store
	RunLabel   = "dev.kofarm.run"   // Claim.Run
	TaskLabel  = "dev.kofarm.task"  // Task.Name
	UsedLabel  = "dev.kofarm.used"  // the last day of use, where a label can change
)

// Claim marks what this process makes in a daemon, so that what is left of a
// process that was killed can be told from what one that is alive needs. Make
// it with [NewClaim].
type Claim struct {
	Store string // of the folder, for ever
	Run   string // of this process

	dir  string
	lock *os.File
}

// claimName is what names of a store or run look like.
var claimName = regexp.MustCompile(`^[a-z0-9]{16}$`)

const lockSuffix = ".lock"

func newName() string { return strings.ToLower(rand.Text()[:16]) }

// NewClaim makes a claim that is alive until Close or until the process ends.
// It is kept in dir.
func NewClaim(dir string) (*Claim, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	store, err := storeName(dir)
	if err != nil {
		return nil, fmt.Errorf("naming %s: %w", dir, err)
	}
	c := &Claim{Store: store, Run: newName(), dir: dir}
	c.sweep()
	// Locked before it has its name, so that nobody finds it without an owner.
	c.lock, err = os.CreateTemp(dir, ".claim-")
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(c.lock.Fd()), syscall.LOCK_EX)
	if err == nil {
		err = os.Rename(c.lock.Name(), c.path(c.Run))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("claiming %s: %w", dir, err), os.Remove(c.lock.Name()), c.lock.Close())
	}
	return c, nil
}

func (c *Claim) path(run string) string { return filepath.Join(c.dir, run+lockSuffix) }

// storeName reads or makes dir's name.
func storeName(dir string) (string, error) {
	path := filepath.Join(dir, "name")
	data, err := os.ReadFile(path)
	if name := strings.TrimSpace(string(data)); err == nil && claimName.MatchString(name) {
		return name, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".name-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	name := newName()
	_, err = f.WriteString(name + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		data, err := os.ReadFile(path) // another process was faster
		if name := strings.TrimSpace(string(data)); err == nil && claimName.MatchString(name) {
			return name, nil
		}
		return "", errors.Join(fmt.Errorf("%s holds no name; remove it", path), err)
	} else if err != nil {
		return "", err
	}
	return name, nil
}

// Dead tells whether a run of this store has ended without being this one.
func (c *Claim) Dead(run string) bool {
	if run == c.Run {
		return false
	}
	if !claimName.MatchString(run) {
		return true
	}
	f, err := os.OpenFile(c.path(run), os.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// sweep removes the marks of runs that were killed.
func (c *Claim) sweep() {
	names, _ := filepath.Glob(filepath.Join(c.dir, "*"+lockSuffix))
	for _, n := range names {
		if c.Dead(strings.TrimSuffix(filepath.Base(n), lockSuffix)) {
			_ = os.Remove(n)
		}
	}
}

// Close ends the claim.
func (c *Claim) Close() error {
	return errors.Join(os.Remove(c.path(c.Run)), c.lock.Close())
}
