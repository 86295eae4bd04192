#include "io/lane.h"

#include <assert.h>
#include <stdlib.h>

enum { FIRST_RING = 64 };

void
fm_lane_init(fm_publisher_lane *lane, size_t window, size_t window_bytes)
{
    *lane = (fm_publisher_lane){ .low = 1,
        .next = 1,
        .window = window,
        .window_bytes = window_bytes,
        .renew_by = FM_NEVER };
}

void
fm_lane_fini(fm_publisher_lane *lane)
{
    assert(lane->first_unsent == NULL && lane->in_flight == 0);
    free(lane->ring);
}

/* A message came into queue or ring (1), or left (-1). */
static void
count(fm_publisher_lane *lane, const fm_message *message, int change)
{
    if (fm_message_is_awaited(message))
        lane->awaited += (size_t)change;
}

/* --- the queue --- */

void
fm_lane_append(fm_publisher_lane *lane, fm_message *message)
{
    message->place = FM_PLACE_UNSENT;
    message->prev = lane->last_unsent;
    message->next = NULL;
    if (lane->last_unsent == NULL)
        lane->first_unsent = message;
    else
        lane->last_unsent->next = message;
    lane->last_unsent = message;
    lane->unsent++;
    count(lane, message, 1);
}

static void
prepend(fm_publisher_lane *lane, fm_message *message)
{
    message->place = FM_PLACE_UNSENT;
    message->prev = NULL;
    message->next = lane->first_unsent;
    if (lane->first_unsent == NULL)
        lane->last_unsent = message;
    else
        lane->first_unsent->prev = message;
    lane->first_unsent = message;
    lane->unsent++;
    count(lane, message, 1);
}

void
fm_lane_remove(fm_publisher_lane *lane, fm_message *message)
{
    if (message->prev == NULL)
        lane->first_unsent = message->next;
    else
        message->prev->next = message->next;
    if (message->next == NULL)
        lane->last_unsent = message->prev;
    else
        message->next->prev = message->prev;
    message->prev = message->next = NULL;
    message->place = FM_PLACE_CALLER;
    lane->unsent--;
    count(lane, message, -1);
}

void
fm_lane_cull(fm_publisher_lane *lane,
    bool (*matches)(fm_message *message, const void *arg), const void *arg,
    fm_settled *out)
{
    fm_message *message = lane->first_unsent;

    while (message != NULL) {
        fm_message *next = message->next;

        if (matches(message, arg)) {
            fm_lane_remove(lane, message);
            fm_settled_add(out, message);
        }
        message = next;
    }
}

/* --- the ring --- */

static fm_message **
slot(fm_publisher_lane *lane, uint64_t tag)
{
    return &lane->ring[tag & (lane->ring_cap - 1)];
}

fm_status
fm_lane_reserve(fm_publisher_lane *lane)
{
    size_t cap = lane->ring_cap == 0 ? FIRST_RING : lane->ring_cap * 2;
    fm_message **ring;

    if (lane->next - lane->low < lane->ring_cap)
        return FM_OK;
    ring = calloc(cap, sizeof(*ring));
    if (ring == NULL)
        return FM_NO_MEMORY;
    for (uint64_t tag = lane->low; tag < lane->next; tag++)
        ring[tag & (cap - 1)] = *slot(lane, tag);
    free(lane->ring);
    lane->ring = ring;
    lane->ring_cap = cap;
    return FM_OK;
}

void
fm_lane_sent(fm_publisher_lane *lane, fm_message *message)
{
    fm_lane_remove(lane, message);
    message->place = FM_PLACE_SENT;
    *slot(lane, lane->next++) = message;
    lane->in_flight++;
    lane->in_flight_bytes += message->body.len;
    count(lane, message, 1);
}

fm_message *
fm_lane_take(fm_publisher_lane *lane, uint64_t tag)
{
    fm_message *message = *slot(lane, tag);

    if (message == NULL)
        return NULL;
    *slot(lane, tag) = NULL;
    while (lane->low < lane->next && *slot(lane, lane->low) == NULL)
        lane->low++;
    lane->in_flight--;
    lane->in_flight_bytes -= message->body.len;
    count(lane, message, -1);
    if (lane->suspects > 0)
        lane->suspects--;
    return message;
}

size_t
fm_lane_recall(fm_publisher_lane *lane,
    bool (*verdict)(fm_message *message, const void *arg), const void *arg,
    fm_settled *failed, fm_settled *dropped)
{
    size_t waiting = 0;

    for (uint64_t tag = lane->next; tag-- > lane->low;) {
        fm_message *message = *slot(lane, tag);

        if (message == NULL)
            continue;
        *slot(lane, tag) = NULL;
        count(lane, message, -1);
        message->returned = false;
        if (message->abandoned || fm_message_status(message) != FM_AGAIN) {
            fm_settled_add(dropped, message); /* given up, or answered */
        } else if (verdict(message, arg)) {
            fm_settled_add(failed, message);
        } else {
            prepend(lane, message);
            waiting++;
            continue;
        }
        if (lane->suspects > 0)
            lane->suspects--;
    }
    lane->low = lane->next = 1;
    lane->in_flight = lane->in_flight_bytes = 0;
    lane->ready = false;
    return waiting;
}
