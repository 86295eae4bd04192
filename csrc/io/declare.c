#include "io/declare.h"

#include "io/adopt.h"

#include <stdlib.h>

static const fm_channel_ops declarer_ops;

void
fm_declarer_init(fm_declarer *declarer, const fm_declarer_ops *ops, void *owner,
    fm_output *output, uint16_t channel_id)
{
    *declarer = (fm_declarer){ .ops = ops, .owner = owner, .output = output };
    fm_channel_init(&declarer->channel, &declarer_ops, declarer, output);
    declarer->channel.id = channel_id;
}

static void
drop_requests(fm_declarer *declarer)
{
    for (size_t i = 0; i < declarer->request_count; i++)
        fm_topology_unref(declarer->requests[i]);
    declarer->request_count = 0;
}

void
fm_declarer_fini(fm_declarer *declarer)
{
    fm_channel_fini(&declarer->channel);
    fm_topology_unref(declarer->declaring);
    drop_requests(declarer);
    free(declarer->requests);
}

/* --- requests; with the lock held --- */

static void
request(fm_declarer *declarer, fm_topology *topology, uint64_t epoch)
    FM_NO_LOCK_CHECK /* clang does not know that it is the publisher's */
{
    if (declarer->request_count == declarer->request_cap) {
        size_t cap = declarer->request_cap == 0 ? 8 : declarer->request_cap * 2;
        fm_topology **requests =
            realloc(declarer->requests, cap * sizeof(*requests));

        if (requests == NULL) {
            fm_output_starve_locked(declarer->output);
            return; /* asked again with the next message or step */
        }
        declarer->requests = requests;
        declarer->request_cap = cap;
    }
    declarer->requests[declarer->request_count++] = fm_topology_ref(topology);
    atomic_store(&topology->requested, epoch);
    fm_waker_signal(declarer->output->waker);
}

bool
fm_declarer_has(fm_declarer *declarer, fm_topology *topology)
{
    uint64_t epoch = declarer->output->epoch;

    if (topology->count == 0
        || atomic_load_explicit(&topology->declared, memory_order_acquire)
            == epoch)
        return true;
    if (atomic_load(&topology->requested) != epoch)
        request(declarer, topology, epoch);
    return false;
}

/* --- declaring (I/O thread) --- */

static fm_topology *
take_request(fm_declarer *declarer)
{
    fm_topology *topology = NULL;

    fm_mutex_lock(&declarer->output->lock);
    if (declarer->request_count > 0) {
        topology = declarer->requests[0];
        declarer->request_count--;
        memmove(declarer->requests, declarer->requests + 1,
            declarer->request_count * sizeof(fm_topology *));
    }
    fm_mutex_unlock(&declarer->output->lock);
    return topology;
}

void
fm_declarer_step(fm_declarer *declarer)
{
    fm_channel *channel = &declarer->channel;
    fm_topology *topology;
    fm_script script;
    fm_status status = FM_OK;

    if (channel->state == FM_CHANNEL_BUSY)
        return;
    topology = take_request(declarer);
    if (topology == NULL)
        return;
    fm_script_init(&script, channel->id);
    if (channel->state == FM_CHANNEL_CLOSED)
        status = fm_script_add_open(&script);
    if (status == FM_OK)
        status = fm_topology_write_for(
            topology, declarer->output->strictness, &script);
    if (status == FM_OK)
        status = fm_channel_run(channel, &script);
    fm_script_fini(&script);
    if (status == FM_OK) {
        declarer->declaring = topology;
    } else { /* out of memory: the next step asks for it again */
        atomic_store(&topology->requested, 0);
        fm_topology_unref(topology);
        fm_output_starve(declarer->output);
    }
}

fm_deadline
fm_declarer_watch(fm_declarer *declarer, fm_rescuer *rescuer, int64_t now)
{
    return declarer->declaring == NULL
        ? FM_NEVER
        : fm_rescuer_watch(
            rescuer, &declarer->channel, declarer->declaring, now);
}

void
fm_declarer_down(fm_declarer *declarer)
{
    fm_mutex_lock(&declarer->output->lock);
    drop_requests(declarer);
    fm_mutex_unlock(&declarer->output->lock);
    fm_channel_reset(&declarer->channel);
    fm_topology_unref(declarer->declaring);
    declarer->declaring = NULL;
}

/* --- the channel's ops --- */

static void
declarer_done(fm_channel *channel)
{
    fm_declarer *declarer = channel->owner;

    if (declarer->declaring == NULL)
        return;
    /* With the lock held: not while a publisher walks over a queue, or a
     * message would overtake those that were found to have to wait. */
    fm_mutex_lock(&declarer->output->lock);
    fm_topology_settle(declarer->declaring);
    atomic_store_explicit(&declarer->declaring->declared,
        declarer->output->epoch, memory_order_release);
    fm_mutex_unlock(&declarer->output->lock);
    fm_topology_unref(declarer->declaring);
    declarer->declaring = NULL;
    declarer->ops->done(declarer);
}

static void
declarer_closed(fm_channel *channel, const fm_close *why)
{
    fm_declarer *declarer = channel->owner;
    fm_topology *topology = declarer->declaring;
    char text[FM_ERROR_TEXT / 2];
    fm_error error;

    if (topology == NULL)
        return;
    fm_amqp_print_close(text, sizeof(text), why);
    (void)fm_error_set(&error, FM_REJECTED, why->code,
        "the broker refused a declaration: %s", text);
    declarer->declaring = NULL;
    atomic_store(&topology->requested, 0);
    if (fm_adopt(topology, why))
        declarer->ops->done(declarer); /* whoever needs it asks again */
    else
        declarer->ops->refused(declarer, topology, &error);
    fm_topology_unref(topology);
    fm_waker_signal(declarer->output->waker); /* for the next request */
}

static fm_status
declarer_method(fm_channel *channel, uint32_t id, fm_slice payload)
{
    (void)channel;
    (void)id;
    (void)payload;
    return FM_BAD_FRAME;
}

static void
declarer_content(fm_channel *channel, fm_delivery *delivery)
{
    (void)channel;
    fm_delivery_free(delivery);
}

static const fm_channel_ops declarer_ops = {
    .done = declarer_done,
    .closed = declarer_closed,
    .method = declarer_method,
    .content = declarer_content,
};
