/* Calls: a request on its way, and the replies that come back. */
#ifndef FM_PY_CALL_H
#define FM_PY_CALL_H

#include "py/module.h"

#include "io/bus.h"

/* Sleep, without the GIL, until the next reply to `message`, and decode it: a
 * dict, a new reference. *ending: it is the last one. NULL with an exception:
 * Timeout at the deadline (the text says what was missing), or what the
 * message failed with, or what a signal handler raised. */
PyObject *fm_call_next_reply(fm_state *state, fm_bus *bus,
    fm_message *message, fm_deadline deadline, bool *ending);

/* Make a Call, which takes over both references, also when it fails. */
PyObject *fm_call_make(fm_state *state, fm_bus *bus, fm_message *message);

#endif
