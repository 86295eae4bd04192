/* The types Consumer and Delivery. */
#ifndef FM_PY_CONSUMER_H
#define FM_PY_CONSUMER_H

#include "py/module.h"

#include "io/bus.h"
#include "io/consume.h"

typedef struct {
    PyObject_HEAD
    fm_bus *bus;           /* shared */
    fm_consumer *consumer; /* shared */
    PyObject *queues;      /* owned: tuple of str */
    atomic_bool added;     /* to the bus */
    atomic_bool closed;
    bool ack_on_take;
    atomic_size_t unsettled; /* deliveries that take() could not acknowledge */
} ConsumerObject;

/* The consumer in a Consumer object; borrowed. NULL with TypeError set. */
fm_consumer *fm_consumer_of(fm_state *state, PyObject *object);

/* Have the bus serve it, once: for open(), start() and calls that wait at
 * its gate. 0, or -1 with an exception set. */
int fm_consumer_add(fm_state *state, PyObject *object);

/* Make a Delivery of `delivery` (taken in any case). NULL with an exception;
 * *is_duplicate: there is none to make, it was dropped. */
PyObject *fm_delivery_make(fm_state *state, ConsumerObject *consumer,
    fm_delivery *delivery, bool *is_duplicate);

/* Whether the fast path could read it, so that take() may acknowledge it. */
bool fm_delivery_is_read(PyObject *delivery);

#endif
