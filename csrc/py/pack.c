/* Python objects to MessagePack, in one pass, through msgpack-c's packer. */
#include "py/codec.h"

#include "wire/msgpack.h"

struct writer {
    fm_codec *codec; /* borrowed */
    fm_buf *out;     /* borrowed */
};

static inline int
check(fm_status status)
{
    if (FM_LIKELY(status == FM_OK))
        return 0;
    if (status == FM_TOO_LARGE)
        PyErr_SetString(
            PyExc_ValueError, "a text or container of more than 2**32 - 1");
    else
        PyErr_NoMemory();
    return -1;
}

static int
write_str(struct writer *writer, PyObject *str)
{
    size_t count;

#if PY_VERSION_HEX < 0x030C0000 /* later ones are always ready */
    if (PyUnicode_READY(str) < 0)
        return -1;
#endif
    count = (size_t)PyUnicode_GET_LENGTH(str);
    if (FM_LIKELY(PyUnicode_IS_ASCII(str)))
        return check(fm_msgpack_put_ascii(
            writer->out, PyUnicode_1BYTE_DATA(str), count));
    switch (PyUnicode_KIND(str)) {
    case PyUnicode_1BYTE_KIND:
        return check(
            fm_msgpack_put_ucs1(writer->out, PyUnicode_1BYTE_DATA(str), count));
    case PyUnicode_2BYTE_KIND:
        return check(
            fm_msgpack_put_ucs2(writer->out, PyUnicode_2BYTE_DATA(str), count));
    default:
        return check(
            fm_msgpack_put_ucs4(writer->out, PyUnicode_4BYTE_DATA(str), count));
    }
}

/* One beyond 64 bits: its digits, so that Python's limit on them holds for
 * both sides as it does for JSON. */
static int
write_big_int(struct writer *writer, PyObject *number)
{
    PyObject *text = PyLong_Type.tp_repr(number);
    size_t len;
    int result;

    if (text == NULL)
        return -1;
    len = (size_t)PyUnicode_GET_LENGTH(text);
    result = len > UINT32_MAX - 1
        ? check(FM_TOO_LARGE)
        : check(fm_msgpack_put_ext(writer->out, len, FM_MSGPACK_BIG_INT));
    if (result == 0)
        result =
            check(fm_buf_append(writer->out, PyUnicode_1BYTE_DATA(text), len));
    Py_DECREF(text);
    return result;
}

static int
write_int(struct writer *writer, PyObject *number)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    unsigned long long large;

    if (FM_LIKELY(overflow == 0)) {
        if (value == -1 && PyErr_Occurred())
            return -1;
        return check(fm_msgpack_put_int64(writer->out, value));
    }
    if (overflow > 0) {
        large = PyLong_AsUnsignedLongLong(number);
        if (!PyErr_Occurred())
            return check(fm_msgpack_put_uint64(writer->out, large));
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
    }
    return write_big_int(writer, number);
}

static inline int
write_float(struct writer *writer, PyObject *number)
{
    double value = PyFloat_AS_DOUBLE(number);

    if (Py_IS_NAN(value))
        value = (double)NAN; /* there is one in JSON */
    return check(fm_msgpack_put_double(writer->out, value));
}

static inline int
write_constant(struct writer *writer, PyObject *value)
{
    if (value == Py_None)
        return check(fm_msgpack_put_nil(writer->out));
    if (value == Py_True)
        return check(fm_msgpack_put_true(writer->out));
    if (value == Py_False)
        return check(fm_msgpack_put_false(writer->out));
    return 1;
}

/* The text that JSON has for it, which is ASCII. */
static int
write_odd_key(struct writer *writer, PyObject *key)
{
    fm_buf text = { 0 };
    int result = fm_codec_dumps(writer->codec, key, &text);

    if (result == 0)
        result = check(fm_msgpack_put_ascii(writer->out, text.data, text.len));
    fm_buf_fini(&text);
    return result;
}

static inline int
put_head(fm_buf *out, bool is_dict, size_t count)
{
    if (FM_UNLIKELY(count > UINT32_MAX))
        return check(FM_TOO_LARGE);
    return check(is_dict ? fm_msgpack_put_map(out, count)
                         : fm_msgpack_put_array(out, count));
}

/* Foreign code has changed what was being walked, so the head that stands at
 * `mark` is wrong, and another may be longer. */
static int
mend_head(struct writer *writer, bool is_dict, size_t mark, size_t count,
    size_t written)
{
    fm_buf head = { 0 };
    size_t old_len = 0;
    size_t tail;
    int result = put_head(&head, is_dict, count);

    if (result == 0) {
        old_len = head.len;
        head.len = 0;
        result = put_head(&head, is_dict, written);
    }
    if (result == 0)
        result = check(fm_buf_reserve(writer->out, head.len));
    if (result == 0) {
        uint8_t *at = writer->out->data + mark;

        tail = writer->out->len - mark - old_len;
        memmove(at + head.len, at + old_len, tail);
        memcpy(at, head.data, head.len);
        writer->out->len = mark + head.len + tail;
    }
    fm_buf_fini(&head);
    return result;
}

static inline int
open_dict(struct writer *writer, size_t count, size_t *mark)
{
    *mark = writer->out->len;
    return put_head(writer->out, true, count);
}

static inline int
close_dict(struct writer *writer, size_t mark, size_t count, size_t written)
{
    if (FM_LIKELY(written == count))
        return 0;
    return mend_head(writer, true, mark, count, written);
}

static inline int
open_list(struct writer *writer, size_t count, size_t *mark)
{
    *mark = writer->out->len;
    return put_head(writer->out, false, count);
}

static inline int
close_list(struct writer *writer, size_t mark, size_t count, size_t written)
{
    if (FM_LIKELY(written == count))
        return 0;
    return mend_head(writer, false, mark, count, written);
}

static inline int
write_empty(struct writer *writer, bool is_dict)
{
    return put_head(writer->out, is_dict, 0);
}

static inline int
write_comma(struct writer *writer)
{
    (void)writer;
    return 0;
}

static inline int
write_colon(struct writer *writer)
{
    (void)writer;
    return 0;
}

#include "py/walk.h"

int
fm_codec_pack(fm_codec *codec, PyObject *payload, fm_buf *out)
{
    struct writer writer = { codec, out };
    size_t start = out->len;

    if (write_value(&writer, payload, NULL) < 0) {
        out->len = start;
        return -1;
    }
    return 0;
}
