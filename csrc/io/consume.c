#include "io/consume.h"

#include "base/event.h"
#include "io/adopt.h"
#include "io/loop.h"
#include "wire/msgpack.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    ACK_REPLIES = 32,       /* replies that one ack settles */
    ODD_REPLIES = 1024,     /* that wait to be read by Python */
    TAKE_BYTES = 64 * 1024, /* so many, or more, are no company for others */
};
#define ACK_DELAY_NS (20 * FM_NS_PER_MS)
#define FIRST_PAUSE_NS (100 * FM_NS_PER_MS)
#define LAST_PAUSE_NS (5 * FM_NS_PER_S)
/* After it came back, and after the look before. A broker with many queues
 * takes its time to forget those of a node that died. */
#define FIRST_LOOK_NS FM_NS_PER_S
#define NEXT_LOOK_NS (9 * FM_NS_PER_S)
enum {
    LOOKS = 2,
    ACCESS_REFUSED = 403,
    NOT_FOUND = 404,
    PRECONDITION_FAILED = 406
};
/* From then on, those of replies, for the sake of health(); and others of which
 * one was gone: what the broker has left of it may expire by and by, and then
 * deletes the new one, which has its name. */
#define WATCH_NS (45 * FM_NS_PER_S)
/* Bindings, for somebody may have deleted their exchange; at most. */
#define BIND_NS (60 * FM_NS_PER_S)

/* --- life --- */

static const fm_channel_ops consumer_ops;

fm_status
fm_consumer_new(const fm_consumer_config *config, fm_topology *topology,
    fm_output *output, fm_reply_table *table, fm_consumer **out)
{
    fm_consumer *consumer = calloc(1, sizeof(*consumer));
    fm_status status = FM_NO_MEMORY;

    if (consumer == NULL)
        return FM_NO_MEMORY;
    atomic_init(&consumer->refs, 1);
    fm_wake_init(&consumer->wake);
    fm_mutex_init(&consumer->lock);
    consumer->output = output;
    consumer->table = config->replies ? table : NULL;
    consumer->prefetch = config->prefetch;
    consumer->cancel_on_failover = config->cancel_on_failover;
    consumer->topology = fm_topology_ref(topology);
    fm_window_init(&consumer->seen);
    fm_claims_init(&consumer->claims);
    fm_channel_init(&consumer->channel, &consumer_ops, consumer, output);
    consumer->queues = calloc(config->queue_count, sizeof(char *));
    consumer->cancelled = calloc(config->queue_count, sizeof(bool));
    consumer->missing = calloc(config->queue_count, sizeof(bool));
    consumer->places = calloc(config->queue_count, sizeof(*consumer->places));
    consumer->verify_at = FM_NEVER;
    atomic_init(&consumer->verified_at, 0);
    if (consumer->queues == NULL || consumer->cancelled == NULL
        || consumer->missing == NULL || consumer->places == NULL)
        goto fail;
    for (; consumer->queue_count < config->queue_count;
         consumer->queue_count++) {
        size_t i = consumer->queue_count;

        consumer->queues[i] = strdup(config->queues[i]);
        if (consumer->queues[i] == NULL)
            goto fail;
        consumer->places[i].is_of_stream =
            fm_topology_is_stream(topology, consumer->queues[i]);
        consumer->has_streams |= consumer->places[i].is_of_stream;
    }
    status = fm_gate_new(&consumer->gate);
    if (status != FM_OK)
        goto fail;
    *out = consumer;
    return FM_OK;

fail:
    fm_consumer_unref(consumer);
    return status;
}

fm_consumer *
fm_consumer_ref(fm_consumer *consumer)
{
    atomic_fetch_add_explicit(&consumer->refs, 1, memory_order_relaxed);
    return consumer;
}

static void
free_list(fm_delivery *delivery)
{
    while (delivery != NULL) {
        fm_delivery *next = delivery->next;

        fm_delivery_free(delivery);
        delivery = next;
    }
}

void
fm_consumer_unref(fm_consumer *consumer)
{
    if (consumer == NULL
        || atomic_fetch_sub_explicit(&consumer->refs, 1, memory_order_acq_rel)
            > 1)
        return;
    fm_channel_fini(&consumer->channel);
    free_list(consumer->intake);
    fm_window_fini(&consumer->seen);
    fm_claims_fini(&consumer->claims);
    for (size_t i = 0; i < consumer->farewell_len; i++)
        free(consumer->farewell[i]);
    free(consumer->farewell);
    fm_topology_unref(consumer->topology);
    fm_gate_unref(consumer->gate);
    for (size_t i = 0; i < consumer->queue_count; i++)
        free(consumer->queues[i]);
    free(consumer->queues);
    free(consumer->cancelled);
    free(consumer->missing);
    free(consumer->places);
    fm_mutex_fini(&consumer->lock);
    free(consumer);
}

/* --- any thread --- */

void
fm_consumer_want(fm_consumer *consumer, fm_consumer_goal goal)
{
    fm_mutex_lock(&consumer->lock);
    if (goal > consumer->goal)
        consumer->goal = goal;
    fm_wake_all(&consumer->wake); /* take() ends when it is stopped */
    /* With the lock held: once it is closed the I/O thread may end. After the
     * wake: who takes may be polling. */
    if (consumer->served && consumer->state != FM_CONSUMER_CLOSED)
        fm_waker_signal(consumer->output->waker);
    fm_mutex_unlock(&consumer->lock);
}

void
fm_consumer_set_served(fm_consumer *consumer, bool served)
{
    fm_mutex_lock(&consumer->lock);
    consumer->served = served;
    fm_mutex_unlock(&consumer->lock);
}

fm_status
fm_consumer_delete_at_close(fm_consumer *consumer, const char *queue)
{
    fm_status status = FM_NO_MEMORY;
    char *copy = strdup(queue);
    char **farewell;

    if (copy == NULL)
        return FM_NO_MEMORY;
    fm_mutex_lock(&consumer->lock);
    farewell = realloc(
        consumer->farewell, (consumer->farewell_len + 1) * sizeof(*farewell));
    if (farewell != NULL) {
        farewell[consumer->farewell_len++] = copy;
        consumer->farewell = farewell;
        status = FM_OK;
    }
    fm_mutex_unlock(&consumer->lock);
    if (status != FM_OK)
        free(copy);
    return status;
}

/* FM_AGAIN while the goal is not reached. */
static fm_status
outcome_locked(fm_consumer *consumer, fm_error *error)
    FM_REQUIRES(consumer->lock)
{
    switch (consumer->state) {
    case FM_CONSUMER_FAILED:
        if (consumer->goal >= FM_GOAL_STOPPED)
            return FM_OK;
        *error = consumer->error;
        return error->status;
    case FM_CONSUMER_CLOSED:
        if (consumer->goal == FM_GOAL_CLOSED)
            return FM_OK;
        return fm_error_set(error, FM_CLOSED, 0, "the transport was closed");
    case FM_CONSUMER_DECLARED:
    case FM_CONSUMER_STARTING:
        return consumer->goal == FM_GOAL_DECLARED ? FM_OK : FM_AGAIN;
    case FM_CONSUMER_CONSUMING:
        return consumer->goal <= FM_GOAL_CONSUMING ? FM_OK : FM_AGAIN;
    case FM_CONSUMER_STOPPED:
        return consumer->goal == FM_GOAL_STOPPED ? FM_OK : FM_AGAIN;
    default:
        return FM_AGAIN;
    }
}

fm_status
fm_consumer_wait(fm_consumer *consumer, fm_deadline deadline, fm_error *error)
{
    for (;;) {
        unsigned seen = fm_wake_read(&consumer->wake);
        fm_status status;

        fm_mutex_lock(&consumer->lock);
        status = outcome_locked(consumer, error);
        fm_mutex_unlock(&consumer->lock);
        if (status != FM_AGAIN)
            return status;
        status =
            fm_loop_wait(&consumer->wake, seen, deadline, FM_ERRAND_CALLER);
        if (status != FM_OK)
            return status;
    }
}

static size_t index_of_tag(const fm_consumer *consumer, fm_slice tag);

static fm_delivery *
take_locked(fm_consumer *consumer, size_t max) FM_REQUIRES(consumer->lock)
{
    fm_delivery *first = consumer->intake, *last = first;
    size_t bytes;

    if (first == NULL || max == 0)
        return NULL;
    bytes = first->body.len;
    for (consumer->intake_len--;
         --max > 0 && last->next != NULL && bytes < TAKE_BYTES;
         consumer->intake_len--) {
        last = last->next;
        bytes += last->body.len;
    }
    consumer->intake = last->next;
    last->next = NULL;
    for (fm_delivery *each = first; each != NULL; each = each->next)
        if (each->is_of_stream)
            fm_place_take(&consumer->places[index_of_tag(
                              consumer, each->deliver.consumer_tag)],
                each);
    return first;
}

fm_status
fm_consumer_take(
    fm_consumer *consumer, size_t max, fm_deadline deadline, fm_delivery **out)
{
    fm_output_push(consumer->output); /* acks of what was taken before */
    for (;;) {
        unsigned seen = fm_wake_read(&consumer->wake);
        fm_delivery *taken = NULL;
        bool stopped, served;
        fm_status status;

        fm_mutex_lock(&consumer->lock);
        served = consumer->served;
        stopped = consumer->goal >= FM_GOAL_STOPPED
            || consumer->state >= FM_CONSUMER_STOPPING;
        if (!stopped)
            taken = take_locked(consumer, max);
        fm_mutex_unlock(&consumer->lock);
        if (stopped)
            return FM_CLOSED;
        if (taken != NULL) {
            *out = taken;
            return FM_OK;
        }
        /* Nobody would tell a leader that it was stopped before it began. */
        status = served
            ? fm_loop_wait(&consumer->wake, seen, deadline, FM_ERRAND_LISTENER)
            : fm_wake_wait(&consumer->wake, seen, deadline);
        if (status != FM_OK)
            return status;
    }
}

bool
fm_consumer_ack(fm_consumer *consumer, uint64_t generation, uint64_t tag,
    bool multiple, bool push)
{
    fm_output *output = consumer->output;
    bool is_ours;

    fm_mutex_lock(&output->lock);
    is_ours = generation != 0 && consumer->channel.generation == generation;
    if (is_ours
        && fm_frame_put_ack(&output->out, consumer->channel.id, tag, multiple)
            != FM_OK) {
        fm_output_fail_locked(output, "an acknowledgement");
        is_ours = false;
    }
    if (is_ours && push)
        fm_output_push_locked(output);
    fm_mutex_unlock(&output->lock);
    return is_ours;
}

void
fm_consumer_reject(
    fm_consumer *consumer, uint64_t generation, uint64_t tag, bool requeue)
{
    fm_output *output = consumer->output;

    if (!requeue)
        fm_counter_add(&consumer->rejected, 1);
    fm_mutex_lock(&output->lock);
    if (generation != 0 && consumer->channel.generation == generation) {
        if (fm_frame_put_reject(
                &output->out, consumer->channel.id, tag, requeue)
            == FM_OK)
            fm_output_push_locked(output);
        else
            fm_output_fail_locked(output, "a rejection");
    }
    fm_mutex_unlock(&output->lock);
}

void
fm_consumer_refuse(fm_consumer *consumer, uint64_t generation, uint64_t tag,
    bool is_of_stream, bool requeue)
{
    if (!is_of_stream) {
        fm_consumer_reject(consumer, generation, tag, requeue);
        return;
    }
    if (!requeue)
        fm_counter_add(&consumer->rejected, 1);
    (void)fm_consumer_ack(consumer, generation, tag, false, true);
}

fm_status
fm_consumer_deliver_reply(fm_consumer *consumer, fm_buf *body)
{
    fm_reply_head head;
    fm_status status = fm_msgpack_read_reply(fm_buf_slice(body), &head);

    if (status == FM_OK)
        status = fm_reply_deliver(consumer->table, &head, true, body);
    /* Its caller may be the one who polls. */
    fm_mutex_lock(&consumer->lock);
    if (consumer->served && consumer->state != FM_CONSUMER_CLOSED)
        fm_waker_signal(consumer->output->waker);
    fm_mutex_unlock(&consumer->lock);
    return status;
}

bool
fm_consumer_has_seen(fm_consumer *consumer, const char *id, size_t len)
{
    bool seen;

    fm_mutex_lock(&consumer->lock);
    seen = fm_window_has(&consumer->seen, id, len, fm_now());
    fm_mutex_unlock(&consumer->lock);
    if (seen)
        fm_counter_add(&consumer->duplicates, 1);
    return seen;
}

void
fm_consumer_remember(fm_consumer *consumer, const char *id, size_t len)
{
    fm_mutex_lock(&consumer->lock);
    /* Out of memory: a duplicate may pass, which beats losing a message. */
    (void)!fm_window_add(&consumer->seen, id, len, fm_now());
    fm_mutex_unlock(&consumer->lock);
}

fm_novelty
fm_consumer_claim(
    fm_consumer *consumer, const char *id, size_t len, fm_delivery *delivery)
{
    fm_novelty novelty = FM_ID_SEEN;

    fm_mutex_lock(&consumer->lock);
    if (!fm_window_has(&consumer->seen, id, len, fm_now()))
        novelty = fm_claims_add(&consumer->claims, id, len, delivery);
    fm_mutex_unlock(&consumer->lock);
    if (novelty != FM_ID_NEW)
        fm_counter_add(&consumer->duplicates, 1);
    return novelty;
}

bool
fm_consumer_release(
    fm_consumer *consumer, const char *id, fm_delivery *delivery)
{
    bool is_another;

    fm_mutex_lock(&consumer->lock);
    is_another = fm_claims_release(&consumer->claims, id, delivery);
    fm_mutex_unlock(&consumer->lock);
    return is_another;
}

void
fm_consumer_states_get(
    fm_consumer *consumer, fm_consumer_goal *goal, fm_consumer_state *state)
{
    fm_mutex_lock(&consumer->lock);
    *goal = consumer->goal;
    *state = consumer->state;
    fm_mutex_unlock(&consumer->lock);
}

/* Tags are the queues' numbers from 1; SIZE_MAX for any other text. */
static size_t
index_of_tag(const fm_consumer *consumer, fm_slice tag)
{
    size_t index = 0;

    if (tag.len == 0 || tag.len > 5)
        return SIZE_MAX;
    for (size_t i = 0; i < tag.len; i++) {
        if (tag.data[i] < '0' || tag.data[i] > '9')
            return SIZE_MAX;
        index = index * 10 + (size_t)(tag.data[i] - '0');
    }
    return index >= 1 && index <= consumer->queue_count ? index - 1 : SIZE_MAX;
}

const char *
fm_consumer_queue_of(const fm_consumer *consumer, const fm_delivery *delivery)
{
    size_t index = index_of_tag(consumer, delivery->deliver.consumer_tag);

    return index == SIZE_MAX ? NULL : consumer->queues[index];
}

/* --- scripts (I/O thread) --- */

static fm_status
write_consume_of_stream(
    fm_script *script, fm_consumer *consumer, size_t index, const char *tag)
{
    char text[FM_PLACE_TEXT];
    int64_t now = fm_now();
    fm_arg offset;

    fm_mutex_lock(&consumer->lock);
    fm_place_print(&consumer->places[index], now, text, &offset);
    fm_place_begin(&consumer->places[index], now);
    fm_mutex_unlock(&consumer->lock);
    return fm_script_add_consume(
        script, consumer->queues[index], tag, &(fm_table){ &offset, 1 });
}

static fm_status
write_consume(fm_script *script, fm_consumer *consumer, size_t index)
{
    /* RabbitMQ ends the consumer of a mirrored queue when another mirror
     * takes over, instead of going on silently with redeliveries. For a quorum
     * queue, which is never mirrored, it refuses the argument. */
    static const fm_arg cancel = {
        .name = "x-cancel-on-ha-failover", .kind = FM_ARG_BOOL, .flag = true
    };
    static const fm_table arguments = { &cancel, 1 };
    char tag[8];

    snprintf(tag, sizeof(tag), "%u", (unsigned)index + 1);
    if (consumer->has_streams
        && fm_topology_is_stream(consumer->topology, consumer->queues[index]))
        return write_consume_of_stream(script, consumer, index, tag);
    return fm_script_add_consume(script, consumer->queues[index], tag,
        consumer->cancel_on_failover
                && !fm_topology_is_quorum(
                    consumer->topology, consumer->queues[index])
            ? &arguments
            : NULL);
}

static fm_status
write_consume_all(fm_script *script, fm_consumer *consumer)
{
    fm_status status = FM_OK;

    for (size_t i = 0; i < consumer->queue_count && status == FM_OK; i++)
        status = write_consume(script, consumer, i);
    return status;
}

static fm_status
write_declare(fm_script *script, fm_consumer *consumer, bool consume)
{
    fm_status status = fm_script_add_open(script);

    if (status == FM_OK && consumer->prefetch > 0)
        status = fm_script_add_qos(script, consumer->prefetch);
    if (status == FM_OK)
        status = fm_topology_write_for(
            consumer->topology, consumer->output->strictness, script);
    if (status == FM_OK && consume)
        status = write_consume_all(script, consumer);
    return status;
}

static fm_status
write_cancel_one(fm_script *script, size_t index)
{
    char tag[8];

    snprintf(tag, sizeof(tag), "%u", (unsigned)index + 1);
    return fm_script_add_cancel(script, tag);
}

/* The broker may have forgotten a queue and still have our consumer of it:
 * the tag would be taken, which ends the connection (530). To cancel what is
 * not there is no error. */
static fm_status
write_release(fm_script *script, const fm_consumer *consumer)
{
    fm_status status = FM_OK;

    for (size_t i = 0; i < consumer->queue_count && status == FM_OK; i++)
        if (consumer->missing[i] && !consumer->cancelled[i])
            status = write_cancel_one(script, i);
    return status;
}

static fm_status
write_recover(fm_script *script, fm_consumer *consumer)
{
    fm_status status = fm_topology_write_for(
        consumer->topology, consumer->output->strictness, script);

    for (size_t i = 0; i < consumer->queue_count && status == FM_OK; i++)
        if (consumer->cancelled[i])
            status = write_consume(script, consumer, i);
    return status;
}

static fm_status
write_cancel(fm_script *script, const fm_consumer *consumer)
{
    fm_status status = FM_OK;

    for (size_t i = 0; i < consumer->queue_count && status == FM_OK; i++)
        if (!consumer->cancelled[i])
            status = write_cancel_one(script, i);
    return status;
}

static fm_status
write_farewell(fm_script *script, fm_consumer *consumer)
{
    fm_status status = consumer->channel.state == FM_CHANNEL_CLOSED
        ? fm_script_add_open(script)
        : FM_OK;

    fm_mutex_lock(&consumer->lock);
    for (size_t i = 0; i < consumer->farewell_len && status == FM_OK; i++)
        status = fm_script_add_delete(script, consumer->farewell[i]);
    fm_mutex_unlock(&consumer->lock);
    return status == FM_OK ? fm_script_add_close(script) : status;
}

/* --- state changes (I/O thread) --- */

static void
set_state(fm_consumer *consumer, fm_consumer_state state)
{
    fm_mutex_lock(&consumer->lock);
    consumer->state = state;
    fm_mutex_unlock(&consumer->lock);
    fm_gate_set(consumer->gate,
        state == FM_CONSUMER_CONSUMING    ? FM_GATE_OPEN
            : state == FM_CONSUMER_FAILED ? FM_GATE_BROKEN
            : state == FM_CONSUMER_CLOSED ? FM_GATE_BROKEN
                                          : FM_GATE_SHUT);
    fm_wake_all(&consumer->wake);
    /* Calls may wait at the gate, and a new goal may be waiting. */
    fm_waker_signal(consumer->output->waker);
}

void
fm_consumer_fail(fm_consumer *consumer, const fm_error *why)
{
    fm_mutex_lock(&consumer->lock);
    consumer->error = *why;
    fm_mutex_unlock(&consumer->lock);
    consumer->gate->error = *why;
    set_state(consumer, FM_CONSUMER_FAILED);
}

/* Take what is in the intake; it comes again from the broker. */
static fm_delivery *
empty_intake(fm_consumer *consumer)
{
    fm_delivery *left;

    fm_mutex_lock(&consumer->lock);
    left = consumer->intake;
    consumer->intake = NULL;
    consumer->intake_len = 0;
    fm_mutex_unlock(&consumer->lock);
    return left;
}

static void
give_back_intake(fm_consumer *consumer)
{
    fm_delivery *left = empty_intake(consumer);

    for (fm_delivery *each = left; each != NULL; each = each->next)
        if (!each->is_of_stream) /* which keeps all that it has */
            fm_consumer_reject(
                consumer, each->generation, each->deliver.delivery_tag, true);
    free_list(left);
}

static void
forget_losses(fm_consumer *consumer)
{
    consumer->any_lost = false;
    consumer->releases = false;
    memset(consumer->cancelled, 0, consumer->queue_count * sizeof(bool));
    memset(consumer->missing, 0, consumer->queue_count * sizeof(bool));
}

static void
forget_channel(fm_consumer *consumer)
{
    if (consumer->table == NULL) /* the broker has replies no more */
        free_list(empty_intake(consumer));
    consumer->unacked = 0;
    forget_losses(consumer);
}

static void
run(fm_consumer *consumer, fm_script *script, fm_status status,
    fm_consumer_state state, int64_t now)
{
    if (status == FM_OK)
        status = fm_channel_run(&consumer->channel, script);
    fm_script_fini(script);
    if (status == FM_OK) {
        set_state(consumer, state);
    } else { /* out of memory */
        consumer->retry_at = now + FIRST_PAUSE_NS;
        fm_output_starve(consumer->output);
    }
}

/* What the broker has cancelled, and what is missing. A cancel-ok comes from
 * the process of the queue, and so at any time between the channel's own
 * answers: that is waited for first. */
static void
recover(fm_consumer *consumer, int64_t now)
{
    fm_script script;
    fm_status status;

    fm_script_init(&script, consumer->channel.id);
    status = write_release(&script, consumer);
    consumer->releases = script.count > 0;
    if (status == FM_OK && !consumer->releases)
        status = write_recover(&script, consumer);
    consumer->recovers = true;
    run(consumer, &script, status, FM_CONSUMER_STARTING, now);
    if (consumer->channel.state != FM_CHANNEL_BUSY) { /* out of memory */
        consumer->releases = false;
        if (consumer->state != FM_CONSUMER_CONSUMING)
            set_state(consumer, FM_CONSUMER_CONSUMING); /* and once more */
    } else if (consumer->releases) {
        for (size_t i = 0; i < consumer->queue_count; i++)
            consumer->cancelled[i] |= consumer->missing[i];
    } else {
        forget_losses(consumer);
    }
}

/* When to look once more, if all is well now. Those that come back to a broker
 * together are not to bind together for ever. */
static fm_deadline
next_look_at(const fm_consumer *consumer, int64_t now)
{
    uint64_t dice = (uint64_t)now * UINT64_C(0x9e3779b97f4a7c15) >> 20;

    if (consumer->is_watched || consumer->table != NULL
        || consumer->has_streams)
        return now + WATCH_NS;
    if (fm_consumer_binds(consumer))
        return now + BIND_NS - (int64_t)(dice % (uint64_t)(BIND_NS / 4));
    return FM_NEVER;
}

static void
begin_consuming(fm_consumer *consumer, int64_t now)
{
    atomic_store(&consumer->verified_at, now);
    consumer->is_untold = false;
    consumer->verify_at = next_look_at(consumer, now);
    if (consumer->recovers || consumer->has_streams) {
        consumer->verify_at = now + FIRST_LOOK_NS;
        consumer->looks = LOOKS - 1;
    }
    set_state(consumer, FM_CONSUMER_CONSUMING);
}

static void
consumer_done(fm_channel *channel)
{
    fm_consumer *consumer = channel->owner;
    int64_t now = fm_now();

    switch (consumer->state) { /* written by this thread */
    case FM_CONSUMER_DECLARING:
        fm_topology_settle(consumer->topology);
        consumer->established = true;
        consumer->stands_since = now;
        if (consumer->consumes)
            begin_consuming(consumer, now);
        else
            set_state(consumer, FM_CONSUMER_DECLARED);
        break;
    case FM_CONSUMER_STARTING:
        if (consumer->releases)
            recover(consumer, now);
        else
            begin_consuming(consumer, now);
        break;
    case FM_CONSUMER_STOPPING:
        give_back_intake(consumer);
        set_state(consumer, FM_CONSUMER_STOPPED);
        break;
    case FM_CONSUMER_CLOSING:
        free_list(empty_intake(consumer));
        set_state(consumer, FM_CONSUMER_CLOSED);
        break;
    default:
        break;
    }
}

static void
put_off(fm_consumer *consumer, int64_t now)
{
    consumer->retry_at = now + consumer->pause_ns;
    consumer->pause_ns = consumer->pause_ns == 0 ? FIRST_PAUSE_NS
        : consumer->pause_ns >= LAST_PAUSE_NS    ? LAST_PAUSE_NS
                                                 : consumer->pause_ns * 2;
    set_state(consumer, FM_CONSUMER_DOWN);
}

/* A stream is read from the node that the consumer is connected to, or not at
 * all. "... does not have a replica on the local node", 3.10; "... a running
 * replica ...", later. */
static bool
is_without_replica(const fm_close *why)
{
    static const char mark[] = "replica on the local node";

    return why->code == PRECONDITION_FAILED
        && memmem(why->text.data, why->text.len, mark, sizeof(mark) - 1)
        != NULL;
}

/* The owner of the connection does it; until then, and if there is no other
 * host, this one is tried again. */
static void
leave_host(fm_consumer *consumer, int64_t now)
{
    size_t i = 0;

    while (!consumer->places[i].is_of_stream)
        i++;
    fm_event_post(FM_WARNING,
        "this node has no replica of the stream '%s': it is read from another "
        "host, or when there is one",
        consumer->queues[i]);
    consumer->leaves_host = true;
    if (consumer->pause_ns == 0)
        consumer->pause_ns = FIRST_PAUSE_NS;
    put_off(consumer, now);
}

static void
consumer_closed(fm_channel *channel, const fm_close *why)
{
    fm_consumer *consumer = channel->owner;
    int64_t now = fm_now();
    char text[FM_ERROR_TEXT / 2];
    fm_error error;

    fm_amqp_print_close(text, sizeof(text), why);
    forget_channel(consumer);
    if (consumer->state == FM_CONSUMER_CLOSING) {
        set_state(consumer, FM_CONSUMER_CLOSED);
        return;
    }
    if (consumer->state == FM_CONSUMER_STOPPING
        || consumer->state == FM_CONSUMER_STOPPED) {
        set_state(consumer, FM_CONSUMER_STOPPED);
        return;
    }
    if (consumer->state == FM_CONSUMER_DECLARING
        && fm_adopt(consumer->topology, why)) {
        consumer->retry_at = now;
        set_state(consumer, FM_CONSUMER_DOWN);
        return;
    }
    if (consumer->has_streams && is_without_replica(why)) {
        leave_host(consumer, now);
        return;
    }
    (void)fm_error_set(&error, FM_REJECTED, why->code,
        "the broker refused the consumer of '%s': %s", consumer->queues[0],
        text);
    if (!consumer->established) {
        fm_consumer_fail(consumer, &error);
        return;
    }
    fm_event_post(FM_WARNING,
        "the broker closed the channel of the consumer of '%s': %s; opening "
        "it again",
        consumer->queues[0], text);
    if (consumer->state != FM_CONSUMER_DECLARING /* refused: it did not stand */
        && now - consumer->stands_since >= LAST_PAUSE_NS)
        consumer->pause_ns = 0;
    put_off(consumer, now);
}

/* basic.cancel by the broker: the queue is gone, or its leader. */
static fm_status
take_cancel(fm_consumer *consumer, fm_slice payload)
{
    fm_output *output = consumer->output;
    fm_slice tag;
    bool nowait;
    size_t index;
    fm_status status =
        fm_amqp_get_consumer_tag(payload.data, payload.len, &tag, &nowait);

    if (status != FM_OK)
        return status;
    if (!nowait) {
        fm_mutex_lock(&output->lock);
        status = fm_amqp_put_basic_cancel_ok(
            &output->out, consumer->channel.id, tag);
        fm_mutex_unlock(&output->lock);
    }
    index = index_of_tag(consumer, tag);
    if (index == SIZE_MAX)
        return status;
    fm_event_post(FM_WARNING,
        "the broker cancelled the consumer of '%s': declaring and consuming "
        "it again",
        consumer->queues[index]);
    consumer->cancelled[index] = true;
    consumer->any_lost = true;
    /* Of a stream that is the end, and of nothing else: with a new leader, or
     * a new replica, the broker goes on reading. */
    fm_mutex_lock(&consumer->lock);
    fm_place_forget(&consumer->places[index], fm_now());
    for (fm_delivery *each = consumer->intake; each != NULL; each = each->next)
        if (index_of_tag(consumer, each->deliver.consumer_tag) == index)
            each->offset = -1; /* in what is no more */
    fm_mutex_unlock(&consumer->lock);
    return status;
}

static fm_status
consumer_method(fm_channel *channel, uint32_t id, fm_slice payload)
{
    if (id == FM_METHOD_BASIC_CANCEL)
        return take_cancel(channel->owner, payload);
    return FM_BAD_FRAME;
}

/* --- deliveries (I/O thread) --- */

/* False: full, or it closes. Takes the delivery if it does not. */
static bool
put_into_intake(fm_consumer *consumer, fm_delivery *delivery, size_t most)
{
    bool wanted;

    fm_mutex_lock(&consumer->lock);
    /* While it stops: cancel-ok has not come yet, so it still delivers. */
    wanted =
        consumer->state != FM_CONSUMER_CLOSING && consumer->intake_len < most;
    if (wanted) {
        if (consumer->intake == NULL)
            consumer->intake = delivery;
        else
            consumer->last->next = delivery;
        consumer->last = delivery;
        consumer->intake_len++;
    }
    fm_mutex_unlock(&consumer->lock);
    if (wanted)
        fm_wake_all(&consumer->wake);
    return wanted;
}

/* Compressed, or enveloped in no way that the core knows: read by Python. */
static void
take_odd_reply(fm_consumer *consumer, fm_delivery *delivery)
{
    size_t len = delivery->body.len;

    delivery->generation = 0; /* acknowledged with the others, here */
    if (put_into_intake(consumer, delivery, ODD_REPLIES)) {
        fm_event_call();
        return;
    }
    fm_delivery_free(delivery);
    fm_counter_add(&consumer->rejected, 1);
    fm_event_post(FM_ERROR,
        "dropped a reply of %zu bytes on '%s': %d others wait to be read", len,
        consumer->queues[0], ODD_REPLIES);
}

/* Who is to have it, if the core can read it. */
static fm_status
read_reply(const fm_delivery *delivery, bool is_msgpack, fm_reply_head *head)
{
    fm_slice body = fm_buf_slice(&delivery->body);
    fm_slice compression;

    if (fm_frame_find_header(
            delivery->content.headers, "compression", &compression)
        == FM_OK)
        return FM_BAD_MESSAGE;
    return is_msgpack ? fm_msgpack_read_reply(body, head)
                      : fm_envelope_read_reply(body, head);
}

static void
take_reply(fm_consumer *consumer, fm_delivery *delivery)
{
    bool is_msgpack = fm_content_is_msgpack(&delivery->content);
    fm_reply_head head;

    /* Late ones are counted there, and acked like the others. */
    consumer->unacked_tag = delivery->deliver.delivery_tag;
    if (consumer->unacked++ == 0) {
        int64_t now = fm_now();

        if (!consumer->is_untold)
            atomic_store(&consumer->verified_at, now);
        consumer->ack_due = now + ACK_DELAY_NS;
    }
    if (read_reply(delivery, is_msgpack, &head) != FM_OK) {
        take_odd_reply(consumer, delivery);
    } else {
        (void)!fm_reply_deliver(
            consumer->table, &head, is_msgpack, &delivery->body);
        fm_delivery_free(delivery);
    }
    if (consumer->unacked >= ACK_REPLIES) {
        fm_consumer_ack(consumer, consumer->channel.generation,
            consumer->unacked_tag, true, false);
        consumer->unacked = 0;
    }
}

static void
note_place(fm_consumer *consumer, fm_delivery *delivery)
{
    size_t index = index_of_tag(consumer, delivery->deliver.consumer_tag);

    if (index == SIZE_MAX || !consumer->places[index].is_of_stream)
        return;
    fm_mutex_lock(&consumer->lock);
    fm_place_arrive(&consumer->places[index], delivery, fm_now());
    fm_mutex_unlock(&consumer->lock);
}

static void
consumer_content(fm_channel *channel, fm_delivery *delivery)
{
    fm_consumer *consumer = channel->owner;

    fm_counter_add(&consumer->delivered, 1);
    if (consumer->has_streams)
        note_place(consumer, delivery);
    if (consumer->table != NULL)
        take_reply(consumer, delivery);
    else if (!put_into_intake(consumer, delivery, SIZE_MAX))
        fm_delivery_free(delivery); /* closing the channel gives it back */
}

static const fm_channel_ops consumer_ops = {
    .done = consumer_done,
    .closed = consumer_closed,
    .method = consumer_method,
    .content = consumer_content,
};

/* --- the I/O thread's part --- */

void
fm_consumer_down(fm_consumer *consumer)
{
    fm_channel_reset(&consumer->channel);
    forget_channel(consumer);
    consumer->retry_at = 0;
    consumer->pause_ns = 0;
    consumer->leaves_host = false;
    switch (consumer->state) {
    case FM_CONSUMER_STOPPING:
    case FM_CONSUMER_STOPPED:
        set_state(consumer, FM_CONSUMER_STOPPED);
        break;
    case FM_CONSUMER_CLOSING:
        set_state(consumer, FM_CONSUMER_CLOSED);
        break;
    case FM_CONSUMER_CLOSED:
    case FM_CONSUMER_FAILED:
        break;
    default:
        set_state(consumer, FM_CONSUMER_DOWN);
        break;
    }
}

void
fm_consumer_refused(fm_consumer *consumer, const fm_error *why)
{
    if (!consumer->established && consumer->state == FM_CONSUMER_DOWN)
        fm_consumer_fail(consumer, why);
}

void
fm_consumer_abandon(fm_consumer *consumer)
{
    static const fm_error closed = { .status = FM_CLOSED,
        .text = "the transport was closed" };

    fm_channel_reset(&consumer->channel);
    forget_channel(consumer);
    consumer->gate->error = closed;
    set_state(consumer, FM_CONSUMER_CLOSED);
}

/* Is there something to delete, though the channel went with a connection? */
static bool
has_farewell(fm_consumer *consumer)
{
    bool has;

    fm_mutex_lock(&consumer->lock);
    has = consumer->farewell_len > 0;
    fm_mutex_unlock(&consumer->lock);
    return has && consumer->established;
}

/* The broker would end the whole connection for it. */
static void
lack_channel(fm_consumer *consumer, int64_t now)
{
    fm_error error;

    (void)fm_error_set(&error, FM_REJECTED, 0,
        "the broker allows %u channels per connection (channel_max), and this "
        "process has no other left for the consumer of '%s'",
        consumer->output->channel_max, consumer->queues[0]);
    if (!consumer->established) {
        fm_consumer_fail(consumer, &error);
        return;
    }
    fm_event_post(FM_ERROR, "%s", error.text);
    put_off(consumer, now);
}

/* From where it is, one move towards the goal. */
static void
move(fm_consumer *consumer, fm_consumer_goal goal, int64_t now)
{
    fm_channel *channel = &consumer->channel;
    fm_script script;
    fm_status status;

    fm_script_init(&script, channel->id);
    if (goal == FM_GOAL_CLOSED
        && (channel->state == FM_CHANNEL_READY || has_farewell(consumer))) {
        status = write_farewell(&script, consumer);
        run(consumer, &script, status, FM_CONSUMER_CLOSING, now);
    } else if (goal == FM_GOAL_CLOSED) {
        set_state(consumer, FM_CONSUMER_CLOSED);
    } else if (goal == FM_GOAL_STOPPED
        && consumer->state == FM_CONSUMER_CONSUMING) {
        status = write_cancel(&script, consumer);
        if (script.count > 0 || status != FM_OK) {
            run(consumer, &script, status, FM_CONSUMER_STOPPING, now);
        } else { /* the broker has cancelled every one */
            give_back_intake(consumer);
            set_state(consumer, FM_CONSUMER_STOPPED);
        }
    } else if (goal == FM_GOAL_STOPPED) {
        if (consumer->state != FM_CONSUMER_STOPPED)
            set_state(consumer, FM_CONSUMER_STOPPED);
    } else if (consumer->state == FM_CONSUMER_DOWN) {
        if (now < consumer->retry_at)
            return;
        if (channel->id > consumer->output->channel_max) {
            lack_channel(consumer, now);
            return;
        }
        consumer->consumes = goal == FM_GOAL_CONSUMING;
        consumer->recovers = consumer->established;
        status = write_declare(&script, consumer, consumer->consumes);
        run(consumer, &script, status, FM_CONSUMER_DECLARING, now);
    } else if (consumer->state == FM_CONSUMER_DECLARED
        && goal == FM_GOAL_CONSUMING) {
        status = write_consume_all(&script, consumer);
        run(consumer, &script, status, FM_CONSUMER_STARTING, now);
    } else if (consumer->any_lost && consumer->state == FM_CONSUMER_CONSUMING
        && now >= consumer->retry_at) {
        recover(consumer, now);
    }
}

fm_deadline
fm_consumer_step(fm_consumer *consumer, int64_t now, bool up)
{
    fm_consumer_goal goal;
    fm_deadline next = FM_NEVER;

    fm_mutex_lock(&consumer->lock);
    goal = consumer->goal;
    fm_mutex_unlock(&consumer->lock);
    if (consumer->state == FM_CONSUMER_CLOSED)
        return FM_NEVER;
    if (consumer->state == FM_CONSUMER_FAILED) {
        if (goal == FM_GOAL_CLOSED)
            set_state(consumer, FM_CONSUMER_CLOSED);
        return FM_NEVER;
    }
    if (up && consumer->unacked > 0 && now >= consumer->ack_due) {
        fm_consumer_ack(consumer, consumer->channel.generation,
            consumer->unacked_tag, true, false);
        consumer->unacked = 0;
    }
    if (up && consumer->channel.state != FM_CHANNEL_BUSY)
        move(consumer, goal, now);
    else if (!up && goal == FM_GOAL_CLOSED)
        set_state(consumer, FM_CONSUMER_CLOSED);
    else if (!up && goal == FM_GOAL_STOPPED
        && consumer->state != FM_CONSUMER_STOPPED)
        set_state(consumer, FM_CONSUMER_STOPPED);
    if (consumer->unacked > 0)
        next = consumer->ack_due;
    if (up && consumer->state == FM_CONSUMER_DOWN && consumer->retry_at > now
        && consumer->retry_at < next)
        next = consumer->retry_at;
    return next;
}

/* --- are its queues still there? (I/O thread, for verify.h) --- */

fm_deadline
fm_consumer_verify_at(const fm_consumer *consumer)
{
    return consumer->state == FM_CONSUMER_CONSUMING ? consumer->verify_at
                                                    : FM_NEVER;
}

/* A durable classic queue is left out: it is away as long as its node is,
 * which is said by the same 404, and declaring it again changes nothing. */
bool
fm_consumer_may_lose(const fm_consumer *consumer, size_t index)
{
    const char *queue = consumer->queues[index];

    return fm_topology_is_transient(consumer->topology, queue)
        || (consumer->table != NULL
            && fm_topology_is_quorum(consumer->topology, queue));
}

bool
fm_consumer_binds(const fm_consumer *consumer)
{
    return !consumer->is_unbound && fm_topology_binds(consumer->topology);
}

bool
fm_consumer_is_looked_at(const fm_consumer *consumer, size_t index)
{
    return fm_consumer_may_lose(consumer, index)
        || consumer->places[index].is_of_stream;
}

/* Does a delivery of it wait to be taken? */
static bool
has_untaken_locked(const fm_consumer *consumer, size_t index)
    FM_REQUIRES(consumer->lock)
{
    for (const fm_delivery *each = consumer->intake; each != NULL;
         each = each->next)
        if (index_of_tag(consumer, each->deliver.consumer_tag) == index)
            return true;
    return false;
}

void
fm_consumer_measured(
    fm_consumer *consumer, size_t index, uint32_t length, int64_t now)
{
    fm_growth growth;

    if (!consumer->places[index].is_of_stream
        || consumer->state != FM_CONSUMER_CONSUMING)
        return;
    fm_mutex_lock(&consumer->lock);
    growth = fm_place_measure(&consumer->places[index], length, now);
    if (growth == FM_GROWTH_UNHEARD && has_untaken_locked(consumer, index))
        growth = FM_GROWTH_HEARD;
    fm_mutex_unlock(&consumer->lock);
    if (growth == FM_GROWTH_HEARD)
        return;
    fm_event_post(FM_WARNING,
        growth == FM_GROWTH_SHRUNK
            ? "the stream '%s' is shorter than it was: reading again what came "
              "lately, in case it was made anew"
            : "nothing comes from the stream '%s', which has grown: consuming "
              "it again",
        consumer->queues[index]);
    consumer->missing[index] = true;
    consumer->any_lost = true;
}

void
fm_consumer_verified(fm_consumer *consumer, int64_t now)
{
    atomic_store(&consumer->verified_at, now);
    consumer->is_untold = false;
    fm_topology_settle(consumer->topology);
    if (consumer->looks > 0) {
        consumer->looks--;
        consumer->verify_at = now + NEXT_LOOK_NS;
    } else {
        consumer->verify_at = next_look_at(consumer, now);
    }
}

void
fm_consumer_lost(fm_consumer *consumer, size_t index)
{
    if (consumer->state != FM_CONSUMER_CONSUMING)
        return; /* it is about to be set up again, or to end */
    fm_event_post(FM_WARNING,
        "the queue '%s' is gone, and the broker did not say so: declaring and "
        "consuming it again",
        consumer->queues[index]);
    /* What its other queues may have lost another process may have declared
     * again, so that looking for them tells nothing. */
    for (size_t i = 0; i < consumer->queue_count; i++)
        consumer->missing[i] = fm_consumer_may_lose(consumer, i);
    consumer->any_lost = true;
    consumer->is_watched = true;
    consumer->verify_at = FM_NEVER;
}

void
fm_consumer_not_verified(fm_consumer *consumer, const fm_close *why)
{
    char text[FM_ERROR_TEXT / 2];

    fm_amqp_print_close(text, sizeof(text), why);
    if (!consumer->is_untold)
        fm_event_post(FM_WARNING,
            "whether the queue '%s' is still there the broker does not say: %s",
            consumer->queues[0], text);
    consumer->is_untold = true;
    consumer->verify_at =
        why->code == ACCESS_REFUSED ? FM_NEVER : fm_now() + WATCH_NS;
    atomic_store(&consumer->verified_at, 0);
}

void
fm_consumer_not_bound(fm_consumer *consumer, const fm_close *why)
{
    char text[FM_ERROR_TEXT / 2];
    int64_t now = fm_now();

    if (fm_adopt(consumer->topology, why)) {
        consumer->verify_at = now;
        return;
    }
    consumer->verify_at = now + WATCH_NS;
    /* 404: the queue's node is away, or somebody deletes it all just now. */
    if (why->code == NOT_FOUND)
        return;
    fm_amqp_print_close(text, sizeof(text), why);
    fm_event_post(FM_WARNING,
        "the queue '%s' cannot be bound again, should it be necessary: %s",
        consumer->queues[0], text);
    consumer->is_unbound = true;
}
