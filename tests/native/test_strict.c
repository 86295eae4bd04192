/* io/strict.h: what is remembered of brokers that deny transient queues. */
#include "io/strict.h"

#include "check.h"

static fm_close
say(uint16_t code, const char *text, uint32_t method_id)
{
    return (fm_close){ .code = code,
        .text = { (const uint8_t *)text, strlen(text) },
        .method_id = method_id };
}

static void
a_denial_is_told_from_other_internal_errors(void)
{
    static const char denial[] =
        "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\n"
        "Its use is not permitted per the configuration";
    fm_close why = say(541, denial, FM_METHOD_QUEUE_DECLARE);

    CHECK(fm_close_is_strict(&why));
    why.method_id = FM_METHOD_BASIC_CONSUME;
    CHECK(!fm_close_is_strict(&why));
    why = say(406, denial, FM_METHOD_QUEUE_DECLARE);
    CHECK(!fm_close_is_strict(&why));
    why = say(541,
        "INTERNAL_ERROR - Cannot declare a queue 'q' on node 'n': no vhost",
        FM_METHOD_QUEUE_DECLARE);
    CHECK(!fm_close_is_strict(&why));
    why = say(541, "", FM_METHOD_QUEUE_DECLARE);
    CHECK(!fm_close_is_strict(&why));
}

static void
what_is_known_is_known_by_the_key(void)
{
    fm_strictness *one = fm_strictness_get(11), *two = fm_strictness_get(12);

    CHECK(one != two);
    atomic_store(&one->is_strict, true);
    CHECK(fm_strictness_get(11) == one);
    CHECK(fm_strictness_get(12) == two);
    CHECK(!atomic_load(&two->is_strict));
    CHECK(fm_strictness_get(0) == fm_strictness_get(0));
}

static void
only_versions_that_can_be_strict_may_be(void)
{
    fm_strictness *it = fm_strictness_get(13);

    fm_strictness_note_version(it, "RabbitMQ", "3.10.8");
    CHECK(!atomic_load(&it->may_be));
    fm_strictness_note_version(it, "RabbitMQ", "4.0.5");
    CHECK(atomic_load(&it->may_be));
    fm_strictness_note_version(it, "RabbitMQ", "10.1");
    CHECK(atomic_load(&it->may_be));
    fm_strictness_note_version(it, "LavinMQ", "4.0.0");
    CHECK(!atomic_load(&it->may_be));
    fm_strictness_note_version(it, "RabbitMQ", "");
    CHECK(!atomic_load(&it->may_be));
}

static void
too_many_keys_have_one_in_common(void)
{
    fm_strictness *last = NULL;

    for (uint64_t key = 100; key < 300; key++) {
        last = fm_strictness_get(key);
        CHECK(last != NULL);
    }
    CHECK(fm_strictness_get(301) == last);
    CHECK(fm_strictness_get(11) != last);
}

int
main(void)
{
    RUN(a_denial_is_told_from_other_internal_errors);
    RUN(what_is_known_is_known_by_the_key);
    RUN(only_versions_that_can_be_strict_may_be);
    RUN(too_many_keys_have_one_in_common);
    return 0;
}
