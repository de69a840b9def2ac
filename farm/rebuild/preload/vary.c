/*
 * What a build can see and should not depend on, shown to it as something else.
 * The image's own compiler makes a library of this, and /etc/ld.so.preload puts
 * it into every dynamically linked program of the container. Which variations
 * there are is decided by -D:
 *
 *   CLOCK=N   the time is N seconds later; so are the times of what the build writes
 *   FREEZE=N  with CLOCK: it is always N, in seconds since 1970
 *   ORDER     folders are listed in the opposite order
 *   HOST      the host name
 *   UID       user and group, instead of 0
 *   CPUS      one processor more
 *
 * System calls are made directly: what a C library calls stat has changed over
 * the years, and only what the kernel calls it is the same in all of them.
 * Static programs, and functions that the C library calls inside itself (glob,
 * nftw), are not reached.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <utime.h>

#if defined CLOCK || defined UID

#ifdef CLOCK
/* What is older came with the image, where every file has one fixed time. */
#define RECENT 946684800 /* 2000-01-01 */

static void later(struct timespec *t)
{
#ifdef FREEZE
	t->tv_sec = FREEZE;
	t->tv_nsec = 0;
#else
	t->tv_sec += CLOCK;
#endif
}

static void file_later(struct timespec *t)
{
	if (t->tv_sec < RECENT)
		return;
	t->tv_sec += CLOCK;
#ifdef FREEZE
	if (t->tv_sec > FREEZE)
		later(t);
#endif
}

/* earlier gives the real time for one that a program has seen or made up. */
static void earlier(struct timespec *t)
{
	if (t->tv_nsec != UTIME_NOW && t->tv_nsec != UTIME_OMIT && t->tv_sec - CLOCK >= RECENT)
		t->tv_sec -= CLOCK;
}
#endif

static int seen(int result, struct stat *st)
{
	if (result != 0)
		return result;
#ifdef CLOCK
	file_later(&st->st_atim);
	file_later(&st->st_mtim);
	file_later(&st->st_ctim);
#endif
#ifdef UID
	if (st->st_uid == 0)
		st->st_uid = UID;
	if (st->st_gid == 0)
		st->st_gid = UID;
#endif
	return 0;
}

static int stat_at(int dir, const char *path, struct stat *st, int flags)
{
	return seen(syscall(SYS_newfstatat, dir, path, st, flags), st);
}

static int stat_fd(int fd, struct stat *st) { return seen(syscall(SYS_fstat, fd, st), st); }

int stat(const char *path, struct stat *st) { return stat_at(AT_FDCWD, path, st, 0); }
int lstat(const char *path, struct stat *st) { return stat_at(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW); }
int fstat(int fd, struct stat *st) { return stat_fd(fd, st); }
int fstatat(int dir, const char *path, struct stat *st, int flags) { return stat_at(dir, path, st, flags); }
/* struct stat64 is struct stat on 64-bit machines. */
int stat64(const char *path, struct stat64 *st) { return stat_at(AT_FDCWD, path, (struct stat *)st, 0); }
int lstat64(const char *path, struct stat64 *st) { return stat_at(AT_FDCWD, path, (struct stat *)st, AT_SYMLINK_NOFOLLOW); }
int fstat64(int fd, struct stat64 *st) { return stat_fd(fd, (struct stat *)st); }
int fstatat64(int dir, const char *path, struct stat64 *st, int flags) { return stat_at(dir, path, (struct stat *)st, flags); }
/* Before glibc 2.33 programs call these. */
int __xstat(int v, const char *path, struct stat *st) { (void)v; return stat_at(AT_FDCWD, path, st, 0); }
int __lxstat(int v, const char *path, struct stat *st) { (void)v; return stat_at(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW); }
int __fxstat(int v, int fd, struct stat *st) { (void)v; return stat_fd(fd, st); }
int __fxstatat(int v, int dir, const char *path, struct stat *st, int flags) { (void)v; return stat_at(dir, path, st, flags); }
int __xstat64(int v, const char *path, struct stat64 *st) { (void)v; return stat_at(AT_FDCWD, path, (struct stat *)st, 0); }
int __lxstat64(int v, const char *path, struct stat64 *st) { (void)v; return stat_at(AT_FDCWD, path, (struct stat *)st, AT_SYMLINK_NOFOLLOW); }
int __fxstat64(int v, int fd, struct stat64 *st) { (void)v; return stat_fd(fd, (struct stat *)st); }
int __fxstatat64(int v, int dir, const char *path, struct stat64 *st, int flags) { (void)v; return stat_at(dir, path, (struct stat *)st, flags); }

int statx(int dir, const char *path, int flags, unsigned mask, struct statx *st)
{
	if (syscall(SYS_statx, dir, path, flags, mask, st) != 0)
		return -1;
#ifdef CLOCK
	struct statx_timestamp *all[] = {&st->stx_atime, &st->stx_btime, &st->stx_ctime, &st->stx_mtime};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		struct timespec t = {all[i]->tv_sec, all[i]->tv_nsec};
		file_later(&t);
		all[i]->tv_sec = t.tv_sec;
		all[i]->tv_nsec = t.tv_nsec;
	}
#endif
#ifdef UID
	if (st->stx_uid == 0)
		st->stx_uid = UID;
	if (st->stx_gid == 0)
		st->stx_gid = UID;
#endif
	return 0;
}
#endif

#ifdef CLOCK
int clock_gettime(clockid_t id, struct timespec *t)
{
	int result = syscall(SYS_clock_gettime, id, t);
	if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI))
		later(t);
	return result;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone)
{
	struct timespec t;
	if (zone)
		memset(zone, 0, sizeof(struct timezone));
	if (clock_gettime(CLOCK_REALTIME, &t) != 0)
		return -1;
	*tv = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
	return 0;
}

time_t time(time_t *out)
{
	struct timespec t;
	if (clock_gettime(CLOCK_REALTIME, &t) != 0)
		return -1;
	if (out)
		*out = t.tv_sec;
	return t.tv_sec;
}

int timespec_get(struct timespec *t, int base)
{
	return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, t) == 0 ? base : 0;
}

static int set_times(int dir, const char *path, const struct timespec *asked, int flags)
{
	struct timespec t[2];
	if (asked) {
		memcpy(t, asked, sizeof t);
		earlier(&t[0]);
		earlier(&t[1]);
	}
	return syscall(SYS_utimensat, dir, path, asked ? t : NULL, flags);
}

static int set_timevals(int dir, const char *path, const struct timeval *asked, int flags)
{
	if (!asked)
		return set_times(dir, path, NULL, flags);
	struct timespec t[2] = {{asked[0].tv_sec, asked[0].tv_usec * 1000}, {asked[1].tv_sec, asked[1].tv_usec * 1000}};
	return set_times(dir, path, t, flags);
}

int utimensat(int dir, const char *path, const struct timespec t[2], int flags) { return set_times(dir, path, t, flags); }
int futimens(int fd, const struct timespec t[2]) { return set_times(fd, NULL, t, 0); }
int utimes(const char *path, const struct timeval t[2]) { return set_timevals(AT_FDCWD, path, t, 0); }
int lutimes(const char *path, const struct timeval t[2]) { return set_timevals(AT_FDCWD, path, t, AT_SYMLINK_NOFOLLOW); }
int futimes(int fd, const struct timeval t[2]) { return set_timevals(fd, NULL, t, 0); }
int futimesat(int dir, const char *path, const struct timeval t[2]) { return set_timevals(dir, path, t, 0); }
int utime(const char *path, const struct utimbuf *asked)
{
	if (!asked)
		return set_times(AT_FDCWD, path, NULL, 0);
	struct timespec t[2] = {{asked->actime, 0}, {asked->modtime, 0}};
	return set_times(AT_FDCWD, path, t, 0);
}
#endif

#ifdef UID
uid_t getuid(void) { return UID; }
uid_t geteuid(void) { return UID; }
gid_t getgid(void) { return UID; }
gid_t getegid(void) { return UID; }
int getresuid(uid_t *r, uid_t *e, uid_t *s) { *r = *e = *s = UID; return 0; }
int getresgid(gid_t *r, gid_t *e, gid_t *s) { *r = *e = *s = UID; return 0; }

static int owned_at(int dir, const char *path, uid_t u, gid_t g, int flags)
{
	return syscall(SYS_fchownat, dir, path, u == UID ? 0 : u, g == UID ? 0 : g, flags);
}

int chown(const char *path, uid_t u, gid_t g) { return owned_at(AT_FDCWD, path, u, g, 0); }
int lchown(const char *path, uid_t u, gid_t g) { return owned_at(AT_FDCWD, path, u, g, AT_SYMLINK_NOFOLLOW); }
int fchownat(int dir, const char *path, uid_t u, gid_t g, int flags) { return owned_at(dir, path, u, g, flags); }
int fchown(int fd, uid_t u, gid_t g) { return syscall(SYS_fchown, fd, u == UID ? 0 : u, g == UID ? 0 : g); }
#endif

#ifdef HOST
int gethostname(char *name, size_t size)
{
	if (size <= strlen(HOST)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(name, HOST);
	return 0;
}

int uname(struct utsname *u)
{
	if (syscall(SYS_uname, u) != 0)
		return -1;
	strcpy(u->nodename, HOST);
	return 0;
}
#endif

#ifdef CPUS
static int processors(void)
{
	unsigned long set[1024 / sizeof(long)];
	long n = syscall(SYS_sched_getaffinity, 0, sizeof set, set);
	int count = 1;
	for (long i = 0; i < n / (long)sizeof *set; i++)
		count += __builtin_popcountl(set[i]);
	return count;
}

int get_nprocs(void) { return processors(); }
int get_nprocs_conf(void) { return processors(); }

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
	(void)pid;
	memset(set, 0, size);
	int n = processors();
	if (size * 8 < (size_t)n) {
		errno = EINVAL;
		return -1;
	}
	while (n-- > 0)
		((unsigned char *)set)[n / 8] |= 1 << n % 8;
	return 0;
}

long sysconf(int name)
{
	static long (*next)(int);
	if (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF)
		return processors();
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "sysconf");
	return next(name);
}
#endif

#ifdef ORDER
/*
 * The first look into a folder reads all of it, and gives the last entry first.
 * cp alone keeps the order: a copy that is made in the opposite order and then
 * read in the opposite order would look like the original.
 */
struct listing {
	DIR *dir;
	struct dirent **entries;
	long count, next;
	struct listing *others;
};

static struct listing *listings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct listing **find(DIR *dir)
{
	struct listing **l = &listings;
	while (*l && (*l)->dir != dir)
		l = &(*l)->others;
	return l;
}

static void forget(DIR *dir)
{
	pthread_mutex_lock(&lock);
	struct listing **at = find(dir), *l = *at;
	if (l) {
		*at = l->others;
		while (l->count > 0)
			free(l->entries[--l->count]);
		free(l->entries);
		free(l);
	}
	pthread_mutex_unlock(&lock);
}

static struct listing *list(DIR *dir)
{
	static struct dirent *(*next)(DIR *);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "readdir");
	struct listing *l = calloc(1, sizeof *l);
	long room = 0;
	for (struct dirent *e; l && (e = next(dir));) {
		if (l->count == room) {
			room = room ? 2 * room : 64;
			l->entries = realloc(l->entries, room * sizeof *l->entries);
		}
		l->entries[l->count] = malloc(e->d_reclen);
		memcpy(l->entries[l->count++], e, e->d_reclen);
	}
	if (!l)
		return NULL;
	if (strcmp(program_invocation_short_name, "cp") != 0)
		for (long i = 0; i < l->count / 2; i++) {
			struct dirent *e = l->entries[i];
			l->entries[i] = l->entries[l->count - 1 - i];
			l->entries[l->count - 1 - i] = e;
		}
	l->dir = dir;
	l->others = listings;
	return listings = l;
}

struct dirent *readdir(DIR *dir)
{
	int before = errno;
	pthread_mutex_lock(&lock);
	struct listing *l = *find(dir);
	if (!l)
		l = list(dir);
	struct dirent *e = l && l->next < l->count ? l->entries[l->next++] : NULL;
	pthread_mutex_unlock(&lock);
	errno = before;
	return e;
}

struct dirent64 *readdir64(DIR *dir) { return (struct dirent64 *)readdir(dir); }

long telldir(DIR *dir)
{
	pthread_mutex_lock(&lock);
	struct listing *l = *find(dir);
	long at = l ? l->next : 0;
	pthread_mutex_unlock(&lock);
	return at;
}

void seekdir(DIR *dir, long at)
{
	pthread_mutex_lock(&lock);
	struct listing *l = *find(dir);
	if (!l)
		l = list(dir);
	if (l && at >= 0 && at <= l->count)
		l->next = at;
	pthread_mutex_unlock(&lock);
}

void rewinddir(DIR *dir)
{
	static void (*next)(DIR *);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "rewinddir");
	forget(dir);
	next(dir);
}

int closedir(DIR *dir)
{
	static int (*next)(DIR *);
	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "closedir");
	forget(dir);
	return next(dir);
}
#endif
