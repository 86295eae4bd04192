/* Python objects to the bodies of messages, and back.
 *
 * For caller threads that hold the GIL (or, without one, an attached thread
 * state). One codec belongs to each module object, so to each interpreter.
 * Encoding writes what oslo.messaging with kombu's JSON writes, to the byte;
 * foreign types go through the installed oslo.serialization. Decoding reads
 * envelopes of version "2.0" and refuses all else, for Python to decide on.
 * Packing and unpacking have a binary envelope (wire/msgpack.h), by which
 * values arrive as they do by JSON.
 */
#ifndef FM_PY_CODEC_H
#define FM_PY_CODEC_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/buf.h"
#include "wire/json.h"

/* Names of members that were read lately: sets of two, see decode.c. */
enum { FM_KEY_SETS = 512 };

/* Part of the module's state. */
typedef struct fm_codec {
    /* What fm_codec_decode raises. Borrowed: whoever has the codec stores it
     * here after fm_codec_init and keeps it alive. */
    PyObject *bad_message;
    PyObject *to_primitive FM_GUARDED_BY(lock);         /* owned; or NULL */
    PyObject *keys[FM_KEY_SETS][2] FM_GUARDED_BY(lock); /* owned; or NULL */
#ifdef Py_GIL_DISABLED
    PyMutex lock; /* a leaf; otherwise the GIL is the lock */
#endif
} fm_codec;

/* Prepare; imports nothing and calls no Python. 0, or -1 with an exception.
 * fm_codec_clear undoes it, as tp_clear or m_clear, any number of times. */
FM_MUST_CHECK int fm_codec_init(fm_codec *codec);
int fm_codec_traverse(fm_codec *codec, visitproc visit, void *arg);
void fm_codec_clear(fm_codec *codec);

/* Append an envelope around `payload`: 0. Or -1 with an exception, and out
 * as long as it was: TypeError for a key that JSON has not, ValueError for a
 * cycle or an integer over Python's limit of digits, RecursionError,
 * MemoryError, and whatever to_primitive raises for a foreign object (a
 * ValueError if it knows no way). */
FM_MUST_CHECK int fm_codec_encode(
    fm_codec *codec, PyObject *payload, fm_buf *out);

/* The same without the envelope: oslo_serialization.jsonutils.dumps. */
FM_MUST_CHECK int fm_codec_dumps(fm_codec *codec, PyObject *value, fm_buf *out);

/* The payload of an enveloped body, a new reference. NULL with
 * codec->bad_message for whatever is wrong with the text: no envelope of
 * version "2.0", broken JSON or UTF-8, an integer over Python's limit of
 * digits, more than FM_JSON_DEPTH_MAX containers deep; or with MemoryError. */
PyObject *fm_codec_decode(fm_codec *codec, const uint8_t *body, size_t len);

/* The same for the binary envelope, with the same exceptions: the payload is
 * the whole body. Packing raises a ValueError too for what has more than
 * 2**32 - 1 bytes or items. */
FM_MUST_CHECK int fm_codec_pack(
    fm_codec *codec, PyObject *payload, fm_buf *out);
PyObject *fm_codec_unpack(fm_codec *codec, const uint8_t *body, size_t len);

/* What Python's own conversion makes of a number's text, for the decoders; NULL
 * without an exception for too many digits. */
PyObject *fm_codec_number(const fm_json_number *number);

/* For the method table: encode(payload) -> bytes, dumps(value) -> str,
 * decode(body: bytes-like) -> object, pack(payload) -> bytes,
 * unpack(body: bytes-like) -> object. They find the codec by fm_codec_of(),
 * which the module's own file defines. */
fm_codec *fm_codec_of(PyObject *module);
PyObject *fm_py_encode(PyObject *module, PyObject *payload);
PyObject *fm_py_dumps(PyObject *module, PyObject *value);
PyObject *fm_py_decode(PyObject *module, PyObject *body);
PyObject *fm_py_pack(PyObject *module, PyObject *payload);
PyObject *fm_py_unpack(PyObject *module, PyObject *body);

/* The codec's lock, for encode.c and decode.c; held for a few loads and
 * stores, never across a call that may run Python. */
#ifdef Py_GIL_DISABLED
#define FM_CODEC_LOCK(codec) PyMutex_Lock(&(codec)->lock)
#define FM_CODEC_UNLOCK(codec) PyMutex_Unlock(&(codec)->lock)
#else
#define FM_CODEC_LOCK(codec) ((void)(codec))
#define FM_CODEC_UNLOCK(codec) ((void)(codec))
#endif

/* Where fields of an object change together, or a borrowed pointer is made a
 * shared one. With a GIL it is nothing, so within it nothing may sleep. */
#ifndef Py_BEGIN_CRITICAL_SECTION /* before 3.13 */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

#endif
