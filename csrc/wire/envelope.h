/* The oslo envelope: a JSON object whose member `oslo.message` is a string
 * that holds the payload's JSON text.
 *
 * Pure functions. The I/O thread reads the heads of replies with them, caller
 * threads read and write whole messages (py/codec.h).
 */
#ifndef FM_WIRE_ENVELOPE_H
#define FM_WIRE_ENVELOPE_H

#include "base/buf.h"
#include "wire/json.h"

/* What oslo.messaging writes around the payload, which stands quoted between
 * the two, to the byte. */
#define FM_ENVELOPE_HEAD "{\"oslo.version\": \"2.0\", \"oslo.message\": \""
#define FM_ENVELOPE_TAIL "\"}"
enum {
    FM_ENVELOPE_HEAD_LEN = sizeof(FM_ENVELOPE_HEAD) - 1,
    FM_ENVELOPE_TAIL_LEN = sizeof(FM_ENVELOPE_TAIL) - 1,
};

/* What may be said of a message about envelopes, as bits. */
enum {
    FM_ENVELOPE_JSON = 0,
    FM_ENVELOPE_MSGPACK = 1,       /* it is in the binary one */
    FM_ENVELOPE_READS_MSGPACK = 2, /* it has the header that names that one */
};

/* The longest message id that a reply may name; oslo.messaging's have 32. */
enum { FM_MSG_ID_MAX = 64 };

/* What the I/O thread needs of a reply. */
typedef struct fm_reply_head {
    char msg_id[FM_MSG_ID_MAX + 1];
    bool ending; /* the call gets no more replies */
} fm_reply_head;

/* If the body begins with FM_ENVELOPE_HEAD, place the reader behind it, at
 * the quoted payload, and say so. The rest of the body is not looked at. */
static inline bool
fm_envelope_read_head(fm_slice body, fm_json_reader *reader)
{
    if (body.len < FM_ENVELOPE_HEAD_LEN
        || memcmp(body.data, FM_ENVELOPE_HEAD, FM_ENVELOPE_HEAD_LEN) != 0)
        return false;
    reader->pos = body.data + FM_ENVELOPE_HEAD_LEN;
    reader->end = body.data + body.len;
    reader->surrogates = false;
    return true;
}

/* Read what follows the quoted payload; true if it is what closes the string
 * and the object, and nothing more. */
static inline bool
fm_envelope_read_tail(fm_json_reader *reader)
{
    fm_json_skip_blank(reader, true);
    if (!fm_json_read_mark(reader, '"'))
        return false;
    fm_json_skip_blank(reader, false);
    if (!fm_json_read_mark(reader, '}'))
        return false;
    fm_json_skip_blank(reader, false);
    return reader->pos == reader->end;
}

/* Read an envelope that any JSON writer may have made: any order, escapes,
 * blanks and further members, of equal names the last. *text, emptied first,
 * gets the payload's text, plain, in UTF-8, lone surrogates as three bytes;
 * the text itself is not checked. FM_BAD_MESSAGE if it is no envelope, or not
 * of version "2.0". */
FM_MUST_CHECK fm_status fm_envelope_read_payload(fm_slice body, fm_buf *text);

/* Read `_msg_id` and the truth of `ending` (false when it is missing) out of
 * a reply. Looks at the last bytes only when they are as the stock driver
 * writes them, and does then not notice that the rest is broken: whoever
 * decodes the body will. Otherwise reads and checks it all. FM_BAD_MESSAGE if
 * it is no enveloped object or `_msg_id` is missing, too long, no string or
 * holds a NUL. FM_NO_MEMORY. */
FM_MUST_CHECK fm_status fm_envelope_read_reply(
    fm_slice body, fm_reply_head *out);

#endif
