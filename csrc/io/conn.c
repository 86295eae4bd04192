#include "io/conn.h"

#include "base/event.h"
#include "io/amqp.h"
#include "io/frame.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#ifndef FM_VERSION
#define FM_VERSION "0" /* the build gives the real one */
#endif

enum {
    READ_BYTES = 64 * 1024,  /* room for one read */
    READ_TURNS = 16,         /* reads before others have their turn */
    FLAPS_MAX = 10,          /* pauses grow no longer after so many */
    KEEP_BYTES = 512 * 1024, /* what an empty receive buffer may keep */
};
#define OVERLAP_NS FM_NS_PER_S
#define ATTEMPT_NS (10 * FM_NS_PER_S)
#define CLOSE_NS (2 * FM_NS_PER_S)
#define STABLE_NS (5 * FM_NS_PER_S)
#define HURRY_NS FM_NS_PER_S
#define FLAP_NS (300 * FM_NS_PER_MS)

/* --- configuration --- */

fm_status
fm_conn_config_new(fm_conn_config **out)
{
    fm_conn_config *config = calloc(1, sizeof(*config));

    if (config == NULL)
        return FM_NO_MEMORY;
    atomic_init(&config->refs, 1);
    *out = config;
    return FM_OK;
}

fm_conn_config *
fm_conn_config_ref(fm_conn_config *config)
{
    atomic_fetch_add_explicit(&config->refs, 1, memory_order_relaxed);
    return config;
}

void
fm_conn_config_unref(fm_conn_config *config)
{
    if (config == NULL
        || atomic_fetch_sub_explicit(&config->refs, 1, memory_order_acq_rel)
            > 1)
        return;
    for (size_t i = 0; i < config->host_count; i++) {
        fm_host *host = &config->hosts[i];

        if (host->password != NULL)
            explicit_bzero(host->password, strlen(host->password));
        free(host->password);
        free(host->user);
        free(host->name);
    }
    free(config->hosts);
    free(config->virtual_host);
    free(config->name);
    for (size_t i = 0; i < 3; i++)
        free(config->tls_strings[i]);
    free(config);
}

/* Of the hosts, as they stand in the URL: whoever has them in another order
 * finds out for himself. */
static uint64_t
hosts_key(const fm_conn_config *config)
{
    uint64_t key = UINT64_C(14695981039346656037); /* FNV-1a */

    for (size_t i = 0; i < config->host_count; i++) {
        const fm_host *host = &config->hosts[i];

        for (const char *at = host->name; *at != '\0'; at++)
            key = (key ^ (uint8_t)*at) * UINT64_C(1099511628211);
        key = (key ^ 0x10000u ^ host->port) * UINT64_C(1099511628211);
    }
    return key;
}

/* --- attempts: each on a thread of its own --- */

typedef struct fm_attempt {
    struct fm_attempt *next;
    fm_conn_config *config; /* shared */
    size_t host;
    char name[256];  /* connection_name */
    fm_waker *waker; /* borrowed: the loop's; outlives the attempt */
    fm_waker cancel; /* signaled: give up */
    bool cancelled;  /* nobody wants to know how it ends */
    fm_thread thread;
    atomic_bool done; /* what follows is written */
    fm_status status;
    fm_error error;
    fm_socket *socket; /* owned */
    fm_session session;
} fm_attempt;

static void
attempt_log_in(fm_attempt *attempt, fm_deadline deadline)
{
    const fm_conn_config *config = attempt->config;
    const fm_host *host = &config->hosts[attempt->host];
    fm_login login = {
        .who = { config->mechanism, host->user, host->password, attempt->name,
            FM_VERSION },
        .virtual_host = config->virtual_host,
        .heartbeat_s = config->heartbeat_s,
    };

    attempt->status = fm_handshake(attempt->socket, &login, deadline,
        attempt->cancel.fd, &attempt->session, &attempt->error);
    if (attempt->status != FM_OK) {
        fm_socket_free(attempt->socket);
        attempt->socket = NULL;
    }
}

static void *
attempt_run(void *arg)
{
    fm_attempt *attempt = arg;
    const fm_host *host = &attempt->config->hosts[attempt->host];
    fm_endpoint endpoint = { host->name, host->port };
    fm_deadline deadline = fm_deadline_in(ATTEMPT_NS);

    attempt->status = fm_socket_connect(&endpoint, &attempt->config->tls,
        deadline, attempt->cancel.fd, &attempt->socket, &attempt->error);
    if (attempt->status == FM_OK)
        attempt_log_in(attempt, deadline);
    if (attempt->config->tls.enabled)
        fm_socket_leave_thread();
    atomic_store(&attempt->done, true);
    fm_waker_signal(attempt->waker);
    return NULL;
}

static void
attempt_free(fm_attempt *attempt)
{
    if (attempt->socket != NULL)
        fm_socket_free(attempt->socket);
    if (attempt->status == FM_OK)
        fm_session_fini(&attempt->session);
    fm_waker_fini(&attempt->cancel);
    fm_conn_config_unref(attempt->config);
    free(attempt);
}

/* `<name>:<pid>:<uuid>:fastmsg-<role>`: the stock driver's form, and who we
 * are. */
static void
attempt_name(fm_attempt *attempt, const char *role)
{
    uint8_t r[16] = { 0 };

    if (getrandom(r, sizeof(r), GRND_NONBLOCK) < 0)
        fm_store_u64(r, (uint64_t)fm_now());
    snprintf(attempt->name, sizeof(attempt->name),
        "%.150s:%ld:%02x%02x%02x%02x-%02x%02x-4%x%02x-%x%x%02x-"
        "%02x%02x%02x%02x%02x%02x:fastmsg-%s",
        attempt->config->name, (long)getpid(), r[0], r[1], r[2], r[3], r[4],
        r[5], r[6] & 0x0f, r[7], 8 | (r[8] & 3), r[8] >> 4, r[9], r[10], r[11],
        r[12], r[13], r[14], r[15], role);
}

static fm_status
attempt_start(fm_conn *conn)
{
    fm_attempt *attempt = calloc(1, sizeof(*attempt));
    fm_status status;

    if (attempt == NULL)
        return FM_NO_MEMORY;
    attempt->config = fm_conn_config_ref(conn->config);
    attempt->host = conn->host;
    attempt->waker = conn->output.waker;
    attempt->status = FM_AGAIN;
    attempt_name(attempt, conn->role);
    status = fm_waker_init(&attempt->cancel);
    if (status == FM_OK)
        status = fm_thread_start(
            &attempt->thread, "fastmsg-connect", attempt_run, attempt);
    if (status != FM_OK) {
        attempt_free(attempt);
        return status;
    }
    attempt->next = conn->attempts;
    conn->attempts = attempt;
    return FM_OK;
}

static void
cancel_attempts(fm_conn *conn)
{
    for (fm_attempt *each = conn->attempts; each != NULL; each = each->next) {
        each->cancelled = true;
        fm_waker_signal(&each->cancel);
    }
}

/* --- life --- */

static uint64_t
random_below(uint64_t bound)
{
    uint64_t value = 0;

    if (getrandom(&value, sizeof(value), GRND_NONBLOCK) != sizeof(value))
        value = (uint64_t)fm_now() * UINT64_C(0x9e3779b97f4a7c15) >> 16;
    return bound == 0 ? 0 : value % bound;
}

void
fm_conn_init(fm_conn *conn, const fm_conn_ops *ops, void *owner,
    const char *role, fm_conn_config *config, fm_waker *waker)
{
    memset(conn, 0, sizeof(*conn));
    fm_output_init(&conn->output, waker);
    conn->output.strictness = fm_strictness_get(hosts_key(config));
    conn->ops = ops;
    conn->owner = owner;
    conn->role = role;
    conn->config = fm_conn_config_ref(config);
    conn->state = FM_CONN_IDLE;
    conn->host = (size_t)random_below(config->host_count);
    atomic_init(&conn->seen_state, FM_CONN_IDLE);
    atomic_init(&conn->seen_since, fm_now());
}

void
fm_conn_fini(fm_conn *conn)
{
    assert(conn->state == FM_CONN_IDLE && conn->attempts == NULL);
    fm_buf_fini(&conn->in);
    fm_output_fini(&conn->output);
    fm_conn_config_unref(conn->config);
}

static void
set_state(fm_conn *conn, fm_conn_state state)
{
    if ((conn->state == FM_CONN_OPEN) != (state == FM_CONN_OPEN))
        atomic_store_explicit(
            &conn->seen_since, fm_now(), memory_order_relaxed);
    conn->state = state;
    atomic_store_explicit(&conn->seen_state, state, memory_order_relaxed);
}

bool
fm_conn_is_gone(const fm_conn *conn)
{
    return conn->state == FM_CONN_IDLE && conn->attempts == NULL;
}

static uint64_t
throw_dice(void)
{
    return random_below(UINT64_MAX);
}

/* When to try again after conn->rounds failures. Both connections of a
 * process have lost the same broker: the second to fail waits for the first,
 * and a little longer. */
static int64_t
next_try(const fm_conn *conn, int64_t now)
{
    const fm_conn *twin = conn->twin;
    const fm_pace *pace = &conn->config->pace;

    if (twin != NULL && twin->state == FM_CONN_WAITING
        && twin->rounds >= conn->rounds && twin->retry_at > now)
        return twin->retry_at + fm_pace_lag(pace, conn->rounds, throw_dice());
    return now + fm_pace_pause(pace, conn->rounds, throw_dice())
        + (int64_t)random_below((uint64_t)pace->splay_ns);
}

/* The broker is there again: the other connection need not wait for long. */
static void
call_twin(fm_conn *conn, int64_t now)
{
    fm_conn *twin = conn->twin;
    int64_t at;

    if (twin == NULL || twin->state != FM_CONN_WAITING)
        return;
    at = now + fm_pace_lag(&conn->config->pace, twin->rounds, throw_dice());
    if (at < twin->retry_at)
        twin->retry_at = at;
    fm_waker_signal(conn->output.waker); /* its step may have been before */
}

/* The pause towards a host that takes us and throws us out again: it lives,
 * so seconds will do. */
static int64_t
flap_pause(const fm_conn *conn)
{
    unsigned flaps = conn->flaps < FLAPS_MAX ? conn->flaps : FLAPS_MAX;

    return FLAP_NS / 10 + (int64_t)random_below(flaps * (uint64_t)FLAP_NS);
}

/* --- losing a connection --- */

/* Free the socket once no writer is in it. */
static void
leave(fm_conn *conn)
{
    if (!fm_output_try_quiet(&conn->output)) {
        set_state(conn, FM_CONN_LEAVING); /* the writer wakes us */
        return;
    }
    fm_output_down(&conn->output);
    fm_socket_free(conn->socket);
    conn->socket = NULL;
    fm_session_fini(&conn->session);
    conn->in.len = conn->in_at = 0;
    fm_buf_shrink(&conn->in, 0);
    set_state(conn, FM_CONN_IDLE); /* the next step decides what follows */
}

static const char *
host_text(const fm_conn *conn, size_t host, char *to, size_t size)
{
    const fm_host *each = &conn->config->hosts[host];

    snprintf(to, size, "%s:%u", each->name, each->port);
    return to;
}

/* The broker closed the connection because it is strict, which is known now. It
 * is made again at once, and nothing is held against anybody. */
static void
learn(fm_conn *conn, const fm_error *why)
{
    conn->lost_at = 0; /* this was no outage */
    conn->retry_at = 0;
    conn->ops->down(conn, why);
    leave(conn);
}

static void
lose(fm_conn *conn, const fm_error *why)
{
    char host[280];
    bool wanted = conn->ops->wanted(conn);

    if (why->status == FM_AGAIN) {
        learn(conn, why);
        return;
    }
    if (conn->state == FM_CONN_OPEN && wanted)
        fm_event_post(FM_WARNING,
            "lost the %s connection to %s: %s; connecting again", conn->role,
            host_text(conn, atomic_load(&conn->seen_host), host, sizeof(host)),
            why->text);
    conn->lost_at = fm_now();
    conn->retry_at = conn->lost_at; /* a host that lives is tried at once */
    if (conn->lost_at - conn->up_at >= STABLE_NS)
        conn->flaps = 0;
    else if (conn->flaps++ > 0) /* no hot loop of being thrown out */
        conn->retry_at += flap_pause(conn);
    conn->is_untold = false;
    conn->ops->down(conn, why);
    leave(conn);
}

bool
fm_conn_leave_host(fm_conn *conn, int64_t now, const fm_error *why)
{
    unsigned flaps = conn->flaps;

    if (now - conn->left_at >= STABLE_NS)
        conn->left = 0;
    if (conn->state != FM_CONN_OPEN
        || conn->left + 1 >= conn->config->host_count)
        return false;
    conn->left++;
    conn->left_at = now;
    conn->was_silent = true;
    conn->silent_host = atomic_load(&conn->seen_host);
    lose(conn, why);
    conn->flaps = flaps; /* nobody threw us out */
    conn->retry_at = conn->lost_at;
    return true;
}

/* --- connecting --- */

static void
tell_back(const fm_conn *conn, bool both)
{
    int64_t lost_at = conn->lost_at;
    char host[280];

    if (both && conn->twin->lost_at < lost_at)
        lost_at = conn->twin->lost_at;
    fm_event_post(FM_WARNING, "%s%s%s %s %s after %.1f s",
        both ? "both" : "the ", both ? "" : conn->role,
        both ? " connections are" : " connection is",
        conn->ever_up ? "back: connected to" : "made to",
        host_text(conn, atomic_load(&conn->seen_host), host, sizeof(host)),
        (double)(conn->up_at - lost_at) / 1e9);
}

/* It is back. One line for both connections, by the one that comes last. */
static void
note_back(fm_conn *conn)
{
    fm_conn *twin = conn->twin;

    conn->is_untold = twin != NULL && twin->lost_at != 0
        && (twin->state == FM_CONN_CONNECTING
            || twin->state == FM_CONN_WAITING);
    if (conn->is_untold)
        return;
    tell_back(conn, twin != NULL && twin->is_untold);
    if (twin != NULL)
        twin->is_untold = false;
}

static void
become_open(fm_conn *conn, fm_attempt *attempt, int64_t now)
{
    static atomic_uint_fast64_t last_epoch;
    char host[280];

    conn->socket = attempt->socket;
    conn->session = attempt->session;
    attempt->socket = NULL;
    attempt->status = FM_AGAIN; /* the session is ours now */
    conn->in = conn->session.leftover;
    fm_buf_init(&conn->session.leftover);
    conn->in_at = 0;
    conn->host = attempt->host;
    conn->last_read = conn->up_at = now;
    fm_strictness_note_version(conn->output.strictness,
        conn->session.broker_product, conn->session.broker_version);
    conn->output.channel_max = conn->session.channel_max;
    conn->is_learning = !atomic_load(&conn->output.strictness->is_strict);
    atomic_store(&conn->seen_host, attempt->host);
    atomic_store(&conn->seen_read, now);
    atomic_store(&conn->heartbeat_s, conn->session.heartbeat_s);
    atomic_fetch_add(&conn->connects, 1);
    fm_output_up(&conn->output, conn->socket, conn->session.frame_max,
        atomic_fetch_add(&last_epoch, 1) + 1);
    set_state(conn, FM_CONN_OPEN);
    host_text(conn, attempt->host, host, sizeof(host));
    if (conn->lost_at != 0)
        note_back(conn);
    else
        fm_event_post(FM_DEBUG, "the %s connection to %s is open (%s %s)",
            conn->role, host, conn->session.broker_product,
            conn->session.broker_version);
    conn->rounds = 0;
    atomic_store(&conn->seen_rounds, 0);
    conn->ever_up = true;
    call_twin(conn, now);
    conn->ops->up(conn, now);
}

static void
next_host(fm_conn *conn)
{
    /* shuffle: any other one; else in turn. One round tries each once, so
     * that a random walk is only taken between rounds. */
    conn->host = (conn->host + 1) % conn->config->host_count;
}

static void
start_round(fm_conn *conn, int64_t now)
{
    if (conn->config->shuffle && conn->left == 0)
        conn->host = (size_t)random_below(conn->config->host_count);
    if (conn->was_silent && conn->host == conn->silent_host)
        next_host(conn);
    conn->was_silent = false;
    conn->tried = 0;
    conn->round_refused = true;
    conn->round_error.status = FM_OK;
    conn->overlap_at = now;
    set_state(conn, FM_CONN_CONNECTING);
}

/* Has the other connection told that it cannot connect, for the same kind of
 * reason? FM_OK: its next round is under way. */
static bool
twin_has_told(const fm_conn *conn)
{
    const fm_conn *twin = conn->twin;

    return twin != NULL
        && (twin->state == FM_CONN_CONNECTING || twin->state == FM_CONN_WAITING)
        && twin->rounds >= conn->rounds
        && (twin->round_error.status == FM_OK
            || twin->round_error.status == conn->round_error.status);
}

static void
end_round(fm_conn *conn, int64_t now)
{
    size_t hosts = conn->config->host_count;

    if (conn->round_refused)
        conn->round_error.status = FM_REFUSED;
    conn->rounds++;
    atomic_store(&conn->seen_rounds, conn->rounds);
    if (conn->lost_at == 0)
        conn->lost_at = now;
    conn->last_round = now;
    conn->retry_at = next_try(conn, now);
    /* One line at the first failure, then ever more rarely. */
    if ((conn->rounds & (conn->rounds - 1)) == 0 && !twin_has_told(conn))
        fm_event_post(FM_ERROR,
            "cannot connect to the broker (%s, attempt %u, %zu host%s): %s; "
            "next attempt in %.1f s",
            conn->role, conn->rounds, hosts, hosts == 1 ? "" : "s",
            conn->round_error.text, (double)(conn->retry_at - now) / 1e9);
    set_state(conn, FM_CONN_WAITING);
    conn->ops->round_failed(conn, &conn->round_error);
}

/* Collect what attempts have come to. */
static void
collect_attempts(fm_conn *conn, int64_t now)
{
    fm_attempt **link = &conn->attempts;

    while (*link != NULL) {
        fm_attempt *attempt = *link;

        if (!atomic_load(&attempt->done)) {
            link = &attempt->next;
            continue;
        }
        *link = attempt->next;
        fm_thread_join(&attempt->thread); /* it has only to return */
        if (conn->state == FM_CONN_CONNECTING && !attempt->cancelled) {
            if (attempt->status == FM_OK) {
                become_open(conn, attempt, now);
                cancel_attempts(conn);
            } else {
                conn->round_error = attempt->error;
                conn->round_refused =
                    conn->round_refused && attempt->status == FM_REFUSED;
                conn->overlap_at = now; /* the next host at once */
            }
        }
        attempt_free(attempt);
    }
}

/* The pause is over at retry_at; sooner for somebody who came after the last
 * failure and will not wait that long, but never at once. */
static fm_deadline
next_round_at(fm_conn *conn)
{
    int64_t failed =
        conn->last_round > conn->lost_at ? conn->last_round : conn->lost_at;

    return failed + HURRY_NS < conn->retry_at && conn->ops->hurry(conn, failed)
        ? failed + HURRY_NS
        : conn->retry_at;
}

/* Start the attempts that are due; the round ends when all have failed. */
static fm_deadline
run_round(fm_conn *conn, int64_t now)
{
    bool more = conn->tried < conn->config->host_count;

    if (more && now >= conn->overlap_at) {
        if (attempt_start(conn) == FM_OK) {
            conn->tried++;
            next_host(conn);
            conn->overlap_at = now + OVERLAP_NS;
        } else {
            (void)fm_error_set(&conn->round_error, FM_NO_MEMORY, 0,
                "no memory, thread or descriptor for an attempt");
            conn->round_refused = false;
            conn->tried = conn->config->host_count;
        }
        more = conn->tried < conn->config->host_count;
    }
    if (!more && conn->attempts == NULL) {
        end_round(conn, now);
        return conn->retry_at;
    }
    return more ? conn->overlap_at : FM_NEVER;
}

/* --- receiving --- */

/* Did the broker close the connection because it is strict, which we did not
 * know when it was made? Later that is an error like any other, so that there
 * is no loop. */
static bool
is_lesson(fm_conn *conn, const fm_close *why)
{
    char host[280];

    if (!conn->is_learning || !fm_close_is_strict(why))
        return false;
    if (!atomic_exchange(&conn->output.strictness->is_strict, true))
        fm_event_post(FM_INFO,
            "the broker at %s denies queues that are neither durable nor "
            "exclusive (transient_nonexcl_queues): from now on such queues are "
            "declared durable; connecting again",
            host_text(conn, atomic_load(&conn->seen_host), host, sizeof(host)));
    return true;
}

static fm_status
take_channel_0(fm_conn *conn, const fm_frame *frame, fm_error *error)
{
    fm_slice reason;
    fm_close close;
    uint32_t id;
    char text[FM_ERROR_TEXT / 2];

    if (frame->type != FM_FRAME_METHOD
        || fm_amqp_method_id(frame->payload, frame->len, &id) != FM_OK)
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "the broker sent a malformed frame on channel 0");
    switch (id) {
    case FM_METHOD_CONNECTION_CLOSE:
        if (fm_amqp_get_close(frame->payload, frame->len, &close) != FM_OK)
            break;
        fm_mutex_lock(&conn->output.lock);
        (void)!fm_amqp_put_connection_close_ok(&conn->output.out);
        fm_output_flush_locked(&conn->output);
        fm_mutex_unlock(&conn->output.lock);
        fm_amqp_print_close(text, sizeof(text), &close);
        return fm_error_set(error,
            is_lesson(conn, &close) ? FM_AGAIN : FM_DISCONNECTED, close.code,
            "closed by the broker: %s", text);
    case FM_METHOD_CONNECTION_CLOSE_OK:
        return fm_error_set(error, FM_CLOSED, 0, "closed");
    case FM_METHOD_CONNECTION_BLOCKED:
        if (fm_amqp_get_blocked(frame->payload, frame->len, &reason) != FM_OK)
            break;
        /* The kernel's patience must not end what is only a pause. */
        fm_socket_set_user_timeout(conn->socket, 0);
        conn->ops->blocked(conn, true, reason);
        return FM_OK;
    case FM_METHOD_CONNECTION_UNBLOCKED:
        fm_socket_set_user_timeout(
            conn->socket, conn->session.heartbeat_s * 2000u);
        conn->ops->blocked(conn, false, (fm_slice){ NULL, 0 });
        return FM_OK;
    default:
        break;
    }
    return fm_error_set(error, FM_BAD_FRAME, 0,
        "the broker sent an unexpected or malformed %s",
        fm_amqp_method_name(id));
}

static bool
is_close_ok(const fm_frame *frame)
{
    uint32_t id;

    return frame->type == FM_FRAME_METHOD
        && fm_amqp_method_id(frame->payload, frame->len, &id) == FM_OK
        && id == FM_METHOD_CHANNEL_CLOSE_OK;
}

static fm_status
take_frame(fm_conn *conn, const fm_frame *frame, fm_error *error)
{
    fm_channel *channel;

    if (frame->type == FM_FRAME_HEARTBEAT)
        return FM_OK;
    if (frame->channel == 0)
        return take_channel_0(conn, frame, error);
    if (conn->state == FM_CONN_CLOSING)
        return FM_OK;
    channel = conn->ops->channel(conn, frame->channel);
    if (channel == NULL && is_close_ok(frame))
        return FM_OK; /* our close crossed the broker's, which we took */
    if (channel == NULL)
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "the broker sent a frame on channel %u, which is not open",
            frame->channel);
    return fm_channel_take_frame(channel, frame, error);
}

static fm_status
take_frames(fm_conn *conn, fm_error *error)
{
    for (;;) {
        const uint8_t *data = conn->in.data + conn->in_at;
        size_t len = conn->in.len - conn->in_at, used;
        fm_frame frame;
        fm_status status;

        if (len == 0)
            break;
        status =
            fm_frame_split(data, len, conn->session.frame_max, &frame, &used);
        if (status == FM_AGAIN)
            break;
        if (status == FM_BAD_FRAME)
            return fm_frame_explain(data, len, conn->session.frame_max, error);
        if (status == FM_OK)
            status = take_frame(conn, &frame, error);
        if (status == FM_NO_MEMORY)
            return fm_error_set(
                error, FM_NO_MEMORY, 0, "out of memory for a received message");
        if (status != FM_OK)
            return status;
        conn->in_at += used;
    }
    fm_buf_consume(&conn->in, conn->in_at);
    conn->in_at = 0;
    return FM_OK;
}

static fm_status
receive(fm_conn *conn, fm_error *error)
{
    fm_status status = FM_OK;

    for (int turn = 0; turn < READ_TURNS; turn++) {
        size_t n = 0, room;

        status = fm_buf_reserve(&conn->in, READ_BYTES);
        if (status != FM_OK)
            return fm_error_set(
                error, status, 0, "out of memory for received bytes");
        room = conn->in.cap - conn->in.len;
        status = fm_socket_try_read(
            conn->socket, conn->in.data + conn->in.len, room, &n, error);
        if (status != FM_OK)
            break;
        conn->in.len += n;
        fm_counter_add(&conn->bytes, n);
        conn->last_read = fm_now();
        status = take_frames(conn, error);
        if (status != FM_OK)
            return status;
        if (n < room && !fm_socket_has_pending(conn->socket))
            return FM_OK;
    }
    fm_buf_shrink(&conn->in, KEEP_BYTES);
    if (status == FM_CLOSED)
        return fm_error_set(
            error, FM_DISCONNECTED, 0, "the broker ended the connection");
    return status == FM_AGAIN ? FM_OK : status;
}

/* --- the periodic part --- */

static void
start_close(fm_conn *conn, int64_t now)
{
    fm_mutex_lock(&conn->output.lock);
    (void)!fm_amqp_put_connection_close(&conn->output.out, 0, "");
    fm_mutex_unlock(&conn->output.lock);
    conn->close_at = now + CLOSE_NS;
    set_state(conn, FM_CONN_CLOSING);
}

/* Heartbeats of ours and of the broker (AMQP 0-9-1 section 4.2.7). Not being
 * able to send is no error by itself: under an alarm the broker stops
 * reading, but goes on sending. */
static fm_deadline
keep_alive(fm_conn *conn, int64_t now)
{
    int64_t interval = conn->session.heartbeat_s * FM_NS_PER_S;
    int64_t silent_at = conn->last_read + 2 * interval;
    int64_t beat_at = atomic_load(&conn->output.last_write) + interval / 2;
    fm_error error;

    if (interval == 0)
        return FM_NEVER;
    if (now >= silent_at) {
        (void)fm_error_set(&error, FM_DISCONNECTED, 0,
            "nothing heard for two heartbeats (%d s each)",
            conn->session.heartbeat_s);
        /* What is silent would take a connection and be silent on it too:
         * the others come first. */
        conn->was_silent = true;
        conn->silent_host = conn->host;
        lose(conn, &error);
        return now;
    }
    if (now >= beat_at) {
        fm_mutex_lock(&conn->output.lock);
        if (fm_output_pending_locked(&conn->output) == 0)
            (void)!fm_frame_put_heartbeat(&conn->output.out);
        fm_mutex_unlock(&conn->output.lock);
        beat_at = now + interval / 2;
    }
    return silent_at < beat_at ? silent_at : beat_at;
}

/* Nobody wants it, so that it is no reason for concern that it failed; unless
 * nobody does because it was refused. */
static void
rest(fm_conn *conn)
{
    if (!conn->round_refused)
        atomic_store(&conn->seen_rounds, 0);
    set_state(conn, FM_CONN_IDLE);
    if (conn->twin != NULL && conn->twin->is_untold) {
        tell_back(conn->twin, false);
        conn->twin->is_untold = false;
    }
}

fm_deadline
fm_conn_step(fm_conn *conn, int64_t now)
{
    bool wanted = conn->ops->wanted(conn);
    fm_error closed = { .status = FM_CLOSED, .text = "closed" };
    fm_deadline next;

    atomic_store_explicit(&conn->seen_wanted, wanted, memory_order_relaxed);
    collect_attempts(conn, now);
    if (conn->state == FM_CONN_LEAVING)
        leave(conn);
    switch (conn->state) {
    case FM_CONN_IDLE:
        if (!wanted)
            return FM_NEVER;
        break;
    case FM_CONN_CONNECTING:
        if (wanted)
            return run_round(conn, now);
        cancel_attempts(conn);
        rest(conn);
        return now;
    case FM_CONN_WAITING:
        if (!wanted) {
            rest(conn);
            return FM_NEVER;
        }
        break;
    case FM_CONN_OPEN:
        if (!wanted) {
            start_close(conn, now);
            return conn->close_at;
        }
        return keep_alive(conn, now);
    case FM_CONN_CLOSING:
        if (now >= conn->close_at) {
            lose(conn, &closed);
            return now;
        }
        return conn->close_at;
    case FM_CONN_LEAVING:
        return FM_NEVER;
    }
    next = next_round_at(conn); /* IDLE or WAITING, and wanted */
    if (now < next)
        return next;
    start_round(conn, now);
    return run_round(conn, now);
}

void
fm_conn_before_sleep(fm_conn *conn, struct pollfd *poll)
{
    bool want_room = false;
    fm_error error = { .status = FM_OK };

    poll->fd = -1;
    poll->revents = 0;
    if (conn->state != FM_CONN_OPEN && conn->state != FM_CONN_CLOSING)
        return;
    if (fm_output_before_sleep(&conn->output, &want_room, &error) != FM_OK) {
        lose(conn, &error);
        fm_waker_signal(conn->output.waker); /* step again before sleeping */
        return;
    }
    poll->fd = fm_socket_fd(conn->socket);
    poll->events = fm_socket_poll_events(conn->socket, want_room);
}

void
fm_conn_after_sleep(fm_conn *conn, const struct pollfd *poll)
{
    fm_error error = { .status = FM_OK };

    fm_output_after_sleep(&conn->output, (poll->revents & POLLOUT) != 0);
    if (poll->fd < 0 || poll->revents == 0 || conn->socket == NULL)
        return;
    if (receive(conn, &error) != FM_OK)
        lose(conn, &error);
    atomic_store_explicit(
        &conn->seen_read, conn->last_read, memory_order_relaxed);
}

/* --- around fork --- */

void
fm_conn_fork_prepare(fm_conn *conn) FM_NO_LOCK_CHECK
{
    fm_mutex_lock(&conn->output.lock);
}

void
fm_conn_fork_parent(fm_conn *conn) FM_NO_LOCK_CHECK
{
    fm_mutex_unlock(&conn->output.lock);
}

void
fm_conn_abandon_in_child(fm_conn *conn)
{
    for (fm_attempt *each = conn->attempts; each != NULL; each = each->next)
        fm_waker_fini(&each->cancel);
}
