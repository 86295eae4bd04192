/* Methods to bytes and back, against rabbitmq-c's own codec. */
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

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>

enum { CHANNEL = 7 };

static amqp_pool_t pool;

/* --- what we write, read by rabbitmq-c --- */

/* The one method in `buf`, checked and decoded; the buffer is emptied. */
static void *
decode(fm_buf *buf, uint16_t channel, uint32_t id)
{
    fm_frame frame;
    size_t used;
    void *decoded = NULL;
    amqp_bytes_t fields;

    CHECK_INT(
        fm_frame_split(buf->data, buf->len, FM_FRAME_MAX_LEAST, &frame, &used),
        FM_OK);
    CHECK_INT(used, buf->len);
    CHECK_INT(frame.type, FM_FRAME_METHOD);
    CHECK_INT(frame.channel, channel);
    CHECK(frame.len >= 4);
    CHECK_INT(fm_load_u32(frame.payload), id);
    fields.len = frame.len - 4;
    fields.bytes = amqp_pool_alloc(&pool, fields.len + 1);
    memcpy(fields.bytes, frame.payload + 4, fields.len);
    CHECK_INT(amqp_decode_method(id, &pool, fields, &decoded), 0);
    buf->len = 0;
    return decoded;
}

static void
check_field(amqp_bytes_t found, const char *expected)
{
    CHECK_BYTES(found.bytes, found.len, expected, strlen(expected));
}

static amqp_field_value_t *
entry(amqp_table_t *table, const char *name)
{
    for (int i = 0; i < table->num_entries; i++) {
        amqp_bytes_t key = table->entries[i].key;

        if (key.len == strlen(name) && memcmp(key.bytes, name, key.len) == 0)
            return &table->entries[i].value;
    }
    CHECK_FAIL("no entry %s", name);
    return NULL;
}

static void
test_start_ok_announces_who_we_are_and_what_we_can(void)
{
    fm_introduction who = { .mechanism = FM_MECHANISM_PLAIN,
        .user = "nova",
        .password = "s3cret",
        .connection_name = "nova-compute:42:uuid",
        .product_version = "1.2.3" };
    const char *capabilities[] = { "authentication_failure_close",
        "connection.blocked", "consumer_cancel_notify", "basic.nack",
        "publisher_confirms" };
    amqp_connection_start_ok_t *method;
    amqp_field_value_t *value;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_OK);
    method = decode(&buf, 0, AMQP_CONNECTION_START_OK_METHOD);
    check_field(method->mechanism, "PLAIN");
    check_field(method->locale, "en_US");
    CHECK_BYTES(
        method->response.bytes, method->response.len, "\0nova\0s3cret", 12);
    value = entry(&method->client_properties, "product");
    CHECK_INT(value->kind, 'S');
    check_field(value->value.bytes, "oslo-fastmsg");
    value = entry(&method->client_properties, "product_version");
    check_field(value->value.bytes, "1.2.3");
    value = entry(&method->client_properties, "connection_name");
    CHECK_INT(value->kind, 'S');
    check_field(value->value.bytes, "nova-compute:42:uuid");
    value = entry(&method->client_properties, "capabilities");
    CHECK_INT(value->kind, 'F');
    for (size_t i = 0; i < 5; i++) {
        amqp_field_value_t *flag = entry(&value->value.table, capabilities[i]);

        CHECK_INT(flag->kind, 't');
        CHECK(flag->value.boolean);
    }
    fm_buf_fini(&buf);
}

static void
test_amqplain_sends_a_table_without_its_length(void)
{
    static const char expected[] = "\5LOGINS\0\0\0\4nova"
                                   "\10PASSWORDS\0\0\0\6s3cret";
    fm_introduction who = {
        .mechanism = FM_MECHANISM_AMQPLAIN, .user = "nova", .password = "s3cret"
    };
    amqp_connection_start_ok_t *method;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_OK);
    method = decode(&buf, 0, AMQP_CONNECTION_START_OK_METHOD);
    check_field(method->mechanism, "AMQPLAIN");
    CHECK_BYTES(method->response.bytes, method->response.len, expected,
        sizeof(expected) - 1);
    CHECK_INT(method->client_properties.num_entries, 3); /* nothing is NULL */
    fm_buf_fini(&buf);
}

static void
test_external_needs_no_secrets(void)
{
    fm_introduction who = { .mechanism = FM_MECHANISM_EXTERNAL };
    amqp_connection_start_ok_t *method;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_OK);
    method = decode(&buf, 0, AMQP_CONNECTION_START_OK_METHOD);
    check_field(method->mechanism, "EXTERNAL");
    check_field(method->response, "");
    fm_buf_fini(&buf);
}

static void
test_endless_credentials_are_refused(void)
{
    char endless[5000];
    fm_introduction who = { .user = endless, .password = "x" };
    fm_buf buf = { 0 };

    memset(endless, 'u', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = '\0';
    for (int i = 0; i < 2; i++) {
        who.mechanism = i == 0 ? FM_MECHANISM_PLAIN : FM_MECHANISM_AMQPLAIN;
        who.user = endless;
        who.password = "x";
        CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_TOO_LARGE);
        who.user = "x";
        who.password = endless;
        CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_TOO_LARGE);
        who.password = "x";
        who.connection_name = endless;
        CHECK_INT(fm_amqp_put_start_ok(&buf, &who), FM_TOO_LARGE);
        who.connection_name = NULL;
    }
    CHECK_INT(buf.len, 0);
    fm_buf_fini(&buf);
}

static void
test_connection_methods(void)
{
    amqp_connection_tune_ok_t *tune;
    amqp_connection_open_t *open;
    amqp_connection_close_t *close;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_tune_ok(&buf, 2047, 131072, 60), FM_OK);
    tune = decode(&buf, 0, AMQP_CONNECTION_TUNE_OK_METHOD);
    CHECK_INT(tune->channel_max, 2047);
    CHECK_INT(tune->frame_max, 131072);
    CHECK_INT(tune->heartbeat, 60);
    CHECK_INT(fm_amqp_put_connection_open(&buf, "/cell1"), FM_OK);
    open = decode(&buf, 0, AMQP_CONNECTION_OPEN_METHOD);
    check_field(open->virtual_host, "/cell1");
    CHECK_INT(fm_amqp_put_connection_close(&buf, 200, "bye"), FM_OK);
    close = decode(&buf, 0, AMQP_CONNECTION_CLOSE_METHOD);
    CHECK_INT(close->reply_code, 200);
    check_field(close->reply_text, "bye");
    CHECK_INT(fm_amqp_put_connection_close_ok(&buf), FM_OK);
    (void)decode(&buf, 0, AMQP_CONNECTION_CLOSE_OK_METHOD);
    fm_buf_fini(&buf);
}

static void
test_channel_methods(void)
{
    amqp_channel_close_t *close;
    amqp_channel_flow_ok_t *flow;
    amqp_basic_qos_t *qos;
    amqp_confirm_select_t *select;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_channel_open(&buf, CHANNEL), FM_OK);
    (void)decode(&buf, CHANNEL, AMQP_CHANNEL_OPEN_METHOD);
    CHECK_INT(fm_amqp_put_channel_close(&buf, CHANNEL, 0, ""), FM_OK);
    close = decode(&buf, CHANNEL, AMQP_CHANNEL_CLOSE_METHOD);
    CHECK_INT(close->reply_code, 0);
    CHECK_INT(fm_amqp_put_channel_close_ok(&buf, CHANNEL), FM_OK);
    (void)decode(&buf, CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD);
    CHECK_INT(fm_amqp_put_channel_flow_ok(&buf, CHANNEL, true), FM_OK);
    flow = decode(&buf, CHANNEL, AMQP_CHANNEL_FLOW_OK_METHOD);
    CHECK(flow->active);
    CHECK_INT(fm_amqp_put_basic_qos(&buf, CHANNEL, 64), FM_OK);
    qos = decode(&buf, CHANNEL, AMQP_BASIC_QOS_METHOD);
    CHECK_INT(qos->prefetch_size, 0);
    CHECK_INT(qos->prefetch_count, 64);
    CHECK(!qos->global);
    CHECK_INT(fm_amqp_put_confirm_select(&buf, CHANNEL), FM_OK);
    select = decode(&buf, CHANNEL, AMQP_CONFIRM_SELECT_METHOD);
    CHECK(!select->nowait);
    fm_buf_fini(&buf);
}

static void
test_exchange_declare(void)
{
    fm_exchange fanout = {
        .name = "topic_fanout", .type = "fanout", .auto_delete = true
    };
    fm_exchange topic = { .name = "nova", .type = "topic", .durable = true };
    amqp_exchange_declare_t *method;
    fm_buf buf = { 0 };

    CHECK_INT(
        fm_amqp_put_exchange_declare(&buf, CHANNEL, &fanout, false), FM_OK);
    method = decode(&buf, CHANNEL, AMQP_EXCHANGE_DECLARE_METHOD);
    check_field(method->exchange, "topic_fanout");
    check_field(method->type, "fanout");
    CHECK(method->auto_delete && !method->durable && !method->passive);
    CHECK(!method->internal && !method->nowait);
    CHECK_INT(method->arguments.num_entries, 0);
    CHECK_INT(fm_amqp_put_exchange_declare(&buf, CHANNEL, &topic, true), FM_OK);
    method = decode(&buf, CHANNEL, AMQP_EXCHANGE_DECLARE_METHOD);
    CHECK(!method->auto_delete && method->durable && method->passive);
    fm_buf_fini(&buf);
}

static void
test_queue_declare_and_its_arguments(void)
{
    fm_arg args[] = {
        { .name = "x-expires", .kind = FM_ARG_INTEGER, .integer = 1800000 },
        { .name = "x-wide", .kind = FM_ARG_INTEGER, .integer = 5000000000 },
        { .name = "x-low", .kind = FM_ARG_INTEGER, .integer = INT32_MIN },
        { .name = "x-lower",
            .kind = FM_ARG_INTEGER,
            .integer = (int64_t)INT32_MIN - 1 },
        { .name = "x-queue-type", .kind = FM_ARG_TEXT, .text = "quorum" },
        { .name = "x-flag", .kind = FM_ARG_BOOL, .flag = true },
    };
    fm_queue queue = { .name = "reply_1",
        .durable = true,
        .arguments = { .args = args, .count = 6 } };
    amqp_queue_declare_t *method;
    amqp_field_value_t *value;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_queue_declare(&buf, CHANNEL, &queue, false), FM_OK);
    method = decode(&buf, CHANNEL, AMQP_QUEUE_DECLARE_METHOD);
    check_field(method->queue, "reply_1");
    CHECK(method->durable && !method->auto_delete && !method->exclusive);
    CHECK(!method->passive && !method->nowait);
    CHECK_INT(method->arguments.num_entries, 6);
    value = entry(&method->arguments, "x-expires");
    CHECK_INT(value->kind, 'I');
    CHECK_INT(value->value.i32, 1800000);
    value = entry(&method->arguments, "x-wide");
    CHECK_INT(value->kind, 'l');
    CHECK_INT(value->value.i64, 5000000000);
    value = entry(&method->arguments, "x-low");
    CHECK_INT(value->kind, 'I');
    CHECK_INT(value->value.i32, INT32_MIN);
    value = entry(&method->arguments, "x-lower");
    CHECK_INT(value->kind, 'l');
    CHECK_INT(value->value.i64, (int64_t)INT32_MIN - 1);
    value = entry(&method->arguments, "x-queue-type");
    CHECK_INT(value->kind, 'S');
    check_field(value->value.bytes, "quorum");
    value = entry(&method->arguments, "x-flag");
    CHECK_INT(value->kind, 't');
    CHECK(value->value.boolean);

    queue = (fm_queue){ .name = "q", .auto_delete = true, .exclusive = true };
    CHECK_INT(fm_amqp_put_queue_declare(&buf, CHANNEL, &queue, true), FM_OK);
    method = decode(&buf, CHANNEL, AMQP_QUEUE_DECLARE_METHOD);
    CHECK(!method->durable && method->auto_delete && method->exclusive);
    CHECK(method->passive);
    CHECK_INT(method->arguments.num_entries, 0);
    fm_buf_fini(&buf);
}

static void
test_queue_bind_and_delete(void)
{
    amqp_queue_bind_t *bind;
    amqp_queue_delete_t *delete;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_queue_bind(&buf, CHANNEL, "q", "e", "k.#"), FM_OK);
    bind = decode(&buf, CHANNEL, AMQP_QUEUE_BIND_METHOD);
    check_field(bind->queue, "q");
    check_field(bind->exchange, "e");
    check_field(bind->routing_key, "k.#");
    CHECK(!bind->nowait);
    CHECK_INT(bind->arguments.num_entries, 0);
    CHECK_INT(fm_amqp_put_queue_delete(&buf, CHANNEL, "q", true, false), FM_OK);
    delete = decode(&buf, CHANNEL, AMQP_QUEUE_DELETE_METHOD);
    check_field(delete->queue, "q");
    CHECK(delete->if_unused && !delete->if_empty && !delete->nowait);
    fm_buf_fini(&buf);
}

static void
test_consume_and_cancel(void)
{
    fm_arg arg = {
        .name = "x-stream-offset", .kind = FM_ARG_TEXT, .text = "last"
    };
    fm_table arguments = { .args = &arg, .count = 1 };
    amqp_basic_consume_t *consume;
    amqp_basic_cancel_t *cancel;
    amqp_basic_cancel_ok_t *cancel_ok;
    fm_buf buf = { 0 };

    CHECK_INT(fm_amqp_put_basic_consume(&buf, CHANNEL, "q", "1", NULL), FM_OK);
    consume = decode(&buf, CHANNEL, AMQP_BASIC_CONSUME_METHOD);
    check_field(consume->queue, "q");
    check_field(consume->consumer_tag, "1");
    CHECK(!consume->no_local && !consume->no_ack && !consume->exclusive);
    CHECK(!consume->nowait);
    CHECK_INT(consume->arguments.num_entries, 0);
    CHECK_INT(
        fm_amqp_put_basic_consume(&buf, CHANNEL, "q", "1", &arguments), FM_OK);
    consume = decode(&buf, CHANNEL, AMQP_BASIC_CONSUME_METHOD);
    check_field(
        entry(&consume->arguments, "x-stream-offset")->value.bytes, "last");
    CHECK_INT(fm_amqp_put_basic_cancel(&buf, CHANNEL, "1"), FM_OK);
    cancel = decode(&buf, CHANNEL, AMQP_BASIC_CANCEL_METHOD);
    check_field(cancel->consumer_tag, "1");
    CHECK(!cancel->nowait);
    CHECK_INT(fm_amqp_put_basic_cancel_ok(
                  &buf, CHANNEL, (fm_slice){ (const uint8_t *)"1", 1 }),
        FM_OK);
    cancel_ok = decode(&buf, CHANNEL, AMQP_BASIC_CANCEL_OK_METHOD);
    check_field(cancel_ok->consumer_tag, "1");
    fm_buf_fini(&buf);
}

static void
test_methods_are_appended(void)
{
    fm_buf buf = { 0 };
    size_t first;

    CHECK_INT(fm_amqp_put_channel_open(&buf, 1), FM_OK);
    first = buf.len;
    CHECK_INT(fm_amqp_put_channel_open(&buf, 2), FM_OK);
    CHECK_INT(buf.len, 2 * first);
    CHECK_INT(buf.data[2], 1);
    CHECK_INT(buf.data[first + 2], 2);
    fm_buf_fini(&buf);
}

static void
test_what_amqp_has_no_room_for_is_refused(void)
{
    char name[257];
    char text[4096];
    fm_arg args[FM_TABLE_MAX + 1];
    fm_queue queue = { .name = name };
    amqp_queue_declare_t *method;
    fm_buf buf = { 0 };

    memset(name, 'n', sizeof(name));
    name[256] = '\0';
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_TOO_LARGE);
    CHECK_INT(fm_amqp_put_connection_open(&buf, name), FM_TOO_LARGE);
    CHECK_INT(fm_amqp_put_basic_cancel(&buf, 1, name), FM_TOO_LARGE);
    CHECK_INT(buf.len, 0);
    name[255] = '\0';
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_OK);
    method = decode(&buf, 1, AMQP_QUEUE_DECLARE_METHOD);
    check_field(method->queue, name);

    queue.name = "q";
    for (size_t i = 0; i <= FM_TABLE_MAX; i++)
        args[i] = (fm_arg){ .name = "a", .kind = FM_ARG_BOOL };
    queue.arguments = (fm_table){ args, FM_TABLE_MAX + 1 };
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_TOO_LARGE);
    queue.arguments.count = FM_TABLE_MAX;
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_OK);
    buf.len = 0;

    memset(name, 'n', sizeof(name));
    name[256] = '\0';
    args[0].name = name;
    queue.arguments.count = 1;
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_TOO_LARGE);
    memset(text, 't', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    args[0] = (fm_arg){ .name = "a", .kind = FM_ARG_TEXT, .text = text };
    CHECK_INT(fm_amqp_put_queue_declare(&buf, 1, &queue, false), FM_TOO_LARGE);
    CHECK_INT(buf.len, 0);
    fm_buf_fini(&buf);
}

/* --- what we read, written by rabbitmq-c --- */

/* A payload of exactly its size on the heap, so that ASan sees one byte too
 * many. Freed by the caller. */
static uint8_t *
encode(uint32_t id, void *fields, size_t *len)
{
    uint8_t room[4096];
    uint8_t *payload;
    int fields_len =
        amqp_encode_method(id, fields, (amqp_bytes_t){ sizeof(room), room });

    CHECK(fields_len >= 0);
    *len = 4 + (size_t)fields_len;
    payload = malloc(*len);
    CHECK(payload != NULL);
    fm_store_u32(payload, id);
    memcpy(payload + 4, room, (size_t)fields_len);
    return payload;
}

static void
check_slice(fm_slice found, const char *expected)
{
    CHECK_BYTES(found.data, found.len, expected, strlen(expected));
}

/* `read` takes the whole payload and refuses every shorter one, and another
 * method's. */
static void
check_reader(const uint8_t *payload, size_t len,
    fm_status (*read)(const uint8_t *payload, size_t len))
{
    uint8_t *other = malloc(len);

    CHECK_INT(read(payload, len), FM_OK);
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *part = malloc(cut == 0 ? 1 : cut);

        CHECK(part != NULL);
        memcpy(part, payload, cut);
        CHECK_INT(read(part, cut), FM_BAD_FRAME);
        free(part);
    }
    CHECK(other != NULL);
    memcpy(other, payload, len);
    other[3] ^= 0x40;
    CHECK_INT(read(other, len), FM_BAD_FRAME);
    free(other);
}

static fm_start start;

static fm_status
read_start(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_start(payload, len, &start);
}

static amqp_table_entry_t
text_entry(const char *key, const char *value)
{
    amqp_table_entry_t made = { .key = amqp_cstring_bytes(key) };

    made.value.kind = AMQP_FIELD_KIND_UTF8;
    made.value.value.bytes = amqp_cstring_bytes(value);
    return made;
}

static amqp_table_entry_t
bool_entry(const char *key, bool value)
{
    amqp_table_entry_t made = { .key = amqp_cstring_bytes(key) };

    made.value.kind = AMQP_FIELD_KIND_BOOLEAN;
    made.value.value.boolean = value;
    return made;
}

static void
test_start_tells_about_the_broker(void)
{
    amqp_table_entry_t capabilities[] = {
        bool_entry("publisher_confirms", true), bool_entry("basic.nack", true),
        bool_entry("consumer_cancel_notify", true),
        bool_entry("connection.blocked", false),
        text_entry("authentication_failure_close", "yes"), /* no boolean */
    };
    amqp_table_entry_t properties[] = {
        { .key = amqp_cstring_bytes("capabilities"),
            .value = { .kind = AMQP_FIELD_KIND_TABLE,
                .value = { .table = { 5, capabilities } } } },
        text_entry("cluster_name", "rabbit@here"),
        text_entry("product", "RabbitMQ"),
        text_entry("version", "3.10.8"),
    };
    amqp_connection_start_t method = { .version_major = 0,
        .version_minor = 9,
        .server_properties = { 4, properties },
        .mechanisms = amqp_cstring_bytes("AMQPLAIN PLAIN"),
        .locales = amqp_cstring_bytes("en_US") };
    size_t len;
    uint8_t *payload = encode(AMQP_CONNECTION_START_METHOD, &method, &len);

    check_reader(payload, len, read_start);
    CHECK_INT(start.major, 0);
    CHECK_INT(start.minor, 9);
    check_slice(start.product, "RabbitMQ");
    check_slice(start.version, "3.10.8");
    check_slice(start.mechanisms, "AMQPLAIN PLAIN");
    check_slice(start.locales, "en_US");
    CHECK(start.can_confirm && start.can_nack && start.can_consumer_cancel);
    CHECK(!start.can_blocked && !start.can_auth_failure_close);
    free(payload);
}

/* rabbitmq-c before 0.14 recurses once per level and overflows its stack. */
static void
test_start_with_a_table_of_100000_levels(void)
{
    enum { LEVELS = 100000, PER_LEVEL = 1 + 1 + 1 + 4 };
    size_t table_len = (size_t)LEVELS * PER_LEVEL;
    size_t len = 4 + 2 + 4 + table_len + 4 + 5 + 4 + 5;
    uint8_t *payload = malloc(len);
    uint8_t *at = payload;

    CHECK(payload != NULL);
    fm_store_u32(at, FM_METHOD_CONNECTION_START);
    at[4] = 0;
    at[5] = 9;
    fm_store_u32(at + 6, (uint32_t)table_len);
    at += 10;
    for (size_t i = 1; i <= LEVELS; i++) {
        at[0] = 1;
        at[1] = 'k';
        at[2] = 'F';
        fm_store_u32(at + 3, (uint32_t)(table_len - i * PER_LEVEL));
        at += PER_LEVEL;
    }
    for (int i = 0; i < 2; i++) {
        fm_store_u32(at, 5);
        memcpy(at + 4, "PLAIN", 5);
        at += 9;
    }
    CHECK_INT(fm_amqp_get_start(payload, len, &start), FM_OK);
    check_slice(start.mechanisms, "PLAIN");
    check_slice(start.product, "");
    free(payload);
}

static void
test_start_with_a_malformed_table_knows_less(void)
{
    static const uint8_t payload[] = { 0, 10, 0, 10, 0, 9, 0, 0, 0, 3, 200, 'x',
        'y', 0, 0, 0, 5, 'P', 'L', 'A', 'I', 'N', 0, 0, 0, 0 };

    CHECK_INT(fm_amqp_get_start(payload, sizeof(payload), &start), FM_OK);
    check_slice(start.mechanisms, "PLAIN");
    check_slice(start.product, "");
    CHECK(!start.can_confirm);
}

static fm_tune tune;

static fm_status
read_tune(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_tune(payload, len, &tune);
}

static void
test_tune(void)
{
    amqp_connection_tune_t method = {
        .channel_max = 2047, .frame_max = 131072, .heartbeat = 60
    };
    size_t len;
    uint8_t *payload = encode(AMQP_CONNECTION_TUNE_METHOD, &method, &len);

    check_reader(payload, len, read_tune);
    CHECK_INT(tune.channel_max, 2047);
    CHECK_INT(tune.frame_max, 131072);
    CHECK_INT(tune.heartbeat_s, 60);
    free(payload);
}

static fm_close closed;

static fm_status
read_close(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_close(payload, len, &closed);
}

static void
test_close_of_connection_and_channel(void)
{
    amqp_channel_close_t channel = { .reply_code = 404,
        .reply_text = amqp_cstring_bytes("NOT_FOUND - no\nexchange"),
        .class_id = 60,
        .method_id = 40 };
    amqp_connection_close_t connection = { .reply_code = 320,
        .reply_text = amqp_cstring_bytes("CONNECTION_FORCED") };
    char text[64];
    char cut[8];
    size_t len;
    uint8_t *payload = encode(AMQP_CHANNEL_CLOSE_METHOD, &channel, &len);

    check_reader(payload, len, read_close);
    CHECK_INT(closed.code, 404);
    check_slice(closed.text, "NOT_FOUND - no\nexchange");
    CHECK_INT(closed.method_id, FM_METHOD_BASIC_PUBLISH);
    fm_amqp_print_close(text, sizeof(text), &closed);
    CHECK_TEXT(text, "404 NOT_FOUND - no?exchange (basic.publish)");
    fm_amqp_print_close(cut, sizeof(cut), &closed);
    CHECK_TEXT(cut, "404 NOT");
    free(payload);

    payload = encode(AMQP_CONNECTION_CLOSE_METHOD, &connection, &len);
    check_reader(payload, len, read_close);
    fm_amqp_print_close(text, sizeof(text), &closed);
    CHECK_TEXT(text, "320 CONNECTION_FORCED");
    free(payload);
}

static fm_declare_ok declared;

static fm_status
read_declare_ok(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_declare_ok(payload, len, &declared);
}

static void
test_declare_ok(void)
{
    amqp_queue_declare_ok_t method = { .queue = amqp_cstring_bytes("q"),
        .message_count = 70000,
        .consumer_count = 3 };
    size_t len;
    uint8_t *payload = encode(AMQP_QUEUE_DECLARE_OK_METHOD, &method, &len);

    check_reader(payload, len, read_declare_ok);
    check_slice(declared.queue, "q");
    CHECK_INT(declared.message_count, 70000);
    CHECK_INT(declared.consumer_count, 3);
    free(payload);
}

static fm_slice tag;
static bool nowait;

static fm_status
read_tag(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_consumer_tag(payload, len, &tag, &nowait);
}

static void
test_consumer_tags(void)
{
    amqp_basic_consume_ok_t consume_ok = { .consumer_tag =
                                               amqp_cstring_bytes("1") };
    amqp_basic_cancel_ok_t cancel_ok = { .consumer_tag =
                                             amqp_cstring_bytes("22") };
    amqp_basic_cancel_t cancel = { .consumer_tag = amqp_cstring_bytes("333"),
        .nowait = 1 };
    size_t len;
    uint8_t *payload = encode(AMQP_BASIC_CONSUME_OK_METHOD, &consume_ok, &len);

    check_reader(payload, len, read_tag);
    check_slice(tag, "1");
    free(payload);
    payload = encode(AMQP_BASIC_CANCEL_OK_METHOD, &cancel_ok, &len);
    check_reader(payload, len, read_tag);
    check_slice(tag, "22");
    free(payload);
    payload = encode(AMQP_BASIC_CANCEL_METHOD, &cancel, &len);
    check_reader(payload, len, read_tag);
    check_slice(tag, "333");
    CHECK(nowait);
    free(payload);
    cancel.nowait = 0;
    payload = encode(AMQP_BASIC_CANCEL_METHOD, &cancel, &len);
    check_reader(payload, len, read_tag);
    CHECK(!nowait);
    CHECK_INT(fm_amqp_get_consumer_tag(payload, len, &tag, NULL), FM_OK);
    free(payload);
}

static fm_returned returned;

static fm_status
read_return(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_return(payload, len, &returned);
}

static void
test_return(void)
{
    amqp_basic_return_t method = { .reply_code = 312,
        .reply_text = amqp_cstring_bytes("NO_ROUTE"),
        .exchange = amqp_cstring_bytes(""),
        .routing_key = amqp_cstring_bytes("reply_1") };
    size_t len;
    uint8_t *payload = encode(AMQP_BASIC_RETURN_METHOD, &method, &len);

    check_reader(payload, len, read_return);
    CHECK_INT(returned.code, 312);
    check_slice(returned.text, "NO_ROUTE");
    check_slice(returned.exchange, "");
    check_slice(returned.routing_key, "reply_1");
    free(payload);
}

static fm_slice reason;

static fm_status
read_blocked(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_blocked(payload, len, &reason);
}

static bool active;

static fm_status
read_flow(const uint8_t *payload, size_t len)
{
    return fm_amqp_get_flow(payload, len, &active);
}

static void
test_blocked_and_flow(void)
{
    amqp_connection_blocked_t blocked = { .reason = amqp_cstring_bytes(
                                              "low on memory") };
    amqp_channel_flow_t flow = { .active = 1 };
    size_t len;
    uint8_t *payload = encode(AMQP_CONNECTION_BLOCKED_METHOD, &blocked, &len);

    check_reader(payload, len, read_blocked);
    check_slice(reason, "low on memory");
    free(payload);
    payload = encode(AMQP_CHANNEL_FLOW_METHOD, &flow, &len);
    check_reader(payload, len, read_flow);
    CHECK(active);
    free(payload);
}

/* --- names --- */

static void
test_every_method_has_rabbitmq_c_s_id(void)
{
    static const uint32_t ids[] = { FM_METHOD_CONNECTION_START,
        FM_METHOD_CONNECTION_START_OK, FM_METHOD_CONNECTION_SECURE,
        FM_METHOD_CONNECTION_TUNE, FM_METHOD_CONNECTION_TUNE_OK,
        FM_METHOD_CONNECTION_OPEN, FM_METHOD_CONNECTION_OPEN_OK,
        FM_METHOD_CONNECTION_CLOSE, FM_METHOD_CONNECTION_CLOSE_OK,
        FM_METHOD_CONNECTION_BLOCKED, FM_METHOD_CONNECTION_UNBLOCKED,
        FM_METHOD_CHANNEL_OPEN, FM_METHOD_CHANNEL_OPEN_OK,
        FM_METHOD_CHANNEL_FLOW, FM_METHOD_CHANNEL_FLOW_OK,
        FM_METHOD_CHANNEL_CLOSE, FM_METHOD_CHANNEL_CLOSE_OK,
        FM_METHOD_EXCHANGE_DECLARE, FM_METHOD_EXCHANGE_DECLARE_OK,
        FM_METHOD_QUEUE_DECLARE, FM_METHOD_QUEUE_DECLARE_OK,
        FM_METHOD_QUEUE_BIND, FM_METHOD_QUEUE_BIND_OK, FM_METHOD_QUEUE_DELETE,
        FM_METHOD_QUEUE_DELETE_OK, FM_METHOD_BASIC_QOS, FM_METHOD_BASIC_QOS_OK,
        FM_METHOD_BASIC_CONSUME, FM_METHOD_BASIC_CONSUME_OK,
        FM_METHOD_BASIC_CANCEL, FM_METHOD_BASIC_CANCEL_OK,
        FM_METHOD_BASIC_PUBLISH, FM_METHOD_BASIC_RETURN,
        FM_METHOD_BASIC_DELIVER, FM_METHOD_BASIC_ACK, FM_METHOD_BASIC_REJECT,
        FM_METHOD_BASIC_NACK, FM_METHOD_CONFIRM_SELECT,
        FM_METHOD_CONFIRM_SELECT_OK };

    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        const char *ours = fm_amqp_method_name(ids[i]);
        const char *theirs = amqp_method_name(ids[i]);
        char expected[64];

        /* basic.consume-ok is AMQP_BASIC_CONSUME_OK_METHOD. */
        CHECK(theirs != NULL);
        snprintf(expected, sizeof(expected), "AMQP_%s_METHOD", ours);
        for (char *c = expected; *c != '\0'; c++)
            *c = *c == '.' || *c == '-' ? '_' : (char)toupper(*c);
        CHECK_TEXT(theirs, expected);
    }
    CHECK_TEXT(fm_amqp_method_name(0), "unknown method");
}

static void
test_a_list_is_searched_by_whole_words(void)
{
    fm_slice list = { (const uint8_t *)"AMQPLAIN PLAIN", 14 };

    CHECK(fm_amqp_list_has(list, "PLAIN"));
    CHECK(fm_amqp_list_has(list, "AMQPLAIN"));
    CHECK(!fm_amqp_list_has(list, "LAIN"));
    CHECK(!fm_amqp_list_has(list, "AMQPLAI"));
    CHECK(!fm_amqp_list_has(list, "EXTERNAL"));
    CHECK(!fm_amqp_list_has(list, ""));
    CHECK(!fm_amqp_list_has((fm_slice){ NULL, 0 }, "PLAIN"));
}

int
main(void)
{
    init_amqp_pool(&pool, 4096);
    RUN(test_start_ok_announces_who_we_are_and_what_we_can);
    RUN(test_amqplain_sends_a_table_without_its_length);
    RUN(test_external_needs_no_secrets);
    RUN(test_endless_credentials_are_refused);
    RUN(test_connection_methods);
    RUN(test_channel_methods);
    RUN(test_exchange_declare);
    RUN(test_queue_declare_and_its_arguments);
    RUN(test_queue_bind_and_delete);
    RUN(test_consume_and_cancel);
    RUN(test_methods_are_appended);
    RUN(test_what_amqp_has_no_room_for_is_refused);
    RUN(test_start_tells_about_the_broker);
    RUN(test_start_with_a_table_of_100000_levels);
    RUN(test_start_with_a_malformed_table_knows_less);
    RUN(test_tune);
    RUN(test_close_of_connection_and_channel);
    RUN(test_declare_ok);
    RUN(test_consumer_tags);
    RUN(test_return);
    RUN(test_blocked_and_flow);
    RUN(test_every_method_has_rabbitmq_c_s_id);
    RUN(test_a_list_is_searched_by_whole_words);
    empty_amqp_pool(&pool);
    return 0;
}
