package rebuild

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// library compiles the library with a Runner's -D, and gives the environment
// that puts it into programs.
func library(t testing.TB, r *Runner) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vary.so")
	run(t, "", nil, "gcc", append([]string{"-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1", "preload/vary.c", "-o", file, "-ldl"}, r.defines()...)...)
	return []string{"LD_PRELOAD=" + file}
}

func TestLibrary(t *testing.T) {
	const entries = "a b c d e f g h"
	tests := []struct {
		v      Variation
		script string
		same   bool // it must not see a difference
	}{
		{Clock, "date +%Y-%m", false},
		{Clock, "printf '%(%Y)T' -1", false},
		{Clock, "perl -e 'print int(time / 1e6)'", false},
		{Clock, "touch -d @315532800 old; stat -c %Y old", true},
		{Clock, "touch -d 2026-05-06 set; stat -c %Y set", true},
		{Clock, "touch new; stat -c %y new | cut -c 1-7", false},
		{Clock, "touch new; cp -a new copy; test \"$(stat -c %y new)\" = \"$(stat -c %y copy)\" && echo kept", true},
		{Clock, "touch new; test $(( $(date +%s) - $(stat -c %Y new) )) -le 600 && echo now", true},
		{Clock, "printf 'b: a\\n\\tcp a b; echo made\\n' > Makefile; echo > a; make -s; make -s", true},
		{Clock, "nproc; hostname; id -u; ls -U d", true},
		{Order, "ls -U d", false},
		{Order, "find d -mindepth 1", false},
		{Order, "perl -e 'opendir D, \"d\"; print join \" \", readdir D'", false},
		{Order, "perl -e 'opendir D, \"d\"; $a = readdir D; $p = telldir D; $b = readdir D; seekdir D, $p; print $b eq readdir D ? 1 : 0; rewinddir D; print $a eq readdir D ? 1 : 0'", true},
		{Order, "ls d; echo d/*", true},
		{Order, "cp -r d e; rm -r d; ls -A e d 2> /dev/null | wc -l", true},
		{Order, "date +%Y; nproc; hostname; id -u", true},
		{Host, "hostname", false},
		{Host, "uname -n", false},
		{Host, "echo $HOSTNAME", false},
		{Host, "uname -srm; date +%Y; nproc; id -u; ls -U d", true},
		{User, "id -u", false},
		{User, "id -g", false},
		{User, "echo $UID", false},
		{User, "stat -c %u /", false},
		{User, "touch mine; test -O mine && echo mine; cp -a mine yours; test -O yours && echo yours", true},
		{User, "date +%Y; nproc; hostname; ls -U d", true},
		{CPUs, "nproc", false},
		{CPUs, "getconf _NPROCESSORS_ONLN", false},
		{CPUs, "getconf PAGESIZE; date +%Y; hostname; id -u; ls -U d", true},
	}
	for _, tt := range tests {
		t.Run(string(tt.v)+" "+tt.script, func(t *testing.T) {
			see := func(env []string) string {
				dir := t.TempDir()
				if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
					t.Fatal(err)
				}
				for name := range strings.FieldsSeq(entries) {
					if err := os.WriteFile(filepath.Join(dir, "d", name), nil, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				return run(t, dir, env, "bash", "-c", tt.script)
			}
			was, now := see(nil), see(library(t, &Runner{Vary: []Variation{tt.v}}))
			if (was == now) != tt.same {
				t.Errorf("without the variation %q, with it %q", was, now)
			}
		})
	}
}

func TestFrozen(t *testing.T) {
	frozen := time.Now().Add(clockShift).Unix()
	env := library(t, &Runner{Vary: []Variation{Clock}, Frozen: frozen})
	got := run(t, t.TempDir(), env, "bash", "-c", "date +%s.%N; sleep 1.1; date +%s.%N; touch new; stat -c %Y new")
	want := strconv.FormatInt(frozen, 10)
	lines := strings.Fields(got)
	if len(lines) != 3 || lines[0] != want+".000000000" || lines[1] != lines[0] || lines[2] != want {
		t.Errorf("got %q, want %s throughout", lines, want)
	}
}

func TestNothingVaried(t *testing.T) {
	for _, r := range []*Runner{{}, {Vary: []Variation{Jobs}}} {
		if d := r.defines(); len(d) > 0 {
			t.Errorf("%v: %q", r.Vary, d)
		}
	}
}
