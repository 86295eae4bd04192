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
    fm_place_arrive(&place, &first);
    fm_place_arrive(&place, &second);
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

    fm_place_arrive(&place, &known);
    fm_place_take(&place, &known);
    for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        uint8_t more[32];
        fm_delivery delivery = delivery_at(odd[i], more);

        fm_place_arrive(&place, &delivery);
        CHECK_INT(delivery.offset, -1);
        fm_place_take(&place, &delivery);
    }
    fm_place_arrive(&place, &mute);
    CHECK(mute.is_of_stream);
    fm_place_take(&place, &mute);
    /* Each shorter header is malformed, or has no such entry. */
    for (size_t len = 0; len < known.content.headers.len; len++) {
        fm_delivery cut = { .content.headers = { headers, len } };

        fm_place_arrive(&place, &cut);
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
    fm_place_arrive(&place, &old);
    fm_place_take(&place, &old);
    fm_place_forget(&place, 1000 * S);
    expect_text(&place, 1001 * S, "8s"); /* it may have been deleted before */
    fm_place_arrive(&place, &young);
    expect_offset(&place, 0);
}

int
main(void)
{
    RUN(it_begins_with_the_last_chunk);
    RUN(what_came_since_it_began_is_its_own);
    RUN(it_goes_on_after_what_was_taken_and_not_before);
    RUN(a_delivery_that_says_nothing_changes_nothing);
    RUN(offsets_of_a_deleted_stream_mean_nothing);
    return 0;
}
