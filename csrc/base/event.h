/* What native threads have to say to the log.
 *
 * A bounded ring for the whole process: any thread posts without blocking,
 * one reader (a Python thread) sleeps until there is something. What does
 * not fit is counted, not waited for.
 */
#ifndef FM_BASE_EVENT_H
#define FM_BASE_EVENT_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"

/* Python's logging levels. */
typedef enum fm_level {
    FM_DEBUG = 10,
    FM_INFO = 20,
    FM_WARNING = 30,
    FM_ERROR = 40,
} fm_level;

enum { FM_EVENT_TEXT = 512 };

typedef struct fm_event {
    fm_level level;
    char text[FM_EVENT_TEXT];
} fm_event;

/* Say something. Never blocks; never with credentials or message content. */
void fm_event_post(fm_level level, const char *format, ...) FM_PRINTF(2, 3);

/* The next event: FM_OK. FM_TIMED_OUT at the deadline, FM_INTERRUPTED by a
 * signal, FM_CLOSED after fm_event_stop() once the ring is empty. */
FM_MUST_CHECK fm_status fm_event_wait(fm_event *out, fm_deadline deadline);

/* What is woken when there is something to read or readers are to end. */
fm_wake *fm_event_wake(void);
bool fm_event_is_stopped(void);

/* Have every reader return FM_CLOSED when the ring is empty, until
 * fm_event_resume(). */
void fm_event_stop(void);
void fm_event_resume(void);

/* In a forked child: an empty ring and a lock that nobody holds. */
void fm_event_reset_in_child(void);

#endif
