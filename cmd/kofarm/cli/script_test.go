package cli_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kofarm/kofarm/ci/rig"
)

// TestScripts runs the scripts of testdata on the tests' common store. Beside
// testscript's own commands they have
//
//	exits STATUS ARGUMENT...   runs kofarm, which has to end with that status
func TestScripts(t *testing.T) {
	binary := rig.Binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(binary)+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("KOFARM_STORE", rig.Store(t))
			e.Setenv("KOFARM", binary)
			e.Setenv("UPON", filepath.Join(rig.Root(), "testdata/upon"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits STATUS ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec("kofarm", args[1:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("kofarm %q: exit status %d, want %d", args[1:], got, want)
	}
}
