#include "io/place.h"

#include "base/sync.h"

#include <inttypes.h>
#include <stdio.h>

/* The broker's clock counts chunks of messages, and a second is its unit. */
#define MARGIN_S 2
/* How much earlier than we were told a stream may have been deleted. */
#define NOTICE_NS (5 * FM_NS_PER_S)
/* How old a stream's length may be: brokers count every five seconds. */
#define STALE_NS (10 * FM_NS_PER_S)

void
fm_place_print(
    const fm_place *place, int64_t now, char text[FM_PLACE_TEXT], fm_arg *out)
{
    *out = (fm_arg){ .name = "x-stream-offset", .kind = FM_ARG_TEXT };
    out->text = text;
    if (place->is_known) {
        out->kind = FM_ARG_INTEGER;
        out->integer = place->next;
    } else if (place->since == 0) {
        snprintf(text, FM_PLACE_TEXT, "last"); /* as the stock driver begins */
    } else {
        /* So long ago, by the broker's clock, as is said for x-max-age. */
        snprintf(text, FM_PLACE_TEXT, "%" PRId64 "s",
            (now - place->since) / FM_NS_PER_S + MARGIN_S);
    }
}

void
fm_place_begin(fm_place *place, int64_t now)
{
    if (place->since == 0)
        place->since = now;
}

void
fm_place_arrive(fm_place *place, fm_delivery *delivery, int64_t now)
{
    int64_t offset;

    place->arrived_at = now;
    delivery->is_of_stream = true;
    delivery->offset = -1;
    if (fm_frame_find_header_int(
            delivery->content.headers, "x-stream-offset", &offset)
            != FM_OK
        || offset < 0 || offset == INT64_MAX)
        return;
    delivery->offset = offset;
    place->arrived = offset + 1;
    if (!place->is_known) {
        place->is_known = true;
        place->next = offset;
    }
}

void
fm_place_take(fm_place *place, const fm_delivery *delivery)
{
    if (delivery->offset >= 0)
        place->next = delivery->offset + 1;
}

fm_growth
fm_place_measure(fm_place *place, uint32_t length, int64_t now)
{
    int64_t before = place->measured_at - STALE_NS;
    fm_growth growth = FM_GROWTH_HEARD;

    if (place->measured_at == 0) {
        growth = FM_GROWTH_HEARD;
    } else if (length < place->length) {
        growth = FM_GROWTH_SHRUNK;
        place->is_known = false;
        place->arrived = 0;
        place->since = before > 0 ? before : 1;
    } else if ((place->arrived > 0 && place->length > place->arrived)
        || (length > place->length && place->arrived_at < before)) {
        /* What was there the last time has not come; or, of a stream that has
         * lost its beginning, nothing has though there is more. */
        growth = FM_GROWTH_UNHEARD;
    }
    place->length = length;
    place->measured_at = now;
    return growth;
}

void
fm_place_forget(fm_place *place, int64_t now)
{
    place->is_known = false;
    place->arrived = 0;
    place->since = now > NOTICE_NS ? now - NOTICE_NS : 1;
    place->measured_at = 0;
}
