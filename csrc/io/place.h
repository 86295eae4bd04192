/* Where a consumer goes on in a stream.
 *
 * A stream gives each consumer what it asks for by an offset, as often as it
 * is asked. So that nothing is missed or run twice, a consumer goes on after
 * the last message that was taken from it, however its channel ended. Until
 * there is one it goes by the time: what came since it first consumed is its
 * own. Offsets of a stream that was deleted mean nothing in the next one of
 * its name.
 *
 * RabbitMQ does not tell a consumer that its node's replica was deleted, which
 * leaves it with what that had, nor, while it is away, that the stream was
 * deleted and made anew, whose offsets are below the one that it asks for. So
 * the stream's length is looked at now and then. It is some seconds old, and
 * less than the last offset once old messages were removed; what is done about
 * it is harmless if it was not needed.
 *
 * The consumer's lock guards a place (consume.h).
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
    int64_t next;        /* if it is known: the offset of the next message */
    int64_t since;       /* when its consumer was first asked for; 0: never */
    int64_t arrived_at;  /* the last message, if any */
    int64_t arrived;     /* the offset after it; 0: nobody knows */
    int64_t measured_at; /* when its length was looked at; 0: never */
    uint32_t length;     /* then */
} fm_place;

typedef enum fm_growth {
    FM_GROWTH_HEARD,   /* as far as one can tell */
    FM_GROWTH_UNHEARD, /* something did not come: go on at the same place */
    FM_GROWTH_SHRUNK,  /* go on by the time: maybe it is another one */
} fm_growth;

enum { FM_PLACE_TEXT = 32 };

/* The argument x-stream-offset of basic.consume; `text` is what it points to.
 */
void fm_place_print(
    const fm_place *place, int64_t now, char text[FM_PLACE_TEXT], fm_arg *out);

/* Its consumer is asked for: what comes from now on is not to be missed, even
 * if the answer gets lost. */
void fm_place_begin(fm_place *place, int64_t now);
/* Read where in the stream a delivery is, into the delivery; the first one to
 * arrive is the next to be taken. */
void fm_place_arrive(fm_place *place, fm_delivery *delivery, int64_t now);
/* It was handed over: it is not to come again. */
void fm_place_take(fm_place *place, const fm_delivery *delivery);
/* So long is the stream. */
fm_growth fm_place_measure(fm_place *place, uint32_t length, int64_t now);
/* The stream was deleted, lately. */
void fm_place_forget(fm_place *place, int64_t now);

#endif
