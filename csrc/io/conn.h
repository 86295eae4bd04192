/* One connection to the broker, for as long as somebody wants it: connecting,
 * heartbeats, frames in and out, loss, back-off, connecting again.
 *
 * The I/O thread owns it; callers reach it through its output only
 * (output.h). What the connection is for, publishing or consuming, its owner
 * says by the ops. Connecting (name lookup, TLS, login: seconds) runs on
 * short-lived threads, one for each attempt, so that the I/O thread never
 * waits; a host that does not answer within a second has company.
 *
 * Order of locks in the core: every mutex is a leaf, but for loop.c's `life`,
 * which is held while the I/O thread starts or ends and taken first, and for
 * fork(), around which loop.c's `lock`, then every output's lock, then tls.c's
 * `making`, socket.c's `sockets.lock` and every TLS session's lock are held.
 */
#ifndef FM_IO_CONN_H
#define FM_IO_CONN_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/counter.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/channel.h"
#include "io/handshake.h"
#include "io/output.h"
#include "io/pace.h"
#include "io/socket.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_host {
    char *name; /* owned */
    uint16_t port;
    char *user;     /* owned */
    char *password; /* owned */
} fm_host;

/* How to connect. Shared by count with the attempts' threads; immutable. */
typedef struct fm_conn_config {
    atomic_uint refs;
    fm_host *hosts; /* owned */
    size_t host_count;
    char *virtual_host; /* owned */
    fm_mechanism mechanism;
    uint16_t heartbeat_s;
    char *name;         /* owned: what connection names begin with */
    bool shuffle;       /* begin anywhere, go on anywhere; else in turn */
    fm_pace pace;       /* between rounds in which every host failed */
    fm_tls_options tls; /* strings owned by tls_strings */
    char *tls_strings[3];
} fm_conn_config;

/* Zeroed, with one reference; the caller fills it in. */
FM_MUST_CHECK fm_status fm_conn_config_new(fm_conn_config **out);
fm_conn_config *fm_conn_config_ref(fm_conn_config *config);
void fm_conn_config_unref(fm_conn_config *config); /* wipes passwords */

typedef enum fm_conn_state {
    FM_CONN_IDLE,       /* not wanted */
    FM_CONN_CONNECTING, /* attempts are under way */
    FM_CONN_WAITING,    /* all hosts failed: the next round is at retry_at */
    FM_CONN_OPEN,
    FM_CONN_CLOSING, /* connection.close is sent */
    FM_CONN_LEAVING, /* lost, but a writer still has the socket */
} fm_conn_state;

typedef struct fm_conn fm_conn;

/* Told by the I/O thread, without a lock held. */
typedef struct fm_conn_ops {
    bool (*wanted)(fm_conn *conn);
    /* Wanted so badly that waiting for the next round would be wrong. */
    bool (*hurry)(fm_conn *conn, int64_t last_failure);
    void (*up)(fm_conn *conn, int64_t now);
    void (*down)(fm_conn *conn, const fm_error *why);
    void (*round_failed)(fm_conn *conn, const fm_error *why);
    void (*blocked)(fm_conn *conn, bool blocked, fm_slice reason);
    fm_channel *(*channel)(fm_conn *conn, uint16_t id); /* NULL: none */
} fm_conn_ops;

struct fm_conn {
    fm_output output;
    /* FM_IMMUTABLE. */
    const fm_conn_ops *ops; /* borrowed */
    void *owner;            /* borrowed */
    const char *role;       /* "publish", "consume": in names and events */
    fm_conn_config *config; /* shared */
    fm_conn *twin; /* borrowed: the other one of the process; NULL: none */

    /* FM_OWNED_BY_THREAD(io). */
    fm_conn_state state;
    fm_socket *socket; /* owned; changed with the output's lock held */
    fm_session session;
    fm_buf in; /* received; frames begin at in_at */
    size_t in_at;
    int64_t last_read;
    bool is_learning; /* it was opened without knowing that the broker is strict
                       */
    int64_t close_at; /* CLOSING: when to stop being polite */
    struct fm_attempt *attempts; /* owned: under way or to be collected */
    size_t host;                 /* where the next attempt goes */
    size_t tried;                /* hosts tried in this round */
    int64_t overlap_at;   /* when the next host is tried beside this one */
    fm_error round_error; /* of the round's last failed attempt */
    bool round_refused;   /* every attempt of the round was refused */
    unsigned flaps;       /* connections in a row that did not last */
    unsigned rounds;      /* failed in a row */
    bool was_silent;      /* that ended the last connection */
    size_t silent_host;   /* which is not to be the first of the next round */
    size_t left;          /* hosts that were left for another, in a row */
    int64_t left_at;
    int64_t retry_at;
    int64_t last_round;
    int64_t lost_at; /* when the last connection was lost; 0: never */
    int64_t up_at;
    bool ever_up;
    bool is_untold; /* back, which the twin tells when it is back as well */

    /* For other threads to look at. */
    atomic_int seen_state;
    atomic_int_fast64_t seen_since; /* when it began, or ceased, to be OPEN */
    atomic_bool seen_wanted;
    atomic_uint seen_rounds; /* that failed since the last connection */
    atomic_uint_fast64_t connects;
    atomic_int_fast64_t seen_read;
    fm_counter bytes; /* received since the process began */
    atomic_size_t seen_host;
    atomic_int heartbeat_s;
};

void fm_conn_init(fm_conn *conn, const fm_conn_ops *ops, void *owner,
    const char *role, fm_conn_config *config, fm_waker *waker);
void fm_conn_fini(fm_conn *conn); /* IDLE, no attempts */

/* --- the I/O thread, once per turn of its loop --- */

/* Timers, attempts, heartbeats. Returns when to be called again. */
fm_deadline fm_conn_step(fm_conn *conn, int64_t now);

/* Send what there is, and say what to poll for; fd -1: nothing. */
void fm_conn_before_sleep(fm_conn *conn, struct pollfd *poll);

/* Take in what poll found. */
void fm_conn_after_sleep(fm_conn *conn, const struct pollfd *poll);

/* Go to another host than this one, which does not have what is wanted, with
 * no pause. False: it is not open, or there is no other one that was not left
 * within the last seconds. */
FM_MUST_CHECK bool fm_conn_leave_host(
    fm_conn *conn, int64_t now, const fm_error *why);

/* IDLE, and no attempt's thread is left. */
bool fm_conn_is_gone(const fm_conn *conn);

/* --- around fork: _prepare leaves the output locked until _parent --- */
void fm_conn_fork_prepare(fm_conn *conn);
void fm_conn_fork_parent(fm_conn *conn);
void fm_conn_abandon_in_child(fm_conn *conn); /* closes descriptors only */

#endif
