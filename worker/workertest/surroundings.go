package workertest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
)

// surroundings looks at what a task sees, of which all is given by the contract.
func (s *suite) surroundings(t *testing.T) {
	tests := []struct{ name, script, want string }{
		{"host name", "hostname", worker.Hostname + "\n"},
		{"user and group", "id -u; id -g", "0\n0\n"},
		{"umask", "umask", "0022\n"},
		{"working directory", "pwd", "/\n"},
		{"standard input", "wc -c", "0\n"},
		{"descriptors", "ls /proc/1/fd; true", "0\n1\n2\n"},
		{"first process", "echo $$", "1\n"},
		{"only its own processes", `for p in /proc/[0-9]*; do echo ${p#/proc/}; done`, "1\n"},
		{"time zone", "date +%Z", "UTC\n"},
		{"killed first without memory", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj", "500\n500\n"},
		{"core files", "ulimit -c", "0\n"},
		{"capabilities", `grep -h -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\t' ' '`,
			"CapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: 0000000000000000\n" +
				"CapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n"},
		{"network interfaces", "sed -n 's/ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev", "lo\n"},
		{"loopback", "nc -l -p 4242 -e cat & until echo heard | nc 127.0.0.1 4242; do sleep 0.1; done", "heard\n"},
		{"devices", "for d in null zero full random urandom tty; do [ -c /dev/$d ] && echo $d; done; echo x > /dev/null; head -c 5 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c",
			"null\nzero\nfull\nrandom\nurandom\ntty\n5\n5\n"},
		{"no other devices", `find /dev -type b; find /dev -type c | grep -v -E '^/dev/(null|zero|full|random|urandom|tty|console|ptmx|pts/ptmx)$'; true`, ""},
		{"links of /dev", "for l in fd stdin stdout stderr; do readlink /dev/$l; done", "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n"},
		{"shared memory", "echo x > /dev/shm/x && cat /dev/shm/x", "x\n"},
		{"programs run from scratch", "for d in /var/lib/dkms /tmp /var/tmp; do cp /bin/busybox $d/echo && $d/echo ran; done", "ran\nran\nran\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.sh(t, tt.script); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.script, got, tt.want)
			}
		})
	}
	t.Run("environment", s.environment)
	t.Run("scratch", s.scratch)
}

func (s *suite) environment(t *testing.T) {
	task := s.task("env", roomy, Busybox, "env")
	task.Env = append(slices.Clone(env), "A=b=c", "EMPTY=", "WORDS=a b  c", "QUOTED='\"$x`", "ÜMLAUT=ä")
	got := strings.Split(strings.TrimSuffix(s.run(t, task).out, "\n"), "\n")
	want := slices.Clone(task.Env)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// scratch looks at the writable folders, each a file system of its own.
func (s *suite) scratch(t *testing.T) {
	limits := roomy
	limits.Disk = 16 << 20
	d := s.run(t, s.task("scratch", limits, shell(`for d in `+strings.Join(worker.Scratch(), " ")+`; do
		echo x > $d/x && echo $d $(stat -c %a $d) $(ls -A $d) $(df -k $d | awk 'NR == 2 { print $2, $6 }'); done`)...))
	mode := map[string]string{"/tmp": "1777", "/var/tmp": "1777", "/root": "700"}
	var want strings.Builder
	for _, dir := range worker.Scratch() {
		m := mode[dir]
		if m == "" {
			m = "755"
		}
		fmt.Fprintf(&want, "%s %s x %d %s\n", dir, m, limits.Disk>>10, dir)
	}
	if d.out != want.String() {
		t.Errorf("got\n%swant\n%slog: %s", d.out, want.String(), d.log)
	}
}

// refused tries what a task must not be able to do. Each script says "done"
// where it could.
func (s *suite) refused(t *testing.T) {
	tests := []struct{ name, script string }{
		{"write to the root", "echo x > /x"},
		{"write beside programs", "echo x > /bin/x"},
		{"remove a program", "rm /bin/busybox"},
		{"change a program", "chmod 777 /bin/busybox"},
		{"mount a file system", "mount -t tmpfs tmpfs /tmp"},
		{"mount over", "mount -o bind /tmp /bin"},
		{"mount the root again for writing", "mount -o remount,rw /"},
		{"unmount", "umount /proc/kcore || umount /proc || umount /tmp"},
		{"make a device", "mknod /tmp/sda b 8 0"},
		{"make a namespace of its own", "unshare -U true || unshare -m true || unshare -n true"},
		{"enter another's namespace", "nsenter -t 1 -m true"},
		{"change its root", "chroot /tmp /bin/true"},
		{"change the host name", "hostname other"},
		{"change the clock", "date -s 2001-01-01; [ $(date +%Y) = 2001 ]"},
		{"raise its limits", "ulimit -H -n 999999"},
		{"reach the network", "nc -w 2 192.0.2.1 80 < /dev/null"},
		{"look a name up", "nslookup example.org"},
		{"set a kernel parameter", "echo x > /proc/sys/kernel/core_pattern"},
		{"set another", "echo 1 > /proc/sys/vm/drop_caches"},
		{"press SysRq", "echo h > /proc/sysrq-trigger"},
		{"read the kernel's memory", `[ "$(head -c 1 /proc/kcore | wc -c)" = 1 ]`},
		{"read the kernel's log", "dmesg"},
		{"read the keys", `[ "$(cat /proc/keys | wc -c)" != 0 ]`},
		{"read the timers", `[ "$(cat /proc/timer_list | wc -c)" != 0 ]`},
		{"see disks", "ls /proc/scsi/* || ls /dev/sd* /dev/vd*"},
		{"write to a cgroup", "echo 0 > /sys/fs/cgroup/cgroup.procs || mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x"},
		{"load a module", "insmod /bin/busybox"},
		{"reboot", "reboot -f"},
		{"renice below", "renice -n -5 1"},
		{"swap", "dd if=/dev/zero of=/tmp/s bs=1M count=4; mkswap /tmp/s; swapon /tmp/s"},
		{"give a file away", "echo > /tmp/f; chown 1:1 /tmp/f"},
		{"become another user", "setpriv --reuid 1 true || su nobody -c true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := s.run(t, s.task("refused", roomy, shell("if { "+tt.script+"; } > /tmp/o 2>&1; then echo done; cat /tmp/o; fi")...))
			if d.out != "" || d.Ending != worker.Exited {
				t.Errorf("%s: %s %q", tt.script, d.Ending, d.out)
			}
		})
	}
}
