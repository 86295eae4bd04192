#include "io/amqp.h"

#include "io/field.h"

/* rabbitmq-c moved its headers in 0.12; the old names warn since then. */
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif

#include <stdio.h>
#include <string.h>

enum {
    HEAD_LEN = 7,          /* type, channel, size; the end byte follows */
    MOST = 4096,           /* a whole method frame: AMQP 0-9-1, 4.2.3 */
    SECRETS_MOST = 2048,   /* user and password as SASL has them */
    SHORT_TEXT_MOST = 255, /* one byte of length */
};

/* --- names --- */

static const struct {
    uint32_t id;
    const char *name;
} methods[] = {
    { FM_METHOD_CONNECTION_START, "connection.start" },
    { FM_METHOD_CONNECTION_START_OK, "connection.start-ok" },
    { FM_METHOD_CONNECTION_SECURE, "connection.secure" },
    { FM_METHOD_CONNECTION_TUNE, "connection.tune" },
    { FM_METHOD_CONNECTION_TUNE_OK, "connection.tune-ok" },
    { FM_METHOD_CONNECTION_OPEN, "connection.open" },
    { FM_METHOD_CONNECTION_OPEN_OK, "connection.open-ok" },
    { FM_METHOD_CONNECTION_CLOSE, "connection.close" },
    { FM_METHOD_CONNECTION_CLOSE_OK, "connection.close-ok" },
    { FM_METHOD_CONNECTION_BLOCKED, "connection.blocked" },
    { FM_METHOD_CONNECTION_UNBLOCKED, "connection.unblocked" },
    { FM_METHOD_CHANNEL_OPEN, "channel.open" },
    { FM_METHOD_CHANNEL_OPEN_OK, "channel.open-ok" },
    { FM_METHOD_CHANNEL_FLOW, "channel.flow" },
    { FM_METHOD_CHANNEL_FLOW_OK, "channel.flow-ok" },
    { FM_METHOD_CHANNEL_CLOSE, "channel.close" },
    { FM_METHOD_CHANNEL_CLOSE_OK, "channel.close-ok" },
    { FM_METHOD_EXCHANGE_DECLARE, "exchange.declare" },
    { FM_METHOD_EXCHANGE_DECLARE_OK, "exchange.declare-ok" },
    { FM_METHOD_QUEUE_DECLARE, "queue.declare" },
    { FM_METHOD_QUEUE_DECLARE_OK, "queue.declare-ok" },
    { FM_METHOD_QUEUE_BIND, "queue.bind" },
    { FM_METHOD_QUEUE_BIND_OK, "queue.bind-ok" },
    { FM_METHOD_QUEUE_DELETE, "queue.delete" },
    { FM_METHOD_QUEUE_DELETE_OK, "queue.delete-ok" },
    { FM_METHOD_BASIC_QOS, "basic.qos" },
    { FM_METHOD_BASIC_QOS_OK, "basic.qos-ok" },
    { FM_METHOD_BASIC_CONSUME, "basic.consume" },
    { FM_METHOD_BASIC_CONSUME_OK, "basic.consume-ok" },
    { FM_METHOD_BASIC_CANCEL, "basic.cancel" },
    { FM_METHOD_BASIC_CANCEL_OK, "basic.cancel-ok" },
    { FM_METHOD_BASIC_PUBLISH, "basic.publish" },
    { FM_METHOD_BASIC_RETURN, "basic.return" },
    { FM_METHOD_BASIC_DELIVER, "basic.deliver" },
    { FM_METHOD_BASIC_ACK, "basic.ack" },
    { FM_METHOD_BASIC_REJECT, "basic.reject" },
    { FM_METHOD_BASIC_NACK, "basic.nack" },
    { FM_METHOD_CONFIRM_SELECT, "confirm.select" },
    { FM_METHOD_CONFIRM_SELECT_OK, "confirm.select-ok" },
};

const char *
fm_amqp_method_name(uint32_t method_id)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (methods[i].id == method_id)
            return methods[i].name;
    }
    return "unknown method";
}

const char *
fm_amqp_mechanism_name(fm_mechanism mechanism)
{
    switch (mechanism) {
    case FM_MECHANISM_PLAIN:
        return "PLAIN";
    case FM_MECHANISM_AMQPLAIN:
        return "AMQPLAIN";
    case FM_MECHANISM_EXTERNAL:
        return "EXTERNAL";
    }
    return "unknown mechanism";
}

/* --- from our types to rabbitmq-c's, which has no const --- */

static amqp_bytes_t
bytes(const void *data, size_t len)
{
    return (amqp_bytes_t){ .len = len, .bytes = (void *)data };
}

static amqp_bytes_t
text(const char *from)
{
    return from == NULL ? amqp_empty_bytes : bytes(from, strlen(from));
}

static amqp_table_entry_t
text_entry(const char *key, const char *value)
{
    return (amqp_table_entry_t){ .key = text(key),
        .value = {
            .kind = AMQP_FIELD_KIND_UTF8, .value = { .bytes = text(value) } } };
}

static amqp_table_entry_t
bool_entry(const char *key, bool value)
{
    return (amqp_table_entry_t){ .key = text(key),
        .value = {
            .kind = AMQP_FIELD_KIND_BOOLEAN, .value = { .boolean = value } } };
}

static amqp_table_entry_t
table_entry(const char *key, amqp_table_t value)
{
    return (amqp_table_entry_t){ .key = text(key),
        .value = {
            .kind = AMQP_FIELD_KIND_TABLE, .value = { .table = value } } };
}

/* RabbitMQ compares integer arguments by value, whatever their width; the
 * stock driver writes 32 bits where they suffice. */
static amqp_table_entry_t
integer_entry(const char *key, int64_t value)
{
    amqp_table_entry_t entry = { .key = text(key) };

    if (value >= INT32_MIN && value <= INT32_MAX) {
        entry.value.kind = AMQP_FIELD_KIND_I32;
        entry.value.value.i32 = (int32_t)value;
    } else {
        entry.value.kind = AMQP_FIELD_KIND_I64;
        entry.value.value.i64 = value;
    }
    return entry;
}

/* `entries` has room for FM_TABLE_MAX; *out points into it. */
static fm_status
convert_table(
    const fm_table *table, amqp_table_entry_t *entries, amqp_table_t *out)
{
    *out = amqp_empty_table;
    if (table == NULL || table->count == 0)
        return FM_OK;
    if (table->count > FM_TABLE_MAX)
        return FM_TOO_LARGE;
    for (size_t i = 0; i < table->count; i++) {
        const fm_arg *arg = &table->args[i];

        /* rabbitmq-c would write the low byte of a longer one. */
        if (strlen(arg->name) > SHORT_TEXT_MOST)
            return FM_TOO_LARGE;
        switch (arg->kind) {
        case FM_ARG_INTEGER:
            entries[i] = integer_entry(arg->name, arg->integer);
            break;
        case FM_ARG_TEXT:
            entries[i] = text_entry(arg->name, arg->text);
            break;
        case FM_ARG_BOOL:
            entries[i] = bool_entry(arg->name, arg->flag);
            break;
        }
    }
    out->num_entries = (int)table->count;
    out->entries = entries;
    return FM_OK;
}

/* --- writing --- */

static fm_status
put_method(fm_buf *buf, uint16_t channel, uint32_t id, void *fields)
{
    fm_status status = fm_buf_reserve(buf, MOST);
    uint8_t *frame;
    int len;

    if (status != FM_OK)
        return status;
    frame = buf->data + buf->len;
    fm_store_u32(frame + HEAD_LEN, id);
    /* Its header says that it returns 0; it returns the length. */
    len = amqp_encode_method(
        id, fields, bytes(frame + HEAD_LEN + 4, MOST - HEAD_LEN - 4 - 1));
    if (len < 0)
        return FM_TOO_LARGE;
    frame[0] = AMQP_FRAME_METHOD;
    fm_store_u16(frame + 1, channel);
    fm_store_u32(frame + 3, (uint32_t)len + 4);
    frame[HEAD_LEN + 4 + len] = AMQP_FRAME_END;
    buf->len += HEAD_LEN + 4 + (size_t)len + 1;
    return FM_OK;
}

/* The SASL response into `out` of SECRETS_MOST bytes. */
static fm_status
put_secrets(const fm_introduction *who, uint8_t *out, size_t *len)
{
    size_t user_len, password_len;

    *len = 0;
    if (who->mechanism == FM_MECHANISM_EXTERNAL)
        return FM_OK; /* the certificate says it all */
    user_len = strlen(who->user);
    password_len = strlen(who->password);
    if (user_len > SECRETS_MOST / 4 || password_len > SECRETS_MOST / 2)
        return FM_TOO_LARGE;

    if (who->mechanism == FM_MECHANISM_PLAIN) {
        out[0] = '\0';
        memcpy(out + 1, who->user, user_len);
        out[1 + user_len] = '\0';
        memcpy(out + 2 + user_len, who->password, password_len);
        *len = 2 + user_len + password_len;
    } else {
        amqp_table_entry_t entries[] = { text_entry("LOGIN", who->user),
            text_entry("PASSWORD", who->password) };
        amqp_table_t table = { .num_entries = 2, .entries = entries };
        size_t used = 0;

        if (amqp_encode_table(bytes(out, SECRETS_MOST), &table, &used) < 0)
            return FM_TOO_LARGE;
        /* The table without the length in front, since RabbitMQ reads the
         * response as the entries alone. */
        *len = used - 4;
        memmove(out, out + 4, *len);
    }
    return FM_OK;
}

fm_status
fm_amqp_put_start_ok(fm_buf *buf, const fm_introduction *who)
{
    amqp_table_entry_t capabilities[] = {
        bool_entry("authentication_failure_close", true),
        bool_entry("basic.nack", true),
        bool_entry("connection.blocked", true),
        bool_entry("consumer_cancel_notify", true),
        bool_entry("publisher_confirms", true),
    };
    amqp_table_t capability_table = { .num_entries = sizeof(capabilities)
            / sizeof(capabilities[0]),
        .entries = capabilities };
    amqp_table_entry_t properties[5];
    amqp_connection_start_ok_t method = { .locale = text("en_US") };
    uint8_t secrets[SECRETS_MOST];
    size_t secrets_len;
    int count = 0;
    fm_status status;

    properties[count++] = text_entry("product", "oslo-fastmsg");
    if (who->product_version != NULL)
        properties[count++] =
            text_entry("product_version", who->product_version);
    properties[count++] = text_entry("platform", "Linux");
    properties[count++] = table_entry("capabilities", capability_table);
    if (who->connection_name != NULL)
        properties[count++] =
            text_entry("connection_name", who->connection_name);
    method.client_properties =
        (amqp_table_t){ .num_entries = count, .entries = properties };
    method.mechanism = text(fm_amqp_mechanism_name(who->mechanism));

    status = put_secrets(who, secrets, &secrets_len);
    if (status == FM_OK) {
        method.response = bytes(secrets, secrets_len);
        status = put_method(buf, 0, FM_METHOD_CONNECTION_START_OK, &method);
    }
    explicit_bzero(secrets, sizeof(secrets));
    return status;
}

fm_status
fm_amqp_put_tune_ok(
    fm_buf *buf, uint16_t channel_max, uint32_t frame_max, uint16_t heartbeat_s)
{
    amqp_connection_tune_ok_t method = { .channel_max = channel_max,
        .frame_max = frame_max,
        .heartbeat = heartbeat_s };

    return put_method(buf, 0, FM_METHOD_CONNECTION_TUNE_OK, &method);
}

fm_status
fm_amqp_put_connection_open(fm_buf *buf, const char *virtual_host)
{
    amqp_connection_open_t method = { .virtual_host = text(virtual_host) };

    return put_method(buf, 0, FM_METHOD_CONNECTION_OPEN, &method);
}

fm_status
fm_amqp_put_connection_close(fm_buf *buf, uint16_t code, const char *why)
{
    amqp_connection_close_t method = { .reply_code = code,
        .reply_text = text(why) };

    return put_method(buf, 0, FM_METHOD_CONNECTION_CLOSE, &method);
}

fm_status
fm_amqp_put_connection_close_ok(fm_buf *buf)
{
    amqp_connection_close_ok_t method = { 0 };

    return put_method(buf, 0, FM_METHOD_CONNECTION_CLOSE_OK, &method);
}

fm_status
fm_amqp_put_channel_open(fm_buf *buf, uint16_t channel)
{
    amqp_channel_open_t method = { .out_of_band = amqp_empty_bytes };

    return put_method(buf, channel, FM_METHOD_CHANNEL_OPEN, &method);
}

fm_status
fm_amqp_put_channel_close(
    fm_buf *buf, uint16_t channel, uint16_t code, const char *why)
{
    amqp_channel_close_t method = { .reply_code = code,
        .reply_text = text(why) };

    return put_method(buf, channel, FM_METHOD_CHANNEL_CLOSE, &method);
}

fm_status
fm_amqp_put_channel_close_ok(fm_buf *buf, uint16_t channel)
{
    amqp_channel_close_ok_t method = { 0 };

    return put_method(buf, channel, FM_METHOD_CHANNEL_CLOSE_OK, &method);
}

fm_status
fm_amqp_put_channel_flow_ok(fm_buf *buf, uint16_t channel, bool active)
{
    amqp_channel_flow_ok_t method = { .active = active };

    return put_method(buf, channel, FM_METHOD_CHANNEL_FLOW_OK, &method);
}

fm_status
fm_amqp_put_exchange_declare(
    fm_buf *buf, uint16_t channel, const fm_exchange *exchange, bool passive)
{
    amqp_exchange_declare_t method = { .exchange = text(exchange->name),
        .type = text(exchange->type),
        .passive = passive,
        .durable = exchange->durable,
        .auto_delete = exchange->auto_delete };

    return put_method(buf, channel, FM_METHOD_EXCHANGE_DECLARE, &method);
}

fm_status
fm_amqp_put_queue_declare(
    fm_buf *buf, uint16_t channel, const fm_queue *queue, bool passive)
{
    amqp_table_entry_t entries[FM_TABLE_MAX];
    amqp_queue_declare_t method = { .queue = text(queue->name),
        .passive = passive,
        .durable = queue->durable,
        .exclusive = queue->exclusive,
        .auto_delete = queue->auto_delete };
    fm_status status =
        convert_table(&queue->arguments, entries, &method.arguments);

    if (status != FM_OK)
        return status;
    return put_method(buf, channel, FM_METHOD_QUEUE_DECLARE, &method);
}

fm_status
fm_amqp_put_queue_bind(fm_buf *buf, uint16_t channel, const char *queue,
    const char *exchange, const char *routing_key)
{
    amqp_queue_bind_t method = { .queue = text(queue),
        .exchange = text(exchange),
        .routing_key = text(routing_key) };

    return put_method(buf, channel, FM_METHOD_QUEUE_BIND, &method);
}

fm_status
fm_amqp_put_queue_delete(fm_buf *buf, uint16_t channel, const char *queue,
    bool if_unused, bool if_empty)
{
    amqp_queue_delete_t method = {
        .queue = text(queue), .if_unused = if_unused, .if_empty = if_empty
    };

    return put_method(buf, channel, FM_METHOD_QUEUE_DELETE, &method);
}

fm_status
fm_amqp_put_basic_qos(fm_buf *buf, uint16_t channel, uint16_t prefetch)
{
    amqp_basic_qos_t method = { .prefetch_count = prefetch };

    return put_method(buf, channel, FM_METHOD_BASIC_QOS, &method);
}

fm_status
fm_amqp_put_confirm_select(fm_buf *buf, uint16_t channel)
{
    amqp_confirm_select_t method = { .nowait = false };

    return put_method(buf, channel, FM_METHOD_CONFIRM_SELECT, &method);
}

fm_status
fm_amqp_put_basic_consume(fm_buf *buf, uint16_t channel, const char *queue,
    const char *tag, const fm_table *arguments)
{
    amqp_table_entry_t entries[FM_TABLE_MAX];
    amqp_basic_consume_t method = { .queue = text(queue),
        .consumer_tag = text(tag) };
    fm_status status = convert_table(arguments, entries, &method.arguments);

    if (status != FM_OK)
        return status;
    return put_method(buf, channel, FM_METHOD_BASIC_CONSUME, &method);
}

fm_status
fm_amqp_put_basic_cancel(fm_buf *buf, uint16_t channel, const char *tag)
{
    amqp_basic_cancel_t method = { .consumer_tag = text(tag) };

    return put_method(buf, channel, FM_METHOD_BASIC_CANCEL, &method);
}

fm_status
fm_amqp_put_basic_cancel_ok(fm_buf *buf, uint16_t channel, fm_slice tag)
{
    amqp_basic_cancel_ok_t method = { .consumer_tag =
                                          bytes(tag.data, tag.len) };

    return put_method(buf, channel, FM_METHOD_BASIC_CANCEL_OK, &method);
}

/* --- reading --- */

fm_status
fm_amqp_method_id(const uint8_t *payload, size_t len, uint32_t *id)
{
    if (len < 4)
        return FM_BAD_FRAME;
    *id = fm_load_u32(payload);
    return FM_OK;
}

/* A cursor behind the method id; false if that is not `id`. */
static bool
begin(const uint8_t *payload, size_t len, uint32_t id, fm_cursor *out)
{
    uint32_t found;

    if (fm_amqp_method_id(payload, len, &found) != FM_OK || found != id)
        return false;
    *out = fm_cursor_over(payload + 4, len - 4);
    return true;
}

bool
fm_amqp_list_has(fm_slice list, const char *name)
{
    size_t name_len = strlen(name);
    size_t start = 0;

    for (size_t i = 0; i <= list.len; i++) {
        if (i < list.len && list.data[i] != ' ')
            continue;
        if (i - start == name_len && name_len > 0
            && memcmp(list.data + start, name, name_len) == 0)
            return true;
        start = i + 1;
    }
    return false;
}

/* What a table does not say, or says in another kind, is empty or false. */
static fm_slice
text_of(fm_slice table, const char *name)
{
    fm_field field;
    fm_slice value = { 0 };

    if (fm_field_find(table, name, &field) == FM_OK)
        (void)!fm_field_text(&field, &value);
    return value;
}

static bool
bool_of(fm_slice table, const char *name)
{
    fm_field field;
    bool value = false;

    return fm_field_find(table, name, &field) == FM_OK
        && fm_field_bool(&field, &value) && value;
}

fm_status
fm_amqp_get_start(const uint8_t *payload, size_t len, fm_start *out)
{
    fm_start start = { 0 };
    fm_slice properties;
    fm_slice capabilities = { 0 };
    fm_field field;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_CONNECTION_START, &cursor)
        || !fm_cursor_u8(&cursor, &start.major)
        || !fm_cursor_u8(&cursor, &start.minor)
        || !fm_cursor_long_text(&cursor, &properties)
        || !fm_cursor_long_text(&cursor, &start.mechanisms)
        || !fm_cursor_long_text(&cursor, &start.locales))
        return FM_BAD_FRAME;
    start.product = text_of(properties, "product");
    start.version = text_of(properties, "version");
    if (fm_field_find(properties, "capabilities", &field) == FM_OK
        && field.kind == FM_KIND_TABLE)
        capabilities = field.value;
    start.can_auth_failure_close =
        bool_of(capabilities, "authentication_failure_close");
    start.can_blocked = bool_of(capabilities, "connection.blocked");
    start.can_consumer_cancel = bool_of(capabilities, "consumer_cancel_notify");
    start.can_confirm = bool_of(capabilities, "publisher_confirms");
    start.can_nack = bool_of(capabilities, "basic.nack");
    *out = start;
    return FM_OK;
}

fm_status
fm_amqp_get_tune(const uint8_t *payload, size_t len, fm_tune *out)
{
    fm_tune tune;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_CONNECTION_TUNE, &cursor)
        || !fm_cursor_u16(&cursor, &tune.channel_max)
        || !fm_cursor_u32(&cursor, &tune.frame_max)
        || !fm_cursor_u16(&cursor, &tune.heartbeat_s))
        return FM_BAD_FRAME;
    *out = tune;
    return FM_OK;
}

fm_status
fm_amqp_get_close(const uint8_t *payload, size_t len, fm_close *out)
{
    fm_close closed;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_CONNECTION_CLOSE, &cursor)
        && !begin(payload, len, FM_METHOD_CHANNEL_CLOSE, &cursor))
        return FM_BAD_FRAME;
    if (!fm_cursor_u16(&cursor, &closed.code)
        || !fm_cursor_short_text(&cursor, &closed.text)
        || !fm_cursor_u32(&cursor, &closed.method_id))
        return FM_BAD_FRAME;
    *out = closed;
    return FM_OK;
}

void
fm_amqp_print_close(char *to, size_t size, const fm_close *from)
{
    char words[SHORT_TEXT_MOST + 1];

    fm_field_print(words, sizeof(words), from->text);
    if (from->method_id == 0)
        (void)snprintf(to, size, "%u %s", from->code, words);
    else
        (void)snprintf(to, size, "%u %s (%s)", from->code, words,
            fm_amqp_method_name(from->method_id));
}

fm_status
fm_amqp_get_declare_ok(const uint8_t *payload, size_t len, fm_declare_ok *out)
{
    fm_declare_ok declared;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_QUEUE_DECLARE_OK, &cursor)
        || !fm_cursor_short_text(&cursor, &declared.queue)
        || !fm_cursor_u32(&cursor, &declared.message_count)
        || !fm_cursor_u32(&cursor, &declared.consumer_count))
        return FM_BAD_FRAME;
    *out = declared;
    return FM_OK;
}

fm_status
fm_amqp_get_consumer_tag(
    const uint8_t *payload, size_t len, fm_slice *tag, bool *nowait)
{
    fm_slice found;
    uint8_t bits = 1;
    uint32_t id;
    fm_cursor cursor;

    if (fm_amqp_method_id(payload, len, &id) != FM_OK
        || (id != FM_METHOD_BASIC_CONSUME_OK && id != FM_METHOD_BASIC_CANCEL_OK
            && id != FM_METHOD_BASIC_CANCEL))
        return FM_BAD_FRAME;
    cursor = fm_cursor_over(payload + 4, len - 4);
    if (!fm_cursor_short_text(&cursor, &found)
        || (id == FM_METHOD_BASIC_CANCEL && !fm_cursor_u8(&cursor, &bits)))
        return FM_BAD_FRAME;
    *tag = found;
    if (nowait != NULL)
        *nowait = (bits & 1) != 0;
    return FM_OK;
}

fm_status
fm_amqp_get_return(const uint8_t *payload, size_t len, fm_returned *out)
{
    fm_returned returned;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_BASIC_RETURN, &cursor)
        || !fm_cursor_u16(&cursor, &returned.code)
        || !fm_cursor_short_text(&cursor, &returned.text)
        || !fm_cursor_short_text(&cursor, &returned.exchange)
        || !fm_cursor_short_text(&cursor, &returned.routing_key))
        return FM_BAD_FRAME;
    *out = returned;
    return FM_OK;
}

fm_status
fm_amqp_get_blocked(const uint8_t *payload, size_t len, fm_slice *reason)
{
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_CONNECTION_BLOCKED, &cursor)
        || !fm_cursor_short_text(&cursor, reason))
        return FM_BAD_FRAME;
    return FM_OK;
}

fm_status
fm_amqp_get_flow(const uint8_t *payload, size_t len, bool *active)
{
    uint8_t bits;
    fm_cursor cursor;

    if (!begin(payload, len, FM_METHOD_CHANNEL_FLOW, &cursor)
        || !fm_cursor_u8(&cursor, &bits))
        return FM_BAD_FRAME;
    *active = (bits & 1) != 0;
    return FM_OK;
}
