/* Messages that are worked on, by their ids, for copies that come meanwhile.
 *
 * A copy that came through the same channel was sent twice: the first one is
 * there to be settled. One of another channel is the same message, which the
 * broker took back when the first channel was lost, and delivered again: when
 * the work is done it is the one to be settled. Neither is worked on. Where an
 * id cannot be kept (no memory) a copy is, which beats losing a message.
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
    FM_ID_SEEN,    /* to be acknowledged at once */
    FM_ID_CLAIMED, /* to be settled with the first */
} fm_novelty;

void fm_claims_init(fm_claims *claims);
void fm_claims_fini(fm_claims *claims);

/* Claim `id` for a delivery, unless it is claimed. */
FM_MUST_CHECK fm_novelty fm_claims_add(
    fm_claims *claims, const char *id, size_t len, const fm_delivery *delivery);

/* End the claim of a delivery. True if it was delivered again: how to settle
 * it is in it from now on. */
bool fm_claims_release(
    fm_claims *claims, const char *id, fm_delivery *delivery);

#endif
