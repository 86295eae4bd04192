/* Python objects to JSON text, in one pass, at either depth. */
#include "py/codec.h"

#include "wire/envelope.h"
#include "wire/json.h"

struct writer {
    fm_codec *codec;            /* borrowed */
    fm_buf *out;                /* borrowed */
    const fm_json_style *style; /* borrowed */
};

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
        if (result > 0)
            result = write_int(writer, key);
    }
    return result < 0 ? -1 : write_quote(writer);
}

static inline int
open_dict(struct writer *writer, size_t count, size_t *mark)
{
    (void)count;
    *mark = 0;
    return write_text(writer, "{", 1);
}

static inline int
close_dict(struct writer *writer, size_t mark, size_t count, size_t written)
{
    (void)mark, (void)count, (void)written;
    return write_text(writer, "}", 1);
}

static inline int
open_list(struct writer *writer, size_t count, size_t *mark)
{
    (void)count;
    *mark = 0;
    return write_text(writer, "[", 1);
}

static inline int
close_list(struct writer *writer, size_t mark, size_t count, size_t written)
{
    (void)mark, (void)count, (void)written;
    return write_text(writer, "]", 1);
}

static inline int
write_empty(struct writer *writer, bool is_dict)
{
    return write_text(writer, is_dict ? "{}" : "[]", 2);
}

static inline int
write_comma(struct writer *writer)
{
    return write_text(writer, ", ", 2);
}

static inline int
write_colon(struct writer *writer)
{
    return write_text(writer, ": ", 2);
}

#include "py/walk.h"

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
