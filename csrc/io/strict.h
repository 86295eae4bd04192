/* Brokers that deny queues which are neither durable nor exclusive: RabbitMQ by
 * configuration, and by default from 4.3 on.
 *
 * Only declaring one shows it: the broker then closes the whole connection, as
 * after an error of its own (541). So that happens once: it is remembered for
 * all connections of the process to the same hosts, and such queues are
 * declared durable from then on (fm_topology_harden()). What is known here is
 * never forgotten, and forked children inherit it. Any thread may look; there
 * is no lock.
 */
#ifndef FM_IO_STRICT_H
#define FM_IO_STRICT_H

#include "base/attrs.h"
#include "io/amqp.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What is known of the broker behind a set of hosts. */
typedef struct fm_strictness {
    struct fm_strictness *next; /* FM_IMMUTABLE */
    uint64_t key;               /* of the hosts. FM_IMMUTABLE */
    atomic_bool is_strict;
    atomic_bool may_be; /* it is a version that can be */
} fm_strictness;

/* That of a key, which stands for the hosts; never NULL. */
fm_strictness *fm_strictness_get(uint64_t key);

/* Is it for this that the broker closed a connection? */
FM_MUST_CHECK bool fm_close_is_strict(const fm_close *why);

/* Note the broker's version, as it says it. */
void fm_strictness_note_version(
    fm_strictness *strictness, const char *product, const char *version);

#endif
