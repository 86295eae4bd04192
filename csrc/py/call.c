#include "py/call.h"

#include "py/bus.h"
#include "py/raise.h"

typedef struct {
    PyObject_HEAD
    fm_bus *bus;         /* shared */
    fm_message *message; /* shared */
    bool over;           /* cancelled or ended: nothing more comes */
} CallObject;

#define SELF(op) ((CallObject *)(op))

/* Without the GIL. */
static fm_status
wait_reply(fm_bus *bus, fm_message *message, fm_deadline deadline,
    fm_reply **reply)
{
    fm_status status;

    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_wait_reply(bus, message, deadline, reply);
    Py_END_ALLOW_THREADS
    return status;
}

PyObject *
fm_call_next_reply(fm_state *state, fm_bus *bus, fm_message *message,
    fm_deadline deadline, bool *ending)
{
    fm_reply *reply = NULL;
    PyObject *payload;
    fm_status status;

    do {
        status = wait_reply(bus, message, deadline, &reply);
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0)
            return NULL;
    } while (status == FM_INTERRUPTED);
    if (status == FM_TIMED_OUT) {
        fm_error error;

        fm_publisher_explain(&bus->publisher, message, &error);
        return fm_raise(state, &error);
    }
    if (reply == NULL) {
        if (fm_message_status(message) != FM_OK)
            return fm_raise_message(state, message);
        return fm_raise_status(state, FM_NOT_FOUND); /* ended before */
    }
    *ending = reply->ending;
    payload =
        fm_codec_decode(&state->codec, reply->body.data, reply->body.len);
    fm_reply_free(reply);
    if (payload != NULL && !PyDict_Check(payload)) {
        Py_DECREF(payload);
        PyErr_SetString(state->bad_message, "a reply is a JSON object");
        return NULL;
    }
    return payload;
}

PyObject *
fm_call_make(fm_state *state, fm_bus *bus, fm_message *message)
{
    PyTypeObject *type = state->call_type;
    PyObject *op = type->tp_alloc(type, 0);

    if (op == NULL) {
        fm_bus_forget(bus, message);
        fm_message_unref(message);
        fm_bus_unref(bus);
        return NULL;
    }
    SELF(op)->bus = bus;
    SELF(op)->message = message;
    return op;
}

/* --- methods --- */

PyDoc_STRVAR(wait_doc,
    "wait(timeout)\n--\n\n"
    "Sleep until the next reply.\n\n"
    ":param timeout: seconds from now.\n"
    ":returns: the reply's payload; its member `ending` is false for a\n"
    "    heartbeat of the server.\n"
    ":raises Timeout: none came; the call goes on.\n"
    ":raises Error: the request failed, as for Bus.call().");

static PyObject *
Call_wait(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "timeout", NULL };
    fm_state *state = fm_state_of(op);
    CallObject *self = SELF(op);
    bool ending = false;
    PyObject *timeout, *payload;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:wait", names, &timeout)
        || fm_seconds_to_ns(timeout, &ns) < 0)
        return NULL;
    if (self->over || !fm_bus_is_ours(self->bus))
        return fm_raise_status(state, FM_CLOSED);
    payload = fm_call_next_reply(
        state, self->bus, self->message, fm_deadline_in(ns), &ending);
    return payload;
}

static void
end(CallObject *self)
{
    if (self->over || !fm_bus_is_ours(self->bus))
        return;
    self->over = true;
    fm_bus_forget(self->bus, self->message);
}

PyDoc_STRVAR(cancel_doc,
    "cancel()\n--\n\n"
    "Stop waiting: later replies are dropped. Twice is allowed.");

static PyObject *
Call_cancel(PyObject *op, PyObject *Py_UNUSED(unused))
{
    end(SELF(op));
    Py_RETURN_NONE;
}

/* --- the type --- */

static void
Call_dealloc(PyObject *op)
{
    CallObject *self = SELF(op);
    PyTypeObject *type = Py_TYPE(op);

    /* In a forked child everything of the parent's is leaked, not touched. */
    if (fm_bus_is_ours(self->bus)) {
        end(self);
        fm_message_unref(self->message);
        fm_bus_unref(self->bus);
    }
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef Call_methods[] = {
    { "wait", (PyCFunction)(void (*)(void))Call_wait,
        METH_VARARGS | METH_KEYWORDS, wait_doc },
    { "cancel", Call_cancel, METH_NOARGS, cancel_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Call_doc,
    "A call that Bus.begin_call() has sent.");

static PyType_Slot Call_slots[] = {
    { Py_tp_doc, (void *)Call_doc },
    { Py_tp_dealloc, Call_dealloc },
    { Py_tp_methods, Call_methods },
    { 0, NULL },
};

static PyType_Spec Call_spec = {
    .name = "oslo_fastmsg._core.Call",
    .basicsize = sizeof(CallObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE
        | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Call_slots,
};

int
fm_call_type_add(PyObject *module, fm_state *state)
{
    state->call_type = fm_type_add(module, &Call_spec);
    return state->call_type == NULL ? -1 : 0;
}
