/* Queues that died with their node, on a strict broker (strict.h), where they
 * are durable although nobody asked for that.
 *
 * The broker keeps the name of a durable classic queue while its node is down:
 * whoever declares it waits for more than a minute (RabbitMQ 4.0) and is told
 * 404 then, again and again. One that is not durable is just gone, and is
 * declared anew on another node, which is what a service relies on. So a
 * declaration that waits is helped: its queue is deleted, which the broker does
 * at once, also if it is dead, and the declaration goes on by itself and makes
 * it on this node.
 *
 * But it may wait because the queue is busy, with messages. So first comes a
 * deletion on the condition that nobody uses it and that nothing is in it. A
 * dead queue refuses that at once, since nobody knows what is in it. One that
 * lives answers the declaration before it answers this, or right after: then
 * nothing more is done, and nothing was lost.
 *
 * The I/O thread does it, on a channel of its own of the same connection, which
 * is open while there is something to do.
 */
#ifndef FM_IO_RESCUE_H
#define FM_IO_RESCUE_H

#include "base/attrs.h"
#include "io/channel.h"
#include "io/topology.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* FM_OWNED_BY_THREAD(io), all of it. */
typedef struct fm_rescuer {
    fm_channel channel;
    fm_channel *stuck;     /* borrowed: whose script waits; NULL: none */
    fm_topology *topology; /* shared: what it declares */
    uint64_t generation;   /* of the stuck one, ... */
    size_t answered;       /* ... and how far it was */
    const char *queue;     /* borrowed, of the topology */
    bool is_dead;          /* the queue: it may be deleted, ... */
    int64_t delete_at;     /* ... if its declaration still waits then */
    int64_t alert_until;   /* others of the same node may be dead, too */
    int64_t jitter_ns;     /* FM_IMMUTABLE */
} fm_rescuer;

void fm_rescuer_init(
    fm_rescuer *rescuer, fm_output *output, uint16_t channel_id);
void fm_rescuer_fini(fm_rescuer *rescuer);

/* Does a channel wait for one of the queues of `topology`, which its script
 * declares? Returns when to look again. */
fm_deadline fm_rescuer_watch(fm_rescuer *rescuer, fm_channel *channel,
    fm_topology *topology, int64_t now);

/* After all channels were looked at. */
fm_deadline fm_rescuer_step(fm_rescuer *rescuer, int64_t now);

/* A channel goes. */
void fm_rescuer_forget(fm_rescuer *rescuer, const fm_channel *channel);

/* The connection is lost. */
void fm_rescuer_down(fm_rescuer *rescuer);

#endif
