// Package kmod reads Linux kernel modules (.ko files) and the Module.symvers
// file of a kernel, and judges whether a module fits a kernel. It is the only
// reader of either in the farm.
//
// A module comes out of a hostile build, so everything here treats its input
// as hostile: offsets and sizes are checked before use, every table that is
// read has a limit ([Limits]), and nothing is believed because another field
// says so. The ELF parser is the package's own because debug/elf inflates
// compressed sections without a limit and loads what it does not need: of a
// plain module on disk only the tables named below are ever in memory.
//
// What is read, and where it is defined:
//
//   - .modinfo: NUL-separated key=value strings (include/linux/moduleparam.h)
//   - __versions: 64-byte records, the checksum in a C long and the symbol's
//     name in the rest (struct modversion_info, include/linux/module.h)
//   - __version_ext_crcs, __version_ext_names: the extended form since 6.14
//     (Documentation/kbuild/modules.rst), 32-bit checksums beside
//     NUL-separated names
//   - the symbols __ksymtab_X, __crc_X and __kstrtabns_X of an exported X,
//     the sections __ksymtab, __ksymtab_gpl and (7.x) __kflagstab behind them
//   - the signature appended to the file (scripts/sign-file.c)
//   - .note.gnu.build-id, and whether there is a .BTF
//
// Not read: namespaces a module imports are reported (import_ns in Info) but
// not judged, for a kernel may be configured to load a module without them.
package kmod
