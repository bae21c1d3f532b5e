/* What libfaketime 0.9.10, Debian 12's, leaves open; loaded before it. src/chaos/clock.rs says why. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* C11's condition variables, which librdkafka waits on with the wall clock, are those of POSIX
   in glibc; only the latter know of the wrong clock. */
int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
  int result =
      pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, until);
  if (result == 0) return thrd_success;
  return result == ETIMEDOUT ? thrd_timedout : thrd_error;
}

/* Python's time.sleep waits for a moment of the monotonic clock, which libfaketime would shift. */
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left) {
  return syscall(SYS_clock_nanosleep, clock, flags, time, left) == 0 ? 0 : errno;
}
