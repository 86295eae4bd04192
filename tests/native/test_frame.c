/* The hot frames, byte for byte against rabbitmq-c's encoders, and what a
 * hostile peer may send. */
#include "check.h"
#include "io/amqp.h"
#include "io/field.h"
#include "io/frame.h"

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif

#include <stdlib.h>

enum { CHANNEL = 0x0102, FRAME_MAX = 4096 };

/* --- the same with rabbitmq-c --- */

static amqp_bytes_t
bytes_of(fm_slice slice)
{
    return (amqp_bytes_t){ slice.len, (void *)(uintptr_t)slice.data };
}

static fm_slice
slice(const char *text)
{
    return (fm_slice){ (const uint8_t *)text, strlen(text) };
}

static void
append_frame(fm_buf *buf, uint8_t type, const uint8_t *payload, size_t len)
{
    uint8_t head[7] = { type };
    const uint8_t end = 0xCE;

    fm_store_u16(head + 1, CHANNEL);
    fm_store_u32(head + 3, (uint32_t)len);
    CHECK_INT(fm_buf_append(buf, head, sizeof(head)), FM_OK);
    CHECK_INT(fm_buf_append(buf, payload, len), FM_OK);
    CHECK_INT(fm_buf_append(buf, &end, 1), FM_OK);
}

static void
append_method(fm_buf *buf, uint32_t id, void *fields)
{
    uint8_t payload[4096];
    int len = amqp_encode_method(
        id, fields, (amqp_bytes_t){ sizeof(payload) - 4, payload + 4 });

    CHECK(len >= 0);
    fm_store_u32(payload, id);
    append_frame(buf, AMQP_FRAME_METHOD, payload, 4 + (size_t)len);
}

static size_t
encode_header(uint8_t *to, size_t room, amqp_basic_properties_t *properties,
    uint64_t size)
{
    int len = amqp_encode_properties(
        AMQP_BASIC_CLASS, properties, (amqp_bytes_t){ room - 12, to + 12 });

    CHECK(len >= 0);
    fm_store_u16(to, AMQP_BASIC_CLASS);
    fm_store_u16(to + 2, 0);
    fm_store_u64(to + 4, size);
    return 12 + (size_t)len;
}

static void
add_text(amqp_table_t *table, const char *key, amqp_bytes_t value)
{
    amqp_table_entry_t *entry = &table->entries[table->num_entries++];

    entry->key = amqp_cstring_bytes(key);
    entry->value.kind = AMQP_FIELD_KIND_UTF8;
    entry->value.value.bytes = value;
}

static void
append_publish(fm_buf *buf, const fm_publication *p, uint32_t frame_max)
{
    amqp_basic_publish_t method = { .exchange = bytes_of(p->exchange),
        .routing_key = bytes_of(p->routing_key),
        .mandatory = p->mandatory };
    amqp_table_entry_t entries[2];
    amqp_basic_properties_t properties = { ._flags =
                                               AMQP_BASIC_CONTENT_TYPE_FLAG
            | AMQP_BASIC_CONTENT_ENCODING_FLAG | AMQP_BASIC_HEADERS_FLAG
            | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_PRIORITY_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .content_encoding = amqp_cstring_bytes("utf-8"),
        .delivery_mode = 2,
        .priority = 0 };
    uint8_t header[4096];

    properties.headers.entries = entries;
    if (p->compression.len > 0)
        add_text(&properties.headers, "compression", bytes_of(p->compression));
    if (p->reads_msgpack)
        add_text(&properties.headers, "x-fastmsg-reads",
            amqp_cstring_bytes("msgpack"));
    if (p->is_msgpack) {
        properties.content_type =
            amqp_cstring_bytes("application/x-fastmsg-msgpack");
        properties.content_encoding = amqp_cstring_bytes("binary");
    }
    if (p->expiration.len > 0) {
        properties._flags |= AMQP_BASIC_EXPIRATION_FLAG;
        properties.expiration = bytes_of(p->expiration);
    }
    append_method(buf, AMQP_BASIC_PUBLISH_METHOD, &method);
    append_frame(buf, AMQP_FRAME_HEADER, header,
        encode_header(header, sizeof(header), &properties, p->body.len));
    for (size_t done = 0; done < p->body.len;) {
        size_t len = p->body.len - done;

        if (len > frame_max - 8)
            len = frame_max - 8;
        append_frame(buf, AMQP_FRAME_BODY, p->body.data + done, len);
        done += len;
    }
}

/* --- sending --- */

static void
test_publish_is_what_rabbitmq_c_writes(void)
{
    static const uint32_t maxima[] = { 4096, 8192, 131072 };
    static const size_t sizes[] = { 0, 1, 200, 4087, 4088, 4089, 8176, 131064,
        131065, 300000 };
    static uint8_t body[300000];
    char longest[256];
    fm_buf ours = { 0 };
    fm_buf theirs = { 0 };

    for (size_t i = 0; i < sizeof(body); i++)
        body[i] = (uint8_t)(i * 31 + i / 256);
    memset(longest, 'k', 255);
    longest[255] = '\0';
    for (size_t m = 0; m < 3; m++) {
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            for (unsigned bits = 0; bits < 64; bits++) {
                fm_publication p = {
                    .exchange = slice((bits & 1) != 0 ? "nova" : ""),
                    .routing_key =
                        slice((bits & 1) != 0 ? "compute.host" : longest),
                    .mandatory = (bits & 2) != 0,
                    .expiration = slice((bits & 4) != 0 ? "60000" : ""),
                    .compression =
                        slice((bits & 8) != 0 ? "application/x-gzip" : ""),
                    .is_msgpack = (bits & 16) != 0,
                    .reads_msgpack = (bits & 32) != 0,
                    .body = { body, sizes[s] },
                };

                ours.len = theirs.len = 0;
                append_publish(&theirs, &p, maxima[m]);
                CHECK_INT(
                    fm_frame_put_publish(&ours, CHANNEL, maxima[m], &p), FM_OK);
                CHECK_BYTES(ours.data, ours.len, theirs.data, theirs.len);
                CHECK_INT(fm_frame_publish_size(maxima[m], &p), ours.len);
            }
        }
    }
    fm_buf_fini(&ours);
    fm_buf_fini(&theirs);
}

static void
test_who_reads_msgpack_is_told_by_type_or_header(void)
{
    static const char entry[] = "\x0fx-fastmsg-readsS\0\0\0\x0d"
                                "cbor, msgpack";
    static const char other[] = "\x0fx-fastmsg-readsI\0\0\0\1";
    static const char broken[] = "\x0fx-fastmsg-readsS\0\0\0\xff"
                                 "msgpack";
    fm_content content = { .content_type = slice("application/json") };

    CHECK(!fm_content_is_msgpack(&content));
    CHECK(!fm_content_reads_msgpack(&content));
    content.headers = (fm_slice){ (const uint8_t *)entry, sizeof(entry) - 1 };
    CHECK(!fm_content_is_msgpack(&content));
    CHECK(fm_content_reads_msgpack(&content));
    content.headers = (fm_slice){ (const uint8_t *)other, sizeof(other) - 1 };
    CHECK(!fm_content_reads_msgpack(&content));
    content.headers = (fm_slice){ (const uint8_t *)broken, sizeof(broken) - 1 };
    CHECK(!fm_content_reads_msgpack(&content));
    content.content_type = slice("application/x-fastmsg-msgpack");
    CHECK(fm_content_is_msgpack(&content));
    CHECK(fm_content_reads_msgpack(&content));
    content.content_type = slice("application/x-fastmsg-msgpacK");
    CHECK(!fm_content_is_msgpack(&content));
}

/* A call's content header as the stock driver was seen to send it. */
static void
test_publish_has_the_stock_drivers_properties(void)
{
    static const char expected[] = "\2\1\2\0\0\0\x31"
                                   "\0\x3C\0\0\0\0\0\0\0\0\0\2\xF9\0"
                                   "\x10"
                                   "application/json"
                                   "\5utf-8"
                                   "\0\0\0\0\2\0"
                                   "\5"
                                   "20000\xCE";
    fm_publication p = { .routing_key = slice("k"),
        .expiration = slice("20000"),
        .body = slice("{}") };
    fm_buf buf = { 0 };
    fm_frame frame;
    size_t method_len, header_len;

    CHECK_INT(fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &p), FM_OK);
    CHECK_INT(fm_frame_split(buf.data, buf.len, FRAME_MAX, &frame, &method_len),
        FM_OK);
    CHECK_INT(fm_frame_split(buf.data + method_len, buf.len - method_len,
                  FRAME_MAX, &frame, &header_len),
        FM_OK);
    CHECK_BYTES(
        buf.data + method_len, header_len, expected, sizeof(expected) - 1);
    fm_buf_fini(&buf);
}

static void
test_publish_appends_and_refuses_long_strings(void)
{
    char longest[257];
    fm_slice too_long = { (const uint8_t *)longest, 256 };
    fm_publication p = { .body = slice("x") };
    fm_publication bad;
    fm_buf buf = { 0 };
    size_t len;

    memset(longest, 'k', sizeof(longest));
    CHECK_INT(fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &p), FM_OK);
    len = buf.len;
    CHECK_INT(fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &p), FM_OK);
    CHECK_INT(buf.len, 2 * len);
    CHECK_BYTES(buf.data + len, len, buf.data, len);
    bad = p;
    bad.exchange = too_long;
    CHECK_INT(
        fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &bad), FM_TOO_LARGE);
    bad = p;
    bad.routing_key = too_long;
    CHECK_INT(
        fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &bad), FM_TOO_LARGE);
    bad = p;
    bad.expiration = too_long;
    CHECK_INT(
        fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &bad), FM_TOO_LARGE);
    bad = p;
    bad.compression = too_long;
    CHECK_INT(
        fm_frame_put_publish(&buf, CHANNEL, FRAME_MAX, &bad), FM_TOO_LARGE);
    CHECK_INT(buf.len, 2 * len);
    fm_buf_fini(&buf);
}

static void
test_settlements_are_what_rabbitmq_c_writes(void)
{
    static const uint64_t tags[] = { 0, 1, 300, UINT64_MAX };
    fm_buf ours = { 0 };
    fm_buf theirs = { 0 };

    for (size_t t = 0; t < 4; t++) {
        for (int bits = 0; bits < 4; bits++) {
            amqp_basic_ack_t ack = { tags[t], bits & 1 };
            amqp_basic_nack_t nack = { tags[t], bits & 1, bits >> 1 };
            amqp_basic_reject_t reject = { tags[t], bits >> 1 };

            ours.len = theirs.len = 0;
            append_method(&theirs, AMQP_BASIC_ACK_METHOD, &ack);
            append_method(&theirs, AMQP_BASIC_NACK_METHOD, &nack);
            append_method(&theirs, AMQP_BASIC_REJECT_METHOD, &reject);
            CHECK_INT(
                fm_frame_put_ack(&ours, CHANNEL, tags[t], (bits & 1) != 0),
                FM_OK);
            CHECK_INT(fm_frame_put_nack(&ours, CHANNEL, tags[t],
                          (bits & 1) != 0, (bits & 2) != 0),
                FM_OK);
            CHECK_INT(
                fm_frame_put_reject(&ours, CHANNEL, tags[t], (bits & 2) != 0),
                FM_OK);
            CHECK_BYTES(ours.data, ours.len, theirs.data, theirs.len);
        }
    }
    fm_buf_fini(&ours);
    fm_buf_fini(&theirs);
}

static void
test_heartbeat(void)
{
    static const uint8_t expected[] = { 8, 0, 0, 0, 0, 0, 0, 0xCE };
    fm_buf buf = { 0 };

    CHECK_INT(fm_frame_put_heartbeat(&buf), FM_OK);
    CHECK_BYTES(buf.data, buf.len, expected, sizeof(expected));
    fm_buf_fini(&buf);
}

/* --- splitting --- */

/* fm_frame_split() over a copy of exactly `len` bytes on the heap, so that
 * ASan sees a read of one byte too many. */
static fm_status
split(const uint8_t *data, size_t len, fm_frame *frame, size_t *used)
{
    uint8_t *copy = malloc(len == 0 ? 1 : len);
    fm_error error;
    fm_status status;

    CHECK(copy != NULL);
    memcpy(copy, data, len);
    status = fm_frame_split(copy, len, FRAME_MAX, frame, used);
    if (status == FM_BAD_FRAME) {
        CHECK_INT(fm_frame_explain(copy, len, FRAME_MAX, &error), FM_BAD_FRAME);
        CHECK(error.text[0] != '\0');
    }
    free(copy);
    return status;
}

static void
test_split_finds_each_frame_and_waits_for_the_rest(void)
{
    uint8_t body[FRAME_MAX - 8];
    static const uint8_t types[] = { FM_FRAME_METHOD, FM_FRAME_HEADER,
        FM_FRAME_BODY, FM_FRAME_HEARTBEAT };
    static const size_t sizes[] = { 0, 1, 300, FRAME_MAX - 8 };
    fm_buf buf = { 0 };
    fm_frame frame;
    size_t used;

    memset(body, 'b', sizeof(body));
    for (size_t t = 0; t < 4; t++) {
        for (size_t s = 0; s < 4; s++) {
            buf.len = 0;
            append_frame(&buf, types[t], body, sizes[s]);
            for (size_t cut = 0; cut < buf.len; cut++)
                CHECK_INT(split(buf.data, cut, &frame, &used), FM_AGAIN);
            append_frame(&buf, FM_FRAME_BODY, body, 5); /* the next one */
            CHECK_INT(
                fm_frame_split(buf.data, buf.len, FRAME_MAX, &frame, &used),
                FM_OK);
            CHECK_INT(used, sizes[s] + 8);
            CHECK_INT(frame.type, types[t]);
            CHECK_INT(frame.channel, CHANNEL);
            CHECK_BYTES(frame.payload, frame.len, body, sizes[s]);
        }
    }
    fm_buf_fini(&buf);
}

static void
test_split_refuses_frames_over_the_agreed_size_at_once(void)
{
    static const uint8_t over[] = { 3, 0, 1, 0, 0, 0x0F, 0xF9 };
    static const uint8_t most[] = { 3, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF };
    fm_frame frame;
    fm_error error;
    size_t used;

    CHECK_INT(split(over, 6, &frame, &used), FM_AGAIN);
    CHECK_INT(split(over, 7, &frame, &used), FM_BAD_FRAME);
    fm_frame_explain(over, 7, FRAME_MAX, &error);
    CHECK_HAS(error.text, "4089 bytes, but at most 4088");
    CHECK_INT(split(most, 7, &frame, &used), FM_BAD_FRAME);
}

static void
test_split_refuses_a_wrong_end_byte(void)
{
    fm_buf buf = { 0 };
    fm_frame frame;
    fm_error error;
    size_t used;

    append_frame(&buf, FM_FRAME_BODY, (const uint8_t *)"abc", 3);
    buf.data[buf.len - 1] = 0xCD;
    CHECK_INT(split(buf.data, buf.len, &frame, &used), FM_BAD_FRAME);
    fm_frame_explain(buf.data, buf.len, FRAME_MAX, &error);
    CHECK_HAS(error.text, "without end byte");
    fm_buf_fini(&buf);
}

static void
test_split_names_what_else_the_peer_speaks(void)
{
    static const struct {
        const char *said;
        size_t len;
        const char *guess;
    } peers[] = { { "AMQP\0\0\x09\1", 8, "another version" },
        { "HTTP/1.1 400 Bad Request\r\n", 26, "speaks HTTP" },
        { "\x15\3\1\0\2\2\x46", 7, "speaks TLS" },
        { "SSH-2.0-OpenSSH", 15, "no frame starts with byte 83" },
        { "\4", 1, "no frame starts with byte 4" } };
    fm_frame frame;
    fm_error error;
    size_t used;

    for (size_t i = 0; i < sizeof(peers) / sizeof(peers[0]); i++) {
        const uint8_t *said = (const uint8_t *)peers[i].said;

        CHECK_INT(split(said, peers[i].len, &frame, &used), FM_BAD_FRAME);
        fm_frame_explain(said, peers[i].len, FRAME_MAX, &error);
        CHECK_INT(error.status, FM_BAD_FRAME);
        CHECK_HAS(error.text, "not an AMQP 0-9-1 broker");
        CHECK_HAS(error.text, peers[i].guess);
    }
}

/* --- reading --- */

/* A copy of exactly its size on the heap, and the parser of the test: it takes
 * `len` bytes and refuses each shorter piece. */
static void
check_parser(const uint8_t *payload, size_t len,
    fm_status (*parse)(const uint8_t *payload, size_t len))
{
    for (size_t cut = 0; cut <= len; cut++) {
        uint8_t *part = malloc(cut == 0 ? 1 : cut);

        CHECK(part != NULL);
        memcpy(part, payload, cut);
        CHECK_INT(parse(part, cut), cut == len ? FM_OK : FM_BAD_FRAME);
        free(part);
    }
    CHECK_INT(parse(payload, len), FM_OK); /* what the test looks at */
}

static fm_deliver deliver;

static fm_status
parse_deliver(const uint8_t *payload, size_t len)
{
    return fm_frame_parse_deliver(payload, len, &deliver);
}

static void
check_slice(fm_slice found, const char *expected)
{
    CHECK_BYTES(found.data, found.len, expected, strlen(expected));
}

static void
test_deliver(void)
{
    amqp_basic_deliver_t method = { .consumer_tag = amqp_cstring_bytes("12"),
        .delivery_tag = 0x0102030405060708,
        .redelivered = 1,
        .exchange = amqp_cstring_bytes("nova"),
        .routing_key = amqp_cstring_bytes("compute") };
    fm_buf buf = { 0 };

    append_method(&buf, AMQP_BASIC_DELIVER_METHOD, &method);
    check_parser(buf.data + 7, buf.len - 8, parse_deliver);
    check_slice(deliver.consumer_tag, "12");
    CHECK_INT(deliver.delivery_tag, 0x0102030405060708);
    CHECK(deliver.redelivered);
    check_slice(deliver.exchange, "nova");
    check_slice(deliver.routing_key, "compute");
    buf.data[7 + 3] ^= 1; /* another method */
    CHECK_INT(parse_deliver(buf.data + 7, buf.len - 8), FM_BAD_FRAME);
    fm_buf_fini(&buf);
}

static fm_content content;

static fm_status
parse_header(const uint8_t *payload, size_t len)
{
    return fm_frame_parse_header(payload, len, &content);
}

/* Every combination of the 14 properties: each of those that we read is found
 * whatever is around it. */
static void
test_header_with_any_properties(void)
{
    amqp_table_entry_t entry = { .key = amqp_cstring_bytes("compression"),
        .value = { .kind = AMQP_FIELD_KIND_UTF8,
            .value = { .bytes = amqp_cstring_bytes("application/x-gzip") } } };
    amqp_basic_properties_t properties = {
        .content_type = amqp_cstring_bytes("application/json"),
        .content_encoding = amqp_cstring_bytes("utf-8"),
        .headers = { 1, &entry },
        .delivery_mode = 2,
        .priority = 9,
        .correlation_id = amqp_cstring_bytes("correlation"),
        .reply_to = amqp_cstring_bytes("reply"),
        .expiration = amqp_cstring_bytes("60000"),
        .message_id = amqp_cstring_bytes("message"),
        .timestamp = 1,
        .type = amqp_cstring_bytes("type"),
        .user_id = amqp_cstring_bytes("user"),
        .app_id = amqp_cstring_bytes("app"),
        .cluster_id = amqp_cstring_bytes("cluster"),
    };

    for (unsigned flags = 0; flags < 1U << 14; flags++) {
        uint8_t payload[512];
        size_t len;
        fm_slice text;

        properties._flags = flags << 2;
        len = encode_header(
            payload, sizeof(payload), &properties, 0x0102030405060708);
        CHECK_INT(parse_header(payload, len), FM_OK);
        CHECK_INT(content.body_size, 0x0102030405060708);
        CHECK_INT(content.has_content_type, (flags >> 13) & 1);
        check_slice(content.content_type,
            content.has_content_type ? "application/json" : "");
        CHECK_INT(content.has_content_encoding, (flags >> 12) & 1);
        check_slice(content.content_encoding,
            content.has_content_encoding ? "utf-8" : "");
        CHECK_INT(content.has_headers, (flags >> 11) & 1);
        if (content.has_headers) {
            CHECK_INT(
                fm_frame_find_header(content.headers, "compression", &text),
                FM_OK);
            check_slice(text, "application/x-gzip");
        }
        CHECK_INT(content.has_expiration, (flags >> 6) & 1);
        check_slice(content.expiration, content.has_expiration ? "60000" : "");
    }
}

static void
test_header_in_pieces_and_strange_ones(void)
{
    amqp_basic_properties_t properties = { ._flags =
                                               AMQP_BASIC_CONTENT_TYPE_FLAG
            | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG
            | AMQP_BASIC_PRIORITY_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG
            | AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_EXPIRATION_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .correlation_id = amqp_cstring_bytes("correlation"),
        .reply_to = amqp_cstring_bytes("reply"),
        .expiration = amqp_cstring_bytes("1") };
    uint8_t payload[512];
    size_t len = encode_header(payload, sizeof(payload), &properties, 1);

    check_parser(payload, len, parse_header);
    payload[1] = 50; /* class queue */
    CHECK_INT(parse_header(payload, len), FM_BAD_FRAME);
    payload[1] = 60;
    payload[13] |= 1; /* a second word of flags */
    CHECK_INT(parse_header(payload, len), FM_BAD_FRAME);
}

static fm_confirm confirm;

static fm_status
parse_ack(const uint8_t *payload, size_t len)
{
    return fm_frame_parse_ack(payload, len, &confirm);
}

static void
test_ack_and_nack(void)
{
    fm_buf buf = { 0 };

    CHECK_INT(fm_frame_put_ack(&buf, CHANNEL, 77, true), FM_OK);
    check_parser(buf.data + 7, buf.len - 8, parse_ack);
    CHECK_INT(confirm.tag, 77);
    CHECK(confirm.multiple);
    buf.len = 0;
    CHECK_INT(fm_frame_put_nack(&buf, CHANNEL, 78, false, true), FM_OK);
    check_parser(buf.data + 7, buf.len - 8, parse_ack);
    CHECK_INT(confirm.tag, 78);
    CHECK(!confirm.multiple);
    buf.len = 0;
    CHECK_INT(fm_frame_put_reject(&buf, CHANNEL, 79, true), FM_OK);
    CHECK_INT(parse_ack(buf.data + 7, buf.len - 8), FM_BAD_FRAME);
    fm_buf_fini(&buf);
}

/* --- tables --- */

static amqp_table_entry_t
entry_of(const char *key, uint8_t kind)
{
    amqp_table_entry_t entry = { .key = amqp_cstring_bytes(key) };

    entry.value.kind = kind;
    return entry;
}

/* One entry of each kind that RabbitMQ knows; *len is the table's. */
static uint8_t *
every_kind(size_t *len)
{
    static uint8_t room[1024];
    amqp_table_entry_t inner = entry_of("x-stream-offset", 'l');
    amqp_field_value_t item = { .kind = 'I', .value = { .i32 = 5 } };
    amqp_table_entry_t entries[] = { entry_of("t", 't'), entry_of("b", 'b'),
        entry_of("B", 'B'), entry_of("s", 's'), entry_of("u", 'u'),
        entry_of("I", 'I'), entry_of("i", 'i'), entry_of("l", 'l'),
        entry_of("L", 'L'), entry_of("f", 'f'), entry_of("d", 'd'),
        entry_of("D", 'D'), entry_of("S", 'S'), entry_of("x", 'x'),
        entry_of("A", 'A'), entry_of("T", 'T'), entry_of("F", 'F'),
        entry_of("V", 'V'), entry_of("x-stream-offset", 'l') };
    enum { COUNT = sizeof(entries) / sizeof(entries[0]) };
    amqp_table_t table = { COUNT, entries };
    size_t used = 0;

    inner.value.value.i64 = -1;
    entries[0].value.value.boolean = 1;
    entries[1].value.value.i8 = -8;
    entries[2].value.value.u8 = 200;
    entries[3].value.value.i16 = -1600;
    entries[4].value.value.u16 = 65000;
    entries[5].value.value.i32 = INT32_MIN;
    entries[6].value.value.u32 = UINT32_MAX;
    entries[7].value.value.i64 = INT64_MIN;
    entries[8].value.value.u64 = UINT64_MAX;
    entries[9].value.value.f32 = 1.5F;
    entries[10].value.value.f64 = 2.5;
    entries[11].value.value.decimal = (amqp_decimal_t){ 2, 314 };
    entries[12].value.value.bytes = amqp_cstring_bytes("text");
    entries[13].value.value.bytes = amqp_cstring_bytes("bytes");
    entries[14].value.value.array = (amqp_array_t){ 1, &item };
    entries[15].value.value.u64 = 1700000000;
    entries[16].value.value.table = (amqp_table_t){ 1, &inner };
    entries[18].value.value.i64 = 1234567890123;
    CHECK_INT(
        amqp_encode_table((amqp_bytes_t){ sizeof(room), room }, &table, &used),
        0);
    *len = used - 4;
    return room + 4;
}

static int64_t
integer_at(fm_slice table, const char *name)
{
    int64_t value = 4711;

    CHECK_INT(fm_frame_find_header_int(table, name, &value), FM_OK);
    return value;
}

static void
test_headers_are_found_among_every_kind(void)
{
    size_t len;
    uint8_t *data = every_kind(&len);
    fm_slice table = { data, len };
    fm_slice text = { 0 };
    fm_field field;
    fm_cursor rest;
    int64_t integer = 4711;
    bool flag = false;

    CHECK_INT(integer_at(table, "b"), -8);
    CHECK_INT(integer_at(table, "B"), 200);
    CHECK_INT(integer_at(table, "s"), -1600);
    CHECK_INT(integer_at(table, "u"), 65000);
    CHECK_INT(integer_at(table, "I"), INT32_MIN);
    CHECK_INT(integer_at(table, "i"), UINT32_MAX);
    CHECK_INT(integer_at(table, "l"), INT64_MIN);
    CHECK_INT(integer_at(table, "T"), 1700000000);
    /* The one in the nested table is not looked at. */
    CHECK_INT(integer_at(table, "x-stream-offset"), 1234567890123);
    CHECK_INT(fm_frame_find_header_int(table, "L", &integer), FM_NOT_FOUND);
    CHECK_INT(fm_frame_find_header_int(table, "S", &integer), FM_NOT_FOUND);
    CHECK_INT(
        fm_frame_find_header_int(table, "absent", &integer), FM_NOT_FOUND);
    CHECK_INT(integer, 4711);
    CHECK_INT(fm_frame_find_header(table, "S", &text), FM_OK);
    check_slice(text, "text");
    CHECK_INT(fm_frame_find_header(table, "x", &text), FM_OK);
    check_slice(text, "bytes");
    CHECK_INT(fm_frame_find_header(table, "I", &text), FM_NOT_FOUND);
    CHECK_INT(fm_frame_find_header(table, "", &text), FM_NOT_FOUND);
    CHECK_INT(fm_frame_find_header((fm_slice){ 0 }, "x", &text), FM_NOT_FOUND);
    CHECK_INT(fm_field_find(table, "t", &field), FM_OK);
    CHECK(fm_field_bool(&field, &flag) && flag);
    CHECK(!fm_field_text(&field, &text));

    CHECK_INT(fm_field_find(table, "A", &field), FM_OK);
    rest = fm_cursor_over(field.value.data, field.value.len);
    CHECK_INT(fm_field_next_item(&rest, &field), FM_OK);
    CHECK(fm_field_integer(&field, &integer));
    CHECK_INT(integer, 5);
    CHECK_INT(fm_field_next_item(&rest, &field), FM_NOT_FOUND);
}

static void
test_a_cut_table_is_malformed(void)
{
    size_t len;
    uint8_t *data = every_kind(&len);
    fm_slice text;

    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *part = malloc(cut == 0 ? 1 : cut);
        fm_cursor rest;
        fm_field field;
        size_t seen = 0;
        fm_status status;

        CHECK(part != NULL);
        memcpy(part, data, cut);
        rest = fm_cursor_over(part, cut);
        while ((status = fm_field_next(&rest, &field)) == FM_OK)
            seen += 1 + field.name.len + 1 + field.value.len;
        /* It ends well only where an entry ends. */
        CHECK(status
            == (fm_cursor_left(&rest) == 0 ? FM_NOT_FOUND : FM_BAD_FRAME));
        CHECK(seen <= cut);
        status = fm_frame_find_header((fm_slice){ part, cut }, "none", &text);
        CHECK(status != FM_OK);
        free(part);
    }
    CHECK_INT(fm_frame_find_header(
                  (fm_slice){ (const uint8_t *)"\1kZ", 3 }, "x", &text),
        FM_BAD_FRAME);
}

static void
test_printing_cuts_and_replaces_control_characters(void)
{
    char text[8];

    fm_field_print(text, sizeof(text), slice("a\nb\x7F\xC3\xA9"));
    CHECK_TEXT(text, "a?b?\xC3\xA9");
    fm_field_print(text, sizeof(text), slice("1234567890"));
    CHECK_TEXT(text, "1234567");
    fm_field_print(text, sizeof(text), slice("1234567"));
    CHECK_TEXT(text, "1234567");
    fm_field_print(text, sizeof(text), (fm_slice){ 0 });
    CHECK_TEXT(text, "");
}

/* --- hostile bytes --- */

static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13; /* xorshift64 */
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void
parse_all(const uint8_t *data, size_t len)
{
    fm_start start;
    fm_tune tune;
    fm_close closed;
    fm_declare_ok declared;
    fm_returned returned;
    fm_slice text;
    fm_field field;
    fm_cursor rest;
    int64_t integer;
    bool flag;
    uint32_t id;
    char printed[64];

    (void)!parse_deliver(data, len);
    (void)!parse_ack(data, len);
    if (parse_header(data, len) == FM_OK) {
        (void)!fm_frame_find_header(content.headers, "compression", &text);
        (void)!fm_frame_find_header_int(content.headers, "offset", &integer);
    }
    (void)!fm_amqp_method_id(data, len, &id);
    (void)!fm_amqp_get_start(data, len, &start);
    (void)!fm_amqp_get_tune(data, len, &tune);
    if (fm_amqp_get_close(data, len, &closed) == FM_OK)
        fm_amqp_print_close(printed, sizeof(printed), &closed);
    (void)!fm_amqp_get_declare_ok(data, len, &declared);
    (void)!fm_amqp_get_return(data, len, &returned);
    (void)!fm_amqp_get_consumer_tag(data, len, &text, &flag);
    (void)!fm_amqp_get_blocked(data, len, &text);
    (void)!fm_amqp_get_flow(data, len, &flag);
    rest = fm_cursor_over(data, len);
    while (fm_field_next(&rest, &field) == FM_OK) {
        (void)!fm_field_integer(&field, &integer);
        (void)!fm_field_text(&field, &text);
        (void)!fm_field_bool(&field, &flag);
    }
    rest = fm_cursor_over(data, len);
    while (fm_field_next_item(&rest, &field) == FM_OK)
        (void)!fm_field_integer(&field, &integer);
}

/* 300,000 mutants of good frames: no read beyond (ASan), no undefined
 * arithmetic (UBSan), no endless loop. */
static void
test_mutated_frames_do_no_harm(void)
{
    uint64_t state = 0x9E3779B97F4A7C15;
    amqp_basic_deliver_t method = { .consumer_tag = amqp_cstring_bytes("12"),
        .exchange = amqp_cstring_bytes("nova"),
        .routing_key = amqp_cstring_bytes("compute") };
    fm_publication p = { .routing_key = slice("k"),
        .expiration = slice("20000"),
        .compression = slice("application/x-gzip"),
        .body = slice("{}") };
    fm_buf seed = { 0 };
    size_t table_len;
    uint8_t *table = every_kind(&table_len);

    append_method(&seed, AMQP_BASIC_DELIVER_METHOD, &method);
    CHECK_INT(fm_frame_put_publish(&seed, CHANNEL, FRAME_MAX, &p), FM_OK);
    append_frame(&seed, FM_FRAME_BODY, table, table_len);
    for (int round = 0; round < 300000; round++) {
        size_t start = (size_t)(next_random(&state) % seed.len);
        size_t len = (size_t)(next_random(&state) % (seed.len - start)) + 1;
        uint8_t *mutant = malloc(len);
        fm_frame frame;
        size_t used;

        CHECK(mutant != NULL);
        if ((round & 1) != 0)
            start = 0;
        memcpy(mutant, seed.data + start, len);
        for (uint64_t n = next_random(&state) % 4; n > 0; n--)
            mutant[next_random(&state) % len] = (uint8_t)next_random(&state);
        for (size_t done = 0; done < len; done += used) {
            if (fm_frame_split(
                    mutant + done, len - done, FRAME_MAX, &frame, &used)
                != FM_OK)
                break;
            parse_all(frame.payload, frame.len);
        }
        parse_all(mutant, len);
        free(mutant);
    }
    fm_buf_fini(&seed);
}

int
main(void)
{
    RUN(test_publish_is_what_rabbitmq_c_writes);
    RUN(test_who_reads_msgpack_is_told_by_type_or_header);
    RUN(test_publish_has_the_stock_drivers_properties);
    RUN(test_publish_appends_and_refuses_long_strings);
    RUN(test_settlements_are_what_rabbitmq_c_writes);
    RUN(test_heartbeat);
    RUN(test_split_finds_each_frame_and_waits_for_the_rest);
    RUN(test_split_refuses_frames_over_the_agreed_size_at_once);
    RUN(test_split_refuses_a_wrong_end_byte);
    RUN(test_split_names_what_else_the_peer_speaks);
    RUN(test_deliver);
    RUN(test_header_with_any_properties);
    RUN(test_header_in_pieces_and_strange_ones);
    RUN(test_ack_and_nack);
    RUN(test_headers_are_found_among_every_kind);
    RUN(test_a_cut_table_is_malformed);
    RUN(test_printing_cuts_and_replaces_control_characters);
    RUN(test_mutated_frames_do_no_harm);
    return 0;
}
