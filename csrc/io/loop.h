/* The loop that serves every bus of the process, and its I/O thread.
 *
 * A turn of the loop polls, reads, keeps timers and heartbeats, and sends
 * what callers left behind. It never calls Python and never waits for
 * anything but poll(). The I/O thread begins with the first bus that is used
 * and ends with the last one that is closed; it runs the turns unless a
 * waiting thread does it in its place (lead.h).
 *
 * Forks: the child gets no I/O thread. Its copies of the parent's buses are
 * leaked, their descriptors closed without a word to the broker; whoever
 * holds such a bus sees an old `generation` and opens another.
 */
#ifndef FM_IO_LOOP_H
#define FM_IO_LOOP_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/lead.h"

struct fm_bus;

/* What wakes the I/O thread. The pointer is valid for ever, the descriptor in
 * it while the thread runs: so other threads signal it only with a lock held
 * that the I/O thread takes before it lets go of the bus in question, and
 * only if that has not happened. */
fm_waker *fm_loop_waker(void);

/* Have the bus served, starting the thread if need be. Does nothing for one
 * that is attached already; FM_CLOSED for one that is closing. */
FM_MUST_CHECK fm_status fm_loop_attach(struct fm_bus *bus);

/* Sleep until the word of `wake` differs from `seen`, as fm_wake_wait() does,
 * but run the loop meanwhile if nobody else does. The word is changed by a
 * turn of the loop, or by a thread that then signals the loop's waker. */
FM_MUST_CHECK fm_status fm_loop_wait(
    fm_wake *wake, unsigned seen, fm_deadline deadline, fm_errand errand);

/* From now on fm_loop_wait() returns FM_INTERRUPTED to the main thread now and
 * then, signal or not: it handles signals, which others may get. */
void fm_loop_look_for_signals(void);

/* End the thread if no bus is left, and wait for its end. */
void fm_loop_try_end(void);

#endif
