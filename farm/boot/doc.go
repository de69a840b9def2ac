// Package boot loads modules in the kernels that they were built for: it boots
// the kernel in qemu, and says of each module whether it loads, and if not, why
// not.
//
// A kernel comes from the packages of its distribution, and so does the user
// space: a static busybox with one script (init.sh), rather than a program of
// this project, so that a verdict does not depend on the program's version, and
// a kernel of another architecture needs nothing that this machine runs. The
// initramfs holds the modules under test and those of the kernel's own that they
// need; it is written here, always with the same bytes.
//
// Many modules share a boot. The script reports each step on a serial port of
// its own before and after it, in lines that only its plan makes, so a boot that
// ends early has ended in a known step. A good verdict stands; any other is found
// again by booting the module alone, which decides (see Tester).
package boot
