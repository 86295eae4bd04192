#include "base/sync.h"

#include "base/hub.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STACK_BYTES = 1024 * 1024 };

/* --- time --- */

int64_t
fm_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * FM_NS_PER_S + now.tv_nsec;
}

fm_deadline
fm_deadline_in(int64_t ns)
{
    return fm_deadline_after(fm_now(), ns);
}

int
fm_deadline_poll_ms(fm_deadline deadline, int64_t now)
{
    int64_t ms;

    if (deadline == FM_NEVER)
        return -1;
    if (deadline <= now)
        return 0;
    ms = (deadline - now - 1) / FM_NS_PER_MS + 1; /* cannot overflow */
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* --- mutex --- */

void
fm_mutex_init(fm_mutex *mutex)
{
    int rc = pthread_mutex_init(&mutex->handle, NULL);

    assert(rc == 0); /* a default mutex needs no resource on Linux */
    (void)rc;
}

void
fm_mutex_fini(fm_mutex *mutex)
{
    pthread_mutex_destroy(&mutex->handle);
}

void
fm_mutex_lock(fm_mutex *mutex) FM_NO_LOCK_CHECK
{
    pthread_mutex_lock(&mutex->handle);
}

void
fm_mutex_unlock(fm_mutex *mutex) FM_NO_LOCK_CHECK
{
    pthread_mutex_unlock(&mutex->handle);
}

/* --- sleeping and waking --- */

static _Thread_local unsigned woken_by_me;

unsigned
fm_wake_count(void)
{
    return woken_by_me;
}

void
fm_wake_all(fm_wake *wake)
{
    long woken;

    /* Both sequentially consistent: either the sleeper sees the new word, or
     * we see the sleeper. */
    atomic_fetch_add(&wake->word, 1);
    if (atomic_load(&wake->sleepers) > 0) {
        woken = syscall(
            SYS_futex, &wake->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        if (woken > 0)
            woken_by_me += (unsigned)woken;
    }
    if (atomic_load(&wake->watches) != NULL)
        fm_watch_fire(wake);
}

fm_status
fm_wake_wait(fm_wake *wake, unsigned seen, fm_deadline deadline)
{
    struct timespec until;
    fm_status status = FM_OK;
    long rc = 0;

    if (deadline != FM_NEVER) {
        until.tv_sec = (time_t)(deadline / FM_NS_PER_S);
        until.tv_nsec = (long)(deadline % FM_NS_PER_S);
    }
    atomic_fetch_add(&wake->sleepers, 1);
    if (atomic_load(&wake->word) == seen)
        rc = syscall(SYS_futex, &wake->word, FUTEX_WAIT_BITSET_PRIVATE, seen,
            deadline == FM_NEVER ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
    if (rc != 0 && errno == ETIMEDOUT)
        status = FM_TIMED_OUT;
    else if (rc != 0 && errno == EINTR)
        status = FM_INTERRUPTED;
    atomic_fetch_sub(&wake->sleepers, 1);
    return status;
}

/* --- polling --- */

void
fm_signals_hold(fm_signals *before)
{
    static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
    sigset_t all;

    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_BLOCK, &all, &before->set);
}

void
fm_signals_release(const fm_signals *before)
{
    pthread_sigmask(SIG_SETMASK, &before->set, NULL);
}

bool
fm_poll(struct pollfd *polls, size_t count, fm_deadline deadline,
    const fm_signals *mask)
{
    int64_t left = deadline == FM_NEVER ? 0 : deadline - fm_now();
    struct timespec until = { 0 };

    if (left > 0) {
        until.tv_sec = (time_t)(left / FM_NS_PER_S);
        until.tv_nsec = (long)(left % FM_NS_PER_S);
    }
    return ppoll(polls, count, deadline == FM_NEVER ? NULL : &until,
               mask == NULL ? NULL : &mask->set)
        >= 0;
}

/* --- waking a poll loop --- */

fm_status
fm_waker_init(fm_waker *waker)
{
    atomic_init(&waker->signaled, false);
    waker->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return waker->fd < 0 ? FM_SYSTEM : FM_OK;
}

void
fm_waker_fini(fm_waker *waker)
{
    if (waker->fd >= 0)
        close(waker->fd);
    waker->fd = -1;
}

void
fm_waker_signal(fm_waker *waker)
{
    uint64_t one = 1;

    if (waker->fd < 0 || atomic_exchange(&waker->signaled, true))
        return;
    /* Can only fail when the counter is full, and then it is readable. */
    if (write(waker->fd, &one, sizeof(one)) < 0)
        return;
}

void
fm_waker_drain(fm_waker *waker)
{
    uint64_t count;

    if (!atomic_load(&waker->signaled))
        return;
    /* Nothing to read: who set the mark is just about to write. It stays set,
     * or that write would make the descriptor readable for ever. */
    if (read(waker->fd, &count, sizeof(count)) < 0)
        return;
    /* After the read: a signal in between is lost as a wake-up, but its
     * sender's work is there to be seen when the loop looks, below. */
    atomic_exchange(&waker->signaled, false);
}

/* --- threads --- */

fm_status
fm_thread_start(
    fm_thread *thread, const char *name, void *(*body)(void *), void *arg)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int rc;

    if (pthread_attr_init(&attr) != 0)
        return FM_NO_MEMORY;
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    /* The new thread inherits the mask: Python's signals stay Python's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread->handle, &attr, body, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0)
        return FM_SYSTEM;
    pthread_setname_np(thread->handle, name);
    return FM_OK;
}

void
fm_thread_join(fm_thread *thread)
{
    pthread_join(thread->handle, NULL);
}

void
fm_thread_detach(fm_thread *thread)
{
    pthread_detach(thread->handle);
}

/* --- forks --- */

static atomic_uint generation;

static void
count_fork(void)
{
    atomic_fetch_add(&generation, 1);
}

static void
install_count(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

unsigned
fm_fork_generation(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, install_count);
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

fm_status
fm_fork_watch(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    (void)fm_fork_generation(); /* its handler runs before ours in the child */
    return pthread_atfork(prepare, parent, child) == 0 ? FM_OK : FM_NO_MEMORY;
}
