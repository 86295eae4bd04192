#include "io/socket.h"

#include "io/resolve.h"
#include "io/wait.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PEER_TEXT = 160,
    /* What the stock driver asks of the kernel. */
    KEEPALIVE_IDLE_S = 60,
    KEEPALIVE_INTERVAL_S = 10,
    KEEPALIVE_COUNT = 9
};

struct fm_socket {
    /* Both owned, and FM_IMMUTABLE once there; that they come and go is
     * guarded by sockets.lock. */
    int fd;
    fm_tls *tls;             /* NULL if plain */
    char peer[PEER_TEXT];    /* host:port, for texts. FM_IMMUTABLE */
    fm_socket *next, **link; /* in sockets.first. FM_GUARDED_BY(sockets.lock) */
};

/* All that have a descriptor, those that are just being connected, too: a
 * forked child has to close every one. The lock is a leaf, held while a
 * descriptor is made or closed, neither of which waits. */
static struct {
    fm_mutex lock;
    fm_socket *first FM_GUARDED_BY(lock); /* borrowed */
} sockets = { .lock = { PTHREAD_MUTEX_INITIALIZER } };

/* --- reading and writing --- */

/* An error of the socket, with what was attempted on whom. */
static fm_status
broken(const fm_socket *sock, const char *verb, fm_status status,
    const char *words, fm_error *error)
{
    if (status == FM_CLOSED)
        return fm_error_set(
            error, status, 0, "%s closed the connection", sock->peer);
    return fm_error_set(
        error, status, 0, "cannot %s %s: %.160s", verb, sock->peer, words);
}

static fm_status
broken_errno(
    const fm_socket *sock, const char *verb, int errno_value, fm_error *error)
{
    char room[128];

    return broken(sock, verb, errno_value == EPIPE ? FM_CLOSED : FM_SYSTEM,
        strerror_r(errno_value, room, sizeof(room)), error);
}

fm_status
fm_socket_try_read(
    fm_socket *sock, void *buf, size_t cap, size_t *n, fm_error *error)
{
    ssize_t rc;

    if (sock->tls != NULL) {
        fm_error cause;
        fm_status status = fm_tls_try_read(sock->tls, buf, cap, n, &cause);

        if (status == FM_OK || status == FM_AGAIN)
            return status;
        return broken(sock, "read from", status, cause.text, error);
    }
    do {
        rc = recv(sock->fd, buf, cap, 0);
    } while (rc < 0 && errno == EINTR);
    if (rc > 0) {
        *n = (size_t)rc;
        return FM_OK;
    }
    if (rc == 0)
        return broken(sock, "read from", FM_CLOSED, "", error);
    if (errno == EAGAIN)
        return FM_AGAIN;
    return broken_errno(sock, "read from", errno, error);
}

fm_status
fm_socket_try_write(
    fm_socket *sock, const void *buf, size_t len, size_t *n, fm_error *error)
{
    ssize_t rc;

    if (sock->tls != NULL) {
        fm_error cause;
        fm_status status = fm_tls_try_write(sock->tls, buf, len, n, &cause);

        if (status == FM_OK || status == FM_AGAIN)
            return status;
        return broken(sock, "write to", status, cause.text, error);
    }
    do {
        rc = send(sock->fd, buf, len, MSG_NOSIGNAL);
    } while (rc < 0 && errno == EINTR);
    if (rc >= 0) {
        *n = (size_t)rc;
        return FM_OK;
    }
    if (errno == EAGAIN)
        return FM_AGAIN;
    return broken_errno(sock, "write to", errno, error);
}

bool
fm_socket_has_pending(const fm_socket *sock)
{
    return sock->tls != NULL && fm_tls_has_pending(sock->tls);
}

short
fm_socket_poll_events(const fm_socket *sock, bool want_write)
{
    if (sock->tls != NULL && fm_tls_read_wants_write(sock->tls))
        want_write = true;
    return want_write ? POLLIN | POLLOUT : POLLIN;
}

fm_status
fm_socket_wait(
    const fm_socket *sock, short events, fm_deadline deadline, int cancel_fd)
{
    return fm_wait_fd(sock->fd, events, deadline, cancel_fd);
}

int
fm_socket_fd(const fm_socket *sock)
{
    return sock->fd;
}

bool
fm_socket_is_tls(const fm_socket *sock)
{
    return sock->tls != NULL;
}

const char *
fm_socket_peer(const fm_socket *sock)
{
    return sock->peer;
}

static void
set_option(int fd, int level, int name, int value)
{
    (void)!setsockopt(fd, level, name, &value, sizeof(value));
}

void
fm_socket_set_user_timeout(fm_socket *sock, unsigned timeout_ms)
{
    set_option(sock->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)timeout_ms);
}

/* --- the end --- */

void
fm_socket_free(fm_socket *sock)
{
    if (sock == NULL)
        return;
    fm_tls_end(sock->tls);
    if (sock->fd >= 0) {
        fm_mutex_lock(&sockets.lock);
        close(sock->fd);
        *sock->link = sock->next;
        if (sock->next != NULL)
            sock->next->link = sock->link;
        fm_mutex_unlock(&sockets.lock);
    }
    fm_tls_free(sock->tls);
    free(sock);
}

/* --- forks --- */

void
fm_socket_fork_prepare(void) FM_NO_LOCK_CHECK
{
    fm_tls_fork_prepare();
    fm_mutex_lock(&sockets.lock);
    for (fm_socket *each = sockets.first; each != NULL; each = each->next)
        fm_tls_hold(each->tls);
}

void
fm_socket_fork_parent(void) FM_NO_LOCK_CHECK
{
    for (fm_socket *each = sockets.first; each != NULL; each = each->next)
        fm_tls_let_go(each->tls);
    fm_mutex_unlock(&sockets.lock);
    fm_tls_fork_parent();
}

void
fm_socket_fork_child(void) FM_NO_LOCK_CHECK
{
    for (fm_socket *each = sockets.first; each != NULL; each = each->next)
        close(each->fd);
    sockets.first = NULL;
    fm_mutex_init(&sockets.lock);
    fm_tls_fork_child();
}

/* --- connecting --- */

void
fm_socket_leave_thread(void)
{
    fm_tls_leave_thread();
}

/* A port in the range that the kernel picks from, on this host, with nobody
 * listening: TCP can connect a socket to itself. */
static bool
is_connected_to_itself(int fd)
{
    struct sockaddr_storage ours = { 0 };
    struct sockaddr_storage theirs = { 0 };
    socklen_t our_len = sizeof(ours);
    socklen_t their_len = sizeof(theirs);

    return getsockname(fd, (struct sockaddr *)&ours, &our_len) == 0
        && getpeername(fd, (struct sockaddr *)&theirs, &their_len) == 0
        && our_len == their_len && memcmp(&ours, &theirs, our_len) == 0;
}

/* 0, or the errno that ended the attempt. */
static int
finish_connect(int fd)
{
    int cause = 0;
    socklen_t len = sizeof(cause);

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &cause, &len) != 0)
        return errno;
    if (cause == 0 && is_connected_to_itself(fd))
        return ECONNREFUSED;
    return cause;
}

/* The descriptor, which no fork finds unknown. */
static int
open_descriptor(fm_socket *sock, int family)
{
    int fd;

    fm_mutex_lock(&sockets.lock);
    fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        sock->next = sockets.first;
        sock->link = &sockets.first;
        if (sock->next != NULL)
            sock->next->link = &sock->next;
        sockets.first = sock;
        sock->fd = fd;
    }
    fm_mutex_unlock(&sockets.lock);
    return fd;
}

static fm_status
connect_tcp(fm_socket *sock, const fm_address *address, fm_deadline deadline,
    int cancel_fd, fm_error *error)
{
    const struct sockaddr *where = (const struct sockaddr *)&address->where;
    char host[INET6_ADDRSTRLEN + 16] = "?";
    fm_status status = FM_OK;
    int cause = 0;
    int fd;

    (void)!getnameinfo(
        where, address->len, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
    fd = open_descriptor(sock, where->sa_family);
    if (fd < 0)
        return fm_error_set_errno(error, errno, "connect to %s", host);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);

    if (connect(fd, where, address->len) != 0) {
        if (errno == EINPROGRESS || errno == EINTR)
            status = fm_wait_fd(fd, POLLOUT, deadline, cancel_fd);
        else
            cause = errno;
    }
    if (status == FM_OK && cause == 0)
        cause = finish_connect(fd);
    if (status != FM_OK)
        fm_error_set(error, status, 0, "connect to %s: %s", host,
            fm_status_text(status));
    else if (cause != 0)
        status = fm_error_set_errno(error, cause, "connect to %s", host);
    return status;
}

static fm_status
agree_on_tls(
    fm_tls *tls, int fd, fm_deadline deadline, int cancel_fd, fm_error *error)
{
    fm_error cause = { 0 };
    fm_status status;
    short want;

    while ((status = fm_tls_try_agree(tls, &want, &cause)) == FM_AGAIN) {
        status = fm_wait_fd(fd, want, deadline, cancel_fd);
        if (status != FM_OK)
            return fm_error_set(
                error, status, 0, "TLS: %s", fm_status_text(status));
    }
    if (status == FM_CLOSED)
        status = FM_TLS; /* not by us, so no reason to stop trying */
    if (status != FM_OK)
        fm_error_set(error, status, 0, "TLS: %.200s", cause.text);
    return status;
}

/* TCP and, with a `context`, TLS to one address. */
static fm_status
connect_address(const fm_endpoint *endpoint, const fm_address *address,
    fm_tls_context *context, bool verify_host, fm_deadline deadline,
    int cancel_fd, fm_socket **out, fm_error *error)
{
    bool is_ipv6 = strchr(endpoint->host, ':') != NULL;
    fm_socket *sock = calloc(1, sizeof(*sock));
    fm_tls *tls;
    fm_status status;

    if (sock == NULL)
        return fm_error_set(error, FM_NO_MEMORY, 0, "out of memory");
    (void)snprintf(sock->peer, sizeof(sock->peer),
        is_ipv6 ? "[%.140s]:%u" : "%.140s:%u", endpoint->host, endpoint->port);
    sock->fd = -1;
    status = connect_tcp(sock, address, deadline, cancel_fd, error);
    if (status == FM_OK && context != NULL) {
        status = fm_tls_new(
            context, sock->fd, endpoint->host, verify_host, &tls, error);
        if (status == FM_OK) {
            fm_mutex_lock(&sockets.lock); /* fork handlers look at it */
            sock->tls = tls;
            fm_mutex_unlock(&sockets.lock);
            status = agree_on_tls(tls, sock->fd, deadline, cancel_fd, error);
        }
    }
    if (status != FM_OK) {
        fm_socket_free(sock);
        return status;
    }
    *out = sock;
    return FM_OK;
}

/* The share of one of `left` addresses in the time until `deadline`. */
static fm_deadline
share_of(fm_deadline deadline, size_t left)
{
    int64_t now = fm_now();

    if (deadline == FM_NEVER || deadline <= now)
        return deadline;
    return now + (deadline - now) / (int64_t)left;
}

static fm_status
connect_any(const fm_endpoint *endpoint, const fm_tls_options *tls,
    fm_tls_context *context, fm_deadline deadline, int cancel_fd,
    fm_socket **out, fm_error *error)
{
    fm_addresses found;
    fm_status status = fm_resolve(
        endpoint->host, endpoint->port, deadline, cancel_fd, &found, error);

    for (size_t i = 0; status == FM_OK && i < found.count; i++) {
        fm_deadline until = share_of(deadline, found.count - i);

        status = connect_address(endpoint, &found.list[i], context,
            tls != NULL && tls->verify_peer && tls->verify_host, until,
            cancel_fd, out, error);
        if (status == FM_OK || status == FM_CLOSED || status == FM_NO_MEMORY)
            break;
        if (i + 1 < found.count)
            status = FM_OK; /* the next one, then */
    }
    return status;
}

fm_status
fm_socket_connect(const fm_endpoint *endpoint, const fm_tls_options *tls,
    fm_deadline deadline, int cancel_fd, fm_socket **out, fm_error *error)
{
    fm_error cause = { 0 };
    fm_tls_context *context = NULL;
    fm_status status = FM_OK;

    if (tls != NULL && tls->enabled)
        status = fm_tls_context_new(tls, &context, &cause);
    if (status == FM_OK)
        status = connect_any(
            endpoint, tls, context, deadline, cancel_fd, out, &cause);
    fm_tls_context_free(context); /* a session has a share of its own */
    if (status != FM_OK)
        fm_error_set(error, status, 0, "cannot connect to %.160s:%u: %s",
            endpoint->host, endpoint->port, cause.text);
    return status;
}
