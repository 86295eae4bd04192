#include "io/claim.h"

#include <stdlib.h>
#include <string.h>

typedef struct fm_claim {
    uint64_t generation;
    uint64_t tag;
    bool is_of_stream;
    char id[];
} fm_claim;

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

static void
set_delivery(fm_claim *claim, const fm_delivery *delivery)
{
    claim->generation = delivery->generation;
    claim->tag = delivery->deliver.delivery_tag;
    claim->is_of_stream = delivery->is_of_stream;
}

fm_novelty
fm_claims_add(
    fm_claims *claims, const char *id, size_t len, const fm_delivery *delivery)
{
    fm_claim *claim;

    if (strlen(id) != len) /* no peer's id: the map would know it by half */
        return FM_ID_NEW;
    claim = fm_idmap_get(&claims->map, id);
    if (claim != NULL) {
        if (claim->generation == delivery->generation)
            return FM_ID_SEEN;
        set_delivery(claim, delivery);
        return FM_ID_CLAIMED;
    }
    claim = malloc(sizeof(*claim) + len + 1);
    if (claim == NULL)
        return FM_ID_NEW;
    set_delivery(claim, delivery);
    memcpy(claim->id, id, len + 1);
    if (fm_idmap_put(&claims->map, claim->id, claim) != FM_OK)
        free(claim);
    return FM_ID_NEW;
}

bool
fm_claims_release(fm_claims *claims, const char *id, fm_delivery *delivery)
{
    fm_claim *claim = fm_idmap_take(&claims->map, id);
    bool is_another;

    if (claim == NULL)
        return false;
    is_another = claim->generation != delivery->generation;
    delivery->generation = claim->generation;
    delivery->deliver.delivery_tag = claim->tag;
    delivery->is_of_stream = claim->is_of_stream;
    free(claim);
    return is_another;
}
