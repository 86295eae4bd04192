/* What a publisher needs declared: a queue of topologies, and the channel on
 * which the I/O thread declares them, one after the other.
 *
 * The channel is used for nothing else, because 404 and 406 close it. Each
 * topology remembers for which connection it was asked for and declared.
 */
#ifndef FM_IO_DECLARE_H
#define FM_IO_DECLARE_H

#include "base/attrs.h"
#include "io/channel.h"
#include "io/output.h"
#include "io/rescue.h"
#include "io/topology.h"

#include <stddef.h>
#include <stdint.h>

typedef struct fm_declarer fm_declarer;

/* Told by the I/O thread, without a lock held. */
typedef struct fm_declarer_ops {
    void (*done)(fm_declarer *declarer);
    /* The broker refused; messages that need `topology` cannot go. */
    void (*refused)(fm_declarer *declarer, const fm_topology *topology,
        const fm_error *why);
} fm_declarer_ops;

struct fm_declarer {
    const fm_declarer_ops *ops; /* borrowed */
    void *owner;                /* borrowed */
    fm_output *output;          /* borrowed: the connection's */

    fm_topology **requests FM_GUARDED_BY(output->lock); /* owned; shared */
    size_t request_count FM_GUARDED_BY(output->lock);
    size_t request_cap FM_GUARDED_BY(output->lock);

    /* FM_OWNED_BY_THREAD(io). */
    fm_channel channel;
    fm_topology *declaring; /* shared; under way on the channel */
};

void fm_declarer_init(fm_declarer *declarer, const fm_declarer_ops *ops,
    void *owner, fm_output *output, uint16_t channel_id);
void fm_declarer_fini(fm_declarer *declarer);

/* Any thread, with the output's lock held: was it declared on this
 * connection? If not it will be. */
bool fm_declarer_has(fm_declarer *declarer, fm_topology *topology);

/* --- the I/O thread --- */

/* Begin the next declaration if none is under way. */
void fm_declarer_step(fm_declarer *declarer);

/* Is what is under way in need of the rescuer? Returns when to look again. */
fm_deadline fm_declarer_watch(
    fm_declarer *declarer, fm_rescuer *rescuer, int64_t now);

/* The connection is lost: whoever still needs something asks again. */
void fm_declarer_down(fm_declarer *declarer);

#endif
