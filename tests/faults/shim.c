/* Faults for real processes: preloaded before libc, ruled from outside through a shared page (tests/faults/shim.py).
 *
 * Every call that the product makes of a file comes through here. A rule says which calls (operation, path, program,
 * range of bytes, after so many, so many times) end how. With a trace set, what was written, synced and renamed is
 * kept with what was there before, so that a power cut can be made of it (tests/faults/power.py).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    READ = 1, WRITE = 2, SYNC = 4, ALLOCATE = 8, PUNCH = 16, TRUNCATE = 32, OPEN = 64, CREATE = 128, RENAME = 256,
    STATFS = 512, UNLINK = 1024, ACCEPT = 2048, THREAD = 4096, SYNC_FOLDER = 8192,
};
enum { ERROR = 1, SHORT, STALL, HOLD, TORN, MISDIRECT, KILL, LIE, KILL_MIDWAY };

#define RULES 16
#define STEPS 8
#define TEXT 192

struct rule {
    int32_t active, action;
    uint32_t operations;
    int32_t error;
    int64_t skip, times, argument, from, to, seen, hits;
    char path[TEXT], program[TEXT];
};
struct step { int64_t since, offset; };
struct control {
    char magic[8];
    int64_t sequence;
    int64_t steps;
    struct step step[STEPS];
    char boot[TEXT], traced[TEXT], trace[TEXT], graveyard[TEXT];
    struct rule rule[RULES];
};

static struct control *control;
static char program[4096];
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int trace_file = -1;
static pid_t trace_pid;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int64_t now_ns(void) {
    struct timespec at;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void pause_ms(long ms) {
    struct timespec span = {ms / 1000, (ms % 1000) * 1000000L};
    syscall(SYS_nanosleep, &span, NULL);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("VMR_FAULTS");
    if (!path) return;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *page = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (page == MAP_FAILED) return;
    fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    long length = fd < 0 ? 0 : syscall(SYS_read, fd, program, sizeof program - 1);
    if (fd >= 0) syscall(SYS_close, fd);
    for (long at = 0; at + 1 < length; at++)
        if (!program[at]) program[at] = ' ';
    control = page;
}

static const char *path_of(int fd, char *room) {
    char link[48];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, room, 4095);
    room[length < 0 ? 0 : length] = 0;
    return room;
}

/* --- rules ------------------------------------------------------------------------------------------------------- */

static int any_rule(uint32_t operation) {
    if (!control) return 0;
    for (int n = 0; n < RULES; n++)
        if (__atomic_load_n(&control->rule[n].active, __ATOMIC_ACQUIRE) && control->rule[n].operations & operation)
            return 1;
    return 0;
}

/* The rule that this call falls under; stalls and kills are done here. */
static struct rule *judge(uint32_t operation, const char *path, int64_t offset, int64_t length) {
    struct rule *found = NULL;
    if (!control) return NULL;
    for (int n = 0; n < RULES && !found; n++) {
        struct rule *rule = &control->rule[n];
        if (!__atomic_load_n(&rule->active, __ATOMIC_ACQUIRE) || !(rule->operations & operation)) continue;
        if (fnmatch(rule->path, path, 0) || !strstr(program, rule->program)) continue;
        if (rule->to && (offset >= rule->to || offset + length <= rule->from)) continue;
        int64_t count = __sync_add_and_fetch(&rule->seen, 1);
        if (count <= rule->skip || (rule->times >= 0 && count > rule->skip + rule->times)) continue;
        __sync_add_and_fetch(&rule->hits, 1);
        found = rule;
    }
    if (!found) return NULL;
    if (found->action == STALL) pause_ms(found->argument);
    if (found->action == HOLD)
        while (__atomic_load_n(&found->active, __ATOMIC_ACQUIRE)) pause_ms(2);
    if (found->action == KILL) {
        syscall(SYS_kill, getpid(), SIGKILL);
        pause();
    }
    return found->action == STALL || found->action == HOLD ? NULL : found;
}

static struct rule *judge_file(uint32_t operation, int fd, int64_t offset, int64_t length) {
    char room[4096];
    if (!any_rule(operation)) return NULL;
    return judge(operation, path_of(fd, room), offset, length);
}

#define FAIL_IF_RULED(rule) \
    if (rule && rule->action == ERROR) { errno = rule->error; return -1; }

/* --- the trace --------------------------------------------------------------------------------------------------- */

struct record { int64_t sequence, inode, offset, before, after; int32_t kind, path_length, old_length, new_length; };

static int traced(const char *path) {
    size_t length = control ? strlen(control->traced) : 0;
    if (!length || strncmp(path, control->traced, length)) return 0;
    size_t size = strlen(path);
    return !(size > 4 && (!strcmp(path + size - 4, "-shm") || !strcmp(path + size - 4, ".out")));
}

static void put(int kind, int64_t inode, int64_t offset, int64_t before, int64_t after, const char *path,
                const void *old, int32_t old_length, const void *new, int32_t new_length) {
    if (trace_file < 0 || trace_pid != getpid()) {
        char name[TEXT + 32];
        trace_pid = getpid();
        snprintf(name, sizeof name, "%s.%d", control->trace, trace_pid);
        trace_file = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        /* Out of the way of whoever counts descriptors, or expects small ones. */
        int high = syscall(SYS_fcntl, trace_file, F_DUPFD_CLOEXEC, 500);
        syscall(SYS_close, trace_file);
        trace_file = high;
    }
    struct record record = {__sync_add_and_fetch(&control->sequence, 1), inode, offset, before, after, kind,
                            (int32_t)strlen(path), old_length, new_length};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path_length}, {(void *)old, old_length},
                            {(void *)new, new_length}};
    syscall(SYS_writev, trace_file, parts, 4);
}

/* What lies in a range now; the caller frees it. */
static void *content(int fd, int64_t offset, int64_t length, int32_t *found) {
    char *room = malloc(length ? length : 1), link[48];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    /* The descriptor may be for writing only. */
    int reader = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    long done = syscall(SYS_pread64, reader, room, length, offset);
    syscall(SYS_close, reader);
    *found = done < 0 ? 0 : done;
    return room;
}

static int64_t size_of(int fd, int64_t *inode) {
    struct stat state;
    if (syscall(SYS_fstat, fd, &state)) return -1;
    *inode = state.st_ino;
    return S_ISREG(state.st_mode) ? state.st_size : -1;
}

struct change { int on; int64_t inode, before, offset; void *old; int32_t old_length; char path[4096]; };

static void enter(struct change *change, int fd, int64_t offset, int64_t length) {
    change->on = control && control->traced[0] && traced(path_of(fd, change->path));
    if (!change->on) return;
    pthread_mutex_lock(&order);
    change->before = size_of(fd, &change->inode);
    change->offset = offset;
    change->old = content(fd, offset, length, &change->old_length);
}

static void leave(struct change *change, int fd, int64_t length) {
    int saved = errno;
    if (!change->on) return;
    int32_t found = 0;
    int64_t after = size_of(fd, &change->inode);
    void *new = length > 0 ? content(fd, change->offset, length, &found) : NULL;
    if (change->before >= 0)
        put('W', change->inode, change->offset, change->before, after, change->path, change->old, change->old_length,
            new, found);
    free(change->old);
    free(new);
    pthread_mutex_unlock(&order);
    errno = saved;
}

/* --- reading and writing ----------------------------------------------------------------------------------------- */

static ssize_t spoil(struct rule *rule, const struct iovec *parts, int count, ssize_t done) {
    if (!rule || rule->action != TORN) return done;
    ssize_t at = 0;
    for (int n = 0; n < count; n++)
        for (size_t byte = 0; byte < parts[n].iov_len && at < done; byte++, at++)
            if (at >= rule->argument) ((char *)parts[n].iov_base)[byte] ^= 0x5a;
    return done;
}

static ssize_t read_some(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    int64_t length = 0;
    for (int n = 0; n < count; n++) length += parts[n].iov_len;
    struct rule *rule = judge_file(READ, fd, offset, length);
    FAIL_IF_RULED(rule);
    if (rule && rule->action == MISDIRECT) offset += rule->argument;
    if (rule && rule->action == SHORT) {
        struct iovec part = parts[0];
        if (part.iov_len > (size_t)rule->argument) part.iov_len = rule->argument;
        return syscall(SYS_preadv2, fd, &part, 1, offset, 0, flags);
    }
    return spoil(rule, parts, count, syscall(SYS_preadv2, fd, parts, count, offset, 0, flags));
}

static ssize_t write_some(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    int64_t length = 0;
    ssize_t done;
    struct change change;
    for (int n = 0; n < count; n++) length += parts[n].iov_len;
    struct rule *rule = judge_file(WRITE, fd, offset, length);
    FAIL_IF_RULED(rule);
    if (rule && rule->action == LIE) return length;
    if (rule && rule->action == MISDIRECT) offset += rule->argument;
    enter(&change, fd, offset, length);
    if (rule && (rule->action == SHORT || rule->action == KILL_MIDWAY)) {
        struct iovec part = parts[0];
        if (part.iov_len > (size_t)rule->argument) part.iov_len = rule->argument;
        done = syscall(SYS_pwritev2, fd, &part, 1, offset, 0, flags);
    } else {
        done = syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
    }
    leave(&change, fd, done);
    if (rule && rule->action == KILL_MIDWAY) syscall(SYS_kill, getpid(), SIGKILL);
    return done;
}

ssize_t pread64(int fd, void *data, size_t length, off64_t offset) {
    struct iovec part = {data, length};
    return read_some(fd, &part, 1, offset, 0);
}
ssize_t pread(int fd, void *data, size_t length, off_t offset) { return pread64(fd, data, length, offset); }
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return read_some(fd, parts, count, offset, flags);
}
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return read_some(fd, parts, count, offset, flags);
}
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return read_some(fd, parts, count, offset, 0);
}
ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset) {
    return read_some(fd, parts, count, offset, 0);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    struct iovec part = {(void *)data, length};
    return write_some(fd, &part, 1, offset, 0);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return pwrite64(fd, data, length, offset); }
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return write_some(fd, parts, count, offset, flags);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return write_some(fd, parts, count, offset, flags);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return write_some(fd, parts, count, offset, 0);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return write_some(fd, parts, count, offset, 0);
}

/* --- durability and space ---------------------------------------------------------------------------------------- */

static int sync_file(int fd, long call) {
    struct stat state;
    char room[4096];
    int folder = !syscall(SYS_fstat, fd, &state) && S_ISDIR(state.st_mode);
    /* What is written from here on is not covered, so the place in the trace is taken before. */
    int64_t upto = control ? __atomic_load_n(&control->sequence, __ATOMIC_SEQ_CST) : 0;
    struct rule *rule = judge_file(folder ? SYNC_FOLDER : SYNC, fd, 0, 0);
    FAIL_IF_RULED(rule);
    if (rule && rule->action == LIE) return 0;
    int result = syscall(call, fd);
    if (!result && control && control->traced[0] && traced(path_of(fd, room))) {
        pthread_mutex_lock(&order);
        put(folder ? 'D' : 'S', state.st_ino, upto, 0, 0, room, NULL, 0, NULL, 0);
        pthread_mutex_unlock(&order);
    }
    return result;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    struct rule *rule = judge_file(SYNC, fd, offset, length);
    FAIL_IF_RULED(rule);
    return syscall(SYS_sync_file_range, fd, offset, length, flags);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    struct change change;
    struct rule *rule = judge_file(mode & ~FALLOC_FL_KEEP_SIZE ? PUNCH : ALLOCATE, fd, offset, length);
    FAIL_IF_RULED(rule);
    int punches = mode & ~FALLOC_FL_KEEP_SIZE;
    enter(&change, fd, offset, punches ? length : 0);
    int result = syscall(SYS_fallocate, fd, mode, offset, length);
    leave(&change, fd, result || !punches ? 0 : length);
    return result;
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }

int ftruncate64(int fd, off64_t size) {
    struct change change;
    struct rule *rule = judge_file(TRUNCATE, fd, size, 0);
    FAIL_IF_RULED(rule);
    int64_t inode = 0, before = size_of(fd, &inode);
    enter(&change, fd, size, before > size ? before - size : 0);
    int result = syscall(SYS_ftruncate, fd, size);
    leave(&change, fd, 0);
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int statvfs64(const char *path, struct statvfs64 *found) {
    REAL(statvfs64);
    struct rule *rule = judge(STATFS, path, 0, 0);
    FAIL_IF_RULED(rule);
    int result = real(path, found);
    if (rule && rule->action == SHORT && !result) found->f_bavail = found->f_bfree = rule->argument / found->f_frsize;
    return result;
}
int fstatvfs64(int fd, struct statvfs64 *found) {
    REAL(fstatvfs64);
    struct rule *rule = judge_file(STATFS, fd, 0, 0);
    FAIL_IF_RULED(rule);
    int result = real(fd, found);
    if (rule && rule->action == SHORT && !result) found->f_bavail = found->f_bfree = rule->argument / found->f_frsize;
    return result;
}

/* --- names ------------------------------------------------------------------------------------------------------- */

static int open_file(int folder, const char *path, int flags, int mode) {
    struct stat state;
    if (control && control->boot[0] && !strcmp(path, "/proc/sys/kernel/random/boot_id")) path = control->boot;
    struct rule *rule = path[0] == '/' ? judge(flags & O_CREAT ? CREATE : OPEN, path, 0, 0) : NULL;
    FAIL_IF_RULED(rule);
    int makes = flags & O_CREAT && traced(path) && syscall(SYS_newfstatat, AT_FDCWD, path, &state, 0);
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && makes) {
        syscall(SYS_fstat, fd, &state);
        pthread_mutex_lock(&order);
        put('C', state.st_ino, 0, 0, 0, path, NULL, 0, NULL, 0);
        pthread_mutex_unlock(&order);
    }
    return fd;
}

#define MODE(flags) \
    int mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }

int open64(const char *path, int flags, ...) { MODE(flags); return open_file(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { MODE(flags); return open_file(AT_FDCWD, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags); return open_file(folder, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags); return open_file(folder, path, flags, mode); }

/* Keeps a file that is about to lose its name, so that a power cut can bring the name back. */
static int64_t bury(const char *path) {
    struct stat state;
    char grave[TEXT + 32];
    if (syscall(SYS_newfstatat, AT_FDCWD, path, &state, AT_SYMLINK_NOFOLLOW) || !S_ISREG(state.st_mode)) return 0;
    snprintf(grave, sizeof grave, "%s/%lu", control->graveyard, (unsigned long)state.st_ino);
    syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, grave, 0);
    return state.st_ino;
}

int rename(const char *source, const char *target) {
    struct stat state;
    struct rule *rule = judge(RENAME, source, 0, 0);
    FAIL_IF_RULED(rule);
    int on = traced(source);
    if (!on) return syscall(SYS_renameat, AT_FDCWD, source, AT_FDCWD, target);
    pthread_mutex_lock(&order);
    int64_t replaced = bury(target);
    syscall(SYS_newfstatat, AT_FDCWD, source, &state, 0);
    int result = syscall(SYS_renameat, AT_FDCWD, source, AT_FDCWD, target);
    int saved = errno;
    if (!result && S_ISREG(state.st_mode))
        put('R', state.st_ino, replaced, 0, 0, source, target, strlen(target), NULL, 0);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

static int remove_name(int folder, const char *path, int flags) {
    struct rule *rule = judge(UNLINK, path, 0, 0);
    FAIL_IF_RULED(rule);
    int on = folder == AT_FDCWD && traced(path);
    if (!on) return syscall(SYS_unlinkat, folder, path, flags);
    pthread_mutex_lock(&order);
    int64_t inode = bury(path);
    int result = syscall(SYS_unlinkat, folder, path, flags);
    int saved = errno;
    if (!result && inode) put('U', inode, 0, 0, 0, path, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}
int unlink(const char *path) { return remove_name(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return remove_name(folder, path, flags); }

/* --- the clock --------------------------------------------------------------------------------------------------- */

/* The clock of the test at a moment of the real one: kernel times of files go through here as well. */
static int64_t shifted(int64_t real) {
    int64_t offset = 0;
    for (int64_t n = 0; control && n < control->steps; n++)
        if (real >= control->step[n].since) offset = control->step[n].offset;
    return real + offset;
}

static void shift(struct timespec *at) {
    int64_t now = shifted(at->tv_sec * 1000000000LL + at->tv_nsec);
    at->tv_sec = now / 1000000000LL;
    at->tv_nsec = now % 1000000000LL;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    /* Through the C library's own way into the kernel, which needs no system call. */
    REAL(clock_gettime);
    int result = real(which, at);
    if (!result && control && control->steps && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) shift(at);
    return result;
}
int gettimeofday(struct timeval *at, void *zone) {
    (void)zone;
    int64_t now = shifted(now_ns());
    at->tv_sec = now / 1000000000LL;
    at->tv_usec = now % 1000000000LL / 1000;
    return 0;
}
time_t time(time_t *at) {
    time_t now = shifted(now_ns()) / 1000000000LL;
    if (at) *at = now;
    return now;
}
static int shift_state(int result, struct stat *state) {
    if (!result && control && control->steps) {
        shift(&state->st_mtim);
        shift(&state->st_ctim);
        shift(&state->st_atim);
    }
    return result;
}
int fstat(int fd, struct stat *state) { return shift_state(syscall(SYS_fstat, fd, state), state); }
int fstat64(int fd, struct stat64 *state) {
    return shift_state(syscall(SYS_fstat, fd, state), (struct stat *)state);
}

/* --- what else may run out --------------------------------------------------------------------------------------- */

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    struct rule *rule = judge(ACCEPT, "", 0, 0);
    FAIL_IF_RULED(rule);
    return syscall(SYS_accept4, fd, address, length, flags);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    REAL(pthread_create);
    struct rule *rule = judge(THREAD, "", 0, 0);
    if (rule && rule->action == ERROR) return rule->error;
    return real(thread, attributes, run, argument);
}
