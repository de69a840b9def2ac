// Package worker defines what a build needs from a place that can run it: a
// Task goes in, the container's output stream and its log come out, and a
// Result tells how it ended. Each backend lives in a package of its own.
//
// # Threat model
//
// Hostile are a module's source, with its Makefile, scripts and dkms.conf, all of
// which run as they like inside a task; what a task writes; and archives that come
// from elsewhere. Trusted are the kernel of this machine, kofarm, runc and the
// daemons, and the packages of a distribution, whose signatures were verified.
//
// Protected are this machine, its files, processes and networks; what other tasks
// read, hold and write; the tools and the recipe that later tasks use; kofarm
// itself; and the truth of other cells' results.
//
// The backends are: E, embedded as root; U, embedded as an ordinary user; D,
// Docker; C, containerd. All of them give a task, from package worker and so in
// the same way:
//
//	no capabilities, not even to be gained: an empty bounding set, no_new_privs
//	the system calls of package worker/seccomp, by the machine's own numbers only
//	namespaces of its own for mounts, processes, networks, IPC, host names, cgroups
//	a root of nothing but the image's layers, mounted read-only
//	tmpfs of Limits.Disk bytes, one file for each 4 KiB, at each place of Scratch and /dev/shm
//	MaskedPaths, ReadonlyPaths, Rlimits, OOMScore
//	standard output and error as pipes, of which Limits.Output and Limits.Log bytes are taken
//	the deadline Limits.Timeout
//
// They differ in these:
//
//	                     E                     U                       D, C
//	user 0 in a task is  root, of a user       the user, of a user     root
//	                     namespace             namespace
//	memory of a task     cgroup                RLIMIT_DATA of each     cgroup
//	                                           process, no sum
//	number of processes  cgroup                RLIMIT_NPROC, counted   cgroup
//	                                           in the user namespace
//	devices              nodes cannot be made, those of /dev are       and a cgroup's list
//	                     bound or made by runc
//	/dev                 64 KiB                64 KiB                  C: 64 KiB; D: 64 MiB of the
//	                                                                   task's memory
//
// Each line has a test of its name in package worker/workertest, which tries it on
// every backend, mostly with ten times what a limit allows. After each the same is
// looked at: this machine's files, sockets, processes and program are as they were,
// a task that has run beside it all the time goes on, the next task finds the same
// tools and an empty scratch, and nothing is left of the attack.
//
//	TEST            THREAT                                     WHAT STOPS IT
//	host-files      reading or writing this machine's files    mount namespace; no descriptor is inherited
//	neighbour       reading what another task has, or reaching mount, process and network namespaces; scratch is
//	                its sockets                                each task's own
//	processes       seeing, opening, signalling others         process namespace
//	kernel-memory   reading the kernel's memory, log, symbols, MaskedPaths, no capabilities, no device nodes
//	                page tables' facts, /sys
//	writing         writing outside of scratch                 read-only root; /dev, which is small, dies with the task
//	toolchain       changing tools or the recipe for the next  read-only overlay (E, U), view (C), layers below a
//	                task                                       read-only root (D)
//	kernel-files    opening /proc, /sys, cgroups for writing   ReadonlyPaths, MaskedPaths, cgroups read-only or absent
//	own-program     executing or changing the runtime's own    runc executes from a sealed copy of itself
//	                program through /proc/self/exe
//	network         reaching any address, this machine's too   network namespace with nothing but lo
//	sockets         other kinds of sockets: netlink, packets,  seccomp: Unix, IPv4 and IPv6 only; the host's abstract
//	                vsock, cryptography, …                     names are in another network namespace
//	segments        System V memory of this machine            IPC namespace; no POSIX queues
//	system-calls    modules, mounts, namespaces, keys, bpf,    seccomp, then the lack of capabilities
//	                perf, userfaultfd, io_uring, kexec,
//	                reboot, swap, clock, ports, file handles,
//	                ptrace, other users, higher limits
//	foreign-calls   the same by 32-bit or x32 numbers          seccomp ends the process
//	devices         making device nodes, opening what is there no CAP_MKNOD, nodev; /dev has null, zero, full, random,
//	                                                           urandom, tty, ptmx
//	setuid          gaining rights by files' modes             no_new_privs, nosuid, an empty bounding set
//	killing         ending or stopping whatever has a number   process namespace
//	forks           processes without end                      cgroup (E, D, C), RLIMIT_NPROC (U); the deadline
//	threads         threads without end                        the same
//	memory          private, shared, anonymous, System V       cgroup (E, D, C); U: RLIMIT_DATA for private memory of
//	                memory, and by many processes              one process, OOMScore for the rest
//	disk            filling scratch, /dev, /dev/shm            tmpfs sizes, which count as memory
//	files           empty files without end                    tmpfs' number of files; in /dev the memory's limit
//	objects         descriptors, pipes, signals, timers        Rlimits; inotify and queues, counted for a user, are
//	                                                           refused by seccomp
//	sparse          a file larger than this machine, output    Limits.Output
//	log             a log or an output without end, without    Limits.Log, Limits.Output; nothing waits for a line
//	                lines, by many, by who ignores its end
//	archives        outputs with links, FIFOs, devices,        ReadOutput: regular files of announced names, each once,
//	                folders, names that leave or have          in one plain archive that is complete
//	                newlines, cut, doubled, sparse, forged
//	forgery         writing to the recipe's own output         the same: what was written before it makes it invalid
//	outliving       daemons that outlive their task            the process namespace ends with its first process
//	deadline        sleeping, stopping oneself, one's parent,  SIGKILL from outside, to all
//	                ignoring signals past the deadline
//
// Archives and images are read with limits and without leaving their place by
// packages images/deb (TestHostileEntries, TestBombs), images (TestHostileTar,
// TestLayerRefuses) and worker/embedded (TestHostileLayers); modules by farm/kmod
// (TestReadRefuses); outputs that the recipe itself refuses are in ci/recipe.
//
// # Kernels that modules are booted in
//
// A module under test is hostile code in a guest's kernel: what guards this machine
// is qemu (package farm/boot). The guest has two serial ports, and neither disk nor
// network. Its qemu
//
//	has an empty environment, and descriptors of no files but the guest's
//	cannot start a program or gain rights: its own seccomp filter (-sandbox)
//	runs as nobody, where kofarm is root
//	may have the guest's memory and 2 GiB, and is killed before anything else
//	ends with kofarm, however that ends
//
// Where kofarm is an ordinary user, qemu is that user. It stays root where root
// may not become nobody, and with KVM where /dev/kvm is root's alone: with access
// for a group, such as kvm, or for all it is nobody. Guests that run at the same
// time share that user. There is no cgroup, so processor time has no limit but the
// time limit.
//
// What kofarm reads of a guest, and what that says of other modules:
//
//	THREAT                                     WHAT STOPS IT
//	a report that nobody expects: units that   the report may say what the plan makes next, in lines with a tag that is made
//	there are not, steps out of turn, the end  of all that is booted, and nothing else (TestStray, TestSplit, FuzzReport)
//	a report or a console without end          maxStepLines, maxStepBytes, maxReport, maxConsole
//	never ending, slowly or busily             a limit for each step, which nothing but the next step begins anew, and one
//	                                           for a whole boot (TestSilence)
//	a fault that is left to the next module    a bad verdict is found again alone, and a fault ends the boot (TestShared,
//	                                           TestSplit); versions of a module do not share a boot (TestBatches)
//	names that leave their place in the        names are the kernel's kind of names, or else the file's
//	guest's files, or the plan's words
//
// Not defended is the verdict on a module against that module: it may seem to load
// where it does nothing. Nor are verdicts of one boot against each other: a module
// that looks for the tag in its kernel's memory can report what it likes of those
// that come after it, or change the kernel that they are loaded in, so that they
// seem to load, or to fail. Modules in a boot trust each other therefore, as those
// that are loaded on one machine do. With test.alone each module version has a boot
// of its own, and there is no such verdict. Without, a report says which others
// were in the boot (Report.Beside), and a shared cache is given none but of boots
// with one module version (TestSaveShared).
//
// # What is not defended
//
// A build owns its own result: it may forge the report and the module of its own
// cell, as it may compile what it likes into it. It is what its source says, and
// no other cell's result changes with it.
//
// Against faults of the kernel there is nothing but seccomp's short list: tasks
// share the kernel. Who needs more runs the daemon in a virtual machine.
//
// Side channels: time, caches, /proc/stat, /proc/meminfo and the like show what
// this machine does. A task sees the kernel's release, the processor's kind and
// the number of processors.
//
// Processor time and the bandwidth of disks are shared, not divided: a task may
// slow others down until its deadline. Counts that the kernel keeps for a whole
// machine or a user (pseudo-terminals, pages of pipes, signals that wait) are
// bounded for each process of a task, and not for all of them.
//
// As an ordinary user (U) there is no cgroup, so memory has no limit for a task as
// a whole, and a task can lower OOMScore to the user's own. Limits.Processes times
// Limits.Memory, and as much as it likes of shared memory, is what it may take.
//
// Where root has no cgroups, which embedded warns of, E is bounded as U is, and
// without a limit on the number of processes.
package worker
