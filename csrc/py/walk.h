/* The walk over Python objects, whatever is written of them.
 *
 * A template: there are two envelopes, but one rule of what a value is written
 * as and of which error it is. encode.c (JSON) and pack.c (MessagePack) include
 * it once each, behind `struct writer`, which has a `codec`, and these, which
 * return 0, or -1 with an exception, and run no code of Python's:
 *
 *   write_str(writer, str), write_int(writer, int), write_float(writer, float)
 *   write_constant(writer, value): None, True, False; or 1, nothing written
 *   write_odd_key(writer, key): of an int, float, bool or None
 *   write_empty(writer, is_dict)
 *   open_dict(writer, count, &mark), close_dict(writer, mark, count, written),
 *   open_list(), close_list(): around `written` members or elements, of which
 *       `count` were expected before foreign code ran
 *   write_comma(writer), write_colon(writer): between two of them; behind a key
 */
#ifndef FM_PY_WALK_H
#define FM_PY_WALK_H

#include "py/codec.h"

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

static int
write_member(struct writer *writer, bool first, PyObject *key, PyObject *value,
    struct visit *visit)
{
    int result;

    if (!first && write_comma(writer) < 0)
        return -1;
    if (FM_LIKELY(PyUnicode_Check(key))) {
        result = write_str(writer, key);
    } else if (PyLong_Check(key) || PyFloat_Check(key) || key == Py_None) {
        result = write_odd_key(writer, key);
    } else {
        PyErr_Format(PyExc_TypeError,
            "keys must be str, int, float, bool or None, not %.100s",
            Py_TYPE(key)->tp_name);
        result = -1;
    }
    if (result < 0 || write_colon(writer) < 0)
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
write_members(struct writer *writer, struct visit *visit, size_t *count)
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
    *count = (size_t)written;
    return result;
}

/* The members of a dict's subclass, which may have items() of its own. */
static int
write_items(struct writer *writer, struct visit *visit, size_t *count)
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
    *count = (size_t)PyList_GET_SIZE(items);
    Py_DECREF(items);
    return result;
}

static int
write_dict(struct writer *writer, PyObject *dict, struct visit *outer)
{
    struct visit visit = { dict, outer, NULL };
    size_t expected = (size_t)PyDict_GET_SIZE(dict);
    size_t count = 0;
    size_t mark;
    int result;

    if (expected == 0)
        return write_empty(writer, true);
    if (check_cycle(dict, outer) < 0 || open_dict(writer, expected, &mark) < 0)
        return -1;
    Py_INCREF(dict);
    result = PyDict_CheckExact(dict) ? write_members(writer, &visit, &count)
                                     : write_items(writer, &visit, &count);
    Py_XDECREF(visit.copy);
    Py_DECREF(dict);
    return result < 0 ? -1 : close_dict(writer, mark, expected, count);
}

static int
write_elements(struct writer *writer, PyObject *sequence, struct visit *visit,
    size_t *count)
{
    Py_ssize_t i;
    int result = 0;

    /* Foreign code may change a list, so look at its size every time. */
    Py_BEGIN_CRITICAL_SECTION(sequence);
    for (i = 0; i < PySequence_Fast_GET_SIZE(sequence); i++) {
        if (i > 0 && write_comma(writer) < 0) {
            result = -1;
            break;
        }
        result =
            write_value(writer, PySequence_Fast_GET_ITEM(sequence, i), visit);
        if (FM_UNLIKELY(result < 0))
            break;
    }
    *count = (size_t)i;
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
    size_t expected;
    size_t count;
    size_t mark;
    int result = -1;

    Py_INCREF(value);
    if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value)
        && save_dicts(outer) < 0)
        goto done;
    sequence = PySequence_Fast(value, "not a sequence");
    if (sequence == NULL)
        goto done;
    expected = (size_t)PySequence_Fast_GET_SIZE(sequence);
    if (expected == 0)
        result = write_empty(writer, false);
    else if (check_cycle(value, outer) == 0
        && open_list(writer, expected, &mark) == 0
        && write_elements(writer, sequence, &visit, &count) == 0)
        result = close_list(writer, mark, expected, count);
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

#endif
