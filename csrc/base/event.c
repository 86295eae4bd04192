#include "base/event.h"

#include <stdio.h>
#include <string.h>

enum { RING = 128 }; /* a power of two */

/* One per process, like the log it feeds. */
static struct {
    fm_mutex lock;
    fm_wake wake;
    unsigned first FM_GUARDED_BY(lock);
    unsigned len FM_GUARDED_BY(lock);
    unsigned lost FM_GUARDED_BY(lock); /* since the last one that fitted */
    unsigned calls FM_GUARDED_BY(lock);
    fm_counter lost_in_all;
    fm_event ring[RING] FM_GUARDED_BY(lock);
} events = { .lock = { PTHREAD_MUTEX_INITIALIZER } };

void
fm_event_post(fm_level level, const char *format, ...)
{
    fm_event event = { .level = level };
    va_list args;

    va_start(args, format);
    if (vsnprintf(event.text, sizeof(event.text), format, args) < 0)
        event.text[0] = '\0';
    va_end(args);

    fm_mutex_lock(&events.lock);
    if (events.len == RING) {
        events.lost++;
        fm_counter_add(&events.lost_in_all, 1);
    } else {
        events.ring[(events.first + events.len) % RING] = event;
        events.len++;
    }
    fm_mutex_unlock(&events.lock);
    fm_wake_all(&events.wake);
}

void
fm_event_call(void)
{
    fm_mutex_lock(&events.lock);
    events.calls++;
    fm_mutex_unlock(&events.lock);
    fm_wake_all(&events.wake);
}

/* The next event into *out, or false. The count of lost ones comes first,
 * as soon as there is a gap to tell it in. */
static bool
take_locked(fm_event_reader *reader, fm_event *out) FM_REQUIRES(events.lock)
{
    if (reader->heard != events.calls) {
        reader->heard = events.calls;
        out->level = FM_CALLED;
        out->text[0] = '\0';
        return true;
    }
    if (events.lost > 0 && events.len < RING) {
        out->level = FM_WARNING;
        snprintf(out->text, sizeof(out->text),
            "%u events of the I/O thread were lost: the log could not keep up",
            events.lost);
        events.lost = 0;
        return true;
    }
    if (events.len == 0)
        return false;
    *out = events.ring[events.first];
    events.first = (events.first + 1) % RING;
    events.len--;
    return true;
}

fm_status
fm_event_wait(fm_event_reader *reader, fm_event *out, fm_deadline deadline)
{
    for (;;) {
        unsigned seen = fm_wake_read(&events.wake);
        bool taken;
        fm_status status;

        fm_mutex_lock(&events.lock);
        taken = take_locked(reader, out);
        fm_mutex_unlock(&events.lock);
        if (taken)
            return FM_OK;
        if (atomic_load(&reader->is_stopped))
            return FM_CLOSED;
        status = fm_wake_wait(&events.wake, seen, deadline);
        if (status != FM_OK)
            return status;
    }
}

fm_wake *
fm_event_wake(void)
{
    return &events.wake;
}

uint64_t
fm_event_lost(void)
{
    return fm_counter_get(&events.lost_in_all);
}

bool
fm_event_is_over(fm_event_reader *reader)
{
    bool is_empty;

    fm_mutex_lock(&events.lock);
    is_empty = events.len == 0 && events.lost == 0;
    fm_mutex_unlock(&events.lock);
    return is_empty && atomic_load(&reader->is_stopped);
}

void
fm_event_stop(fm_event_reader *reader)
{
    atomic_store(&reader->is_stopped, true);
    fm_wake_all(&events.wake);
}

void
fm_event_resume(fm_event_reader *reader)
{
    atomic_store(&reader->is_stopped, false);
}

void
fm_event_reset_in_child(void)
{
    fm_mutex_init(&events.lock);
    fm_wake_init(&events.wake);
    events.first = events.len = events.lost = 0;
    atomic_store(&events.lost_in_all, 0);
}
