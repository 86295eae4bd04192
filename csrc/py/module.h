/* The module's state, and what every binding file needs.
 *
 * Multi-phase initialisation (PEP 489): nothing of Python is static, so that
 * each interpreter of the process has its own module. The core below is one
 * per process, whichever interpreter came first.
 */
#ifndef FM_PY_MODULE_H
#define FM_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/event.h"
#include "base/status.h"
#include "base/sync.h"
#include "py/codec.h"

typedef struct fm_state {
    fm_codec codec;
    fm_event_reader events; /* this interpreter's */
    PyObject *error;        /* owned: oslo_fastmsg._core.Error, the base */
    PyObject *exceptions[FM_STATUS_COUNT]; /* owned: by status; see raise.c */
    PyObject *bad_message;                 /* owned */
    PyTypeObject *topology_type;           /* owned, like all below */
    PyTypeObject *bus_type;
    PyTypeObject *call_type;
    PyTypeObject *consumer_type;
    PyTypeObject *delivery_type;
    PyTypeObject *publication_type;
    PyTypeObject *hub_type;
    PyTypeObject *flag_type;
    PyTypeObject *watch_type;
    PyObject *str_result; /* interned names of members */
    PyObject *str_failure;
    PyObject *str_ending;
    PyObject *str_unique_id;
} fm_state;

fm_state *fm_state_of_module(PyObject *module);
fm_state *fm_state_of_type(PyTypeObject *type); /* one of ours */
static inline fm_state *
fm_state_of(PyObject *self)
{
    return fm_state_of_type(Py_TYPE(self));
}

/* Seconds as a Python float or int to nanoseconds; None is FM_NEVER - 1, the
 * longest there is. Negative counts as 0. -1 with an exception set. */
int fm_seconds_to_ns(PyObject *seconds, int64_t *ns);

/* Have the types of the module. 0, or -1 with an exception set. */
int fm_topology_type_add(PyObject *module, fm_state *state);
int fm_bus_type_add(PyObject *module, fm_state *state);
int fm_call_types_add(PyObject *module, fm_state *state);
int fm_consumer_type_add(PyObject *module, fm_state *state);
int fm_delivery_type_add(PyObject *module, fm_state *state);
int fm_hub_types_add(PyObject *module, fm_state *state);

/* Make a heap type from its spec and add it to the module under its name. */
PyTypeObject *fm_type_add(PyObject *module, PyType_Spec *spec);

#endif
