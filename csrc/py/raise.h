/* Statuses of the core become exceptions: here alone. */
#ifndef FM_PY_RAISE_H
#define FM_PY_RAISE_H

#include "py/module.h"

#include "io/message.h"

/* Create the exception classes and add them to the module. */
int fm_raise_init(PyObject *module, fm_state *state);

/* Set the exception that belongs to the error; always NULL. */
PyObject *fm_raise(fm_state *state, const fm_error *error);

/* The same for a status alone, with its constant text. */
PyObject *fm_raise_status(fm_state *state, fm_status status);

/* The same for a message that has failed; Returned says where it went. */
PyObject *fm_raise_message(fm_state *state, const fm_message *message);

#endif
