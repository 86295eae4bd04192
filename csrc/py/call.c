#include "py/call.h"

#include "py/bus.h"
#include "py/hub.h"
#include "py/raise.h"

/* Both a Call and a Publication: a message that its caller waits for. */
typedef struct {
    PyObject_HEAD
    fm_bus *bus;         /* shared */
    fm_message *message; /* shared */
    int64_t timeout_ns;  /* of a Publication; see Bus.publish() */
    atomic_bool over;    /* cancelled or ended: nothing more comes */
} PendingObject;

#define SELF(op) ((PendingObject *)(op))

/* Without the GIL. */
static fm_status
wait_reply(
    fm_bus *bus, fm_message *message, fm_deadline deadline, fm_reply **reply)
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
    if (reply->is_msgpack) {
        payload =
            fm_codec_unpack(&state->codec, reply->body.data, reply->body.len);
    } else {
        if (message->is_msgpack)
            fm_bus_notice_json(bus, message->routing_key);
        payload =
            fm_codec_decode(&state->codec, reply->body.data, reply->body.len);
    }
    fm_reply_free(reply);
    if (payload != NULL && !PyDict_Check(payload)) {
        Py_DECREF(payload);
        PyErr_SetString(state->bad_message, "a reply is an object");
        return NULL;
    }
    return payload;
}

int
fm_publication_wait(
    fm_state *state, fm_bus *bus, fm_message *message, int64_t timeout_ns)
{
    fm_status status;

    do {
        Py_BEGIN_ALLOW_THREADS
            status = fm_bus_wait_confirm(bus, message, timeout_ns);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0)
            return -1;
    } while (status == FM_INTERRUPTED);
    if (status == FM_TIMED_OUT) {
        fm_error error;

        fm_publisher_explain(&bus->publisher, message, &error);
        (void)fm_raise(state, &error);
        return -1;
    }
    if (fm_message_status(message) == FM_OK)
        return 0;
    (void)fm_raise_message(state, message);
    return -1;
}

static PyObject *
make(PyTypeObject *type, fm_bus *bus, fm_message *message)
{
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

PyObject *
fm_call_make(fm_state *state, fm_bus *bus, fm_message *message)
{
    return make(state->call_type, bus, message);
}

PyObject *
fm_publication_make(
    fm_state *state, fm_bus *bus, fm_message *message, int64_t timeout_ns)
{
    PyObject *op = make(state->publication_type, bus, message);

    if (op != NULL)
        SELF(op)->timeout_ns = timeout_ns;
    return op;
}

fm_wake *
fm_call_wake(fm_state *state, PyObject *object)
{
    if ((!Py_IS_TYPE(object, state->call_type)
            && !Py_IS_TYPE(object, state->publication_type))
        || !fm_bus_is_ours(SELF(object)->bus))
        return NULL;
    return &SELF(object)->message->wake;
}

/* --- methods of both --- */

PyDoc_STRVAR(is_ready_doc,
    "is_ready($self, /)\n--\n\n"
    "Whether waiting would return or raise at once.");

static PyObject *
Pending_is_ready(PyObject *op, PyObject *Py_UNUSED(unused))
{
    PendingObject *self = SELF(op);

    return PyBool_FromLong(self->over || !fm_bus_is_ours(self->bus)
        || fm_message_status(self->message) != FM_AGAIN
        || fm_reply_is_there(&self->bus->replies, self->message));
}

static void
end(PendingObject *self)
{
    if (fm_bus_is_ours(self->bus) && !atomic_exchange(&self->over, true))
        fm_bus_forget(self->bus, self->message);
}

PyDoc_STRVAR(cancel_doc,
    "cancel($self, /)\n--\n\n"
    "Stop waiting: what was not sent yet is not sent, later replies are\n"
    "dropped. Twice is allowed.");

static PyObject *
Pending_cancel(PyObject *op, PyObject *Py_UNUSED(unused))
{
    end(SELF(op));
    Py_RETURN_NONE;
}

static void
Pending_dealloc(PyObject *op)
{
    PendingObject *self = SELF(op);
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

/* --- Call --- */

PyDoc_STRVAR(wait_doc,
    "wait($self, timeout)\n--\n\n"
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
    PendingObject *self = SELF(op);
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

static PyMethodDef Call_methods[] = {
    { "wait", (PyCFunction)(void (*)(void))Call_wait,
        METH_VARARGS | METH_KEYWORDS, wait_doc },
    { "is_ready", Pending_is_ready, METH_NOARGS, is_ready_doc },
    { "cancel", Pending_cancel, METH_NOARGS, cancel_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Call_doc, "A call that Bus.begin_call() has sent.");

static PyType_Slot Call_slots[] = {
    { Py_tp_doc, (void *)Call_doc },
    { Py_tp_dealloc, Pending_dealloc },
    { Py_tp_methods, Call_methods },
    { 0, NULL },
};

static PyType_Spec Call_spec = {
    .name = "oslo_fastmsg._core.Call",
    .basicsize = sizeof(PendingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE
        | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Call_slots,
};

/* --- Publication --- */

PyDoc_STRVAR(remaining_doc,
    "remaining($self, /)\n--\n\n"
    "Seconds after which wait() might raise Timeout: look again then.");

static PyObject *
Publication_remaining(PyObject *op, PyObject *Py_UNUSED(unused))
{
    PendingObject *self = SELF(op);
    int64_t since, left = self->timeout_ns;

    if (fm_bus_is_ours(self->bus)) {
        since =
            fm_publisher_pending_since(&self->bus->publisher, self->message);
        if (since != FM_NEVER)
            left = fm_deadline_after(since, self->timeout_ns) - fm_now();
    }
    return PyFloat_FromDouble(left < 0 ? 0.0 : (double)left / 1e9);
}

PyDoc_STRVAR(publication_wait_doc,
    "wait($self, /)\n--\n\n"
    "Sleep until it is confirmed, as Bus.publish() does.");

static PyObject *
Publication_wait(PyObject *op, PyObject *Py_UNUSED(unused))
{
    fm_state *state = fm_state_of(op);
    PendingObject *self = SELF(op);

    if (self->over || !fm_bus_is_ours(self->bus))
        return fm_raise_status(state, FM_CLOSED);
    if (fm_publication_wait(state, self->bus, self->message, self->timeout_ns)
        < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef Publication_methods[] = {
    { "wait", Publication_wait, METH_NOARGS, publication_wait_doc },
    { "remaining", Publication_remaining, METH_NOARGS, remaining_doc },
    { "is_ready", Pending_is_ready, METH_NOARGS, is_ready_doc },
    { "cancel", Pending_cancel, METH_NOARGS, cancel_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Publication_doc, "A message that Bus.begin_publish() has sent.");

static PyType_Slot Publication_slots[] = {
    { Py_tp_doc, (void *)Publication_doc },
    { Py_tp_dealloc, Pending_dealloc },
    { Py_tp_methods, Publication_methods },
    { 0, NULL },
};

static PyType_Spec Publication_spec = {
    .name = "oslo_fastmsg._core.Publication",
    .basicsize = sizeof(PendingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE
        | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Publication_slots,
};

int
fm_call_types_add(PyObject *module, fm_state *state)
{
    state->call_type = fm_type_add(module, &Call_spec);
    state->publication_type = fm_type_add(module, &Publication_spec);
    return state->call_type == NULL || state->publication_type == NULL ? -1 : 0;
}
