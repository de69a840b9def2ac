package boot

import (
	"fmt"
	"io"
	"path"
)

// cpioWriter writes an archive of the form that kernels take as an initramfs:
// "newc" (Documentation/driver-api/early-userspace/buffer-format.rst). Every
// entry is root's, of time 0, and has the number of its place, so that the same
// entries give the same bytes.
type cpioWriter struct {
	w    io.Writer
	n    int64 // bytes written
	ino  int
	dirs map[string]bool
	err  error
}

// The types of a mode.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

const cpioTrailer = "TRAILER!!!"

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: w, dirs: map[string]bool{".": true}} }

// file adds a file, and the folders above it.
func (c *cpioWriter) file(name string, perm int, data []byte) {
	c.parents(name)
	c.entry(name, modeFile|perm, data)
}

// link adds a symbolic link.
func (c *cpioWriter) link(name, target string) {
	c.parents(name)
	c.entry(name, modeLink|0o777, []byte(target))
}

// dir adds an empty folder.
func (c *cpioWriter) dir(name string) {
	if !c.dirs[name] {
		c.parents(name)
		c.dirs[name] = true
		c.entry(name, modeDir|0o755, nil)
	}
}

func (c *cpioWriter) parents(name string) {
	if dir := path.Dir(name); !c.dirs[dir] {
		c.dir(dir)
	}
}

// close ends the archive.
func (c *cpioWriter) close() error {
	c.ino = -1
	c.entry(cpioTrailer, 0, nil)
	c.pad(512)
	return c.err
}

func (c *cpioWriter) entry(name string, mode int, data []byte) {
	c.ino++
	links := 1
	if mode&modeDir != 0 && mode&modeFile == 0 {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.ino, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad(4)
	c.write(data)
	c.pad(4)
}

func (c *cpioWriter) pad(to int64) { c.write(make([]byte, (to-c.n%to)%to)) }

func (c *cpioWriter) write(p []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(p)
		c.n += int64(n)
	}
}
