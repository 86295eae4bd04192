/* The binary envelope between fast peers: MessagePack, through msgpack-c.
 *
 * Pure functions, for any thread. A body is the payload itself, a map; what
 * JSON has an `oslo.version` for is said by the content type. msgpack-c's
 * packer is made here to write into an fm_buf; its parser is a template too,
 * for wire/msgpack.c and py/unpack.c. Nothing of it is linked.
 */
#ifndef FM_WIRE_MSGPACK_H
#define FM_WIRE_MSGPACK_H

#include "base/buf.h"
#include "wire/envelope.h"

#include <msgpack/pack_define.h>
#include <msgpack/timestamp.h>

/* The basic properties of such a body, and what else is not UTF-8 text. */
#define FM_MSGPACK_CONTENT_TYPE "application/x-fastmsg-msgpack"
#define FM_MSGPACK_CONTENT_ENCODING "binary"

/* The header of a JSON request whose sender reads other envelopes, too, and
 * the name of this one in it; commas and blanks stand between names. */
#define FM_MSGPACK_HEADER "x-fastmsg-reads"
#define FM_MSGPACK_NAME "msgpack"

/* The extension type of an integer beyond 64 bits: its decimal text. */
enum { FM_MSGPACK_BIG_INT = 1 };

/* Whether a value of that header names this envelope. */
FM_MUST_CHECK bool fm_msgpack_is_named(fm_slice names);

/* ---- Writing ---- */

/* fm_msgpack_put_nil(), _true(), _false(), _int64(), _uint64(), _double(),
 * _array(), _map() (a head with the number of items), _str() (a head with the
 * number of bytes), _ext(): append one to an fm_buf, in the shortest form.
 * FM_OK or FM_NO_MEMORY. Sizes are at most UINT32_MAX. */
#define msgpack_pack_inline_func(name)                                         \
    static inline fm_status fm_msgpack_put##name
#define msgpack_pack_inline_func_cint(name)                                    \
    static inline fm_status fm_msgpack_put_c##name
#define msgpack_pack_user fm_buf *
#define msgpack_pack_append_buffer(out, data, len)                             \
    return fm_buf_append(out, data, len)
/* The time stamps in it, which nobody writes, call this by its full name. */
#define msgpack_pack_ext fm_msgpack_put_ext
#include <msgpack/pack_template.h>
#undef msgpack_pack_ext
#undef msgpack_pack_inline_func
#undef msgpack_pack_inline_func_cint
#undef msgpack_pack_user
#undef msgpack_pack_append_buffer

/* Append one string: UTF-8, in which surrogates that make a pair are one
 * character, as they are after JSON, and others are three bytes each.
 * FM_TOO_LARGE if that is more than UINT32_MAX bytes. The number says how many
 * bytes a character has; ASCII has a function of its own. */
FM_MUST_CHECK fm_status fm_msgpack_put_ucs1(
    fm_buf *out, const uint8_t *chars, size_t count);
FM_MUST_CHECK fm_status fm_msgpack_put_ucs2(
    fm_buf *out, const uint16_t *chars, size_t count);
FM_MUST_CHECK fm_status fm_msgpack_put_ucs4(
    fm_buf *out, const uint32_t *chars, size_t count);

FM_MUST_CHECK static inline fm_status
fm_msgpack_put_ascii(fm_buf *out, const uint8_t *chars, size_t count)
{
    fm_status status;

    if (FM_UNLIKELY(count > UINT32_MAX))
        return FM_TOO_LARGE;
    status = fm_msgpack_put_str(out, count);
    return FM_LIKELY(status == FM_OK) ? fm_buf_append(out, chars, count)
                                      : status;
}

/* ---- Reading ---- */

/* Whether no byte is above 0x7F. */
static inline bool
fm_msgpack_is_ascii(const uint8_t *data, size_t len)
{
    const uint64_t high = UINT64_C(0x8080808080808080);
    const uint8_t *end = data + len;
    uint64_t word = 0, more;

    if (len >= 8) {
        for (; end - data >= 16; data += 16) {
            memcpy(&word, data, 8);
            memcpy(&more, data + 8, 8);
            if (((word | more) & high) != 0)
                return false;
        }
        if (end - data >= 8) {
            memcpy(&word, data, 8);
            if ((word & high) != 0)
                return false;
        }
        memcpy(&word, end - 8, 8); /* the rest, and some of that again */
        return (word & high) == 0;
    }
    while (data < end)
        word |= *data++;
    return (word & 0x80) == 0;
}

/* fm_envelope_read_reply() for a body of this kind: by the last bytes only, if
 * they are as we write them; otherwise it reads all of it. No text is checked
 * for being UTF-8. */
FM_MUST_CHECK fm_status fm_msgpack_read_reply(
    fm_slice body, fm_reply_head *out);

#endif
