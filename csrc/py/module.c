#include "py/module.h"

#include "io/loop.h"
#include "io/message.h"
#include "py/look.h"
#include "py/raise.h"
#include "wire/msgpack.h"

#include <sys/random.h>

/* --- functions --- */

PyDoc_STRVAR(new_id_doc,
    "new_id()\n--\n\n"
    "A random id: 32 lower-case hexadecimal digits, a UUID of version 4\n"
    "without its dashes.");

static PyObject *
new_id(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    /* Random bytes are drawn in bulk, and never shared with a forked child. */
    static _Thread_local struct {
        uint8_t bytes[512];
        size_t left;
        unsigned generation;
    } pool;
    static const char digits[] = "0123456789abcdef";
    uint8_t id[16];
    char text[32];

    if (pool.left < sizeof(id) || pool.generation != fm_fork_generation()) {
        /* Up to 256 bytes, getrandom() neither fails nor is cut short. */
        for (size_t at = 0; at < sizeof(pool.bytes); at += 256)
            if (getrandom(pool.bytes + at, 256, 0) != 256)
                return PyErr_SetFromErrno(PyExc_OSError);
        pool.left = sizeof(pool.bytes);
        pool.generation = fm_fork_generation();
    }
    pool.left -= sizeof(id);
    memcpy(id, pool.bytes + pool.left, sizeof(id));
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40);
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    for (size_t i = 0; i < sizeof(id); i++) {
        text[2 * i] = digits[id[i] >> 4];
        text[2 * i + 1] = digits[id[i] & 15];
    }
    return PyUnicode_FromStringAndSize(text, sizeof(text));
}

PyDoc_STRVAR(fork_generation_doc,
    "fork_generation()\n--\n\n"
    "How many forks led to this process, since the module was loaded; those\n"
    "that C did behind Python's back count too.");

static PyObject *
fork_generation(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLong(fm_fork_generation());
}

int
fm_seconds_to_ns(PyObject *seconds, int64_t *ns)
{
    double value;

    if (seconds == Py_None) {
        *ns = FM_NEVER - 1;
        return 0;
    }
    value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred() != NULL)
        return -1;
    if (!(value > 0))
        *ns = 0;
    else if (value >= 9e9) /* 285 years */
        *ns = FM_NEVER - 1;
    else
        *ns = (int64_t)(value * 1e9);
    return 0;
}

PyDoc_STRVAR(next_event_doc,
    "next_event(timeout)\n--\n\n"
    "Sleep until the core has something for the log, or for Python to do.\n\n"
    ":param timeout: seconds, or None for no limit.\n"
    ":returns: (level of logging, text), or (0, ''): there are replies that "
    "the\n"
    "    core cannot read, see Consumer.deliver_reply(); None at the timeout, "
    "or after\n"
    "    stop_events() when everything was told.");

static PyObject *
next_event(PyObject *module, PyObject *args, PyObject *kwargs)
{
    fm_event_reader *reader = &fm_state_of_module(module)->events;
    static char *names[] = { "timeout", NULL };
    PyObject *timeout, *text;
    fm_event event;
    fm_deadline deadline;
    fm_status status;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O:next_event", names, &timeout)
        || fm_seconds_to_ns(timeout, &ns) < 0)
        return NULL;
    deadline = fm_deadline_in(ns);
    do {
        Py_BEGIN_ALLOW_THREADS
            status = fm_event_wait(reader, &event, deadline);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0)
            return NULL;
    } while (status == FM_INTERRUPTED);
    if (status != FM_OK)
        Py_RETURN_NONE;
    text = PyUnicode_DecodeUTF8(
        event.text, (Py_ssize_t)strlen(event.text), "replace");
    if (text == NULL)
        return NULL;
    return Py_BuildValue("(iN)", (int)event.level, text);
}

PyDoc_STRVAR(stop_events_doc,
    "stop_events()\n--\n\n"
    "Have next_event() of this interpreter return None when there is nothing\n"
    "left to tell.");

static PyObject *
stop_events(PyObject *module, PyObject *Py_UNUSED(unused))
{
    fm_event_stop(&fm_state_of_module(module)->events);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(events_are_stopped_doc,
    "events_are_stopped()\n--\n\n"
    "Whether next_event() returns None for good: stopped, everything told.");

static PyObject *
events_are_stopped(PyObject *module, PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(
        fm_event_is_over(&fm_state_of_module(module)->events));
}

PyDoc_STRVAR(resume_events_doc,
    "resume_events()\n--\n\n"
    "Undo stop_events().");

static PyObject *
resume_events(PyObject *module, PyObject *Py_UNUSED(unused))
{
    fm_event_resume(&fm_state_of_module(module)->events);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(encode_doc,
    "encode(payload, /)\n--\n\n"
    "Write an envelope of version 2.0 around a payload.\n\n"
    ":returns: bytes, JSON in ASCII, as the stock driver writes it.\n"
    ":raises TypeError, ValueError: the payload has no JSON form.");

PyDoc_STRVAR(decode_doc,
    "decode(body, /)\n--\n\n"
    "Read the payload out of an envelope of version 2.0.\n\n"
    ":param body: bytes-like, JSON in UTF-8.\n"
    ":raises BadMessage: it is something else.");

PyDoc_STRVAR(dumps_doc,
    "dumps(value, /)\n--\n\n"
    "Write JSON as oslo.serialization's jsonutils.dumps() does.\n\n"
    ":raises TypeError, ValueError: the value has no JSON form.");

PyDoc_STRVAR(pack_doc,
    "pack(payload, /)\n--\n\n"
    "Write a body in the binary envelope, MessagePack.\n\n"
    ":raises TypeError, ValueError: the payload has no JSON form: what JSON\n"
    "    refuses is refused here, too.");

PyDoc_STRVAR(unpack_doc,
    "unpack(body, /)\n--\n\n"
    "Read a body in the binary envelope, and return the payload, with the\n"
    "values that it would have after encode() and decode().\n\n"
    ":raises BadMessage: it is something else.");

PyDoc_STRVAR(broker_stats_doc,
    "broker_stats()\n--\n\n"
    "What the process does at each of its brokers, and has done: see\n"
    "oslo_fastmsg.stats(). Whichever interpreter opened them.");

PyDoc_STRVAR(broker_health_doc,
    "broker_health()\n--\n\n"
    "What oslo_fastmsg.health() judges: connections and consumers of each\n"
    "broker. Without I/O, and without a lock that is held during I/O.");

PyDoc_STRVAR(events_lost_doc,
    "events_lost()\n--\n\n"
    "How many lines of the core the log could not keep up with.");

static PyMethodDef functions[] = {
    { "new_id", new_id, METH_NOARGS, new_id_doc },
    { "fork_generation", fork_generation, METH_NOARGS, fork_generation_doc },
    { "encode", fm_py_encode, METH_O, encode_doc },
    { "decode", fm_py_decode, METH_O, decode_doc },
    { "dumps", fm_py_dumps, METH_O, dumps_doc },
    { "pack", fm_py_pack, METH_O, pack_doc },
    { "unpack", fm_py_unpack, METH_O, unpack_doc },
    { "next_event", (PyCFunction)(void (*)(void))next_event,
        METH_VARARGS | METH_KEYWORDS, next_event_doc },
    { "stop_events", stop_events, METH_NOARGS, stop_events_doc },
    { "events_are_stopped", events_are_stopped, METH_NOARGS,
        events_are_stopped_doc },
    { "broker_stats", fm_py_broker_stats, METH_NOARGS, broker_stats_doc },
    { "broker_health", fm_py_broker_health, METH_NOARGS, broker_health_doc },
    { "events_lost", fm_py_events_lost, METH_NOARGS, events_lost_doc },
    { "resume_events", resume_events, METH_NOARGS, resume_events_doc },
    { NULL, NULL, 0, NULL },
};

/* --- the module --- */

fm_state *
fm_state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

fm_state *
fm_state_of_type(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

fm_codec *
fm_codec_of(PyObject *module)
{
    return &fm_state_of_module(module)->codec;
}

PyTypeObject *
fm_type_add(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);

    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

static int
intern(PyObject **to, const char *text)
{
    *to = PyUnicode_InternFromString(text);
    return *to == NULL ? -1 : 0;
}

static int
module_exec(PyObject *module)
{
    fm_state *state = fm_state_of_module(module);

    (void)fm_fork_generation(); /* count forks from here on */
    fm_loop_look_for_signals(); /* Python's: its flag needs the GIL */
    if (fm_codec_init(&state->codec) < 0 || fm_raise_init(module, state) < 0
        || fm_topology_type_add(module, state) < 0
        || fm_bus_type_add(module, state) < 0
        || fm_call_types_add(module, state) < 0
        || fm_consumer_type_add(module, state) < 0
        || fm_delivery_type_add(module, state) < 0
        || fm_hub_types_add(module, state) < 0
        || intern(&state->str_result, "result") < 0
        || intern(&state->str_failure, "failure") < 0
        || intern(&state->str_ending, "ending") < 0
        || intern(&state->str_unique_id, "_unique_id") < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "RPC", FM_LANE_RPC) < 0
        || PyModule_AddIntConstant(module, "NOTIFY", FM_LANE_NOTIFY) < 0
        || PyModule_AddIntConstant(module, "FANOUT", FM_LANE_FANOUT) < 0
        || PyModule_AddIntConstant(module, "JSON", FM_ENVELOPE_JSON) < 0
        || PyModule_AddIntConstant(module, "MSGPACK", FM_ENVELOPE_MSGPACK) < 0
        || PyModule_AddIntConstant(
               module, "READS_MSGPACK", FM_ENVELOPE_READS_MSGPACK)
            < 0
        || PyModule_AddStringConstant(
               module, "MSGPACK_CONTENT_TYPE", FM_MSGPACK_CONTENT_TYPE)
            < 0)
        return -1;
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    fm_state *state = fm_state_of_module(module);

    Py_VISIT(state->error);
    for (size_t i = 0; i < FM_STATUS_COUNT; i++)
        Py_VISIT(state->exceptions[i]);
    Py_VISIT(state->bad_message);
    Py_VISIT(state->topology_type);
    Py_VISIT(state->bus_type);
    Py_VISIT(state->call_type);
    Py_VISIT(state->consumer_type);
    Py_VISIT(state->delivery_type);
    Py_VISIT(state->publication_type);
    Py_VISIT(state->hub_type);
    Py_VISIT(state->flag_type);
    Py_VISIT(state->watch_type);
    return fm_codec_traverse(&state->codec, visit, arg);
}

static int
module_clear(PyObject *module)
{
    fm_state *state = fm_state_of_module(module);

    fm_codec_clear(&state->codec);
    Py_CLEAR(state->error);
    for (size_t i = 0; i < FM_STATUS_COUNT; i++)
        Py_CLEAR(state->exceptions[i]);
    Py_CLEAR(state->bad_message);
    Py_CLEAR(state->topology_type);
    Py_CLEAR(state->bus_type);
    Py_CLEAR(state->call_type);
    Py_CLEAR(state->consumer_type);
    Py_CLEAR(state->delivery_type);
    Py_CLEAR(state->publication_type);
    Py_CLEAR(state->hub_type);
    Py_CLEAR(state->flag_type);
    Py_CLEAR(state->watch_type);
    Py_CLEAR(state->str_result);
    Py_CLEAR(state->str_failure);
    Py_CLEAR(state->str_ending);
    Py_CLEAR(state->str_unique_id);
    return 0;
}

static void
module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    { Py_mod_exec, module_exec },
#ifdef Py_mod_multiple_interpreters /* 3.12 */
    { Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED },
#endif
#ifdef Py_mod_gil /* 3.13 */
    { Py_mod_gil, Py_MOD_GIL_NOT_USED },
#endif
    { 0, NULL },
};

PyDoc_STRVAR(module_doc,
    "The core of oslo-fastmsg: AMQP I/O on a native thread, the envelope\n"
    "codec and the matching of replies. Used by oslo_fastmsg.driver.");

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "oslo_fastmsg._core",
    .m_doc = module_doc,
    .m_size = sizeof(fm_state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}
