#include "io/handshake.h"

#include "io/field.h"
#include "io/frame.h"

#include <poll.h>
#include <string.h>

enum {
    READ_ROOM = 8192, /* the greeting has some 500 bytes */
    CODE_INVALID_PATH = 402,
    CODE_ACCESS_REFUSED = 403,
    CODE_NOT_ALLOWED = 530
};

/* One handshake under way; borrowed but for the buffers. */
struct talk {
    fm_socket *sock;
    fm_deadline deadline;
    int cancel_fd;
    fm_error *error;  /* never NULL */
    const char *step; /* what we wait for, for texts */
    fm_buf out;       /* owned; holds credentials for a while */
    fm_buf in;        /* owned; what came */
    size_t taken;     /* of in: frames that were looked at */
    bool hung_up;     /* the broker did, without a word */
};

/* --- bytes --- */

static fm_status
say(struct talk *talk, fm_status status)
{
    return fm_error_set(talk->error, status, 0, "%s: %s, waiting for %s",
        fm_socket_peer(talk->sock), fm_status_text(status), talk->step);
}

/* FM_OK once the socket may be ready. The deadline counts also when it always
 * is: a peer may chatter for ever. */
static fm_status
wait_ready(struct talk *talk, short events)
{
    fm_status status = FM_OK;

    if (events != POLLIN || !fm_socket_has_pending(talk->sock))
        status =
            fm_socket_wait(talk->sock, events, talk->deadline, talk->cancel_fd);
    if (status == FM_OK && talk->deadline <= fm_now())
        status = FM_TIMED_OUT;
    return status == FM_OK ? FM_OK : say(talk, status);
}

/* Send and empty `out`, wiping what it held. */
static fm_status
send_out(struct talk *talk)
{
    size_t sent = 0;
    fm_status status = FM_OK;

    while (status == FM_OK && sent < talk->out.len) {
        size_t n = 0;

        status = fm_socket_try_write(talk->sock, talk->out.data + sent,
            talk->out.len - sent, &n, talk->error);
        if (status == FM_AGAIN)
            status = wait_ready(talk, POLLOUT);
        sent += n;
    }
    explicit_bzero(talk->out.data, talk->out.len);
    talk->out.len = 0;
    return status;
}

static fm_status
read_more(struct talk *talk)
{
    fm_status status;
    size_t n;

    fm_buf_consume(&talk->in, talk->taken);
    talk->taken = 0;
    status = fm_buf_reserve(&talk->in, READ_ROOM);
    if (status != FM_OK)
        return say(talk, status);
    for (;;) {
        status = wait_ready(talk, POLLIN);
        if (status != FM_OK)
            return status;
        status = fm_socket_try_read(talk->sock, talk->in.data + talk->in.len,
            talk->in.cap - talk->in.len, &n, talk->error);
        if (status == FM_AGAIN)
            continue;
        if (status == FM_OK)
            talk->in.len += n;
        talk->hung_up = status == FM_CLOSED || status == FM_SYSTEM;
        if (status == FM_CLOSED)
            fm_error_set(talk->error, status, 0,
                "%s closed the connection instead of sending %s",
                fm_socket_peer(talk->sock), talk->step);
        return status;
    }
}

/* The next method of channel 0. It is borrowed until the next call. */
static fm_status
next_method(struct talk *talk, fm_frame *out, uint32_t *id)
{
    for (;;) {
        const uint8_t *data = talk->in.data + talk->taken;
        size_t len = talk->in.len - talk->taken;
        size_t used;
        fm_status status =
            fm_frame_split(data, len, FM_FRAME_MAX_MOST, out, &used);

        if (status == FM_AGAIN) {
            status = read_more(talk);
            if (status != FM_OK)
                return status;
            continue;
        }
        if (status != FM_OK) {
            fm_error cause;

            fm_frame_explain(data, len, FM_FRAME_MAX_MOST, &cause);
            return fm_error_set(talk->error, status, cause.code, "%s: %.200s",
                fm_socket_peer(talk->sock), cause.text);
        }
        talk->taken += used;
        if (out->type == FM_FRAME_HEARTBEAT)
            continue;
        if (out->type != FM_FRAME_METHOD || out->channel != 0
            || fm_amqp_method_id(out->payload, out->len, id) != FM_OK)
            return fm_error_set(talk->error, FM_BAD_FRAME, 505,
                "%s: frame of type %u on channel %u instead of %s",
                fm_socket_peer(talk->sock), out->type, out->channel,
                talk->step);
        return FM_OK;
    }
}

static fm_status
bad_method(struct talk *talk, uint32_t id)
{
    return fm_error_set(talk->error, FM_BAD_FRAME, 503,
        "%s: malformed or unexpected %s instead of %s",
        fm_socket_peer(talk->sock), fm_amqp_method_name(id), talk->step);
}

/* --- what the broker refuses --- */

/* connection.close came. Refusals are of this login; anything else (a broker
 * that is shutting down, an internal error) may pass. */
static fm_status
closed_by_broker(struct talk *talk, const fm_frame *frame)
{
    fm_close why;
    char words[320];
    fm_status status = FM_CLOSED;

    if (fm_amqp_get_close(frame->payload, frame->len, &why) != FM_OK)
        return bad_method(talk, FM_METHOD_CONNECTION_CLOSE);
    fm_amqp_print_close(words, sizeof(words), &why);
    if (why.code == CODE_INVALID_PATH || why.code == CODE_ACCESS_REFUSED
        || why.code == CODE_NOT_ALLOWED)
        status = FM_REFUSED;
    /* Politeness: whether it arrives changes nothing. */
    if (fm_amqp_put_connection_close_ok(&talk->out) == FM_OK) {
        size_t n;

        (void)!fm_socket_try_write(
            talk->sock, talk->out.data, talk->out.len, &n, NULL);
    }
    return fm_error_set(talk->error, status, why.code,
        "%s refused the connection: %s", fm_socket_peer(talk->sock), words);
}

/* Wait for method `id`; its frame is borrowed until the next read. */
static fm_status
expect(struct talk *talk, uint32_t id, fm_frame *out)
{
    uint32_t found = 0;
    fm_status status;

    talk->step = fm_amqp_method_name(id);
    status = next_method(talk, out, &found);
    if (status != FM_OK || found == id)
        return status;
    if (found == FM_METHOD_CONNECTION_CLOSE)
        return closed_by_broker(talk, out);
    return bad_method(talk, found);
}

/* --- the steps --- */

/* The protocol header to start. */
static fm_status
greet(struct talk *talk, const fm_login *login, fm_session *session,
    bool *tells_why)
{
    static const uint8_t header[] = { 'A', 'M', 'Q', 'P', 0, 0, 9, 1 };
    const char *mechanism = fm_amqp_mechanism_name(login->who.mechanism);
    fm_start start;
    fm_frame frame;
    fm_status status;

    status = fm_buf_reserve(&talk->in, READ_ROOM);
    if (status == FM_OK)
        status = fm_buf_append(&talk->out, header, sizeof(header));
    if (status != FM_OK)
        return say(talk, status);
    status = send_out(talk);
    if (status != FM_OK)
        return status;
    status = expect(talk, FM_METHOD_CONNECTION_START, &frame);
    if (status != FM_OK)
        return status;
    if (fm_amqp_get_start(frame.payload, frame.len, &start) != FM_OK)
        return bad_method(talk, FM_METHOD_CONNECTION_START);
    if (start.major != 0 || start.minor != 9)
        return fm_error_set(talk->error, FM_BAD_FRAME, 0,
            "%s is not an AMQP 0-9-1 broker: it speaks %u-%u",
            fm_socket_peer(talk->sock), start.major, start.minor);

    fm_field_print(session->broker_product, sizeof(session->broker_product),
        start.product);
    fm_field_print(session->broker_version, sizeof(session->broker_version),
        start.version);
    session->can_blocked = start.can_blocked;
    session->can_consumer_cancel = start.can_consumer_cancel;
    session->can_confirm = start.can_confirm;
    session->can_nack = start.can_nack;
    *tells_why = start.can_auth_failure_close;
    if (!fm_amqp_list_has(start.mechanisms, mechanism)) {
        char offered[96];

        fm_field_print(offered, sizeof(offered), start.mechanisms);
        return fm_error_set(talk->error, FM_REFUSED, CODE_ACCESS_REFUSED,
            "%s does not offer login method %s, only: %s",
            fm_socket_peer(talk->sock), mechanism, offered);
    }
    return FM_OK;
}

/* 0 means that the broker sets no limit, or has no wish. */
static fm_status
agree(struct talk *talk, const fm_tune *tune, const fm_login *login,
    fm_session *session)
{
    session->channel_max =
        tune->channel_max == 0 ? UINT16_MAX : tune->channel_max;
    if (session->channel_max < FM_CHANNELS_LEAST)
        return fm_error_set(talk->error, FM_REFUSED, CODE_NOT_ALLOWED,
            "%s allows %u channels per connection (channel_max); at least %d "
            "are needed",
            fm_socket_peer(talk->sock), session->channel_max,
            FM_CHANNELS_LEAST);
    session->frame_max = tune->frame_max;
    if (tune->frame_max == 0 || tune->frame_max > FM_FRAME_MAX_MOST)
        session->frame_max = FM_FRAME_MAX_MOST;
    if (session->frame_max < FM_FRAME_MAX_LEAST)
        return fm_error_set(talk->error, FM_BAD_FRAME, 501,
            "%s wants frames of at most %u bytes; AMQP's least is %u",
            fm_socket_peer(talk->sock), tune->frame_max, FM_FRAME_MAX_LEAST);
    session->heartbeat_s = login->heartbeat_s;
    if (tune->heartbeat_s != 0 && tune->heartbeat_s < login->heartbeat_s)
        session->heartbeat_s = tune->heartbeat_s;
    return FM_OK;
}

/* start-ok to tune. */
static fm_status
log_in(struct talk *talk, const fm_login *login, bool tells_why,
    fm_session *session)
{
    fm_frame frame;
    fm_tune tune;
    fm_status status = fm_amqp_put_start_ok(&talk->out, &login->who);

    if (status == FM_TOO_LARGE)
        return fm_error_set(talk->error, status, 0,
            "%s: user, password or connection name is too long",
            fm_socket_peer(talk->sock));
    if (status != FM_OK)
        return say(talk, status);
    status = send_out(talk);
    if (status != FM_OK)
        return status;
    status = expect(talk, FM_METHOD_CONNECTION_TUNE, &frame);
    /* Brokers that do not announce authentication_failure_close just hang up
     * on a bad login. From one that does, this is a lost connection. */
    if (talk->hung_up && !tells_why)
        return fm_error_set(talk->error, FM_REFUSED, CODE_ACCESS_REFUSED,
            "%s closed the connection during the login, probably because "
            "of a wrong user or password",
            fm_socket_peer(talk->sock));
    if (status != FM_OK)
        return status;
    if (fm_amqp_get_tune(frame.payload, frame.len, &tune) != FM_OK)
        return bad_method(talk, FM_METHOD_CONNECTION_TUNE);
    return agree(talk, &tune, login, session);
}

/* tune-ok to open-ok. */
static fm_status
open_host(struct talk *talk, const fm_login *login, const fm_session *session)
{
    const char *host = login->virtual_host;
    fm_frame frame;
    fm_status status;

    if (host == NULL || host[0] == '\0')
        host = "/";
    status = fm_amqp_put_tune_ok(&talk->out, session->channel_max,
        session->frame_max, session->heartbeat_s);
    if (status != FM_OK)
        return say(talk, status);
    status = fm_amqp_put_connection_open(&talk->out, host);
    if (status == FM_TOO_LARGE)
        return fm_error_set(talk->error, status, 0,
            "%s: the name of the virtual host is longer than 255 bytes",
            fm_socket_peer(talk->sock));
    if (status != FM_OK)
        return say(talk, status);
    status = send_out(talk);
    if (status != FM_OK)
        return status;
    return expect(talk, FM_METHOD_CONNECTION_OPEN_OK, &frame);
}

fm_status
fm_handshake(fm_socket *sock, const fm_login *login, fm_deadline deadline,
    int cancel_fd, fm_session *out, fm_error *error)
{
    fm_error cause = { 0 };
    fm_session session = { 0 };
    struct talk talk = { .sock = sock,
        .deadline = deadline,
        .cancel_fd = cancel_fd,
        .error = &cause,
        .step = fm_amqp_method_name(FM_METHOD_CONNECTION_START) };
    bool tells_why = false;
    fm_status status = greet(&talk, login, &session, &tells_why);

    if (status == FM_OK)
        status = log_in(&talk, login, tells_why, &session);
    if (status == FM_OK)
        status = open_host(&talk, login, &session);
    if (status == FM_OK) {
        /* Two intervals, like the silence that ends a connection. */
        fm_socket_set_user_timeout(sock, session.heartbeat_s * 2000U);
        fm_buf_consume(&talk.in, talk.taken);
        session.leftover = talk.in; /* the caller's now */
        talk.in = (fm_buf){ 0 };
        *out = session;
    } else if (error != NULL) {
        *error = cause;
    }
    fm_buf_fini(&talk.out);
    fm_buf_fini(&talk.in);
    return status;
}

void
fm_session_fini(fm_session *session)
{
    fm_buf_fini(&session->leftover);
}
