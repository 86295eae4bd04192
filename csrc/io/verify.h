/* Are the queues that we consume from still there, and bound?
 *
 * The broker says when it ends a consumer (basic.cancel), with an exception:
 * when a node dies, RabbitMQ lists the queues that went with it and then
 * deletes them by their names. One that a client has declared again in between
 * is deleted with them, while the process behind it lives on with its
 * consumer, to which nothing is routed any more. So after a consumer came back
 * its queues are looked for, twice (consume.c), and those of replies again and
 * again. What is gone is declared and consumed again.
 *
 * Nor does it say that an exchange was deleted, with the bindings to it: who
 * publishes is told, and declares it again, but not the bindings of others.
 * There is no way to ask for a binding. So with each look, and once a minute,
 * exchanges are declared and queues bound once more, which changes nothing
 * where all is well.
 *
 * The I/O thread does it, on a channel of its own: a queue that is not there
 * closes the channel, which is nobody else's. It is open while there is
 * something to look for.
 */
#ifndef FM_IO_VERIFY_H
#define FM_IO_VERIFY_H

#include "base/attrs.h"
#include "io/channel.h"
#include "io/consume.h"

#include <stddef.h>
#include <stdint.h>

/* FM_OWNED_BY_THREAD(io), all of it. */
typedef struct fm_verifier {
    fm_channel channel;
    fm_consumer *checked; /* borrowed: a member; NULL: none */
    size_t index; /* of its queue that is looked for; after the last one: its
                   * bindings are renewed */
} fm_verifier;

void fm_verifier_init(
    fm_verifier *verifier, fm_output *output, uint16_t channel_id);
void fm_verifier_fini(fm_verifier *verifier);

/* Look for what is due among the members of a bus. */
fm_deadline fm_verifier_step(
    fm_verifier *verifier, fm_consumer *members, int64_t now, bool up);

/* A member leaves. */
void fm_verifier_forget(fm_verifier *verifier, const fm_consumer *consumer);

/* The connection is lost. */
void fm_verifier_down(fm_verifier *verifier);

#endif
