/* Everything that a process publishes over one connection.
 *
 * Callers submit messages from any thread and wait for what becomes of them
 * (message.h). Each lane is one channel in confirm mode that all threads
 * share: messages are sent in the order in which they were submitted, any
 * number is in flight, and a ring indexed by delivery tag finds the message
 * of each confirm. What a lost connection leaves unconfirmed is sent again, in
 * order and unchanged, on the next one.
 *
 * A message may overtake another one only if that one waits for a
 * declaration or a gate that this one does not need, so that messages of one
 * thread to one queue keep their order.
 */
#ifndef FM_IO_PUBLISH_H
#define FM_IO_PUBLISH_H

#include "base/attrs.h"
#include "base/counter.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/channel.h"
#include "io/declare.h"
#include "io/handed.h"
#include "io/lane.h"
#include "io/message.h"
#include "io/output.h"
#include "io/rescue.h"
#include "io/topology.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FM_DECLARER_ID = FM_LANE_COUNT + 1, FM_RESCUER_ID };

/* What happened so far. */
typedef struct fm_publisher_counters {
    fm_counter published;
    fm_counter confirmed;
    fm_counter nacked;
    fm_counter returned;
    fm_counter resent;
    fm_counter failed;
    fm_counter blocked_ns; /* of alarms that are over */
    /* Since when the broker blocks publishers; 0: it does not. */
    atomic_int_fast64_t blocked_since;
} fm_publisher_counters;

typedef struct fm_publisher_stats {
    uint64_t published;
    uint64_t confirmed;
    uint64_t nacked;
    uint64_t returned;
    uint64_t resent;
    uint64_t failed;
    uint64_t in_flight;
    uint64_t unsent;
    uint64_t parked;
    int64_t blocked_ns; /* time spent under alarms of the broker */
} fm_publisher_stats;

typedef struct fm_publisher {
    fm_output *output; /* borrowed: the connection's */

    /* FM_GUARDED_BY(output->lock). */
    fm_publisher_lane lanes[FM_LANE_COUNT];
    bool wanted; /* somebody has submitted: connect */
    bool closed;
    bool blocked;     /* connection.blocked: an alarm at the broker */
    int64_t up_since; /* of the connection; 0 while down */
    fm_error trouble; /* the last thing that went wrong; FM_OK: nothing */
    fm_handed handed;
    uint64_t walk;          /* counts walks over a lane's queue */
    int64_t last_unawaited; /* when a message nobody waits for came last */
    bool dozing;            /* see fm_publisher_try_doze() */
    int64_t expire_at;      /* when to look for overdue replies */

    fm_publisher_counters counters; /* for others to look at */
    fm_declarer declarer;
    fm_rescuer rescuer; /* for what the declarer waits for */
} fm_publisher;

void fm_publisher_init(fm_publisher *publisher, fm_output *output);
void fm_publisher_fini(fm_publisher *publisher); /* after _close */

/* --- any thread --- */

/* Queue the message and send it if it can go now; never blocks. FM_OK: the
 * publisher holds a reference, and the message will be finished. FM_CLOSED.
 * FM_FULL: too many handed-over replies wait (fm_publisher_wait_space). */
FM_MUST_CHECK fm_status fm_publisher_submit(
    fm_publisher *publisher, fm_message *message);

/* The caller gave up: it is not sent any more if it was not yet. */
void fm_publisher_cancel(fm_publisher *publisher, fm_message *message);

/* Sleep until handed-over replies have become fewer than the bound. */
FM_MUST_CHECK fm_status fm_publisher_wait_space(
    fm_publisher *publisher, fm_deadline deadline);

/* Sleep until every handed-over reply is confirmed or parked. */
FM_MUST_CHECK fm_status fm_publisher_wait_handed(
    fm_publisher *publisher, fm_deadline deadline);

/* Since when the broker could have confirmed this message: its submission or
 * the connection's begin, whichever came later; FM_NEVER while there is no
 * connection. Bounds alarms and withheld confirms, not outages. */
int64_t fm_publisher_pending_since(
    fm_publisher *publisher, fm_message *message);

/* Say in `error` what the message is waiting for, as FM_TIMED_OUT. */
void fm_publisher_explain(
    fm_publisher *publisher, fm_message *message, fm_error *error);

void fm_publisher_stats_get(fm_publisher *publisher, fm_publisher_stats *out);

/* --- the I/O thread --- */

/* The channel with this number; NULL: not the publisher's. */
fm_channel *fm_publisher_channel(fm_publisher *publisher, uint16_t id);

void fm_publisher_up(fm_publisher *publisher, int64_t now);

/* The connection is lost: what was in flight waits for the next one, or
 * fails if its `retry` is used up. With status FM_AGAIN it is made again for
 * another reason than an error, and counts as no retry. */
void fm_publisher_down(fm_publisher *publisher, const fm_error *why);

/* Every host was tried and none took us. FM_REFUSED fails all at once. */
void fm_publisher_round_failed(fm_publisher *publisher, const fm_error *why);

void fm_publisher_set_blocked(
    fm_publisher *publisher, bool blocked, fm_slice reason);

/* Does a message wait that came after `since` and that the next failure, or
 * refusal, would end? */
bool fm_publisher_is_impatient(fm_publisher *publisher, int64_t since);

/* Has anybody submitted, so that a connection is wanted? */
bool fm_publisher_is_wanted(fm_publisher *publisher);

/* Open lanes, declare, send what has become ready. Returns when to be called
 * again. */
fm_deadline fm_publisher_step(fm_publisher *publisher, int64_t now);

/* Before sleeping: may what the broker sends on this connection wait? For
 * some milliseconds after a call or reply it may, if nobody waits for a
 * confirm: the I/O thread is woken by the other connection when the reply, or
 * the next request, comes, and so once for each call and not twice. */
bool fm_publisher_try_doze(
    fm_publisher *publisher, int64_t now, fm_deadline *until);

/* After sleeping; true: it dozed, so look whether something has come. */
bool fm_publisher_end_doze(fm_publisher *publisher);

/* Fail everything with FM_CLOSED, now and later. */
void fm_publisher_close(fm_publisher *publisher);

#endif
