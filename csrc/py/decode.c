/* JSON text to Python objects, in one pass, from either depth. */
#include "py/names.h"

#include "wire/envelope.h"
#include "wire/json.h"

/* Runs up to this are copied as if they were so long. */
enum { SHORT_RUN = 16 };

/* What is inlined twice, for either depth, is called from one place each. */
#define NO_INLINE __attribute__((noinline))
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* A container that is being filled. */
struct frame {
    PyObject *container; /* owned; a dict or a list */
    PyObject *key;       /* owned; of a dict, the value's that comes; or NULL */
};

/* Functions that return NULL have set an exception, or none: then the text is
 * to blame, and the caller that knows the whole text says so. */

/* ---- Strings ---- */

/* A string of ASCII with escapes, unescaped aside. NULL and *is_wide if it is
 * not of ASCII alone. */
static ALWAYS_INLINE PyObject *
read_ascii(fm_json_reader *reader, const bool quoted, bool *is_wide)
{
    fm_buf text = { 0 };
    fm_json_piece piece;
    fm_json_step step;
    PyObject *str = NULL;
    uint8_t *to;

    do {
        step = fm_json_next_piece(reader, quoted, &piece);
        if (step == FM_JSON_BAD)
            goto done;
        if (fm_buf_reserve(&text, piece.run_len + SHORT_RUN + 1) != FM_OK) {
            PyErr_NoMemory();
            goto done;
        }
        to = text.data + text.len;
        if (piece.run_len <= SHORT_RUN && reader->end - piece.run >= SHORT_RUN)
            memcpy(to, piece.run, SHORT_RUN); /* a load and a store */
        else
            memcpy(to, piece.run, piece.run_len);
        text.len += piece.run_len;
        if (step == FM_JSON_CODE) {
            *is_wide = piece.code > 127;
            if (*is_wide)
                goto done;
            to[piece.run_len] = (uint8_t)piece.code;
            text.len++;
        }
    } while (step != FM_JSON_END);
    str = new_ascii(text.data, text.len);
done:
    fm_buf_fini(&text);
    return str;
}

/* A string of any characters: once to find its length and its widest, once to
 * fill it. */
static ALWAYS_INLINE PyObject *
read_wide(fm_json_reader *reader, const bool quoted)
{
    fm_json_reader again = *reader;
    fm_json_piece piece;
    fm_json_step step;
    Py_ssize_t count = 0;
    Py_ssize_t at = 0;
    uint32_t widest = 127;
    PyObject *str;
    int kind;
    void *data;
    size_t i;

    do {
        step = fm_json_next_piece(reader, quoted, &piece);
        if (step == FM_JSON_BAD)
            return NULL;
        count += (Py_ssize_t)piece.run_len;
        if (step == FM_JSON_CODE) {
            count++;
            if (piece.code > widest)
                widest = piece.code;
        }
    } while (step != FM_JSON_END);

    str = PyUnicode_New(count, widest);
    if (str == NULL)
        return NULL;
    kind = PyUnicode_KIND(str);
    data = PyUnicode_DATA(str);
    do {
        step = fm_json_next_piece(&again, quoted, &piece);
        if (kind == PyUnicode_1BYTE_KIND) {
            memcpy((uint8_t *)data + at, piece.run, piece.run_len);
            at += (Py_ssize_t)piece.run_len;
        } else {
            for (i = 0; i < piece.run_len; i++, at++)
                PyUnicode_WRITE(kind, data, at, piece.run[i]);
        }
        if (step == FM_JSON_CODE) {
            PyUnicode_WRITE(kind, data, at, piece.code);
            at++;
        }
    } while (step != FM_JSON_END);
    return str;
}

static ALWAYS_INLINE PyObject *
read_mixed(fm_json_reader *reader, const bool quoted)
{
    fm_json_reader start = *reader;
    bool is_wide = false;
    PyObject *str = read_ascii(reader, quoted, &is_wide);

    if (!is_wide)
        return str;
    *reader = start;
    return read_wide(reader, quoted);
}

static NO_INLINE PyObject *
read_mixed_plain(fm_json_reader *reader)
{
    return read_mixed(reader, false);
}

static NO_INLINE PyObject *
read_mixed_quoted(fm_json_reader *reader)
{
    return read_mixed(reader, true);
}

static PyObject *
get_name(fm_codec *codec, const uint8_t *text, size_t len)
{
    PyObject **set;
    PyObject *name = find_name(codec, text, len, &set);

    return FM_LIKELY(name != NULL) ? name : add_name(codec, text, len, set);
}

/* From behind the opening quote. */
static ALWAYS_INLINE PyObject *
read_string(
    fm_codec *codec, fm_json_reader *reader, const bool quoted, bool is_key)
{
    fm_json_reader start = *reader;
    fm_json_piece piece;

    switch (fm_json_next_piece(reader, quoted, &piece)) {
    case FM_JSON_END:
        if (is_key && piece.run_len <= KEY_LEN_MAX)
            return get_name(codec, piece.run, piece.run_len);
        return new_ascii(piece.run, piece.run_len);
    case FM_JSON_CODE:
        *reader = start;
        return quoted ? read_mixed_quoted(reader) : read_mixed_plain(reader);
    default:
        return NULL;
    }
}

/* ---- Numbers ---- */

PyObject *
fm_codec_number(const fm_json_number *number)
{
    char room[64];
    char *text = room;
    PyObject *result = NULL;
    double value;

    if (number->text.len >= sizeof(room)) {
        text = PyMem_Malloc(number->text.len + 1);
        if (text == NULL)
            return PyErr_NoMemory();
    }
    memcpy(text, number->text.data, number->text.len);
    text[number->text.len] = '\0';
    if (number->integral) {
        result = PyLong_FromString(text, NULL, 10);
        /* Too many digits for Python's limit. */
        if (result == NULL && PyErr_ExceptionMatches(PyExc_ValueError))
            PyErr_Clear();
    } else {
        value = PyOS_string_to_double(text, NULL, NULL);
        if (value != -1.0 || !PyErr_Occurred())
            result = PyFloat_FromDouble(value);
    }
    if (text != room)
        PyMem_Free(text);
    return result;
}

static PyObject *
read_number(fm_json_reader *reader)
{
    fm_json_number number;
    const uint8_t *pos;
    const uint8_t *end;
    long long value = 0;

    if (!fm_json_read_number(reader, &number))
        return NULL;
    if (!number.integral || number.text.len > 18)
        return fm_codec_number(&number);
    pos = number.text.data;
    end = pos + number.text.len;
    if (*pos == '-')
        pos++;
    for (; pos < end; pos++)
        value = value * 10 + (*pos - '0');
    return PyLong_FromLongLong(*number.text.data == '-' ? -value : value);
}

/* ---- Values ---- */

static PyObject *
read_word(fm_json_reader *reader, const char *word, PyObject *value)
{
    if (!fm_json_read_word(reader, word, strlen(word)))
        return NULL;
    Py_INCREF(value);
    return value;
}

static PyObject *
read_float_word(fm_json_reader *reader, const char *word, double value)
{
    if (!fm_json_read_word(reader, word, strlen(word)))
        return NULL;
    return PyFloat_FromDouble(value);
}

/* A value that is neither string nor container. */
static PyObject *
read_scalar(fm_json_reader *reader)
{
    switch (*reader->pos) {
    case 'n':
        return read_word(reader, "null", Py_None);
    case 't':
        return read_word(reader, "true", Py_True);
    case 'f':
        return read_word(reader, "false", Py_False);
    case 'N':
        return read_float_word(reader, "NaN", (double)NAN);
    case 'I':
        return read_float_word(reader, "Infinity", Py_HUGE_VAL);
    case '-':
        if (reader->end - reader->pos > 1 && reader->pos[1] == 'I')
            return read_float_word(reader, "-Infinity", -Py_HUGE_VAL);
        return read_number(reader);
    default:
        return read_number(reader);
    }
}

/* A member's name and what stands between it and the value. */
static ALWAYS_INLINE PyObject *
read_key(fm_codec *codec, fm_json_reader *reader, const bool quoted)
{
    PyObject *key;

    fm_json_skip_blank(reader, quoted);
    if (!fm_json_read_quote(reader, quoted))
        return NULL;
    key = read_string(codec, reader, quoted, true);
    if (key == NULL)
        return NULL;
    fm_json_skip_blank(reader, quoted);
    if (!fm_json_read_mark(reader, ':')) {
        Py_DECREF(key);
        return NULL;
    }
    fm_json_skip_blank(reader, quoted);
    return key;
}

/* Put a finished value, which is taken, into the container around it. */
static inline int
fill(struct frame *frame, PyObject *value)
{
    int result;

    if (frame->key != NULL) {
        result = PyDict_SetItem(frame->container, frame->key, value);
        Py_CLEAR(frame->key);
    } else {
        result = PyList_Append(frame->container, value);
    }
    Py_DECREF(value);
    return result;
}

/* One value of any kind with the blanks before it. No recursion: depth costs
 * no C stack, whatever a peer sends. */
static ALWAYS_INLINE PyObject *
read_value(fm_codec *codec, fm_json_reader *reader, const bool quoted)
{
    struct frame frames[FM_JSON_DEPTH_MAX];
    struct frame *top; /* the innermost open container, if depth > 0 */
    size_t depth = 0;
    PyObject *value;
    uint8_t mark;

    fm_json_skip_blank(reader, quoted);
    for (;;) {
        /* A value begins here. */
        if (FM_UNLIKELY(reader->pos == reader->end))
            goto fail;
        mark = *reader->pos;
        if (mark == (quoted ? '\\' : '"')) {
            if (FM_UNLIKELY(!fm_json_read_quote(reader, quoted)))
                goto fail;
            value = read_string(codec, reader, quoted, false);
        } else if (mark == '{' || mark == '[') {
            reader->pos++;
            value = mark == '{' ? PyDict_New() : PyList_New(0);
            if (value == NULL)
                goto fail;
            fm_json_skip_blank(reader, quoted);
            if (!fm_json_read_mark(reader, mark == '{' ? '}' : ']')) {
                if (depth == FM_JSON_DEPTH_MAX) {
                    Py_DECREF(value);
                    goto fail;
                }
                top = &frames[depth++];
                top->container = value;
                top->key = NULL;
                if (mark == '{') {
                    top->key = read_key(codec, reader, quoted);
                    if (FM_UNLIKELY(top->key == NULL))
                        goto fail;
                }
                continue;
            }
        } else {
            value = read_scalar(reader);
        }
        if (FM_UNLIKELY(value == NULL))
            goto fail;

        /* It is complete, and so may be what is around it. */
        for (;;) {
            bool in_object;

            if (depth == 0)
                return value;
            top = &frames[depth - 1];
            in_object = top->key != NULL;
            if (FM_UNLIKELY(fill(top, value) < 0))
                goto fail;
            fm_json_skip_blank(reader, quoted);
            if (fm_json_read_mark(reader, ',')) {
                if (in_object) {
                    top->key = read_key(codec, reader, quoted);
                    if (FM_UNLIKELY(top->key == NULL))
                        goto fail;
                } else {
                    fm_json_skip_blank(reader, quoted);
                }
                break;
            }
            if (!fm_json_read_mark(reader, in_object ? '}' : ']'))
                goto fail;
            value = top->container;
            depth--;
        }
    }

fail:
    while (depth > 0) {
        top = &frames[--depth];
        Py_XDECREF(top->key);
        Py_DECREF(top->container);
    }
    return NULL;
}

static NO_INLINE PyObject *
read_plain(fm_codec *codec, fm_json_reader *reader)
{
    return read_value(codec, reader, false);
}

static NO_INLINE PyObject *
read_quoted(fm_codec *codec, fm_json_reader *reader)
{
    return read_value(codec, reader, true);
}

/* A whole document in plain text. */
static PyObject *
read_document(fm_codec *codec, fm_slice text)
{
    fm_json_reader reader = { text.data, text.data + text.len, true };
    PyObject *value = read_plain(codec, &reader);

    if (value == NULL)
        return NULL;
    fm_json_skip_blank(&reader, false);
    if (reader.pos != reader.end)
        Py_CLEAR(value);
    return value;
}

PyObject *
fm_codec_decode(fm_codec *codec, const uint8_t *body, size_t len)
{
    fm_slice whole = { body, len };
    fm_json_reader reader;
    PyObject *payload;
    fm_buf text = { 0 };
    fm_status status;

    /* As oslo.messaging writes it, which is read where it stands. */
    if (fm_envelope_read_head(whole, &reader)) {
        payload = read_quoted(codec, &reader);
        if (payload != NULL && fm_envelope_read_tail(&reader))
            return payload;
        Py_XDECREF(payload);
        if (PyErr_Occurred())
            return NULL;
    }
    /* As others may write it, if it is an envelope at all. */
    payload = NULL;
    status = fm_envelope_read_payload(whole, &text);
    if (status == FM_OK) {
        payload = read_document(codec, fm_buf_slice(&text));
        if (payload == NULL && !PyErr_Occurred())
            PyErr_SetString(
                codec->bad_message, "the payload of the envelope is no JSON");
    } else if (status == FM_NO_MEMORY) {
        PyErr_NoMemory();
    } else {
        PyErr_SetString(
            codec->bad_message, "not an oslo envelope of version 2.0");
    }
    fm_buf_fini(&text);
    return payload;
}
