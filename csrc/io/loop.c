#include "io/loop.h"

#include "base/event.h"
#include "base/hub.h"
#include "io/bus.h"

#include <poll.h>
#include <stdlib.h>

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

    /* FM_OWNED_BY_THREAD(io); the list changes with `lock` held, because
     * fork handlers walk it. */
    struct fm_bus *buses; /* shared; linked by next */
    struct pollfd *polls; /* owned: the waker's, then two per bus */
    size_t polls_cap;
} loop = {
    .life = { PTHREAD_MUTEX_INITIALIZER },
    .lock = { PTHREAD_MUTEX_INITIALIZER },
    .waker = { .fd = -1 },
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

static void *
run(void *arg)
{
    (void)arg;
    for (;;) {
        bool stop = admit_arriving();
        int64_t now = fm_now();
        fm_deadline next = step_all(now);
        size_t count;

        if (stop && loop.buses == NULL)
            break;
        count = gather_polls(now, &next);
        /* Out of memory: serve nobody for a moment, but live. */
        if (poll(loop.polls, count,
                count == 0 ? 100 : fm_deadline_poll_ms(next, fm_now()))
            < 0)
            continue; /* EINTR cannot be: signals are blocked */
        if (count == 0)
            continue;
        fm_waker_drain(&loop.waker);
        count = 1;
        for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
            fm_bus_after_sleep(each, &loop.polls[count]);
            count += FM_BUS_CONNS;
        }
    }
    free(loop.polls);
    loop.polls = NULL;
    loop.polls_cap = 0;
    return NULL;
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
}

static void
fork_parent(void) FM_NO_LOCK_CHECK
{
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_conn_fork_parent(&each->publishing);
        fm_conn_fork_parent(&each->consuming);
    }
    fm_mutex_unlock(&loop.lock);
}

static void
fork_child(void)
{
    for (fm_bus *each = loop.buses; each != NULL; each = each->next) {
        fm_conn_abandon_in_child(&each->publishing);
        fm_conn_abandon_in_child(&each->consuming);
    }
    fm_waker_fini(&loop.waker);
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
    if (status == FM_OK)
        status = fm_thread_start(&loop.thread, "fastmsg-io", run, NULL);
    if (status == FM_OK)
        loop.running = true;
    else
        fm_waker_fini(&loop.waker);
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
