/* A consumer: one channel of the consuming connection, its queues, and what
 * was delivered and not yet taken.
 *
 * Callers say what they want (declared, consuming, stopped, closed) and wait;
 * the I/O thread gets it there, and back there after every loss. Deliveries
 * wait in the intake, which basic.qos bounds, until a caller takes them. A
 * consumer of replies gives each reply straight to its caller, through the
 * reply table; only those that the core cannot read are put into its intake,
 * for Python to read (fm_event_call(), fm_consumer_deliver_reply()).
 */
#ifndef FM_IO_CONSUME_H
#define FM_IO_CONSUME_H

#include "base/attrs.h"
#include "base/counter.h"
#include "base/idmap.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/channel.h"
#include "io/claim.h"
#include "io/gate.h"
#include "io/output.h"
#include "io/place.h"
#include "io/reply.h"
#include "io/topology.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In this order: what is wanted only ever grows. */
typedef enum fm_consumer_goal {
    FM_GOAL_DECLARED,
    FM_GOAL_CONSUMING,
    FM_GOAL_STOPPED,
    FM_GOAL_CLOSED,
} fm_consumer_goal;

typedef enum fm_consumer_state {
    FM_CONSUMER_DOWN,      /* no channel */
    FM_CONSUMER_DECLARING, /* its script is under way */
    FM_CONSUMER_DECLARED,
    FM_CONSUMER_STARTING,
    FM_CONSUMER_CONSUMING,
    FM_CONSUMER_STOPPING,
    FM_CONSUMER_STOPPED,
    FM_CONSUMER_CLOSING,
    FM_CONSUMER_CLOSED,
    FM_CONSUMER_FAILED, /* the broker refused it from the start: see error */
} fm_consumer_state;

typedef struct fm_consumer_config {
    const char *const *queues; /* borrowed; consumer tags are "1", "2", ... */
    size_t queue_count;
    uint16_t prefetch;       /* basic.qos; 0: none */
    bool replies;            /* deliver to the reply table */
    bool cancel_on_failover; /* x-cancel-on-ha-failover of each consumer */
} fm_consumer_config;

typedef struct fm_consumer {
    atomic_uint refs;
    fm_wake wake; /* a delivery came, or the state changed */

    /* FM_IMMUTABLE. */
    fm_output *output;     /* borrowed: the connection's; outlives us */
    fm_reply_table *table; /* borrowed; NULL unless replies */
    fm_topology *topology; /* shared */
    fm_gate *gate;         /* shared; open while it consumes */
    char **queues;         /* owned */
    size_t queue_count;
    uint16_t prefetch;
    bool cancel_on_failover;
    bool has_streams;

    /* A leaf: its holder takes no other lock, no GIL, and calls nobody. */
    fm_mutex lock;
    fm_consumer_goal goal FM_GUARDED_BY(lock);
    fm_consumer_state state FM_GUARDED_BY(lock); /* written by I/O thread */
    bool served FM_GUARDED_BY(lock);             /* by the I/O thread */
    fm_error error FM_GUARDED_BY(lock);
    fm_delivery *intake FM_GUARDED_BY(lock); /* owned; oldest first */
    fm_delivery *last FM_GUARDED_BY(lock);
    size_t intake_len FM_GUARDED_BY(lock);
    fm_place *places FM_GUARDED_BY(lock); /* owned; by queue, if has_streams */
    fm_window seen FM_GUARDED_BY(lock);   /* ids of what was accepted */
    fm_claims claims FM_GUARDED_BY(lock); /* and of what is worked on */
    char **farewell FM_GUARDED_BY(lock);  /* owned: queues to delete at close */
    size_t farewell_len FM_GUARDED_BY(lock);

    /* For other threads to look at. */
    fm_counter delivered;
    fm_counter duplicates;
    fm_counter rejected; /* for good: not given back to the queue */

    /* When the broker showed last that queues and consumers are there: it
     * took the consumers, found the queues, or delivered a reply. 0: never.
     * Written by the I/O thread. */
    atomic_int_fast64_t verified_at;

    /* FM_OWNED_BY_THREAD(io). */
    fm_channel channel;
    struct fm_consumer *next; /* of the connection's */
    int64_t joined;           /* when it became one of them */
    bool established;         /* was declared once: never FAILED any more */
    bool *cancelled;  /* owned; by queue: the broker ended its consumer */
    bool *missing;    /* owned; by queue: it is gone, the consumer may not be */
    bool any_lost;    /* cancelled or missing */
    bool consumes;    /* the script under way ends in consuming */
    bool recovers;    /* and it has consumed before */
    bool releases;    /* it gives up the consumers of missing queues */
    bool is_watched;  /* a queue was missing: looked for from then on */
    bool leaves_host; /* the node has no replica of a stream of its */
    bool is_untold;   /* the broker refused to say whether they are there */
    bool is_unbound;  /* or to bind them */
    int64_t verify_at; /* when to look whether its queues are there */
    unsigned looks;    /* to come after that one */
    int64_t retry_at;
    int64_t pause_ns;     /* before the next one, if it does not stand */
    int64_t stands_since; /* when it was declared */
    uint64_t unacked_tag; /* of a reply consumer: to be acked, multiple */
    size_t unacked;
    int64_t ack_due;
} fm_consumer;

/* A consumer with one reference and goal FM_GOAL_DECLARED, not yet attached
 * to a connection. `table` is used if config->replies. */
FM_MUST_CHECK fm_status fm_consumer_new(const fm_consumer_config *config,
    fm_topology *topology, fm_output *output, fm_reply_table *table,
    fm_consumer **out);
fm_consumer *fm_consumer_ref(fm_consumer *consumer);
void fm_consumer_unref(fm_consumer *consumer); /* NULL is allowed */

/* --- any thread --- */

/* Said by the bus that it joins: the I/O thread is there to be woken. */
void fm_consumer_set_served(fm_consumer *consumer, bool served);

/* Raise the goal (a lower one is ignored) and wake the I/O thread. */
void fm_consumer_want(fm_consumer *consumer, fm_consumer_goal goal);

/* Have `queue` deleted when the consumer closes. Before FM_GOAL_CLOSED. */
FM_MUST_CHECK fm_status fm_consumer_delete_at_close(
    fm_consumer *consumer, const char *queue);

/* Sleep until the goal is reached: FM_OK. FM_TIMED_OUT, FM_INTERRUPTED;
 * otherwise what the broker or the close of the bus says, in `error`. */
FM_MUST_CHECK fm_status fm_consumer_wait(
    fm_consumer *consumer, fm_deadline deadline, fm_error *error);

/* Sleep until there is a delivery, and take up to `max` in order (linked by
 * `next`, the caller's to free); fewer of large ones, which would all be held
 * in two forms at a time. FM_TIMED_OUT, FM_INTERRUPTED; FM_CLOSED when
 * it was stopped. */
FM_MUST_CHECK fm_status fm_consumer_take(
    fm_consumer *consumer, size_t max, fm_deadline deadline, fm_delivery **out);

/* Settle a delivery. Those of a channel that is gone are ignored: the broker
 * has taken them back already (false). Never blocks. `push`: send it now;
 * otherwise it goes with the next push. */
bool fm_consumer_ack(fm_consumer *consumer, uint64_t generation, uint64_t tag,
    bool multiple, bool push);
void fm_consumer_reject(
    fm_consumer *consumer, uint64_t generation, uint64_t tag, bool requeue);

/* Refuse a delivery. One of a stream is acknowledged, which keeps what it has:
 * there, refusing ends the connection (540). */
void fm_consumer_refuse(fm_consumer *consumer, uint64_t generation,
    uint64_t tag, bool is_of_stream, bool requeue);

/* Give a reply that was read elsewhere to its caller: in the binary envelope,
 * of which FM_OK takes the body. FM_NOT_FOUND: late; FM_BAD_MESSAGE: no reply.
 */
FM_MUST_CHECK fm_status fm_consumer_deliver_reply(
    fm_consumer *consumer, fm_buf *body);

/* Duplicates: was this id accepted lately? And: accept it from now on. */
bool fm_consumer_has_seen(fm_consumer *consumer, const char *id, size_t len);
void fm_consumer_remember(fm_consumer *consumer, const char *id, size_t len);

/* For what is settled after the work: may it begin? If so the id is claimed,
 * until it is released, first thing when the delivery is settled (claim.h). */
FM_MUST_CHECK fm_novelty fm_consumer_claim(
    fm_consumer *consumer, const char *id, size_t len, fm_delivery *delivery);
bool fm_consumer_release(
    fm_consumer *consumer, const char *id, fm_delivery *delivery);

/* What it is to be and what it is, at one moment. */
void fm_consumer_states_get(
    fm_consumer *consumer, fm_consumer_goal *goal, fm_consumer_state *state);

/* The queue that a delivery came from; NULL if its tag is none of ours. */
const char *fm_consumer_queue_of(
    const fm_consumer *consumer, const fm_delivery *delivery);

/* --- the I/O thread --- */

void fm_consumer_down(fm_consumer *consumer);
/* It will never be there: tell who waits. */
void fm_consumer_fail(fm_consumer *consumer, const fm_error *why);
/* Every host refused us: tell who waits to be declared for the first time. */
void fm_consumer_refused(fm_consumer *consumer, const fm_error *why);
fm_deadline fm_consumer_step(fm_consumer *consumer, int64_t now, bool up);

/* For the verifier (verify.h). When its queues are to be looked for; FM_NEVER
 * unless it consumes. */
fm_deadline fm_consumer_verify_at(const fm_consumer *consumer);
/* Is there something to look for at the queue of this index? */
bool fm_consumer_is_looked_at(const fm_consumer *consumer, size_t index);
/* Could it be gone without a basic.cancel? */
bool fm_consumer_may_lose(const fm_consumer *consumer, size_t index);
/* Are its queues bound, so that they are to be bound again? */
bool fm_consumer_binds(const fm_consumer *consumer);
/* What came of it: all are there; this one is gone; the broker will not say;
 * it will not bind them. */
void fm_consumer_verified(fm_consumer *consumer, int64_t now);
void fm_consumer_lost(fm_consumer *consumer, size_t index);
/* It is there, with so many messages. */
void fm_consumer_measured(
    fm_consumer *consumer, size_t index, uint32_t length, int64_t now);
void fm_consumer_not_verified(fm_consumer *consumer, const fm_close *why);
void fm_consumer_not_bound(fm_consumer *consumer, const fm_close *why);

/* The bus is closed: end in FM_CONSUMER_CLOSED. */
void fm_consumer_abandon(fm_consumer *consumer);

#endif
