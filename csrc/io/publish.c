#include "io/publish.h"

#include "base/event.h"
#include "io/gate.h"
#include "io/handshake.h"
#include "io/loop.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    RPC_WINDOW = 16384,  /* bounds the ring, not the speed */
    NOTIFY_WINDOW = 256, /* with more, an RPC beside it takes 50 ms */
    STRIKES = 3,         /* hard errors after which a message is blamed */
    NOT_FOUND = 404,     /* AMQP 0-9-1 section 1.8: reply codes */
    NO_ROUTE = 312,
};
#define DOZE_NS (5 * FM_NS_PER_MS)
#define EXPIRE_NS FM_NS_PER_S
/* Between two strikes. A broker that deletes an exchange may say 404 and let it
 * be declared again several times, until it is done with that. */
#define STRIKE_NS (100 * FM_NS_PER_MS)
#define REFUSAL_NS (200 * FM_NS_PER_MS)
#define RENEWAL_NS FM_NS_PER_S
#define NOTIFY_WINDOW_BYTES ((size_t)1024 * 1024)

_Static_assert((int)FM_RESCUER_ID <= (int)FM_CHANNELS_LEAST,
    "the login makes sure of these");

/* --- life --- */

static const fm_channel_ops lane_ops;
static const fm_declarer_ops declarer_ops;

void
fm_publisher_init(fm_publisher *publisher, fm_output *output)
{
    memset(publisher, 0, sizeof(*publisher));
    publisher->output = output;
    fm_handed_init(&publisher->handed);
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_publisher_lane *lane = &publisher->lanes[i];

        if (i == FM_LANE_NOTIFY)
            fm_lane_init(lane, NOTIFY_WINDOW, NOTIFY_WINDOW_BYTES);
        else
            fm_lane_init(lane, RPC_WINDOW, SIZE_MAX);
        fm_channel_init(&lane->channel, &lane_ops, publisher, output);
        lane->channel.id = (uint16_t)(i + 1);
    }
    fm_declarer_init(
        &publisher->declarer, &declarer_ops, publisher, output, FM_DECLARER_ID);
    fm_rescuer_init(&publisher->rescuer, output, FM_RESCUER_ID);
}

void
fm_publisher_fini(fm_publisher *publisher)
{
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_channel_fini(&publisher->lanes[i].channel);
        fm_lane_fini(&publisher->lanes[i]);
    }
    fm_declarer_fini(&publisher->declarer);
    fm_rescuer_fini(&publisher->rescuer);
}

fm_channel *
fm_publisher_channel(fm_publisher *publisher, uint16_t id)
{
    if (id == FM_DECLARER_ID)
        return &publisher->declarer.channel;
    if (id == FM_RESCUER_ID)
        return &publisher->rescuer.channel;
    if (id >= 1 && id <= FM_LANE_COUNT)
        return &publisher->lanes[id - 1].channel;
    return NULL;
}

/* --- sending --- */

/* A gate may open while a queue is walked: who stands behind others at the
 * same gate would then go before them. So it is looked at once in a walk. */
static bool
is_open_locked(fm_publisher *publisher, fm_gate *gate)
    FM_REQUIRES(publisher->output->lock)
{
    if (gate->walk != publisher->walk) {
        gate->walk = publisher->walk;
        gate->was_open = fm_gate_state_get(gate) == FM_GATE_OPEN;
    }
    return gate->was_open;
}

static bool
may_go_locked(fm_publisher *publisher, fm_message *message)
    FM_REQUIRES(publisher->output->lock)
{
    if (message->topology != NULL
        && !fm_declarer_has(&publisher->declarer, message->topology))
        return false;
    return message->gate == NULL || is_open_locked(publisher, message->gate);
}

static fm_status
send_one(fm_publisher *publisher, fm_publisher_lane *lane, fm_message *message)
{
    fm_output *output = publisher->output;
    fm_publication publication = {
        .exchange = { (const uint8_t *)message->exchange,
            strlen(message->exchange) },
        .routing_key = { (const uint8_t *)message->routing_key,
            strlen(message->routing_key) },
        .mandatory = message->mandatory,
        .expiration = { (const uint8_t *)message->expiration,
            strlen(message->expiration) },
        .compression = { (const uint8_t *)message->compression,
            strlen(message->compression) },
        .is_msgpack = message->is_msgpack,
        .reads_msgpack = message->reads_msgpack,
        .body = fm_buf_slice(&message->body),
    };
    fm_status status = fm_lane_reserve(lane);

    if (status == FM_OK)
        status = fm_frame_put_publish(
            &output->out, lane->channel.id, output->frame_max, &publication);
    if (status != FM_OK)
        return status;
    fm_lane_sent(lane, message);
    fm_counter_add(&publisher->counters.published, 1);
    return FM_OK;
}

static bool
has_room(fm_publisher *publisher, fm_publisher_lane *lane)
    FM_REQUIRES(publisher->output->lock)
{
    return !publisher->blocked && fm_lane_has_room(lane)
        && fm_output_pending_locked(publisher->output) < FM_OUTPUT_HIGH_WATER;
}

/* Send what can go. */
static void
pump_locked(fm_publisher *publisher, fm_publisher_lane *lane)
    FM_REQUIRES(publisher->output->lock)
{
    fm_message *message = lane->first_unsent;

    if (message == NULL || !lane->ready || lane->channel.generation == 0
        || lane->renew_by != FM_NEVER)
        return;
    publisher->walk++;
    while (message != NULL && has_room(publisher, lane)) {
        fm_message *next = message->next;

        if (may_go_locked(publisher, message)
            && send_one(publisher, lane, message) != FM_OK) {
            fm_output_starve_locked(publisher->output);
            return;
        }
        message = next;
    }
}

static void
pump_all_locked(fm_publisher *publisher) FM_REQUIRES(publisher->output->lock)
{
    for (int i = 0; i < FM_LANE_COUNT; i++)
        pump_locked(publisher, &publisher->lanes[i]);
}

/* --- any thread --- */

fm_status
fm_publisher_submit(fm_publisher *publisher, fm_message *message)
{
    fm_publisher_lane *lane = &publisher->lanes[message->lane];
    fm_status status = FM_OK;

    message->submitted = fm_now();
    fm_mutex_lock(&publisher->output->lock);
    if (publisher->closed)
        status = FM_CLOSED;
    else
        status =
            fm_handed_admit(&publisher->handed, message, message->submitted);
    if (status == FM_OK) {
        fm_lane_append(lane, fm_message_ref(message));
        if (lane->ready) {
            pump_locked(publisher, lane);
            fm_output_push_locked(publisher->output);
        }
        publisher->wanted = true;
        if (!fm_message_is_awaited(message))
            publisher->last_unawaited = message->submitted;
        else if (publisher->dozing) /* its confirm is not being watched for */
            fm_waker_signal(publisher->output->waker);
        /* Left behind for something that only the I/O thread can do: to
         * connect, to open the lane, to wait for room. */
        if (message->place == FM_PLACE_UNSENT)
            fm_waker_signal(publisher->output->waker);
    }
    fm_mutex_unlock(&publisher->output->lock);
    return status;
}

void
fm_publisher_cancel(fm_publisher *publisher, fm_message *message)
{
    fm_publisher_lane *lane = &publisher->lanes[message->lane];
    bool mine = false;

    fm_mutex_lock(&publisher->output->lock);
    if (message->place == FM_PLACE_UNSENT) {
        fm_lane_remove(lane, message);
        mine = true;
    } else if (message->place != FM_PLACE_CALLER) {
        message->abandoned = true;
    }
    fm_mutex_unlock(&publisher->output->lock);
    if (mine)
        fm_message_unref(message);
}

fm_status
fm_publisher_wait_space(fm_publisher *publisher, fm_deadline deadline)
{
    for (;;) {
        unsigned seen = fm_wake_read(&publisher->handed.space);
        bool full;
        fm_status status;

        fm_mutex_lock(&publisher->output->lock);
        full = fm_handed_is_full(&publisher->handed) && !publisher->closed;
        fm_mutex_unlock(&publisher->output->lock);
        if (!full)
            return FM_OK;
        status = fm_loop_wait(
            &publisher->handed.space, seen, deadline, FM_ERRAND_CALLER);
        if (status != FM_OK)
            return status;
    }
}

fm_status
fm_publisher_wait_handed(fm_publisher *publisher, fm_deadline deadline)
{
    for (;;) {
        unsigned seen = fm_wake_read(&publisher->handed.space);
        bool pending;
        fm_status status;

        fm_mutex_lock(&publisher->output->lock);
        pending = publisher->handed.count > 0 && !publisher->closed;
        if (pending && publisher->dozing)
            fm_waker_signal(publisher->output->waker);
        fm_mutex_unlock(&publisher->output->lock);
        if (!pending)
            return FM_OK;
        status = fm_loop_wait(
            &publisher->handed.space, seen, deadline, FM_ERRAND_CALLER);
        if (status != FM_OK)
            return status;
    }
}

int64_t
fm_publisher_pending_since(fm_publisher *publisher, fm_message *message)
{
    int64_t since;

    fm_mutex_lock(&publisher->output->lock);
    since = publisher->up_since == 0 ? FM_NEVER : publisher->up_since;
    fm_mutex_unlock(&publisher->output->lock);
    return since > message->submitted ? since : message->submitted;
}

void
fm_publisher_explain(
    fm_publisher *publisher, fm_message *message, fm_error *error)
{
    const char *text;
    fm_error trouble = { .status = FM_OK }, cause;

    fm_mutex_lock(&publisher->output->lock);
    if (publisher->up_since == 0) {
        trouble = publisher->trouble;
        text = "not connected to the broker";
    } else if (message->place == FM_PLACE_UNSENT && publisher->blocked)
        text = "the broker blocks publishers (memory or disk alarm)";
    else if (message->place == FM_PLACE_UNSENT && message->gate != NULL
        && fm_gate_state_get(message->gate) != FM_GATE_OPEN)
        text = "the reply queue was not ready";
    else if (message->place != FM_PLACE_CALLER && message->pause_ns > 0)
        text = "the broker did not take it (basic.nack), again and again";
    else if (message->place == FM_PLACE_UNSENT)
        text = "could not be sent yet";
    else if (message->place == FM_PLACE_SENT)
        text = "sent, but the broker did not confirm";
    else
        text = "no reply";
    fm_mutex_unlock(&publisher->output->lock);
    (void)fm_error_set(&cause, FM_TIMED_OUT, trouble.code, "%s%s%s", text,
        trouble.status == FM_OK ? "" : ": ",
        trouble.status == FM_OK ? "" : trouble.text);
    fm_message_describe(message, &cause, error);
}

void
fm_publisher_stats_get(fm_publisher *publisher, fm_publisher_stats *out)
{
    const fm_publisher_counters *counters = &publisher->counters;
    int64_t since;

    *out = (fm_publisher_stats){
        .published = fm_counter_get(&counters->published),
        .confirmed = fm_counter_get(&counters->confirmed),
        .nacked = fm_counter_get(&counters->nacked),
        .returned = fm_counter_get(&counters->returned),
        .resent = fm_counter_get(&counters->resent),
        .failed = fm_counter_get(&counters->failed),
    };
    fm_mutex_lock(&publisher->output->lock);
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        out->in_flight += publisher->lanes[i].in_flight;
        out->unsent += publisher->lanes[i].unsent;
    }
    /* Together, or an alarm that ends just now would count twice. */
    since = atomic_load(&counters->blocked_since);
    out->blocked_ns = (int64_t)fm_counter_get(&counters->blocked_ns)
        + (since == 0 ? 0 : fm_now() - since);
    out->parked = publisher->handed.parked_count;
    fm_mutex_unlock(&publisher->output->lock);
}

/* --- confirms and returns (I/O thread) --- */

/* What the confirms of one frame settle, by outcome. */
typedef struct outcomes {
    fm_settled confirmed;
    fm_settled nacked;
    fm_settled returned;
    fm_settled dropped; /* abandoned: nobody is told */
} outcomes;

/* A nack may be over in a moment: a quorum queue that has lost its leader
 * with a node refuses whoever is new to it until there is another one. A queue
 * that is full may be so for good: whoever waits gives up at his deadline. */
static bool
bears_nack(fm_message *message)
{
    return message->retry == FM_RETRY_FOREVER
        || ++message->losses <= message->retry;
}

/* RabbitMQ 3.10 looks for a quorum queue's leader once for each channel, with
 * its first message, and nacks all until that node answers: if it died just
 * then, until it is back. So a channel that has been refusing for a while is
 * closed and opened anew, once what else is in flight there is settled. */
static void
note_nack(fm_publisher_lane *lane, int64_t now)
{
    if (lane->refuses_since == 0)
        lane->refuses_since = now;
    else if (now - lane->refuses_since >= REFUSAL_NS
        && now - lane->renewed >= RENEWAL_NS && lane->renew_by == FM_NEVER)
        lane->renew_by = now + RENEWAL_NS;
}

static void
settle_one(fm_publisher *publisher, fm_publisher_lane *lane, uint64_t tag,
    bool nack, int64_t now, outcomes *out)
{
    fm_message *message = fm_lane_take(lane, tag);

    if (message == NULL)
        return;
    if (nack) {
        fm_counter_add(&publisher->counters.nacked, 1);
        note_nack(lane, now);
    } else {
        fm_counter_add(&publisher->counters.confirmed, 1);
    }
    if (!message->abandoned
        && (nack ? bears_nack(message)
                 : message->returned && message->handed_over)
        && fm_handed_try_park(&publisher->handed, message, now))
        return;
    if (message->abandoned) {
        fm_settled_add(&out->dropped, message);
    } else if (nack) {
        fm_settled_add(&out->nacked, message);
    } else if (message->returned) {
        fm_handed_remember_gone(&publisher->handed, message, now);
        fm_settled_add(&out->returned, message);
    } else {
        fm_settled_add(&out->confirmed, message);
    }
}

/* These are done with here; what becomes of them comes without the lock. */
static void
leave_locked(fm_publisher *publisher, const fm_settled *failed,
    const fm_settled *dropped) FM_REQUIRES(publisher->output->lock)
{
    fm_handed_leave(&publisher->handed, failed);
    fm_handed_leave(&publisher->handed, dropped);
}

static fm_publisher_lane *
lane_of(fm_publisher *publisher, const fm_channel *channel)
{
    return &publisher->lanes[channel->id - 1];
}

static fm_status
take_confirm(fm_publisher *publisher, fm_publisher_lane *lane,
    const fm_confirm *confirm, bool nack)
{
    fm_error nacked = { .status = FM_NACKED,
        .text = "the broker did not take it (basic.nack)" };
    fm_error returned = { .status = FM_RETURNED,
        .code = NO_ROUTE,
        .text = "no queue is bound for it (312 NO_ROUTE)" };
    outcomes out = { 0 };
    int64_t now = fm_now();
    uint64_t first, last;
    fm_status status = FM_OK;

    fm_mutex_lock(&publisher->output->lock);
    last = confirm->tag == 0 ? lane->next - 1 : confirm->tag;
    first = confirm->multiple ? lane->low : last;
    if (last >= lane->next) {
        status = FM_BAD_FRAME;
    } else {
        for (uint64_t tag = first; tag <= last; tag++)
            if (tag >= lane->low)
                settle_one(publisher, lane, tag, nack, now, &out);
        leave_locked(publisher, &out.confirmed, &out.dropped);
        leave_locked(publisher, &out.nacked, &out.returned);
        pump_locked(publisher, lane);
    }
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_finish(&out.confirmed, NULL);
    fm_settled_finish(&out.nacked, &nacked);
    fm_settled_finish(&out.returned, &returned);
    fm_settled_drop(&out.dropped);
    return status;
}

static fm_status
lane_method(fm_channel *channel, uint32_t id, fm_slice payload)
{
    fm_publisher *publisher = channel->owner;
    fm_confirm confirm;
    fm_status status;

    if (id != FM_METHOD_BASIC_ACK && id != FM_METHOD_BASIC_NACK)
        return FM_BAD_FRAME;
    status = fm_frame_parse_ack(payload.data, payload.len, &confirm);
    if (status != FM_OK)
        return status;
    return take_confirm(publisher, lane_of(publisher, channel), &confirm,
        id == FM_METHOD_BASIC_NACK);
}

static bool
is_text(fm_slice slice, const char *text)
{
    return slice.len == strlen(text)
        && (slice.len == 0 || memcmp(slice.data, text, slice.len) == 0);
}

static bool
is_the_one(const fm_message *message, const fm_delivery *returned)
{
    return message->mandatory && !message->returned
        && message->body.len == returned->body.len
        && is_text(returned->deliver.routing_key, message->routing_key)
        && is_text(returned->deliver.exchange, message->exchange)
        && (message->body.len == 0
            || memcmp(
                   message->body.data, returned->body.data, message->body.len)
                == 0);
}

/* basic.return has no tag, and the wire forbids a message id of ours; but it
 * brings the message back, and each body has an id of its own. Should two be
 * equal, they are so in what becomes of them. */
static void
lane_content(fm_channel *channel, fm_delivery *delivery)
{
    fm_publisher *publisher = channel->owner;
    fm_publisher_lane *lane = lane_of(publisher, channel);

    fm_mutex_lock(&publisher->output->lock);
    for (uint64_t tag = lane->low; tag < lane->next; tag++) {
        fm_message *message = fm_lane_get(lane, tag);

        if (message == NULL || !is_the_one(message, delivery))
            continue;
        message->returned = true;
        fm_counter_add(&publisher->counters.returned, 1);
        break;
    }
    fm_mutex_unlock(&publisher->output->lock);
    fm_delivery_free(delivery);
}

/* --- when a lane or the connection goes --- */

/* Take back what is in flight; returns how many wait to be sent again. */
static size_t
recall_locked(fm_publisher *publisher, fm_publisher_lane *lane,
    bool (*verdict)(fm_message *message, const void *arg), const void *arg,
    fm_settled *failed, fm_settled *dropped)
    FM_REQUIRES(publisher->output->lock)
{
    size_t waiting = fm_lane_recall(lane, verdict, arg, failed, dropped);

    fm_counter_add(&publisher->counters.resent, waiting);
    return waiting;
}

/* How likely the broker means this message's exchange by what it misses. It
 * says which only in words, and cuts long ones. */
static int
suspicion(const fm_message *message, const fm_close *why)
{
    char quoted[FM_ERROR_TEXT];
    int len = snprintf(quoted, sizeof(quoted), "'%s'", message->exchange);

    if (message->exchange[0] == '\0')
        return 0; /* the default exchange does not vanish */
    return memmem(why->text.data, why->text.len, quoted, (size_t)len) == NULL
        ? 1
        : 2;
}

typedef struct vanished {
    const fm_close *why;
    int suspicion; /* the highest of any message in flight */
} vanished;

static vanished
find_vanished(const fm_publisher_lane *lane, const fm_close *why)
{
    vanished found = { .why = why };

    for (uint64_t tag = lane->low; tag < lane->next; tag++) {
        const fm_message *message = fm_lane_get(lane, tag);
        int each = message == NULL ? 0 : suspicion(message, why);

        found.suspicion = each > found.suspicion ? each : found.suspicion;
    }
    return found;
}

/* A vanished exchange: declare it again, but not for ever. */
static bool
blame_vanished(fm_message *message, const void *arg)
{
    const vanished *found = arg;
    int64_t now;

    if (suspicion(message, found->why) < found->suspicion)
        return false;
    if (message->topology == NULL)
        return true;
    atomic_store(&message->topology->declared, 0);
    atomic_store(&message->topology->requested, 0);
    now = fm_now();
    if (message->strikes > 0 && now - message->struck_at < STRIKE_NS)
        return false;
    message->struck_at = now;
    return ++message->strikes >= STRIKES;
}

static bool
blame_nobody(fm_message *message, const void *arg)
{
    (void)message;
    (void)arg;
    return false;
}

static bool
blame_all(fm_message *message, const void *arg)
{
    (void)message;
    (void)arg;
    return true;
}

/* It is a new channel, or stays: nothing is known against it. */
static void
keep_channel(fm_publisher_lane *lane)
{
    lane->refuses_since = 0;
    lane->renew_by = FM_NEVER;
}

static void
lane_closed(fm_channel *channel, const fm_close *why)
{
    fm_publisher *publisher = channel->owner;
    fm_publisher_lane *lane = lane_of(publisher, channel);
    fm_error error;
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };
    char text[FM_ERROR_TEXT / 2];
    vanished found;

    fm_amqp_print_close(text, sizeof(text), why);
    (void)fm_error_set(&error, FM_REJECTED, why->code,
        "the broker refused to publish it: %s", text);
    fm_mutex_lock(&publisher->output->lock);
    keep_channel(lane);
    found = find_vanished(lane, why);
    if (why->code == NOT_FOUND)
        (void)recall_locked(
            publisher, lane, blame_vanished, &found, &failed, &dropped);
    else if (lane->in_flight == 1)
        (void)recall_locked(
            publisher, lane, blame_all, NULL, &failed, &dropped);
    else
        lane->suspects = recall_locked(
            publisher, lane, blame_nobody, NULL, &failed, &dropped);
    leave_locked(publisher, &failed, &dropped);
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_finish(&failed, &error);
    fm_settled_drop(&dropped);
    fm_waker_signal(publisher->output->waker); /* step opens it again */
}

static void
lane_done(fm_channel *channel)
{
    fm_publisher *publisher = channel->owner;
    fm_publisher_lane *lane = lane_of(publisher, channel);
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };

    fm_mutex_lock(&publisher->output->lock);
    if (channel->state == FM_CHANNEL_CLOSED) { /* by us, to open it anew */
        (void)recall_locked(
            publisher, lane, blame_nobody, NULL, &failed, &dropped);
        leave_locked(publisher, &failed, &dropped);
    } else {
        lane->ready = true;
        pump_locked(publisher, lane);
    }
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_drop(&dropped);
    if (channel->state == FM_CHANNEL_CLOSED)
        fm_waker_signal(publisher->output->waker); /* step opens it */
}

static const fm_channel_ops lane_ops = {
    .done = lane_done,
    .closed = lane_closed,
    .method = lane_method,
    .content = lane_content,
    .returns = true,
};

/* --- declaring --- */

static void
declarer_done(fm_declarer *declarer)
{
    fm_publisher *publisher = declarer->owner;

    fm_mutex_lock(&publisher->output->lock);
    pump_all_locked(publisher);
    fm_mutex_unlock(&publisher->output->lock);
}

/* Fail every unsent message of a lane that `matches`: it joins `failed`. */
static void
cull_locked(fm_publisher *publisher, fm_publisher_lane *lane,
    bool (*matches)(fm_message *message, const void *arg), const void *arg,
    fm_settled *failed) FM_REQUIRES(publisher->output->lock)
{
    size_t before = lane->unsent;

    fm_lane_cull(lane, matches, arg, failed);
    fm_counter_add(&publisher->counters.failed, before - lane->unsent);
}

static bool
needs_topology(fm_message *message, const void *arg)
{
    return message->topology == arg;
}

static void
declarer_refused(
    fm_declarer *declarer, const fm_topology *topology, const fm_error *why)
{
    fm_publisher *publisher = declarer->owner;
    fm_settled failed = { NULL, NULL };

    fm_mutex_lock(&publisher->output->lock);
    for (int i = 0; i < FM_LANE_COUNT; i++)
        cull_locked(
            publisher, &publisher->lanes[i], needs_topology, topology, &failed);
    fm_handed_leave(&publisher->handed, &failed);
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_finish(&failed, why);
}

static const fm_declarer_ops declarer_ops = {
    .done = declarer_done,
    .refused = declarer_refused,
};

/* --- up and down --- */

void
fm_publisher_up(fm_publisher *publisher, int64_t now)
{
    fm_mutex_lock(&publisher->output->lock);
    publisher->up_since = now;
    publisher->trouble.status = FM_OK;
    fm_mutex_unlock(&publisher->output->lock);
}

static bool
is_hard(uint16_t code)
{
    /* Codes by which a broker blames what we sent; 320 is a shutdown. */
    return code >= 500 && code != 530;
}

/* One more connection lost: is its patience, or ours with it, over? */
static bool
bears_no_more(fm_message *message, const void *arg)
{
    const fm_error *why = arg;

    if (is_hard(why->code) && ++message->strikes >= STRIKES)
        return true;
    return message->retry != FM_RETRY_FOREVER
        && ++message->losses > message->retry;
}

static bool
bears_no_outage(fm_message *message, const void *arg)
{
    (void)arg;
    return message->retry != FM_RETRY_FOREVER
        && ++message->losses > message->retry;
}

static bool
every_one(fm_message *message, const void *arg)
{
    (void)message;
    (void)arg;
    return true;
}

/* A refused login is told to whoever waits; replies that nobody waits for
 * stay for better credentials. */
static bool
is_awaited(fm_message *message, const void *arg)
{
    (void)arg;
    return !message->handed_over;
}

static void
stop_blocking_locked(fm_publisher *publisher)
{
    fm_publisher_counters *counters = &publisher->counters;

    if (publisher->blocked)
        fm_counter_add(&counters->blocked_ns,
            (uint64_t)(fm_now() - atomic_load(&counters->blocked_since)));
    publisher->blocked = false;
    atomic_store(&counters->blocked_since, 0);
}

void
fm_publisher_down(fm_publisher *publisher, const fm_error *why)
{
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };
    bool counts = why->status != FM_AGAIN;
    fm_error error = *why;

    error.status = FM_DISCONNECTED;
    fm_mutex_lock(&publisher->output->lock);
    publisher->up_since = 0;
    publisher->trouble = *why;
    stop_blocking_locked(publisher);
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_publisher_lane *lane = &publisher->lanes[i];

        if (counts)
            cull_locked(publisher, lane, bears_no_outage, NULL, &failed);
        lane->suspects = recall_locked(publisher, lane,
            counts ? bears_no_more : blame_nobody, why, &failed, &dropped);
        if (!counts || !is_hard(why->code))
            lane->suspects = 0;
        keep_channel(lane);
    }
    leave_locked(publisher, &failed, &dropped);
    fm_mutex_unlock(&publisher->output->lock);
    for (int i = 0; i < FM_LANE_COUNT; i++)
        fm_channel_reset(&publisher->lanes[i].channel);
    fm_declarer_down(&publisher->declarer);
    fm_rescuer_down(&publisher->rescuer);
    fm_settled_finish(&failed, &error);
    fm_settled_drop(&dropped);
}

void
fm_publisher_round_failed(fm_publisher *publisher, const fm_error *why)
{
    fm_settled failed = { NULL, NULL };
    fm_error error = *why;

    if (error.status != FM_REFUSED)
        error.status = FM_DISCONNECTED;
    fm_mutex_lock(&publisher->output->lock);
    publisher->trouble = *why;
    for (int i = 0; i < FM_LANE_COUNT; i++)
        cull_locked(publisher, &publisher->lanes[i],
            why->status == FM_REFUSED ? is_awaited : bears_no_outage, NULL,
            &failed);
    fm_handed_leave(&publisher->handed, &failed);
    if (why->status == FM_REFUSED) /* perhaps until the next message */
        publisher->wanted = publisher->handed.count > 0;
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_finish(&failed, &error);
}

bool
fm_publisher_is_impatient(fm_publisher *publisher, int64_t since)
{
    bool found = false, refused;

    fm_mutex_lock(&publisher->output->lock);
    refused = publisher->trouble.status == FM_REFUSED;
    for (int i = 0; i < FM_LANE_COUNT; i++)
        for (fm_message *each = publisher->lanes[i].first_unsent;
             each != NULL && !found; each = each->next)
            found = (refused || each->retry != FM_RETRY_FOREVER)
                && each->submitted > since;
    fm_mutex_unlock(&publisher->output->lock);
    return found;
}

bool
fm_publisher_is_wanted(fm_publisher *publisher)
{
    bool wanted;

    fm_mutex_lock(&publisher->output->lock);
    wanted = publisher->wanted && !publisher->closed;
    fm_mutex_unlock(&publisher->output->lock);
    return wanted;
}

void
fm_publisher_set_blocked(fm_publisher *publisher, bool blocked, fm_slice reason)
{
    bool changed;

    fm_mutex_lock(&publisher->output->lock);
    changed = publisher->blocked != blocked;
    if (blocked && changed) {
        publisher->blocked = true;
        atomic_store(&publisher->counters.blocked_since, fm_now());
    } else if (changed) {
        stop_blocking_locked(publisher);
        pump_all_locked(publisher);
    }
    fm_mutex_unlock(&publisher->output->lock);
    if (changed && blocked)
        fm_event_post(FM_ERROR,
            "the broker blocks publishers (%.*s): messages wait until the "
            "alarm is over, or fail at their deadline",
            (int)(reason.len < 200 ? reason.len : 200),
            (const char *)reason.data);
    else if (changed)
        fm_event_post(FM_WARNING, "the broker takes messages again");
}

/* --- the periodic part --- */

static void
open_lanes(fm_publisher *publisher)
{
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_publisher_lane *lane = &publisher->lanes[i];
        fm_script script;
        bool wanted;
        fm_status status;

        if (lane->channel.state != FM_CHANNEL_CLOSED)
            continue;
        fm_mutex_lock(&publisher->output->lock);
        wanted = lane->first_unsent != NULL;
        fm_mutex_unlock(&publisher->output->lock);
        if (!wanted)
            continue;
        fm_script_init(&script, lane->channel.id);
        status = fm_script_add_open(&script);
        if (status == FM_OK)
            status = fm_script_add_confirm(&script);
        if (status == FM_OK)
            status = fm_channel_run(&lane->channel, &script);
        fm_script_fini(&script);
        if (status != FM_OK)
            fm_output_starve(publisher->output);
    }
}

/* Close channels that are to be opened anew. Nothing more is sent there, so
 * soon nothing is in flight; what another queue does not confirm is sent a
 * second time. Returns when to look again. */
static fm_deadline
renew_lanes(fm_publisher *publisher, int64_t now)
{
    fm_deadline next = FM_NEVER;

    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_publisher_lane *lane = &publisher->lanes[i];
        fm_script script;
        fm_deadline at;
        fm_status status;

        if (lane->channel.state != FM_CHANNEL_READY)
            continue;
        fm_mutex_lock(&publisher->output->lock);
        at = lane->renew_by;
        if (at != FM_NEVER && lane->in_flight == 0)
            at = now;
        fm_mutex_unlock(&publisher->output->lock);
        if (at > now) {
            next = at < next ? at : next;
            continue;
        }
        fm_script_init(&script, lane->channel.id);
        status = fm_script_add_close(&script);
        if (status == FM_OK)
            status = fm_channel_run(&lane->channel, &script);
        fm_script_fini(&script);
        if (status != FM_OK) {
            fm_output_starve(publisher->output);
            continue;
        }
        fm_mutex_lock(&publisher->output->lock);
        lane->renewed = now;
        keep_channel(lane);
        fm_mutex_unlock(&publisher->output->lock);
    }
    return next;
}

/* Queue parked messages whose time has come; returns the next such time. */
static fm_deadline
unpark_locked(fm_publisher *publisher, int64_t now, fm_settled *dropped)
    FM_REQUIRES(publisher->output->lock)
{
    fm_message *message;
    fm_deadline next;

    while (
        (message = fm_handed_take_due(&publisher->handed, now, &next)) != NULL)
        if (message->abandoned)
            fm_settled_add(dropped, message);
        else
            fm_lane_append(&publisher->lanes[message->lane], message);
    return next;
}

static bool
gate_is_broken(fm_message *message, const void *arg)
{
    (void)arg;
    return message->gate != NULL
        && fm_gate_state_get(message->gate) == FM_GATE_BROKEN;
}

/* What is_overdue() compares with. */
typedef struct clock_reading {
    int64_t now;
    int64_t up_since;
} clock_reading;

static bool
is_overdue(fm_message *message, const void *arg)
{
    const clock_reading *at = arg;
    int64_t since =
        message->submitted > at->up_since ? message->submitted : at->up_since;

    return message->handed_over && at->now - since > message->hold_ns;
}

/* Give up replies that a connected broker has not taken for too long: under
 * an alarm, or stuck. Looks once a second while there are any; returns when
 * to look again. */
static fm_deadline
expire_handed_locked(fm_publisher *publisher, int64_t now, fm_settled *overdue)
    FM_REQUIRES(publisher->output->lock)
{
    fm_publisher_lane *lane = &publisher->lanes[FM_LANE_RPC];
    clock_reading at = { now, publisher->up_since };

    if (publisher->handed.count == 0 || publisher->up_since == 0)
        return FM_NEVER;
    if (now < publisher->expire_at)
        return publisher->expire_at;
    publisher->expire_at = now + EXPIRE_NS;
    cull_locked(publisher, lane, is_overdue, &at, overdue);
    for (uint64_t tag = lane->low; tag < lane->next; tag++) {
        fm_message *message = fm_lane_get(lane, tag);

        if (message != NULL && is_overdue(message, &at)) {
            fm_counter_add(&publisher->counters.failed, 1);
            fm_settled_add(overdue, fm_lane_take(lane, tag));
        }
    }
    fm_handed_leave(&publisher->handed, overdue);
    return publisher->expire_at;
}

fm_deadline
fm_publisher_step(fm_publisher *publisher, int64_t now)
{
    static const fm_error too_late = { .status = FM_TIMED_OUT,
        .text = "the broker did not take it in time" };
    fm_settled broken = { NULL, NULL }, overdue = { NULL, NULL };
    fm_settled dropped = { NULL, NULL };
    fm_deadline expiry, renewal, rescue;
    fm_deadline next;
    bool up, more = false;

    fm_mutex_lock(&publisher->output->lock);
    up = fm_output_is_up_locked(publisher->output);
    next = unpark_locked(publisher, now, &dropped);
    expiry = expire_handed_locked(publisher, now, &overdue);
    next = expiry < next ? expiry : next;
    cull_locked(publisher, &publisher->lanes[FM_LANE_RPC], gate_is_broken, NULL,
        &broken);
    fm_handed_leave(&publisher->handed, &broken);
    if (up) {
        pump_all_locked(publisher);
        /* Above high water and the kernel takes more: come again at once,
         * after the loop has sent. If it is stuck, poll says when. */
        for (int i = 0; i < FM_LANE_COUNT; i++)
            more = more || publisher->lanes[i].first_unsent != NULL;
        more = more && !publisher->output->stuck
            && fm_output_pending_locked(publisher->output)
                >= FM_OUTPUT_HIGH_WATER;
    }
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_drop(&dropped);
    fm_settled_finish(&overdue, &too_late);
    while (broken.first != NULL) { /* each gate has its own error */
        fm_settled one = { broken.first, broken.first };
        fm_error error = broken.first->gate->error;

        broken.first = broken.first->next;
        one.first->next = NULL;
        fm_settled_finish(&one, &error);
    }
    if (up) {
        renewal = renew_lanes(publisher, now);
        next = renewal < next ? renewal : next;
        open_lanes(publisher);
        fm_declarer_step(&publisher->declarer);
        rescue =
            fm_declarer_watch(&publisher->declarer, &publisher->rescuer, now);
        next = rescue < next ? rescue : next;
        rescue = fm_rescuer_step(&publisher->rescuer, now);
        next = rescue < next ? rescue : next;
    }
    return more ? now : next;
}

bool
fm_publisher_try_doze(fm_publisher *publisher, int64_t now, fm_deadline *until)
{
    const fm_publisher_lane *lanes = publisher->lanes;

    fm_mutex_lock(&publisher->output->lock);
    *until = publisher->last_unawaited + DOZE_NS;
    publisher->dozing = now < *until && !publisher->blocked
        && lanes[FM_LANE_RPC].unsent == 0 && lanes[FM_LANE_RPC].awaited == 0
        && lanes[FM_LANE_NOTIFY].awaited == 0
        && lanes[FM_LANE_FANOUT].awaited == 0;
    fm_mutex_unlock(&publisher->output->lock);
    return publisher->dozing; /* written by this thread alone */
}

bool
fm_publisher_end_doze(fm_publisher *publisher)
{
    bool dozing = publisher->dozing; /* written by this thread alone */

    if (dozing) {
        fm_mutex_lock(&publisher->output->lock);
        publisher->dozing = false;
        fm_mutex_unlock(&publisher->output->lock);
    }
    return dozing;
}

void
fm_publisher_close(fm_publisher *publisher)
{
    fm_error error = { .status = FM_CLOSED,
        .text = "the transport was closed" };
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };
    fm_message *message;
    fm_deadline next;

    fm_mutex_lock(&publisher->output->lock);
    publisher->closed = true;
    stop_blocking_locked(publisher);
    for (int i = 0; i < FM_LANE_COUNT; i++) {
        fm_publisher_lane *lane = &publisher->lanes[i];

        cull_locked(publisher, lane, every_one, NULL, &failed);
        (void)recall_locked(
            publisher, lane, blame_all, NULL, &failed, &dropped);
    }
    while ((message = fm_handed_take_due(&publisher->handed, FM_NEVER, &next))
        != NULL)
        fm_settled_add(
            message->handed_over || message->abandoned ? &dropped : &failed,
            message);
    leave_locked(publisher, &failed, &dropped);
    fm_mutex_unlock(&publisher->output->lock);
    fm_settled_finish(&failed, &error);
    fm_settled_drop(&dropped);
    fm_wake_all(&publisher->handed.space);
}
