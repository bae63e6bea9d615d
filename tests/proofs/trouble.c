/*
 * Stands between a service and libc (LD_PRELOAD), and does what the page that
 * TROUBLE_PAGE names says, which other processes write to while it runs:
 *
 *   - the wall clock is ahead, or behind, by some seconds;
 *   - below the directory TROUBLE_BELOW the disk is full;
 *   - files of some names cannot be opened, or read, or reading them hangs.
 *
 * It counts in the same page how often it did so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NAMES 32
enum { NOTHING, NO_OPENING, NO_READING, HANGING };
enum { FULL, UNOPENED, UNREAD, HUNG, KINDS };

struct trouble {
    int64_t ahead;
    int64_t isFull;
    int64_t isReading; /* how many of the names below are about reading */
    int64_t struck[KINDS];
    struct {
        int32_t kind;
        int32_t error;
        char name[120]; /* how the file's name begins */
    } names[NAMES];
};

static volatile struct trouble *page;
static const char *below;
static size_t belowLength;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TROUBLE_PAGE");
    below = getenv("TROUBLE_BELOW");
    if (!path || !below)
        return;
    belowLength = strlen(below);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(0, sizeof(struct trouble), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        page = mapped;
    close(fd);
}

static void strike(int kind) { __atomic_add_fetch(&page->struck[kind], 1, __ATOMIC_RELAXED); }

/* The path that a descriptor was opened by; empty if that is not below. */
static const char *pathOf(int fd, char *path, size_t size)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
    return strncmp(path, below, belowLength) ? "" : path;
}

/* What is wrong with a file of this path: an index of names, -1 if nothing. */
static int wrong(const char *path, int least, int most)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (int each = 0; each < NAMES; each++) {
        int kind = page->names[each].kind;
        const char *begins = (const char *)page->names[each].name;
        if (kind >= least && kind <= most && *begins && !strncmp(name, begins, strlen(begins)))
            return each;
    }
    return -1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* --- the clock --------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    long result = syscall(SYS_clock_gettime, clock, now);
    if (!result && page && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += page->ahead;
    return (int)result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (seconds)
        *seconds = precise.tv_sec;
    return precise.tv_sec;
}

/* --- opening ------------------------------------------------------------------ */

static int mayNotOpen(const char *path, int flags)
{
    if (!page || !path)
        return 0;
    if (page->isFull && flags & O_CREAT) {
        /* Names relative to a descriptor are those of Maildirs. */
        int isBelow = path[0] != '/' || !strncmp(path, below, belowLength);
        if (isBelow) {
            strike(FULL);
            errno = ENOSPC;
            return 1;
        }
    }
    int each = wrong(path, NO_OPENING, NO_OPENING);
    if (each < 0)
        return 0;
    strike(UNOPENED);
    errno = page->names[each].error;
    return 1;
}

#define OPEN(name, parameters, arguments, ...) \
    int name parameters \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t permissions = va_arg(more, mode_t); \
        va_end(more); \
        REAL(int, name, __VA_ARGS__, ...); \
        return mayNotOpen(path, flags) ? -1 : real arguments; \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, permissions), const char *, int)
OPEN(open64, (const char *path, int flags, ...), (path, flags, permissions), const char *, int)
OPEN(openat, (int directory, const char *path, int flags, ...),
     (directory, path, flags, permissions), int, const char *, int)
OPEN(openat64, (int directory, const char *path, int flags, ...),
     (directory, path, flags, permissions), int, const char *, int)

/* --- reading ------------------------------------------------------------------ */

/* Hang, or set errno and be true: a read at this descriptor fails.
   isAtOnce: it must not hang, so it says that it would. */
static int mayNotRead(int fd, int isAtOnce)
{
    if (!page || !page->isReading)
        return 0;
    char path[4096];
    int each = wrong(pathOf(fd, path, sizeof path), NO_READING, HANGING);
    if (each < 0)
        return 0;
    if (page->names[each].kind == NO_READING) {
        strike(UNREAD);
        errno = page->names[each].error;
        return 1;
    }
    if (isAtOnce) {
        errno = EAGAIN;
        return 1;
    }
    strike(HUNG);
    while (page->names[each].kind == HANGING) {
        struct timespec nap = {0, 20000000};
        nanosleep(&nap, 0);
    }
    return 0;
}

#define READ(name, parameters, arguments, isAtOnce, ...) \
    ssize_t name parameters \
    { \
        REAL(ssize_t, name, __VA_ARGS__); \
        return mayNotRead(fd, isAtOnce) ? -1 : real arguments; \
    }
READ(pread, (int fd, void *octets, size_t size, off_t at), (fd, octets, size, at), 0, int, void *,
     size_t, off_t)
READ(pread64, (int fd, void *octets, size_t size, off64_t at), (fd, octets, size, at), 0, int,
     void *, size_t, off64_t)
READ(preadv2, (int fd, const struct iovec *vector, int parts, off_t at, int flags),
     (fd, vector, parts, at, flags), flags & RWF_NOWAIT, int, const struct iovec *, int, off_t, int)
READ(preadv64v2, (int fd, const struct iovec *vector, int parts, off64_t at, int flags),
     (fd, vector, parts, at, flags), flags & RWF_NOWAIT, int, const struct iovec *, int, off64_t,
     int)

#define SENDFILE(name, offset) \
    ssize_t name(int to, int fd, offset *at, size_t size) \
    { \
        REAL(ssize_t, name, int, int, offset *, size_t); \
        return mayNotRead(fd, 1) ? -1 : real(to, fd, at, size); \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

/* --- a full disk --------------------------------------------------------------- */

static int isFull(const char *path)
{
    if (!page || !page->isFull || strncmp(path, below, belowLength))
        return 0;
    strike(FULL);
    errno = ENOSPC;
    return 1;
}

static int isFullAt(int fd)
{
    char path[4096];
    return page && page->isFull && isFull(pathOf(fd, path, sizeof path));
}

/* A path and the descriptor that it is relative to. */
static int isFullBelow(int directory, const char *path)
{
    return path[0] == '/' ? isFull(path) : isFullAt(directory);
}

#define WRITE(type, name, parameters, arguments, full, ...) \
    type name parameters \
    { \
        REAL(type, name, __VA_ARGS__); \
        return full ? -1 : real arguments; \
    }
WRITE(ssize_t, write, (int fd, const void *octets, size_t size), (fd, octets, size), isFullAt(fd),
      int, const void *, size_t)
WRITE(ssize_t, pwrite64, (int fd, const void *octets, size_t size, off64_t at),
      (fd, octets, size, at), isFullAt(fd), int, const void *, size_t, off64_t)
WRITE(ssize_t, writev, (int fd, const struct iovec *vector, int parts), (fd, vector, parts),
      isFullAt(fd), int, const struct iovec *, int)
WRITE(int, mkdir, (const char *path, mode_t permissions), (path, permissions), isFull(path),
      const char *, mode_t)
WRITE(int, mkdirat, (int directory, const char *path, mode_t permissions),
      (directory, path, permissions), isFullBelow(directory, path), int, const char *, mode_t)
WRITE(int, rename, (const char *source, const char *target), (source, target), isFull(target),
      const char *, const char *)
WRITE(int, renameat, (int from, const char *source, int to, const char *target),
      (from, source, to, target), isFullBelow(to, target), int, const char *, int, const char *)
WRITE(int, linkat, (int from, const char *source, int to, const char *target, int flags),
      (from, source, to, target, flags), isFullBelow(to, target), int, const char *, int,
      const char *, int)
