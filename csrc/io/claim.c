#include "io/claim.h"

#include <stdlib.h>
#include <string.h>

/* How to settle a delivery. */
typedef struct fm_slip {
    uint64_t generation;
    uint64_t tag;
    bool is_of_stream;
} fm_slip;

typedef struct fm_claim {
    const fm_delivery *owner; /* compared alone */
    fm_slip last;
    char id[];
} fm_claim;

static fm_slip
slip_of(const fm_delivery *delivery)
{
    return (fm_slip){ delivery->generation, delivery->deliver.delivery_tag,
        delivery->is_of_stream };
}

static void
set_slip(fm_delivery *delivery, fm_slip slip)
{
    delivery->generation = slip.generation;
    delivery->deliver.delivery_tag = slip.tag;
    delivery->is_of_stream = slip.is_of_stream;
}

void
fm_claims_init(fm_claims *claims)
{
    fm_idmap_init(&claims->map);
}

void
fm_claims_fini(fm_claims *claims)
{
    size_t cursor = 0;
    fm_claim *claim;

    while ((claim = fm_idmap_next(&claims->map, &cursor)) != NULL)
        free(claim);
    fm_idmap_fini(&claims->map);
}

fm_novelty
fm_claims_add(
    fm_claims *claims, const char *id, size_t len, fm_delivery *delivery)
{
    fm_claim *claim;

    if (strlen(id) != len) /* no peer's id: the map would know it by half */
        return FM_ID_NEW;
    claim = fm_idmap_get(&claims->map, id);
    if (claim != NULL) {
        fm_slip before = claim->last;

        claim->last = slip_of(delivery);
        if (before.generation != delivery->generation)
            return FM_ID_CLAIMED;
        set_slip(delivery, before);
        return FM_ID_SEEN;
    }
    claim = malloc(sizeof(*claim) + len + 1);
    if (claim == NULL)
        return FM_ID_NEW;
    claim->owner = delivery;
    claim->last = slip_of(delivery);
    memcpy(claim->id, id, len + 1);
    if (fm_idmap_put(&claims->map, claim->id, claim) != FM_OK)
        free(claim);
    return FM_ID_NEW;
}

bool
fm_claims_release(fm_claims *claims, const char *id, fm_delivery *delivery)
{
    fm_claim *claim = fm_idmap_get(&claims->map, id);
    bool is_another;

    if (claim == NULL || claim->owner != delivery)
        return false;
    (void)fm_idmap_take(&claims->map, id);
    is_another = claim->last.generation != delivery->generation
        || claim->last.tag != delivery->deliver.delivery_tag;
    set_slip(delivery, claim->last);
    free(claim);
    return is_another;
}
