/* Replies that were handed over to the core: nobody waits for them.
 *
 * So they are bounded here, and a reply that no queue takes (its caller may be
 * connecting again) is parked and tried again for a while. Queues that are
 * known to be gone are remembered, so that the replies of a whole backlog of
 * requests do not each wait in vain.
 *
 * Parked here as well, but not counted, are messages of any kind that the
 * broker refused (basic.nack) and that are tried again.
 *
 * Part of the publisher, and guarded by its lock, but for `space`.
 */
#ifndef FM_IO_HANDED_H
#define FM_IO_HANDED_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/message.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FM_GONE_QUEUES = 200 };

typedef struct fm_handed {
    fm_wake space;      /* they became fewer. FM_IMMUTABLE */
    size_t count;       /* parked ones not counted */
    size_t bytes;       /* parked ones counted */
    fm_message *parked; /* shared; linked by next */
    size_t parked_count;
    struct {
        uint64_t hash;
        int64_t until;
    } gone[FM_GONE_QUEUES];
    size_t gone_next;
} fm_handed;

void fm_handed_init(fm_handed *handed);

/* Too many bytes wait: sleep on `space`. */
bool fm_handed_is_full(const fm_handed *handed);

/* Count one that comes in. FM_FULL; FM_NOT_FOUND: its queue is gone. Does
 * nothing for a message that is not handed over, and so do the next three. */
FM_MUST_CHECK fm_status fm_handed_admit(
    fm_handed *handed, const fm_message *message, int64_t now);

/* These leave the publisher. */
void fm_handed_leave(fm_handed *handed, const fm_settled *list);

/* Put a message aside for another try, with its reference; false if its time
 * is over. */
bool fm_handed_try_park(fm_handed *handed, fm_message *message, int64_t now);

/* A returned one is given up: its queue is gone. */
void fm_handed_remember_gone(
    fm_handed *handed, const fm_message *message, int64_t now);

/* A parked one whose time has come, and its reference. NULL: none, and *next
 * is when there will be. */
fm_message *fm_handed_take_due(
    fm_handed *handed, int64_t now, fm_deadline *next);

#endif
