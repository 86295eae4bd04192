#include "io/place.h"

#include "base/sync.h"

#include <inttypes.h>
#include <stdio.h>

/* The broker's clock counts chunks of messages, and a second is its unit. */
#define MARGIN_S 2
/* How much earlier than we were told a stream may have been deleted. */
#define NOTICE_NS (5 * FM_NS_PER_S)

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
fm_place_arrive(fm_place *place, fm_delivery *delivery)
{
    int64_t offset;

    delivery->is_of_stream = true;
    delivery->offset = -1;
    if (fm_frame_find_header_int(
            delivery->content.headers, "x-stream-offset", &offset)
            != FM_OK
        || offset < 0 || offset == INT64_MAX)
        return;
    delivery->offset = offset;
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

void
fm_place_forget(fm_place *place, int64_t now)
{
    place->is_known = false;
    place->since = now > NOTICE_NS ? now - NOTICE_NS : 1;
}
