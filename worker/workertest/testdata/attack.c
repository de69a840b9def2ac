// A program of a hostile build: each command tries to do what a task must not
// be able to do, and prints a line for what it could, or what refused it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, const char *more) {
	printf("%s %s\n", what, more);
	fflush(stdout);
}

// outcome prints what a system call gave.
static void outcome(const char *name, long result) { say(name, result < 0 ? strerrorname_np(errno) : "DONE"); }

#define TRY(name, ...) outcome(#name, (errno = 0, syscall(SYS_##name, __VA_ARGS__)))

// Numbers of calls that a libc of some years ago does not know are the same on
// all machines.
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#define SYS_fspick 433
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

// calls makes system calls with arguments that do no harm where they succeed.
static int calls(void) {
	char zero[256] = {0};
	struct timeval tv;
	struct timespec ts;
	gettimeofday(&tv, 0);
	clock_gettime(CLOCK_REALTIME, &ts);

	TRY(init_module, zero, 0, "");
	TRY(finit_module, 0, "", 0);
	TRY(delete_module, "none", O_NONBLOCK);

	TRY(mount, "tmpfs", "/tmp", "tmpfs", 0, "");
	TRY(umount2, "/tmp", 2);
	TRY(pivot_root, "/tmp", "/tmp");
	TRY(chroot, "/tmp");
	TRY(fsopen, "tmpfs", 0);
	TRY(fsconfig, 0, 0, "", "", 0);
	TRY(fsmount, 0, 0, 0);
	TRY(fspick, AT_FDCWD, "/tmp", 0);
	TRY(open_tree, AT_FDCWD, "/tmp", 1);
	TRY(open_tree_attr, AT_FDCWD, "/tmp", 1, zero, 32);
	TRY(move_mount, 0, "", 0, "", 0);
	TRY(mount_setattr, AT_FDCWD, "/", 0, zero, 32);
	TRY(swapon, "/tmp/none", 0);
	TRY(swapoff, "/tmp/none");
	TRY(quotactl, 0, "", 0, 0);
	TRY(quotactl_fd, 0, 0, 0, 0);

	for (int flag = 0; flag < 32; flag++)
		if ((1u << flag) & (CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | 0x80)) {
			TRY(unshare, 1u << flag);
			if (flag > 7) { // the lowest byte is clone's signal
				long pid = syscall(SYS_clone, (1ul << flag) | SIGCHLD, 0, 0, 0, 0);
				if (pid == 0) _exit(0);
				outcome("clone", pid);
			}
		}
	TRY(clone3, zero, 64);
	TRY(setns, 0, 0);
	TRY(sethostname, "x", 1);
	TRY(setdomainname, "x", 1);

	TRY(keyctl, 0, -3, 1);
	TRY(add_key, "user", "x", "x", 1, -3);
	TRY(request_key, "user", "x", "", -3);
	TRY(bpf, 0, zero, 128);
	TRY(perf_event_open, zero, 0, -1, -1, 0);
	TRY(userfaultfd, 0);
	TRY(userfaultfd, 1); // of user space's own faults only
	TRY(io_uring_setup, 1, zero);
	TRY(io_uring_enter, 0, 0, 0, 0, 0, 0);
	TRY(io_uring_register, 0, 0, 0, 0);
	TRY(io_setup, 1, zero);
	TRY(fanotify_init, 0, 0);
	TRY(inotify_init1, 0);
	TRY(memfd_secret, 0);
	TRY(mq_open, "x", O_CREAT | O_RDWR, 0600, 0);
	TRY(lookup_dcookie, 0, zero, 1);

	TRY(kexec_load, 0, 0, 0, 0);
#ifdef SYS_kexec_file_load
	TRY(kexec_file_load, 0, 0, 0, "", 0);
#endif
	TRY(reboot, 0xfee1dead, 672274793, 0, 0); // what Ctrl-Alt-Del does
	TRY(settimeofday, &tv, 0);
	TRY(clock_settime, CLOCK_REALTIME, &ts);
	TRY(adjtimex, zero);
	TRY(clock_adjtime, CLOCK_REALTIME, zero);
	TRY(acct, 0);
	TRY(syslog, 3, zero, 1);
	TRY(vhangup, 0);
	TRY(name_to_handle_at, AT_FDCWD, "/", zero, zero + 128, 0);
	TRY(open_by_handle_at, AT_FDCWD, zero, 0);
#ifdef __x86_64__
	TRY(iopl, 3);
	TRY(ioperm, 0x80, 1, 1);
	TRY(modify_ldt, 0, zero, 16);
	TRY(uselib, "/bin/sh");
	TRY(_sysctl, zero);
	TRY(ustat, 0, zero);
	TRY(sysfs, 3);
#endif
	TRY(mbind, 0, 0, 0, 0, 0, 0);
	TRY(set_mempolicy, 0, 0, 0);
	TRY(get_mempolicy, 0, 0, 0, 0, 0);
	TRY(migrate_pages, 0, 0, 0, 0);
	TRY(move_pages, 0, 0, 0, 0, 0, 0);
	TRY(nfsservctl, 0, 0, 0);
	TRY(personality, 0x0400000); // READ_IMPLIES_EXEC

	TRY(ptrace, PTRACE_TRACEME, 0, 0, 0);
	TRY(process_vm_readv, 1, 0, 0, 0, 0, 0);
	TRY(process_vm_writev, 1, 0, 0, 0, 0, 0);
	TRY(process_madvise, 0, 0, 0, 0, 0);
	TRY(pidfd_getfd, 0, 0, 0);
	TRY(kcmp, 1, 1, 0, 0, 0);

	TRY(setuid, 1);
	TRY(setgid, 1);
	TRY(setresuid, 1, 1, 1);
	TRY(setgroups, 1, zero);
	TRY(chown, "/tmp", 1, 1);
	struct rlimit more = {1 << 20, 1 << 20};
	TRY(prlimit64, 0, RLIMIT_NOFILE, &more, 0);
	TRY(setpriority, PRIO_PROCESS, 0, -1);
	TRY(ioprio_set, 1, 0, 1 << 13);
	struct sched_param first = {1};
	TRY(sched_setscheduler, 0, SCHED_FIFO, &first);
	TRY(mlockall, MCL_CURRENT);
	return 0;
}

// families tries every kind of socket.
static int families(void) {
	char line[64];
	for (int family = 1; family < 64; family++)
		for (int type = SOCK_STREAM; type <= SOCK_SEQPACKET; type++) {
			int fd = socket(family, type, 0);
			if (fd < 0) continue;
			close(fd);
			snprintf(line, sizeof line, "%d", family * 10 + type);
			say("family and type", line);
		}
	return 0;
}

// other runs a function in a child, and says how that ended.
static void other(const char *name, void (*f)(void)) {
	char how[64];
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		f();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		snprintf(how, sizeof how, "SIG%s", sigabbrev_np(WTERMSIG(status)));
	else
		snprintf(how, sizeof how, "%s", WEXITSTATUS(status) ? strerrorname_np(WEXITSTATUS(status)) : "DONE");
	say(name, how);
}

#ifdef __x86_64__
static void int80(void) {
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory"); // getpid
	_exit(result < 0 ? -result : 0);
}
static void x32(void) {
	if (syscall(0x40000000 | SYS_getpid) < 0) _exit(errno);
}
#endif

static int abi(void) {
#ifdef __x86_64__
	other("32-bit", int80);
	other("x32", x32);
#endif
	return 0;
}

// reach connects to addresses: tcp:IP:PORT, udp:IP:PORT, unix:PATH, abstract:NAME.
static int reach(int n, char **addresses) {
	for (; n > 0; n--, addresses++) {
		char *kind = strdup(*addresses), *rest = strchr(kind, ':');
		*rest++ = 0;
		union {
			struct sockaddr any;
			struct sockaddr_un un;
			struct sockaddr_in in;
			struct sockaddr_in6 in6;
		} a = {0};
		socklen_t len;
		int type = !strcmp(kind, "udp") ? SOCK_DGRAM : SOCK_STREAM;
		if (!strcmp(kind, "unix") || !strcmp(kind, "abstract")) {
			int abstract = *kind == 'a';
			a.un.sun_family = AF_UNIX;
			strcpy(a.un.sun_path + abstract, rest);
			len = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(rest) + !abstract;
		} else {
			char *port = strrchr(rest, ':');
			*port++ = 0;
			if (strchr(rest, ':')) {
				a.in6.sin6_family = AF_INET6, a.in6.sin6_port = htons(atoi(port)), len = sizeof a.in6;
				inet_pton(AF_INET6, rest, &a.in6.sin6_addr);
			} else {
				a.in.sin_family = AF_INET, a.in.sin_port = htons(atoi(port)), len = sizeof a.in;
				inet_pton(AF_INET, rest, &a.in.sin_addr);
			}
		}
		int fd = socket(a.any.sa_family, type | SOCK_NONBLOCK, 0);
		int failed = connect(fd, &a.any, len);
		if (failed && errno == EINPROGRESS) usleep(100000), failed = send(fd, "x", 1, MSG_NOSIGNAL) < 0;
		else if (!failed && type == SOCK_DGRAM) // an address of nobody's answers the first with an error
			send(fd, "x", 1, MSG_NOSIGNAL), usleep(20000), failed = send(fd, "x", 1, MSG_NOSIGNAL) < 0;
		if (!failed) say("reached", *addresses);
		close(fd);
	}
	return 0;
}

// listen_for_ever says when somebody connects to an abstract name or a port.
static void listen_for_ever(const char *name, int port) {
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
	strcpy(un.sun_path + 1, name);
	int a = socket(AF_UNIX, SOCK_STREAM, 0), b = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(a, (void *)&un, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) || listen(a, 9) ||
		bind(b, (void *)&in, sizeof in) || listen(b, 9))
		say("cannot", "listen");
	struct pollfd p[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
	poll(p, 2, -1);
	say("somebody", "came");
}

// segment looks for another's shared memory.
static int segment(long key) {
	if (syscall(SYS_shmget, key, 0, 0) >= 0) say("found", "a segment");
	return 0;
}

static int number(const char *s) { return *s && strspn(s, "0123456789") == strlen(s); }

// others looks for processes that are not its own, and at what they hold.
static int others(void) {
	struct dirent *e;
	DIR *d = opendir("/proc");
	while ((e = readdir(d))) {
		if (number(e->d_name) && atoi(e->d_name) != 1 && atoi(e->d_name) != getpid()) say("process", e->d_name);
	}
	for (int pid = 2; pid < 100000; pid++) {
		char name[64];
		if (pid == getpid()) continue;
		snprintf(name, sizeof name, "/proc/%d/environ", pid);
		if (!access(name, F_OK)) say("process", name);
		if (!kill(pid, 0)) say("signalled", name);
		if (syscall(SYS_pidfd_open, pid, 0) >= 0) say("opened", name);
		struct rlimit limit;
		if (!prlimit(pid, RLIMIT_NOFILE, 0, &limit)) say("limits", name);
	}
	return 0;
}

// killing signals all that it can name.
static int killing(void) {
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	kill(getppid(), SIGKILL);
	for (int pid = -100000; pid < 100000; pid++)
		if (pid != getpid() && pid != -getpid() && pid != 0) {
			kill(pid, SIGKILL);
			kill(pid, SIGSTOP);
		}
	say("still", "here");
	return 0;
}

// each calls a function for each file below a folder, which names no process.
static void each(const char *dir, int depth, void (*f)(const char *, int)) {
	struct dirent *e;
	struct stat st;
	char path[PATH_MAX];
	DIR *d = depth ? opendir(dir) : 0;
	if (!d) return;
	f(dir, 1);
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
		snprintf(path, sizeof path, "%s/%s", strcmp(dir, "/") ? dir : "", e->d_name);
		if (!strcmp(dir, "/proc") && (number(e->d_name) || strstr(e->d_name, "self"))) continue;
		if (lstat(path, &st)) continue;
		if (S_ISDIR(st.st_mode)) each(path, depth - 1, f);
		else f(path, 0);
	}
	closedir(d);
}

static void make_file(const char *path, int dir) {
	char name[PATH_MAX];
	if (!dir) return;
	snprintf(name, sizeof name, "%s/attack", path);
	int fd = open(name, O_CREAT | O_WRONLY, 0644);
	if (fd >= 0) say("wrote below", path);
	if (fd < 0 && !mkdir(name, 0755)) say("made a folder below", path);
	close(fd);
}

static void open_to_write(const char *path, int dir) {
	struct stat st;
	int fd = dir ? -1 : open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY);
	// What is masked is /dev/null.
	if (fd >= 0 && !fstat(fd, &st) && st.st_rdev != makedev(1, 3)) say("opened for writing", path);
	close(fd);
}

static void open_device(const char *path, int dir) {
	struct stat st;
	if (dir || lstat(path, &st) || !(S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))) return;
	int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0) say("device", path);
	close(fd);
}

// nodes makes device nodes, and opens them where that was possible.
static int nodes(int n, char **dirs) {
	static const struct { int type, major, minor; } devices[] = {
		{S_IFBLK, 8, 0}, {S_IFBLK, 254, 0}, {S_IFBLK, 259, 0}, {S_IFBLK, 7, 0}, {S_IFCHR, 1, 1}, {S_IFCHR, 1, 2}, {S_IFCHR, 1, 11},
		{S_IFCHR, 4, 0}, {S_IFCHR, 5, 1}, {S_IFCHR, 10, 200}, {S_IFCHR, 10, 229}, {S_IFCHR, 10, 232}, {S_IFCHR, 10, 237}};
	for (; n > 0; n--, dirs++)
		for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) {
			char name[PATH_MAX];
			snprintf(name, sizeof name, "%s/node%u", *dirs, i);
			if (!mknod(name, devices[i].type | 0666, makedev(devices[i].major, devices[i].minor))) say("made", name);
			if (open(name, O_RDONLY | O_NONBLOCK) >= 0) say("opened", name);
		}
	return 0;
}

// overwrite tries every way to change a file.
static void overwrite(const char *path) {
	char other[PATH_MAX + 8];
	struct timespec times[2] = {{1, 0}, {1, 0}};
	snprintf(other, sizeof other, "%s.x", path);
#define CHANGE(what, expr) do { if ((expr) >= 0) say(what, path); } while (0)
	CHANGE("open", open(path, O_WRONLY));
	CHANGE("truncate", truncate(path, 0));
	CHANGE("chmod", chmod(path, 0777));
	CHANGE("chown", chown(path, 0, 0));
	CHANGE("times", utimensat(AT_FDCWD, path, times, 0));
	CHANGE("xattr", syscall(SYS_setxattr, path, "user.x", "x", 1, 0));
	CHANGE("link", link(path, other));
	CHANGE("rename", rename(path, other));
	CHANGE("unlink", unlink(path));
	int fd = open(path, O_RDONLY), flags = 0x10; // immutable
	CHANGE("flags", ioctl(fd, FS_IOC_SETFLAGS, &flags));
	CHANGE("fchmod", fchmod(fd, 0777));
	CHANGE("allocate", fallocate(fd, 0, 0, 1));
	if (mmap(0, 1, PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) say("map", path);
	snprintf(other, sizeof other, "/proc/self/fd/%d", fd);
	CHANGE("open again", open(other, O_WRONLY));
	snprintf(other, sizeof other, "/proc/1/root%s", path);
	CHANGE("open by root", open(other, O_WRONLY));
	// Written to this process's memory, not to the file: what "next" shows.
	char *at = mmap(0, 4, PROT_READ, MAP_PRIVATE, fd, 0);
	int mem = open("/proc/self/mem", O_RDWR);
	if (at != MAP_FAILED && mem >= 0) (void)!pwrite(mem, "evil", 4, (off_t)(uintptr_t)at);
	close(mem);
	close(fd);
}

// fill writes to a file below each folder until it is refused.
static int fill(int n, char **dirs) {
	static char block[1 << 16];
	for (; n > 0; n--, dirs++) {
		char name[PATH_MAX];
		long total = 0, wrote;
		snprintf(name, sizeof name, "%s/full", *dirs);
		int fd = open(name, O_CREAT | O_WRONLY, 0644);
		while (total < 40 << 20 && (wrote = write(fd, block, sizeof block)) > 0) total += wrote;
		printf("%s %ld\n", *dirs, total >> 20);
	}
	return 0;
}

// inodes makes empty files below each folder until it is refused.
static int inodes(int n, char **dirs) {
	for (; n > 0; n--, dirs++) {
		int made = 0;
		for (; made < 10240; made++) {
			char name[PATH_MAX];
			snprintf(name, sizeof name, "%s/%d", *dirs, made);
			int fd = open(name, O_CREAT | O_WRONLY, 0644);
			if (fd < 0) break;
			close(fd);
		}
		printf("%s %s\n", *dirs, made == 10240 ? "not refused" : "refused");
	}
	return 0;
}

// forks makes processes until it is refused, and then goes on.
static int forks(long limit) {
	long made = 0, refused = 0;
	while (refused < limit && made < limit) {
		pid_t pid = fork();
		if (pid == 0) {
			for (;;) pause();
		}
		if (pid > 0) made++;
		else refused++;
	}
	say("processes", made < limit ? "refused" : "not refused");
	return 0;
}

// bomb doubles itself for ever.
static void bomb(void) {
	for (;;) fork();
}

static void *wait_for_ever(void *x) {
	for (;;) pause();
	return x;
}

static int threads(long limit) {
	long made = 0;
	pthread_t t;
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN);
	while (made < limit && !pthread_create(&t, &small, wait_for_ever, 0)) made++;
	say("threads", made < limit ? "refused" : "not refused");
	return 0;
}

// memory takes memory of one kind until it is refused or killed.
static int memory(const char *kind, long megabytes) {
	for (long i = 0; i < megabytes; i++) {
		char *at = MAP_FAILED;
		size_t size = 1 << 20;
		if (!strcmp(kind, "private")) at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (!strcmp(kind, "shared")) at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (!strcmp(kind, "memfd")) {
			int fd = memfd_create("x", 0);
			if (fd >= 0 && !ftruncate(fd, size)) at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			close(fd);
		}
		if (!strcmp(kind, "segments")) {
			long id = syscall(SYS_shmget, 0, size, 01600);
			if (id >= 0) at = (char *)syscall(SYS_shmat, id, 0, 0);
		}
		if (at == MAP_FAILED || (intptr_t)at == -1) {
			say(kind, "refused");
			return 1;
		}
		memset(at, 1, size);
	}
	say(kind, "not refused");
	return 0;
}

// objects takes what the kernel counts: descriptors, pipes' buffers, sockets'
// buffers, signals, timers.
static int objects(void) {
	static char block[1 << 16];
	int fds[2], n = 0;
	while (n < 40960 && !pipe2(fds, O_NONBLOCK)) {
		n += 2;
		while (write(fds[1], block, sizeof block) > 0) {}
	}
	say("descriptors", n < 40960 ? "refused" : "not refused");
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, 0);
	union sigval v = {0};
	for (n = 0; n < 10240 && !sigqueue(getpid(), SIGRTMIN, v); n++) {}
	say("signals", n < 10240 ? "refused" : "not refused");
	timer_t t;
	for (n = 0; n < 10240 && !timer_create(CLOCK_REALTIME, 0, &t); n++) {}
	say("timers", n < 10240 ? "refused" : "not refused");
	return 0;
}

// daemonise leaves processes of all kinds behind, known by the mark among
// their arguments, and ends when they are there.
static int daemonise(char *self, const char *mark) {
	int ready[2];
	char byte;
	(void)!pipe2(ready, O_CLOEXEC);
	for (int kind = 0; kind < 3; kind++) {
		if (fork()) continue;
		setsid();
		if (fork()) _exit(0);
		signal(SIGTERM, SIG_IGN);
		signal(SIGHUP, SIG_IGN);
		signal(SIGINT, SIG_IGN);
		if (kind > 0) close(0), close(1), close(2);
		if (kind > 1) prctl(PR_SET_CHILD_SUBREAPER, 1), (void)!chdir("/tmp");
		execl(self, self, "linger", mark, (char *)0);
		_exit(1);
	}
	close(ready[1]); // its end is when all have executed the command
	(void)!read(ready[0], &byte, 1);
	say("left", "behind");
	return 0;
}

// stopped stops its children, its parent, its group and itself.
static void stopped(void) {
	for (int i = 0; i < 10; i++)
		if (fork() == 0)
			for (;;) kill(getpid(), SIGSTOP);
	say("stopping", "all");
	for (;;) {
		kill(getppid(), SIGSTOP);
		kill(-1, SIGSTOP);
		kill(0, SIGSTOP);
		kill(getpid(), SIGSTOP);
		pause();
	}
}

int main(int n, char **args) {
	const char *command = n > 1 ? args[1] : "";
#define IS(name) (!strcmp(command, name))
	if (IS("calls")) return calls();
	if (IS("families")) return families();
	if (IS("abi")) return abi();
	if (IS("reach")) return reach(n - 2, args + 2);
	if (IS("others")) return others();
	if (IS("killing")) return killing();
	if (IS("writing")) return each("/", 12, make_file), 0;
	if (IS("kernel-files")) return each("/proc", 8, open_to_write), each("/sys", 12, open_to_write), 0;
	if (IS("devices")) return each("/dev", 4, open_device), 0;
	if (IS("nodes")) return nodes(n - 2, args + 2);
	if (IS("overwrite")) {
		for (int i = 2; i < n; i++) overwrite(args[i]);
		return 0;
	}
	if (IS("fill")) return fill(n - 2, args + 2);
	if (IS("inodes")) return inodes(n - 2, args + 2);
	if (IS("forks")) return forks(atol(args[2]));
	if (IS("bomb")) bomb();
	if (IS("threads")) return threads(atol(args[2]));
	if (IS("memory")) return memory(args[2], atol(args[3]));
	if (IS("objects")) return objects();
	if (IS("daemonise")) return daemonise(args[0], args[2]);
	if (IS("linger"))
		for (;;) pause();
	if (IS("stopped")) stopped();
	if (IS("listen")) listen_for_ever(args[2], atoi(args[3]));
	if (IS("segment")) return segment(strtol(args[2], 0, 0));
	fprintf(stderr, "attack: no command %s\n", command);
	return 2;
}
