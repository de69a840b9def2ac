// Package chroot gives tests a Debian of a suite to run real tools in: made
// once by mmdebstrap, kept in the cache, and run under an overlay in a mount and
// process namespace of its own, so that a test never changes the cached one and
// nothing of it stays mounted or running, even where the test is killed.
package chroot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
)

// Spec says what a base holds.
type Spec struct {
	Suite    string   // of Debian
	Include  []string // packages beside the essential ones and apt, with what they depend on
	Unpacked []string // packages without what they depend on
}

// sources are the suite's lines for apt, the security pocket's among them.
func (s Spec) sources() string {
	lines := "deb http://deb.debian.org/debian " + s.Suite + " main\n"
	if s.Suite == "sid" {
		return lines
	}
	return lines + "deb http://deb.debian.org/debian " + s.Suite + "-updates main\n" +
		"deb http://deb.debian.org/debian-security " + s.Suite + "-security main\n"
}

// command is the mmdebstrap that makes the base in dir. sid's Release may be
// past its Valid-Until on a mirror that has stopped following it.
func (s Spec) command(dir string) []string {
	args := []string{"--mode=root", "--variant=apt", "--format=directory", "--quiet",
		`--aptopt=Acquire::Check-Valid-Until "false"`, `--aptopt=APT::Install-Recommends "false"`,
		"--include=" + strings.Join(s.Include, ",")}
	if len(s.Unpacked) > 0 {
		args = append(args, `--customize-hook=chroot "$1" sh -ec 'cd /tmp; apt-get -q download `+strings.Join(s.Unpacked, " ")+
			`; dpkg --force-depends -i *.deb; rm *.deb'`)
	}
	return append(args, s.Suite, dir, "-")
}

// Make gives the folder of the base, which it makes unless it is there.
func (s Spec) Make(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("chroots need root: run the tests as root")
	}
	sum := sha256.Sum256([]byte(s.sources() + strings.Join(s.command(""), "\n")))
	name := s.Suite + "-" + hex.EncodeToString(sum[:6])
	return Keep(t, filepath.Join(rig.Cache(t, "chroots"), name), func(dir string) {
		cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "--propagation", "private", "--pid", "--fork",
			"--kill-child", "--mount-proc", "mmdebstrap"}, s.command(dir)...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stdin = strings.NewReader(s.sources())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mmdebstrap %s: %v\n%s", s.Suite, err, out)
		}
	})
}

// Keep gives the folder path of the cache, made by fill under another name and
// renamed, so that there is never half of one.
func Keep(t testing.TB, path string, fill func(dir string)) string {
	t.Helper()
	rig.Locked(t, filepath.Base(path), func() {
		if _, err := os.Stat(path); err == nil {
			return
		}
		started := time.Now()
		dir := path + ".new"
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		fill(dir)
		if err := os.Rename(dir, path); err != nil {
			t.Fatal(err)
		}
		t.Logf("made %s in %.0f s", filepath.Base(path), time.Since(started).Seconds())
	})
	return path
}

// Root is a running chroot.
type Root struct {
	dir string // as its namespace has it
	pid int    // of the process that holds its namespaces, as the tests see it
}

// holder mounts an overlay (or, without lower folders, the folder itself) and
// holds the namespaces until its input ends.
const holder = `set -e
dir=$1 lower=$2
read -r pid rest < /proc/self/stat
if [ "$lower" ]; then
	mount -t tmpfs -o mode=755 kofarm "$dir"
	mkdir "$dir/root" "$dir/upper" "$dir/work" "$dir/more"
	mount -t overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" kofarm "$dir/root"
	dir=$dir/root
fi
mount -t proc proc "$dir/proc"
mount --rbind /dev "$dir/dev"
echo "$pid"
exec cat`

// Open runs a chroot on the folders, the topmost first, until the test ends.
// What is written there is lost then.
func Open(t testing.TB, lower ...string) *Root {
	t.Helper()
	dir := t.TempDir()
	r := open(t, dir, strings.Join(lower, ":"))
	r.dir = filepath.Join(dir, "root")
	return r
}

// OpenDir runs a chroot on the folder itself, and keeps what is written there.
func OpenDir(t testing.TB, dir string) *Root {
	t.Helper()
	r := open(t, dir, "")
	r.dir = dir
	return r
}

func open(t testing.TB, dir, lower string) *Root {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("chroots need root: run the tests as root")
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
		"sh", "-c", holder, "holder", dir, lower)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	r := &Root{}
	if _, err := fmt.Fscan(bufio.NewReader(io.LimitReader(stdout, 100)), &r.pid); err != nil {
		stdin.Close()
		cmd.Wait()
		t.Fatalf("opening a chroot on %s%s: %v\n%s", dir, lower, err, stderr.String())
	}
	return r
}

// environment is what programs in a chroot see.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
	"DEBIAN_FRONTEND=noninteractive"}

// Result is what a run of a command gave. Output is both of its streams.
type Result struct {
	Code   int
	Output string
}

// Run runs a command in the chroot.
func (r *Root) Run(t testing.TB, name string, args ...string) Result {
	t.Helper()
	return r.nsenter(t, append([]string{"chroot", r.dir, name}, args...)...)
}

// Shell runs a script in the chroot's sh -e, and fails the test unless it succeeds.
func (r *Root) Shell(t testing.TB, script string, args ...string) string {
	t.Helper()
	res := r.Run(t, "sh", append([]string{"-ec", script, "sh"}, args...)...)
	if res.Code != 0 {
		t.Fatalf("exit status %d of %s\n%s", res.Code, script, res.Output)
	}
	return res.Output
}

// Online gives the chroot the name servers of the outside, and apt its lists.
func (r *Root) Online(t testing.TB) {
	t.Helper()
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	r.Shell(t, `rm -f /etc/resolv.conf
printf %s "$1" > /etc/resolv.conf
echo 'Acquire::Languages "none"; Acquire::Retries "5"; APT::Sandbox::User "root";' > /etc/apt/apt.conf.d/01test
apt-get -q update`, string(resolv))
}

// Overlay puts folders of the outside, the topmost first, over a folder of the
// chroot, which is made where it is not there.
func (r *Root) Overlay(t testing.TB, at string, lower ...string) {
	t.Helper()
	const script = `set -e
root=$1 at=$2 lower=$3
more=$(mktemp -d "${root%/root}/more/XXXXXX")
mkdir "$more/upper" "$more/work"
chroot "$root" mkdir -p "$at"
mount -t overlay -o "lowerdir=$lower,upperdir=$more/upper,workdir=$more/work" kofarm "$root/$(chroot "$root" readlink -f "$at")"`
	if res := r.nsenter(t, "sh", "-c", script, "sh", r.dir, at, strings.Join(lower, ":")); res.Code != 0 {
		t.Fatalf("mounting %q at %s: %s", lower, at, res.Output)
	}
}

// Path is where the test finds a file of the chroot, while it runs. Links in the
// chroot lead astray there.
func (r *Root) Path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", r.pid), r.dir, name)
}

func (r *Root) nsenter(t testing.TB, args ...string) Result {
	t.Helper()
	pid := fmt.Sprint(r.pid)
	cmd := exec.CommandContext(t.Context(), "nsenter", append([]string{"--target", pid, "--mount", "--pid", "--"}, args...)...)
	cmd.Env = environment
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("nsenter: %v", err)
	}
	return Result{cmd.ProcessState.ExitCode(), out.String()}
}
