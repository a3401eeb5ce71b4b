//go:build ignore

// Preloaded into redis-server, this adds an offset to its wall clock: the first of the two
// int64 in the file that REDISTEST_CLOCK names, in microseconds. The second becomes 1 to show
// that the preload worked. Monotonic clocks stay as they are. See clock.go; the line above
// keeps the go command from compiling this file.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int raw(clockid_t id, struct timespec *ts) { return syscall(SYS_clock_gettime, id, ts); }

// Jemalloc asks for the time before init runs, and dlsym may call jemalloc, so only init may
// look up libc's function. It does not enter the kernel: with raw alone, pipelined SETs run at
// half the speed.
static int (*real)(clockid_t, struct timespec *) = raw;

static int64_t unmoved[2];
static volatile int64_t *cell = unmoved;

__attribute__((constructor)) static void init(void) {
	void *libc = dlsym(RTLD_NEXT, "clock_gettime");
	if (libc) real = (int (*)(clockid_t, struct timespec *))libc;
	const char *file = getenv("REDISTEST_CLOCK");
	int fd = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
	void *p = mmap(NULL, sizeof unmoved, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) return;
	cell = p;
	cell[1] = 1;
}

int clock_gettime(clockid_t id, struct timespec *ts) {
	int failed = real(id, ts);
	if (failed || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
	int64_t offset = cell[0], us = offset % 1000000;
	if (us < 0) us += 1000000; // C rounds towards zero
	ts->tv_sec += (offset - us) / 1000000;
	ts->tv_nsec += us * 1000;
	if (ts->tv_nsec >= 1000000000) ts->tv_nsec -= 1000000000, ts->tv_sec++;
	return 0;
}

int gettimeofday(struct timeval *tv, void *zone) {
	struct timespec ts;
	if (clock_gettime(CLOCK_REALTIME, &ts)) return -1;
	tv->tv_sec = ts.tv_sec, tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t) {
	struct timespec ts;
	if (clock_gettime(CLOCK_REALTIME, &ts)) return -1;
	return t ? (*t = ts.tv_sec) : ts.tv_sec;
}
