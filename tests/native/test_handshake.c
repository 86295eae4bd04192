/* The login against a peer on loopback that says what each test wants: good
 * brokers in small pieces, old ones, silent, chatty and hostile ones. */
#include "check.h"
#include "peer.h"

#include "io/frame.h"
#include "io/handshake.h"

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif

#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/eventfd.h>

/* --- the broker's part --- */

enum stage { AT_START, AT_TUNE, AT_OPEN_OK, AT_THE_END };
enum deed { HANG_UP, STAY_SILENT, CHATTER, SAY };

typedef struct actor {
    /* What it says while all goes well. */
    const char *mechanisms;
    bool tells_why; /* capability authentication_failure_close */
    amqp_connection_tune_t tune;
    const char *after; /* what comes right behind open-ok */
    size_t piece;      /* bytes per send; 0: all at once */

    /* What it does instead, from some stage on. */
    enum stage stage;
    enum deed deed;
    const void *words; /* of SAY */
    size_t words_len;

    /* What it heard; read after peer_join(). */
    uint8_t header[8];
    uint8_t start_ok[4096];
    size_t start_ok_len;
    amqp_connection_tune_ok_t tune_ok;
    char virtual_host[256];
} actor;

static const actor good_broker = { .mechanisms = "AMQPLAIN PLAIN",
    .tells_why = true,
    .tune = { .channel_max = 2047, .frame_max = 131072, .heartbeat = 60 },
    .after = "",
    .stage = AT_THE_END };

static void
say(int fd, size_t piece, const void *data, size_t len)
{
    const char *at = data;

    if (piece == 0)
        piece = len;
    for (size_t put = 0; put < len; put += piece) {
        size_t left = len - put;

        peer_write(fd, at + put, left < piece ? left : piece);
        if (piece < len)
            usleep(200);
    }
}

static size_t
frame_of(uint8_t *to, uint16_t channel, uint32_t id, void *fields)
{
    int len = amqp_encode_method(id, fields, (amqp_bytes_t){ 2048, to + 11 });

    CHECK(len >= 0);
    to[0] = FM_FRAME_METHOD;
    fm_store_u16(to + 1, channel);
    fm_store_u32(to + 3, (uint32_t)len + 4);
    fm_store_u32(to + 7, id);
    to[11 + len] = FM_FRAME_END;
    return 12 + (size_t)len;
}

static amqp_table_entry_t
entry_of(const char *name, const char *text)
{
    amqp_table_entry_t made = { .key = amqp_cstring_bytes(name) };

    made.value.kind = AMQP_FIELD_KIND_UTF8;
    made.value.value.bytes = amqp_cstring_bytes(text);
    return made;
}

static size_t
start_of(const actor *self, uint8_t *to)
{
    amqp_table_entry_t capability = { .key = amqp_cstring_bytes(
                                          "authentication_failure_close") };
    amqp_table_entry_t properties[] = { entry_of("product", "RabbitMQ"),
        entry_of("version", "3.10.8"),
        { .key = amqp_cstring_bytes("capabilities") } };
    amqp_connection_start_t start = { .version_minor = 9,
        .server_properties = { 3, properties },
        .mechanisms = amqp_cstring_bytes(self->mechanisms),
        .locales = amqp_cstring_bytes("en_US") };

    capability.value.kind = AMQP_FIELD_KIND_BOOLEAN;
    capability.value.value.boolean = self->tells_why;
    properties[2].value.kind = AMQP_FIELD_KIND_TABLE;
    properties[2].value.value.table = (amqp_table_t){ 1, &capability };
    return frame_of(to, 0, AMQP_CONNECTION_START_METHOD, &start);
}

/* Read one frame's payload; its length, or 0 at the end of the stream. */
static size_t
hear(int fd, uint8_t *payload, size_t cap)
{
    uint8_t head[7];
    uint8_t end;
    size_t len;

    if (!peer_read(fd, head, sizeof(head)))
        return 0;
    len = fm_load_u32(head + 3);
    CHECK(len <= cap);
    if (!peer_read(fd, payload, len) || !peer_read(fd, &end, 1))
        return 0;
    CHECK_INT(end, FM_FRAME_END);
    return len;
}

/* True if the actor leaves its good manners at this stage. */
static bool
misbehaves(actor *self, enum stage stage, int fd)
{
    static const uint8_t heartbeat[] = { 8, 0, 0, 0, 0, 0, 0, 0xCE };

    if (self->stage != stage)
        return false;
    switch (self->deed) {
    case HANG_UP:
        break;
    case STAY_SILENT:
        peer_drain(fd);
        break;
    case CHATTER:
        /* Until the other side has had enough. */
        while (send(fd, heartbeat, sizeof(heartbeat), MSG_NOSIGNAL) > 0)
            usleep(1000);
        break;
    case SAY:
        say(fd, self->piece, self->words, self->words_len);
        peer_drain(fd);
        break;
    }
    return true;
}

static void
play(int fd, void *arg)
{
    actor *self = arg;
    uint8_t frame[4096];
    amqp_connection_open_ok_t open_ok = { .known_hosts = { 0 } };
    size_t len;

    if (!peer_read(fd, self->header, sizeof(self->header))
        || misbehaves(self, AT_START, fd))
        return;
    say(fd, self->piece, frame, start_of(self, frame));
    self->start_ok_len = hear(fd, self->start_ok, sizeof(self->start_ok));
    if (self->start_ok_len == 0 || misbehaves(self, AT_TUNE, fd))
        return;
    len = frame_of(frame, 0, AMQP_CONNECTION_TUNE_METHOD, &self->tune);
    say(fd, self->piece, frame, len);
    if (hear(fd, frame, sizeof(frame)) != 12)
        return;
    self->tune_ok.channel_max = fm_load_u16(frame + 4);
    self->tune_ok.frame_max = fm_load_u32(frame + 6);
    self->tune_ok.heartbeat = fm_load_u16(frame + 10);
    if (hear(fd, frame, sizeof(frame)) == 0)
        return;
    memcpy(self->virtual_host, frame + 5, frame[4]);
    if (misbehaves(self, AT_OPEN_OK, fd))
        return;
    len = frame_of(frame, 0, AMQP_CONNECTION_OPEN_OK_METHOD, &open_ok);
    memcpy(frame + len, self->after, strlen(self->after));
    say(fd, self->piece, frame, len + strlen(self->after));
    peer_drain(fd);
}

/* --- our part --- */

static const fm_login login_of_nova = { .who = { .mechanism =
                                                     FM_MECHANISM_PLAIN,
                                            .user = "nova",
                                            .password = "s3cret",
                                            .connection_name = "test" },
    .virtual_host = "cell1",
    .heartbeat_s = 60 };

static int user_timeout_ms; /* of the last socket */

static fm_status
shake(actor *broker, const fm_login *login, int64_t ms, int cancel_fd,
    fm_session *session, fm_error *error)
{
    fm_endpoint endpoint = { .host = "127.0.0.1" };
    fm_socket *sock = NULL;
    socklen_t len = sizeof(user_timeout_ms);
    fm_status status;
    peer server;

    *error = (fm_error){ 0 };
    peer_start(&server, play, broker);
    endpoint.port = server.port;
    CHECK_INT(fm_socket_connect(&endpoint, NULL,
                  fm_deadline_in(10 * FM_NS_PER_S), -1, &sock, error),
        FM_OK);
    status = fm_handshake(sock, login, fm_deadline_in(ms * FM_NS_PER_MS),
        cancel_fd, session, error);
    CHECK(getsockopt(fm_socket_fd(sock), IPPROTO_TCP, TCP_USER_TIMEOUT,
              &user_timeout_ms, &len)
        == 0);
    fm_socket_free(sock);
    peer_join(&server);
    if (status != FM_OK) {
        CHECK_INT(error->status, status);
        CHECK_HAS(error->text, "127.0.0.1:");
        /* Whatever happens, no password in a text. */
        CHECK(strstr(error->text, "s3cret") == NULL);
    }
    return status;
}

static void
fails(actor broker, fm_status expected, uint16_t code, const char *words)
{
    fm_session session;
    fm_error error;

    CHECK_INT(
        shake(&broker, &login_of_nova, 10000, -1, &session, &error), expected);
    CHECK_INT(error.code, code);
    CHECK_HAS(error.text, words);
}

static void
test_a_good_broker_in_pieces_of_any_size(void)
{
    static const size_t pieces[] = { 0, 1, 3, 7, 100 };
    static const char secrets[] = "\0nova\0s3cret";

    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        actor broker = good_broker;
        fm_session session;
        fm_error error;

        broker.piece = pieces[i];
        broker.after = "more";
        CHECK_INT(
            shake(&broker, &login_of_nova, 20000, -1, &session, &error), FM_OK);
        CHECK_INT(session.channel_max, 2047);
        CHECK_INT(session.frame_max, 131072);
        CHECK_INT(session.heartbeat_s, 60);
        CHECK_INT(user_timeout_ms, 120000);
        CHECK_TEXT(session.broker_product, "RabbitMQ");
        CHECK_TEXT(session.broker_version, "3.10.8");
        CHECK(!session.can_blocked); /* it did not say so */
        if (broker.piece == 0)       /* came with the same recv() */
            CHECK_BYTES(session.leftover.data, session.leftover.len, "more", 4);
        CHECK_BYTES(broker.header, 8, "AMQP\0\0\x09\1", 8);
        CHECK(memmem(broker.start_ok, broker.start_ok_len, secrets,
                  sizeof(secrets) - 1)
            != NULL);
        CHECK_INT(broker.tune_ok.channel_max, 2047);
        CHECK_INT(broker.tune_ok.frame_max, 131072);
        CHECK_INT(broker.tune_ok.heartbeat, 60);
        CHECK_TEXT(broker.virtual_host, "cell1");
        fm_session_fini(&session);
    }
}

static void
test_limits_and_heartbeats_are_agreed_on(void)
{
    static const struct {
        amqp_connection_tune_t tune; /* channel_max, frame_max, heartbeat */
        uint16_t ours_s;
        uint16_t channel_max;
        uint32_t frame_max;
        uint16_t heartbeat_s;
    } cases[] = {
        { { 0, 0, 0 }, 60, 65535, 131072, 60 },
        { { 0, 0, 0 }, 0, 65535, 131072, 0 },
        { { 100, 4096, 30 }, 60, 100, 4096, 30 },
        { { 100, 8192, 60 }, 30, 100, 8192, 30 },
        { { 2047, 1 << 20, 60 }, 0, 2047, 131072, 0 },
        { { 5, UINT32_MAX, 1 }, 65535, 5, 131072, 1 },
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        actor broker = good_broker;
        fm_login login = login_of_nova;
        fm_session session;
        fm_error error;

        broker.tune = cases[i].tune;
        login.heartbeat_s = cases[i].ours_s;
        CHECK_INT(shake(&broker, &login, 10000, -1, &session, &error), FM_OK);
        CHECK_INT(session.channel_max, cases[i].channel_max);
        CHECK_INT(session.frame_max, cases[i].frame_max);
        CHECK_INT(session.heartbeat_s, cases[i].heartbeat_s);
        CHECK_INT(broker.tune_ok.channel_max, cases[i].channel_max);
        CHECK_INT(broker.tune_ok.frame_max, cases[i].frame_max);
        CHECK_INT(broker.tune_ok.heartbeat, cases[i].heartbeat_s);
        CHECK_INT(user_timeout_ms, cases[i].heartbeat_s * 2000);
        fm_session_fini(&session);
    }
}

static void
test_too_few_channels_to_work_with_are_refused(void)
{
    actor broker = good_broker;

    broker.tune.channel_max = 4;
    fails(broker, FM_REFUSED, 530, "allows 4 channels per connection");
}

static void
test_frames_below_amqp_s_least_are_refused(void)
{
    actor broker = good_broker;

    broker.tune.frame_max = 4095;
    fails(broker, FM_BAD_FRAME, 501, "at most 4095 bytes");
}

static void
test_an_empty_virtual_host_is_the_root(void)
{
    actor broker = good_broker;
    fm_login login = login_of_nova;
    fm_session session;
    fm_error error;

    login.virtual_host = "";
    CHECK_INT(shake(&broker, &login, 10000, -1, &session, &error), FM_OK);
    CHECK_TEXT(broker.virtual_host, "/");
    fm_session_fini(&session);
}

static void
test_a_mechanism_that_the_broker_does_not_offer(void)
{
    actor broker = good_broker;
    fm_login login = login_of_nova;
    fm_session session;
    fm_error error;

    login.who.mechanism = FM_MECHANISM_EXTERNAL;
    CHECK_INT(shake(&broker, &login, 10000, -1, &session, &error), FM_REFUSED);
    CHECK_HAS(error.text, "EXTERNAL, only: AMQPLAIN PLAIN");
    CHECK_INT(broker.start_ok_len, 0); /* nothing was tried */
}

static void
test_names_that_are_too_long(void)
{
    char longest[5000];
    actor broker = good_broker;
    fm_login login = login_of_nova;
    fm_session session;
    fm_error error;

    memset(longest, 'v', sizeof(longest));
    longest[256] = '\0';
    login.virtual_host = longest;
    CHECK_INT(
        shake(&broker, &login, 10000, -1, &session, &error), FM_TOO_LARGE);
    CHECK_HAS(error.text, "virtual host");
    login = login_of_nova;
    longest[256] = 'v';
    longest[sizeof(longest) - 1] = '\0';
    login.who.password = longest;
    CHECK_INT(
        shake(&broker, &login, 10000, -1, &session, &error), FM_TOO_LARGE);
    CHECK_HAS(error.text, "password");
}

/* connection.close from the broker, at `stage`. */
static actor
closing(enum stage stage, uint16_t code, const char *text, uint8_t *room)
{
    amqp_connection_close_t close = { .reply_code = code,
        .reply_text = amqp_cstring_bytes(text) };
    actor broker = good_broker;

    broker.stage = stage;
    broker.deed = SAY;
    broker.words = room;
    broker.words_len = frame_of(room, 0, AMQP_CONNECTION_CLOSE_METHOD, &close);
    return broker;
}

static void
test_refusals_carry_the_broker_s_code_and_words(void)
{
    uint8_t room[4096];

    fails(closing(AT_TUNE, 403, "ACCESS_REFUSED - Login was refused", room),
        FM_REFUSED, 403, "403 ACCESS_REFUSED - Login was refused");
    fails(closing(AT_OPEN_OK, 530, "NOT_ALLOWED - vhost cell1 not found", room),
        FM_REFUSED, 530, "530 NOT_ALLOWED - vhost cell1 not found");
    fails(closing(AT_OPEN_OK, 402, "INVALID_PATH", room), FM_REFUSED, 402,
        "402 INVALID_PATH");
    /* Not about this login: another try may succeed. */
    fails(closing(AT_TUNE, 320, "CONNECTION_FORCED - shutdown", room),
        FM_CLOSED, 320, "320 CONNECTION_FORCED");
    fails(closing(AT_OPEN_OK, 541, "INTERNAL_ERROR", room), FM_CLOSED, 541,
        "541 INTERNAL_ERROR");
    fails(closing(AT_START, 320, "CONNECTION_FORCED", room), FM_CLOSED, 320,
        "320 CONNECTION_FORCED");
}

static void
test_brokers_that_hang_up(void)
{
    actor broker = good_broker;

    broker.deed = HANG_UP;
    broker.stage = AT_START;
    fails(broker, FM_CLOSED, 0, "instead of sending connection.start");
    broker.stage = AT_TUNE;
    fails(broker, FM_CLOSED, 0, "instead of sending connection.tune");
    broker.stage = AT_OPEN_OK;
    fails(broker, FM_CLOSED, 0, "instead of sending connection.open-ok");
    /* Old brokers do so when the password is wrong. */
    broker.tells_why = false;
    broker.stage = AT_TUNE;
    fails(broker, FM_REFUSED, 403, "wrong user or password");
    broker.stage = AT_OPEN_OK;
    fails(broker, FM_CLOSED, 0, "instead of sending connection.open-ok");
}

static void
test_silence_and_chatter_end_at_the_deadline(void)
{
    static const char *const steps[] = { "connection.start", "connection.tune",
        "connection.open-ok" };

    for (enum stage stage = AT_START; stage < AT_THE_END; stage++) {
        for (enum deed deed = STAY_SILENT; deed <= CHATTER; deed++) {
            actor broker = good_broker;
            fm_session session;
            fm_error error;
            int64_t start = fm_now();

            broker.stage = stage;
            broker.deed = deed;
            CHECK_INT(shake(&broker, &login_of_nova, 200, -1, &session, &error),
                FM_TIMED_OUT);
            CHECK(fm_now() - start >= 200 * FM_NS_PER_MS);
            CHECK(fm_now() - start < 5 * FM_NS_PER_S);
            CHECK_HAS(error.text, "timed out, waiting for ");
            CHECK_HAS(error.text, steps[stage]);
        }
    }
}

static void *
cancel_later(void *arg)
{
    usleep(100 * 1000);
    CHECK(eventfd_write(*(int *)arg, 1) == 0);
    return NULL;
}

static void
test_it_can_be_called_off(void)
{
    actor broker = good_broker;
    int cancel_fd = eventfd(0, EFD_CLOEXEC);
    fm_session session;
    fm_error error;
    pthread_t canceller;
    int64_t start = fm_now();

    broker.stage = AT_TUNE;
    broker.deed = STAY_SILENT;
    broker.tells_why = false; /* must not pass for a hang-up */
    CHECK(pthread_create(&canceller, NULL, cancel_later, &cancel_fd) == 0);
    CHECK_INT(
        shake(&broker, &login_of_nova, 20000, cancel_fd, &session, &error),
        FM_CLOSED);
    CHECK(fm_now() - start < 10 * FM_NS_PER_S);
    pthread_join(canceller, NULL);
    close(cancel_fd);
}

static actor
saying(enum stage stage, const void *words, size_t len)
{
    actor broker = good_broker;

    broker.stage = stage;
    broker.deed = SAY;
    broker.words = words;
    broker.words_len = len;
    return broker;
}

static void
test_peers_that_are_no_brokers(void)
{
    static const char http[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    static const uint8_t huge[] = { 1, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0 };

    fails(saying(AT_START, "AMQP\0\0\x09\1", 8), FM_BAD_FRAME, 0,
        "not an AMQP 0-9-1 broker");
    fails(saying(AT_START, "\x15\3\1\0\2\2\x46", 7), FM_BAD_FRAME, 0,
        "it speaks TLS");
    fails(saying(AT_START, http, sizeof(http) - 1), FM_BAD_FRAME, 0,
        "it speaks HTTP");
    fails(saying(AT_START, "SSH-2.0-OpenSSH_9\r\n", 19), FM_BAD_FRAME, 501,
        "not an AMQP 0-9-1 broker");
    fails(saying(AT_START, huge, sizeof(huge)), FM_BAD_FRAME, 501,
        "frame of 2147483647 bytes");
}

static void
test_frames_that_do_not_belong_there(void)
{
    uint8_t frame[4096];
    amqp_connection_tune_t tune = { 1, 4096, 1 };
    amqp_connection_secure_t secure = { { 0 } };
    amqp_connection_start_t old = { .version_major = 8 };
    static const uint8_t body[] = { 3, 0, 0, 0, 0, 0, 1, 'x', 0xCE };
    static const uint8_t stub[] = { 1, 0, 0, 0, 0, 0, 3, 0, 10, 0, 0xCE };
    size_t len = frame_of(frame, 0, AMQP_CONNECTION_TUNE_METHOD, &tune);

    fails(saying(AT_START, frame, len), FM_BAD_FRAME, 503,
        "unexpected connection.tune instead of connection.start");
    fails(saying(AT_OPEN_OK, frame, len), FM_BAD_FRAME, 503,
        "unexpected connection.tune instead of connection.open-ok");
    len = frame_of(frame, 1, AMQP_CONNECTION_TUNE_METHOD, &tune);
    fails(saying(AT_TUNE, frame, len), FM_BAD_FRAME, 505, "on channel 1");
    len = frame_of(frame, 0, AMQP_CONNECTION_SECURE_METHOD, &secure);
    fails(saying(AT_TUNE, frame, len), FM_BAD_FRAME, 503, "connection.secure");
    len = frame_of(frame, 0, AMQP_CONNECTION_START_METHOD, &old);
    fails(saying(AT_START, frame, len), FM_BAD_FRAME, 0, "it speaks 8-0");
    fails(saying(AT_TUNE, body, sizeof(body)), FM_BAD_FRAME, 505,
        "frame of type 3");
    fails(saying(AT_TUNE, stub, sizeof(stub)), FM_BAD_FRAME, 505, "");
}

/* Methods with fields cut off at any place: refused, or read for what they
 * are; never read beyond (ASan). */
static void
test_methods_that_are_cut(void)
{
    uint8_t frame[4096];
    amqp_connection_tune_t tune = { 1, 4096, 1 };
    size_t len = frame_of(frame, 0, AMQP_CONNECTION_TUNE_METHOD, &tune);

    for (uint32_t cut = 4; cut < len - 8; cut++) {
        uint8_t part[64];

        memcpy(part, frame, 7 + cut);
        fm_store_u32(part + 3, cut);
        part[7 + cut] = FM_FRAME_END;
        fails(saying(AT_TUNE, part, cut + 8), FM_BAD_FRAME, 503,
            "malformed or unexpected connection.tune");
    }
}

static void
test_nobody_has_to_want_the_error(void)
{
    actor broker = good_broker;
    fm_endpoint endpoint = { .host = "127.0.0.1" };
    fm_socket *sock = NULL;
    fm_session session;
    peer server;

    broker.stage = AT_START;
    broker.deed = HANG_UP;
    peer_start(&server, play, &broker);
    endpoint.port = server.port;
    CHECK_INT(
        fm_socket_connect(&endpoint, NULL, FM_NEVER, -1, &sock, NULL), FM_OK);
    CHECK_INT(fm_handshake(sock, &login_of_nova, FM_NEVER, -1, &session, NULL),
        FM_CLOSED);
    fm_socket_free(sock);
    peer_join(&server);
}

int
main(void)
{
    int descriptors = count_descriptors();

    RUN(test_a_good_broker_in_pieces_of_any_size);
    RUN(test_limits_and_heartbeats_are_agreed_on);
    RUN(test_too_few_channels_to_work_with_are_refused);
    RUN(test_frames_below_amqp_s_least_are_refused);
    RUN(test_an_empty_virtual_host_is_the_root);
    RUN(test_a_mechanism_that_the_broker_does_not_offer);
    RUN(test_names_that_are_too_long);
    RUN(test_refusals_carry_the_broker_s_code_and_words);
    RUN(test_brokers_that_hang_up);
    RUN(test_silence_and_chatter_end_at_the_deadline);
    RUN(test_it_can_be_called_off);
    RUN(test_peers_that_are_no_brokers);
    RUN(test_frames_that_do_not_belong_there);
    RUN(test_methods_that_are_cut);
    RUN(test_nobody_has_to_want_the_error);
    CHECK_INT(count_descriptors(), descriptors);
    return 0;
}
