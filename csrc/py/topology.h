/* Declarations given as Python tuples, and the type that keeps them. */
#ifndef FM_PY_TOPOLOGY_H
#define FM_PY_TOPOLOGY_H

#include "py/module.h"

#include "io/topology.h"

/* Build a topology from a sequence of declarations (see _core.pyi): a new
 * reference for the caller. NULL with TypeError or ValueError set. */
fm_topology *fm_topology_from_python(fm_state *state, PyObject *declarations);

/* The one in a Topology object; borrowed. NULL with an exception set. */
fm_topology *fm_topology_of(fm_state *state, PyObject *object);

#endif
