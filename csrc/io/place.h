/* Where a consumer goes on in a stream.
 *
 * A stream gives each consumer what it asks for by an offset, as often as it
 * is asked. So that nothing is missed or run twice, a consumer goes on after
 * the last message that was taken from it, however its channel ended. Until
 * there is one it goes by the time: what came since it first consumed is its
 * own. Offsets of a stream that was deleted mean nothing in the next one of
 * its name. The consumer's lock guards a place (consume.h).
 */
#ifndef FM_IO_PLACE_H
#define FM_IO_PLACE_H

#include "base/attrs.h"
#include "io/amqp.h"
#include "io/channel.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct fm_place {
    bool is_of_stream; /* FM_IMMUTABLE; false: the rest means nothing */
    bool is_known;
    int64_t next;  /* if it is known: the offset of the next message */
    int64_t since; /* when it was first consumed; 0: never */
} fm_place;

enum { FM_PLACE_TEXT = 32 };

/* The argument x-stream-offset of basic.consume; `text` is what it points to.
 */
void fm_place_print(
    const fm_place *place, int64_t now, char text[FM_PLACE_TEXT], fm_arg *out);

/* It is consumed from now on. */
void fm_place_begin(fm_place *place, int64_t now);
/* Read where in the stream a delivery is, into the delivery; the first one to
 * arrive is the next to be taken. */
void fm_place_arrive(fm_place *place, fm_delivery *delivery);
/* It was handed over: it is not to come again. */
void fm_place_take(fm_place *place, const fm_delivery *delivery);
/* The stream was deleted, lately. */
void fm_place_forget(fm_place *place, int64_t now);

#endif
