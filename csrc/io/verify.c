#include "io/verify.h"

#define NO_MEMORY_NS (100 * FM_NS_PER_MS)

enum { NOT_FOUND = 404 };

static const fm_channel_ops verifier_ops;

void
fm_verifier_init(fm_verifier *verifier, fm_output *output, uint16_t channel_id)
{
    *verifier = (fm_verifier){ 0 };
    fm_channel_init(&verifier->channel, &verifier_ops, verifier, output);
    verifier->channel.id = channel_id;
}

void
fm_verifier_fini(fm_verifier *verifier)
{
    fm_channel_fini(&verifier->channel);
}

void
fm_verifier_forget(fm_verifier *verifier, const fm_consumer *consumer)
{
    if (verifier->checked == consumer)
        verifier->checked = NULL;
}

void
fm_verifier_down(fm_verifier *verifier)
{
    fm_channel_reset(&verifier->channel);
    verifier->checked = NULL;
}

/* --- what is due --- */

/* Go on to a queue that is to be looked for, or to bindings; false: nothing is
 * due now. */
static bool
find_next(
    fm_verifier *verifier, fm_consumer *members, int64_t now, fm_deadline *next)
{
    fm_consumer *consumer = verifier->checked;

    /* It may have been stopped, or cancelled, since. */
    if (consumer != NULL && consumer->state != FM_CONSUMER_CONSUMING)
        consumer = NULL;
    for (;;) {
        if (consumer == NULL) {
            verifier->index = 0;
            for (consumer = members; consumer != NULL;
                 consumer = consumer->next) {
                fm_deadline due = fm_consumer_verify_at(consumer);

                if (due <= now)
                    break;
                *next = due < *next ? due : *next;
            }
        }
        verifier->checked = consumer;
        if (consumer == NULL)
            return false;
        for (; verifier->index < consumer->queue_count; verifier->index++)
            if (fm_consumer_is_looked_at(consumer, verifier->index))
                return true;
        if (verifier->index == consumer->queue_count
            && fm_consumer_binds(consumer))
            return true;
        fm_consumer_verified(consumer, now);
        consumer = NULL;
    }
}

static fm_status
write_look(const fm_verifier *verifier, fm_script *script)
{
    const fm_consumer *consumer = verifier->checked;

    if (verifier->index == consumer->queue_count)
        return fm_topology_write_bindings(consumer->topology, script);
    return fm_script_add_queue_look(script, consumer->queues[verifier->index]);
}

fm_deadline
fm_verifier_step(
    fm_verifier *verifier, fm_consumer *members, int64_t now, bool up)
{
    fm_channel *channel = &verifier->channel;
    fm_deadline next = FM_NEVER;
    fm_script script;
    fm_status status = FM_OK;

    if (!up)
        return FM_NEVER;
    if (channel->state == FM_CHANNEL_BUSY)
        return next;
    fm_script_init(&script, channel->id);
    if (find_next(verifier, members, now, &next)) {
        if (channel->state == FM_CHANNEL_CLOSED)
            status = fm_script_add_open(&script);
        if (status == FM_OK)
            status = write_look(verifier, &script);
    } else if (channel->state == FM_CHANNEL_READY) {
        status = fm_script_add_close(&script);
    }
    if (status == FM_OK && script.count > 0)
        status = fm_channel_run(channel, &script);
    fm_script_fini(&script);
    if (status != FM_OK && next > now + NO_MEMORY_NS)
        next = now + NO_MEMORY_NS;
    return next;
}

/* --- the channel's ops --- */

static void
verifier_done(fm_channel *channel)
{
    fm_verifier *verifier = channel->owner;

    verifier->index++; /* means nothing if nobody is checked */
    fm_waker_signal(channel->output->waker); /* for the next step */
}

static void
verifier_answer(fm_channel *channel, uint32_t id, fm_slice payload)
{
    fm_verifier *verifier = channel->owner;
    fm_declare_ok found;

    if (id == FM_METHOD_QUEUE_DECLARE_OK && verifier->checked != NULL
        && verifier->index < verifier->checked->queue_count
        && fm_amqp_get_declare_ok(payload.data, payload.len, &found) == FM_OK)
        fm_consumer_measured(
            verifier->checked, verifier->index, found.message_count, fm_now());
}

static void
verifier_closed(fm_channel *channel, const fm_close *why)
{
    fm_verifier *verifier = channel->owner;
    fm_consumer *consumer = verifier->checked;

    verifier->checked = NULL;
    fm_waker_signal(channel->output->waker);
    if (consumer == NULL)
        return;
    if (verifier->index == consumer->queue_count)
        fm_consumer_not_bound(consumer, why);
    else if (why->code == NOT_FOUND
        && !fm_consumer_may_lose(consumer, verifier->index))
        fm_consumer_verified(consumer, fm_now()); /* its node is down */
    else if (why->code == NOT_FOUND)
        fm_consumer_lost(consumer, verifier->index);
    else
        fm_consumer_not_verified(consumer, why);
}

static fm_status
verifier_method(fm_channel *channel, uint32_t id, fm_slice payload)
{
    (void)channel;
    (void)id;
    (void)payload;
    return FM_BAD_FRAME;
}

static void
verifier_content(fm_channel *channel, fm_delivery *delivery)
{
    (void)channel;
    fm_delivery_free(delivery);
}

static const fm_channel_ops verifier_ops = {
    .done = verifier_done,
    .closed = verifier_closed,
    .answer = verifier_answer,
    .method = verifier_method,
    .content = verifier_content,
};
