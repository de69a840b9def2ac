package workertest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
)

// look runs a script, and fails where its output or log holds a secret.
func (s *isolation) look(t *testing.T, script string, secrets ...string) {
	t.Helper()
	limits := roomy
	limits.Timeout = 0
	d := s.attack(t, limits, shell(script)...)
	if d.Ending != worker.Exited || !strings.HasSuffix(d.out, "looked\n") {
		t.Errorf("%s: %s, exit status %d, log %.500q", script, d.Ending, d.ExitCode, d.log)
	}
	for _, secret := range secrets {
		if i := strings.Index(d.out+d.log, secret); i >= 0 {
			t.Errorf("found a secret: %.200q", (d.out + d.log)[max(0, i-100):])
		}
	}
}

// everything prints what a task can see of file systems and processes.
const everything = `
	find / ! -path '/proc/[0-9]*' ! -path '/sys/*' 2>/dev/null
	for p in /proc/[0-9]*; do cat $p/cmdline $p/environ; ls -l $p/fd $p/cwd/ $p/root/ $p/root/tmp $p/root/root; done 2>/dev/null
	cat /tmp/* /var/tmp/* /run/* /root/* /var/lib/dkms/* /dev/shm/* /proc/net/unix /proc/net/tcp /proc/net/tcp6 2>/dev/null
	`

func (s *isolation) hostFiles(t *testing.T) {
	s.look(t, everything+"echo looked", s.host.secret, s.host.content)
	for _, root := range []string{"", "/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd/../../..", "/../../..", "/dev/fd/../../.."} {
		s.look(t, fmt.Sprintf("cat %s%s; echo x > %[1]s%[2]s; echo x > %[1]s%s/open/x; echo looked", root, s.host.file(), s.host.dir), s.host.content)
	}
	s.look(t, "for fd in /proc/*/fd/*; do cat $fd/../*/"+s.host.secret+" $fd"+s.host.file()+" < /dev/null; done 2>/dev/null; echo looked", s.host.content)
}

func (s *isolation) neighbours(t *testing.T) {
	s.look(t, everything+"echo looked", s.beside.secret)
	s.tried(t, "", "reach", "abstract:"+neighbourSocket, "tcp:127.0.0.1:"+neighbourPort)
}

func (s *isolation) others(t *testing.T) {
	s.tried(t, "", "others")
}

func (s *isolation) kernelMemory(t *testing.T) {
	for _, file := range []string{"/proc/kcore", "/proc/kallsyms", "/proc/kmsg", "/proc/keys", "/proc/key-users", "/proc/slabinfo", "/proc/vmallocinfo",
		"/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/pagetypeinfo", "/proc/iomem", "/proc/ioports", "/proc/sched_debug",
		"/proc/timer_list", "/proc/modules", "/proc/interrupts", "/proc/cmdline", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg"} {
		t.Run(strings.ReplaceAll(file[1:], "/", "-"), func(t *testing.T) {
			d := s.attack(t, small, shell("head -c 64 "+file)...)
			if d.out != "" {
				t.Errorf("it could be read: %.64q", d.out)
			}
		})
	}
	t.Run("sys", func(t *testing.T) {
		if d := s.attack(t, small, shell("ls -A /sys; ls -A /sys/kernel /sys/fs/cgroup")...); d.out != "" {
			t.Errorf("it holds %q", d.out)
		}
	})
}

// writable are the folders in which a task can make files: those of Scratch,
// and what the kernel's own conventions want.
func writable() []string { return append(worker.Scratch(), "/dev", "/dev/shm") }

func (s *isolation) writing(t *testing.T) {
	limits := small
	limits.Disk = 64 << 10
	d := s.attack(t, limits, attackProgram, "writing")
	may := map[string]bool{}
	for _, dir := range writable() {
		may["wrote below "+dir] = true
	}
	for line := range strings.Lines(d.out) {
		if line = strings.TrimSpace(line); !may[line] {
			t.Error(line)
		}
		delete(may, line)
	}
	if len(may) > 0 || d.ExitCode != 0 {
		t.Errorf("exit status %d, log %q; not tried: %v", d.ExitCode, d.log, may)
	}
}

func (s *isolation) toolchain(t *testing.T) {
	s.tried(t, "", "overwrite", Busybox, "/bin/sh", "/usr/bin/cc", worker.RecipePath, attackProgram, "/usr/bin", "/")
	s.look(t, "ln -sf /bin/true /usr/bin/cc; cp /bin/busybox /usr/bin/cc; mount -o remount,rw /; mount -t tmpfs x /usr; rm -rf /usr /bin; echo looked")
}

func (s *isolation) kernelFiles(t *testing.T) {
	s.tried(t, "", "kernel-files")
	d := s.attack(t, small, shell("for m in $(awk '$3 ~ /cgroup/ { print $2 }' /proc/mounts); do (echo 0 > $m/cgroup.procs) && echo $m; mkdir $m/kofarm-attack && echo $m; done 2>/dev/null; true")...)
	if d.out != "" {
		t.Errorf("cgroups: %q", d.out)
	}
}

// ownProgram executes the program that has set the container up, from inside,
// which a runtime must have kept out of its reach.
func (s *isolation) ownProgram(t *testing.T) {
	for _, args := range [][]string{{"/proc/self/exe"}, {ownScript}, {"/proc/self/fd/1"}} {
		task := s.task("own", small, append(args, "overwrite", "/proc/self/exe")...)
		if res, err := s.runner.Run(t.Context(), task); err == nil && res.ExitCode == 0 {
			t.Errorf("%q ran", args)
		}
	}
	s.tried(t, "", "overwrite", "/proc/1/exe", "/proc/self/exe")
}

func (s *isolation) network(t *testing.T) {
	if os.Getenv("CI") != "" && len(s.host.addresses) < 4 {
		t.Errorf("this machine listens on nothing but %q", s.host.addresses)
	}
	s.tried(t, "", append([]string{"reach", "tcp:192.0.2.1:80", "udp:192.0.2.1:53", "tcp:2001:db8::1:80", "tcp:169.254.169.254:80"}, s.host.addresses...)...)
	d := s.attack(t, small, shell("ip link add d type dummy || ip addr add 192.0.2.2/24 dev lo || ip route add default dev lo; cat /proc/net/route /proc/net/ipv6_route | grep -v -E 'Iface|lo$'; true")...)
	if d.out != "" {
		t.Errorf("routes: %q", d.out)
	}
}

// sockets lists all kinds that can be made: of Unix, IPv4 and IPv6, streams
// (1), datagrams (2) and, of Unix, sequenced packets (5).
func (s *isolation) sockets(t *testing.T) {
	var want strings.Builder
	for _, kind := range []int{11, 12, 13, 15, 21, 22, 101, 102} { // a raw one of Unix is a datagram
		fmt.Fprintf(&want, "family and type %d\n", kind)
	}
	s.tried(t, want.String(), "families")
}

func (s *isolation) segments(t *testing.T) {
	s.tried(t, "", "segment", fmt.Sprint(s.host.segment))
}
