/* The one I/O thread of the process.
 *
 * It begins with the first bus that is used and ends with the last one that
 * is closed. It polls, reads, keeps timers and heartbeats, and sends what
 * callers left behind. It never calls Python and never waits for anything
 * but poll().
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

struct fm_bus;

/* What wakes the I/O thread. The pointer is valid for ever, the descriptor in
 * it while the thread runs: so other threads signal it only with a lock held
 * that the I/O thread takes before it lets go of the bus in question, and
 * only if that has not happened. */
fm_waker *fm_loop_waker(void);

/* Have the bus served, starting the thread if need be. Does nothing for one
 * that is attached already; FM_CLOSED for one that is closing. */
FM_MUST_CHECK fm_status fm_loop_attach(struct fm_bus *bus);

/* End the thread if no bus is left, and wait for its end. */
void fm_loop_try_end(void);

#endif
