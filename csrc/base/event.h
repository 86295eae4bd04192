/* What native threads have to say to the log.
 *
 * A bounded ring for the whole process: any thread posts without blocking,
 * a reader (a Python thread) sleeps until there is something. What does not
 * fit is counted, not waited for. Each Python interpreter of the process has
 * a reader, and each event is read by one of them. Besides, all readers can be
 * called, to do what needs Python.
 */
#ifndef FM_BASE_EVENT_H
#define FM_BASE_EVENT_H

#include "base/attrs.h"
#include "base/counter.h"
#include "base/status.h"
#include "base/sync.h"

/* Python's logging levels. */
typedef enum fm_level {
    FM_CALLED = 0, /* nothing for the log: fm_event_call() */
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

/* Whoever reads, and is told to end apart from others. All zero: to go on. */
typedef struct fm_event_reader {
    atomic_bool is_stopped;
    unsigned heard; /* of the calls; under the ring's lock */
} fm_event_reader;

/* Say something. Never blocks; never with credentials or message content. */
void fm_event_post(fm_level level, const char *format, ...) FM_PRINTF(2, 3);

/* Have every reader get an event of level FM_CALLED; one for several calls. */
void fm_event_call(void);

/* The next event: FM_OK. FM_TIMED_OUT at the deadline, FM_INTERRUPTED by a
 * signal, FM_CLOSED after fm_event_stop() once the ring is empty. */
FM_MUST_CHECK fm_status fm_event_wait(
    fm_event_reader *reader, fm_event *out, fm_deadline deadline);

/* What is woken when there is something to read or a reader is to end. */
fm_wake *fm_event_wake(void);

/* Have a reader, in all of its threads, get FM_CLOSED when the ring is empty,
 * until fm_event_resume(). */
void fm_event_stop(fm_event_reader *reader);
void fm_event_resume(fm_event_reader *reader);

/* How many did not fit, since the process began. */
uint64_t fm_event_lost(void);

/* Stopped, and the ring is empty. */
bool fm_event_is_over(fm_event_reader *reader);

/* In a forked child: an empty ring and a lock that nobody holds. */
void fm_event_reset_in_child(void);

#endif
