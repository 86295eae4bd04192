#include "py/topology.h"

#include "py/raise.h"

typedef struct {
    PyObject_HEAD
    fm_topology *topology; /* shared */
} TopologyObject;

#define SELF(op) ((TopologyObject *)(op))

/* --- from Python --- */

/* One entry of a queue's arguments. Texts are borrowed from the objects. */
static int
read_argument(PyObject *name, PyObject *value, fm_arg *out)
{
    *out = (fm_arg){ .name = PyUnicode_AsUTF8(name) };
    if (out->name == NULL)
        return -1;
    if (PyBool_Check(value)) {
        out->kind = FM_ARG_BOOL;
        out->flag = value == Py_True;
    } else if (PyLong_Check(value)) {
        out->kind = FM_ARG_INTEGER;
        out->integer = PyLong_AsLongLong(value);
        if (out->integer == -1 && PyErr_Occurred() != NULL)
            return -1;
    } else if (PyUnicode_Check(value)) {
        out->kind = FM_ARG_TEXT;
        out->text = PyUnicode_AsUTF8(value);
        if (out->text == NULL)
            return -1;
    } else {
        PyErr_Format(PyExc_TypeError,
            "argument '%s' of a queue is neither int, str nor bool", out->name);
        return -1;
    }
    return 0;
}

static fm_status
add_queue(fm_topology *topology, PyObject *item)
{
    fm_arg args[FM_TABLE_MAX];
    fm_queue queue = { .arguments = { args, 0 } };
    PyObject *arguments, *copy, *name, *value;
    const char *kind;
    int durable, auto_delete;
    Py_ssize_t pos = 0;
    fm_status status = FM_AGAIN;

    if (!PyArg_ParseTuple(item, "ssppO!:queue", &kind, &queue.name, &durable,
            &auto_delete, &PyDict_Type, &arguments))
        return FM_AGAIN;
    queue.durable = durable;
    queue.auto_delete = auto_delete;
    copy = PyDict_Copy(arguments); /* keeps what is borrowed below */
    if (copy == NULL)
        return FM_AGAIN;
    if (PyDict_GET_SIZE(copy) > FM_TABLE_MAX) {
        status = FM_TOO_LARGE;
        goto done;
    }
    while (PyDict_Next(copy, &pos, &name, &value)) {
        if (read_argument(name, value, &args[queue.arguments.count]) < 0)
            goto done;
        queue.arguments.count++;
    }
    status = fm_topology_add_queue(topology, &queue);

done:
    Py_DECREF(copy);
    return status;
}

static fm_status
add_exchange(fm_topology *topology, PyObject *item)
{
    fm_exchange exchange = { 0 };
    const char *kind;
    int durable, auto_delete;

    if (!PyArg_ParseTuple(item, "ssspp:exchange", &kind, &exchange.name,
            &exchange.type, &durable, &auto_delete))
        return FM_AGAIN;
    exchange.durable = durable;
    exchange.auto_delete = auto_delete;
    return fm_topology_add_exchange(topology, &exchange);
}

static fm_status
add_binding(fm_topology *topology, PyObject *item)
{
    const char *kind, *queue, *exchange, *routing_key;

    if (!PyArg_ParseTuple(
            item, "ssss:bind", &kind, &queue, &exchange, &routing_key))
        return FM_AGAIN;
    return fm_topology_add_binding(topology, queue, exchange, routing_key);
}

/* FM_AGAIN: an exception is set. */
static fm_status
add(fm_topology *topology, PyObject *item)
{
    const char *kind;

    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) < 1) {
        PyErr_SetString(PyExc_TypeError, "a declaration is a tuple");
        return FM_AGAIN;
    }
    kind = PyUnicode_AsUTF8(PyTuple_GET_ITEM(item, 0));
    if (kind == NULL)
        return FM_AGAIN;
    if (strcmp(kind, "exchange") == 0)
        return add_exchange(topology, item);
    if (strcmp(kind, "queue") == 0)
        return add_queue(topology, item);
    if (strcmp(kind, "bind") == 0)
        return add_binding(topology, item);
    PyErr_Format(PyExc_ValueError, "no declaration is called '%s'", kind);
    return FM_AGAIN;
}

fm_topology *
fm_topology_from_python(fm_state *state, PyObject *declarations)
{
    PyObject *items = PySequence_Tuple(declarations); /* ours, unlike a list */
    fm_topology *topology = NULL;
    fm_status status;

    if (items == NULL)
        return NULL;
    status = fm_topology_new(&topology);
    for (Py_ssize_t i = 0; status == FM_OK && i < PyTuple_GET_SIZE(items); i++)
        status = add(topology, PyTuple_GET_ITEM(items, i));
    Py_DECREF(items);
    if (status == FM_OK)
        return topology;
    if (status == FM_TOO_LARGE)
        PyErr_SetString(PyExc_ValueError,
            "a declared name is longer than AMQP's 255 bytes, or a queue has "
            "too many arguments");
    else if (status != FM_AGAIN)
        (void)fm_raise_status(state, status);
    fm_topology_unref(topology);
    return NULL;
}

fm_topology *
fm_topology_of(fm_state *state, PyObject *object)
{
    if (!Py_IS_TYPE(object, state->topology_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Topology, not %.100s",
            Py_TYPE(object)->tp_name);
        return NULL;
    }
    return SELF(object)->topology;
}

/* --- the type --- */

static PyObject *
Topology_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "declarations", NULL };
    fm_state *state = fm_state_of_type(type);
    PyObject *declarations, *op;
    fm_topology *topology;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O:Topology", names, &declarations))
        return NULL;
    topology = fm_topology_from_python(state, declarations);
    if (topology == NULL)
        return NULL;
    op = type->tp_alloc(type, 0);
    if (op == NULL) {
        fm_topology_unref(topology);
        return NULL;
    }
    SELF(op)->topology = topology;
    return op;
}

static void
Topology_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    fm_topology_unref(SELF(op)->topology); /* memory alone: safe anywhere */
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(Topology_doc,
    "Topology(declarations)\n--\n\n"
    "Declarations that are made, in order, on each new connection before the\n"
    "first message that needs them.\n\n"
    ":param declarations: tuples, see the stub.\n"
    ":raises TypeError, ValueError: one of them is malformed.");

static PyType_Slot Topology_slots[] = {
    { Py_tp_doc, (void *)Topology_doc },
    { Py_tp_new, Topology_new },
    { Py_tp_dealloc, Topology_dealloc },
    { 0, NULL },
};

static PyType_Spec Topology_spec = {
    .name = "oslo_fastmsg._core.Topology",
    .basicsize = sizeof(TopologyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Topology_slots,
};

int
fm_topology_type_add(PyObject *module, fm_state *state)
{
    state->topology_type = fm_type_add(module, &Topology_spec);
    return state->topology_type == NULL ? -1 : 0;
}
