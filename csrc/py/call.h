/* Messages that somebody waits for: calls until the replies come back,
 * publications until they are confirmed. */
#ifndef FM_PY_CALL_H
#define FM_PY_CALL_H

#include "py/module.h"

#include "io/bus.h"

/* Sleep, without the GIL, until the next reply to `message`, and decode it: a
 * dict, a new reference. *ending: it is the last one. NULL with an exception:
 * Timeout at the deadline (the text says what was missing), or what the
 * message failed with, or what a signal handler raised. */
PyObject *fm_call_next_reply(fm_state *state, fm_bus *bus, fm_message *message,
    fm_deadline deadline, bool *ending);

/* Sleep, without the GIL, until `message` is confirmed: 0, or -1 with an
 * exception: Timeout (see fm_bus_wait_confirm for what `timeout_ns` bounds),
 * what the message failed with, or what a signal handler raised. */
int fm_publication_wait(
    fm_state *state, fm_bus *bus, fm_message *message, int64_t timeout_ns);

/* Make a Call or Publication, which takes over both references, also when it
 * fails. */
PyObject *fm_call_make(fm_state *state, fm_bus *bus, fm_message *message);
PyObject *fm_publication_make(
    fm_state *state, fm_bus *bus, fm_message *message, int64_t timeout_ns);

#endif
