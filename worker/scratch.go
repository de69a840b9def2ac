package worker

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// fullBytes is what may be left on a scratch file system that counts as full.
const fullBytes = 64 << 10

// ScratchProbe holds a container's scratch file systems open, to see at the end
// whether one was full.
type ScratchProbe []int

// OpenScratch opens those of the container that a process of this machine is
// in, or none where they are not there yet or may not be seen.
func OpenScratch(pid int) ScratchProbe {
	if !ownRoot(pid) {
		return nil
	}
	var p ScratchProbe
	for _, dir := range Scratch() {
		path := fmt.Sprintf("/proc/%d/root%s", pid, dir)
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			p = append(p, fd)
		}
	}
	var st unix.Statfs_t
	for _, fd := range p {
		if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			p.Close()
			return nil
		}
	}
	if len(p) < len(Scratch()) {
		p.Close()
		return nil
	}
	return p
}

// ownRoot tells whether a process has another root file system than this one.
func ownRoot(pid int) bool {
	var its, ours unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/root/", pid), &its) == nil && unix.Stat("/", &ours) == nil &&
		(its.Dev != ours.Dev || its.Ino != ours.Ino)
}

// Full tells whether less than 64 KiB or no inode is left anywhere.
func (p ScratchProbe) Full() bool {
	full := false
	for _, fd := range p {
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil && st.Blocks > 0 {
			full = full || st.Bavail*uint64(st.Bsize) < fullBytes || (st.Files > 0 && st.Ffree == 0)
		}
	}
	return full
}

// Close lets go of the file systems.
func (p ScratchProbe) Close() {
	for _, fd := range p {
		_ = unix.Close(fd)
	}
}
