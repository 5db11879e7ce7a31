/* Loaded before the C library: the n-th system call on files since `fault_arm` fails once.
 *
 * Only the thread that armed it is counted, and only descriptors above the standard streams, so
 * that a run repeats. Each call fails as a full disk, a failing one, or a busy system would make it:
 * a `close` that fails has closed. After `fault_kills(1)` the process is killed before that call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1, counted;
static pid_t armed_by;
static int kills;
static char failed[32];

void fault_arm(long n) { left = n; counted = 0; failed[0] = 0; armed_by = syscall(SYS_gettid); }
long fault_disarm(void) { left = -1; armed_by = 0; return counted; }
void fault_kills(int yes) { kills = yes; }
const char *fault_failed(void) { return failed; }

static int fails(const char *name, int error) {
    if (!armed_by || armed_by != syscall(SYS_gettid)) return 0;
    counted++;
    if (left < 0 || counted != left) return 0;
    if (kills) kill(getpid(), SIGKILL);
    strncpy(failed, name, sizeof failed - 1);
    errno = error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name, ...)                                                                     \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, int); va_end(more);       \
    if (fails(#name, EMFILE)) return -1;                                                      \
    return REAL(name)(__VA_ARGS__, flags, mode);

int open(const char *path, int flags, ...) { OPENS(open, path) }
int open64(const char *path, int flags, ...) { OPENS(open64, path) }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, at, path) }
int openat64(int at, const char *path, int flags, ...) { OPENS(openat64, at, path) }

#define CALL(type, name, error, parameters, arguments)                                        \
    type name parameters { if (fails(#name, error)) return (type)-1; return REAL(name) arguments; }
#define ON_FILE(type, name, error, parameters, arguments)                                     \
    type name parameters {                                                                    \
        if (fd > 2 && fails(#name, error)) return (type)-1; return REAL(name) arguments; }

ON_FILE(ssize_t, write, ENOSPC, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, read, EIO, (int fd, void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, pread64, EIO, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FILE(int, fsync, EIO, (int fd), (fd))
ON_FILE(int, ftruncate64, ENOSPC, (int fd, off64_t size), (fd, size))
ON_FILE(off64_t, lseek64, EIO, (int fd, off64_t at, int from), (fd, at, from))
ON_FILE(int, flock, ENOLCK, (int fd, int how), (fd, how))
ON_FILE(int, fchmod, EPERM, (int fd, mode_t mode), (fd, mode))
ON_FILE(int, fstat64, EIO, (int fd, struct stat64 *about), (fd, about))
CALL(int, stat64, EIO, (const char *path, struct stat64 *about), (path, about))
CALL(int, lstat64, EIO, (const char *path, struct stat64 *about), (path, about))
CALL(int, rename, EIO, (const char *from, const char *to), (from, to))
CALL(int, linkat, EIO, (int from_at, const char *from, int to_at, const char *to, int how),
     (from_at, from, to_at, to, how))
CALL(int, unlink, EIO, (const char *path), (path))
CALL(int, mkdir, ENOSPC, (const char *path, mode_t mode), (path, mode))
CALL(int, rmdir, EIO, (const char *path), (path))
CALL(int, chmod, EPERM, (const char *path, mode_t mode), (path, mode))
CALL(int, chown, EPERM, (const char *path, uid_t user, gid_t group), (path, user, group))
CALL(void *, mmap64, ENOMEM, (void *at, size_t size, int may, int how, int fd, off64_t from),
     (at, size, may, how, fd, from))
CALL(int, memfd_create, EMFILE, (const char *name, unsigned how), (name, how))
CALL(int, socketpair, EMFILE, (int family, int type, int way, int ends[2]),
     (family, type, way, ends))
CALL(ssize_t, sendmsg, ENOBUFS, (int fd, const struct msghdr *message, int how), (fd, message, how))
CALL(int, pipe2, EMFILE, (int ends[2], int how), (ends, how))
CALL(pid_t, fork, EAGAIN, (void), ())

int close(int fd) {
    int done = REAL(close)(fd);
    return fd > 2 && fails("close", EIO) ? -1 : done;
}
