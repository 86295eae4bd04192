/* From the protocol header to connection.open-ok.
 *
 * Straight-line code that blocks: it runs on the short-lived thread that
 * connected the socket, so that the I/O thread and the other connection's
 * heartbeats never wait for it. The session that it returns goes to the I/O
 * thread together with the socket.
 */
#ifndef FM_IO_HANDSHAKE_H
#define FM_IO_HANDSHAKE_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/amqp.h"
#include "io/socket.h"

#include <stdbool.h>
#include <stdint.h>

/* What a connection needs to publish, or to consume from three queues. */
enum { FM_CHANNELS_LEAST = 5 };

/* Strings are borrowed for the call. */
typedef struct fm_login {
    fm_introduction who;
    const char *virtual_host; /* NULL or empty: "/" */
    uint16_t heartbeat_s;     /* what we would like; 0: none, whatever the
                                 broker would like */
} fm_login;

/* What was agreed, and what the broker told about itself. */
typedef struct fm_session {
    uint16_t channel_max; /* highest channel number, never 0 */
    uint32_t frame_max;   /* FM_FRAME_MAX_LEAST ... FM_FRAME_MAX_MOST */
    uint16_t heartbeat_s; /* 0: off, in both directions */
    char broker_product[64];
    char broker_version[32];
    bool can_blocked; /* see fm_start */
    bool can_consumer_cancel;
    bool can_confirm;
    bool can_nack;
    fm_buf leftover; /* owned: bytes that came after open-ok */
} fm_session;

/* Log in over a socket that is connected and silent so far.
 *
 * FM_REFUSED: mechanism, login, virtual host, or too few channels; `error` has
 * the broker's code (403, 530, ...) and words. FM_BAD_FRAME: not an AMQP 0-9-1
 * broker, or a limit that AMQP forbids. FM_TIMED_OUT; FM_CLOSED: `cancel_fd`
 * became readable, or the broker ended the stream or is shutting down (code
 * 320); FM_SYSTEM, FM_TLS, FM_NO_MEMORY. `error` names the step, never a
 * credential. The socket stays the caller's, and is of no further use unless
 * FM_OK. On FM_OK *out is written, with fm_session_fini() to come, and unsent
 * bytes have two heartbeats' time (fm_socket_set_user_timeout()). */
FM_MUST_CHECK fm_status fm_handshake(fm_socket *sock, const fm_login *login,
    fm_deadline deadline, int cancel_fd, fm_session *out, fm_error *error);

void fm_session_fini(fm_session *session);

#endif
