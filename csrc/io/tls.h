/* A TLS session over somebody else's descriptor; the one door to OpenSSL.
 *
 * Only socket.c calls this; see socket.h for who may read and write at the
 * same time. Nothing here blocks, and nothing touches what else the process
 * does with OpenSSL: no global setting, and no error left in a thread's queue.
 *
 * Error texts are the bare cause: the caller knows on whom and what for.
 */
#ifndef FM_IO_TLS_H
#define FM_IO_TLS_H

#include "base/attrs.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum fm_tls_version {
    FM_TLS_ANY = 0, /* no limit of ours on this side */
    FM_TLS_1_2,
    FM_TLS_1_3
} fm_tls_version;

/* Strings are borrowed for the call; NULL or empty: not given. */
typedef struct fm_tls_options {
    bool enabled;
    bool verify_peer; /* against ca_file, or the system's CAs without one */
    bool verify_host; /* the certificate names the host or IP address */
    bool fips;        /* only algorithms that a FIPS provider offers */
    const char *ca_file;
    const char *cert_file;      /* client certificate with its chain, PEM */
    const char *key_file;       /* its key; not given: look into cert_file */
    fm_tls_version min_version; /* never below 1.2 */
    fm_tls_version max_version;
} fm_tls_options;

/* What sessions are made from: certificates loaded, versions set. */
typedef struct ssl_ctx_st fm_tls_context; /* OpenSSL's SSL_CTX */

FM_MUST_CHECK fm_status fm_tls_context_new(
    const fm_tls_options *options, fm_tls_context **out, fm_error *error);
void fm_tls_context_free(fm_tls_context *context);

typedef struct fm_tls fm_tls;

/* A session over `fd`, a connected non-blocking socket that outlives it.
 * `host` is what the user called the peer. */
FM_MUST_CHECK fm_status fm_tls_new(fm_tls_context *context, int fd,
    const char *host, bool verify_host, fm_tls **out, fm_error *error);

/* End the session, without a farewell; only fm_tls_free() may follow. NULL is
 * allowed for both. */
void fm_tls_end(fm_tls *tls);
void fm_tls_free(fm_tls *tls);

/* The handshake, one step further. FM_AGAIN: poll for *want, POLLIN or
 * POLLOUT, and call again. FM_CLOSED, FM_SYSTEM, FM_TLS: it failed. */
FM_MUST_CHECK fm_status fm_tls_try_agree(
    fm_tls *tls, short *want, fm_error *error);

/* As fm_socket_try_read() and _write(). */
FM_MUST_CHECK fm_status fm_tls_try_read(
    fm_tls *tls, void *buf, size_t cap, size_t *n, fm_error *error);
FM_MUST_CHECK fm_status fm_tls_try_write(
    fm_tls *tls, const void *buf, size_t len, size_t *n, fm_error *error);

/* For the reader: the last read ended at its `cap`, so there may be more that
 * poll() does not know of; the last read has to write first. */
bool fm_tls_has_pending(const fm_tls *tls);
bool fm_tls_read_wants_write(const fm_tls *tls);

/* Around fork(): nobody makes contexts or sessions, or ends a thread that did,
 * since locks of OpenSSL's own are held for moments then. */
void fm_tls_fork_prepare(void);
void fm_tls_fork_parent(void);
void fm_tls_fork_child(void);

/* The same for one session, NULL allowed: its lock, until it is let go. */
void fm_tls_hold(fm_tls *tls);
void fm_tls_let_go(fm_tls *tls);

/* A thread that has connected is about to end. */
void fm_tls_leave_thread(void);

#endif
