/* The hot frames, written and split by hand.
 *
 * What is done for each message (publish, deliver, ack, and finding where a
 * frame ends) is here, without rabbitmq-c and without allocation of its own.
 * Pure functions over borrowed bytes, for any thread; the buffer's owner
 * locks. The bytes are those that rabbitmq-c would write:
 * tests/native/test_frame.c compares them.
 */
#ifndef FM_IO_FRAME_H
#define FM_IO_FRAME_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FM_FRAME_METHOD = 1,
    FM_FRAME_HEADER = 2,
    FM_FRAME_BODY = 3,
    FM_FRAME_HEARTBEAT = 8,
    FM_FRAME_END = 0xCE
};

enum {
    FM_FRAME_OVERHEAD = 8,     /* type, channel, size; and the end byte */
    FM_FRAME_MAX_LEAST = 4096, /* AMQP 0-9-1, 4.2.3 */
    FM_FRAME_MAX_MOST = 131072 /* what we agree to; RabbitMQ's default */
};

/* --- splitting what was received --- */

typedef struct fm_frame {
    uint8_t type; /* FM_FRAME_... */
    uint16_t channel;
    const uint8_t *payload; /* borrowed from the bytes that were split */
    size_t len;
} fm_frame;

/* Find the first frame in `data`, which is `*used` bytes long.
 *
 * FM_AGAIN: it is not complete yet (nothing written). FM_BAD_FRAME: these
 * bytes start no frame that may come over this connection; known as soon as
 * the bad byte is there, see fm_frame_explain(). Never reads beyond `len`. */
FM_MUST_CHECK fm_status fm_frame_split(const uint8_t *data, size_t len,
    uint32_t frame_max, fm_frame *out, size_t *used);

/* After FM_BAD_FRAME of the same bytes: say why in `error` (a guess at what
 * the peer speaks included). Returns FM_BAD_FRAME. */
fm_status fm_frame_explain(
    const uint8_t *data, size_t len, uint32_t frame_max, fm_error *error);

/* --- sending --- */

/* A message as it goes out; every string borrowed for the call. */
typedef struct fm_publication {
    fm_slice exchange;
    fm_slice routing_key;
    bool mandatory;
    fm_slice expiration;  /* decimal milliseconds; empty: does not expire */
    fm_slice compression; /* the header of that name; empty: there is none */
    bool is_msgpack;      /* the body is in the binary envelope */
    bool reads_msgpack;   /* and so may be what answers it: a header, too */
    fm_slice body;
} fm_publication;

/* How many bytes fm_frame_put_publish() appends. */
size_t fm_frame_publish_size(uint32_t frame_max, const fm_publication *p);

/* Append basic.publish, content header and the body's frames (none if it is
 * empty), each at most `frame_max` bytes. Properties are those of the stock
 * driver: content_type application/json, content_encoding utf-8, headers,
 * delivery_mode 2, priority 0, expiration if given; of a body in the binary
 * envelope, the first two are its own (wire/msgpack.h). FM_TOO_LARGE if a
 * string is over 255 bytes; whatever fails leaves the buffer as it was. */
FM_MUST_CHECK fm_status fm_frame_put_publish(
    fm_buf *out, uint16_t channel, uint32_t frame_max, const fm_publication *p);

FM_MUST_CHECK fm_status fm_frame_put_ack(
    fm_buf *out, uint16_t channel, uint64_t tag, bool multiple);
FM_MUST_CHECK fm_status fm_frame_put_nack(
    fm_buf *out, uint16_t channel, uint64_t tag, bool multiple, bool requeue);
FM_MUST_CHECK fm_status fm_frame_put_reject(
    fm_buf *out, uint16_t channel, uint64_t tag, bool requeue);
FM_MUST_CHECK fm_status fm_frame_put_heartbeat(fm_buf *out);

/* --- reading; FM_OK or FM_BAD_FRAME, slices point into the payload --- */

/* basic.deliver; `payload` includes the method id, which is checked. */
typedef struct fm_deliver {
    fm_slice consumer_tag;
    uint64_t delivery_tag;
    bool redelivered;
    fm_slice exchange;
    fm_slice routing_key;
} fm_deliver;

FM_MUST_CHECK fm_status fm_frame_parse_deliver(
    const uint8_t *payload, size_t len, fm_deliver *out);

/* A content header of class basic. What the message does not have is false
 * here, and its slice is empty. */
typedef struct fm_content {
    uint64_t body_size;
    bool has_content_type;
    bool has_content_encoding;
    bool has_headers;
    bool has_expiration;
    fm_slice content_type;
    fm_slice content_encoding;
    fm_slice headers; /* a table's entries, not looked at: see field.h */
    fm_slice expiration;
} fm_content;

FM_MUST_CHECK fm_status fm_frame_parse_header(
    const uint8_t *payload, size_t len, fm_content *out);

/* Whether the content type is that of the binary envelope; and whether the
 * sender reads that, which it says by using it or in a header. */
FM_MUST_CHECK bool fm_content_is_msgpack(const fm_content *content);
FM_MUST_CHECK bool fm_content_reads_msgpack(const fm_content *content);

/* basic.ack or basic.nack from the broker. */
typedef struct fm_confirm {
    uint64_t tag;
    bool multiple; /* all up to this tag */
} fm_confirm;

FM_MUST_CHECK fm_status fm_frame_parse_ack(
    const uint8_t *payload, size_t len, fm_confirm *out);

/* Look up one header in fm_content.headers: a text (`compression`), an
 * integer of any width (`x-stream-offset`). FM_NOT_FOUND if there is none, or
 * one of another kind; FM_BAD_FRAME if the table is malformed up to there. */
FM_MUST_CHECK fm_status fm_frame_find_header(
    fm_slice headers, const char *name, fm_slice *text);
FM_MUST_CHECK fm_status fm_frame_find_header_int(
    fm_slice headers, const char *name, int64_t *integer);

#endif
