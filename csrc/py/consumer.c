#include "py/consumer.h"

#include "py/bus.h"
#include "py/hub.h"
#include "py/raise.h"
#include "py/topology.h"

#define SELF(op) ((ConsumerObject *)(op))
#define STOP_NS (5 * FM_NS_PER_S)
#define CLOSE_S 5.0

fm_consumer *
fm_consumer_of(fm_state *state, PyObject *object)
{
    if (!Py_IS_TYPE(object, state->consumer_type)) {
        PyErr_Format(PyExc_TypeError, "expected a Consumer, not %.100s",
            Py_TYPE(object)->tp_name);
        return NULL;
    }
    return SELF(object)->consumer;
}

fm_wake *
fm_consumer_wake(fm_state *state, PyObject *object)
{
    if (!Py_IS_TYPE(object, state->consumer_type)
        || !fm_bus_is_ours(SELF(object)->bus))
        return NULL;
    return &SELF(object)->consumer->wake;
}

/* It may be used: not closed, and not a parent process's. */
static bool
is_usable(ConsumerObject *self)
{
    return !self->closed && fm_bus_is_ours(self->bus);
}

static int
check_usable(fm_state *state, ConsumerObject *self)
{
    fm_error error = { .status = FM_CLOSED,
        .text = "this process closed the consumer, or did not make it" };

    if (is_usable(self))
        return 0;
    (void)fm_raise(state, &error);
    return -1;
}

int
fm_consumer_add(fm_state *state, PyObject *object)
{
    ConsumerObject *self = SELF(object);
    fm_status status;

    if (check_usable(state, self) < 0)
        return -1;
    if (atomic_exchange(&self->added, true))
        return 0;
    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_add_consumer(self->bus, self->consumer);
    Py_END_ALLOW_THREADS
    if (status == FM_OK)
        return 0;
    self->added = false;
    (void)fm_raise_status(state, status);
    return -1;
}

/* --- life --- */

/* The names of a sequence of str, as C strings borrowed from *tuple. */
static const char **
read_names(PyObject *sequence, PyObject **tuple)
{
    PyObject *names = PySequence_Tuple(sequence);
    const char **texts = NULL;

    if (names == NULL)
        return NULL;
    texts = PyMem_New(const char *, PyTuple_GET_SIZE(names) + 1);
    if (texts == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        texts[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (texts[i] == NULL)
            goto fail;
    }
    *tuple = names;
    return texts;

fail:
    PyMem_Free(texts);
    Py_DECREF(names);
    return NULL;
}

static PyObject *
Consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "bus", "declarations", "queues", "prefetch",
        "ack_on_take", "replies", "cancel_on_failover", NULL };
    fm_state *state = fm_state_of_type(type);
    PyObject *bus_object, *declarations, *queues, *tuple = NULL, *op = NULL;
    int prefetch, ack_on_take, replies, cancel_on_failover;
    fm_topology *topology = NULL;
    fm_consumer *consumer = NULL;
    const char **texts = NULL;
    fm_consumer_config config;
    fm_bus *bus = NULL;
    fm_status status;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO$ippp:Consumer", names,
            state->bus_type, &bus_object, &declarations, &queues, &prefetch,
            &ack_on_take, &replies, &cancel_on_failover))
        return NULL;
    if (prefetch < 0 || prefetch > UINT16_MAX) {
        PyErr_Format(
            PyExc_ValueError, "prefetch is %d, not from 0 to 65535", prefetch);
        return NULL;
    }
    texts = read_names(queues, &tuple);
    if (texts == NULL)
        goto done;
    if (PyTuple_GET_SIZE(tuple) == 0) {
        PyErr_SetString(PyExc_ValueError, "a consumer needs a queue");
        goto done;
    }
    topology = fm_topology_from_python(state, declarations);
    if (topology == NULL)
        goto done;
    bus = fm_bus_acquire(state, bus_object);
    if (bus == NULL)
        goto done;
    config = (fm_consumer_config){ texts, (size_t)PyTuple_GET_SIZE(tuple),
        (uint16_t)prefetch, replies, cancel_on_failover };
    status = fm_consumer_new(
        &config, topology, &bus->consuming.output, &bus->replies, &consumer);
    if (status != FM_OK) {
        (void)fm_raise_status(state, status);
        goto done;
    }
    op = type->tp_alloc(type, 0);
    if (op == NULL)
        goto done;
    SELF(op)->bus = bus;
    SELF(op)->consumer = consumer;
    SELF(op)->queues = tuple;
    SELF(op)->ack_on_take = ack_on_take;
    bus = NULL; /* the object's now, all three */
    consumer = NULL;
    tuple = NULL;

done:
    fm_consumer_unref(consumer);
    fm_bus_unref(bus);
    fm_topology_unref(topology);
    PyMem_Free(texts);
    Py_XDECREF(tuple);
    return op;
}

static int
Consumer_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(SELF(op)->queues);
    return 0;
}

static int
Consumer_clear(PyObject *op)
{
    Py_CLEAR(SELF(op)->queues);
    return 0;
}

static void
Consumer_dealloc(PyObject *op)
{
    ConsumerObject *self = SELF(op);
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)Consumer_clear(op);
    /* In a forked child everything of the parent's is leaked, not touched. */
    if (self->bus != NULL && fm_bus_is_ours(self->bus)) {
        if (self->added)
            fm_consumer_want(self->consumer, FM_GOAL_CLOSED);
        fm_consumer_unref(self->consumer);
        fm_bus_unref(self->bus);
    }
    type->tp_free(op);
    Py_DECREF(type);
}

/* --- methods --- */

/* Wait for the goal without the GIL. FM_INTERRUPTED: an exception is set. */
static fm_status
wait_goal(ConsumerObject *self, fm_deadline deadline, fm_error *error)
{
    fm_status status;

    do {
        Py_BEGIN_ALLOW_THREADS
            status = fm_consumer_wait(self->consumer, deadline, error);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0)
            return FM_INTERRUPTED;
    } while (status == FM_INTERRUPTED);
    return status;
}

PyDoc_STRVAR(open_doc,
    "open($self, timeout)\n--\n\n"
    "Connect if need be, and sleep until everything is declared.\n\n"
    ":param timeout: seconds, or None for no limit.\n"
    ":raises Rejected: the broker refused a declaration.\n"
    ":raises Refused: the broker refused the login.\n"
    ":raises Timeout: it goes on trying; open() again, or close().\n"
    ":raises Closed: the bus was closed.");

static PyObject *
Consumer_open(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "timeout", NULL };
    fm_state *state = fm_state_of(op);
    fm_error error = { .status = FM_OK };
    PyObject *timeout;
    fm_status status;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:open", names, &timeout)
        || fm_seconds_to_ns(timeout, &ns) < 0 || fm_consumer_add(state, op) < 0)
        return NULL;
    status = wait_goal(SELF(op), fm_deadline_in(ns), &error);
    if (status == FM_OK)
        Py_RETURN_NONE;
    if (status == FM_INTERRUPTED)
        return NULL;
    if (status == FM_TIMED_OUT)
        (void)fm_error_set(&error, FM_TIMED_OUT, 0,
            "the queues could not be declared in time: no connection, or the "
            "broker does not answer");
    return fm_raise(state, &error);
}

PyDoc_STRVAR(start_doc,
    "start($self, /)\n--\n\n"
    "Consume from every queue, as soon as that is possible. Does not wait.");

static PyObject *
Consumer_start(PyObject *op, PyObject *Py_UNUSED(unused))
{
    if (fm_consumer_add(fm_state_of(op), op) < 0)
        return NULL;
    fm_consumer_want(SELF(op)->consumer, FM_GOAL_CONSUMING);
    Py_RETURN_NONE;
}

/* Make a list of what was taken (all of it is freed or owned afterwards), and
 * acknowledge what may be: in one go unless Python has still to decide on an
 * earlier one. */
static PyObject *
make_list(fm_state *state, ConsumerObject *self, fm_delivery *taken)
{
    PyObject *list = PyList_New(0);
    uint64_t generation = taken->generation;
    uint64_t last_tag = 0;
    bool in_one_go = self->unsettled == 0;

    while (taken != NULL) {
        fm_delivery *next = taken->next;
        uint64_t tag = taken->deliver.delivery_tag;
        bool is_of_stream = taken->is_of_stream;
        bool is_duplicate = false, settled;
        PyObject *delivery;

        taken->next = NULL;
        if (list == NULL) { /* an exception is set: the rest goes back */
            fm_consumer_refuse(
                self->consumer, generation, tag, is_of_stream, true);
            fm_delivery_free(taken);
            taken = next;
            continue;
        }
        delivery = fm_delivery_make(state, self, taken, &is_duplicate);
        if (delivery == NULL && !is_duplicate) {
            fm_consumer_refuse(
                self->consumer, generation, tag, is_of_stream, true);
            Py_CLEAR(list);
        }
        settled =
            is_duplicate || (delivery != NULL && fm_delivery_is_read(delivery));
        if (self->ack_on_take && settled) {
            if (in_one_go)
                last_tag = tag;
            else
                fm_consumer_ack(self->consumer, generation, tag, false, true);
        } else if (self->ack_on_take && in_one_go) {
            /* The first one that is not read: settle those before it. */
            if (last_tag != 0)
                fm_consumer_ack(
                    self->consumer, generation, last_tag, true, false);
            last_tag = 0;
            in_one_go = false;
        }
        if (delivery != NULL && PyList_Append(list, delivery) < 0)
            Py_CLEAR(list);
        Py_XDECREF(delivery);
        taken = next;
    }
    /* On its way when the first of them is begun, or with the next take():
     * by then Python does something useful in another thread. */
    if (last_tag != 0)
        fm_consumer_ack(self->consumer, generation, last_tag, true, false);
    return list;
}

PyDoc_STRVAR(take_doc,
    "take($self, max, timeout)\n--\n\n"
    "Sleep until there are deliveries, and take up to `max` of them.\n\n"
    "Duplicates are dropped. With ack_on_take, those whose payload was read\n"
    "are acknowledged; that is sent by Bus.send_acks() or the next take().\n\n"
    ":param timeout: seconds, or None for no limit.\n"
    ":returns: list of Delivery, in order; empty at the timeout.\n"
    ":raises Closed: stop() was called.");

static PyObject *
Consumer_take(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "max", "timeout", NULL };
    fm_state *state = fm_state_of(op);
    ConsumerObject *self = SELF(op);
    fm_delivery *taken = NULL;
    PyObject *timeout, *list;
    fm_deadline deadline;
    fm_status status;
    Py_ssize_t max;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "nO:take", names, &max, &timeout)
        || fm_seconds_to_ns(timeout, &ns) < 0 || check_usable(state, self) < 0)
        return NULL;
    deadline = fm_deadline_in(ns);
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
            status = fm_consumer_take(
                self->consumer, max < 1 ? 1 : (size_t)max, deadline, &taken);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED) {
            if (PyErr_CheckSignals() < 0)
                return NULL;
            continue;
        }
        if (status == FM_TIMED_OUT)
            return PyList_New(0);
        if (status != FM_OK)
            return fm_raise_status(state, status);
        list = make_list(state, self, taken);
        if (list == NULL || PyList_GET_SIZE(list) > 0)
            return list;
        Py_DECREF(list); /* duplicates only */
    }
}

PyDoc_STRVAR(deliver_reply_doc,
    "deliver_reply($self, payload, /)\n--\n\n"
    "Give a reply that take() brought to its caller, if he is still "
    "waiting.\n\n"
    ":param payload: dict, as it was read.\n"
    ":returns: False if it names no call.");

static PyObject *
Consumer_deliver_reply(PyObject *op, PyObject *payload)
{
    fm_state *state = fm_state_of(op);
    ConsumerObject *self = SELF(op);
    fm_buf body = { 0 };
    fm_status status;

    if (check_usable(state, self) < 0)
        return NULL;
    if (self->consumer->table == NULL) {
        PyErr_SetString(PyExc_TypeError, "not a consumer of replies");
        return NULL;
    }
    if (fm_codec_pack(&state->codec, payload, &body) < 0) {
        fm_buf_fini(&body);
        return NULL;
    }
    status = fm_consumer_deliver_reply(self->consumer, &body);
    fm_buf_fini(&body);
    if (status == FM_NO_MEMORY)
        return fm_raise_status(state, status);
    return PyBool_FromLong(status != FM_BAD_MESSAGE);
}

PyDoc_STRVAR(stop_doc,
    "stop($self, /)\n--\n\n"
    "Stop consuming. What was not taken goes back to its queue, take() ends;\n"
    "what was taken can still be settled, until close().");

static PyObject *
Consumer_stop(PyObject *op, PyObject *Py_UNUSED(unused))
{
    ConsumerObject *self = SELF(op);
    fm_error error;

    if (!is_usable(self))
        Py_RETURN_NONE;
    fm_consumer_want(self->consumer, FM_GOAL_STOPPED);
    /* A broker that does not answer gets everything back when we close. */
    if (self->added
        && wait_goal(self, fm_deadline_in(STOP_NS), &error) == FM_INTERRUPTED)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc,
    "close($self, delete=(), timeout=5.0)\n--\n\n"
    "Close the channel; what was not settled goes back to its queue.\n\n"
    ":param delete: queues to delete first, if there is a connection.\n"
    ":param timeout: seconds to wait for the broker.");

static PyObject *
Consumer_close(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "delete", "timeout", NULL };
    fm_state *state = fm_state_of(op);
    ConsumerObject *self = SELF(op);
    PyObject *delete = NULL, *tuple = NULL;
    const char **texts;
    double timeout = CLOSE_S;
    fm_status status = FM_OK;
    fm_error error;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|Od:close", names, &delete, &timeout))
        return NULL;
    if (!is_usable(self))
        Py_RETURN_NONE;
    if (delete != NULL) {
        texts = read_names(delete, &tuple);
        if (texts == NULL)
            return NULL;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple) && status == FM_OK;
             i++)
            status = fm_consumer_delete_at_close(self->consumer, texts[i]);
        PyMem_Free(texts);
        Py_DECREF(tuple);
        if (status != FM_OK)
            return fm_raise_status(state, status);
    }
    if (atomic_exchange(&self->closed, true) || !self->added)
        Py_RETURN_NONE;
    fm_consumer_want(self->consumer, FM_GOAL_CLOSED);
    if (wait_goal(self, fm_deadline_in((int64_t)(timeout * 1e9)), &error)
        == FM_INTERRUPTED)
        return NULL;
    Py_RETURN_NONE;
}

/* --- the type --- */

static PyMethodDef Consumer_methods[] = {
    { "open", (PyCFunction)(void (*)(void))Consumer_open,
        METH_VARARGS | METH_KEYWORDS, open_doc },
    { "start", Consumer_start, METH_NOARGS, start_doc },
    { "take", (PyCFunction)(void (*)(void))Consumer_take,
        METH_VARARGS | METH_KEYWORDS, take_doc },
    { "deliver_reply", Consumer_deliver_reply, METH_O, deliver_reply_doc },
    { "stop", Consumer_stop, METH_NOARGS, stop_doc },
    { "close", (PyCFunction)(void (*)(void))Consumer_close,
        METH_VARARGS | METH_KEYWORDS, close_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Consumer_doc,
    "Consumer(bus, declarations, queues, *, prefetch, ack_on_take, replies,\n"
    "         cancel_on_failover)\n"
    "--\n\n"
    "A channel of the consuming connection, and its queues.\n\n"
    ":param declarations: tuples, see the stub; made again after each loss.\n"
    ":param queues: names; their consumer tags are '1', '2', ...\n"
    ":param prefetch: deliveries that may be unsettled, 0 for no bound.\n"
    ":param ack_on_take: take() acknowledges what it gives.\n"
    ":param replies: deliveries are replies to calls of this bus.\n"
    ":param cancel_on_failover: have the broker end the consumers of a "
    "mirrored\n"
    "    queue when another mirror takes over; they begin again.");

static PyType_Slot Consumer_slots[] = {
    { Py_tp_doc, (void *)Consumer_doc },
    { Py_tp_new, Consumer_new },
    { Py_tp_dealloc, Consumer_dealloc },
    { Py_tp_traverse, Consumer_traverse },
    { Py_tp_clear, Consumer_clear },
    { Py_tp_methods, Consumer_methods },
    { 0, NULL },
};

static PyType_Spec Consumer_spec = {
    .name = "oslo_fastmsg._core.Consumer",
    .basicsize = sizeof(ConsumerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Consumer_slots,
};

int
fm_consumer_type_add(PyObject *module, fm_state *state)
{
    state->consumer_type = fm_type_add(module, &Consumer_spec);
    return state->consumer_type == NULL ? -1 : 0;
}
