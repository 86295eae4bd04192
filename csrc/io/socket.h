/* A non-blocking byte stream to the broker, plain or TLS.
 *
 * fm_socket_connect() and fm_socket_wait() block and belong to a short-lived
 * thread (and the resolver, which cannot be interrupted, runs on one of its
 * own). Afterwards one thread at a time reads and one at a time writes: the
 * reader is the I/O thread, the writer is whoever flushes. The two may be at
 * it together: TLS has a lock inside, a leaf that is never held while
 * anybody sleeps. Nothing raises SIGPIPE, nothing prompts for a passphrase,
 * and every descriptor is close-on-exec.
 */
#ifndef FM_IO_SOCKET_H
#define FM_IO_SOCKET_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fm_socket fm_socket;

typedef struct fm_endpoint {
    const char *host; /* name, IPv4 or IPv6 address (without brackets) */
    uint16_t port;
} fm_endpoint;

/* Resolve, connect, and agree on TLS (`tls` NULL or not enabled: plain).
 *
 * Each address of the host gets its share of what is left of the deadline.
 * `cancel_fd`, -1 for none, is a descriptor (an eventfd) that is never read
 * here: once it is readable we give up with FM_CLOSED. Else FM_TIMED_OUT,
 * FM_SYSTEM (also for a name that does not resolve), FM_TLS, FM_NO_MEMORY;
 * `error` names host, port, step and cause. On FM_OK *out is the caller's. */
FM_MUST_CHECK fm_status fm_socket_connect(const fm_endpoint *endpoint,
    const fm_tls_options *tls, fm_deadline deadline, int cancel_fd,
    fm_socket **out, fm_error *error);

/* Close at once, without any farewell, and free. Nobody may be using it. */
void fm_socket_free(fm_socket *sock);

/* Around fork(), for all sockets: nobody is inside of OpenSSL meanwhile, so
 * the child does not inherit a lock of its that is held. The child closes its
 * copy of every descriptor, of connections just being made, too, without a
 * word to the peer, and leaks the rest: the stream is the parent's. */
void fm_socket_fork_prepare(void);
void fm_socket_fork_parent(void);
void fm_socket_fork_child(void);

/* The calling thread, which has connected by TLS, is about to end. */
void fm_socket_leave_thread(void);

int fm_socket_fd(const fm_socket *sock);
bool fm_socket_is_tls(const fm_socket *sock);

/* "host:port", for texts; lives as long as the socket. */
const char *fm_socket_peer(const fm_socket *sock);

/* Read what is there, up to `cap` > 0 bytes. FM_OK: *n > 0. FM_AGAIN: nothing
 * there. FM_CLOSED: the peer ended the stream. FM_SYSTEM, FM_TLS: it broke, and
 * no later call will do better; `error` (may be NULL) says how. */
FM_MUST_CHECK fm_status fm_socket_try_read(
    fm_socket *sock, void *buf, size_t cap, size_t *n, fm_error *error);

/* Write what fits of `len` > 0 bytes. FM_OK: *n > 0, perhaps less than `len`.
 * FM_AGAIN: no room; the next write must begin with the same bytes and be no
 * shorter (TLS has encrypted them already), though they may have moved. Else
 * as above, FM_CLOSED if the peer no longer listens. */
FM_MUST_CHECK fm_status fm_socket_try_write(
    fm_socket *sock, const void *buf, size_t len, size_t *n, fm_error *error);

/* True if the last read was cut short by its `cap` and TLS may hold more,
 * which poll() cannot know: read again before sleeping. For the reader. */
bool fm_socket_has_pending(const fm_socket *sock);

/* What to poll for: POLLIN, and POLLOUT if `want_write` or if TLS has to
 * write before it can read on. After POLLOUT try to read as well. */
short fm_socket_poll_events(const fm_socket *sock, bool want_write);

/* Sleep until the descriptor is ready for one of `events` (see poll(2)),
 * which counts errors and hang-ups as ready: FM_OK. FM_TIMED_OUT; FM_CLOSED
 * once `cancel_fd` is readable; FM_SYSTEM. Signals do not end it. */
FM_MUST_CHECK fm_status fm_socket_wait(
    const fm_socket *sock, short events, fm_deadline deadline, int cancel_fd);

/* Give up the connection when sent bytes are not acknowledged for so long
 * (TCP_USER_TIMEOUT); 0 leaves it to the kernel (about 15 minutes). The time
 * runs as well while a live peer does not read: lift it when the broker says
 * connection.blocked. Best effort. */
void fm_socket_set_user_timeout(fm_socket *sock, unsigned timeout_ms);

#endif
