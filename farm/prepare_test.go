package farm

import (
	"errors"
	"testing"

	"github.com/kofarm/kofarm/images/apt"
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
