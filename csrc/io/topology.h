/* What has to be declared before something is used: exchanges, queues,
 * bindings, in order.
 *
 * A topology is a list that callers make and share by count. Once it is in use
 * it does not change, but for what the broker refuses to declare (adopt.h,
 * strict.h).
 * Publishers declare it on each new connection before the first message that
 * needs it; consumers before they consume. `declared` remembers for which
 * connection that was done.
 */
#ifndef FM_IO_TOPOLOGY_H
#define FM_IO_TOPOLOGY_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "io/script.h"
#include "io/strict.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_topology {
    atomic_uint refs;
    struct fm_declaration *items; /* owned; FM_IMMUTABLE once in use */
    size_t count;
    /* FM_OWNED_BY_THREAD(io): see fm_topology_harden(), _probe(). */
    bool is_hardened;
    bool probes;
    /* Epochs (fm_output.epoch) of the publishing connection on which this
     * was declared, and for which its declaration is queued. */
    atomic_uint_fast64_t declared;
    atomic_uint_fast64_t requested;
} fm_topology;

FM_MUST_CHECK fm_status fm_topology_new(fm_topology **out); /* empty */
fm_topology *fm_topology_ref(fm_topology *topology);
void fm_topology_unref(fm_topology *topology); /* NULL is allowed */

/* Append a declaration; all strings are copied. Before it is shared.
 * FM_TOO_LARGE: a name over 255 bytes, or more arguments than fit. */
FM_MUST_CHECK fm_status fm_topology_add_exchange(
    fm_topology *topology, const fm_exchange *exchange);
FM_MUST_CHECK fm_status fm_topology_add_queue(
    fm_topology *topology, const fm_queue *queue);
FM_MUST_CHECK fm_status fm_topology_add_binding(fm_topology *topology,
    const char *queue, const char *exchange, const char *routing_key);

/* Does it declare `queue` as a quorum queue? */
bool fm_topology_is_quorum(const fm_topology *topology, const char *queue);

/* And as a stream? */
bool fm_topology_is_stream(const fm_topology *topology, const char *queue);

/* Does it declare `queue` as one that does not outlive its node? */
bool fm_topology_is_transient(const fm_topology *topology, const char *queue);

/* --- adopting (adopt.h): the I/O thread's, as is writing --- */

/* Only look for it from now on. False: there is no such declaration, or that
 * is so already, or was tried too often. */
FM_MUST_CHECK bool fm_topology_adopt(
    fm_topology *topology, bool is_queue, fm_slice name);
/* Declare it again, with its bindings. False: it was not adopted. */
FM_MUST_CHECK bool fm_topology_disown(
    fm_topology *topology, bool is_queue, fm_slice name);
/* All is declared, or given up for now: the tries count from the start. */
void fm_topology_settle(fm_topology *topology);
/* Declare the classic queues bound to an exchange that is not durable as not
 * durable: so does the stock driver, and the first to come decides. */
void fm_topology_follow(fm_topology *topology, fm_slice exchange);
/* Leave the bindings of an adopted exchange or queue to others. False: there is
 * none, or that is so already. */
FM_MUST_CHECK bool fm_topology_trust_bindings(
    fm_topology *topology, bool is_queue, fm_slice name);

/* --- strict brokers (strict.h): the I/O thread's --- */

/* Declare as durable, from now on, what is neither durable nor exclusive. A
 * queue that expires does so still. */
void fm_topology_harden(fm_topology *topology);
/* The `at`-th queue that is declared, from 0, if it is durable for that reason
 * alone; else NULL. */
const char *fm_topology_hardened_get(const fm_topology *topology, size_t at);
/* Should the broker be strict, have it say so soon: declare first what nobody
 * else can have declared, so that nothing is adopted before that is known. */
void fm_topology_probe(fm_topology *topology);

/* Append the frames of all declarations to a channel's script. */
FM_MUST_CHECK fm_status fm_topology_write(
    const fm_topology *topology, fm_script *script);
/* The same, as this broker takes them. */
FM_MUST_CHECK fm_status fm_topology_write_for(
    fm_topology *topology, const fm_strictness *strictness, fm_script *script);

/* The same of its exchanges and bindings: a queue that is gone stays so. */
FM_MUST_CHECK fm_status fm_topology_write_bindings(
    const fm_topology *topology, fm_script *script);

/* Does it bind a queue, as far as that is not left to others? */
bool fm_topology_binds(const fm_topology *topology);

#endif
