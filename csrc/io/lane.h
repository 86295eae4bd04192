/* A lane of the publisher: the queue of what waits to be sent on one confirm
 * channel, and the ring of what waits for its confirm there.
 *
 * This is the order and the accounting only; what may be sent, and what
 * becomes of it, publish.c decides. Everything here is called with the lock
 * of the connection's output held, by any thread. Both queue and ring hold a
 * reference to each message, which moves with it.
 */
#ifndef FM_IO_LANE_H
#define FM_IO_LANE_H

#include "base/attrs.h"
#include "base/status.h"
#include "io/channel.h"
#include "io/message.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Guarded by output->lock, but for the channel, which is the I/O thread's. */
typedef struct fm_publisher_lane {
    fm_channel channel;       /* id is the lane's number + 1 */
    bool ready;               /* open and in confirm mode */
    fm_message *first_unsent; /* shared */
    fm_message *last_unsent;
    size_t unsent;
    fm_message **ring; /* owned; entries shared; NULL: confirmed */
    size_t ring_cap;   /* a power of two */
    uint64_t low;      /* the oldest tag without confirm */
    uint64_t next;     /* the tag of the next publish */
    size_t in_flight;
    size_t in_flight_bytes;
    size_t awaited;      /* in queue and ring: see fm_message_is_awaited() */
    size_t window;       /* most messages in flight, ... */
    size_t window_bytes; /* ... and most bytes */
    /* One of so many messages closed the channel, and the broker does not
     * say which: until they are settled, one at a time. */
    size_t suspects;
    /* A channel that goes on refusing is closed and opened anew. */
    int64_t refuses_since; /* its first nack; 0: none */
    int64_t renewed;       /* when that was done last */
    fm_deadline renew_by;  /* when at the latest; FM_NEVER: stays as it is */
} fm_publisher_lane;

/* Empty; the channel is the caller's to prepare. */
void fm_lane_init(fm_publisher_lane *lane, size_t window, size_t window_bytes);
void fm_lane_fini(fm_publisher_lane *lane); /* empty */

/* --- the queue --- */

void fm_lane_append(fm_publisher_lane *lane, fm_message *message);
void fm_lane_remove(fm_publisher_lane *lane, fm_message *message);

/* Move every unsent message that `matches` to `out`. */
void fm_lane_cull(fm_publisher_lane *lane,
    bool (*matches)(fm_message *message, const void *arg), const void *arg,
    fm_settled *out);

/* --- the ring --- */

/* Does the window take one more? */
static inline bool
fm_lane_has_room(const fm_publisher_lane *lane)
{
    return lane->in_flight < (lane->suspects > 0 ? 1 : lane->window)
        && lane->in_flight_bytes < lane->window_bytes;
}

/* Room for one more tag. */
FM_MUST_CHECK fm_status fm_lane_reserve(fm_publisher_lane *lane);

/* The unsent message is written: it moves to the ring, under the next tag.
 * After fm_lane_reserve(). */
void fm_lane_sent(fm_publisher_lane *lane, fm_message *message);

/* The message of a tag between low and next; NULL: it has its confirm. */
static inline fm_message *
fm_lane_get(const fm_publisher_lane *lane, uint64_t tag)
{
    return lane->ring[tag & (lane->ring_cap - 1)];
}

/* The same, which leaves the ring. */
fm_message *fm_lane_take(fm_publisher_lane *lane, uint64_t tag);

/* The channel is gone: take back what is in flight, in order, to the head of
 * the queue. Abandoned ones, and calls that were answered before their confirm
 * came, join `dropped` instead; `verdict` decides on the others: true, and it
 * joins `failed`. Tags begin anew. Returns how many were
 * taken back. */
size_t fm_lane_recall(fm_publisher_lane *lane,
    bool (*verdict)(fm_message *message, const void *arg), const void *arg,
    fm_settled *failed, fm_settled *dropped);

#endif
