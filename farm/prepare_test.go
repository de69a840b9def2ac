package farm

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
	"github.com/kofarm/kofarm/matrix"
)

// TestArchPlaces has what cannot be built for at its place in the farm file.
func TestArchPlaces(t *testing.T) {
	const file = `modules:
  - source: {deb: x-dkms, suite: bookworm}
kernels:
  - {suite: bookworm, arch: [amd64, arm64]}
  - {suite: trixie, arch: [arm64, armhf]}
  - {release: 6.1.0-own, arch: s390x, headers: [h], toolchain: {suite: bookworm}}
include:
  - {module: x, release: "6.1.*", arch: ppc64el}
`
	f, _, err := matrix.Parse("farm.yaml", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	s := (&Preparer{}).begin(f)
	const supported = " is not supported on a machine of x86_64 (arch: x86_64 or aarch64)"
	want := "farm.yaml:5:35: building for armv7l" + supported + "\n" +
		"farm.yaml:6:5: building for s390x" + supported + "\n" +
		"farm.yaml:8:41: building for ppc64le" + supported
	if err := s.checkArchs(); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	for _, tt := range []struct {
		key  suiteKey
		want string
	}{
		{suiteKey{"debian", "bookworm", "aarch64"}, "farm.yaml:4:37: no packages for"},
		{suiteKey{"debian", "trixie", "aarch64"}, "farm.yaml:5:28: no packages for"},
		{suiteKey{"debian", "sid", "aarch64"}, "no packages for"},
	} {
		err := s.noArch(tt.key, apt.ErrArch)
		if err.Error() != tt.want {
			t.Errorf("%v: got %q, want %q", tt.key, err, tt.want)
		}
		if _, mistake := errors.AsType[*matrix.Error](err); mistake == (tt.key.suite == "sid") {
			t.Errorf("%v: %T", tt.key, err)
		}
	}
}

// TestSuitePlaces has what a mirror says it does not have, and a keyring that is
// none, at their places in the farm file; a mirror that is out of order is not.
func TestSuitePlaces(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/trixie/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	const module = "modules: [{name: a, version: '1', source: {dir: a}}, {source: {deb: b-dkms, suite: sidd}}]\n"
	const missing = `suite %q: the archive has no such suite: fetching debian_%[1]s_InRelease: MIRROR/dists/%[1]s/InRelease: not found (404 Not Found) `
	tests := []struct {
		name, kernels, keyring string
		want                   []string // "": no mistake of the farm file's
	}{
		{"suites", "[{suites: [bokworm, bookworm-security], arch: [amd64, arm64]}, {suite: bookworm}]", matrix.DefaultKeyring, []string{
			"farm.yaml:2:21: " + fmt.Sprintf(missing, "bokworm") + `(did you mean "bookworm"?)`,
			"farm.yaml:2:30: " + fmt.Sprintf(missing, "bookworm-security") + "(bookworm-security is part of suite bookworm: give that)",
			"farm.yaml:2:81: " + fmt.Sprintf(missing, "bookworm") + "(archives.debian.mirrors says where it is looked for)",
			"farm.yaml:1:63: " + fmt.Sprintf(missing, "sidd") + `(did you mean "sid"?)`}},
		{"keyring", "[{suite: sidd}]", "/nowhere.gpg", []string{
			"farm.yaml:3:30: keyring of debian: open /nowhere.gpg: no such file or directory; archives.debian.keyring: FILE names another one"}},
		{"mirror", "[{suites: [trixie, bokworm]}]", matrix.DefaultKeyring, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := module + "kernels: " + tt.kernels + "\narchives: {debian: {keyring: " + tt.keyring + ", mirrors: ['" + srv.URL + "'], security-mirrors: []}}\n"
			f, _, err := matrix.Parse("farm.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			client := &fetch.Client{Dir: dir, Kept: dir, Partial: filepath.Join(dir, "partial")}
			_, err = (&Preparer{Fetch: client, Apt: &apt.Client{Fetch: client, Dir: dir}, Now: time.Now(), Dir: dir}).Prepare(t.Context(), f)
			if _, mistake := errors.AsType[*matrix.Error](err); err == nil || mistake != (tt.want != nil) {
				t.Fatalf("got %T: %v", err, err)
			}
			got := strings.ReplaceAll(err.Error(), srv.URL, "MIRROR")
			if want := strings.Join(tt.want, "\n"); tt.want != nil && got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}
