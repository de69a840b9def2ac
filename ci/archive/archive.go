// Package archive gives tests packages of Debian's archive, verified, from the
// store that tests share.
package archive

import (
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
)

// Keyring is where debian-archive-keyring puts Debian's keys.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Suite is an opened suite.
type Suite struct {
	*debian.Suite
	fetch *fetch.Client
}

// Open opens a suite of Debian for amd64 until the test ends.
func Open(t testing.TB, suite string) *Suite {
	t.Helper()
	return OpenFor(t, suite, "amd64")
}

// OpenFor does so for an architecture, by Debian's name.
func OpenFor(t testing.TB, suite, arch string) *Suite {
	t.Helper()
	s, err := store.Open(rig.Store(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	client := &fetch.Client{Dir: s.BlobDir(), Kept: s.CacheDir("releases"), Partial: s.PartialDir()}
	opened, err := debian.Open(t.Context(), &apt.Client{Fetch: client, Dir: s.CacheDir("indexes")}, debian.Archive{
		Distribution: "debian", Mirrors: []string{"http://deb.debian.org/debian"},
		SecurityMirrors: []string{"http://deb.debian.org/debian-security"}, Components: []string{"main"},
		Keyring: Keyring, AllowExpired: []string{"sid"},
	}, suite, arch, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return &Suite{opened, client}
}

// Deb downloads a package, and gives the file's path and the version.
func (s *Suite) Deb(t testing.TB, name string) (path, version string) {
	t.Helper()
	found, err := s.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatalf("suite %s has no package %s", s.Name, name)
	}
	path, err = s.fetch.Fetch(t.Context(), found[0].File())
	if err != nil {
		t.Fatal(err)
	}
	return path, found[0].Version
}
