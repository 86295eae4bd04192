#include "py/hub.h"

#include "base/event.h"
#include "base/hub.h"
#include "py/raise.h"

/* --- Flag --- */

typedef struct {
    PyObject_HEAD
    fm_wake wake;
    atomic_bool is_set;
} FlagObject;

static PyObject *
Flag_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { NULL };
    PyObject *op;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Flag", names))
        return NULL;
    op = type->tp_alloc(type, 0);
    if (op == NULL)
        return NULL;
    fm_wake_init(&((FlagObject *)op)->wake);
    atomic_init(&((FlagObject *)op)->is_set, false);
    return op;
}

static void
Flag_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(set_doc,
    "set($self, /)\n--\n\n"
    "Set it and wake whoever watches it, from any thread.");

static PyObject *
Flag_set(PyObject *op, PyObject *Py_UNUSED(unused))
{
    FlagObject *self = (FlagObject *)op;

    atomic_store(&self->is_set, true);
    fm_wake_all(&self->wake);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(is_set_doc,
    "is_set($self, /)\n--\n\n"
    "Whether it was set.");

static PyObject *
Flag_is_set(PyObject *op, PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(atomic_load(&((FlagObject *)op)->is_set));
}

static PyMethodDef Flag_methods[] = {
    { "set", Flag_set, METH_NOARGS, set_doc },
    { "is_set", Flag_is_set, METH_NOARGS, is_set_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Flag_doc,
    "Flag()\n--\n\n"
    "Something that one thread sets and a greenthread of another watches.");

static PyType_Slot Flag_slots[] = {
    { Py_tp_doc, (void *)Flag_doc },
    { Py_tp_new, Flag_new },
    { Py_tp_dealloc, Flag_dealloc },
    { Py_tp_methods, Flag_methods },
    { 0, NULL },
};

static PyType_Spec Flag_spec = {
    .name = "oslo_fastmsg._core.Flag",
    .basicsize = sizeof(FlagObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Flag_slots,
};

/* --- Hub --- */

typedef struct {
    PyObject_HEAD
    fm_hub *hub; /* shared */
    unsigned generation;
} HubObject;

#define HUB(op) ((HubObject *)(op))

static PyObject *
Hub_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { NULL };
    fm_status status;
    fm_hub *hub;
    PyObject *op;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Hub", names))
        return NULL;
    status = fm_hub_new(&hub);
    if (status != FM_OK)
        return fm_raise_status(fm_state_of_type(type), status);
    op = type->tp_alloc(type, 0);
    if (op == NULL) {
        fm_hub_unref(hub);
        return NULL;
    }
    HUB(op)->hub = hub;
    HUB(op)->generation = fm_fork_generation();
    return op;
}

static void
Hub_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    fm_hub_unref(HUB(op)->hub);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(fileno_doc,
    "fileno($self, /)\n--\n\n"
    "A descriptor that is readable while there are tokens.");

static PyObject *
Hub_fileno(PyObject *op, PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(fm_hub_fd(HUB(op)->hub));
}

PyDoc_STRVAR(drain_doc,
    "drain($self, /)\n--\n\n"
    "Take the tokens of all watches that fired since: a list of int.");

static PyObject *
Hub_drain(PyObject *op, PyObject *Py_UNUSED(unused))
{
    uint64_t tokens[64];
    size_t count;
    PyObject *list = PyList_New(0);

    do {
        count = fm_hub_drain(HUB(op)->hub, tokens, 64);
        for (size_t i = 0; i < count && list != NULL; i++) {
            PyObject *token = PyLong_FromUnsignedLongLong(tokens[i]);

            if (token == NULL || PyList_Append(list, token) < 0)
                Py_CLEAR(list);
            Py_XDECREF(token);
        }
    } while (count == 64 && list != NULL);
    return list;
}

static PyMethodDef Hub_methods[] = {
    { "fileno", Hub_fileno, METH_NOARGS, fileno_doc },
    { "drain", Hub_drain, METH_NOARGS, drain_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Hub_doc,
    "Hub()\n--\n\n"
    "Where the tokens of fired watches gather, for one event loop.");

static PyType_Slot Hub_slots[] = {
    { Py_tp_doc, (void *)Hub_doc },
    { Py_tp_new, Hub_new },
    { Py_tp_dealloc, Hub_dealloc },
    { Py_tp_methods, Hub_methods },
    { 0, NULL },
};

static PyType_Spec Hub_spec = {
    .name = "oslo_fastmsg._core.Hub",
    .basicsize = sizeof(HubObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Hub_slots,
};

/* --- Watch --- */

typedef struct {
    PyObject_HEAD
    PyObject *target; /* owned: keeps the watched wake alive; may be NULL */
    fm_watch watch;
    unsigned generation;
} WatchObject;

#define WATCH(op) ((WatchObject *)(op))

/* NULL with an exception set. */
static fm_wake *
wake_of(fm_state *state, PyObject *target)
{
    fm_wake *wake;

    if (target == Py_None)
        return fm_event_wake();
    if (Py_IS_TYPE(target, state->flag_type))
        return &((FlagObject *)target)->wake;
    wake = fm_call_wake(state, target);
    if (wake == NULL)
        wake = fm_consumer_wake(state, target);
    if (wake == NULL)
        PyErr_Format(PyExc_TypeError, "a %.100s cannot be watched",
            Py_TYPE(target)->tp_name);
    return wake;
}

static PyObject *
Watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "hub", "target", "token", NULL };
    fm_state *state = fm_state_of_type(type);
    PyObject *hub, *target, *op;
    unsigned long long token;
    fm_wake *wake;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OK:Watch", names,
            state->hub_type, &hub, &target, &token))
        return NULL;
    wake = wake_of(state, target);
    if (wake == NULL)
        return NULL;
    op = type->tp_alloc(type, 0);
    if (op == NULL)
        return NULL;
    WATCH(op)->target = Py_NewRef(target);
    WATCH(op)->generation = fm_fork_generation();
    fm_watch_begin(&WATCH(op)->watch, wake, HUB(hub)->hub, token);
    return op;
}

/* In a forked child the lists may be in any state: leave them alone. */
static void
end_watch(WatchObject *self)
{
    if (self->generation == fm_fork_generation())
        fm_watch_end(&self->watch);
}

static void
Watch_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    end_watch(WATCH(op));
    Py_XDECREF(WATCH(op)->target);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(end_doc,
    "end($self, /)\n--\n\n"
    "Fire no more. Twice is allowed.");

static PyObject *
Watch_end(PyObject *op, PyObject *Py_UNUSED(unused))
{
    Py_BEGIN_CRITICAL_SECTION(op);
    end_watch(WATCH(op));
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

static PyMethodDef Watch_methods[] = {
    { "end", Watch_end, METH_NOARGS, end_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Watch_doc,
    "Watch(hub, target, token)\n--\n\n"
    "Have `token` appear in `hub` whenever something happens to `target`.\n\n"
    ":param target: a Call, Publication, Consumer or Flag; None for the\n"
    "    events of next_event().\n"
    ":param token: int from 0 to 2**64 - 1.");

static PyType_Slot Watch_slots[] = {
    { Py_tp_doc, (void *)Watch_doc },
    { Py_tp_new, Watch_new },
    { Py_tp_dealloc, Watch_dealloc },
    { Py_tp_methods, Watch_methods },
    { 0, NULL },
};

static PyType_Spec Watch_spec = {
    .name = "oslo_fastmsg._core.Watch",
    .basicsize = sizeof(WatchObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Watch_slots,
};

int
fm_hub_types_add(PyObject *module, fm_state *state)
{
    state->hub_type = fm_type_add(module, &Hub_spec);
    state->flag_type = fm_type_add(module, &Flag_spec);
    state->watch_type = fm_type_add(module, &Watch_spec);
    return state->hub_type == NULL || state->flag_type == NULL
            || state->watch_type == NULL
        ? -1
        : 0;
}
