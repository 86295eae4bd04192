/* Messages that are worked on, by their ids, for copies that come meanwhile.
 *
 * A copy is not worked on. It may have been sent twice, or be the same message
 * again, which the broker took back: since a channel was lost, or without a
 * word, as a quorum queue does whose leader loses sight of the channel's node.
 * Nobody can tell which. So the last delivery is the one to be settled when the
 * work is done; the one before it, if its channel is still there, is
 * acknowledged at once, which means nothing to a broker that took it back.
 * Where an id cannot be kept (no memory) a copy is worked on, which beats
 * losing a message.
 *
 * Part of a consumer, whose lock guards it (consume.h).
 */
#ifndef FM_IO_CLAIM_H
#define FM_IO_CLAIM_H

#include "base/attrs.h"
#include "base/idmap.h"
#include "io/channel.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_claims {
    fm_idmap map; /* of fm_claim, owned */
} fm_claims;

typedef enum fm_novelty {
    FM_ID_NEW,     /* to be worked on */
    FM_ID_SEEN,    /* a duplicate; to be acknowledged at once */
    FM_ID_CLAIMED, /* a duplicate; settled when the work is done */
} fm_novelty;

void fm_claims_init(fm_claims *claims);
void fm_claims_fini(fm_claims *claims);

/* Claim `id` for a delivery, which must live as long as the claim; if it is
 * claimed already, `delivery` is from now on what FM_ID_SEEN is about. */
FM_MUST_CHECK fm_novelty fm_claims_add(
    fm_claims *claims, const char *id, size_t len, fm_delivery *delivery);

/* End the claim of a delivery, if it has one. True if it was delivered again:
 * how to settle it is in it from now on. */
bool fm_claims_release(
    fm_claims *claims, const char *id, fm_delivery *delivery);

#endif
