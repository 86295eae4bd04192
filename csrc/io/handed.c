#include "io/handed.h"

#include "base/idmap.h"

#include <string.h>

enum { PARKED_MAX = 10000 };
#define BYTES_MAX ((size_t)8 * 1024 * 1024)
#define FIRST_PAUSE_NS (250 * FM_NS_PER_MS)
#define LAST_PAUSE_NS (4 * FM_NS_PER_S)
#define GONE_NS (60 * FM_NS_PER_S)

void
fm_handed_init(fm_handed *handed)
{
    memset(handed, 0, sizeof(*handed));
    fm_wake_init(&handed->space);
}

bool
fm_handed_is_full(const fm_handed *handed)
{
    return handed->bytes > BYTES_MAX;
}

/* --- queues that are gone --- */

static uint64_t
queue_hash(const fm_message *message)
{
    return fm_id_hash(message->routing_key, strlen(message->routing_key));
}

static bool
is_gone(const fm_handed *handed, const fm_message *message, int64_t now)
{
    uint64_t hash;

    if (handed->gone_next == 0) /* the usual case */
        return false;
    hash = queue_hash(message);
    for (size_t i = 0; i < FM_GONE_QUEUES; i++)
        if (handed->gone[i].hash == hash && handed->gone[i].until > now)
            return true;
    return false;
}

void
fm_handed_remember_gone(
    fm_handed *handed, const fm_message *message, int64_t now)
{
    size_t at = handed->gone_next % FM_GONE_QUEUES;

    if (!message->handed_over)
        return;
    handed->gone_next++;
    handed->gone[at].hash = queue_hash(message);
    handed->gone[at].until = now + GONE_NS;
}

/* --- coming and going --- */

fm_status
fm_handed_admit(fm_handed *handed, const fm_message *message, int64_t now)
{
    if (!message->handed_over)
        return FM_OK;
    if (fm_handed_is_full(handed))
        return FM_FULL;
    if (message->mandatory && is_gone(handed, message, now))
        return FM_NOT_FOUND;
    handed->count++;
    handed->bytes += message->body.len;
    return FM_OK;
}

void
fm_handed_leave(fm_handed *handed, const fm_settled *list)
{
    bool any = false;

    for (fm_message *each = list->first; each != NULL; each = each->next) {
        if (!each->handed_over)
            continue;
        handed->count--;
        handed->bytes -= each->body.len;
        any = true;
    }
    if (any)
        fm_wake_all(&handed->space);
}

/* --- parked ones --- */

bool
fm_handed_try_park(fm_handed *handed, fm_message *message, int64_t now)
{
    if (now >= message->give_up || handed->parked_count >= PARKED_MAX)
        return false;
    message->returned = false;
    message->place = FM_PLACE_PARKED;
    message->pause_ns = message->pause_ns == 0 ? FIRST_PAUSE_NS
        : message->pause_ns >= LAST_PAUSE_NS   ? LAST_PAUSE_NS
                                               : message->pause_ns * 2;
    message->due = now + message->pause_ns;
    if (message->due > message->give_up)
        message->due = message->give_up;
    message->prev = NULL;
    message->next = handed->parked;
    handed->parked = message;
    handed->parked_count++;
    if (message->handed_over) {
        handed->count--;
        fm_wake_all(&handed->space);
    }
    return true;
}

fm_message *
fm_handed_take_due(fm_handed *handed, int64_t now, fm_deadline *next)
{
    *next = FM_NEVER;
    for (fm_message **link = &handed->parked; *link != NULL;
         link = &(*link)->next) {
        fm_message *message = *link;

        if (message->due <= now) {
            *link = message->next;
            handed->parked_count--;
            if (message->handed_over)
                handed->count++;
            return message;
        }
        *next = message->due < *next ? message->due : *next;
    }
    return NULL;
}
