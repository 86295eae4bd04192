/* Which thread runs the loop (loop.h): its leader.
 *
 * A hand-over between threads costs more than most messages do by themselves.
 * So a thread that has to wait for something that the loop brings does not
 * sleep until the I/O thread wakes it: if nobody leads, it leads, which is to
 * say that it polls and reads for everybody until its own thing is there. A
 * lone caller, and a lone listener, are woken by the socket itself.
 *
 * The I/O thread leads whenever nobody else does. It stands by, and takes
 * over when the lead has been free for FM_LEAD_PATIENCE_NS, or at once when
 * it is called: so what is late is late by that patience at the most, and a
 * process that holds the GIL for a minute loses nothing. It gives up the lead
 * when it has woken whoever would come back for it.
 *
 * Who waits for a reply or a confirm is in a hurry: then somebody leads at any
 * time. One such sleeper inherits the lead from who leaves it; for more of
 * them the I/O thread is called, since it need not leave again so soon.
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

typedef struct fm_lead {
    atomic_int state;              /* off, free, or taken */
    atomic_uint hurried;           /* sleepers in a hurry */
    atomic_int_fast64_t left_at;   /* when the last leader left; 0: called */
    atomic_bool asks_to_be_called; /* the I/O thread sleeps without limit */
    fm_wake relief;                /* the I/O thread sleeps on it */

    fm_mutex lock;                     /* a leaf */
    fm_wake *heir FM_GUARDED_BY(lock); /* borrowed: of one in a hurry */
} fm_lead;

#define FM_LEAD_INITIAL                                                        \
    {                                                                          \
        .lock = { PTHREAD_MUTEX_INITIALIZER }                                  \
    }

/* In a forked child: off, that is, nobody leads or may lead. */
void fm_lead_reset_in_child(fm_lead *lead);

/* --- any thread --- */

/* Lead, if nobody does. Who gets true calls fm_lead_leave(). */
FM_MUST_CHECK bool fm_lead_try(fm_lead *lead);

/* `urgent`: somebody else has to lead at once. */
void fm_lead_leave(fm_lead *lead, int64_t now, bool urgent);

/* fm_wake_wait() in a hurry. Also returns, with FM_OK, when the lead is free:
 * try to take it then. */
FM_MUST_CHECK fm_status fm_lead_wait(
    fm_lead *lead, fm_wake *wake, unsigned seen, fm_deadline deadline);

/* How many sleep in fm_lead_wait(). */
unsigned fm_lead_hurried(fm_lead *lead);

/* --- the I/O thread --- */

void fm_lead_begin(fm_lead *lead); /* off: it leads */
void fm_lead_end(fm_lead *lead);   /* it leads: off */

/* Leave, and sleep until it leads again. */
void fm_lead_stand_by(fm_lead *lead, int64_t now);

#endif
