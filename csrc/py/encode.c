/* Python objects to JSON text, in one pass, at either depth. */
#include "py/codec.h"

#include "wire/envelope.h"
#include "wire/json.h"

struct writer {
    fm_codec *codec;            /* borrowed */
    fm_buf *out;                /* borrowed */
    const fm_json_style *style; /* borrowed */
};

/* A container or foreign object that is being written; each knows the one
 * around it. They live on the C stack, in the calls that write them. */
struct visit {
    PyObject *object; /* owned by the call whose visit this is */
    struct visit *outer;
    /* Of an exact dict, owned: a copy from just before the first foreign code
     * ran inside of it. Such code may change the dict. */
    PyObject *copy;
};

/* The functions below call each other for what is inside of what they write;
 * Python's own limit on recursion holds for them, as it does for json.
 * NOLINTBEGIN(misc-no-recursion) */
static int write_value(
    struct writer *writer, PyObject *value, struct visit *outer);

static inline int
write_text(struct writer *writer, const char *text, size_t len)
{
    if (FM_UNLIKELY(fm_buf_append(writer->out, text, len) != FM_OK)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static inline int
write_quote(struct writer *writer)
{
    return write_text(writer, writer->style->quote, writer->style->width);
}

static int
write_str(struct writer *writer, PyObject *str)
{
    size_t count;
    fm_status status;

#if PY_VERSION_HEX < 0x030C0000 /* later ones are always ready */
    if (PyUnicode_READY(str) < 0)
        return -1;
#endif
    count = (size_t)PyUnicode_GET_LENGTH(str);
    switch (PyUnicode_KIND(str)) {
    case PyUnicode_1BYTE_KIND:
        status = fm_json_write_ucs1(
            writer->out, writer->style, PyUnicode_1BYTE_DATA(str), count);
        break;
    case PyUnicode_2BYTE_KIND:
        status = fm_json_write_ucs2(
            writer->out, writer->style, PyUnicode_2BYTE_DATA(str), count);
        break;
    default:
        status = fm_json_write_ucs4(
            writer->out, writer->style, PyUnicode_4BYTE_DATA(str), count);
        break;
    }
    if (FM_UNLIKELY(status != FM_OK)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* int.__repr__, also of subclasses that have another. */
static int
write_int(struct writer *writer, PyObject *number)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    PyObject *text;
    int result;

    if (FM_LIKELY(overflow == 0)) {
        if (value == -1 && PyErr_Occurred())
            return -1;
        if (fm_json_write_int(writer->out, value) != FM_OK) {
            PyErr_NoMemory();
            return -1;
        }
        return 0;
    }
    text = PyLong_Type.tp_repr(number);
    if (text == NULL)
        return -1;
    result = write_text(writer, (const char *)PyUnicode_1BYTE_DATA(text),
        (size_t)PyUnicode_GET_LENGTH(text));
    Py_DECREF(text);
    return result;
}

/* float.__repr__, also of subclasses, but the infinities as JavaScript has
 * them. */
static int
write_float(struct writer *writer, PyObject *number)
{
    double value = PyFloat_AS_DOUBLE(number);
    char *text;
    int result;

    if (Py_IS_NAN(value))
        return write_text(writer, "NaN", 3);
    if (Py_IS_INFINITY(value))
        return value > 0 ? write_text(writer, "Infinity", 8)
                         : write_text(writer, "-Infinity", 9);
    text = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL)
        return -1;
    result = write_text(writer, text, strlen(text));
    PyMem_Free(text);
    return result;
}

/* None, True, False; or 1, having written nothing. */
static inline int
write_constant(struct writer *writer, PyObject *value)
{
    if (value == Py_None)
        return write_text(writer, "null", 4);
    if (value == Py_True)
        return write_text(writer, "true", 4);
    if (value == Py_False)
        return write_text(writer, "false", 5);
    return 1;
}

/* A key that is not a string: its JSON in quotes, which needs no escapes. */
static int
write_odd_key(struct writer *writer, PyObject *key)
{
    int result;

    if (write_quote(writer) < 0)
        return -1;
    if (PyFloat_Check(key)) {
        result = write_float(writer, key);
    } else {
        result = write_constant(writer, key);
        if (result > 0 && PyLong_Check(key)) {
            result = write_int(writer, key);
        } else if (result > 0) {
            PyErr_Format(PyExc_TypeError,
                "keys must be str, int, float, bool or None, not %.100s",
                Py_TYPE(key)->tp_name);
            result = -1;
        }
    }
    return result < 0 ? -1 : write_quote(writer);
}

static int
write_member(struct writer *writer, bool first, PyObject *key, PyObject *value,
    struct visit *visit)
{
    if (!first && write_text(writer, ", ", 2) < 0)
        return -1;
    if (FM_LIKELY(PyUnicode_Check(key))) {
        if (write_str(writer, key) < 0)
            return -1;
    } else if (write_odd_key(writer, key) < 0) {
        return -1;
    }
    if (write_text(writer, ": ", 2) < 0)
        return -1;
    return write_value(writer, value, visit);
}

/* Refuse an object that is being written already. */
static int
check_cycle(PyObject *object, const struct visit *outer)
{
    for (; outer != NULL; outer = outer->outer) {
        if (outer->object == object) {
            PyErr_SetString(PyExc_ValueError, "Circular reference detected");
            return -1;
        }
    }
    return 0;
}

/* Foreign code is about to run: copy the dicts that are being walked. */
static int
save_dicts(struct visit *visit)
{
    for (; visit != NULL; visit = visit->outer) {
        if (visit->copy == NULL && PyDict_CheckExact(visit->object)) {
            visit->copy = PyDict_Copy(visit->object);
            if (visit->copy == NULL)
                return -1;
        }
    }
    return 0;
}

/* The members of an exact dict. Key and value are borrowed: what may run
 * foreign code owns its object itself, and comes last for this member. */
static int
write_members(struct writer *writer, struct visit *visit)
{
    PyObject *walked = visit->object;
    PyObject *key;
    PyObject *value;
    Py_ssize_t pos = 0;
    Py_ssize_t written = 0;
    Py_ssize_t skip = 0;
    int result = 0;

    Py_BEGIN_CRITICAL_SECTION(visit->object);
    while (PyDict_Next(walked, &pos, &key, &value)) {
        if (FM_UNLIKELY(skip > 0)) {
            skip--;
            continue;
        }
        result = write_member(writer, written == 0, key, value, visit);
        if (FM_UNLIKELY(result < 0))
            break;
        written++;
        if (FM_UNLIKELY(visit->copy != NULL && walked != visit->copy)) {
            walked = visit->copy;
            pos = 0;
            skip = written;
        }
    }
    Py_END_CRITICAL_SECTION();
    return result;
}

/* The members of a dict's subclass, which may have items() of its own. */
static int
write_items(struct writer *writer, struct visit *visit)
{
    PyObject *items;
    PyObject *item;
    Py_ssize_t i;
    int result = 0;

    if (save_dicts(visit->outer) < 0)
        return -1;
    items = PyMapping_Items(visit->object);
    if (items == NULL)
        return -1;
    for (i = 0; i < PyList_GET_SIZE(items) && result == 0; i++) {
        item = PyList_GET_ITEM(items, i); /* the list is ours alone */
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
            PyErr_SetString(PyExc_ValueError, "items must return 2-tuples");
            result = -1;
        } else {
            result = write_member(writer, i == 0, PyTuple_GET_ITEM(item, 0),
                PyTuple_GET_ITEM(item, 1), visit);
        }
    }
    Py_DECREF(items);
    return result;
}

static int
write_dict(struct writer *writer, PyObject *dict, struct visit *outer)
{
    struct visit visit = { dict, outer, NULL };
    int result;

    if (PyDict_GET_SIZE(dict) == 0)
        return write_text(writer, "{}", 2);
    if (check_cycle(dict, outer) < 0 || write_text(writer, "{", 1) < 0)
        return -1;
    Py_INCREF(dict);
    result = PyDict_CheckExact(dict) ? write_members(writer, &visit)
                                     : write_items(writer, &visit);
    Py_XDECREF(visit.copy);
    Py_DECREF(dict);
    return result < 0 ? -1 : write_text(writer, "}", 1);
}

static int
write_elements(struct writer *writer, PyObject *sequence, struct visit *visit)
{
    Py_ssize_t i;
    int result = 0;

    /* Foreign code may change a list, so look at its size every time. */
    Py_BEGIN_CRITICAL_SECTION(sequence);
    for (i = 0; i < PySequence_Fast_GET_SIZE(sequence); i++) {
        if (i > 0 && write_text(writer, ", ", 2) < 0) {
            result = -1;
            break;
        }
        result =
            write_value(writer, PySequence_Fast_GET_ITEM(sequence, i), visit);
        if (FM_UNLIKELY(result < 0))
            break;
    }
    Py_END_CRITICAL_SECTION();
    return result;
}

/* A list, tuple or a subclass of them, which may have an iterator of its
 * own. */
static int
write_sequence(struct writer *writer, PyObject *value, struct visit *outer)
{
    struct visit visit = { value, outer, NULL };
    PyObject *sequence;
    int result = -1;

    Py_INCREF(value);
    if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value)
        && save_dicts(outer) < 0)
        goto done;
    sequence = PySequence_Fast(value, "not a sequence");
    if (sequence == NULL)
        goto done;
    if (PySequence_Fast_GET_SIZE(sequence) == 0)
        result = write_text(writer, "[]", 2);
    else if (check_cycle(value, outer) == 0 && write_text(writer, "[", 1) == 0
        && write_elements(writer, sequence, &visit) == 0)
        result = write_text(writer, "]", 1);
    Py_DECREF(sequence);
done:
    Py_DECREF(value);
    return result;
}

/* oslo_serialization.jsonutils.to_primitive, a new reference. Imported when
 * it is first needed, since importing the package shall do no work. */
static PyObject *
get_to_primitive(fm_codec *codec)
{
    PyObject *function;
    PyObject *jsonutils;

    FM_CODEC_LOCK(codec);
    function = codec->to_primitive;
    Py_XINCREF(function);
    FM_CODEC_UNLOCK(codec);
    if (function != NULL)
        return function;

    jsonutils = PyImport_ImportModule("oslo_serialization.jsonutils");
    if (jsonutils == NULL)
        return NULL;
    function = PyObject_GetAttrString(jsonutils, "to_primitive");
    Py_DECREF(jsonutils);
    if (function == NULL)
        return NULL;
    FM_CODEC_LOCK(codec);
    if (codec->to_primitive == NULL) {
        Py_INCREF(function);
        codec->to_primitive = function;
    }
    FM_CODEC_UNLOCK(codec);
    return function;
}

/* Whatever JSON has not: what to_primitive makes of it. */
static int
write_foreign(struct writer *writer, PyObject *object, struct visit *outer)
{
    struct visit visit = { object, outer, NULL };
    PyObject *function = NULL;
    PyObject *primitive = NULL;
    int result = -1;

    Py_INCREF(object);
    if (check_cycle(object, outer) < 0 || save_dicts(outer) < 0)
        goto done;
    function = get_to_primitive(writer->codec);
    if (function == NULL)
        goto done;
    primitive = PyObject_CallOneArg(function, object);
    if (primitive == NULL)
        goto done;
    if (Py_EnterRecursiveCall(" while encoding a JSON object") != 0)
        goto done;
    result = write_value(writer, primitive, &visit);
    Py_LeaveRecursiveCall();
done:
    Py_XDECREF(primitive);
    Py_XDECREF(function);
    Py_DECREF(object);
    return result;
}

/* `value` is borrowed and may be gone after the call. */
static int
write_value(struct writer *writer, PyObject *value, struct visit *outer)
{
    int result;

    if (PyUnicode_Check(value))
        return write_str(writer, value);
    result = write_constant(writer, value); /* before int, for True, False */
    if (result <= 0)
        return result;
    if (PyLong_Check(value))
        return write_int(writer, value);
    if (PyFloat_Check(value))
        return write_float(writer, value);
    if (!PyDict_Check(value) && !PyList_Check(value) && !PyTuple_Check(value))
        return write_foreign(writer, value, outer);

    if (Py_EnterRecursiveCall(" while encoding a JSON object") != 0)
        return -1;
    result = PyDict_Check(value) ? write_dict(writer, value, outer)
                                 : write_sequence(writer, value, outer);
    Py_LeaveRecursiveCall();
    return result;
}

/* NOLINTEND(misc-no-recursion) */

int
fm_codec_encode(fm_codec *codec, PyObject *payload, fm_buf *out)
{
    struct writer writer = { codec, out, &fm_json_quoted };
    size_t start = out->len;

    if (write_text(&writer, FM_ENVELOPE_HEAD, FM_ENVELOPE_HEAD_LEN) < 0
        || write_value(&writer, payload, NULL) < 0
        || write_text(&writer, FM_ENVELOPE_TAIL, FM_ENVELOPE_TAIL_LEN) < 0) {
        out->len = start;
        return -1;
    }
    return 0;
}

int
fm_codec_dumps(fm_codec *codec, PyObject *value, fm_buf *out)
{
    struct writer writer = { codec, out, &fm_json_plain };
    size_t start = out->len;

    if (write_value(&writer, value, NULL) < 0) {
        out->len = start;
        return -1;
    }
    return 0;
}
