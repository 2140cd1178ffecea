/* Makes the disk slow: each flush takes SLOW_FLUSH_NS longer. LD_PRELOAD it into a program.
 *
 * A flush is an fsync, an fdatasync, and a write to a file that was opened with O_DSYNC or O_SYNC,
 * as LMDB writes its meta page.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void)
{
    const char *longer = getenv("SLOW_FLUSH_NS");
    long ns = longer ? atol(longer) : 0;
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    nanosleep(&time, NULL);
}

static void wait_if_it_flushes(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags != -1 && (flags & O_DSYNC))
        wait_for_the_disk();
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) \
        next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fsync(int fd)
{
    NEXT(fsync);
    wait_for_the_disk();
    return next(fd);
}

int fdatasync(int fd)
{
    NEXT(fdatasync);
    wait_for_the_disk();
    return next(fd);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    NEXT(pwrite);
    wait_if_it_flushes(fd);
    return next(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    NEXT(pwrite64);
    wait_if_it_flushes(fd);
    return next(fd, data, size, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    NEXT(pwritev);
    wait_if_it_flushes(fd);
    return next(fd, parts, count, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    NEXT(writev);
    wait_if_it_flushes(fd);
    return next(fd, parts, count);
}
