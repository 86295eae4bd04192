/* io/place.h: pure functions; time is what the test says. */
#include "io/place.h"

#include "base/sync.h"
#include "check.h"

#define S FM_NS_PER_S

static const fm_place fresh = { .is_of_stream = true };

/* A delivery whose headers are x-stream-offset of kind 'l', or one malformed
 * entry. */
static fm_delivery
delivery_at(int64_t offset, uint8_t headers[static 32])
{
    static const char name[] = "x-stream-offset";
    fm_delivery delivery = { .generation = 1 };
    size_t len = 0;

    headers[len++] = sizeof(name) - 1;
    memcpy(headers + len, name, sizeof(name) - 1);
    len += sizeof(name) - 1;
    headers[len++] = 'l';
    for (int shift = 56; shift >= 0; shift -= 8)
        headers[len++] = (uint8_t)((uint64_t)offset >> shift);
    delivery.content.headers = (fm_slice){ headers, len };
    return delivery;
}

static void
expect_text(const fm_place *place, int64_t now, const char *expected)
{
    char text[FM_PLACE_TEXT];
    fm_arg arg;

    fm_place_print(place, now, text, &arg);
    CHECK_TEXT(arg.name, "x-stream-offset");
    CHECK_INT(arg.kind, FM_ARG_TEXT);
    CHECK_TEXT(arg.text, expected);
}

static void
expect_offset(const fm_place *place, int64_t expected)
{
    char text[FM_PLACE_TEXT];
    fm_arg arg;

    fm_place_print(place, 1000 * S, text, &arg);
    CHECK_INT(arg.kind, FM_ARG_INTEGER);
    CHECK_INT(arg.integer, expected);
}

static void
it_begins_with_the_last_chunk(void)
{
    expect_text(&fresh, 77 * S, "last");
}

static void
what_came_since_it_began_is_its_own(void)
{
    fm_place place = fresh;

    fm_place_begin(&place, 100 * S);
    expect_text(&place, 100 * S, "2s");
    fm_place_begin(&place, 150 * S); /* a second connection changes nothing */
    expect_text(&place, 160 * S, "62s");
}

static void
it_goes_on_after_what_was_taken_and_not_before(void)
{
    uint8_t headers[2][32];
    fm_delivery first = delivery_at(41, headers[0]);
    fm_delivery second = delivery_at(42, headers[1]);
    fm_place place = fresh;

    fm_place_begin(&place, S);
    fm_place_arrive(&place, &first, 0);
    fm_place_arrive(&place, &second, 0);
    CHECK(first.is_of_stream && second.is_of_stream);
    CHECK_INT(second.offset, 42);
    expect_offset(&place, 41);
    fm_place_take(&place, &first);
    expect_offset(&place, 42);
    fm_place_take(&place, &second);
    expect_offset(&place, 43);
}

static void
a_delivery_that_says_nothing_changes_nothing(void)
{
    static const int64_t odd[] = { -1, INT64_MIN, INT64_MAX };
    uint8_t headers[32];
    fm_delivery known = delivery_at(5, headers), mute = { 0 };
    fm_place place = fresh;

    fm_place_arrive(&place, &known, 0);
    fm_place_take(&place, &known);
    for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        uint8_t more[32];
        fm_delivery delivery = delivery_at(odd[i], more);

        fm_place_arrive(&place, &delivery, 0);
        CHECK_INT(delivery.offset, -1);
        fm_place_take(&place, &delivery);
    }
    fm_place_arrive(&place, &mute, 0);
    CHECK(mute.is_of_stream);
    fm_place_take(&place, &mute);
    /* Each shorter header is malformed, or has no such entry. */
    for (size_t len = 0; len < known.content.headers.len; len++) {
        fm_delivery cut = { .content.headers = { headers, len } };

        fm_place_arrive(&place, &cut, 0);
        CHECK_INT(cut.offset, -1);
        fm_place_take(&place, &cut);
    }
    expect_offset(&place, 6);
}

static void
offsets_of_a_deleted_stream_mean_nothing(void)
{
    uint8_t headers[2][32];
    fm_delivery old = delivery_at(5000, headers[0]);
    fm_delivery young = delivery_at(0, headers[1]);
    fm_place place = fresh;

    fm_place_begin(&place, S);
    fm_place_arrive(&place, &old, 0);
    fm_place_take(&place, &old);
    fm_place_forget(&place, 1000 * S);
    expect_text(&place, 1001 * S, "8s"); /* it may have been deleted before */
    fm_place_arrive(&place, &young, 0);
    expect_offset(&place, 0);
}

static void
a_stream_that_grows_and_is_not_heard_is_consumed_again(void)
{
    uint8_t headers[32];
    fm_delivery delivery = delivery_at(5000, headers);
    /* One that has lost its beginning: less long than its offsets say. */
    fm_place place = fresh;

    fm_place_begin(&place, 100 * S);
    CHECK_INT(fm_place_measure(&place, 10, 101 * S), FM_GROWTH_HEARD);
    fm_place_arrive(&place, &delivery, 102 * S);
    fm_place_take(&place, &delivery);
    CHECK_INT(fm_place_measure(&place, 11, 110 * S), FM_GROWTH_HEARD);
    /* What came shortly before a look may be counted at the next one. */
    CHECK_INT(fm_place_measure(&place, 12, 155 * S), FM_GROWTH_HEARD);
    CHECK_INT(fm_place_measure(&place, 12, 200 * S), FM_GROWTH_HEARD);
    CHECK_INT(fm_place_measure(&place, 13, 245 * S), FM_GROWTH_UNHEARD);
    expect_offset(&place, 5001);
}

static void
what_is_there_and_does_not_come_is_missed_at_the_second_look(void)
{
    uint8_t headers[32];
    fm_delivery delivery = delivery_at(2, headers);
    fm_place place = fresh;

    fm_place_begin(&place, 100 * S);
    CHECK_INT(fm_place_measure(&place, 0, 101 * S), FM_GROWTH_HEARD);
    fm_place_arrive(&place, &delivery, 102 * S);
    CHECK_INT(fm_place_measure(&place, 7, 110 * S), FM_GROWTH_HEARD);
    CHECK_INT(fm_place_measure(&place, 7, 155 * S), FM_GROWTH_UNHEARD);
    delivery.content.headers.data = headers;
    headers[24] = 6; /* the last byte of the offset */
    fm_place_arrive(&place, &delivery, 156 * S);
    CHECK_INT(delivery.offset, 6);
    CHECK_INT(fm_place_measure(&place, 7, 200 * S), FM_GROWTH_HEARD);
}

static void
a_stream_that_shrinks_may_be_another_one(void)
{
    uint8_t headers[32];
    fm_delivery delivery = delivery_at(9, headers);
    fm_place place = fresh;

    fm_place_begin(&place, 100 * S);
    fm_place_arrive(&place, &delivery, 101 * S);
    fm_place_take(&place, &delivery);
    CHECK_INT(fm_place_measure(&place, 10, 110 * S), FM_GROWTH_HEARD);
    CHECK_INT(fm_place_measure(&place, 3, 155 * S), FM_GROWTH_SHRUNK);
    /* Since ten seconds before the look that it was longer at. */
    expect_text(&place, 155 * S, "57s");
    /* And that is done once. */
    CHECK_INT(fm_place_measure(&place, 3, 200 * S), FM_GROWTH_HEARD);
}

int
main(void)
{
    RUN(it_begins_with_the_last_chunk);
    RUN(what_came_since_it_began_is_its_own);
    RUN(it_goes_on_after_what_was_taken_and_not_before);
    RUN(a_delivery_that_says_nothing_changes_nothing);
    RUN(offsets_of_a_deleted_stream_mean_nothing);
    RUN(a_stream_that_grows_and_is_not_heard_is_consumed_again);
    RUN(what_is_there_and_does_not_come_is_missed_at_the_second_look);
    RUN(a_stream_that_shrinks_may_be_another_one);
    return 0;
}
