package apt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/klauspost/compress/gzip"
	"github.com/mikelolasagasti/xz"

	"github.com/kofarm/kofarm/images/fetch"
)

const (
	maxCompressed = 512 << 20 // bytes of a compressed Packages index
	maxXZDict     = xz.DefaultDictMax
)

// Source says where a suite is and how to trust it.
type Source struct {
	Distribution string    // the name in farm.yaml's archives, for errors and the cache
	Mirrors      []string  // base addresses that have "dists", tried in order
	Suite        string    // path below dists, such as "bookworm-security"
	Components   []string  // such as "main"
	Arch         string    // Debian's name, such as "amd64"
	Keyring      string    // file of OpenPGP public keys, binary or armored
	AllowExpired bool      // take a Release whose Valid-Until is over
	Now          time.Time // decides about expiry; required
}

// ErrSuite says that every mirror answers that it has no such suite.
var ErrSuite = errors.New("the archive has no such suite")

// ErrKeyring says that the keyring cannot be read.
var ErrKeyring = errors.New("keyring")

// ErrArch says that a suite has no packages of an architecture.
var ErrArch = errors.New("no packages for")

// Client opens suites. It is safe for concurrent use; its fields are not changed after the first call.
type Client struct {
	Fetch *fetch.Client
	Dir   string // decompressed indexes, named by the sha256 of what they were made from

	mu       sync.Mutex
	keyrings map[string]openpgp.EntityList
}

// Open verifies a suite's InRelease and opens the indexes of the components, downloading what is not
// cached. The caller closes the index. Errors: a *ReleaseError (or a *fetch.MirrorsError around the
// one of each mirror) where the InRelease is refused, ErrSuite, ErrKeyring, ErrArch, those of the
// fetcher, ErrLimit.
func (c *Client) Open(ctx context.Context, s Source) (*Index, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	release, err := c.release(ctx, s)
	if errors.Is(err, fetch.ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrSuite, err)
	}
	if err != nil {
		return nil, err
	}
	ix := &Index{Source: s, Release: release}
	dirs, err := s.indexDirs(release)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		t, err := c.openPackages(ctx, s, release, dir)
		if err != nil {
			err = fmt.Errorf("package index %s of suite %s (%s): %w", dir, s.Suite, s.Distribution, err)
			return nil, errors.Join(err, ix.Close())
		}
		ix.tables = append(ix.tables, t)
	}
	return ix, nil
}

// check finds what would otherwise fail in a way that is hard to read.
func (s Source) check() error {
	switch {
	case s.Now.IsZero():
		return fmt.Errorf("suite %s (%s): the time to judge its expiry by is not set", s.Suite, s.Distribution)
	case len(s.Mirrors) == 0:
		return fmt.Errorf("suite %s: archives.%s.mirrors is empty", s.Suite, s.Distribution)
	case len(s.Components) == 0:
		return fmt.Errorf("suite %s: archives.%s.components is empty", s.Suite, s.Distribution)
	case s.Suite == "" || !fs.ValidPath(s.Suite) || s.Arch == "" || strings.Contains(s.Arch, "/"):
		return fmt.Errorf("suite %q or architecture %q of %s is not valid", s.Suite, s.Arch, s.Distribution)
	}
	return nil
}

// release fetches the suite's InRelease and returns what it says, once it is verified.
func (c *Client) release(ctx context.Context, s Source) (*Release, error) {
	keys, err := c.keyring(s.Keyring)
	if err != nil {
		return nil, fmt.Errorf("%w of %s: %w; archives.%s.keyring: FILE names another one", ErrKeyring, s.Distribution, err, s.Distribution)
	}
	var release *Release
	check := func(data []byte) (err error) {
		release, err = s.checkRelease(data, keys)
		return err
	}
	name := strings.Join([]string{s.Distribution, s.Suite, "InRelease"}, "_")
	urls := joinURLs(s.Mirrors, path.Join("dists", s.Suite, "InRelease"))
	if _, err := c.Fetch.Mutable(ctx, urls, name, maxInRelease, check); err != nil {
		return nil, err
	}
	return release, nil
}

// keyring reads each keyring once.
func (c *Client) keyring(path string) (openpgp.EntityList, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if keys, ok := c.keyrings[path]; ok {
		return keys, nil
	}
	keys, err := readKeyring(path)
	if err != nil {
		return nil, err
	}
	if c.keyrings == nil {
		c.keyrings = map[string]openpgp.EntityList{}
	}
	c.keyrings[path] = keys
	return keys, nil
}

// indexDirs lists the folders of the indexes to open, such as "main/binary-amd64". An archive that
// keeps packages of architecture all in an index of their own has a second one per component.
func (s Source) indexDirs(r *Release) ([]string, error) {
	arches := []string{s.Arch}
	if slices.Contains(r.Architectures, "all") && !r.noAllPackages {
		arches = append(arches, "all")
	}
	var dirs []string
	for _, component := range s.Components {
		found := false
		for _, arch := range arches {
			dir := component + "/binary-" + arch
			if _, ok := r.packages(dir); ok {
				dirs = append(dirs, dir)
				found = true
			}
		}
		if !found && !slices.Contains(r.Architectures, s.Arch) {
			return nil, fmt.Errorf("suite %s (%s): %w %s: its architectures are %s", s.Suite, s.Distribution, ErrArch, s.Arch, strings.Join(r.Architectures, ", "))
		}
		if !found {
			return nil, fmt.Errorf("suite %s (%s) has no component %q for %s: its components are %s, its architectures %s",
				s.Suite, s.Distribution, component, s.Arch, strings.Join(r.Components, ", "), strings.Join(r.Architectures, ", "))
		}
	}
	return dirs, nil
}

// packages picks the best compression of a folder's Packages that the Release lists.
func (r *Release) packages(dir string) (name string, ok bool) {
	for _, suffix := range []string{".xz", ".gz", ""} {
		name := dir + "/Packages" + suffix
		if _, ok := r.files[name]; ok {
			return name, true
		}
	}
	return "", false
}

// openPackages opens a folder's index from the cache of decompressed ones, which it fills first.
func (c *Client) openPackages(ctx context.Context, s Source, r *Release, dir string) (*table, error) {
	name, _ := r.packages(dir)
	compressed, plain := r.files[name], r.files[dir+"/Packages"]
	if plain.sha256 == "" {
		plain.size = -1
	}
	cached := filepath.Join(c.Dir, compressed.sha256+".packages")
	if info, err := os.Stat(cached); err == nil && (plain.size < 0 || info.Size() == plain.size) && c.Fetch.Usable(cached) {
		return openTable(cached)
	}
	if compressed.size > maxCompressed {
		return nil, fmt.Errorf("%s has %d bytes: %w of %d", name, compressed.size, ErrLimit, maxCompressed)
	}
	file := fetch.File{URLs: s.indexURLs(r, name), SHA256: compressed.sha256, Size: compressed.size}
	got, err := c.Fetch.Fetch(ctx, file)
	if err != nil {
		return nil, err
	}
	if err := c.decompress(ctx, got, path.Ext(name), cached, plain); err != nil {
		return nil, fmt.Errorf("decompressing %s: %w", name, err)
	}
	return openTable(cached)
}

// indexURLs prefers names by checksum: they stay right while a mirror is being updated.
func (s Source) indexURLs(r *Release, name string) []string {
	var urls []string
	base := path.Join("dists", s.Suite)
	if r.AcquireByHash {
		urls = joinURLs(s.Mirrors, path.Join(base, path.Dir(name), "by-hash", "SHA256", r.files[name].sha256))
	}
	return append(urls, joinURLs(s.Mirrors, path.Join(base, name))...)
}

// decompress writes the plain index where unfinished files are, as who links the cache's must not
// have one that is still written to; checks it, and renames it.
func (c *Client) decompress(ctx context.Context, from, ext, to string, want releaseFile) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	r, err := decompressor(in, ext)
	if err != nil {
		return err
	}
	for _, dir := range []string{c.Dir, c.Fetch.Partial} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	tmp, err := fetch.OpenLocked(ctx, filepath.Join(c.Fetch.Partial, filepath.Base(to))) // one that a killed process left is used again
	if err != nil {
		return err
	}
	defer tmp.Close() // releases the lock; synced before the rename
	if err := tmp.Truncate(0); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(r, maxIndexBytes+1))
	if err == nil {
		err = checkPlain(n, hex.EncodeToString(sum.Sum(nil)), want)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), to)
}

func checkPlain(n int64, sum string, want releaseFile) error {
	switch {
	case n > maxIndexBytes:
		return fmt.Errorf("%w of %d bytes", ErrLimit, maxIndexBytes)
	case want.sha256 != "" && sum != want.sha256:
		return fmt.Errorf("%w: want sha256 %s, got %s", fetch.ErrChecksum, want.sha256, sum)
	}
	return nil
}

func decompressor(r io.Reader, ext string) (io.Reader, error) {
	switch ext {
	case ".xz":
		return xz.NewReader(r, maxXZDict)
	case ".gz":
		return gzip.NewReader(r)
	}
	return r, nil
}
