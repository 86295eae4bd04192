#include "py/codec.h"

/* Most messages fit, so that the buffer does not grow by steps. */
enum { FIRST_ROOM = 4000 };

int
fm_codec_init(fm_codec *codec)
{
    memset(codec, 0, sizeof(*codec));
    return 0;
}

int
fm_codec_traverse(fm_codec *codec, visitproc visit, void *arg)
{
    Py_VISIT(codec->to_primitive);
    return 0; /* strings are in no cycle */
}

void
fm_codec_clear(fm_codec *codec)
{
    size_t i;

    codec->bad_message = NULL; /* its owner may clear it next */
    Py_CLEAR(codec->to_primitive);
    for (i = 0; i < FM_KEY_SETS; i++) {
        Py_CLEAR(codec->keys[i][0]);
        Py_CLEAR(codec->keys[i][1]);
    }
}

static PyObject *
write_bytes(PyObject *module, PyObject *payload,
    int (*write)(fm_codec *codec, PyObject *payload, fm_buf *out))
{
    PyObject *result = NULL;
    fm_buf out = { 0 };

    if (fm_buf_reserve(&out, FIRST_ROOM) != FM_OK)
        return PyErr_NoMemory();
    if (write(fm_codec_of(module), payload, &out) == 0)
        result = PyBytes_FromStringAndSize(
            (const char *)out.data, (Py_ssize_t)out.len);
    fm_buf_fini(&out);
    return result;
}

PyObject *
fm_py_encode(PyObject *module, PyObject *payload)
{
    return write_bytes(module, payload, fm_codec_encode);
}

PyObject *
fm_py_pack(PyObject *module, PyObject *payload)
{
    return write_bytes(module, payload, fm_codec_pack);
}

PyObject *
fm_py_dumps(PyObject *module, PyObject *value)
{
    PyObject *result = NULL;
    fm_buf out = { 0 };

    if (fm_buf_reserve(&out, FIRST_ROOM) != FM_OK)
        return PyErr_NoMemory();
    if (fm_codec_dumps(fm_codec_of(module), value, &out) == 0) {
        result = PyUnicode_New((Py_ssize_t)out.len, 127);
        if (result != NULL)
            memcpy(PyUnicode_1BYTE_DATA(result), out.data, out.len);
    }
    fm_buf_fini(&out);
    return result;
}

static PyObject *
read_bytes(PyObject *module, PyObject *body,
    PyObject *(*read)(fm_codec *codec, const uint8_t *body, size_t len))
{
    fm_codec *codec = fm_codec_of(module);
    PyObject *result;
    Py_buffer view;

    if (PyObject_GetBuffer(body, &view, PyBUF_SIMPLE) < 0)
        return NULL;
#ifdef Py_GIL_DISABLED
    /* Other threads may change a bytearray while it is read, and the decoder
     * reads some of it twice. */
    if (!PyBytes_Check(body)) {
        fm_buf copy = { 0 };

        if (fm_buf_append(&copy, view.buf, (size_t)view.len) == FM_OK)
            result = read(codec, copy.data, copy.len);
        else
            result = PyErr_NoMemory();
        fm_buf_fini(&copy);
        PyBuffer_Release(&view);
        return result;
    }
#endif
    result = read(codec, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return result;
}

PyObject *
fm_py_decode(PyObject *module, PyObject *body)
{
    return read_bytes(module, body, fm_codec_decode);
}

PyObject *
fm_py_unpack(PyObject *module, PyObject *body)
{
    return read_bytes(module, body, fm_codec_unpack);
}
