/* A disk without locks or without shared memory, for `disks`: loaded before a process, it refuses what such a file
   system refuses. CAMPAIGN_WITHOUT: locks (as NFS without its lock service), memory (as a 9p or network mount). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int (*fcntl_type)(int, int, ...);
typedef void *(*mmap_type)(void *, size_t, int, int, int, off_t);

static int without(const char *what) {
    const char *wanted = getenv("CAMPAIGN_WITHOUT");
    return wanted && strcmp(wanted, what) == 0;
}

static int locked(const char *name, int file, int command, void *argument) {
    if ((command == F_SETLK || command == F_SETLKW || command == F_GETLK) && without("locks")) {
        errno = ENOLCK;
        return -1;
    }
    return ((fcntl_type)dlsym(RTLD_NEXT, name))(file, command, argument);
}

#define FCNTL(name)                                    \
    int name(int file, int command, ...) {             \
        va_list more;                                  \
        va_start(more, command);                       \
        void *argument = va_arg(more, void *);         \
        va_end(more);                                  \
        return locked(#name, file, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

static int is_wal_index(int file) {
    char link[64], path[4096];
    if (file < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 4 && strncmp(path + length - 4, "-shm", 4) == 0;
}

#define MMAP(name)                                                                              \
    void *name(void *at, size_t length, int protection, int flags, int file, off_t offset) {    \
        if ((flags & MAP_SHARED) && without("memory") && is_wal_index(file)) {                  \
            errno = ENODEV;                                                                     \
            return MAP_FAILED;                                                                  \
        }                                                                                       \
        return ((mmap_type)dlsym(RTLD_NEXT, #name))(at, length, protection, flags, file, offset); \
    }
MMAP(mmap)
MMAP(mmap64)
