// Package archive gives tests packages of Debian's archive, verified, from the
// store that tests share.
package archive

import (
	"path"
	"slices"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/debian"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/images/store"
	"github.com/kofarm/kofarm/matrix/kernel"
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

// Complete gives the newest n releases of a series and flavor ("6.1.*") of which
// the suite has not only the headers but also the linux-image, the older first:
// it is signed hours or days after the headers are there.
func (s *Suite) Complete(t testing.TB, series, flavor string, n int) []string {
	t.Helper()
	kernels, err := s.Kernels()
	if err != nil {
		t.Fatal(err)
	}
	var releases []kernel.Release
	for _, k := range kernels {
		r := kernel.Release(k.Release)
		matches, err := path.Match(series, k.Release)
		if err != nil {
			t.Fatal(err)
		}
		images, err := s.Lookup("linux-image-" + k.Release)
		if err != nil {
			t.Fatal(err)
		}
		if matches && r.Flavor() == flavor && len(images) > 0 {
			releases = append(releases, r)
		}
	}
	if len(releases) < n {
		t.Fatalf("suite %s has %q with their linux-image, want %d of %s", s.Name, releases, n, series)
	}
	slices.SortFunc(releases, kernel.Compare)
	var newest []string
	for _, r := range releases[len(releases)-n:] {
		newest = append(newest, string(r))
	}
	return newest
}

// Deb downloads a package, and gives the file's path and the version.
func (s *Suite) Deb(t testing.TB, name string) (file, version string) {
	t.Helper()
	found, err := s.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatalf("suite %s has no package %s", s.Name, name)
	}
	file, err = s.fetch.Fetch(t.Context(), found[0].File())
	if err != nil {
		t.Fatal(err)
	}
	return file, found[0].Version
}
