/* io/claim.h: who works on an id, and which delivery is settled for it. */
#include "io/claim.h"

#include "check.h"

static fm_delivery
delivered(uint64_t generation, uint64_t tag)
{
    fm_delivery delivery = { .generation = generation };

    delivery.deliver.delivery_tag = tag;
    return delivery;
}

static fm_novelty
add(fm_claims *claims, const char *id, fm_delivery delivery)
{
    return fm_claims_add(claims, id, strlen(id), &delivery);
}

static void
a_copy_of_the_same_channel_is_to_be_acknowledged(void)
{
    fm_delivery first = delivered(1, 7);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(add(&claims, "id", first), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", delivered(1, 8)), FM_ID_SEEN);
    CHECK_INT(add(&claims, "other", delivered(1, 9)), FM_ID_NEW);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK_INT(first.generation, 1);
    CHECK_INT(first.deliver.delivery_tag, 7);
    fm_claims_fini(&claims);
}

static void
what_is_delivered_again_is_settled_instead(void)
{
    fm_delivery first = delivered(1, 7), last = delivered(4, 3);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(add(&claims, "id", first), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", delivered(2, 1)), FM_ID_CLAIMED);
    last.is_of_stream = true;
    CHECK_INT(add(&claims, "id", last), FM_ID_CLAIMED);
    CHECK_INT(add(&claims, "id", delivered(4, 5)), FM_ID_SEEN);
    CHECK(fm_claims_release(&claims, "id", &first));
    CHECK_INT(first.generation, 4);
    CHECK_INT(first.deliver.delivery_tag, 3);
    CHECK(first.is_of_stream);
    fm_claims_fini(&claims);
}

static void
a_released_id_is_new(void)
{
    fm_delivery first = delivered(1, 7);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK_INT(add(&claims, "id", first), FM_ID_NEW);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK_INT(add(&claims, "id", delivered(2, 1)), FM_ID_NEW);
    fm_claims_fini(&claims);
}

static void
ids_that_only_begin_alike_are_not_taken_for_one(void)
{
    fm_delivery first = delivered(1, 1), second = delivered(1, 2);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(fm_claims_add(&claims, "id\0a", 4, &first), FM_ID_NEW);
    CHECK_INT(fm_claims_add(&claims, "id\0b", 4, &second), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", delivered(1, 3)), FM_ID_NEW);
    fm_claims_fini(&claims);
}

int
main(void)
{
    RUN(a_copy_of_the_same_channel_is_to_be_acknowledged);
    RUN(what_is_delivered_again_is_settled_instead);
    RUN(a_released_id_is_new);
    RUN(ids_that_only_begin_alike_are_not_taken_for_one);
    return 0;
}
