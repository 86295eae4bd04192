/* Which thread runs the loop (loop.h): its leader.
 *
 * A hand-over between threads costs more than most messages do by themselves.
 * So a thread that has to wait for something that the loop brings does not
 * sleep until the I/O thread wakes it: if nobody leads, it leads, which is to
 * say that it polls and reads for everybody until its own thing is there. A
 * lone caller, and a lone listener, are woken by the socket itself.
 *
 * Whoever leaves sees to it that somebody leads when it matters:
 *
 * - One who sleeps and is in a hurry (for a reply, a confirm) takes over; for
 *   several of them the I/O thread is called, as it need not leave so soon.
 * - A caller who leaves may not come back, so a sleeping listener takes over.
 *   A listener who leaves comes back as soon as it has handed over.
 * - The I/O thread takes over from nobody after FM_LEAD_PATIENCE_NS. So what
 *   is late is late by that at the most, and a process that holds the GIL for
 *   a minute loses nothing.
 *
 * What is FM_OWNED_BY_THREAD(io) belongs to the leader; changing hands makes
 * what the last one did visible to the next.
 */
#ifndef FM_IO_LEAD_H
#define FM_IO_LEAD_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"

#include <stdbool.h>

#define FM_LEAD_PATIENCE_NS (5 * FM_NS_PER_MS)

/* Why a thread waits. */
typedef enum fm_errand {
    FM_ERRAND_CALLER,   /* in a hurry; may not come back */
    FM_ERRAND_LISTENER, /* for whatever comes, again and again */
} fm_errand;

typedef struct fm_lead {
    atomic_int state;              /* off, free, or taken */
    atomic_int_fast64_t left_at;   /* when the last leader left; 0: called */
    atomic_bool asks_to_be_called; /* the I/O thread sleeps without limit */
    fm_wake relief;                /* the I/O thread sleeps on it */

    fm_mutex lock;                                   /* a leaf */
    struct fm_sleeper *sleepers FM_GUARDED_BY(lock); /* on their stacks */
} fm_lead;

#define FM_LEAD_INITIAL                                                        \
    {                                                                          \
        .lock = { PTHREAD_MUTEX_INITIALIZER }                                  \
    }

/* Who sleeps in fm_lead_wait(), by errand. Those whose word was changed are
 * about to wake up; the others go on waiting. */
typedef struct fm_sleepers {
    unsigned woken[2];
    unsigned waiting[2];
} fm_sleepers;

/* In a forked child: off, that is, nobody leads or may lead. */
void fm_lead_reset_in_child(fm_lead *lead);

/* --- any thread --- */

/* Lead, if nobody does. Who gets true calls fm_lead_leave(). */
FM_MUST_CHECK bool fm_lead_try(fm_lead *lead);

/* `urgent`: the I/O thread has to lead at once. */
void fm_lead_leave(fm_lead *lead, fm_errand errand, bool urgent);

/* fm_wake_wait(). Also returns, with FM_OK, when the lead is to be taken. */
FM_MUST_CHECK fm_status fm_lead_wait(fm_lead *lead, fm_errand errand,
    fm_wake *wake, unsigned seen, fm_deadline deadline);

/* Both at once, for a leader who leaves it to others: sleeps also while the
 * lead is free, and is woken like the others when it is to inherit. */
FM_MUST_CHECK fm_status fm_lead_leave_and_wait(fm_lead *lead, fm_errand errand,
    bool urgent, fm_wake *wake, unsigned seen, fm_deadline deadline);

fm_sleepers fm_lead_count(fm_lead *lead);

/* --- the I/O thread --- */

void fm_lead_begin(fm_lead *lead); /* off: it leads */
void fm_lead_end(fm_lead *lead);   /* it leads: off */

/* Leave, like a listener, and sleep until it leads again. */
void fm_lead_stand_by(fm_lead *lead);

#endif
