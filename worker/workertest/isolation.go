package workertest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/worker"
)

// attack is one line of package worker's threat model.
type attack struct {
	name string // as the page has it
	try  func(*isolation, *testing.T)
}

// attacks are in the order of the page.
func attacks() []attack {
	return []attack{
		{"host-files", (*isolation).hostFiles},
		{"neighbour", (*isolation).neighbours},
		{"processes", (*isolation).others},
		{"kernel-memory", (*isolation).kernelMemory},
		{"writing", (*isolation).writing},
		{"toolchain", (*isolation).toolchain},
		{"kernel-files", (*isolation).kernelFiles},
		{"own-program", (*isolation).ownProgram},
		{"network", (*isolation).network},
		{"sockets", (*isolation).sockets},
		{"segments", (*isolation).segments},
		{"system-calls", (*isolation).systemCalls},
		{"foreign-calls", (*isolation).foreignCalls},
		{"devices", (*isolation).devices},
		{"setuid", (*isolation).setuid},
		{"killing", (*isolation).killing},
		{"forks", (*isolation).forks},
		{"threads", (*isolation).threads},
		{"memory", (*isolation).memoryBombs},
		{"disk", (*isolation).diskBombs},
		{"files", (*isolation).inodes},
		{"objects", (*isolation).objects},
		{"sparse", (*isolation).sparse},
		{"log", (*isolation).logs},
		{"archives", (*isolation).archives},
		{"forgery", (*isolation).forgery},
		{"outliving", (*isolation).outliving},
		{"deadline", (*isolation).deadline},
	}
}

// Isolation runs hostile tasks on a backend, one kind after the other. Beside
// them runs a task that behaves well, which must not notice. After each kind the
// same things are looked at: this machine's files, processes and sockets, what is
// left, and a further task, which must find everything as it was.
func Isolation(t *testing.T, b Backend) {
	s := &isolation{suite: &suite{Backend: b, runner: b.Open(t)}, mark: fmt.Sprintf("attack-%d-%d", os.Getpid(), time.Now().UnixNano())}
	s.image = Image(t, hostileLayer(t))
	s.host = newHost(t)
	s.beside = s.startNeighbour(t)
	s.usual = s.nextTask(t)
	s.idle = s.left(t)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			a.try(s, t)
			s.after(t)
		})
	}
	s.beside.stop(t)
	s.host.close()
	if left := s.left(t); len(left) > 0 {
		t.Errorf("the tasks have left\n%s", strings.Join(left, "\n"))
	}
}

type isolation struct {
	*suite
	mark   string // in the environment of attacks
	host   *host
	beside *neighbour
	usual  string   // what nextTask gives
	idle   []string // what Left gives while only the neighbour runs
}

// small are limits that attacks exceed about tenfold.
var small = worker.Limits{Memory: 64 << 20, Processes: 40, Disk: 4 << 20, Output: 64 << 10, Log: 64 << 10, Timeout: time.Minute}

// Programs and files of the attacks' image, which are below /usr.
const (
	attackProgram = "/usr/bin/attack"
	archivesDir   = "/usr/share/archives"
	ownScript     = "/usr/bin/own"
)

//go:embed testdata/attack.c
var attackSource []byte

// hostileLayer has the program that attacks, things to attack, and archives.
func hostileLayer(t testing.TB) v1.Layer {
	t.Helper()
	entries := []Entry{
		{Name: attackProgram[1:], Data: string(compileAttack(t))},
		{Name: "usr/bin/setuid", Data: string(compileAttack(t)), Mode: 0o6755},
		{Name: ownScript[1:], Data: "#!/proc/self/exe\n"},
		{Name: worker.RecipePath[1:], Data: string(worker.Recipe)},
		{Name: "usr/bin/cc", Data: "#!/bin/sh\necho compiled\n"},
	}
	for _, f := range forgeries(t) {
		entries = append(entries, Entry{Name: filepath.Join(archivesDir, f.file())[1:], Data: string(f.data), Mode: 0o644})
	}
	return Layer(t, entries...)
}

// compileAttack compiles testdata/attack.c.
func compileAttack(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "attack.c"), filepath.Join(dir, "attack")
	if err := os.WriteFile(source, attackSource, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "gcc", "-static", "-O1", "-Wall", "-Werror", "-pthread", "-o", program, source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compiling the attacks needs gcc and libc6-dev (see ci/setup): %v\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// attack runs a command that does not end before all was tried.
func (s *isolation) attack(t testing.TB, limits worker.Limits, args ...string) done {
	t.Helper()
	task := s.task("attack", limits, args...)
	task.Env = append([]string{"MARK=" + s.mark, "LC_ALL=C"}, env...)
	return s.run(t, task)
}

// tried runs a command of the attacks' program, and compares what it could do.
func (s *isolation) tried(t testing.TB, want string, args ...string) {
	t.Helper()
	limits := small
	limits.Memory = 256 << 20
	d := s.attack(t, limits, append([]string{attackProgram}, args...)...)
	if d.Ending != worker.Exited || d.ExitCode != 0 || d.out != want {
		t.Errorf("%q: %s, exit status %d, log %.500q, output\n%.4000swant\n%s", args, d.Ending, d.ExitCode, d.log, d.out, want)
	}
}

// after looks at what must not have changed.
func (s *isolation) after(t *testing.T) {
	t.Helper()
	s.beside.goesOn(t)
	if got := s.nextTask(t); got != s.usual {
		t.Errorf("the next task finds\n%swant\n%s", got, s.usual)
	}
	s.host.unchanged(t)
	if left := marked(t, s.mark); len(left) > 0 {
		t.Errorf("processes of the attack are alive: %q", left)
	}
	if left := s.left(t); len(left) != len(s.idle) {
		t.Errorf("left:\n%s\nbefore:\n%s", strings.Join(left, "\n"), strings.Join(s.idle, "\n"))
	}
}

func (s *isolation) left(t testing.TB) []string {
	if s.Left == nil {
		return nil
	}
	return s.Left(t)
}

// nextTask is what a task does and finds that uses the recipe and the tools.
func (s *isolation) nextTask(t testing.TB) string {
	t.Helper()
	return s.sh(t, `/usr/bin/cc && ls -A /tmp /var/tmp /run /root /var/lib/dkms /dev/shm
		find /bin /usr -type f | sort | xargs sha256sum; find /bin /usr | sort | xargs stat -c '%n %a %u %g %s %Y'`)
}

// marked lists the processes of this machine with a mark in their environment.
func marked(t testing.TB, mark string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), mark) {
			found = append(found, f)
		}
	}
	return found
}
