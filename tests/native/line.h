/* A connection on loopback: a socket of the core at this end, a plain
 * descriptor at the other; and AMQP frames as a broker would send them.
 */
#ifndef FM_TESTS_LINE_H
#define FM_TESTS_LINE_H

#include "check.h"
#include "peer.h"

#include "base/buf.h"
#include "io/amqp.h"
#include "io/channel.h"
#include "io/frame.h"
#include "io/socket.h"

#include <poll.h>

typedef struct line {
    fm_socket *near; /* owned */
    int far;
    fm_buf got; /* what was read at the far end and not yet looked at */
} line;

static inline void
line_open(line *self)
{
    uint16_t port = 0;
    int listener = peer_listen("127.0.0.1", &port, 1);
    fm_endpoint where = { "127.0.0.1", port };
    fm_error error;

    CHECK_INT(fm_socket_connect(&where, NULL, fm_deadline_in(10 * FM_NS_PER_S),
                  -1, &self->near, &error),
        FM_OK);
    self->far = accept(listener, NULL, NULL);
    CHECK(self->far >= 0);
    close(listener);
    fm_buf_init(&self->got);
}

static inline void
line_close(line *self)
{
    fm_socket_free(self->near);
    if (self->far >= 0)
        close(self->far);
    fm_buf_fini(&self->got);
}

/* Read at the far end what comes within `timeout_ms`; false: nothing. */
static inline bool
line_read(line *self, int timeout_ms)
{
    struct pollfd look = { .fd = self->far, .events = POLLIN };
    ssize_t rc;

    if (poll(&look, 1, timeout_ms) <= 0)
        return false;
    CHECK_INT(fm_buf_reserve(&self->got, 65536), FM_OK);
    rc = recv(self->far, self->got.data + self->got.len, 65536, 0);
    if (rc <= 0)
        return false;
    self->got.len += (size_t)rc;
    return true;
}

/* The next frame that was sent. Its payload is copied to `payload`. */
static inline void
line_take_frame(line *self, fm_frame *out, fm_buf *payload)
{
    size_t used = 0;

    while (fm_frame_split(
               self->got.data, self->got.len, FM_FRAME_MAX_MOST, out, &used)
        != FM_OK)
        CHECK(line_read(self, 10 * 1000));
    payload->len = 0;
    CHECK_INT(fm_buf_append(payload, out->payload, out->len), FM_OK);
    out->payload = payload->data;
    fm_buf_consume(&self->got, used);
}

/* The id of the next method that was sent, skipping other frames. */
static inline uint32_t
line_take_method(line *self, uint16_t *channel)
{
    fm_buf payload = { 0 };
    fm_frame frame;
    uint32_t id;

    do {
        line_take_frame(self, &frame, &payload);
    } while (frame.type != FM_FRAME_METHOD);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
    if (channel != NULL)
        *channel = frame.channel;
    fm_buf_fini(&payload);
    return id;
}

/* Nothing more was sent, and nothing comes for a moment. */
static inline bool
line_is_silent(line *self)
{
    return self->got.len == 0 && !line_read(self, 50);
}

/* --- frames from the broker --- */

static inline void
add_u8(fm_buf *to, uint8_t value)
{
    CHECK_INT(fm_buf_append(to, &value, 1), FM_OK);
}

static inline void
add_u16(fm_buf *to, uint16_t value)
{
    uint8_t bytes[2];

    fm_store_u16(bytes, value);
    CHECK_INT(fm_buf_append(to, bytes, 2), FM_OK);
}

static inline void
add_u32(fm_buf *to, uint32_t value)
{
    uint8_t bytes[4];

    fm_store_u32(bytes, value);
    CHECK_INT(fm_buf_append(to, bytes, 4), FM_OK);
}

static inline void
add_u64(fm_buf *to, uint64_t value)
{
    uint8_t bytes[8];

    fm_store_u64(bytes, value);
    CHECK_INT(fm_buf_append(to, bytes, 8), FM_OK);
}

static inline void
add_text(fm_buf *to, const char *text)
{
    add_u8(to, (uint8_t)strlen(text));
    CHECK_INT(fm_buf_append(to, text, strlen(text)), FM_OK);
}

/* Have a channel take one frame; what it says. */
static inline fm_status
feed(fm_channel *channel, uint8_t type, const fm_buf *payload)
{
    fm_frame frame = { type, channel->id, payload->data, payload->len };
    fm_error error = { .status = FM_OK };

    return fm_channel_take_frame(channel, &frame, &error);
}

/* A method whose arguments nobody looks at. */
static inline fm_status
feed_method(fm_channel *channel, uint32_t id)
{
    fm_buf payload = { 0 };
    fm_status status;

    add_u32(&payload, id);
    add_u32(&payload, 0);
    status = feed(channel, FM_FRAME_METHOD, &payload);
    fm_buf_fini(&payload);
    return status;
}

static inline fm_status
feed_close(fm_channel *channel, uint16_t code, const char *text)
{
    fm_buf payload = { 0 };
    fm_status status;

    add_u32(&payload, FM_METHOD_CHANNEL_CLOSE);
    add_u16(&payload, code);
    add_text(&payload, text);
    add_u32(&payload, FM_METHOD_BASIC_PUBLISH);
    status = feed(channel, FM_FRAME_METHOD, &payload);
    fm_buf_fini(&payload);
    return status;
}

static inline fm_status
feed_confirm(fm_channel *channel, uint32_t id, uint64_t tag, bool multiple)
{
    fm_buf payload = { 0 };
    fm_status status;

    add_u32(&payload, id);
    add_u64(&payload, tag);
    add_u8(&payload, multiple);
    status = feed(channel, FM_FRAME_METHOD, &payload);
    fm_buf_fini(&payload);
    return status;
}

static inline void
build_deliver(fm_buf *to, const char *tag, uint64_t delivery_tag)
{
    to->len = 0;
    add_u32(to, FM_METHOD_BASIC_DELIVER);
    add_text(to, tag);
    add_u64(to, delivery_tag);
    add_u8(to, 0);
    add_text(to, "an exchange");
    add_text(to, "a key");
}

static inline void
build_return(fm_buf *to, const char *exchange, const char *routing_key)
{
    to->len = 0;
    add_u32(to, FM_METHOD_BASIC_RETURN);
    add_u16(to, 312);
    add_text(to, "NO_ROUTE");
    add_text(to, exchange);
    add_text(to, routing_key);
}

/* A content header without properties. */
static inline void
build_header(fm_buf *to, uint64_t body_size)
{
    to->len = 0;
    add_u16(to, 60);
    add_u16(to, 0);
    add_u64(to, body_size);
    add_u16(to, 0);
}

/* Method, header and body of one message; the first status that is bad. */
static inline fm_status
feed_content(fm_channel *channel, const fm_buf *method, const char *body)
{
    fm_buf header = { 0 }, bytes = { 0 };
    fm_status status = feed(channel, FM_FRAME_METHOD, method);

    build_header(&header, strlen(body));
    CHECK_INT(fm_buf_append(&bytes, body, strlen(body)), FM_OK);
    if (status == FM_OK)
        status = feed(channel, FM_FRAME_HEADER, &header);
    if (status == FM_OK && bytes.len > 0)
        status = feed(channel, FM_FRAME_BODY, &bytes);
    fm_buf_fini(&header);
    fm_buf_fini(&bytes);
    return status;
}

static inline fm_status
feed_delivery(
    fm_channel *channel, const char *tag, uint64_t number, const char *body)
{
    fm_buf method = { 0 };
    fm_status status;

    build_deliver(&method, tag, number);
    status = feed_content(channel, &method, body);
    fm_buf_fini(&method);
    return status;
}

#endif
