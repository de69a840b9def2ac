package boot

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"github.com/kofarm/kofarm/farm/kmod"
)

// Unit is what is tested together: the modules of one module version.
type Unit struct {
	Name    string // for messages
	Modules []Module
	First   []string // modules or aliases of the kernel's own to load before
	// Script is run by busybox's sh when the modules are loaded, in an empty
	// folder; MODULES has their names. A status other than 0 fails the unit.
	Script []byte
}

// Module is a module under test.
type Module struct {
	File       string // its name, with .ko
	SHA256     string // hex: of its content, or of all that makes it
	Parameters []string
	Open       func() ([]byte, error) // gives it, plain
}

//go:embed init.sh
var initScript []byte

// modprobe is what the kernel calls when it wants a module: its last argument is
// the name. What it asks for is loaded in the next boot (see session.asked).
var modprobe = []byte(`#!/bin/sh
for name; do :; done
echo "$name" >>/tmp/requests
exit 1
`)

// verdictFormat numbers how verdicts are found. Those of another are found anew.
const verdictFormat = 2

// key names the unit's verdict: by all that it depends on.
func (u *Unit) key(k Kernel, options string, trust []byte) string {
	h := sha256.New()
	part := func(format string, args ...any) { fmt.Fprintf(h, format+"\n", args...) }
	part("kofarm verdict %d", verdictFormat)
	part("%s", k.digest())
	part("%x %q", sha256.Sum256(initScript), modprobe)
	part("%q %q %q %x", commandLine, machines[k.Arch].command, options, sha256.Sum256(trust))
	for _, m := range u.Modules {
		part("%q %s %q", m.File, m.SHA256, m.Parameters)
	}
	part("%q %q", u.First, u.Script)
	return hex.EncodeToString(h.Sum(nil))
}

// loading is a unit that is ready for an initramfs.
type loading struct {
	*Unit
	names   []string // of Modules, in the order in which they are loaded
	files   map[string]Module
	data    map[string][]byte
	own     []string // the kernel's own modules, in order
	unknown []string // names that the kernel does not have
	// unreadable are modules that are none, by name.
	unreadable map[string]error
}

// load reads the unit's modules and finds out what they need.
func (u *Unit) load(ix *index) (*loading, error) {
	l := &loading{Unit: u, files: map[string]Module{}, data: map[string][]byte{}, unreadable: map[string]error{}}
	siblings := map[string]ownModule{}
	skip := map[string]bool{}
	var order []string
	for _, m := range u.Modules {
		data, err := m.Open()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.File, err)
		}
		name := moduleName(m.File)
		l.files[name], l.data[name], skip[name] = m, data, true
		order = append(order, name)
		ko, err := kmod.ReadAt(bytes.NewReader(data), int64(len(data)), kmod.Limits{PlainOnly: true})
		if err != nil {
			l.unreadable[name] = err
			continue
		}
		siblings[name] = needs(ko)
	}
	l.names = sortNeeds(order, siblings)
	wanted := slices.Clone(u.First)
	for _, name := range l.names {
		wanted = append(wanted, siblings[name].Before...)
		wanted = append(wanted, siblings[name].Depends...)
	}
	l.own, l.unknown = ix.closure(wanted, skip)
	return l, nil
}

// sortNeeds orders modules so that each comes after those that it needs.
func sortNeeds(names []string, needs map[string]ownModule) []string {
	var order []string
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] || !slices.Contains(names, name) {
			return
		}
		seen[name] = true
		for _, n := range slices.Concat(needs[name].Before, needs[name].Depends) {
			visit(n)
		}
		order = append(order, name)
	}
	for _, name := range names {
		visit(name)
	}
	return order
}

// applets are the programs that init.sh and tests find.
var applets = []string{"sh", "mount", "dmesg", "insmod", "rmmod", "cat", "head", "sed", "usleep", "sleep", "uname", "timeout",
	"mkdir", "rm", "ls", "grep", "test", "[", "echo", "printf", "true", "false", "ln", "cp", "mv", "dd", "od", "wc", "tr", "cut",
	"sort", "uniq", "find", "stat", "mknod", "chmod", "awk", "tail", "cmp", "seq", "ip", "losetup", "umount", "sync", "expr", "env", "kill", "ps", "tee", "touch", "md5sum", "sha256sum", "hexdump", "basename", "dirname", "readlink", "lsmod", "modinfo", "id", "date", "xargs"}

// initramfs writes what the kernel unpacks: busybox, the script and its plan, and
// modules.
func initramfs(w io.Writer, busybox, plan []byte, units []*loading, own map[string][]byte) error {
	c := newCPIO(w)
	for _, dir := range []string{"dev", "proc", "sys", "tmp"} {
		c.dir(dir)
	}
	c.file("init", 0o755, initScript)
	c.file("bin/busybox", 0o755, busybox)
	c.file("bin/modprobe", 0o755, modprobe)
	for _, a := range applets {
		c.link("bin/"+a, "busybox")
	}
	names := make([]string, 0, len(own))
	for name := range own {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.file("own/"+name+".ko", 0o644, own[name])
	}
	for i, u := range units {
		for _, name := range u.names {
			c.file(fmt.Sprintf("unit/%d/%s.ko", i, name), 0o644, u.data[name])
		}
		if u.Script != nil {
			c.file(fmt.Sprintf("unit/%d/script", i), 0o755, u.Script)
		}
	}
	c.file("plan", 0o644, plan)
	return c.close()
}
