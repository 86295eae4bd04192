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
add(fm_claims *claims, const char *id, fm_delivery *delivery)
{
    return fm_claims_add(claims, id, strlen(id), delivery);
}

static void
a_copy_of_the_same_channel_takes_the_place_of_the_one_before(void)
{
    fm_delivery first = delivered(1, 7), second = delivered(1, 8);
    fm_delivery other = delivered(1, 9), third = delivered(1, 10);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(add(&claims, "id", &first), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", &second), FM_ID_SEEN);
    CHECK_INT(second.deliver.delivery_tag, 7);
    CHECK_INT(add(&claims, "other", &other), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", &third), FM_ID_SEEN);
    CHECK_INT(third.deliver.delivery_tag, 8);
    CHECK(fm_claims_release(&claims, "id", &first));
    CHECK_INT(first.generation, 1);
    CHECK_INT(first.deliver.delivery_tag, 10);
    CHECK(!fm_claims_release(&claims, "other", &other));
    CHECK_INT(other.deliver.delivery_tag, 9);
    fm_claims_fini(&claims);
}

static void
what_is_delivered_again_is_settled_instead(void)
{
    fm_delivery first = delivered(1, 7), second = delivered(2, 1);
    fm_delivery third = delivered(4, 3), copy = delivered(4, 5);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(add(&claims, "id", &first), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", &second), FM_ID_CLAIMED);
    CHECK_INT(add(&claims, "id", &third), FM_ID_CLAIMED);
    copy.is_of_stream = true;
    CHECK_INT(add(&claims, "id", &copy), FM_ID_SEEN);
    CHECK_INT(copy.generation, 4);
    CHECK_INT(copy.deliver.delivery_tag, 3);
    CHECK(!copy.is_of_stream);
    CHECK(fm_claims_release(&claims, "id", &first));
    CHECK_INT(first.generation, 4);
    CHECK_INT(first.deliver.delivery_tag, 5);
    CHECK(first.is_of_stream);
    fm_claims_fini(&claims);
}

static void
a_claim_is_its_owners(void)
{
    fm_delivery owner = delivered(1, 1), other = delivered(1, 2);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(add(&claims, "id", &owner), FM_ID_NEW);
    CHECK(!fm_claims_release(&claims, "id", &other));
    CHECK_INT(other.deliver.delivery_tag, 2);
    CHECK_INT(add(&claims, "id", &other), FM_ID_SEEN);
    fm_claims_fini(&claims);
}

static void
a_released_id_is_new(void)
{
    fm_delivery first = delivered(1, 7), second = delivered(2, 1);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK_INT(add(&claims, "id", &first), FM_ID_NEW);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK_INT(add(&claims, "id", &second), FM_ID_NEW);
    fm_claims_fini(&claims);
}

static void
ids_that_only_begin_alike_are_not_taken_for_one(void)
{
    fm_delivery first = delivered(1, 1), second = delivered(1, 2);
    fm_delivery third = delivered(1, 3);
    fm_claims claims;

    fm_claims_init(&claims);
    CHECK_INT(fm_claims_add(&claims, "id\0a", 4, &first), FM_ID_NEW);
    CHECK_INT(fm_claims_add(&claims, "id\0b", 4, &second), FM_ID_NEW);
    CHECK_INT(add(&claims, "id", &third), FM_ID_NEW);
    CHECK(!fm_claims_release(&claims, "id", &first));
    CHECK(!fm_claims_release(&claims, "id", &third));
    fm_claims_fini(&claims);
}

int
main(void)
{
    RUN(a_copy_of_the_same_channel_takes_the_place_of_the_one_before);
    RUN(what_is_delivered_again_is_settled_instead);
    RUN(a_claim_is_its_owners);
    RUN(a_released_id_is_new);
    RUN(ids_that_only_begin_alike_are_not_taken_for_one);
    return 0;
}
