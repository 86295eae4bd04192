/* What a process has at one broker: a connection that publishes, one that
 * consumes, and the table of replies between them.
 *
 * Transports with the same parameters share a bus; it is found by its key.
 * A bus costs nothing until something is submitted or consumed: the first use
 * attaches it to the I/O thread (loop.h), which connects.
 *
 * An alarm of the broker stops the publishing connection only; the other
 * goes on delivering and acknowledging. That is why there are two.
 */
#ifndef FM_IO_BUS_H
#define FM_IO_BUS_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/conn.h"
#include "io/consume.h"
#include "io/publish.h"
#include "io/reply.h"
#include "io/rescue.h"
#include "io/verify.h"

#include <poll.h>
#include <stdbool.h>

enum { FM_BUS_CONNS = 2 };

/* What consumers got. */
typedef struct fm_consumed {
    uint64_t delivered;
    uint64_t duplicates;
    uint64_t rejected;
} fm_consumed;

typedef struct fm_bus {
    atomic_uint refs;
    char *key;           /* owned. FM_IMMUTABLE */
    unsigned generation; /* fm_fork_generation() it was made in. IMMUTABLE */
    unsigned users FM_GUARDED_BY(registry); /* transports that opened it */
    struct fm_bus *next_open FM_GUARDED_BY(registry);
    atomic_bool attached;     /* to the I/O thread; set with `lock` held */
    atomic_bool told_of_json; /* by fm_bus_notice_json() */

    fm_conn publishing;
    fm_conn consuming;
    fm_publisher publisher;
    fm_reply_table replies;

    fm_mutex lock;
    fm_consumer *joining FM_GUARDED_BY(lock); /* shared; to become members */
    fm_consumed retired FM_GUARDED_BY(lock);  /* by members that were */
    bool closing FM_GUARDED_BY(lock);

    fm_wake wake;     /* `gone` changed */
    atomic_bool gone; /* the I/O thread has let go of it */

    /* FM_OWNED_BY_THREAD(io). */
    fm_verifier verifier; /* on the consuming connection */
    fm_rescuer rescuer;   /* on the same */
    int64_t looked_at;    /* for confirms that nobody waits for */
    /* Shared; linked by next. The list changes with `lock` held, because
     * other threads walk it to look. */
    fm_consumer *members;
    fm_consumer **by_id; /* owned; entries borrowed from members */
    size_t by_id_len;
    bool ending;
    struct fm_bus *next; /* of the loop's */
} fm_bus;

/* Open the bus with this key, making it from `config` (shared) if no
 * transport has it open. No I/O. */
FM_MUST_CHECK fm_status fm_bus_open(
    const char *key, fm_conn_config *config, fm_bus **out);

/* Leave it. The last one out closes the connections, waits for that until the
 * deadline, and ends the I/O thread if no other bus needs it. */
void fm_bus_close(fm_bus *bus, fm_deadline deadline);

fm_bus *fm_bus_ref(fm_bus *bus);
void fm_bus_unref(fm_bus *bus); /* NULL is allowed */

/* --- any thread, while open --- */

/* Submit a message; a call is expected in the reply table first. */
FM_MUST_CHECK fm_status fm_bus_submit(fm_bus *bus, fm_message *message);

/* The caller of `message` is done with it, whatever became of it. */
void fm_bus_forget(fm_bus *bus, fm_message *message);

/* Sleep until a message is confirmed or has failed: FM_OK, see its status.
 * `timeout_ns` bounds the time for which the broker could confirm and did
 * not; an outage is bounded by the message's retry. FM_TIMED_OUT,
 * FM_INTERRUPTED. */
FM_MUST_CHECK fm_status fm_bus_wait_confirm(
    fm_bus *bus, fm_message *message, int64_t timeout_ns);

/* Sleep until `call` has failed (FM_OK, see its status) or a reply has come
 * (FM_OK, *out is the caller's). */
FM_MUST_CHECK fm_status fm_bus_wait_reply(
    fm_bus *bus, fm_message *call, fm_deadline deadline, fm_reply **out);

/* Sleep until there is something to take by fm_bus_wait_reply, which then
 * returns at once; also at a signal or the deadline. */
void fm_bus_linger(fm_bus *bus, fm_message *call, fm_deadline deadline);

/* Have a consumer served. Its channel number is assigned later. */
FM_MUST_CHECK fm_status fm_bus_add_consumer(fm_bus *bus, fm_consumer *consumer);

/* A peer was seen here that speaks JSON alone, to a process that does not:
 * say so, once. `queue` is one of that peer's. */
void fm_bus_notice_json(fm_bus *bus, const char *queue);

/* Every open bus of the process, the oldest first, each with a reference for
 * the caller, who frees the array, too; NULL if there is none. */
FM_MUST_CHECK fm_status fm_bus_list(fm_bus ***out, size_t *count);

/* The same for the consumers that it serves. */
FM_MUST_CHECK fm_status fm_bus_list_consumers(
    fm_bus *bus, fm_consumer ***out, size_t *count);

/* What its consumers got, those that are gone included. */
void fm_bus_consumed_get(fm_bus *bus, fm_consumed *out);

/* For the loop: note that it is attached; FM_CLOSED if it is closing. */
FM_MUST_CHECK fm_status fm_bus_set_attached(fm_bus *bus);

/* --- the I/O thread --- */

fm_deadline fm_bus_step(fm_bus *bus, int64_t now);
/* Returns when to wake up at the latest, besides what _step said. */
fm_deadline fm_bus_before_sleep(
    fm_bus *bus, int64_t now, struct pollfd polls[FM_BUS_CONNS]);
void fm_bus_after_sleep(
    fm_bus *bus, int64_t now, struct pollfd polls[FM_BUS_CONNS]);
/* It was closed, and its connections and threads are gone. */
bool fm_bus_is_over(const fm_bus *bus);

#endif
