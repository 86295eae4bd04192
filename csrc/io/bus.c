#include "io/bus.h"

#include "base/event.h"
#include "io/field.h"
#include "io/loop.h"

#include <stdlib.h>

/* How often confirms are read that nobody waits for. */
#define LOOK_NS (2 * FM_NS_PER_MS)
/* How soon to try again what there was no memory for. */
#define STARVED_NS (100 * FM_NS_PER_MS)

/* Channel numbers of the consuming connection; consumers have those above. */
enum { VERIFIER_ID = 1, RESCUER_ID = 2 };

/* --- the publishing connection --- */

static bool
publishing_wanted(fm_conn *conn)
{
    fm_bus *bus = conn->owner;

    return !bus->ending && fm_publisher_is_wanted(&bus->publisher);
}

static bool
publishing_hurry(fm_conn *conn, int64_t last_failure)
{
    fm_bus *bus = conn->owner;

    return fm_publisher_is_impatient(&bus->publisher, last_failure);
}

static void
publishing_up(fm_conn *conn, int64_t now)
{
    fm_bus *bus = conn->owner;

    fm_publisher_up(&bus->publisher, now);
}

static void
publishing_down(fm_conn *conn, const fm_error *why)
{
    fm_bus *bus = conn->owner;

    fm_publisher_down(&bus->publisher, why);
}

static void
publishing_failed(fm_conn *conn, const fm_error *why)
{
    fm_bus *bus = conn->owner;

    fm_publisher_round_failed(&bus->publisher, why);
}

static void
publishing_blocked(fm_conn *conn, bool blocked, fm_slice reason)
{
    fm_bus *bus = conn->owner;

    fm_publisher_set_blocked(&bus->publisher, blocked, reason);
}

static fm_channel *
publishing_channel(fm_conn *conn, uint16_t id)
{
    fm_bus *bus = conn->owner;

    return fm_publisher_channel(&bus->publisher, id);
}

static const fm_conn_ops publishing_ops = {
    .wanted = publishing_wanted,
    .hurry = publishing_hurry,
    .up = publishing_up,
    .down = publishing_down,
    .round_failed = publishing_failed,
    .blocked = publishing_blocked,
    .channel = publishing_channel,
};

/* --- the consuming connection --- */

static bool
consuming_wanted(fm_conn *conn)
{
    fm_bus *bus = conn->owner;

    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        if (each->state != FM_CONSUMER_CLOSED
            && each->state != FM_CONSUMER_FAILED)
            return true;
    /* An empty connection stays for the next consumer, while it lasts. */
    return !bus->ending && conn->state == FM_CONN_OPEN;
}

static bool
consuming_hurry(fm_conn *conn, int64_t last_failure)
{
    fm_bus *bus = conn->owner;

    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        if (!each->established && each->joined > last_failure)
            return true;
    return false;
}

static void
consuming_up(fm_conn *conn, int64_t now)
{
    (void)now;
    fm_waker_signal(conn->output.waker); /* their steps were before ours */
}

static void
consuming_down(fm_conn *conn, const fm_error *why)
{
    fm_bus *bus = conn->owner;

    (void)why;
    fm_verifier_down(&bus->verifier);
    fm_rescuer_down(&bus->rescuer);
    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        fm_consumer_down(each);
}

static void
consuming_failed(fm_conn *conn, const fm_error *why)
{
    fm_bus *bus = conn->owner;

    if (why->status != FM_REFUSED)
        return;
    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        fm_consumer_refused(each, why);
}

static void
consuming_blocked(fm_conn *conn, bool blocked, fm_slice reason)
{
    /* The broker sends it to connections that publish; ours does not. */
    (void)conn;
    (void)blocked;
    (void)reason;
}

static fm_channel *
consuming_channel(fm_conn *conn, uint16_t id)
{
    fm_bus *bus = conn->owner;

    if (id == VERIFIER_ID)
        return &bus->verifier.channel;
    if (id == RESCUER_ID)
        return &bus->rescuer.channel;
    if (id >= bus->by_id_len || bus->by_id[id] == NULL)
        return NULL;
    return &bus->by_id[id]->channel;
}

static const fm_conn_ops consuming_ops = {
    .wanted = consuming_wanted,
    .hurry = consuming_hurry,
    .up = consuming_up,
    .down = consuming_down,
    .round_failed = consuming_failed,
    .blocked = consuming_blocked,
    .channel = consuming_channel,
};

/* --- life --- */

static fm_status
bus_new(const char *key, fm_conn_config *config, fm_bus **out)
{
    fm_bus *bus = calloc(1, sizeof(*bus));
    fm_waker *waker = fm_loop_waker();

    if (bus == NULL)
        return FM_NO_MEMORY;
    bus->key = strdup(key);
    if (bus->key == NULL) {
        free(bus);
        return FM_NO_MEMORY;
    }
    atomic_init(&bus->refs, 1);
    bus->generation = fm_fork_generation();
    bus->users = 1;
    atomic_init(&bus->attached, false);
    atomic_init(&bus->gone, false);
    atomic_init(&bus->told_of_json, false);
    fm_wake_init(&bus->wake);
    fm_mutex_init(&bus->lock);
    fm_reply_table_init(&bus->replies);
    fm_conn_init(
        &bus->publishing, &publishing_ops, bus, "publish", config, waker);
    fm_conn_init(
        &bus->consuming, &consuming_ops, bus, "consume", config, waker);
    bus->publishing.twin = &bus->consuming;
    bus->consuming.twin = &bus->publishing;
    fm_publisher_init(&bus->publisher, &bus->publishing.output);
    fm_verifier_init(&bus->verifier, &bus->consuming.output, VERIFIER_ID);
    fm_rescuer_init(&bus->rescuer, &bus->consuming.output, RESCUER_ID);
    *out = bus;
    return FM_OK;
}

fm_bus *
fm_bus_ref(fm_bus *bus)
{
    atomic_fetch_add_explicit(&bus->refs, 1, memory_order_relaxed);
    return bus;
}

void
fm_bus_unref(fm_bus *bus)
{
    if (bus == NULL
        || atomic_fetch_sub_explicit(&bus->refs, 1, memory_order_acq_rel) > 1)
        return;
    fm_publisher_fini(&bus->publisher);
    fm_verifier_fini(&bus->verifier);
    fm_rescuer_fini(&bus->rescuer);
    fm_conn_fini(&bus->publishing);
    fm_conn_fini(&bus->consuming);
    fm_reply_table_fini(&bus->replies);
    fm_mutex_fini(&bus->lock);
    free(bus->by_id);
    free(bus->key);
    free(bus);
}

/* Buses that transports have open. The lock is a leaf. */
static struct {
    fm_mutex lock;
    fm_bus *open FM_GUARDED_BY(lock); /* borrowed: users keep them */
} registry = { .lock = { PTHREAD_MUTEX_INITIALIZER } };

/* In a forked child the parent's buses are not ours, and the lock may be held
 * by a thread that we lack. */
static void
reset_registry_in_child(void)
{
    fm_mutex_init(&registry.lock);
    registry.open = NULL;
}

static void
watch_forks(void)
{
    /* Without the handler only a fork in mid-open would hurt. */
    (void)!fm_fork_watch(NULL, NULL, reset_registry_in_child);
}

fm_status
fm_bus_open(const char *key, fm_conn_config *config, fm_bus **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    fm_status status = FM_OK;
    fm_bus *bus;

    pthread_once(&once, watch_forks);
    fm_mutex_lock(&registry.lock);
    for (bus = registry.open; bus != NULL; bus = bus->next_open)
        if (strcmp(bus->key, key) == 0)
            break;
    if (bus != NULL) {
        bus->users++;
        fm_bus_ref(bus);
    } else {
        status = bus_new(key, config, &bus);
        if (status == FM_OK) {
            bus->next_open = registry.open;
            registry.open = bus;
        }
    }
    fm_mutex_unlock(&registry.lock);
    if (status == FM_OK)
        *out = bus;
    return status;
}

void
fm_bus_close(fm_bus *bus, fm_deadline deadline)
{
    bool last;

    fm_mutex_lock(&registry.lock);
    last = --bus->users == 0;
    if (last) {
        fm_bus **link = &registry.open;

        while (*link != bus)
            link = &(*link)->next_open;
        *link = bus->next_open;
    }
    fm_mutex_unlock(&registry.lock);
    if (last) {
        bool attached;

        fm_mutex_lock(&bus->lock);
        bus->closing = true;
        attached = atomic_load(&bus->attached);
        /* With the lock held: once it is seen the I/O thread may end. */
        if (attached)
            fm_waker_signal(fm_loop_waker());
        fm_mutex_unlock(&bus->lock);
        if (attached) {
            while (!atomic_load(&bus->gone)) {
                unsigned seen = fm_wake_read(&bus->wake);

                if (!atomic_load(&bus->gone)
                    && fm_wake_wait(&bus->wake, seen, deadline) == FM_TIMED_OUT)
                    break;
            }
            fm_loop_try_end();
        } else {
            fm_publisher_close(&bus->publisher);
        }
    }
    fm_bus_unref(bus);
}

/* --- any thread --- */

fm_status
fm_bus_set_attached(fm_bus *bus)
{
    fm_status status = FM_CLOSED;

    fm_mutex_lock(&bus->lock);
    if (!bus->closing) {
        atomic_store_explicit(&bus->attached, true, memory_order_release);
        status = FM_OK;
    }
    fm_mutex_unlock(&bus->lock);
    return status;
}

/* The first use: from here on the I/O thread serves it. */
static fm_status
attach(fm_bus *bus)
{
    fm_status status;

    if (FM_LIKELY(atomic_load_explicit(&bus->attached, memory_order_acquire)))
        return FM_OK;
    status = fm_loop_attach(bus);
    return status;
}

fm_status
fm_bus_submit(fm_bus *bus, fm_message *message)
{
    bool is_call = message->msg_id[0] != '\0';
    fm_status status = attach(bus);

    if (status == FM_OK && is_call)
        status = fm_reply_expect(&bus->replies, message);
    if (status != FM_OK)
        return status;
    status = fm_publisher_submit(&bus->publisher, message);
    if (status != FM_OK && is_call)
        fm_reply_forget(&bus->replies, message);
    return status;
}

void
fm_bus_forget(fm_bus *bus, fm_message *message)
{
    if (message->msg_id[0] != '\0')
        fm_reply_forget(&bus->replies, message);
    fm_publisher_cancel(&bus->publisher, message);
}

fm_status
fm_bus_wait_confirm(fm_bus *bus, fm_message *message, int64_t timeout_ns)
{
    for (;;) {
        unsigned seen = fm_wake_read(&message->wake);
        int64_t since;
        fm_status status;

        if (fm_message_status(message) != FM_AGAIN)
            return FM_OK;
        since = fm_publisher_pending_since(&bus->publisher, message);
        status = fm_loop_wait(&message->wake, seen,
            since == FM_NEVER ? fm_deadline_in(timeout_ns)
                              : fm_deadline_after(since, timeout_ns),
            FM_ERRAND_CALLER);
        if (status == FM_INTERRUPTED)
            return status;
        if (status != FM_TIMED_OUT)
            continue;
        since = fm_publisher_pending_since(&bus->publisher, message);
        if (since != FM_NEVER && fm_now() - since >= timeout_ns)
            return FM_TIMED_OUT;
    }
}

fm_status
fm_bus_wait_reply(
    fm_bus *bus, fm_message *call, fm_deadline deadline, fm_reply **out)
{
    *out = NULL;
    for (;;) {
        unsigned seen = fm_wake_read(&call->wake);
        fm_status ended = fm_message_status(call), status;

        *out = fm_reply_try_take(&bus->replies, call);
        if (*out != NULL || ended != FM_AGAIN)
            return FM_OK;
        status = fm_loop_wait(&call->wake, seen, deadline, FM_ERRAND_CALLER);
        if (status != FM_OK)
            return status;
    }
}

void
fm_bus_linger(fm_bus *bus, fm_message *call, fm_deadline deadline)
{
    fm_status status = FM_OK;

    while (status == FM_OK) {
        unsigned seen = fm_wake_read(&call->wake);

        if (fm_message_status(call) != FM_AGAIN
            || fm_reply_is_there(&bus->replies, call))
            break;
        status = fm_loop_wait(&call->wake, seen, deadline, FM_ERRAND_CALLER);
    }
}

fm_status
fm_bus_add_consumer(fm_bus *bus, fm_consumer *consumer)
{
    fm_status status = attach(bus);

    if (status != FM_OK)
        return status;
    fm_consumer_set_served(consumer, true);
    fm_mutex_lock(&bus->lock);
    if (bus->closing) {
        status = FM_CLOSED;
    } else {
        consumer->next = bus->joining;
        bus->joining = fm_consumer_ref(consumer);
        fm_waker_signal(fm_loop_waker());
    }
    fm_mutex_unlock(&bus->lock);
    if (status != FM_OK)
        fm_consumer_set_served(consumer, false);
    return status;
}

/* --- members (I/O thread) --- */

/* The lowest free channel number; 0: out of memory or numbers. */
static uint16_t
free_id(fm_bus *bus)
{
    size_t id = RESCUER_ID + 1, len;
    fm_consumer **by_id;

    while (id < bus->by_id_len && bus->by_id[id] != NULL)
        id++;
    if (id < bus->by_id_len)
        return (uint16_t)id;
    len = bus->by_id_len == 0 ? 16 : bus->by_id_len * 2;
    if (len > UINT16_MAX)
        return 0;
    by_id = realloc(bus->by_id, len * sizeof(*by_id));
    if (by_id == NULL)
        return 0;
    memset(by_id + bus->by_id_len, 0, (len - bus->by_id_len) * sizeof(*by_id));
    bus->by_id = by_id;
    bus->by_id_len = len;
    return (uint16_t)id;
}

static void
admit(fm_bus *bus, fm_consumer *consumer)
{
    static const fm_error no_channel = { .status = FM_NO_MEMORY,
        .text = "no memory for one more consumer, or no channel number" };
    uint16_t id = free_id(bus);

    consumer->channel.id = id;
    consumer->joined = fm_now();
    if (id == 0)
        fm_consumer_fail(consumer, &no_channel);
    else
        bus->by_id[id] = consumer;
}

static void
admit_joining(fm_bus *bus)
{
    size_t count = 0;

    fm_mutex_lock(&bus->lock);
    while (bus->joining != NULL) {
        fm_consumer *consumer = bus->joining;

        bus->joining = consumer->next;
        consumer->next = bus->members;
        bus->members = consumer;
        count++;
    }
    fm_mutex_unlock(&bus->lock);
    for (fm_consumer *each = bus->members; count > 0; count--) {
        admit(bus, each);
        each = each->next;
    }
}

static void
count_consumed(const fm_consumer *consumer, fm_consumed *to)
{
    to->delivered += fm_counter_get(&consumer->delivered);
    to->duplicates += fm_counter_get(&consumer->duplicates);
    to->rejected += fm_counter_get(&consumer->rejected);
}

static const fm_error transport_closed = { .status = FM_CLOSED,
    .text = "the transport was closed" };

static void
dismiss_closed(fm_bus *bus)
{
    fm_consumer **link = &bus->members;

    while (*link != NULL) {
        fm_consumer *consumer = *link;

        if (consumer->state != FM_CONSUMER_CLOSED) {
            link = &consumer->next;
            continue;
        }
        fm_mutex_lock(&bus->lock);
        *link = consumer->next;
        count_consumed(consumer, &bus->retired);
        fm_mutex_unlock(&bus->lock);
        fm_verifier_forget(&bus->verifier, consumer);
        fm_rescuer_forget(&bus->rescuer, &consumer->channel);
        if (consumer->channel.id != 0)
            bus->by_id[consumer->channel.id] = NULL;
        /* The bus may live on for others, but whose replies came here will
         * get none: a transport was cleaned up with calls in flight. */
        fm_reply_fail_all(&bus->replies, consumer->gate, &transport_closed);
        fm_consumer_unref(consumer);
    }
}

void
fm_bus_notice_json(fm_bus *bus, const char *queue)
{
    char shown[256]; /* a peer's words */

    if (atomic_exchange(&bus->told_of_json, true))
        return;
    fm_field_print(shown, sizeof(shown),
        (fm_slice){ (const uint8_t *)queue, strlen(queue) });
    fm_event_post(FM_WARNING,
        "envelope is msgpack, but the peer with queue '%s' speaks JSON alone, "
        "as the stock driver does: it cannot read what is sent from here. Set "
        "envelope to auto until every peer reads both",
        shown);
}

/* --- looking (any thread) --- */

fm_status
fm_bus_list(fm_bus ***out, size_t *count)
{
    fm_status status = FM_OK;
    fm_bus **buses = NULL;
    size_t len = 0;

    fm_mutex_lock(&registry.lock);
    for (fm_bus *each = registry.open; each != NULL; each = each->next_open)
        len++;
    if (len > 0) {
        buses = malloc(len * sizeof(*buses));
        if (buses == NULL)
            status = FM_NO_MEMORY;
    }
    if (buses != NULL) {
        size_t at = len; /* the newest is the first one there */

        for (fm_bus *each = registry.open; each != NULL; each = each->next_open)
            buses[--at] = fm_bus_ref(each);
    }
    fm_mutex_unlock(&registry.lock);
    if (status == FM_OK) {
        *out = buses;
        *count = len;
    }
    return status;
}

/* Calls `visit` for each consumer: those that join first. */
static void
visit_locked(fm_bus *bus, void (*visit)(fm_consumer *each, void *arg),
    void *arg) FM_REQUIRES(bus->lock)
{
    for (fm_consumer *each = bus->joining; each != NULL; each = each->next)
        visit(each, arg);
    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        visit(each, arg);
}

static void
visit_to_count(fm_consumer *each, void *arg)
{
    size_t *count = arg;

    (void)each;
    ++*count;
}

static void
visit_to_keep(fm_consumer *each, void *arg)
{
    fm_consumer ***to = arg;

    *--*to = fm_consumer_ref(each);
}

static void
visit_to_sum(fm_consumer *each, void *arg)
{
    count_consumed(each, arg);
}

fm_status
fm_bus_list_consumers(fm_bus *bus, fm_consumer ***out, size_t *count)
{
    fm_consumer **consumers = NULL;
    fm_status status = FM_OK;
    size_t len = 0;

    fm_mutex_lock(&bus->lock);
    visit_locked(bus, visit_to_count, &len);
    if (len > 0) {
        consumers = malloc(len * sizeof(*consumers));
        if (consumers == NULL)
            status = FM_NO_MEMORY;
    }
    if (consumers != NULL) {
        fm_consumer **end = consumers + len;

        visit_locked(bus, visit_to_keep, &end);
    }
    fm_mutex_unlock(&bus->lock);
    if (status == FM_OK) {
        *out = consumers;
        *count = len;
    }
    return status;
}

void
fm_bus_consumed_get(fm_bus *bus, fm_consumed *out)
{
    fm_mutex_lock(&bus->lock);
    *out = bus->retired;
    visit_locked(bus, visit_to_sum, out);
    fm_mutex_unlock(&bus->lock);
}

/* --- the I/O thread --- */

/* Everybody who waits is told; the connections say goodbye. */
static void
begin_end(fm_bus *bus)
{
    bus->ending = true;
    fm_publisher_close(&bus->publisher);
    fm_reply_fail_all(&bus->replies, NULL, &transport_closed);
    for (fm_consumer *each = bus->members; each != NULL; each = each->next)
        if (each->state != FM_CONSUMER_CLOSED)
            fm_consumer_abandon(each);
}

/* A consumer found that this node does not have what it needs. */
static void
leave_host(fm_bus *bus, int64_t now)
{
    static const fm_error why = { .status = FM_DISCONNECTED,
        .text = "that node has no replica of a stream" };
    bool leaves = false;

    for (fm_consumer *each = bus->members; each != NULL; each = each->next) {
        leaves |= each->leaves_host;
        each->leaves_host = false;
    }
    if (leaves && !bus->ending)
        (void)!fm_conn_leave_host(&bus->consuming, now, &why);
}

/* Consumers that wait for a queue of a node that is down. */
static fm_deadline
rescue(fm_bus *bus, int64_t now)
{
    fm_deadline next = FM_NEVER, each;

    if (bus->consuming.state != FM_CONN_OPEN)
        return FM_NEVER;
    for (fm_consumer *member = bus->members; member != NULL;
         member = member->next) {
        each = fm_rescuer_watch(
            &bus->rescuer, &member->channel, member->topology, now);
        next = each < next ? each : next;
    }
    each = fm_rescuer_step(&bus->rescuer, now);
    return each < next ? each : next;
}

fm_deadline
fm_bus_step(fm_bus *bus, int64_t now)
{
    fm_deadline next = FM_NEVER, each;
    bool closing, starved;

    fm_mutex_lock(&bus->lock);
    closing = bus->closing;
    fm_mutex_unlock(&bus->lock);
    dismiss_closed(bus); /* first: their channels may be the last ones */
    admit_joining(bus);
    if (closing && !bus->ending)
        begin_end(bus);
    leave_host(bus, now);
    for (fm_consumer *member = bus->members; member != NULL;
         member = member->next) {
        each =
            fm_consumer_step(member, now, bus->consuming.state == FM_CONN_OPEN);
        next = each < next ? each : next;
    }
    dismiss_closed(bus);
    each = rescue(bus, now);
    next = each < next ? each : next;
    each = fm_verifier_step(&bus->verifier, bus->members, now,
        bus->consuming.state == FM_CONN_OPEN);
    next = each < next ? each : next;
    each = fm_conn_step(&bus->consuming, now);
    next = each < next ? each : next;
    /* After the consumers: what waits at their gates may go at once. */
    each = fm_conn_step(&bus->publishing, now);
    next = each < next ? each : next;
    each = fm_publisher_step(&bus->publisher, now);
    next = each < next ? each : next;
    starved = fm_output_was_starved(&bus->publishing.output);
    if (fm_output_was_starved(&bus->consuming.output) || starved)
        next = now + STARVED_NS < next ? now + STARVED_NS : next;
    return next;
}

fm_deadline
fm_bus_before_sleep(fm_bus *bus, int64_t now, struct pollfd polls[FM_BUS_CONNS])
{
    fm_deadline until = FM_NEVER;

    fm_conn_before_sleep(&bus->publishing, &polls[0]);
    fm_conn_before_sleep(&bus->consuming, &polls[1]);
    if (bus->publishing.state != FM_CONN_OPEN
        || !fm_publisher_try_doze(&bus->publisher, now, &until))
        return FM_NEVER;
    polls[0].events &= (short)~POLLIN;
    return until;
}

void
fm_bus_after_sleep(fm_bus *bus, int64_t now, struct pollfd polls[FM_BUS_CONNS])
{
    if (fm_publisher_end_doze(&bus->publisher)
        && now - bus->looked_at >= LOOK_NS) {
        polls[0].revents |= POLLIN;
        bus->looked_at = now;
    }
    fm_conn_after_sleep(&bus->publishing, &polls[0]);
    fm_conn_after_sleep(&bus->consuming, &polls[1]);
}

bool
fm_bus_is_over(const fm_bus *bus)
{
    return bus->ending && bus->members == NULL
        && fm_conn_is_gone(&bus->publishing)
        && fm_conn_is_gone(&bus->consuming);
}
