#include "io/rescue.h"

#include "base/event.h"

#include <string.h>
#include <sys/random.h>

/* How long a declaration may wait; the same, while queues of the same node are
 * likely to be dead, too; and until it is helped once more. */
#define STUCK_NS (300 * FM_NS_PER_MS)
#define NEXT_STUCK_NS (20 * FM_NS_PER_MS)
#define ALERT_NS (30 * FM_NS_PER_S)
#define AGAIN_NS (5 * FM_NS_PER_S)
/* Besides, each process has a patience of its own: those that share a queue
 * shall not all find it dead in the moment in which the first one makes it
 * anew. */
#define JITTER_NS (150 * FM_NS_PER_MS)
/* What answers on two channels may come in another order than it was asked. */
#define DOUBT_NS (100 * FM_NS_PER_MS)
#define NO_MEMORY_NS (100 * FM_NS_PER_MS)

enum { PRECONDITION_FAILED = 406 };

static const fm_channel_ops rescuer_ops;

void
fm_rescuer_init(fm_rescuer *rescuer, fm_output *output, uint16_t channel_id)
{
    uint32_t drawn = 0;

    if (getrandom(&drawn, sizeof(drawn), GRND_NONBLOCK) < 0)
        drawn = (uint32_t)fm_now();
    *rescuer = (fm_rescuer){ .jitter_ns = drawn % JITTER_NS };
    fm_channel_init(&rescuer->channel, &rescuer_ops, rescuer, output);
    rescuer->channel.id = channel_id;
}

static void
let_go(fm_rescuer *rescuer)
{
    fm_topology_unref(rescuer->topology);
    rescuer->topology = NULL;
    rescuer->stuck = NULL;
    rescuer->queue = NULL;
    rescuer->is_dead = false;
}

void
fm_rescuer_fini(fm_rescuer *rescuer)
{
    let_go(rescuer);
    fm_channel_fini(&rescuer->channel);
}

void
fm_rescuer_forget(fm_rescuer *rescuer, const fm_channel *channel)
{
    if (rescuer->stuck == channel)
        let_go(rescuer);
}

void
fm_rescuer_down(fm_rescuer *rescuer)
{
    let_go(rescuer);
    fm_channel_reset(&rescuer->channel);
}

/* The queue of which a script waits to be declared; NULL: for something else,
 * or for one that is to be durable. */
static const char *
awaited(const fm_channel *channel, const fm_topology *topology)
{
    size_t declared = 0;

    if (channel->state != FM_CHANNEL_BUSY
        || channel->script.expect[channel->answered]
            != FM_METHOD_QUEUE_DECLARE_OK)
        return NULL;
    for (size_t i = 0; i < channel->answered; i++)
        declared += channel->script.expect[i] == FM_METHOD_QUEUE_DECLARE_OK;
    return fm_topology_hardened_get(topology, declared);
}

fm_deadline
fm_rescuer_watch(fm_rescuer *rescuer, fm_channel *channel,
    fm_topology *topology, int64_t now)
{
    int64_t patience = rescuer->jitter_ns
        + (now < rescuer->alert_until ? NEXT_STUCK_NS : STUCK_NS);
    const char *queue;

    if (!topology->is_hardened)
        return FM_NEVER;
    queue = awaited(channel, topology);
    if (queue == NULL || rescuer->stuck != NULL)
        return FM_NEVER; /* whoever is done has the others looked at */
    if (now < channel->moved_at + patience)
        return channel->moved_at + patience;
    rescuer->stuck = channel;
    rescuer->topology = fm_topology_ref(topology);
    rescuer->generation = channel->generation; /* written by this thread */
    rescuer->answered = channel->answered;
    rescuer->queue = queue;
    return FM_NEVER;
}

static bool
still_waits(const fm_rescuer *rescuer)
{
    const fm_channel *stuck = rescuer->stuck;

    return stuck != NULL && stuck->state == FM_CHANNEL_BUSY
        && stuck->generation == rescuer->generation
        && stuck->answered == rescuer->answered;
}

fm_deadline
fm_rescuer_step(fm_rescuer *rescuer, int64_t now)
{
    fm_channel *channel = &rescuer->channel;
    fm_script script;
    fm_status status = FM_OK;

    if (channel->state == FM_CHANNEL_BUSY)
        return FM_NEVER;
    if (rescuer->is_dead && !still_waits(rescuer))
        let_go(rescuer); /* it lives after all */
    if (rescuer->is_dead && now < rescuer->delete_at)
        return rescuer->delete_at;
    fm_script_init(&script, channel->id);
    if (rescuer->stuck != NULL) {
        if (channel->state == FM_CHANNEL_CLOSED)
            status = fm_script_add_open(&script);
        if (status == FM_OK)
            status = fm_script_add_delete_unused(
                &script, rescuer->queue, !rescuer->is_dead);
    } else if (channel->state == FM_CHANNEL_READY) {
        status = fm_script_add_close(&script);
    }
    if (status == FM_OK && script.count > 0)
        status = fm_channel_run(channel, &script);
    fm_script_fini(&script);
    return status == FM_OK ? FM_NEVER : now + NO_MEMORY_NS;
}

/* --- the channel's ops --- */

static void
finish(fm_rescuer *rescuer)
{
    if (still_waits(rescuer))
        rescuer->stuck->moved_at = fm_now() + AGAIN_NS;
    let_go(rescuer);
    fm_waker_signal(rescuer->channel.output->waker); /* for the next step */
}

static void
rescuer_done(fm_channel *channel)
{
    fm_rescuer *rescuer = channel->owner;

    if (rescuer->stuck != NULL && rescuer->is_dead) {
        rescuer->alert_until = fm_now() + ALERT_NS;
        fm_event_post(FM_WARNING,
            "the queue '%s' was on a node that is down: it is made anew, and "
            "what was in it is lost",
            rescuer->queue);
    }
    finish(rescuer);
}

static void
rescuer_closed(fm_channel *channel, const fm_close *why)
{
    static const char mark[] = "not empty";
    fm_rescuer *rescuer = channel->owner;

    if (!rescuer->is_dead && why->code == PRECONDITION_FAILED
        && memmem(why->text.data, why->text.len, mark, sizeof(mark) - 1) != NULL
        && still_waits(rescuer)) {
        rescuer->is_dead = true;
        rescuer->delete_at = fm_now() + DOUBT_NS;
        fm_waker_signal(channel->output->waker);
        return;
    }
    finish(rescuer);
}

static fm_status
rescuer_method(fm_channel *channel, uint32_t id, fm_slice payload)
{
    (void)channel;
    (void)id;
    (void)payload;
    return FM_BAD_FRAME;
}

static void
rescuer_content(fm_channel *channel, fm_delivery *delivery)
{
    (void)channel;
    fm_delivery_free(delivery);
}

static const fm_channel_ops rescuer_ops = {
    .done = rescuer_done,
    .closed = rescuer_closed,
    .method = rescuer_method,
    .content = rescuer_content,
};
