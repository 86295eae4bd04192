/* What an open bus is doing and has done, for anybody to look at.
 *
 * Any thread may call these. None does I/O, and none waits for a lock that
 * is held while somebody does: the health of a bus is read from atomics and
 * from its consumers, one leaf lock after the other; the counts take that of
 * the publisher as well. Neither credentials nor message content are here.
 */
#ifndef FM_IO_STATS_H
#define FM_IO_STATS_H

#include "base/attrs.h"
#include "base/status.h"
#include "io/bus.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One connection. Ages are in nanoseconds before the look. */
typedef struct fm_conn_look {
    fm_conn_state state;
    bool wanted;         /* somebody has something to do with it */
    const fm_host *host; /* borrowed, while the bus lives; NULL: never open */
    int64_t since_ns;    /* since it is open, or since it is not */
    int64_t heard_ns;    /* since the last byte; -1: never open */
    int heartbeat_s;     /* as agreed; 0: none */
    unsigned failures;   /* rounds in which no host took us, since the last
                          * connection */
    uint64_t connects;
    uint64_t bytes_sent;
    uint64_t bytes_received;
} fm_conn_look;

void fm_conn_look_at(fm_conn *conn, int64_t now, fm_conn_look *out);

typedef enum fm_presence {
    FM_PRESENCE_UNWANTED, /* stopped or closed, or about to be */
    FM_PRESENCE_MISSING,  /* not yet, not again, or refused */
    FM_PRESENCE_THERE,    /* as it is to be, on the broker's word */
} fm_presence;

/* One consumer. */
typedef struct fm_consumer_look {
    fm_consumer_state state;
    fm_presence presence;
    int64_t verified_ns; /* since the broker showed that queues and consumers
                          * are there; -1: it never did, or does not say */
} fm_consumer_look;

void fm_consumer_look_at(
    fm_consumer *consumer, int64_t now, fm_consumer_look *out);

/* For how long the broker has been blocking publishers; -1: it is not. */
int64_t fm_bus_blocked_ns(fm_bus *bus, int64_t now);

/* Names of states, constant: "open", "consuming", ... */
const char *fm_conn_state_name(fm_conn_state state);
const char *fm_consumer_state_name(fm_consumer_state state);

#endif
