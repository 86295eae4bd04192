/* The writing half of a connection: one buffer, any number of writers.
 *
 * Hybrid writing. A writer appends whole frames under the lock and calls
 * fm_output_push_locked(). If the I/O thread sleeps and nobody else is
 * sending, the writer sends itself, so that a lone message costs no hand-over
 * between threads; otherwise whoever is sending, or the I/O thread before it
 * sleeps again, sends everything that has gathered in one go. At any time at
 * most one thread is in the system call (the flusher).
 *
 * The lock also guards the publisher that sits on the connection, because
 * the order of confirm tags has to be the order of bytes.
 */
#ifndef FM_IO_OUTPUT_H
#define FM_IO_OUTPUT_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/socket.h"
#include "io/strict.h"

#include <stdbool.h>

/* Above this many unsent bytes publishers wait. */
enum { FM_OUTPUT_HIGH_WATER = 1024 * 1024 };

typedef struct fm_output {
    /* A leaf: its holder takes no other lock, no GIL, and calls nobody. */
    fm_mutex lock;
    fm_waker *waker; /* borrowed: wakes the I/O thread. FM_IMMUTABLE */
    fm_strictness *strictness; /* borrowed, for ever: the broker's. IMMUTABLE */

    fm_socket *socket FM_GUARDED_BY(lock); /* borrowed; NULL while down */
    uint64_t epoch FM_GUARDED_BY(lock);    /* of the connection; 0: none yet */
    uint32_t frame_max FM_GUARDED_BY(lock);
    fm_buf out FM_GUARDED_BY(lock);         /* appended to */
    fm_buf sending FM_GUARDED_BY(flushing); /* in the flusher's hands */
    size_t sent FM_GUARDED_BY(flushing);    /* of sending */
    size_t backlog FM_GUARDED_BY(lock);     /* bytes of sending not yet sent */
    bool flushing FM_GUARDED_BY(lock);
    bool asleep FM_GUARDED_BY(lock); /* the I/O thread is, or is about to */
    bool stuck FM_GUARDED_BY(lock);  /* the kernel is full: poll for room */
    fm_error failure FM_GUARDED_BY(lock); /* of a write; FM_OK: none */
    bool starved FM_GUARDED_BY(lock);     /* see fm_output_starve() */

    uint16_t channel_max; /* the highest number. FM_OWNED_BY_THREAD(io) */

    atomic_int_fast64_t last_write; /* fm_now() of the last byte sent */
    atomic_uint_fast64_t bytes;     /* sent since the process began */
} fm_output;

void fm_output_init(fm_output *output, fm_waker *waker);
void fm_output_fini(fm_output *output);

/* I/O thread: a connection is there, or gone. `epoch` is new for each
 * connection of the process. _down may only be called when _is_quiet. */
void fm_output_up(
    fm_output *output, fm_socket *socket, uint32_t frame_max, uint64_t epoch);
void fm_output_down(fm_output *output);

/* I/O thread: let no new flusher in, and tell whether the last one is out.
 * The flusher that finds itself shut out wakes the I/O thread. */
bool fm_output_try_quiet(fm_output *output);

static inline bool
fm_output_is_up_locked(const fm_output *output) FM_REQUIRES(output->lock)
{
    return output->socket != NULL;
}

/* Bytes that wait to be sent. */
static inline size_t
fm_output_pending_locked(const fm_output *output) FM_REQUIRES(output->lock)
{
    return output->out.len + output->backlog;
}

/* Have what was appended sent: by this thread if the I/O thread sleeps, else
 * by the I/O thread. Lets go of the lock while it sends, and takes it again. */
void fm_output_push_locked(fm_output *output) FM_REQUIRES(output->lock);

/* There was no memory for something that can be appended later: the I/O thread
 * is to try again soon. _was_ forgets it. */
void fm_output_starve(fm_output *output);
void fm_output_starve_locked(fm_output *output) FM_REQUIRES(output->lock);
bool fm_output_was_starved(fm_output *output);

/* There was none for something that cannot, because it would be sent too late
 * or never: the connection is given up, and the broker takes back what it has
 * given us. */
void fm_output_fail_locked(fm_output *output, const char *what)
    FM_REQUIRES(output->lock);

/* Is there something that neither was sent nor is being sent? */
bool fm_output_has_unsent(fm_output *output);

/* The same as _push_locked, for who does not hold the lock. */
void fm_output_push(fm_output *output);

/* I/O thread: send what there is, now. */
void fm_output_flush_locked(fm_output *output) FM_REQUIRES(output->lock);

/* I/O thread, before it polls: send what there is, declare itself asleep.
 * *want_room: poll for writing too. */
fm_status fm_output_before_sleep(
    fm_output *output, bool *want_room, fm_error *error);

/* I/O thread, after it polled; `room`: poll said that there is. */
void fm_output_after_sleep(fm_output *output, bool room);

#endif
