#include "io/loop.h"

#include "base/event.h"
#include "base/hub.h"
#include "io/bus.h"
#include "io/lead.h"

#include <stdlib.h>
#include <unistd.h>

/* How long the main thread waits at a time. A signal that came on its way to
 * sleep, or that the kernel gave to another thread, does not wake it: so it
 * has to look in between whether there was one. */
#define SIGNAL_LOOK_NS (100 * FM_NS_PER_MS)

static struct {
    /* Held while the thread is started or joined, so it may be held for
     * long; taken before every other lock, never by the I/O thread. */
    fm_mutex life;
    bool running FM_GUARDED_BY(life);
    fm_thread thread FM_GUARDED_BY(life);

    fm_mutex lock; /* a leaf */
    struct fm_bus *arriving FM_GUARDED_BY(lock);
    size_t count FM_GUARDED_BY(lock); /* attached and not yet gone */
    bool stop FM_GUARDED_BY(lock);

    fm_waker waker; /* IMMUTABLE while running */
    fm_lead lead;

    /* FM_OWNED_BY_THREAD(io): the leader's. The list changes with `lock`
     * held, because fork handlers walk it. */
    struct fm_bus *buses; /* shared; linked by next */
    struct pollfd *polls; /* owned: the waker's, then two per bus */
    size_t polls_cap;
    size_t poll_count; /* what the next turn polls; 0: out of memory */
    int64_t now;       /* of the last turn */
    fm_deadline next;  /* of the next turn, at the latest */
    bool stopping;     /* `stop` was seen */
} loop = {
    .life = { PTHREAD_MUTEX_INITIALIZER },
    .lock = { PTHREAD_MUTEX_INITIALIZER },
    .waker = { .fd = -1 },
    .lead = FM_LEAD_INITIAL,
};

fm_waker *
fm_loop_waker(void)
{
    return &loop.waker;
}

/* --- the thread --- */

static bool
admit_arriving(void)
{
    struct fm_bus *arriving;
    bool stop;

    fm_mutex_lock(&loop.lock);
    arriving = loop.arriving;
    loop.arriving = NULL;
    while (arriving != NULL) {
        fm_bus *next = arriving->next;

        arriving->next = loop.buses;
        loop.buses = arriving;
        arriving = next;
    }
    stop = loop.stop;
    fm_mutex_unlock(&loop.lock);
    return stop;
}

/* Let go of the bus that *link points to. */
static void
dismiss(fm_bus **link)
{
    fm_bus *bus = *link;

    fm_mutex_lock(&loop.lock);
    *link = bus->next;
    loop.count--;
    fm_mutex_unlock(&loop.lock);
    atomic_store(&bus->gone, true);
    fm_wake_all(&bus->wake);
    fm_bus_unref(bus);
}

static fm_deadline
step_all(int64_t now)
{
    fm_bus **link = &loop.buses;
    fm_deadline next = FM_NEVER;

    while (*link != NULL) {
        fm_bus *bus = *link;
        fm_deadline each = fm_bus_step(bus, now);

        if (fm_bus_is_over(bus)) {
            dismiss(link);
            continue;
        }
        next = each < next ? each : next;
        link = &bus->next;
    }
    return next;
}

/* The waker's entry and two per bus; 0: out of memory. May bring *next, when
 * to wake up, nearer. */
static size_t
gather_polls(int64_t now, fm_deadline *next)
{
    size_t count = 1;

    for (fm_bus *each = loop.buses; each != NULL; each = each->next)
        count += FM_BUS_CONNS;
    if (count > loop.polls_cap) {
        struct pollfd *polls = realloc(loop.polls, count * 2 * sizeof(*polls));

        if (polls == NULL)
            return 0;
        loop.polls = polls;
        loop.polls_cap = count * 2;
    }
    loop.polls[0] = (struct pollfd){ .fd = loop.waker.fd, .events = POLLIN };
    count = 1;
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_deadline until = fm_bus_before_sleep(each, now, &loop.polls[count]);

        *next = until < *next ? until : *next;
        count += FM_BUS_CONNS;
    }
    return count;
}

/* Ready to poll: all steps are taken, the outputs know that nobody sends for
 * them. In between turns the loop is always so, whoever leads next. */
static void
prepare(void)
{
    if (admit_arriving())
        loop.stopping = true;
    loop.now = fm_now();
    loop.next = step_all(loop.now);
    loop.poll_count = gather_polls(loop.now, &loop.next);
}

/* Poll until there is something to do, or `deadline`; do it. `mask`: the
 * signals that end the poll; NULL: as they are. FM_INTERRUPTED: one came,
 * nothing was done. */
static fm_status
turn(fm_deadline deadline, const fm_signals *mask)
{
    fm_deadline until = loop.next < deadline ? loop.next : deadline;
    size_t count = 1;
    int64_t now;

    /* Out of memory: serve nobody for a moment, but live. */
    if (loop.poll_count == 0)
        until = fm_deadline_in(100 * FM_NS_PER_MS);
    if (!fm_poll(loop.polls, loop.poll_count, until, mask))
        return FM_INTERRUPTED;
    now = fm_now();
    if (loop.poll_count > 0) {
        fm_waker_drain(&loop.waker);
        for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
            fm_bus_after_sleep(each, now, &loop.polls[count]);
            count += FM_BUS_CONNS;
        }
    }
    prepare();
    return FM_OK;
}

/* Does the loop need its next turn at once, whoever leads? */
static bool
is_pressed(void)
{
    return loop.stopping || loop.next <= loop.now
        || atomic_load(&loop.waker.signaled);
}

/* After a turn that woke somebody, by a leader with time: are those who woke
 * the ones who are to lead? A listener comes back for it; so does a caller
 * who is the only one in the process to wait. Greenthreads cannot. */
static bool
should_leave(bool for_caller)
{
    fm_sleepers count = fm_lead_count(&loop.lead);

    if (is_pressed() || fm_watch_count() > 0
        || count.waiting[FM_ERRAND_CALLER] > 0)
        return false;
    if (count.woken[FM_ERRAND_CALLER] > 0)
        return for_caller && count.woken[FM_ERRAND_CALLER] == 1
            && count.waiting[FM_ERRAND_LISTENER] == 0
            && count.woken[FM_ERRAND_LISTENER] == 0;
    return count.woken[FM_ERRAND_LISTENER] > 0;
}

/* Callers may have left something to be sent that they did not push. */
static void
stand_by(void)
{
    fm_lead_stand_by(&loop.lead);
    prepare();
}

static void *
run(void *arg)
{
    (void)arg;
    prepare();
    while (!loop.stopping || loop.buses != NULL) {
        unsigned before = fm_wake_count();

        (void)!turn(FM_NEVER, NULL); /* its signals are blocked */
        if (fm_wake_count() != before && should_leave(true))
            stand_by();
    }
    fm_lead_end(&loop.lead);
    free(loop.polls);
    loop.polls = NULL;
    loop.polls_cap = 0;
    return NULL;
}

/* --- waiters who lead --- */

static atomic_bool main_handles_signals;

void
fm_loop_look_for_signals(void)
{
    atomic_store(&main_handles_signals, true);
}

/* Looked up once per thread, as it takes two system calls; and once more in
 * the child of a fork, whose main thread is the one that forked. */
static bool
is_main_thread(void)
{
    static _Thread_local unsigned known_in; /* the generation, from 1 on */
    static _Thread_local bool is_main;
    unsigned now = fm_fork_generation() + 1;

    if (known_in != now) {
        is_main = gettid() == getpid();
        known_in = now;
    }
    return is_main;
}

static bool
handles_signals(void)
{
    return atomic_load_explicit(&main_handles_signals, memory_order_relaxed)
        && is_main_thread();
}

/* FM_AGAIN: leave it to others, and sleep. */
static fm_status
take_turns(fm_wake *wake, unsigned seen, fm_deadline deadline, fm_errand errand)
{
    fm_status status = FM_OK;
    fm_signals before;

    /* A signal that comes while we work, and not while we poll, would be
     * noticed only when the wait is over. */
    fm_signals_hold(&before);
    while (status == FM_OK && fm_wake_read(wake) == seen) {
        unsigned woken = fm_wake_count();

        if (loop.stopping) {
            status = FM_AGAIN;
            break;
        }
        status = turn(deadline, &before);
        if (status == FM_OK && loop.now >= deadline)
            status = FM_TIMED_OUT;
        if (status == FM_OK && errand == FM_ERRAND_LISTENER
            && fm_wake_count() != woken && should_leave(false))
            status = FM_AGAIN;
    }
    fm_signals_release(&before);
    return status;
}

static fm_status
lead_until(fm_wake *wake, unsigned seen, fm_deadline deadline, fm_errand errand)
{
    fm_status status = take_turns(wake, seen, deadline, errand);
    bool urgent = is_pressed() || fm_watch_count() > 0;

    /* Asleep, or it would lead again before those who are to. */
    if (status == FM_AGAIN)
        return fm_lead_leave_and_wait(
            &loop.lead, errand, urgent, wake, seen, deadline);
    fm_lead_leave(&loop.lead, errand, urgent);
    return fm_wake_read(wake) != seen ? FM_OK : status;
}

fm_status
fm_loop_wait(
    fm_wake *wake, unsigned seen, fm_deadline deadline, fm_errand errand)
{
    fm_deadline look_at =
        handles_signals() ? fm_deadline_in(SIGNAL_LOOK_NS) : FM_NEVER;
    fm_deadline until = look_at < deadline ? look_at : deadline;
    fm_status status;

    if (fm_lead_try(&loop.lead))
        status = lead_until(wake, seen, until, errand);
    else
        status = fm_lead_wait(&loop.lead, errand, wake, seen, until);
    return status == FM_TIMED_OUT && until < deadline ? FM_INTERRUPTED : status;
}

/* --- forks --- */

static void
fork_prepare(void) FM_NO_LOCK_CHECK
{
    fm_mutex_lock(&loop.lock);
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_conn_fork_prepare(&each->publishing);
        fm_conn_fork_prepare(&each->consuming);
    }
    fm_socket_fork_prepare();
}

static void
fork_parent(void) FM_NO_LOCK_CHECK
{
    fm_socket_fork_parent();
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_conn_fork_parent(&each->publishing);
        fm_conn_fork_parent(&each->consuming);
    }
    fm_mutex_unlock(&loop.lock);
}

static void
fork_child(void)
{
    fm_socket_fork_child();
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_conn_abandon_in_child(&each->publishing);
        fm_conn_abandon_in_child(&each->consuming);
    }
    fm_waker_fini(&loop.waker);
    fm_lead_reset_in_child(&loop.lead); /* led by a thread of the parent */
    fm_mutex_init(&loop.life);
    fm_mutex_init(&loop.lock);
    loop.running = false;
    loop.arriving = NULL;
    loop.count = 0;
    loop.stop = false;
    loop.buses = NULL;
    loop.polls = NULL;
    loop.polls_cap = 0;
    fm_event_reset_in_child();
    fm_hub_reset_in_child();
}

static void
watch_forks(void)
{
    (void)!fm_fork_watch(fork_prepare, fork_parent, fork_child);
}

/* --- life --- */

static fm_status
start_locked(void) FM_REQUIRES(loop.life)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    fm_status status;

    if (loop.running)
        return FM_OK;
    pthread_once(&once, watch_forks);
    status = fm_waker_init(&loop.waker);
    loop.stopping = false;
    fm_lead_begin(&loop.lead); /* for the thread, which begins as leader */
    if (status == FM_OK)
        status = fm_thread_start(&loop.thread, "fastmsg-io", run, NULL);
    if (status == FM_OK) {
        loop.running = true;
    } else {
        fm_lead_end(&loop.lead);
        fm_waker_fini(&loop.waker);
    }
    return status;
}

/* End the thread if nobody needs it. */
static void
end_locked(void) FM_REQUIRES(loop.life)
{
    bool stop;

    if (!loop.running)
        return;
    fm_mutex_lock(&loop.lock);
    stop = loop.stop = loop.count == 0;
    fm_mutex_unlock(&loop.lock);
    if (!stop)
        return;
    fm_waker_signal(&loop.waker);
    fm_thread_join(&loop.thread);
    fm_waker_fini(&loop.waker);
    loop.stop = false; /* nobody else is there to look */
    loop.running = false;
}

fm_status
fm_loop_attach(fm_bus *bus)
{
    fm_status status;

    fm_mutex_lock(&loop.life);
    if (atomic_load(&bus->attached)) { /* by a thread that came before us */
        fm_mutex_unlock(&loop.life);
        return FM_OK;
    }
    status = start_locked();
    if (status == FM_OK)
        status = fm_bus_set_attached(bus);
    if (status == FM_OK) {
        fm_mutex_lock(&loop.lock);
        bus->next = loop.arriving;
        loop.arriving = fm_bus_ref(bus);
        loop.count++;
        fm_mutex_unlock(&loop.lock);
        fm_waker_signal(&loop.waker);
    } else {
        end_locked(); /* it may have been started for nothing */
    }
    fm_mutex_unlock(&loop.life);
    return status;
}

void
fm_loop_try_end(void)
{
    fm_mutex_lock(&loop.life);
    end_locked();
    fm_mutex_unlock(&loop.life);
}
