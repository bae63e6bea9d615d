/*
 * Stands between Python and libc (LD_PRELOAD): counts the file-system calls
 * below one directory, and lets one of them fail, or the process die at it.
 *
 * A call counts if it names a path below the directory, or a descriptor that
 * was opened there.  Nothing is done before begin() is called.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, FAIL, FAIL_ON, KILL, KILL_AFTER, HALF, HALF_KILL };

#define DESCRIPTORS 4096
#define CALLS 65536

static char below[4096];
static size_t belowLength;
static int mode, code, paused = 1;
static long at, count, struck, ahead;
static const char *names[CALLS];
static char tracked[DESCRIPTORS];

void shim_begin(const char *path, int how, long which, int error)
{
    strncpy(below, path, sizeof below - 1);
    belowLength = strlen(below);
    mode = how, at = which, code = error;
    count = struck = 0;
    memset(tracked, 0, sizeof tracked);
    paused = 0;
}

void shim_pause(int isPaused) { paused = isPaused; }
long shim_count(void) { return count; }
long shim_struck(void) { return struck; }
const char *shim_name(long number) { return names[number % CALLS]; }

/* Seconds that the wall clock is ahead of the file system's. */
void shim_ahead(long seconds) { ahead = seconds; }

int shim_open(void)
{
    int found = 0;
    for (int each = 0; each < DESCRIPTORS; each++)
        found += tracked[each];
    return found;
}

static int isOurs(int fd) { return fd >= 0 && fd < DESCRIPTORS && tracked[fd]; }

static int isBelow(int directory, const char *path)
{
    if (!belowLength || path == NULL)
        return 0;
    if (path[0] != '/')
        return isOurs(directory);
    return !strncmp(path, below, belowLength) && (path[belowLength] == '/' || !path[belowLength]);
}

static int track(int fd, int isOurs_)
{
    if (fd >= 0 && fd < DESCRIPTORS)
        tracked[fd] = (char)isOurs_;
    return fd;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* One more call; is it to fail? */
static int strikes(const char *name)
{
    if (paused)
        return 0;
    count++;
    names[count % CALLS] = name;
    if (count < at || mode == COUNT || (count > at && mode != FAIL_ON))
        return 0;
    struck++;
    if (mode == KILL)
        die();
    if (mode != FAIL && mode != FAIL_ON)
        return 0;
    errno = code;
    return 1;
}

static void after(int ours)
{
    if (ours && !paused && mode == KILL_AFTER && count == at)
        die();
}

/* How much of so much is really read or written. */
static size_t part(int ours, size_t size)
{
    if (ours && !paused && count == at && (mode == HALF || mode == HALF_KILL) && size > 1)
        return size / 2;
    return size;
}

static void afterPart(int ours)
{
    if (ours && !paused && mode == HALF_KILL && count == at)
        die();
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* A call whose parameters are passed on as they are. */
#define PLAIN(type, name, failed, ours, parameters, arguments, ...) \
    type name parameters \
    { \
        REAL(type, name, __VA_ARGS__); \
        int counts = (ours); \
        if (counts && strikes(#name)) \
            return failed; \
        type result = real arguments; \
        int error = errno; \
        after(counts); \
        errno = error; \
        return result; \
    }

/* --- opening and closing --------------------------------------------------- */

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t permissions = va_arg(more, mode_t); \
        va_end(more); \
        REAL(int, name, int, const char *, int, ...); \
        int ours = isBelow(directory, path); \
        if (ours && strikes(#name)) \
            return -1; \
        int fd = track(real(directory, path, flags, permissions), ours && !paused); \
        after(ours); \
        return fd; \
    }
OPENAT(openat)
OPENAT(openat64)

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t permissions = va_arg(more, mode_t); \
        va_end(more); \
        REAL(int, name, const char *, int, ...); \
        int ours = isBelow(-1, path); \
        if (ours && strikes(#name)) \
            return -1; \
        int fd = track(real(path, flags, permissions), ours && !paused); \
        after(ours); \
        return fd; \
    }
OPEN(open)
OPEN(open64)

/* Whatever it says, the descriptor is closed (close(2), Linux). */
int close(int fd)
{
    REAL(int, close, int);
    int ours = isOurs(fd);
    int fails = ours && strikes("close");
    track(fd, 0);
    int result = real(fd);
    after(ours);
    if (fails)
        errno = code;
    return fails ? -1 : result;
}

int closedir(DIR *directory)
{
    REAL(int, closedir, DIR *);
    int fd = dirfd(directory), ours = isOurs(fd);
    int fails = ours && strikes("closedir");
    track(fd, 0);
    int result = real(directory);
    after(ours);
    if (fails)
        errno = code;
    return fails ? -1 : result;
}

#define FCNTL(name) \
    int name(int fd, int command, ...) \
    { \
        va_list more; \
        va_start(more, command); \
        void *argument = va_arg(more, void *); \
        va_end(more); \
        REAL(int, name, int, int, ...); \
        int isDup = command == F_DUPFD_CLOEXEC || command == F_DUPFD; \
        int ours = isOurs(fd) && isDup; \
        if (ours && strikes(#name)) \
            return -1; \
        int result = real(fd, command, argument); \
        if (isDup) \
            track(result, ours); \
        after(ours); \
        return result; \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

DIR *opendir(const char *path)
{
    REAL(DIR *, opendir, const char *);
    int ours = isBelow(-1, path);
    if (ours && strikes("opendir"))
        return NULL;
    DIR *directory = real(path);
    if (directory != NULL)
        track(dirfd(directory), ours && !paused);
    after(ours);
    return directory;
}

PLAIN(DIR *, fdopendir, NULL, isOurs(fd), (int fd), (fd), int)
PLAIN(struct dirent *, readdir, NULL, isOurs(dirfd(each)), (DIR *each), (each), DIR *)
PLAIN(struct dirent64 *, readdir64, NULL, isOurs(dirfd(each)), (DIR *each), (each), DIR *)

/* --- looking ---------------------------------------------------------------- */

#define STAT(name, kind) \
    PLAIN(int, name, -1, isBelow(-1, path), (const char *path, struct kind *status), \
          (path, status), const char *, struct kind *)
STAT(stat, stat)
STAT(lstat, stat)
STAT(stat64, stat64)
STAT(lstat64, stat64)

PLAIN(int, fstat, -1, isOurs(fd), (int fd, struct stat *status), (fd, status), int, struct stat *)
PLAIN(int, fstat64, -1, isOurs(fd), (int fd, struct stat64 *status), (fd, status), int,
      struct stat64 *)

#define STATAT(name, kind) \
    PLAIN(int, name, -1, isBelow(directory, path), \
          (int directory, const char *path, struct kind *status, int flags), \
          (directory, path, status, flags), int, const char *, struct kind *, int)
STATAT(fstatat, stat)
STATAT(fstatat64, stat64)

PLAIN(ssize_t, readlink, -1, isBelow(-1, path), (const char *path, char *target, size_t size),
      (path, target, size), const char *, char *, size_t)
PLAIN(ssize_t, readlinkat, -1, isBelow(directory, path),
      (int directory, const char *path, char *target, size_t size),
      (directory, path, target, size), int, const char *, char *, size_t)
PLAIN(int, access, -1, isBelow(-1, path), (const char *path, int how), (path, how), const char *,
      int)
PLAIN(int, faccessat, -1, isBelow(directory, path),
      (int directory, const char *path, int how, int flags), (directory, path, how, flags), int,
      const char *, int, int)
PLAIN(off64_t, lseek64, -1, isOurs(fd), (int fd, off64_t offset, int from), (fd, offset, from), int,
      off64_t, int)

/* --- reading and writing ----------------------------------------------------- */

#define MOVE(name, pointer) \
    ssize_t name(int fd, pointer octets, size_t size) \
    { \
        REAL(ssize_t, name, int, pointer, size_t); \
        int ours = isOurs(fd); \
        if (ours && strikes(#name)) \
            return -1; \
        ssize_t moved = real(fd, octets, part(ours, size)); \
        afterPart(ours); \
        after(ours); \
        return moved; \
    }
MOVE(read, void *)
MOVE(write, const void *)

#define MOVEAT(name, pointer) \
    ssize_t name(int fd, pointer octets, size_t size, off64_t offset) \
    { \
        REAL(ssize_t, name, int, pointer, size_t, off64_t); \
        int ours = isOurs(fd); \
        if (ours && strikes(#name)) \
            return -1; \
        ssize_t moved = real(fd, octets, part(ours, size), offset); \
        afterPart(ours); \
        after(ours); \
        return moved; \
    }
MOVEAT(pread64, void *)
MOVEAT(pwrite64, const void *)

#define VECTOR(name) \
    ssize_t name(int fd, const struct iovec *vector, int parts, off64_t offset, int flags) \
    { \
        REAL(ssize_t, name, int, const struct iovec *, int, off64_t, int); \
        int ours = isOurs(fd); \
        if (ours && strikes(#name)) \
            return -1; \
        struct iovec first = vector[0]; \
        first.iov_len = part(ours, first.iov_len); \
        int isCut = first.iov_len != vector[0].iov_len; \
        ssize_t moved = real(fd, isCut ? &first : vector, isCut ? 1 : parts, offset, flags); \
        afterPart(ours); \
        after(ours); \
        return moved; \
    }
VECTOR(preadv64v2)
VECTOR(pwritev64v2)

PLAIN(ssize_t, readv, -1, isOurs(fd), (int fd, const struct iovec *vector, int parts),
      (fd, vector, parts), int, const struct iovec *, int)
PLAIN(ssize_t, writev, -1, isOurs(fd), (int fd, const struct iovec *vector, int parts),
      (fd, vector, parts), int, const struct iovec *, int)
PLAIN(int, fsync, -1, isOurs(fd), (int fd), (fd), int)
PLAIN(int, fdatasync, -1, isOurs(fd), (int fd), (fd), int)
PLAIN(int, ftruncate64, -1, isOurs(fd), (int fd, off64_t size), (fd, size), int, off64_t)
PLAIN(ssize_t, copy_file_range, -1, isOurs(from) || isOurs(to),
      (int from, off64_t *begin, int to, off64_t *end, size_t size, unsigned flags),
      (from, begin, to, end, size, flags), int, off64_t *, int, off64_t *, size_t, unsigned)

/* --- changing ---------------------------------------------------------------- */

PLAIN(int, flock, -1, isOurs(fd), (int fd, int how), (fd, how), int, int)
PLAIN(int, fchown, -1, isOurs(fd), (int fd, uid_t user, gid_t group), (fd, user, group), int, uid_t,
      gid_t)
PLAIN(int, fchmod, -1, isOurs(fd), (int fd, mode_t permissions), (fd, permissions), int, mode_t)
PLAIN(int, futimens, -1, isOurs(fd), (int fd, const struct timespec times[2]), (fd, times), int,
      const struct timespec *)
PLAIN(int, utimensat, -1, isBelow(directory, path),
      (int directory, const char *path, const struct timespec times[2], int flags),
      (directory, path, times, flags), int, const char *, const struct timespec *, int)
PLAIN(int, mkdir, -1, isBelow(-1, path), (const char *path, mode_t permissions),
      (path, permissions), const char *, mode_t)
PLAIN(int, mkdirat, -1, isBelow(directory, path),
      (int directory, const char *path, mode_t permissions), (directory, path, permissions), int,
      const char *, mode_t)
PLAIN(int, rmdir, -1, isBelow(-1, path), (const char *path), (path), const char *)
PLAIN(int, unlink, -1, isBelow(-1, path), (const char *path), (path), const char *)
PLAIN(int, unlinkat, -1, isBelow(directory, path), (int directory, const char *path, int flags),
      (directory, path, flags), int, const char *, int)

#define TWO(name) \
    PLAIN(int, name, -1, isBelow(-1, source) || isBelow(-1, target), \
          (const char *source, const char *target), (source, target), const char *, const char *)
TWO(rename)
TWO(link)

PLAIN(int, renameat, -1, isBelow(from, source) || isBelow(to, target),
      (int from, const char *source, int to, const char *target), (from, source, to, target), int,
      const char *, int, const char *)
PLAIN(int, linkat, -1, isBelow(from, source) || isBelow(to, target),
      (int from, const char *source, int to, const char *target, int flags),
      (from, source, to, target, flags), int, const char *, int, const char *, int)

/* --- time -------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME)
        now->tv_sec += ahead;
    return result;
}
