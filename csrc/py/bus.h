/* The type Bus: one user's share of a bus. */
#ifndef FM_PY_BUS_H
#define FM_PY_BUS_H

#include "py/module.h"

#include "io/bus.h"

/* The open bus in a Bus object, with a reference for the caller; NULL with
 * Closed set if it was closed or belongs to a parent process. */
fm_bus *fm_bus_acquire(fm_state *state, PyObject *bus);

/* Was the bus made by this process (and not by one that forked it)? */
static inline bool
fm_bus_is_ours(const fm_bus *bus)
{
    return bus->generation == fm_fork_generation();
}

#endif
