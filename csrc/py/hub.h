/* The types Hub, Watch and Flag: waiting without blocking the thread. */
#ifndef FM_PY_HUB_H
#define FM_PY_HUB_H

#include "py/module.h"

/* What wakes whoever waits for this Call, Publication or Consumer; NULL: the
 * object is none of these, or belongs to a parent process. */
fm_wake *fm_call_wake(fm_state *state, PyObject *object);
fm_wake *fm_consumer_wake(fm_state *state, PyObject *object);

#endif
