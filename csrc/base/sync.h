/* Mutex, thread, sleeping with a deadline, and being woken.
 *
 * The only file of the core that knows pthreads and futexes. All times are
 * CLOCK_MONOTONIC, in nanoseconds: setting the clock moves no deadline.
 */
#ifndef FM_BASE_SYNC_H
#define FM_BASE_SYNC_H

#include "base/attrs.h"
#include "base/status.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* A point in time; FM_NEVER is none. */
typedef int64_t fm_deadline;
#define FM_NEVER INT64_MAX
#define FM_NS_PER_MS INT64_C(1000000)
#define FM_NS_PER_S INT64_C(1000000000)

int64_t fm_now(void);

/* `ns` from now, FM_NEVER if that overflows; negative counts as 0. */
fm_deadline fm_deadline_in(int64_t ns);

/* The same from a given time. */
static inline fm_deadline
fm_deadline_after(int64_t time, int64_t ns)
{
    if (ns <= 0)
        return time;
    return ns >= FM_NEVER - time ? FM_NEVER : time + ns;
}

/* What is left, never below 0, for poll(): rounded up, -1 for FM_NEVER. */
int fm_deadline_poll_ms(fm_deadline deadline, int64_t now);

/* A leaf lock. Not recursive. */
typedef struct FM_CAPABILITY fm_mutex {
    pthread_mutex_t handle;
} fm_mutex;

void fm_mutex_init(fm_mutex *mutex);
void fm_mutex_fini(fm_mutex *mutex);
void fm_mutex_lock(fm_mutex *mutex) FM_ACQUIRES(*mutex);
void fm_mutex_unlock(fm_mutex *mutex) FM_RELEASES(*mutex);

/* A word to sleep on. Whoever changes what a sleeper waits for calls
 * fm_wake_all() after the change; the sleeper reads the word before it looks,
 * and sleeps only while the word is the one it read. */
typedef struct fm_wake {
    atomic_uint word;
    atomic_uint sleepers;
    _Atomic(struct fm_watch *) watches; /* see hub.h; NULL: nobody watches */
} fm_wake;

static inline void
fm_wake_init(fm_wake *wake)
{
    atomic_init(&wake->word, 0);
    atomic_init(&wake->sleepers, 0);
    atomic_init(&wake->watches, NULL);
}

static inline unsigned
fm_wake_read(fm_wake *wake)
{
    return atomic_load_explicit(&wake->word, memory_order_acquire);
}

/* Change the word and wake who sleeps on it or watches it. Never blocks; no
 * system call when nobody does. */
void fm_wake_all(fm_wake *wake);

/* How many sleepers the calling thread has woken so far. */
unsigned fm_wake_count(void);

/* Sleep until the word differs from `seen`: FM_OK. FM_TIMED_OUT at the
 * deadline, FM_INTERRUPTED by a signal. May return FM_OK too early. */
FM_MUST_CHECK fm_status fm_wake_wait(
    fm_wake *wake, unsigned seen, fm_deadline deadline);

/* A descriptor that a poll loop watches and that any thread can make
 * readable. Signals that come before the loop looks are one signal. */
typedef struct fm_waker {
    int fd;               /* an eventfd */
    atomic_bool signaled; /* spares the system call of the second signal */
} fm_waker;

FM_MUST_CHECK fm_status fm_waker_init(fm_waker *waker);
void fm_waker_fini(fm_waker *waker);
void fm_waker_signal(fm_waker *waker); /* never blocks */
void fm_waker_drain(fm_waker *waker);  /* before looking for what was asked */

/* Signals that were blocked in a thread before _hold, which blocks all but
 * those that tell of its own faults. */
typedef struct fm_signals {
    sigset_t set;
} fm_signals;

void fm_signals_hold(fm_signals *before);
void fm_signals_release(const fm_signals *before);

/* poll(), with a deadline. `mask`, unless NULL, is what is blocked meanwhile.
 * False: a signal ended it. */
struct pollfd;
FM_MUST_CHECK bool fm_poll(struct pollfd *polls, size_t count,
    fm_deadline deadline, const fm_signals *mask);

/* A native thread with all signals blocked and a 1 MiB stack. `name` (at most
 * 15 characters) is what ps and gdb show. */
typedef struct fm_thread {
    pthread_t handle;
} fm_thread;

FM_MUST_CHECK fm_status fm_thread_start(
    fm_thread *thread, const char *name, void *(*body)(void *), void *arg);
void fm_thread_join(fm_thread *thread);
void fm_thread_detach(fm_thread *thread);

/* Counts the forks that led to this process: an object that was made in an
 * earlier generation is the parent's and is only leaked. */
unsigned fm_fork_generation(void);

/* Have `prepare`, `parent`, `child` run around every fork() of the process,
 * C-level ones too. Cannot be undone; call it once. */
FM_MUST_CHECK fm_status fm_fork_watch(
    void (*prepare)(void), void (*parent)(void), void (*child)(void));

#endif
