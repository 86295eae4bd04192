/* The login and the codec against the run's RabbitMQ: what we write is
 * understood, what it writes is read. A client of a few lines does one thing
 * after the other, blocking. */
#include "check.h"

#include "io/amqp.h"
#include "io/frame.h"
#include "io/handshake.h"

#include <poll.h>
#include <stdlib.h>
#include <time.h>

enum { BIG = 300000, CHANNEL = 1, OTHER_CHANNEL = 2 };

static const char *
setting(const char *name)
{
    const char *value = getenv(name);

    if (value == NULL)
        CHECK_FAIL("%s is not set", name);
    return value;
}

static fm_deadline
soon(void)
{
    return fm_deadline_in(20 * FM_NS_PER_S);
}

/* --- a client --- */

struct client {
    fm_socket *sock;
    fm_session session;
    fm_buf in;
    fm_buf out;
    size_t taken;
};

static fm_socket *
connect_broker(void)
{
    fm_endpoint endpoint = { setting("FM_TEST_HOST"),
        (uint16_t)atoi(setting("FM_TEST_PORT")) };
    fm_socket *sock = NULL;
    fm_error error;

    if (fm_socket_connect(&endpoint, NULL, soon(), -1, &sock, &error) != FM_OK)
        CHECK_FAIL("%s", error.text);
    return sock;
}

static fm_login
good_login(void)
{
    return (fm_login){ .who = { .mechanism = FM_MECHANISM_AMQPLAIN,
                           .user = setting("FM_TEST_USER"),
                           .password = setting("FM_TEST_PASSWORD"),
                           .connection_name = "test_broker_handshake",
                           .product_version = "0" },
        .virtual_host = setting("FM_TEST_VHOST"),
        .heartbeat_s = 30 };
}

static void
client_open(struct client *self, const fm_login *login)
{
    fm_error error;

    *self = (struct client){ .sock = connect_broker() };
    if (fm_handshake(self->sock, login, soon(), -1, &self->session, &error)
        != FM_OK)
        CHECK_FAIL("%s", error.text);
    CHECK_INT(fm_buf_reserve(&self->in, 65536), FM_OK);
    CHECK_INT(fm_buf_append(&self->in, self->session.leftover.data,
                  self->session.leftover.len),
        FM_OK);
}

static void
client_send(struct client *self)
{
    fm_error error;

    for (size_t put = 0; put < self->out.len;) {
        size_t n = 0;
        fm_status status = fm_socket_try_write(
            self->sock, self->out.data + put, self->out.len - put, &n, &error);

        if (status == FM_AGAIN)
            status = fm_socket_wait(self->sock, POLLOUT, soon(), -1);
        CHECK_INT(status, FM_OK);
        put += n;
    }
    self->out.len = 0;
}

/* The next frame but heartbeats, borrowed until the next call. */
static fm_frame
client_frame(struct client *self)
{
    fm_error error;
    fm_frame frame;
    fm_status status;

    for (;;) {
        size_t used;
        size_t n = 0;

        status = fm_frame_split(self->in.data + self->taken,
            self->in.len - self->taken, self->session.frame_max, &frame, &used);
        if (status == FM_OK) {
            self->taken += used;
            if (frame.type == FM_FRAME_HEARTBEAT)
                continue;
            return frame;
        }
        CHECK_INT(status, FM_AGAIN);
        fm_buf_consume(&self->in, self->taken);
        self->taken = 0;
        CHECK_INT(fm_buf_reserve(&self->in, 65536), FM_OK);
        CHECK_INT(fm_socket_wait(self->sock, POLLIN, soon(), -1), FM_OK);
        status = fm_socket_try_read(self->sock, self->in.data + self->in.len,
            self->in.cap - self->in.len, &n, &error);
        if (status != FM_OK && status != FM_AGAIN)
            CHECK_FAIL("%s", error.text);
        self->in.len += n;
    }
}

/* Send what is in `out`, and wait for this method. */
static fm_frame
client_expect(struct client *self, uint16_t channel, uint32_t id)
{
    fm_frame frame;
    uint32_t found;

    client_send(self);
    frame = client_frame(self);
    CHECK_INT(frame.type, FM_FRAME_METHOD);
    CHECK_INT(frame.channel, channel);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &found), FM_OK);
    CHECK_TEXT(fm_amqp_method_name(found), fm_amqp_method_name(id));
    return frame;
}

static void
client_close(struct client *self)
{
    CHECK_INT(fm_amqp_put_connection_close(&self->out, 200, "done"), FM_OK);
    (void)client_expect(self, 0, FM_METHOD_CONNECTION_CLOSE_OK);
    fm_socket_free(self->sock);
    fm_session_fini(&self->session);
    fm_buf_fini(&self->in);
    fm_buf_fini(&self->out);
}

/* --- logging in --- */

static void
test_login_with_each_mechanism(void)
{
    static const fm_mechanism mechanisms[] = { FM_MECHANISM_PLAIN,
        FM_MECHANISM_AMQPLAIN };

    for (int i = 0; i < 2; i++) {
        fm_login login = good_login();
        struct client client;

        login.who.mechanism = mechanisms[i];
        client_open(&client, &login);
        CHECK_TEXT(client.session.broker_product, "RabbitMQ");
        CHECK(client.session.broker_version[0] != '\0');
        CHECK(client.session.channel_max >= 10);
        CHECK_INT(client.session.frame_max, 131072);
        CHECK_INT(client.session.heartbeat_s, 30);
        CHECK(client.session.can_blocked && client.session.can_confirm);
        CHECK(client.session.can_consumer_cancel && client.session.can_nack);
        client_close(&client);
    }
}

static void
refused(const fm_login *login, uint16_t code, const char *words)
{
    fm_socket *sock = connect_broker();
    fm_session session;
    fm_error error = { 0 };

    CHECK_INT(
        fm_handshake(sock, login, soon(), -1, &session, &error), FM_REFUSED);
    CHECK_INT(error.code, code);
    CHECK_HAS(error.text, words);
    CHECK(strstr(error.text, login->who.password) == NULL);
    fm_socket_free(sock);
}

static void
test_refused_logins(void)
{
    fm_login login = good_login();

    login.who.password = "certainly-wrong";
    login.who.mechanism = FM_MECHANISM_PLAIN;
    refused(&login, 403, "ACCESS_REFUSED");
    login.who.mechanism = FM_MECHANISM_AMQPLAIN;
    refused(&login, 403, "ACCESS_REFUSED");
    login = good_login();
    login.virtual_host = "no such virtual host";
    refused(&login, 530, "no such virtual host");
}

/* --- using the session --- */

/* A name of this process for each test. */
static const char *
own_name(const char *what)
{
    static char name[96];

    snprintf(name, sizeof(name), "fm-native-%s-%d-%lld", what, (int)getpid(),
        (long long)time(NULL));
    return name;
}

static void
open_channel(struct client *client, uint16_t channel)
{
    CHECK_INT(fm_amqp_put_channel_open(&client->out, channel), FM_OK);
    (void)client_expect(client, channel, FM_METHOD_CHANNEL_OPEN_OK);
}

static void
declare_queue(struct client *client, const fm_queue *queue)
{
    fm_declare_ok declared;
    fm_frame frame;

    CHECK_INT(
        fm_amqp_put_queue_declare(&client->out, CHANNEL, queue, false), FM_OK);
    frame = client_expect(client, CHANNEL, FM_METHOD_QUEUE_DECLARE_OK);
    CHECK_INT(
        fm_amqp_get_declare_ok(frame.payload, frame.len, &declared), FM_OK);
    CHECK_BYTES(declared.queue.data, declared.queue.len, queue->name,
        strlen(queue->name));
    CHECK_INT(declared.message_count, 0);
}

static void
wait_for_confirm(struct client *client, uint64_t tag)
{
    fm_confirm confirm;
    fm_frame frame = client_expect(client, CHANNEL, FM_METHOD_BASIC_ACK);

    CHECK_INT(fm_frame_parse_ack(frame.payload, frame.len, &confirm), FM_OK);
    CHECK_INT(confirm.tag, tag);
}

static fm_slice
slice(const char *text)
{
    return (fm_slice){ (const uint8_t *)text, strlen(text) };
}

/* Collect one delivery and compare it with what was published. */
static void
check_delivery(struct client *client, const fm_publication *p, uint64_t *tag)
{
    fm_frame frame = client_expect(client, CHANNEL, FM_METHOD_BASIC_DELIVER);
    fm_buf body = { 0 };
    fm_deliver deliver;
    fm_content content;
    uint64_t body_size;

    CHECK_INT(
        fm_frame_parse_deliver(frame.payload, frame.len, &deliver), FM_OK);
    CHECK_BYTES(deliver.consumer_tag.data, deliver.consumer_tag.len, "1", 1);
    CHECK_BYTES(deliver.exchange.data, deliver.exchange.len, p->exchange.data,
        p->exchange.len);
    CHECK_BYTES(deliver.routing_key.data, deliver.routing_key.len,
        p->routing_key.data, p->routing_key.len);
    CHECK(!deliver.redelivered);
    *tag = deliver.delivery_tag;

    frame = client_frame(client);
    CHECK_INT(frame.type, FM_FRAME_HEADER);
    CHECK_INT(fm_frame_parse_header(frame.payload, frame.len, &content), FM_OK);
    CHECK_BYTES(content.content_type.data, content.content_type.len,
        "application/json", 16);
    CHECK_BYTES(content.content_encoding.data, content.content_encoding.len,
        "utf-8", 5);
    CHECK_BYTES(content.expiration.data, content.expiration.len,
        p->expiration.data, p->expiration.len);
    if (p->compression.len > 0) {
        fm_slice compression;

        CHECK_INT(
            fm_frame_find_header(content.headers, "compression", &compression),
            FM_OK);
        CHECK_BYTES(compression.data, compression.len, p->compression.data,
            p->compression.len);
    } else {
        CHECK_INT(content.headers.len, 0);
    }
    body_size = content.body_size;
    CHECK_INT(body_size, p->body.len);
    while (body.len < body_size) {
        frame = client_frame(client);
        CHECK_INT(frame.type, FM_FRAME_BODY);
        CHECK_INT(fm_buf_append(&body, frame.payload, frame.len), FM_OK);
    }
    CHECK_BYTES(body.data, body.len, p->body.data, p->body.len);
    fm_buf_fini(&body);
}

static void
test_messages_come_back_as_they_were_sent(void)
{
    fm_login login = good_login();
    const char *name = own_name("echo");
    fm_arg args[] = {
        { .name = "x-expires", .kind = FM_ARG_INTEGER, .integer = 60000 },
        { .name = "x-overflow", .kind = FM_ARG_TEXT, .text = "drop-head" },
        { .name = "x-wide",
            .kind = FM_ARG_INTEGER,
            .integer = INT64_C(5000000000) },
        { .name = "x-flag", .kind = FM_ARG_BOOL, .flag = true },
    };
    fm_queue queue = { .name = name, .arguments = { args, 4 } };
    fm_exchange exchange = {
        .name = name, .type = "topic", .auto_delete = true
    };
    uint8_t *body = malloc(BIG);
    static const size_t sizes[] = { 0, 2, 131064, 131065, BIG };
    uint64_t published = 0;
    struct client client;

    CHECK(body != NULL);
    for (size_t i = 0; i < BIG; i++)
        body[i] = (uint8_t)(i + i / 251);
    client_open(&client, &login);
    open_channel(&client, CHANNEL);
    CHECK_INT(fm_amqp_put_basic_qos(&client.out, CHANNEL, 10), FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_BASIC_QOS_OK);
    CHECK_INT(fm_amqp_put_confirm_select(&client.out, CHANNEL), FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_CONFIRM_SELECT_OK);
    CHECK_INT(
        fm_amqp_put_exchange_declare(&client.out, CHANNEL, &exchange, false),
        FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_EXCHANGE_DECLARE_OK);
    declare_queue(&client, &queue);
    CHECK_INT(fm_amqp_put_queue_bind(&client.out, CHANNEL, name, name, "key.*"),
        FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_QUEUE_BIND_OK);

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        fm_publication p = { .exchange = slice(name),
            .routing_key = slice("key.1"),
            .mandatory = (i & 1) != 0,
            .expiration = slice((i & 1) != 0 ? "60000" : ""),
            .compression = slice((i & 2) != 0 ? "application/x-gzip" : ""),
            .body = { body, sizes[i] } };
        fm_frame frame;
        fm_slice tag;
        uint64_t delivery_tag;

        CHECK_INT(fm_frame_put_publish(
                      &client.out, CHANNEL, client.session.frame_max, &p),
            FM_OK);
        wait_for_confirm(&client, ++published);
        CHECK_INT(
            fm_amqp_put_basic_consume(&client.out, CHANNEL, name, "1", NULL),
            FM_OK);
        frame = client_expect(&client, CHANNEL, FM_METHOD_BASIC_CONSUME_OK);
        CHECK_INT(
            fm_amqp_get_consumer_tag(frame.payload, frame.len, &tag, NULL),
            FM_OK);
        check_delivery(&client, &p, &delivery_tag);
        CHECK_INT(
            fm_frame_put_ack(&client.out, CHANNEL, delivery_tag, false), FM_OK);
        CHECK_INT(fm_amqp_put_basic_cancel(&client.out, CHANNEL, "1"), FM_OK);
        (void)client_expect(&client, CHANNEL, FM_METHOD_BASIC_CANCEL_OK);
    }
    CHECK_INT(fm_amqp_put_queue_delete(
                  &client.out, CHANNEL, name, true, true), /* all was acked */
        FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_QUEUE_DELETE_OK);
    client_close(&client);
    free(body);
}

static void
test_a_mandatory_message_without_a_queue_comes_back(void)
{
    fm_login login = good_login();
    const char *name = own_name("nowhere");
    fm_publication p = {
        .routing_key = slice(name), .mandatory = true, .body = slice("{}")
    };
    fm_returned returned;
    fm_frame frame;
    struct client client;

    client_open(&client, &login);
    open_channel(&client, CHANNEL);
    CHECK_INT(fm_amqp_put_confirm_select(&client.out, CHANNEL), FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_CONFIRM_SELECT_OK);
    CHECK_INT(fm_frame_put_publish(
                  &client.out, CHANNEL, client.session.frame_max, &p),
        FM_OK);
    frame = client_expect(&client, CHANNEL, FM_METHOD_BASIC_RETURN);
    CHECK_INT(fm_amqp_get_return(frame.payload, frame.len, &returned), FM_OK);
    CHECK_INT(returned.code, 312);
    CHECK_BYTES(returned.text.data, returned.text.len, "NO_ROUTE", 8);
    CHECK_INT(returned.exchange.len, 0);
    CHECK_BYTES(returned.routing_key.data, returned.routing_key.len, name,
        strlen(name));
    CHECK_INT(client_frame(&client).type, FM_FRAME_HEADER);
    CHECK_INT(client_frame(&client).type, FM_FRAME_BODY);
    wait_for_confirm(&client, 1);
    client_close(&client);
}

static void
test_the_broker_closes_a_channel_with_its_reasons(void)
{
    fm_login login = good_login();
    const char *name = own_name("missing");
    fm_queue queue = { .name = name };
    fm_close closed;
    fm_frame frame;
    char text[300];
    struct client client;

    client_open(&client, &login);
    open_channel(&client, CHANNEL);
    open_channel(&client, OTHER_CHANNEL);
    CHECK_INT(
        fm_amqp_put_queue_declare(&client.out, CHANNEL, &queue, true), FM_OK);
    frame = client_expect(&client, CHANNEL, FM_METHOD_CHANNEL_CLOSE);
    CHECK_INT(fm_amqp_get_close(frame.payload, frame.len, &closed), FM_OK);
    CHECK_INT(closed.code, 404);
    CHECK_INT(closed.method_id, FM_METHOD_QUEUE_DECLARE);
    fm_amqp_print_close(text, sizeof(text), &closed);
    CHECK_HAS(text, "404 NOT_FOUND");
    CHECK_HAS(text, name);
    CHECK_HAS(text, "(queue.declare)");
    CHECK_INT(fm_amqp_put_channel_close_ok(&client.out, CHANNEL), FM_OK);
    open_channel(&client, CHANNEL); /* the number is free again */
    CHECK_INT(
        fm_amqp_put_channel_close(&client.out, OTHER_CHANNEL, 200, "done"),
        FM_OK);
    (void)client_expect(&client, OTHER_CHANNEL, FM_METHOD_CHANNEL_CLOSE_OK);
    client_close(&client);
}

static void
test_nacks_rejects_and_the_broker_s_cancel(void)
{
    fm_login login = good_login();
    const char *name = own_name("requeue");
    fm_queue queue = { .name = name, .auto_delete = false };
    fm_publication p = { .routing_key = slice(name), .body = slice("{}") };
    fm_deliver deliver;
    fm_frame frame;
    fm_slice tag;
    bool nowait = false;
    struct client client;

    client_open(&client, &login);
    open_channel(&client, CHANNEL);
    open_channel(&client, OTHER_CHANNEL);
    declare_queue(&client, &queue);
    CHECK_INT(fm_frame_put_publish(
                  &client.out, CHANNEL, client.session.frame_max, &p),
        FM_OK);
    CHECK_INT(fm_amqp_put_basic_consume(&client.out, CHANNEL, name, "1", NULL),
        FM_OK);
    (void)client_expect(&client, CHANNEL, FM_METHOD_BASIC_CONSUME_OK);
    for (int round = 0; round < 3; round++) {
        frame = client_expect(&client, CHANNEL, FM_METHOD_BASIC_DELIVER);
        CHECK_INT(
            fm_frame_parse_deliver(frame.payload, frame.len, &deliver), FM_OK);
        CHECK_INT(deliver.redelivered, round > 0);
        CHECK_INT(client_frame(&client).type, FM_FRAME_HEADER);
        CHECK_INT(client_frame(&client).type, FM_FRAME_BODY);
        if (round == 0)
            CHECK_INT(fm_frame_put_nack(&client.out, CHANNEL,
                          deliver.delivery_tag, false, true),
                FM_OK);
        else
            CHECK_INT(fm_frame_put_reject(&client.out, CHANNEL,
                          deliver.delivery_tag, round == 1),
                FM_OK);
    }
    CHECK_INT(fm_amqp_put_queue_delete(
                  &client.out, OTHER_CHANNEL, name, false, false),
        FM_OK);
    /* Announced as a capability, so the consumer hears of it; which of the
     * two comes first is the broker's choice. */
    client_send(&client);
    for (int i = 0; i < 2; i++) {
        uint32_t id;

        frame = client_frame(&client);
        CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
        if (id == FM_METHOD_QUEUE_DELETE_OK)
            continue;
        CHECK_INT(id, FM_METHOD_BASIC_CANCEL);
        CHECK_INT(
            fm_amqp_get_consumer_tag(frame.payload, frame.len, &tag, &nowait),
            FM_OK);
        CHECK_BYTES(tag.data, tag.len, "1", 1);
    }
    CHECK(nowait);
    client_close(&client);
}

int
main(void)
{
    RUN(test_login_with_each_mechanism);
    RUN(test_refused_logins);
    RUN(test_messages_come_back_as_they_were_sent);
    RUN(test_a_mandatory_message_without_a_queue_comes_back);
    RUN(test_the_broker_closes_a_channel_with_its_reasons);
    RUN(test_nacks_rejects_and_the_broker_s_cancel);
    return 0;
}
