/* base/sync.h: deadlines, locks, sleeping and waking, threads, forks. */
#include "base/sync.h"

#include "check.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

enum { THREADS = 4, ROUNDS = 20 * 1000 };

static void
start(fm_thread *thread, void *(*body)(void *), void *arg)
{
    CHECK_INT(fm_thread_start(thread, "fm-test", body, arg), FM_OK);
}

/* --- time --- */

static void
the_clock_does_not_go_back(void)
{
    int64_t before = fm_now();

    for (int i = 0; i < 1000; i++) {
        int64_t now = fm_now();

        CHECK(now >= before);
        before = now;
    }
    CHECK(before > 0);
}

static void
a_deadline_is_so_much_later(void)
{
    int64_t before = fm_now();
    fm_deadline deadline = fm_deadline_in(5 * FM_NS_PER_S);
    int64_t after = fm_now();

    CHECK(deadline >= before + 5 * FM_NS_PER_S);
    CHECK(deadline <= after + 5 * FM_NS_PER_S);
}

static void
a_negative_time_is_now_and_an_endless_one_never(void)
{
    int64_t before = fm_now();
    fm_deadline deadline = fm_deadline_in(-1);

    CHECK(deadline >= before && deadline <= fm_now());
    CHECK_INT(fm_deadline_in(INT64_MAX), FM_NEVER);
    CHECK_INT(fm_deadline_in(INT64_MAX - 1), FM_NEVER);
}

static void
poll_gets_milliseconds_rounded_up(void)
{
    CHECK_INT(fm_deadline_poll_ms(FM_NEVER, 0), -1);
    CHECK_INT(fm_deadline_poll_ms(100, 100), 0);
    CHECK_INT(fm_deadline_poll_ms(100, 200), 0);
    CHECK_INT(fm_deadline_poll_ms(101, 100), 1);
    CHECK_INT(fm_deadline_poll_ms(100 + FM_NS_PER_MS, 100), 1);
    CHECK_INT(fm_deadline_poll_ms(101 + FM_NS_PER_MS, 100), 2);
    CHECK_INT(fm_deadline_poll_ms(FM_NEVER - 1, 0), INT32_MAX);
}

/* --- mutex --- */

static struct {
    fm_mutex lock;
    long value FM_GUARDED_BY(lock);
} counter;

static void *
count(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        fm_mutex_lock(&counter.lock);
        counter.value++;
        fm_mutex_unlock(&counter.lock);
    }
    return arg;
}

static void
a_lock_lets_one_in(void)
{
    fm_thread threads[THREADS];

    fm_mutex_init(&counter.lock);
    for (int i = 0; i < THREADS; i++)
        start(&threads[i], count, NULL);
    for (int i = 0; i < THREADS; i++)
        fm_thread_join(&threads[i]);
    CHECK_INT(counter.value, THREADS * ROUNDS);
    fm_mutex_fini(&counter.lock);
}

/* --- wake --- */

static void
a_word_that_changed_is_not_slept_on(void)
{
    fm_wake wake;
    unsigned seen;

    fm_wake_init(&wake);
    seen = fm_wake_read(&wake);
    fm_wake_all(&wake);
    CHECK_INT(fm_wake_wait(&wake, seen, FM_NEVER), FM_OK);
}

static void
sleep_ends_at_the_deadline(void)
{
    fm_wake wake;
    int64_t before = fm_now();
    fm_status status;

    fm_wake_init(&wake);
    do {
        status = fm_wake_wait(
            &wake, fm_wake_read(&wake), before + 20 * FM_NS_PER_MS);
    } while (status == FM_OK);
    CHECK_INT(status, FM_TIMED_OUT);
    CHECK(fm_now() - before >= 20 * FM_NS_PER_MS);
}

static void
a_deadline_that_passed_is_no_sleep(void)
{
    fm_wake wake;

    fm_wake_init(&wake);
    CHECK_INT(fm_wake_wait(&wake, fm_wake_read(&wake), fm_now()), FM_TIMED_OUT);
    CHECK_INT(fm_wake_wait(&wake, fm_wake_read(&wake), 0), FM_TIMED_OUT);
}

/* A turn is passed round: each waits until the number is its own. */
static struct {
    fm_wake wake;
    fm_mutex lock;
    int turn FM_GUARDED_BY(lock);
} ring;

enum { LAPS = 2000 };

static int
turn_get(void)
{
    int turn;

    fm_mutex_lock(&ring.lock);
    turn = ring.turn;
    fm_mutex_unlock(&ring.lock);
    return turn;
}

static void *
pass_on(void *arg)
{
    int self = *(int *)arg;

    for (int lap = 0; lap < LAPS; lap++) {
        for (;;) {
            unsigned seen = fm_wake_read(&ring.wake);

            if (turn_get() % THREADS == self)
                break;
            CHECK_INT(fm_wake_wait(&ring.wake, seen, FM_NEVER), FM_OK);
        }
        fm_mutex_lock(&ring.lock);
        ring.turn++;
        fm_mutex_unlock(&ring.lock);
        fm_wake_all(&ring.wake);
    }
    return NULL;
}

static void
no_wake_up_is_lost(void)
{
    fm_thread threads[THREADS];
    int numbers[THREADS];

    fm_wake_init(&ring.wake);
    fm_mutex_init(&ring.lock);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        start(&threads[i], pass_on, &numbers[i]);
    }
    for (int i = 0; i < THREADS; i++)
        fm_thread_join(&threads[i]);
    CHECK_INT(ring.turn, THREADS * LAPS);
    CHECK_INT(atomic_load(&ring.wake.sleepers), 0);
    fm_mutex_fini(&ring.lock);
}

static void
do_nothing(int number)
{
    (void)number;
}

static void
a_signal_ends_the_sleep(void)
{
    struct sigaction action = { .sa_handler = do_nothing };
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL,
        .sigev_signo = SIGALRM };
    /* Again and again, or one that comes too early would be the only one. */
    struct itimerspec often = { .it_value.tv_nsec = 5 * 1000 * 1000,
        .it_interval.tv_nsec = 5 * 1000 * 1000 };
    timer_t timer;
    fm_wake wake;
    fm_status status;

    CHECK_INT(sigaction(SIGALRM, &action, NULL), 0);
    CHECK_INT(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    CHECK_INT(timer_settime(timer, 0, &often, NULL), 0);
    fm_wake_init(&wake);
    do {
        status = fm_wake_wait(
            &wake, fm_wake_read(&wake), fm_deadline_in(60 * FM_NS_PER_S));
    } while (status == FM_OK);
    CHECK_INT(status, FM_INTERRUPTED);
    CHECK_INT(timer_delete(timer), 0);
}

/* --- waker --- */

static bool
is_readable(const fm_waker *waker)
{
    struct pollfd look = { .fd = waker->fd, .events = POLLIN };

    return poll(&look, 1, 0) == 1;
}

static void
a_signalled_waker_is_readable_until_drained(void)
{
    fm_waker waker;

    CHECK_INT(fm_waker_init(&waker), FM_OK);
    CHECK(!is_readable(&waker));
    fm_waker_drain(&waker);
    CHECK(!is_readable(&waker));
    fm_waker_signal(&waker);
    fm_waker_signal(&waker);
    CHECK(is_readable(&waker));
    fm_waker_drain(&waker);
    CHECK(!is_readable(&waker));
    fm_waker_signal(&waker);
    CHECK(is_readable(&waker));
    fm_waker_fini(&waker);
    CHECK_INT(waker.fd, -1);
    fm_waker_fini(&waker);
}

static void
a_drain_before_the_write_does_not_lose_it(void)
{
    fm_waker waker;
    uint64_t one = 1;

    CHECK_INT(fm_waker_init(&waker), FM_OK);
    /* The two halves of fm_waker_signal(), with the loop in between. */
    atomic_store(&waker.signaled, true);
    fm_waker_drain(&waker);
    CHECK_INT(write(waker.fd, &one, sizeof(one)), sizeof(one));
    CHECK(is_readable(&waker));
    fm_waker_drain(&waker);
    CHECK(!is_readable(&waker));
    fm_waker_signal(&waker);
    CHECK(is_readable(&waker));
    fm_waker_fini(&waker);
}

static struct {
    fm_waker waker;
    atomic_int given;
} box;

static void *
give(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&box.given, 1);
        fm_waker_signal(&box.waker);
    }
    return arg;
}

static void
a_poll_loop_misses_no_signal(void)
{
    fm_thread threads[THREADS];
    struct pollfd look = { .events = POLLIN };

    CHECK_INT(fm_waker_init(&box.waker), FM_OK);
    look.fd = box.waker.fd;
    for (int i = 0; i < THREADS; i++)
        start(&threads[i], give, NULL);
    /* As the I/O thread does: drain first, then look what there is. A lost
     * signal leaves poll() to its limit. */
    while (atomic_load(&box.given) < THREADS * ROUNDS) {
        CHECK_INT(poll(&look, 1, 60 * 1000), 1);
        fm_waker_drain(&box.waker);
    }
    for (int i = 0; i < THREADS; i++)
        fm_thread_join(&threads[i]);
    fm_waker_fini(&box.waker);
}

/* --- threads --- */

static void *
look_around(void *arg)
{
    sigset_t *blocked = arg;
    char name[16];

    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, blocked), 0);
    /* The name is set by whoever starts the thread, so it may be late. */
    do {
        CHECK_INT(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
    } while (strcmp(name, "fm-test") != 0);
    return NULL;
}

static void
a_thread_has_its_name_and_no_signals(void)
{
    fm_thread thread;
    sigset_t in_thread, here;

    start(&thread, look_around, &in_thread);
    fm_thread_join(&thread);
    CHECK_INT(sigismember(&in_thread, SIGINT), 1);
    CHECK_INT(sigismember(&in_thread, SIGTERM), 1);
    CHECK_INT(sigismember(&in_thread, SIGCHLD), 1);
    CHECK_INT(pthread_sigmask(SIG_BLOCK, NULL, &here), 0);
    CHECK_INT(sigismember(&here, SIGINT), 0);
}

static void *
say_so(void *arg)
{
    fm_wake_all(arg);
    return NULL;
}

static void
a_detached_thread_runs(void)
{
    static fm_wake wake; /* the thread may be in it for longer than we are */
    fm_thread thread;

    fm_wake_init(&wake);
    start(&thread, say_so, &wake);
    fm_thread_detach(&thread);
    while (fm_wake_read(&wake) == 0)
        CHECK_INT(fm_wake_wait(&wake, 0, FM_NEVER), FM_OK);
}

/* --- forks --- */

static int prepared, in_parent, in_child;

static void
before_fork(void)
{
    prepared++;
}

static void
after_in_parent(void)
{
    in_parent++;
}

static void
after_in_child(void)
{
    in_child++;
}

/* Fork, run `check` in the child, and expect it to be true there. */
static void
in_a_child(bool (*check)(void))
{
    pid_t pid = fork();
    int status;

    CHECK(pid >= 0);
    if (pid == 0)
        _exit(check() ? 0 : 1);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
}

static unsigned before;

static bool
is_one_generation_on(void)
{
    return fm_fork_generation() == before + 1;
}

static bool
child_was_told(void)
{
    return prepared == 1 && in_parent == 0 && in_child == 1
        && is_one_generation_on();
}

static void
a_child_is_a_generation_on(void)
{
    before = fm_fork_generation();
    in_a_child(is_one_generation_on);
    CHECK_INT(fm_fork_generation(), before);
}

static void
forks_are_watched(void)
{
    CHECK_INT(
        fm_fork_watch(before_fork, after_in_parent, after_in_child), FM_OK);
    in_a_child(child_was_told);
    CHECK_INT(prepared, 1);
    CHECK_INT(in_parent, 1);
    CHECK_INT(in_child, 0);
}

int
main(void)
{
    RUN(the_clock_does_not_go_back);
    RUN(a_deadline_is_so_much_later);
    RUN(a_negative_time_is_now_and_an_endless_one_never);
    RUN(poll_gets_milliseconds_rounded_up);
    RUN(a_lock_lets_one_in);
    RUN(a_word_that_changed_is_not_slept_on);
    RUN(sleep_ends_at_the_deadline);
    RUN(a_deadline_that_passed_is_no_sleep);
    RUN(no_wake_up_is_lost);
    RUN(a_signal_ends_the_sleep);
    RUN(a_signalled_waker_is_readable_until_drained);
    RUN(a_drain_before_the_write_does_not_lose_it);
    RUN(a_poll_loop_misses_no_signal);
    RUN(a_thread_has_its_name_and_no_signals);
    RUN(a_detached_thread_runs);
    RUN(a_child_is_a_generation_on);
    RUN(forks_are_watched);
    return 0;
}
