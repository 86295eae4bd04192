/* MessagePack to Python objects, in one pass, by msgpack-c's parser.
 *
 * The parser is a template that calls the functions on_...() below with what
 * it finds, and keeps what they make on a stack of its own. It compares each
 * length that it hands over with the bytes that are there; the numbers of
 * items it leaves to us.
 */
#include "py/names.h"

#include "wire/json.h"
#include "wire/msgpack.h"

/* One frame more than there may be containers in containers: an empty one
 * needs one for a moment. */
#define MSGPACK_EMBED_STACK_SIZE (FM_JSON_DEPTH_MAX + 1)
#include <msgpack/unpack.h>
#include <msgpack/unpack_define.h>

struct reader_stack;

struct reader {
    fm_codec *codec; /* borrowed */
    /* Items that the bytes are enough for, those counted that are announced
     * already: each item needs a byte of its own. */
    size_t room;
    struct reader_stack *stack; /* the frames, outermost first */
    struct reader_stack *top;   /* the container being filled; or NULL */
    bool key_is_taken;          /* top's map_key is not owned any more */
};

#define msgpack_unpack_struct(name) struct reader##name
#define msgpack_unpack_func(result, name) static inline result reader##name
#define msgpack_unpack_callback(name) on##name
#define msgpack_unpack_object PyObject *
#define msgpack_unpack_user struct reader

/* On failure the functions return BAD, with an exception set, or with none:
 * then the body is to blame. */
enum { BAD = MSGPACK_UNPACK_PARSE_ERROR };

static inline PyObject *on_root(struct reader *reader);
static inline int on_nil(struct reader *reader, PyObject **out);
static inline int on_true(struct reader *reader, PyObject **out);
static inline int on_false(struct reader *reader, PyObject **out);
static inline int on_uint8(
    struct reader *reader, uint8_t number, PyObject **out);
static inline int on_uint16(
    struct reader *reader, uint16_t number, PyObject **out);
static inline int on_uint32(
    struct reader *reader, uint32_t number, PyObject **out);
static inline int on_uint64(
    struct reader *reader, uint64_t number, PyObject **out);
static inline int on_int8(struct reader *reader, int8_t number, PyObject **out);
static inline int on_int16(
    struct reader *reader, int16_t number, PyObject **out);
static inline int on_int32(
    struct reader *reader, int32_t number, PyObject **out);
static inline int on_int64(
    struct reader *reader, int64_t number, PyObject **out);
static inline int on_float(struct reader *reader, float number, PyObject **out);
static inline int on_double(
    struct reader *reader, double number, PyObject **out);
static inline int on_str(struct reader *reader, const char *base,
    const char *data, unsigned len, PyObject **out);
static inline int on_bin(struct reader *reader, const char *base,
    const char *data, unsigned len, PyObject **out);
static inline int on_ext(struct reader *reader, const char *base,
    const char *data, unsigned len, PyObject **out);
static inline int on_array(
    struct reader *reader, unsigned count, PyObject **out);
static inline int on_array_item(
    struct reader *reader, PyObject **array, PyObject *item);
static inline int on_map(struct reader *reader, unsigned count, PyObject **out);
static inline int on_map_item(
    struct reader *reader, PyObject **map, PyObject *key, PyObject *value);

#include <msgpack/unpack_template.h>

/* ---- Numbers and constants ---- */

static inline PyObject *
on_root(struct reader *reader)
{
    (void)reader;
    return NULL;
}

static inline int
give(PyObject *value, PyObject **out)
{
    *out = value;
    return FM_LIKELY(value != NULL) ? 0 : BAD;
}

static inline int
on_nil(struct reader *reader, PyObject **out)
{
    (void)reader;
    return give(Py_NewRef(Py_None), out);
}

static inline int
on_true(struct reader *reader, PyObject **out)
{
    (void)reader;
    return give(Py_NewRef(Py_True), out);
}

static inline int
on_false(struct reader *reader, PyObject **out)
{
    (void)reader;
    return give(Py_NewRef(Py_False), out);
}

static inline int
on_uint8(struct reader *reader, uint8_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLong(number), out);
}

static inline int
on_uint16(struct reader *reader, uint16_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLong(number), out);
}

static inline int
on_uint32(struct reader *reader, uint32_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromUnsignedLong(number), out);
}

static inline int
on_uint64(struct reader *reader, uint64_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromUnsignedLongLong(number), out);
}

static inline int
on_int8(struct reader *reader, int8_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLong(number), out);
}

static inline int
on_int16(struct reader *reader, int16_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLong(number), out);
}

static inline int
on_int32(struct reader *reader, int32_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLong(number), out);
}

static inline int
on_int64(struct reader *reader, int64_t number, PyObject **out)
{
    (void)reader;
    return give(PyLong_FromLongLong(number), out);
}

static inline int
on_double(struct reader *reader, double number, PyObject **out)
{
    (void)reader;
    if (Py_IS_NAN(number))
        number = (double)NAN; /* there is one in JSON */
    return give(PyFloat_FromDouble(number), out);
}

static inline int
on_float(struct reader *reader, float number, PyObject **out)
{
    return on_double(reader, number, out);
}

/* An integer beyond 64 bits, as its digits, behind a byte with the type. An
 * overflow in msgpack-c makes the longest of all come as one of no bytes. */
static inline int
on_ext(struct reader *reader, const char *base, const char *data, unsigned len,
    PyObject **out)
{
    fm_json_reader digits;
    fm_json_number number;

    (void)reader;
    (void)base;
    if (len < 2 || data[0] != FM_MSGPACK_BIG_INT)
        return BAD;
    digits.pos = (const uint8_t *)data + 1;
    digits.end = (const uint8_t *)data + len;
    digits.surrogates = false;
    if (!fm_json_read_number(&digits, &number) || !number.integral
        || digits.pos != digits.end)
        return BAD;
    return give(fm_codec_number(&number), out);
}

/* ---- Strings ---- */

/* A string that is not of ASCII alone, lone surrogates as three bytes: once to
 * check it and find its length and its widest, once to fill it. */
static PyObject *
new_wide(const uint8_t *text, size_t len)
{
    const fm_json_reader start = { text, text + len, true };
    fm_json_reader reader = start;
    Py_ssize_t count = 0;
    Py_ssize_t at;
    uint32_t widest = 127;
    uint32_t before = 0;
    uint32_t code;
    PyObject *str;
    int kind;
    void *data;

    for (; reader.pos != reader.end; count++, before = code) {
        code = *reader.pos;
        if (code < 0x80)
            reader.pos++;
        else if (fm_json_read_utf8(&reader, &code) != FM_JSON_CODE)
            return NULL;
        /* A pair is one character in what our writer makes of it. */
        if (code >= 0xDC00 && code < 0xE000 && before >= 0xD800
            && before < 0xDC00)
            return NULL;
        if (code > widest)
            widest = code;
    }
    str = PyUnicode_New(count, widest);
    if (str == NULL)
        return NULL;
    kind = PyUnicode_KIND(str);
    data = PyUnicode_DATA(str);
    reader = start;
    for (at = 0; at < count; at++) {
        code = *reader.pos;
        if (code < 0x80)
            reader.pos++;
        else
            (void)fm_json_read_utf8(&reader, &code);
        PyUnicode_WRITE(kind, data, at, code);
    }
    return str;
}

static inline int
on_str(struct reader *reader, const char *base, const char *data, unsigned len,
    PyObject **out)
{
    const uint8_t *text = (const uint8_t *)data;
    bool is_key = reader->top != NULL && reader->top->ct == MSGPACK_CT_MAP_KEY;
    PyObject **set = NULL;

    (void)base;
    if (len == 0) /* where it is msgpack-c does not say */
        return give(PyUnicode_New(0, 0), out);
    if (is_key && len <= KEY_LEN_MAX) {
        *out = find_name(reader->codec, text, len, &set);
        if (FM_LIKELY(*out != NULL)) /* so it is of ASCII */
            return 0;
    }
    if (FM_UNLIKELY(!fm_msgpack_is_ascii(text, len)))
        return give(new_wide(text, len), out);
    if (set != NULL)
        return give(add_name(reader->codec, text, len, set), out);
    return give(new_ascii(text, len), out);
}

/* No writer of ours has bytes: they are text by then, as in JSON. */
static inline int
on_bin(struct reader *reader, const char *base, const char *data, unsigned len,
    PyObject **out)
{
    (void)reader, (void)base, (void)data, (void)len, (void)out;
    return BAD;
}

/* ---- Containers ---- */

/* msgpack-c tells where it will keep a container: in which frame. */
static inline struct reader_stack *
frame_of(PyObject **place)
{
    return (struct reader_stack *)((char *)place
        - offsetof(struct reader_stack, obj));
}

/* Check what a container announces, before anything is made of it. */
static inline int
enter(struct reader *reader, PyObject **place, size_t items)
{
    struct reader_stack *frame = frame_of(place);

    if (items == 0)
        return 0;
    if (FM_UNLIKELY(
            items > reader->room || frame - reader->stack >= FM_JSON_DEPTH_MAX))
        return BAD;
    reader->room -= items;
    reader->top = frame;
    return 0;
}

/* An item of the innermost container was read: if it was the last one, the
 * container itself will be an item of the next. */
static inline struct reader_stack *
leave(struct reader *reader, PyObject **place)
{
    struct reader_stack *frame = frame_of(place);

    reader->top = frame;
    if (frame->count == 1)
        reader->top = frame == reader->stack ? NULL : frame - 1;
    return frame;
}

static inline int
on_array(struct reader *reader, unsigned count, PyObject **out)
{
    *out = NULL;
    if (enter(reader, out, count) < 0)
        return BAD;
    if (give(PyList_New((Py_ssize_t)count), out) < 0)
        return BAD;
    /* Nobody shall find it while it has holes. */
    if (count > 0)
        PyObject_GC_UnTrack(*out);
    return 0;
}

static inline int
on_array_item(struct reader *reader, PyObject **array, PyObject *item)
{
    const struct reader_stack *frame = leave(reader, array);

    PyList_SET_ITEM(
        *array, PyList_GET_SIZE(*array) - (Py_ssize_t)frame->count, item);
    if (frame->count == 1)
        PyObject_GC_Track(*array);
    return 0;
}

static inline int
on_map(struct reader *reader, unsigned count, PyObject **out)
{
    *out = NULL;
    /* Compared first, as twice the number may be too much for a size_t. */
    if (count > reader->room || enter(reader, out, (size_t)count * 2) < 0)
        return BAD;
    return give(PyDict_New(), out);
}

static inline int
on_map_item(
    struct reader *reader, PyObject **map, PyObject *key, PyObject *value)
{
    int result = BAD;

    (void)leave(reader, map);
    if (FM_LIKELY(PyUnicode_CheckExact(key)))
        result = PyDict_SetItem(*map, key, value);
    Py_DECREF(key);
    Py_DECREF(value);
    if (FM_LIKELY(result == 0))
        return 0;
    reader->key_is_taken = true;
    return BAD;
}

/* ---- A body ---- */

/* Drop what is on the stack of a body that has not come to its end. */
static void
drop(struct reader_context *context)
{
    unsigned i = context->top;

    while (i-- > 0) {
        struct reader_stack *frame = &context->stack[i];

        if (frame->ct == MSGPACK_CT_MAP_VALUE && !context->user.key_is_taken)
            Py_DECREF(frame->map_key);
        context->user.key_is_taken = false; /* of the innermost alone */
        Py_DECREF(frame->obj);
    }
}

PyObject *
fm_codec_unpack(fm_codec *codec, const uint8_t *body, size_t len)
{
    struct reader_context context;
    PyObject *payload = NULL;
    size_t used = 0;
    int result;

    context.user = (struct reader){ codec, len, context.stack, NULL, false };
    reader_init(&context);
    result = reader_execute(&context, (const char *)body, len, &used);
    if (result == 1)
        payload = reader_data(&context);
    else
        drop(&context);
    if (result == 1 && used != len)
        Py_CLEAR(payload);
    if (payload == NULL && !PyErr_Occurred())
        PyErr_SetString(codec->bad_message, "the body is not MessagePack");
    return payload;
}
