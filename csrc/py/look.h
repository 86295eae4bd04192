/* What the core shows of itself: counts and health, as dicts. */
#ifndef FM_PY_LOOK_H
#define FM_PY_LOOK_H

#include "py/module.h"

#include "io/bus.h"

/* The counts of one bus: a new dict, or NULL with an exception set. */
PyObject *fm_look_bus_stats(fm_bus *bus);

/* Functions of the module, METH_NOARGS. */
PyObject *fm_py_broker_stats(PyObject *module, PyObject *unused);
PyObject *fm_py_broker_health(PyObject *module, PyObject *unused);
PyObject *fm_py_events_lost(PyObject *module, PyObject *unused);

#endif
