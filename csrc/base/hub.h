/* Being woken by a descriptor: for waiters that must not block their thread.
 *
 * A greenthread cannot sleep on a futex, for its thread has others to run. It
 * watches the fm_wake instead: when that is woken, the watch's token appears
 * in a hub, whose descriptor becomes readable; the event loop of the thread
 * has that descriptor registered once, whatever the number of waiters. As
 * with a futex, whoever watches looks again at what he waits for, after the
 * watch began and after each token.
 */
#ifndef FM_BASE_HUB_H
#define FM_BASE_HUB_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_hub fm_hub;

/* One waiter at one wake. Lives in the waiter's memory; all fields are
 * guarded by a lock of hub.c. */
typedef struct fm_watch {
    fm_hub *hub;   /* shared; NULL: not begun, or ended */
    fm_wake *wake; /* borrowed until fm_watch_end */
    uint64_t token;
    bool fired;                  /* is in the hub's list */
    struct fm_watch *next;       /* of the wake's */
    struct fm_watch *next_fired; /* of the hub's */
} fm_watch;

FM_MUST_CHECK fm_status fm_hub_new(fm_hub **out);
fm_hub *fm_hub_ref(fm_hub *hub);
void fm_hub_unref(fm_hub *hub); /* NULL is allowed */

/* Readable while there are tokens; non-blocking, close-on-exec. */
int fm_hub_fd(const fm_hub *hub);

/* Take up to `max` tokens of watches that fired since they were last taken.
 * Returns how many; call again while it is `max`. */
size_t fm_hub_drain(fm_hub *hub, uint64_t *tokens, size_t max);

/* Have `wake` fire `token` in `hub`, until _end. Never blocks. */
void fm_watch_begin(
    fm_watch *watch, fm_wake *wake, fm_hub *hub, uint64_t token);
void fm_watch_end(fm_watch *watch); /* twice is allowed */

/* Watches of the process that have begun and not ended. */
unsigned fm_watch_count(void);

/* For sync.c: somebody may be watching this wake. */
void fm_watch_fire(fm_wake *wake);

/* In a forked child: a lock that nobody holds. The parent's hubs leak. */
void fm_hub_reset_in_child(void);

#endif
