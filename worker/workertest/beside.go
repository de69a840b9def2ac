package workertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take that is certain to come, on a machine
// that is busy.
const patience = 2 * time.Minute

// neighbour is a task that behaves well and runs beside the attacks. It has a
// secret in all places, listens, and prints a line for each of its steps.
type neighbour struct {
	secret string
	cancel context.CancelFunc
	ended  chan error
	lines  *lines
}

// neighbourPort and neighbourSocket are where a neighbour listens, in a network
// of its own.
const (
	neighbourPort   = "4343"
	neighbourSocket = "kofarm-neighbour"
)

func (s *isolation) startNeighbour(t *testing.T) *neighbour {
	t.Helper()
	n := &neighbour{secret: "secret" + rand.Text(), ended: make(chan error, 1), lines: newLines()}
	limits := roomy
	limits.Timeout = 0
	task := s.task("neighbour", limits, "/bin/sh", "-c", `
		for d in /var/lib/dkms /tmp /var/tmp /run /root; do echo $SECRET > $d/$SECRET; done
		attack listen `+neighbourSocket+" "+neighbourPort+` &
		i=0; while :; do i=$((i + 1)); echo "step $i $(cc) $(cat /*/$SECRET /var/*/$SECRET /var/lib/*/$SECRET | sort | uniq -c)"; sleep 0.03; done`, n.secret)
	task.Env = []string{"SECRET=" + n.secret, "HOME=/root", "PATH=/bin:/usr/bin"}
	task.Output, task.Log = n.lines, n.lines
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(t.Context())
	t.Cleanup(n.cancel)
	go func() {
		_, err := s.runner.Run(ctx, task)
		n.ended <- err
	}()
	n.goesOn(t)
	return n
}

// goesOn waits for two more steps, and looks at all so far.
func (n *neighbour) goesOn(t testing.TB) {
	t.Helper()
	steps := n.lines.count()
	select {
	case <-n.lines.reached(steps + 2):
	case err := <-n.ended:
		n.ended <- err
		t.Fatalf("the neighbour has ended: %v\n%s", err, n.lines.last())
	case <-time.After(patience):
		t.Fatalf("the neighbour does not go on: %s", n.lines.last())
	}
	for i, line := range n.lines.take() {
		if want := fmt.Sprintf("step %d compiled       5 %s", i, n.secret); line != want {
			t.Errorf("the neighbour said %q, want %q", line, want)
		}
	}
}

func (n *neighbour) stop(t testing.TB) {
	t.Helper()
	n.cancel()
	if err := <-n.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the neighbour has ended: %v", err)
	}
}

// lines keeps the lines that are written to it.
type lines struct {
	mu    sync.Mutex
	rest  []byte
	all   []string
	taken int
	grown chan struct{} // closed when there are more
}

func newLines() *lines { return &lines{grown: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.all, l.rest = append(l.all, string(line)), rest
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return len(p), nil
}

func (l *lines) count() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.all) }

func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all[max(0, len(l.all)-3):], "\n")
}

// take gives the lines since the last take, by their numbers from 1.
func (l *lines) take() map[int]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[int]string{}
	for ; l.taken < len(l.all); l.taken++ {
		found[l.taken+1] = l.all[l.taken]
	}
	return found
}

// reached gives a channel that is closed when there are n lines.
func (l *lines) reached(n int) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for end := time.Now().Add(patience); time.Now().Before(end); {
			l.mu.Lock()
			have, grown := len(l.all), l.grown
			l.mu.Unlock()
			if have >= n {
				close(done)
				return
			}
			select {
			case <-grown:
			case <-time.After(time.Second):
			}
		}
	}()
	return done
}

// host is what attacks look for on this machine.
type host struct {
	dir       string // holds a file named by the secret, and an open folder
	secret    string
	content   string   // of the file
	addresses []string // where it listens, as the attack's program takes them
	segment   int      // key of a shared memory segment
	segmentID int
	victim    *exec.Cmd
	program   []byte // this process's own
	listeners []interface{ Close() error }

	mu      sync.Mutex
	reached []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{dir: t.TempDir(), secret: "secret" + rand.Text(), content: "secret" + rand.Text()}
	open := filepath.Join(h.dir, "open")
	if err := errors.Join(os.WriteFile(h.file(), []byte(h.content), 0o666), os.Mkdir(open, 0o777), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	h.listen(t)
	h.segment = os.Getpid()<<8 | 0x4b
	var err error
	if h.segmentID, err = unix.SysvShmGet(h.segment, 4096, unix.IPC_CREAT|0o666); err != nil {
		t.Fatal(err)
	}
	if h.program, err = os.ReadFile("/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
	h.victim = exec.CommandContext(context.WithoutCancel(t.Context()), Busybox, "sleep", "7200")
	h.victim.Env = []string{"SECRET=" + h.secret}
	if err := h.victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	return h
}

func (h *host) file() string { return filepath.Join(h.dir, h.secret) }

// listen listens on all addresses, on an abstract name and on a path.
func (h *host) listen(t *testing.T) {
	t.Helper()
	tcp, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := tcp.Addr().(*net.TCPAddr).Port
	name := "kofarm-host-" + rand.Text()
	path := filepath.Join(h.dir, "s")
	abstract, err1 := net.Listen("unix", "@"+name)
	plain, err2 := net.Listen("unix", path)
	udp, err3 := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	ips, err4 := net.InterfaceAddrs()
	if err := errors.Join(err1, err2, err3, err4, os.Chmod(path, 0o777)); err != nil {
		t.Fatal(err)
	}
	h.addresses = []string{"abstract:" + name, "unix:" + path}
	for _, a := range ips {
		if ip := a.(*net.IPNet).IP; !ip.IsLinkLocalUnicast() {
			h.addresses = append(h.addresses, fmt.Sprintf("tcp:%s:%d", ip, port), fmt.Sprintf("udp:%s:%d", ip, port))
		}
	}
	for _, l := range []net.Listener{tcp, abstract, plain} {
		h.listeners = append(h.listeners, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				h.heard(c.LocalAddr())
				_ = c.Close()
			}
		}()
	}
	h.listeners = append(h.listeners, udp)
	go func() {
		for {
			if _, _, err := udp.ReadFrom(make([]byte, 16)); err != nil {
				return
			}
			h.heard(udp.LocalAddr())
		}
	}()
}

func (h *host) heard(by net.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reached = append(h.reached, by.String())
}

// unchanged looks at everything.
func (h *host) unchanged(t testing.TB) {
	t.Helper()
	data, err := os.ReadFile(h.file())
	if err != nil || string(data) != h.content {
		t.Errorf("the machine's file holds %q, %v", data, err)
	}
	for dir, want := range map[string]int{h.dir: 3, filepath.Join(h.dir, "open"): 0} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != want {
			t.Errorf("the machine's folder %s holds %d entries, want %d: %v", dir, len(entries), want, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reached) > 0 {
		t.Errorf("the machine's sockets were reached: %q", h.reached)
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.victim.Process.Pid))
	if !strings.Contains(string(stat), ") S ") {
		t.Errorf("the machine's process: %q", stat)
	}
	if program, err := os.ReadFile("/proc/self/exe"); err != nil || !bytes.Equal(program, h.program) {
		t.Errorf("the machine's program has changed: %v", err)
	}
}

func (h *host) close() {
	for _, l := range h.listeners {
		_ = l.Close()
	}
	if h.victim != nil && h.victim.Process.Signal(syscall.SIGKILL) == nil {
		_ = h.victim.Wait()
	}
	_, _ = unix.SysvShmCtl(h.segmentID, unix.IPC_RMID, nil)
}
