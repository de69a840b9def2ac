package workertest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/worker"
)

// VictimVar tells the test binary, executed again, that it is what is killed.
const VictimVar = "KOFARM_TEST_VICTIM"

// Killed kills a process that runs a task for a daemon, and looks at what the
// next Open leaves of that. The test must be called TestKilled: the victim is
// the test binary, executed again. Open opens a runner on dir; left names what
// tasks of dir's store have in the daemon.
func Killed(t *testing.T, dir string, open func(t testing.TB, dir string) worker.Runner, left func(t testing.TB, dir string) []string) {
	if os.Getenv(VictimVar) != "" {
		task := worker.Task{Name: "victim", Image: Image(t), Args: []string{"/bin/sh", "-c", "echo started; exec sleep 1000"}, Env: env, Output: os.Stdout}
		_, err := open(t, dir).Run(t.Context(), task)
		t.Fatalf("the victim's task has ended: %v", err)
	}
	victim := startVictim(t)
	open(t, dir) // while the victim is alive, its task stays
	if got := left(t, dir); len(got) == 0 {
		t.Error("a run that is alive has lost its container")
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	open(t, dir)
	if got := left(t, dir); len(got) > 0 {
		t.Errorf("the killed run has left\n%s", strings.Join(got, "\n"))
	}
}

// startVictim starts this test in another process and waits for its task.
func startVictim(t *testing.T) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestKilled$", "-test.v")
	cmd.Env = append(os.Environ(), VictimVar+"=yes")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		if lines.Text() == "started" {
			return cmd
		}
		said = append(said, lines.Text())
	}
	t.Fatal(fmt.Sprintf("the victim did not start its task:\n%s", strings.Join(said, "\n")), cmd.Wait())
	return nil
}
