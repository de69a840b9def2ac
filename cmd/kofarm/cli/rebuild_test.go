package cli

import (
	"strings"
	"testing"

	"github.com/kofarm/kofarm/farm/rebuild"
)

// TestVerdict: quiet is silent about what is reproduced, and about nothing else.
func TestVerdict(t *testing.T) {
	good := rebuild.FileVerdict{Path: "a.ko", Verdict: rebuild.Reproduced}
	bad := rebuild.FileVerdict{Path: "b.ko", Verdict: rebuild.Differs}
	tests := []struct {
		name           string
		quiet          bool
		files          []rebuild.FileVerdict
		stdout, stderr string
		code           int
	}{
		{"all is well", false, []rebuild.FileVerdict{good}, "reproduced  a.ko\n1 files are reproduced, 0 differ, 0 cannot be verified\n", "", exitOK},
		{"quiet", true, []rebuild.FileVerdict{good}, "", "", exitOK},
		{"one differs", false, []rebuild.FileVerdict{good, bad}, "reproduced  a.ko\ndiffers     b.ko\n1 files are reproduced, 1 differ, 0 cannot be verified\n", "", exitFailed},
		{"one differs, quiet", true, []rebuild.FileVerdict{good, bad}, "", "differs     b.ko\n1 files are reproduced, 1 differ, 0 cannot be verified\n", exitFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &rebuild.Report{Files: tt.files, Counts: map[string]int{}}
			for _, f := range tt.files {
				r.Counts[string(f.Verdict)]++
			}
			var stdout, stderr strings.Builder
			a := &app{stdout: &stdout, stderr: &stderr, quiet: tt.quiet}
			code := a.exit(t.Context(), a.verdict(r))
			if stdout.String() != tt.stdout || stderr.String() != tt.stderr || code != tt.code {
				t.Errorf("got %q, %q and %d, want %q, %q and %d", stdout.String(), stderr.String(), code, tt.stdout, tt.stderr, tt.code)
			}
		})
	}
}
