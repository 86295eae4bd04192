/* Sleeping on a descriptor, with a deadline and a way to be called off.
 *
 * For the short-lived threads that resolve, connect and log in. The I/O
 * thread has a poll of its own (loop.h).
 */
#ifndef FM_IO_WAIT_H
#define FM_IO_WAIT_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"

/* Sleep until `fd` is ready for one of `events` (poll(2)), where errors and
 * hang-ups count as ready: FM_OK. FM_CLOSED once `cancel_fd` (-1: none), which
 * is only looked at, is readable; FM_TIMED_OUT; FM_SYSTEM. A signal does not
 * end it. */
FM_MUST_CHECK fm_status fm_wait_fd(
    int fd, short events, fm_deadline deadline, int cancel_fd);

#endif
