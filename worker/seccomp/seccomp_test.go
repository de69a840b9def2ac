package seccomp

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestProfile looks at what both forms of the list allow.
func TestProfile(t *testing.T) {
	p, err := Profile()
	if err != nil {
		t.Fatal(err)
	}
	body, err := Docker()
	if err != nil {
		t.Fatal(err)
	}
	var docker specs.LinuxSeccomp
	if err := json.Unmarshal([]byte(body), &docker); err != nil {
		t.Fatal(err)
	}
	for name, form := range map[string]*specs.LinuxSeccomp{"here": p, "Docker": &docker} {
		if form.DefaultAction != specs.ActErrno || len(form.Architectures) > 0 {
			t.Errorf("%s: %s by default, for %q", name, form.DefaultAction, form.Architectures)
		}
		for _, call := range []string{"read", "execve", "clone", "socket", "memfd_create"} {
			if !allows(form, call) {
				t.Errorf("%s: %s is refused", name, call)
			}
		}
		for _, call := range refused {
			if allows(form, call) {
				t.Errorf("%s: %s is allowed", name, call)
			}
		}
	}
	for _, call := range []string{"bpf", "keyctl", "userfaultfd", "io_uring_setup", "mount", "unshare", "setns"} {
		if allows(p, call) {
			t.Errorf("%s is allowed", call)
		}
	}
}

// allows tells whether a rule allows a call, maybe with some arguments only.
func allows(p *specs.LinuxSeccomp, call string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return s.Action == specs.ActAllow && slices.Contains(s.Names, call)
	})
}
