/* AMQP 0-9-1 methods to bytes and back; the one door to rabbitmq-c.
 *
 * rabbitmq-c is used as a codec and never as a connection: its sockets block
 * and its heartbeats need a caller. So no connection object exists here,
 * nothing is kept between calls, and any thread may call anything.
 *
 * Writing: every fm_amqp_put_...() appends one complete method frame (type,
 * channel, size, payload, end) to a buffer, or leaves it as it was and
 * returns FM_NO_MEMORY, or FM_TOO_LARGE for a short string over 255 bytes, a
 * table over FM_TABLE_MAX entries or a frame over 4,096 bytes, the size that
 * every broker takes.
 *
 * Reading is by hand (see field.h), without allocation: rabbitmq-c's decoder
 * recurses into nested tables without limit up to 0.13, and has over-reads
 * in most releases. Slices point into the payload and live as long as it.
 *
 * The frequent methods (publish, ack, deliver) are in frame.h.
 */
#ifndef FM_IO_AMQP_H
#define FM_IO_AMQP_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- method ids: class << 16 | method --- */

enum {
    FM_METHOD_CONNECTION_START = 0x000A000A,
    FM_METHOD_CONNECTION_START_OK = 0x000A000B,
    FM_METHOD_CONNECTION_SECURE = 0x000A0014,
    FM_METHOD_CONNECTION_TUNE = 0x000A001E,
    FM_METHOD_CONNECTION_TUNE_OK = 0x000A001F,
    FM_METHOD_CONNECTION_OPEN = 0x000A0028,
    FM_METHOD_CONNECTION_OPEN_OK = 0x000A0029,
    FM_METHOD_CONNECTION_CLOSE = 0x000A0032,
    FM_METHOD_CONNECTION_CLOSE_OK = 0x000A0033,
    FM_METHOD_CONNECTION_BLOCKED = 0x000A003C,
    FM_METHOD_CONNECTION_UNBLOCKED = 0x000A003D,
    FM_METHOD_CHANNEL_OPEN = 0x0014000A,
    FM_METHOD_CHANNEL_OPEN_OK = 0x0014000B,
    FM_METHOD_CHANNEL_FLOW = 0x00140014,
    FM_METHOD_CHANNEL_FLOW_OK = 0x00140015,
    FM_METHOD_CHANNEL_CLOSE = 0x00140028,
    FM_METHOD_CHANNEL_CLOSE_OK = 0x00140029,
    FM_METHOD_EXCHANGE_DECLARE = 0x0028000A,
    FM_METHOD_EXCHANGE_DECLARE_OK = 0x0028000B,
    FM_METHOD_QUEUE_DECLARE = 0x0032000A,
    FM_METHOD_QUEUE_DECLARE_OK = 0x0032000B,
    FM_METHOD_QUEUE_BIND = 0x00320014,
    FM_METHOD_QUEUE_BIND_OK = 0x00320015,
    FM_METHOD_QUEUE_DELETE = 0x00320028,
    FM_METHOD_QUEUE_DELETE_OK = 0x00320029,
    FM_METHOD_BASIC_QOS = 0x003C000A,
    FM_METHOD_BASIC_QOS_OK = 0x003C000B,
    FM_METHOD_BASIC_CONSUME = 0x003C0014,
    FM_METHOD_BASIC_CONSUME_OK = 0x003C0015,
    FM_METHOD_BASIC_CANCEL = 0x003C001E,
    FM_METHOD_BASIC_CANCEL_OK = 0x003C001F,
    FM_METHOD_BASIC_PUBLISH = 0x003C0028,
    FM_METHOD_BASIC_RETURN = 0x003C0032,
    FM_METHOD_BASIC_DELIVER = 0x003C003C,
    FM_METHOD_BASIC_ACK = 0x003C0050,
    FM_METHOD_BASIC_REJECT = 0x003C005A,
    FM_METHOD_BASIC_NACK = 0x003C0078,
    FM_METHOD_CONFIRM_SELECT = 0x0055000A,
    FM_METHOD_CONFIRM_SELECT_OK = 0x0055000B
};

/* "basic.deliver", for texts; "unknown method" for other ids. */
const char *fm_amqp_method_name(uint32_t method_id);

/* The first four bytes of a method frame's payload; FM_BAD_FRAME if they are
 * not there. */
FM_MUST_CHECK fm_status fm_amqp_method_id(
    const uint8_t *payload, size_t len, uint32_t *id);

/* --- what declarations are made of; all strings borrowed for the call --- */

enum { FM_TABLE_MAX = 16 };

enum fm_arg_kind { FM_ARG_INTEGER, FM_ARG_TEXT, FM_ARG_BOOL };

typedef struct fm_arg {
    const char *name;
    const char *text; /* FM_ARG_TEXT: kind S */
    int64_t integer;  /* FM_ARG_INTEGER: kind I where it fits, else l */
    enum fm_arg_kind kind;
    bool flag; /* FM_ARG_BOOL: kind t */
} fm_arg;

typedef struct fm_table {
    const fm_arg *args;
    size_t count; /* at most FM_TABLE_MAX */
} fm_table;

typedef struct fm_exchange {
    const char *name;
    const char *type; /* "topic", "fanout", ... */
    bool durable;
    bool auto_delete;
} fm_exchange;

typedef struct fm_queue {
    const char *name;
    bool durable;
    bool auto_delete;
    bool exclusive;
    fm_table arguments;
} fm_queue;

/* --- writing: the connection, channel 0 --- */

typedef enum fm_mechanism {
    FM_MECHANISM_PLAIN,
    FM_MECHANISM_AMQPLAIN,
    FM_MECHANISM_EXTERNAL
} fm_mechanism;

/* The mechanism's name in SASL. */
const char *fm_amqp_mechanism_name(fm_mechanism mechanism);

/* Who we are, for connection.start-ok. */
typedef struct fm_introduction {
    fm_mechanism mechanism;
    const char *user;            /* not used by EXTERNAL */
    const char *password;        /* not used by EXTERNAL */
    const char *connection_name; /* NULL: none is announced */
    const char *product_version; /* NULL: none is announced */
} fm_introduction;

/* The credentials are in the buffer afterwards: wipe it once it is sent. */
FM_MUST_CHECK fm_status fm_amqp_put_start_ok(
    fm_buf *buf, const fm_introduction *who);
FM_MUST_CHECK fm_status fm_amqp_put_tune_ok(fm_buf *buf, uint16_t channel_max,
    uint32_t frame_max, uint16_t heartbeat_s);
FM_MUST_CHECK fm_status fm_amqp_put_connection_open(
    fm_buf *buf, const char *virtual_host);
FM_MUST_CHECK fm_status fm_amqp_put_connection_close(
    fm_buf *buf, uint16_t code, const char *text);
FM_MUST_CHECK fm_status fm_amqp_put_connection_close_ok(fm_buf *buf);

/* --- writing: channels; nowait, internal, no_local are always false --- */

FM_MUST_CHECK fm_status fm_amqp_put_channel_open(fm_buf *buf, uint16_t channel);
FM_MUST_CHECK fm_status fm_amqp_put_channel_close(
    fm_buf *buf, uint16_t channel, uint16_t code, const char *text);
FM_MUST_CHECK fm_status fm_amqp_put_channel_close_ok(
    fm_buf *buf, uint16_t channel);
FM_MUST_CHECK fm_status fm_amqp_put_channel_flow_ok(
    fm_buf *buf, uint16_t channel, bool active);

/* `passive`: only look whether it exists. */
FM_MUST_CHECK fm_status fm_amqp_put_exchange_declare(
    fm_buf *buf, uint16_t channel, const fm_exchange *exchange, bool passive);
FM_MUST_CHECK fm_status fm_amqp_put_queue_declare(
    fm_buf *buf, uint16_t channel, const fm_queue *queue, bool passive);
FM_MUST_CHECK fm_status fm_amqp_put_queue_bind(fm_buf *buf, uint16_t channel,
    const char *queue, const char *exchange, const char *routing_key);
FM_MUST_CHECK fm_status fm_amqp_put_queue_delete(fm_buf *buf, uint16_t channel,
    const char *queue, bool if_unused, bool if_empty);

/* Prefetch count of each new consumer of the channel (global is false). */
FM_MUST_CHECK fm_status fm_amqp_put_basic_qos(
    fm_buf *buf, uint16_t channel, uint16_t prefetch);
FM_MUST_CHECK fm_status fm_amqp_put_confirm_select(
    fm_buf *buf, uint16_t channel);

/* `arguments` may be NULL: none. no_ack and exclusive are false. */
FM_MUST_CHECK fm_status fm_amqp_put_basic_consume(fm_buf *buf, uint16_t channel,
    const char *queue, const char *tag, const fm_table *arguments);
FM_MUST_CHECK fm_status fm_amqp_put_basic_cancel(
    fm_buf *buf, uint16_t channel, const char *tag);
/* The answer to a basic.cancel that the broker did not ask to skip. */
FM_MUST_CHECK fm_status fm_amqp_put_basic_cancel_ok(
    fm_buf *buf, uint16_t channel, fm_slice tag);

/* --- reading. `payload` is that of a method frame, id included; each
 *     checks the id as well and returns FM_OK or FM_BAD_FRAME --- */

typedef struct fm_start {
    uint8_t major;
    uint8_t minor;
    fm_slice mechanisms; /* separated by blanks */
    fm_slice locales;    /* separated by blanks */
    fm_slice product;    /* empty if the broker does not say */
    fm_slice version;
    bool can_auth_failure_close; /* tells why a login failed */
    bool can_blocked;            /* sends connection.blocked */
    bool can_consumer_cancel;    /* sends basic.cancel */
    bool can_confirm;            /* publisher confirms */
    bool can_nack;
} fm_start;

FM_MUST_CHECK fm_status fm_amqp_get_start(
    const uint8_t *payload, size_t len, fm_start *out);

/* Whether a list of names separated by blanks holds `name`. */
bool fm_amqp_list_has(fm_slice list, const char *name);

typedef struct fm_tune {
    uint16_t channel_max; /* 0: no limit */
    uint32_t frame_max;   /* 0: no limit */
    uint16_t heartbeat_s; /* 0: off */
} fm_tune;

FM_MUST_CHECK fm_status fm_amqp_get_tune(
    const uint8_t *payload, size_t len, fm_tune *out);

/* connection.close or channel.close. */
typedef struct fm_close {
    uint16_t code;
    fm_slice text;
    uint32_t method_id; /* the method that the broker did not like, or 0 */
} fm_close;

FM_MUST_CHECK fm_status fm_amqp_get_close(
    const uint8_t *payload, size_t len, fm_close *out);

/* "code text (method)" for an error or event: written to `to`, cut to fit. */
void fm_amqp_print_close(char *to, size_t size, const fm_close *from);

typedef struct fm_declare_ok {
    fm_slice queue;
    uint32_t message_count;
    uint32_t consumer_count;
} fm_declare_ok;

FM_MUST_CHECK fm_status fm_amqp_get_declare_ok(
    const uint8_t *payload, size_t len, fm_declare_ok *out);

/* The tag in basic.consume-ok, basic.cancel-ok or the broker's basic.cancel.
 * `nowait` (may be NULL): false only if the broker wants a cancel-ok. */
FM_MUST_CHECK fm_status fm_amqp_get_consumer_tag(
    const uint8_t *payload, size_t len, fm_slice *tag, bool *nowait);

typedef struct fm_returned {
    uint16_t code;
    fm_slice text;
    fm_slice exchange;
    fm_slice routing_key;
} fm_returned;

FM_MUST_CHECK fm_status fm_amqp_get_return(
    const uint8_t *payload, size_t len, fm_returned *out);

/* Why the broker blocks publishers: connection.blocked. */
FM_MUST_CHECK fm_status fm_amqp_get_blocked(
    const uint8_t *payload, size_t len, fm_slice *reason);

/* channel.flow; RabbitMQ has not sent it for years, but may. */
FM_MUST_CHECK fm_status fm_amqp_get_flow(
    const uint8_t *payload, size_t len, bool *active);

#endif
