/* io/strict.h: what is remembered of brokers that deny transient queues. */
#include "io/strict.h"

#include "check.h"

#include <pthread.h>

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

/* A process of tests, say, meets a broker behind many a proxy. */
static void
however_many_there_are_none_is_taken_for_another(void)
{
    for (uint64_t key = 100; key < 1100; key++)
        atomic_store(&fm_strictness_get(key)->is_strict, key % 2 == 0);
    for (uint64_t key = 100; key < 1100; key++)
        CHECK(
            atomic_load(&fm_strictness_get(key)->is_strict) == (key % 2 == 0));
    CHECK(!atomic_load(&fm_strictness_get(1100)->is_strict));
}

enum { SEEKERS = 4, SOUGHT = 200 };

static void *
seek(void *found)
{
    for (uint64_t key = 0; key < SOUGHT; key++)
        ((fm_strictness **)found)[key] = fm_strictness_get(5000 + key);
    return NULL;
}

static void
threads_that_ask_at_once_get_the_same(void)
{
    static fm_strictness *found[SEEKERS][SOUGHT];
    pthread_t threads[SEEKERS];

    for (int i = 0; i < SEEKERS; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, seek, found[i]), 0);
    for (int i = 0; i < SEEKERS; i++)
        CHECK_INT(pthread_join(threads[i], NULL), 0);
    for (int i = 1; i < SEEKERS; i++)
        CHECK(memcmp(found[i], found[0], sizeof(found[0])) == 0);
}

int
main(void)
{
    RUN(a_denial_is_told_from_other_internal_errors);
    RUN(what_is_known_is_known_by_the_key);
    RUN(only_versions_that_can_be_strict_may_be);
    RUN(however_many_there_are_none_is_taken_for_another);
    RUN(threads_that_ask_at_once_get_the_same);
    return 0;
}
