// Package repo writes the repositories that apt, dnf and zypper install from.
//
// An update never shows a client half of a repository. Files that an index names are there before it
// is, and an index is replaced by one rename, last. What only the index before named stays for one
// more update, for clients that have read that one; what is older goes. An update that was killed at
// any point leaves a sound repository, and the next one completes it.
//
// The same packages, key and epoch give the same bytes. Where a repository is there already, two
// things depend on it: a package whose name another one still holds gets a folder of its own, and an
// apt repository's Date never goes back, because apt ignores a Release that is older than its own.
//
// Below its folder a repository owns dists/<suite>/<component> and pool/<component>, or repodata and
// Packages: what is there and not of it is removed.
package repo

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"runtime"
	"time"
)

// Errors that a caller may branch on.
var (
	ErrBusy      = errors.New("another kofarm is updating this repository")
	ErrConflict  = errors.New("two different packages of the same name and version")
	ErrFormat    = errors.New("not as expected")
	ErrLimit     = errors.New("over the limit")
	ErrUntrusted = errors.New("the repository's present state is not signed by the key")
)

// File is a package that a repository is to hold.
type File struct {
	Path string // where it is now; it is copied
}

// jobs is how many packages are read and written at a time.
func jobs() int { return runtime.NumCPU() }

// plainName is what suites, components and architectures may be called: they are parts of paths and
// words of a list.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._~-]{0,99}$`)

func checkName(what, name string) error {
	if !plainName.MatchString(name) {
		return fmt.Errorf("%s %q: letters, digits and any of + . _ ~ - are allowed", what, name)
	}
	return nil
}

// hashedDir is the folder for a package of the same name as another: the beginning of its sha256.
const hashedDir = 16

// place puts a package into a folder of the pool, unless it is there, and returns its path.
func (t *tree) place(dir, base string, want digest, write func(io.Writer) error) (string, error) {
	plain := path.Join(dir, base)
	apart := path.Join(dir, want.sha256[:hashedDir], base)
	for _, name := range []string{apart, plain} {
		if ok, err := t.has(name, want); ok || err != nil {
			return name, err
		}
	}
	name := plain
	if _, err := t.root.Lstat(plain); err == nil {
		name = apart // clients that have read the index before still fetch the other one
	}
	return name, t.put(name, want, write)
}

// openFile opens a regular file that is an input.
func openFile(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, fi.Size(), nil
}

// epochOf is the second that an index shows.
func epochOf(t time.Time) int64 { return max(t.Unix(), 0) }
