/* A message on its way out, and who waits for what becomes of it.
 *
 * A caller makes it, submits it to a publisher (publish.h) and waits; the
 * I/O thread finishes it: confirmed, answered or failed, once. A call also
 * collects its replies here (reply.h). Shared by count, because a caller may
 * give up at any moment.
 */
#ifndef FM_IO_MESSAGE_H
#define FM_IO_MESSAGE_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "base/sync.h"
#include "wire/envelope.h"

#include <stdatomic.h>
#include <stdbool.h>

struct fm_topology;
struct fm_gate;

/* Which confirm channel carries it. Each keeps order within itself. */
typedef enum fm_lane {
    FM_LANE_RPC,    /* calls, casts, replies */
    FM_LANE_NOTIFY, /* notifications: bulk, with a window of its own */
    FM_LANE_FANOUT, /* fanouts: a vanished exchange closes this one only */
    FM_LANE_COUNT
} fm_lane;

/* Retry for ever: the value of fm_message.retry for None and -1. */
enum { FM_RETRY_FOREVER = -1 };

/* One reply to a call, as received. */
typedef struct fm_reply {
    struct fm_reply *next;
    fm_buf body;     /* owned */
    bool ending;     /* the last one of its call */
    bool is_msgpack; /* what the body is written in; else JSON */
} fm_reply;

typedef enum fm_message_place {
    FM_PLACE_CALLER, /* not submitted, or done with */
    FM_PLACE_UNSENT, /* in its lane's queue */
    FM_PLACE_SENT,   /* in its lane's ring, waiting for the confirm */
    FM_PLACE_PARKED, /* refused, or a returned reply: waits for its next try */
} fm_message_place;

typedef struct fm_message {
    atomic_uint refs;
    fm_wake wake;      /* whoever waits for the end or for a reply */
    atomic_int status; /* an fm_status; FM_AGAIN while under way */
    atomic_bool ended; /* who sets it writes error and status */
    fm_error error;    /* written before status is; read after */

    /* FM_IMMUTABLE after submission. */
    fm_lane lane;
    bool mandatory;
    bool handed_over;  /* nobody waits: a reply that the core owns */
    int retry;         /* connection losses, failed rounds, nacks it bears */
    int64_t hold_ns;   /* of a handed-over one: how long a connected broker may
                        * not confirm it */
    char *exchange;    /* owned; "" is the default exchange */
    char *routing_key; /* owned */
    char expiration[24];          /* milliseconds in decimal; "" for none */
    struct fm_topology *topology; /* shared; NULL: nothing to declare */
    struct fm_gate *gate;         /* shared; NULL: may go at once (publish.h) */
    fm_buf body;                  /* owned: the payload of the body frames */
    char compression[48];         /* what undoes it, as a MIME type; "" */
    bool is_msgpack;              /* the body is in the binary envelope */
    bool reads_msgpack;           /* a header says that replies may be, too */
    char msg_id[FM_MSG_ID_MAX + 1]; /* of a call, else "" */

    /* FM_GUARDED_BY(the publisher's output lock). */
    fm_message_place place;
    bool abandoned;    /* its caller gave up: never send it again */
    bool returned;     /* basic.return came, its confirm has not */
    int64_t submitted; /* fm_now() then */
    int losses;        /* compared with retry */
    int strikes;       /* hard errors it was in flight at */
    int64_t struck_at; /* when the last missing exchange counted as one */
    int64_t due;       /* of a parked one: its next try */
    int64_t pause_ns;  /* of a parked one: grows with each try */
    struct fm_message *prev, *next;
    /* Until when a refused or returned one is tried again: of a reply set
     * before submission, of others by the first nack. */
    fm_deadline give_up;

    /* FM_GUARDED_BY(the reply table's lock). */
    bool expected;     /* registered in the reply table */
    int64_t asked;     /* fm_now() then */
    fm_reply *replies; /* owned; oldest first */
    fm_reply *last_reply;
} fm_message;

/* A message with one reference and copies of the names; the caller fills
 * body and the other immutable fields before it submits. FM_TOO_LARGE: a name
 * beyond 255 bytes, AMQP's limit. `topology` and `gate` stay NULL; storing
 * one stores a reference. */
FM_MUST_CHECK fm_status fm_message_new(fm_lane lane, const char *exchange,
    const char *routing_key, fm_message **out);

fm_message *fm_message_ref(fm_message *message);
void fm_message_unref(fm_message *message); /* NULL is allowed */

/* End it, once; later calls, also of other threads, change nothing. `error` is
 * copied; NULL stands for FM_OK. */
void fm_message_finish(fm_message *message, const fm_error *error);

/* What its caller is told about it, from a cause. */
void fm_message_describe(
    const fm_message *message, const fm_error *cause, fm_error *out);

/* Messages that are done with: gathered under the publisher's lock, finished
 * without it. Each entry holds a reference. A zeroed one is empty. */
typedef struct fm_settled {
    fm_message *first; /* shared; linked by next */
    fm_message *last;
} fm_settled;

/* Passes on the reference of who held the message until now. */
void fm_settled_add(fm_settled *list, fm_message *message);

/* Finish all with one error, described for each; NULL: they are confirmed,
 * which ends all but calls: those end with their reply. Empties the list. */
void fm_settled_finish(fm_settled *list, const fm_error *error);

/* Nobody waits for these: let go of them. Empties the list. */
void fm_settled_drop(fm_settled *list);

/* Does somebody wait for its confirm or return? A call ends with its reply,
 * unless it is mandatory, and for a handed-over reply nobody waits. */
static inline bool
fm_message_is_awaited(const fm_message *message)
{
    return !message->handed_over
        && (message->msg_id[0] == '\0' || message->mandatory);
}

/* FM_AGAIN while under way. */
static inline fm_status
fm_message_status(fm_message *message)
{
    return (fm_status)atomic_load_explicit(
        &message->status, memory_order_acquire);
}

#endif
