#include "io/frame.h"

#include "io/amqp.h"
#include "io/field.h"
#include "wire/msgpack.h"

#include <assert.h>

enum {
    HEAD_LEN = 7, /* type, channel, size; the end byte follows the payload */
    CLASS_BASIC = 60,
    SHORT_TEXT_MOST = 255
};

/* Property flags of class basic, in the order of the fields. */
enum {
    HAS_CONTENT_TYPE = 0x8000,
    HAS_CONTENT_ENCODING = 0x4000,
    HAS_HEADERS = 0x2000,
    HAS_DELIVERY_MODE = 0x1000,
    HAS_PRIORITY = 0x0800,
    HAS_CORRELATION_ID = 0x0400,
    HAS_REPLY_TO = 0x0200,
    HAS_EXPIRATION = 0x0100,
    /* message id, timestamp, type, user id, app id, cluster id follow */
    HAS_MORE_FLAGS = 0x0001 /* another word of flags; basic has no need */
};

static const char content_type[] = "application/json";
static const char content_encoding[] = "utf-8";
static const char compression[] = "compression";
static const char msgpack_type[] = FM_MSGPACK_CONTENT_TYPE;
static const char msgpack_encoding[] = FM_MSGPACK_CONTENT_ENCODING;
static const char reads[] = FM_MSGPACK_HEADER;
static const char msgpack_name[] = FM_MSGPACK_NAME;

/* --- splitting --- */

static bool
is_known_type(uint8_t type)
{
    return type == FM_FRAME_METHOD || type == FM_FRAME_HEADER
        || type == FM_FRAME_BODY || type == FM_FRAME_HEARTBEAT;
}

fm_status
fm_frame_split(const uint8_t *data, size_t len, uint32_t frame_max,
    fm_frame *out, size_t *used)
{
    uint32_t size;

    assert(frame_max >= FM_FRAME_MAX_LEAST);
    /* What is there is judged at once: a peer that speaks something else
     * may never send the rest of what would be its frame. */
    if (FM_UNLIKELY(len > 0 && !is_known_type(data[0])))
        return FM_BAD_FRAME;
    if (len < HEAD_LEN)
        return FM_AGAIN;
    size = fm_load_u32(data + 3);
    if (FM_UNLIKELY(size > frame_max - FM_FRAME_OVERHEAD))
        return FM_BAD_FRAME;
    if (len - HEAD_LEN <= size) /* the end byte included */
        return FM_AGAIN;
    if (FM_UNLIKELY(data[HEAD_LEN + size] != FM_FRAME_END))
        return FM_BAD_FRAME;
    out->type = data[0];
    out->channel = fm_load_u16(data + 1);
    out->payload = data + HEAD_LEN;
    out->len = size;
    *used = HEAD_LEN + (size_t)size + 1;
    return FM_OK;
}

static bool
starts_with(const uint8_t *data, size_t len, const char *text)
{
    size_t text_len = strlen(text);

    return len >= text_len && memcmp(data, text, text_len) == 0;
}

fm_status
fm_frame_explain(
    const uint8_t *data, size_t len, uint32_t frame_max, fm_error *error)
{
    uint32_t size;

    if (starts_with(data, len, "AMQP"))
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "peer is not an AMQP 0-9-1 broker: it offers another version "
            "of the protocol");
    if (starts_with(data, len, "HTTP"))
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "peer is not an AMQP 0-9-1 broker: it speaks HTTP");
    /* An alert (21) or handshake (22) record of TLS 1.x. */
    if (len >= 2 && (data[0] == 21 || data[0] == 22) && data[1] == 3)
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "peer is not an AMQP 0-9-1 broker: it speaks TLS, which is not "
            "switched on here");
    if (len < HEAD_LEN || !is_known_type(data[0]))
        return fm_error_set(error, FM_BAD_FRAME, 501,
            "peer is not an AMQP 0-9-1 broker: no frame starts with byte %u",
            len > 0 ? data[0] : 0U);
    size = fm_load_u32(data + 3);
    if (size > frame_max - FM_FRAME_OVERHEAD)
        return fm_error_set(error, FM_BAD_FRAME, 501,
            "frame of %u bytes, but at most %u were agreed", size,
            frame_max - FM_FRAME_OVERHEAD);
    return fm_error_set(error, FM_BAD_FRAME, 501,
        "frame without end byte: type %u, channel %u, %u bytes", data[0],
        fm_load_u16(data + 1), size);
}

/* --- sending: `at` moves through room that was reserved before --- */

static inline uint8_t *
store_bytes(uint8_t *at, const void *data, size_t len)
{
    if (len > 0)
        memcpy(at, data, len);
    return at + len;
}

static inline uint8_t *
store_short_text(uint8_t *at, const void *data, size_t len)
{
    *at = (uint8_t)len;
    return store_bytes(at + 1, data, len);
}

static inline uint8_t *
store_head(uint8_t *at, uint8_t type, uint16_t channel, size_t len)
{
    at[0] = type;
    fm_store_u16(at + 1, channel);
    fm_store_u32(at + 3, (uint32_t)len);
    return at + HEAD_LEN;
}

static inline uint8_t *
store_end(uint8_t *at)
{
    *at = FM_FRAME_END;
    return at + 1;
}

/* Payload sizes of the three kinds of frame. */

static inline size_t
publish_len(const fm_publication *p)
{
    /* id, ticket, exchange, routing key, bits */
    return 4 + 2 + (1 + p->exchange.len) + (1 + p->routing_key.len) + 1;
}

static inline size_t
headers_len(const fm_publication *p)
{
    size_t len = 0;

    if (p->compression.len > 0)
        len += sizeof(compression) + (1 + 4 + p->compression.len);
    if (p->reads_msgpack)
        len += sizeof(reads) + (1 + 4 + sizeof(msgpack_name) - 1);
    return len;
}

/* Both with a byte of length each, as the constants have one at the end. */
static inline size_t
types_len(const fm_publication *p)
{
    return p->is_msgpack ? sizeof(msgpack_type) + sizeof(msgpack_encoding)
                         : sizeof(content_type) + sizeof(content_encoding);
}

static inline size_t
header_len(const fm_publication *p)
{
    /* class, weight, body size, flags; the properties */
    size_t len = 2 + 2 + 8 + 2 + types_len(p) + (4 + headers_len(p)) + 1 + 1;

    return p->expiration.len == 0 ? len : len + 1 + p->expiration.len;
}

size_t
fm_frame_publish_size(uint32_t frame_max, const fm_publication *p)
{
    size_t piece = frame_max - FM_FRAME_OVERHEAD;
    size_t frames = p->body.len / piece + (p->body.len % piece != 0);

    return publish_len(p) + header_len(p) + p->body.len
        + (2 + frames) * FM_FRAME_OVERHEAD;
}

static uint8_t *
store_publish(uint8_t *at, uint16_t channel, const fm_publication *p)
{
    at = store_head(at, FM_FRAME_METHOD, channel, publish_len(p));
    fm_store_u32(at, FM_METHOD_BASIC_PUBLISH);
    fm_store_u16(at + 4, 0); /* ticket: of no use since AMQP 0-8 */
    at = store_short_text(at + 6, p->exchange.data, p->exchange.len);
    at = store_short_text(at, p->routing_key.data, p->routing_key.len);
    *at++ = p->mandatory ? 1 : 0; /* bit 1, immediate, is never set */
    return store_end(at);
}

static uint8_t *
store_text_field(uint8_t *at, const char *name, size_t name_len,
    const void *data, size_t len)
{
    at = store_short_text(at, name, name_len);
    *at = FM_KIND_TEXT;
    fm_store_u32(at + 1, (uint32_t)len);
    return store_bytes(at + 5, data, len);
}

static uint8_t *
store_types(uint8_t *at, bool is_msgpack)
{
    if (is_msgpack) {
        at = store_short_text(at, msgpack_type, sizeof(msgpack_type) - 1);
        return store_short_text(
            at, msgpack_encoding, sizeof(msgpack_encoding) - 1);
    }
    at = store_short_text(at, content_type, sizeof(content_type) - 1);
    return store_short_text(at, content_encoding, sizeof(content_encoding) - 1);
}

static uint8_t *
store_header(uint8_t *at, uint16_t channel, const fm_publication *p)
{
    uint16_t flags = HAS_CONTENT_TYPE | HAS_CONTENT_ENCODING | HAS_HEADERS
        | HAS_DELIVERY_MODE | HAS_PRIORITY;

    if (p->expiration.len > 0)
        flags |= HAS_EXPIRATION;
    at = store_head(at, FM_FRAME_HEADER, channel, header_len(p));
    fm_store_u16(at, CLASS_BASIC);
    fm_store_u16(at + 2, 0); /* weight */
    fm_store_u64(at + 4, p->body.len);
    fm_store_u16(at + 12, flags);
    at = store_types(at + 14, p->is_msgpack);
    fm_store_u32(at, (uint32_t)headers_len(p));
    at += 4;
    if (p->compression.len > 0) {
        at = store_text_field(at, compression, sizeof(compression) - 1,
            p->compression.data, p->compression.len);
    }
    if (p->reads_msgpack)
        at = store_text_field(at, reads, sizeof(reads) - 1, msgpack_name,
            sizeof(msgpack_name) - 1);
    *at++ = 2; /* delivery mode: persistent, also to transient queues */
    *at++ = 0; /* priority */
    if (p->expiration.len > 0)
        at = store_short_text(at, p->expiration.data, p->expiration.len);
    return store_end(at);
}

fm_status
fm_frame_put_publish(
    fm_buf *out, uint16_t channel, uint32_t frame_max, const fm_publication *p)
{
    size_t piece = frame_max - FM_FRAME_OVERHEAD;
    fm_status status;
    uint8_t *at;

    assert(frame_max >= FM_FRAME_MAX_LEAST);
    if (p->exchange.len > SHORT_TEXT_MOST
        || p->routing_key.len > SHORT_TEXT_MOST
        || p->expiration.len > SHORT_TEXT_MOST
        || p->compression.len > SHORT_TEXT_MOST)
        return FM_TOO_LARGE;
    status = fm_buf_reserve(out, fm_frame_publish_size(frame_max, p));
    if (status != FM_OK)
        return status;

    at = store_publish(out->data + out->len, channel, p);
    at = store_header(at, channel, p);
    for (size_t done = 0; done < p->body.len;) {
        size_t left = p->body.len - done;
        size_t len = left < piece ? left : piece;

        at = store_head(at, FM_FRAME_BODY, channel, len);
        at = store_end(store_bytes(at, p->body.data + done, len));
        done += len;
    }
    out->len = (size_t)(at - out->data);
    return FM_OK;
}

/* ack, nack and reject: an id, a delivery tag, a byte of bits. */
static fm_status
put_settlement(
    fm_buf *out, uint16_t channel, uint32_t id, uint64_t tag, uint8_t bits)
{
    const size_t len = 4 + 8 + 1;
    fm_status status = fm_buf_reserve(out, len + FM_FRAME_OVERHEAD);
    uint8_t *at;

    if (status != FM_OK)
        return status;
    at = store_head(out->data + out->len, FM_FRAME_METHOD, channel, len);
    fm_store_u32(at, id);
    fm_store_u64(at + 4, tag);
    at[12] = bits;
    at[13] = FM_FRAME_END;
    out->len += len + FM_FRAME_OVERHEAD;
    return FM_OK;
}

fm_status
fm_frame_put_ack(fm_buf *out, uint16_t channel, uint64_t tag, bool multiple)
{
    return put_settlement(
        out, channel, FM_METHOD_BASIC_ACK, tag, multiple ? 1 : 0);
}

fm_status
fm_frame_put_nack(
    fm_buf *out, uint16_t channel, uint64_t tag, bool multiple, bool requeue)
{
    return put_settlement(out, channel, FM_METHOD_BASIC_NACK, tag,
        (uint8_t)((multiple ? 1 : 0) | (requeue ? 2 : 0)));
}

fm_status
fm_frame_put_reject(fm_buf *out, uint16_t channel, uint64_t tag, bool requeue)
{
    return put_settlement(
        out, channel, FM_METHOD_BASIC_REJECT, tag, requeue ? 1 : 0);
}

fm_status
fm_frame_put_heartbeat(fm_buf *out)
{
    static const uint8_t heartbeat[] = { FM_FRAME_HEARTBEAT, 0, 0, 0, 0, 0, 0,
        FM_FRAME_END };

    return fm_buf_append(out, heartbeat, sizeof(heartbeat));
}

/* --- reading --- */

fm_status
fm_frame_parse_deliver(const uint8_t *payload, size_t len, fm_deliver *out)
{
    fm_cursor cursor = fm_cursor_over(payload, len);
    fm_deliver deliver;
    uint32_t id;
    uint8_t bits;

    if (!fm_cursor_u32(&cursor, &id) || id != FM_METHOD_BASIC_DELIVER
        || !fm_cursor_short_text(&cursor, &deliver.consumer_tag)
        || !fm_cursor_u64(&cursor, &deliver.delivery_tag)
        || !fm_cursor_u8(&cursor, &bits)
        || !fm_cursor_short_text(&cursor, &deliver.exchange)
        || !fm_cursor_short_text(&cursor, &deliver.routing_key))
        return FM_BAD_FRAME;
    deliver.redelivered = (bits & 1) != 0;
    *out = deliver;
    return FM_OK;
}

/* Skip what lies between priority and expiration. */
static bool
skip_ids(fm_cursor *cursor, uint16_t flags)
{
    fm_slice skipped;

    if ((flags & HAS_CORRELATION_ID) != 0
        && !fm_cursor_short_text(cursor, &skipped))
        return false;
    return (flags & HAS_REPLY_TO) == 0
        || fm_cursor_short_text(cursor, &skipped);
}

fm_status
fm_frame_parse_header(const uint8_t *payload, size_t len, fm_content *out)
{
    fm_cursor cursor = fm_cursor_over(payload, len);
    fm_content content = { 0 };
    uint16_t class_id, weight, flags;

    if (!fm_cursor_u16(&cursor, &class_id) || class_id != CLASS_BASIC
        || !fm_cursor_u16(&cursor, &weight)
        || !fm_cursor_u64(&cursor, &content.body_size)
        || !fm_cursor_u16(&cursor, &flags) || (flags & HAS_MORE_FLAGS) != 0)
        return FM_BAD_FRAME;
    content.has_content_type = (flags & HAS_CONTENT_TYPE) != 0;
    content.has_content_encoding = (flags & HAS_CONTENT_ENCODING) != 0;
    content.has_headers = (flags & HAS_HEADERS) != 0;
    content.has_expiration = (flags & HAS_EXPIRATION) != 0;

    if (content.has_content_type
        && !fm_cursor_short_text(&cursor, &content.content_type))
        return FM_BAD_FRAME;
    if (content.has_content_encoding
        && !fm_cursor_short_text(&cursor, &content.content_encoding))
        return FM_BAD_FRAME;
    if (content.has_headers && !fm_cursor_long_text(&cursor, &content.headers))
        return FM_BAD_FRAME;
    if ((flags & HAS_DELIVERY_MODE) != 0 && !fm_cursor_skip(&cursor, 1))
        return FM_BAD_FRAME;
    if ((flags & HAS_PRIORITY) != 0 && !fm_cursor_skip(&cursor, 1))
        return FM_BAD_FRAME;
    if (!skip_ids(&cursor, flags))
        return FM_BAD_FRAME;
    if (content.has_expiration
        && !fm_cursor_short_text(&cursor, &content.expiration))
        return FM_BAD_FRAME;
    /* Nobody here asks for what follows: message id, timestamp and so on. */
    *out = content;
    return FM_OK;
}

bool
fm_content_is_msgpack(const fm_content *content)
{
    return content->content_type.len == sizeof(msgpack_type) - 1
        && memcmp(content->content_type.data, msgpack_type,
               sizeof(msgpack_type) - 1)
        == 0;
}

bool
fm_content_reads_msgpack(const fm_content *content)
{
    fm_slice names;

    return fm_content_is_msgpack(content)
        || (fm_frame_find_header(content->headers, reads, &names) == FM_OK
            && fm_msgpack_is_named(names));
}

fm_status
fm_frame_parse_ack(const uint8_t *payload, size_t len, fm_confirm *out)
{
    fm_cursor cursor = fm_cursor_over(payload, len);
    uint32_t id;
    uint64_t tag;
    uint8_t bits;

    if (!fm_cursor_u32(&cursor, &id)
        || (id != FM_METHOD_BASIC_ACK && id != FM_METHOD_BASIC_NACK)
        || !fm_cursor_u64(&cursor, &tag) || !fm_cursor_u8(&cursor, &bits))
        return FM_BAD_FRAME;
    out->tag = tag;
    out->multiple = (bits & 1) != 0;
    return FM_OK;
}

fm_status
fm_frame_find_header(fm_slice headers, const char *name, fm_slice *text)
{
    fm_field field;
    fm_status status = fm_field_find(headers, name, &field);

    if (status != FM_OK)
        return status;
    return fm_field_text(&field, text) ? FM_OK : FM_NOT_FOUND;
}

fm_status
fm_frame_find_header_int(fm_slice headers, const char *name, int64_t *integer)
{
    fm_field field;
    fm_status status = fm_field_find(headers, name, &field);

    if (status != FM_OK)
        return status;
    return fm_field_integer(&field, integer) ? FM_OK : FM_NOT_FOUND;
}
