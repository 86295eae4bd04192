/* Strings of ASCII, and the names of members among them.
 *
 * Inline, for the two decoders (decode.c, unpack.c), since it is much of what
 * they do.
 */
#ifndef FM_PY_NAMES_H
#define FM_PY_NAMES_H

#include "py/codec.h"

/* Longer names, and those with escapes, are not worth remembering. */
enum { KEY_LEN_MAX = 32 };

static PyObject *
new_ascii(const uint8_t *text, size_t len)
{
    PyObject *str = PyUnicode_New((Py_ssize_t)len, 127);

    if (FM_LIKELY(str != NULL))
        memcpy(PyUnicode_1BYTE_DATA(str), text, len);
    return str;
}

static inline uint64_t
load_word(const uint8_t *from)
{
    uint64_t word;

    memcpy(&word, from, 8);
    return word;
}

/* A name as words of eight bytes, which overlap where they must: enough of
 * them that equal words and equal lengths mean equal names. */
struct name_words {
    uint64_t first;
    uint64_t second;
    uint64_t third;
    uint64_t last;
};

static inline struct name_words
load_name(const uint8_t *text, size_t len)
{
    struct name_words words = { 0 };
    uint32_t half;

    if (len >= 16) {
        words.first = load_word(text);
        words.second = load_word(text + 8);
        words.third = load_word(text + len - 16);
        words.last = load_word(text + len - 8);
    } else if (len >= 8) {
        words.first = load_word(text);
        words.last = load_word(text + len - 8);
    } else if (len >= 4) {
        memcpy(&half, text, 4);
        words.first = half;
        memcpy(&half, text + len - 4, 4);
        words.last = half;
    } else if (len > 0) {
        words.first = text[0];
        words.second = text[len / 2];
        words.last = text[len - 1];
    }
    return words;
}

/* Peers choose the names, but all that bad luck costs is a new string. */
static inline size_t
place_of(const struct name_words *words, size_t len)
{
    uint64_t hash = words->first * UINT64_C(0x9E3779B97F4A7C15)
        + words->second * UINT64_C(0xC2B2AE3D27D4EB4F)
        + words->third * UINT64_C(0x165667B19E3779F9)
        + words->last * UINT64_C(0xD6E8FEB86659FD93) + len;

    hash ^= hash >> 32;
    return (hash ^ hash >> 16) % FM_KEY_SETS;
}

/* `str` is one of ours, so compact and ASCII: its text follows its head. */
static inline bool
is_name(PyObject *str, const struct name_words *words, size_t len)
{
    struct name_words own;

    if (str == NULL || (size_t)PyUnicode_GET_LENGTH(str) != len)
        return false;
    own = load_name((const uint8_t *)((PyASCIIObject *)str + 1), len);
    return ((own.first ^ words->first) | (own.second ^ words->second)
               | (own.third ^ words->third) | (own.last ^ words->last))
        == 0;
}

/* The string of a name that was read lately, a new reference; NULL, without an
 * exception, if there is none. `*set` is its place for add_name(). */
static inline PyObject *
find_name(fm_codec *codec, const uint8_t *text, size_t len, PyObject ***set)
{
    struct name_words words = load_name(text, len);
    PyObject **place = codec->keys[place_of(&words, len)];
    PyObject *name;

    *set = place;
    FM_CODEC_LOCK(codec);
    name = place[0];
    if (!is_name(name, &words, len)) {
        name = place[1];
        if (!is_name(name, &words, len))
            name = NULL;
    }
    Py_XINCREF(name);
    FM_CODEC_UNLOCK(codec);
    return name;
}

/* A new string, of ASCII, to be found the next time: of two that share a place,
 * the one that was not used last makes room. They are not interned, as an
 * interned string stays for ever in Python 3.12, and peers choose the names. */
static PyObject *
add_name(fm_codec *codec, const uint8_t *text, size_t len, PyObject **set)
{
    PyObject *name = new_ascii(text, len);
    PyObject *old;

    if (name == NULL)
        return NULL;
    Py_INCREF(name);
    FM_CODEC_LOCK(codec);
    old = set[1];
    set[1] = set[0];
    set[0] = name;
    FM_CODEC_UNLOCK(codec);
    Py_XDECREF(old);
    return name;
}

#endif
