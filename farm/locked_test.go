package farm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/images/apt"
	"github.com/kofarm/kofarm/images/fetch"
)

// TestPackageError: the ways out are those of the case.
func TestPackageError(t *testing.T) {
	p := &apt.Package{Name: "bc", Version: "1.07", Arch: "amd64", SHA256: "00ff", Size: 12, Distribution: "debian", URLs: []string{"http://a/bc.deb", "http://b/bc.deb"}}
	gone := &fetch.MirrorsError{Name: "bc.deb", Errs: []error{
		fmt.Errorf("%s: %w", p.URLs[0], fetch.ErrNotFound), fmt.Errorf("%s: %w", p.URLs[1], fetch.ErrUnavailable)}}
	tests := []struct {
		name         string
		err          error
		want, absent []string
	}{
		{"offline", fmt.Errorf("fetching bc.deb: %w", fetch.ErrOffline), []string{"bc=1.07 (amd64)", "run without --offline", "a bundle that has it"}, []string{"http", "lock", "sha256"}},
		{"gone", gone, []string{"bc=1.07 (amd64)", "sha256 00ff, 12 bytes", "http://a/bc.deb: not found", "http://b/bc.deb: mirror unavailable",
			"archives.debian.fallbacks", "where the lock pins it, move on with `kofarm lock --update bc`"}, []string{"--offline"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := unavailable(p, tt.err)
			if !errors.Is(err, tt.err) {
				t.Errorf("%v is no %v", err, tt.err)
			}
			for _, want := range tt.want {
				if strings.Count(err.Error(), want) != 1 {
					t.Errorf("want %q once in\n%v", want, err)
				}
			}
			for _, absent := range tt.absent {
				if strings.Contains(err.Error(), absent) {
					t.Errorf("%q in\n%v", absent, err)
				}
			}
		})
	}
}
