package cli

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kofarm/kofarm/farm/boot"
)

func TestHostChecks(t *testing.T) {
	healthy := map[string]string{
		"proc/sys/user/max_user_namespaces":                     "63000\n",
		"proc/sys/kernel/osrelease":                             "6.1.0-50-amd64\n",
		"proc/sys/kernel/seccomp/actions_avail":                 "kill_process errno allow\n",
		"proc/meminfo":                                          "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n",
		"sys/fs/cgroup/cgroup.controllers":                      "cpuset cpu io memory hugetlb pids\n",
		"proc/sys/kernel/unprivileged_userns_clone":             "1\n",
		"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n",
	}
	const none = "\x00"
	tests := []struct {
		name   string
		change map[string]string
		root   bool
		check  string
		status status
		detail string // part of it
		remedy string
	}{
		{"healthy", nil, true, "", good, "", ""},
		{"healthy, not root", nil, false, "cgroups", good, "rlimits", ""},
		{"no user namespaces", map[string]string{"proc/sys/user/max_user_namespaces": "0"}, true, "user namespaces", missing, "is 0", "sysctl user.max"},
		{"not in the kernel", map[string]string{"proc/sys/user/max_user_namespaces": none}, true, "user namespaces", missing, "has none", "CONFIG_USER_NS"},
		{"for root only, root", map[string]string{"proc/sys/kernel/unprivileged_userns_clone": "0"}, true, "user namespaces", warning, "only root", "unprivileged_userns_clone=1"},
		{"for root only", map[string]string{"proc/sys/kernel/unprivileged_userns_clone": "0"}, false, "user namespaces", missing, "only root", "unprivileged_userns_clone=1"},
		{"apparmor", map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"}, false, "user namespaces", missing, "AppArmor", "userns,"},
		{"no such settings", map[string]string{"proc/sys/kernel/apparmor_restrict_unprivileged_userns": none, "proc/sys/kernel/unprivileged_userns_clone": none}, false, "user namespaces", good, "", ""},
		{"old kernel", map[string]string{"proc/sys/kernel/osrelease": "5.10.0-30-amd64"}, true, "overlayfs", missing, "5.10.0-30-amd64", "newer kernel"},
		{"just new enough", map[string]string{"proc/sys/kernel/osrelease": "5.11-rc1+"}, true, "overlayfs", good, "5.11", ""},
		{"no release", map[string]string{"proc/sys/kernel/osrelease": "x"}, true, "overlayfs", missing, "5.11", ""},
		{"cgroup v2 without memory", map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpu pids"}, true, "cgroups", warning, "version 2, without memory", "privileged"},
		{"cgroup v1", map[string]string{"sys/fs/cgroup/cgroup.controllers": none, "sys/fs/cgroup/memory/tasks": "", "sys/fs/cgroup/pids/tasks": ""}, true, "cgroups", good, "version 1", ""},
		{"no cgroups", map[string]string{"sys/fs/cgroup/cgroup.controllers": none}, true, "cgroups", warning, "memory and pids", "mount"},
		{"no seccomp", map[string]string{"proc/sys/kernel/seccomp/actions_avail": none}, true, "seccomp", missing, "cannot", "CONFIG_SECCOMP_FILTER"},
		{"little memory", map[string]string{"proc/meminfo": "MemAvailable:    1000000 kB\n"}, true, "memory", warning, "976.6 MiB", "build.parallel"},
		{"no meminfo", map[string]string{"proc/meminfo": none}, true, "memory", warning, "0.0 KiB", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for _, files := range []map[string]string{healthy, tt.change} {
				for name, data := range files {
					if root[name] = (&fstest.MapFile{Data: []byte(data)}); data == none {
						delete(root, name)
					}
				}
			}
			for _, c := range hostChecks(root, tt.root) {
				if c.Name != tt.check {
					if c.Status != good {
						t.Errorf("%+v", c)
					}
					continue
				}
				if c.Status != tt.status || !strings.Contains(c.Detail, tt.detail) || !strings.Contains(c.Remedy, tt.remedy) {
					t.Errorf("got %+v, want %s, %q, %q", c, tt.status, tt.detail, tt.remedy)
				}
			}
		})
	}
}

func TestBootChecks(t *testing.T) {
	hosts := []boot.Host{
		{Arch: "x86_64", Version: "QEMU 7.2", KVM: true},
		{Arch: "aarch64", Program: "qemu-arm", Package: "qemu-system-arm", Err: &exec.Error{Name: "qemu-arm", Err: exec.ErrNotFound}},
		{Arch: "riscv64", Program: "qemu-riscv", Package: "qemu-system-misc", Err: errors.New("exit status 127")},
	}
	got := bootChecks(hosts, false)
	want := []check{
		{"test on x86_64", good, "QEMU 7.2; KVM is there, and is used where kernels boot with it", ""},
		{"test on aarch64", absent, "qemu-arm is not installed", "to boot kernels for aarch64: apt install qemu-system-arm"},
		{"test on riscv64", absent, "qemu-riscv: exit status 127", "to boot kernels for riscv64: apt install qemu-system-misc"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := bootChecks(hosts, true)[1].Status; got != warning {
		t.Errorf("where the farm file has tests: %s", got)
	}
}

func TestParseAge(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"30d": 720 * time.Hour, "12h": 12 * time.Hour, "90m": 90 * time.Minute, "36500d": 876000 * time.Hour,
		"": 0, "d": 0, "0d": 0, "-1d": 0, "1.5d": 0, "99999d": 0, "-3h": 0, "0s": 0, "30": 0, "month": 0,
	} {
		got, err := parseAge(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: got %s, %v, want %s", s, got, err, want)
		}
	}
}
