#include "io/tls.h"

#include "base/sync.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* What one write encrypts under the lock, so that the reader is not kept. */
enum { WRITE_MOST = 64 * 1024 };

/* Held by whoever makes a context or a session, and around fork(). For the
 * threads that connect: reading a file of CAs may take a while. A leaf. */
static fm_mutex making = { PTHREAD_MUTEX_INITIALIZER };

struct fm_tls {
    int fd; /* borrowed from the socket. FM_IMMUTABLE */

    /* One SSL must not be read and written at once. A leaf, held during
     * non-blocking calls of OpenSSL only. */
    fm_mutex lock;
    SSL *ssl FM_GUARDED_BY(lock);         /* owned */
    bool saw_end FM_GUARDED_BY(lock);     /* recv() returned 0 */
    fm_error failure FM_GUARDED_BY(lock); /* sticky: an SSL that failed must
                                             not be called again */

    bool has_pending FM_OWNED_BY_THREAD(reader);
    bool read_wants_write FM_OWNED_BY_THREAD(reader);
};

/* --- bytes below TLS: send() and recv(), since OpenSSL's own socket BIO
 *     calls write(), which raises SIGPIPE --- */

static int
bio_write(BIO *bio, const char *data, size_t len, size_t *written)
{
    fm_tls *tls = BIO_get_data(bio);
    ssize_t rc = send(tls->fd, data, len, MSG_NOSIGNAL);

    BIO_clear_retry_flags(bio);
    if (rc < 0) {
        if (errno == EAGAIN || errno == EINTR)
            BIO_set_retry_write(bio);
        return 0;
    }
    *written = (size_t)rc;
    return 1;
}

static int
bio_read(BIO *bio, char *data, size_t len, size_t *got)
{
    fm_tls *tls = BIO_get_data(bio);
    ssize_t rc = recv(tls->fd, data, len, 0);

    BIO_clear_retry_flags(bio);
    if (rc > 0) {
        *got = (size_t)rc;
        return 1;
    }
    if (rc == 0)
        tls->saw_end = true;
    else if (errno == EAGAIN || errno == EINTR)
        BIO_set_retry_read(bio);
    return 0;
}

static long
bio_control(BIO *bio, int command, long number, void *pointer)
{
    fm_tls *tls = BIO_get_data(bio);

    (void)number;
    (void)pointer;
    switch (command) {
    case BIO_CTRL_FLUSH:
        return 1; /* nothing is held back */
    case BIO_CTRL_EOF:
        return tls->saw_end;
    default:
        return 0;
    }
}

static BIO_METHOD *bio_method; /* made once, then FM_IMMUTABLE */
static CRYPTO_ONCE bio_once = CRYPTO_ONCE_STATIC_INIT;

static void
bio_init(void)
{
    BIO_METHOD *method =
        BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_get_new_index(), "fastmsg");

    if (method == NULL || !BIO_meth_set_write_ex(method, bio_write)
        || !BIO_meth_set_read_ex(method, bio_read)
        || !BIO_meth_set_ctrl(method, bio_control)) {
        BIO_meth_free(method);
        return;
    }
    bio_method = method;
}

/* Words of the oldest error of this thread's queue, which is emptied: the
 * thread may be Python's, whose ssl module must not find our errors. */
static const char *
tls_words(char *room, size_t size)
{
    unsigned long code = ERR_peek_error();
    const char *words = NULL;

    if (ERR_SYSTEM_ERROR(code))
        words = strerror_r(ERR_GET_REASON(code), room, size);
    else if (code != 0)
        words = ERR_reason_error_string(code);
    ERR_clear_error();
    return words == NULL ? "unknown error" : words;
}

/* Why the other end did not like our first bytes, where we can guess. */
static const char *
tls_hint(unsigned long code)
{
    if (ERR_GET_LIB(code) == ERR_LIB_SSL
        && ERR_GET_REASON(code) == SSL_R_WRONG_VERSION_NUMBER)
        return " (does this port speak TLS?)";
    return "";
}

/* What a call of OpenSSL that returned 0 meant. FM_AGAIN with *want = POLLIN
 * or POLLOUT; else the connection is broken and `failure` has the cause. */
static fm_status outcome_locked(fm_tls *tls, int errno_value, short *want)
    FM_REQUIRES(tls->lock);

static fm_status
outcome_locked(fm_tls *tls, int errno_value, short *want)
{
    int outcome = SSL_get_error(tls->ssl, 0);
    unsigned long code = ERR_peek_error();
    long verified = SSL_get_verify_result(tls->ssl);
    char room[128];

    if (outcome == SSL_ERROR_WANT_READ || outcome == SSL_ERROR_WANT_WRITE) {
        *want = outcome == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        return FM_AGAIN;
    }
    /* Whether a farewell came before the end does not matter: frames tell
     * where AMQP ends. */
    if (outcome == SSL_ERROR_ZERO_RETURN || tls->saw_end
        || (outcome == SSL_ERROR_SYSCALL && errno_value == EPIPE)) {
        ERR_clear_error();
        return fm_error_set(
            &tls->failure, FM_CLOSED, 0, "the peer closed the connection");
    }
    if (outcome == SSL_ERROR_SYSCALL && errno_value != 0) {
        ERR_clear_error();
        return fm_error_set(&tls->failure, FM_SYSTEM, 0, "%s",
            strerror_r(errno_value, room, sizeof(room)));
    }
    if (verified != X509_V_OK
        && SSL_get_verify_mode(tls->ssl) != SSL_VERIFY_NONE) {
        ERR_clear_error();
        return fm_error_set(&tls->failure, FM_TLS, 0, "certificate refused: %s",
            X509_verify_cert_error_string(verified));
    }
    return fm_error_set(&tls->failure, FM_TLS, 0, "%s%s",
        tls_words(room, sizeof(room)), tls_hint(code));
}

/* --- a context, from the options --- */

static bool
is_given(const char *text)
{
    return text != NULL && text[0] != '\0';
}

/* An encrypted key is an error. Without this OpenSSL asks the terminal. */
static int
no_passphrase(char *buf, int size, int for_writing, void *arg)
{
    (void)buf;
    (void)size;
    (void)for_writing;
    (void)arg;
    return -1;
}

static fm_status
load_certificate(
    SSL_CTX *context, const fm_tls_options *options, fm_error *error)
{
    const char *key =
        is_given(options->key_file) ? options->key_file : options->cert_file;
    char room[128];

    if (!is_given(options->cert_file))
        return FM_OK;
    SSL_CTX_set_default_passwd_cb(context, no_passphrase);
    if (SSL_CTX_use_certificate_chain_file(context, options->cert_file) != 1)
        return fm_error_set(error, FM_TLS, 0,
            "cannot load the certificate %s: %s", options->cert_file,
            tls_words(room, sizeof(room)));
    if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        return fm_error_set(error, FM_TLS, 0, "cannot load the key %s: %s", key,
            tls_words(room, sizeof(room)));
    return FM_OK;
}

static fm_status
load_authorities(
    SSL_CTX *context, const fm_tls_options *options, fm_error *error)
{
    char room[128];

    if (is_given(options->ca_file)) {
        if (SSL_CTX_load_verify_file(context, options->ca_file) != 1)
            return fm_error_set(error, FM_TLS, 0,
                "cannot load the CA certificates %s: %s", options->ca_file,
                tls_words(room, sizeof(room)));
    } else if (options->verify_peer
        && SSL_CTX_set_default_verify_paths(context) != 1) {
        return fm_error_set(error, FM_TLS, 0,
            "cannot load the system's CA certificates: %s",
            tls_words(room, sizeof(room)));
    }
    return FM_OK;
}

static int
version_number(fm_tls_version version, int otherwise)
{
    switch (version) {
    case FM_TLS_1_2:
        return TLS1_2_VERSION;
    case FM_TLS_1_3:
        return TLS1_3_VERSION;
    case FM_TLS_ANY:
        break;
    }
    return otherwise;
}

static fm_status
context_new(const fm_tls_options *options, SSL_CTX **out, fm_error *error)
{
    char room[128];
    SSL_CTX *context;
    fm_status status = FM_TLS;

    ERR_clear_error();
    context = SSL_CTX_new_ex(
        NULL, options->fips ? "fips=yes" : NULL, TLS_client_method());
    if (context == NULL)
        return fm_error_set(error, FM_TLS, 0, "cannot set up TLS%s: %s",
            options->fips ? " in FIPS mode" : "",
            tls_words(room, sizeof(room)));
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(context,
        SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(context, 1); /* one recv(), not two, per record */
    SSL_CTX_set_verify(context,
        options->verify_peer ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    if (SSL_CTX_set_min_proto_version(
            context, version_number(options->min_version, TLS1_2_VERSION))
            != 1
        || SSL_CTX_set_max_proto_version(
               context, version_number(options->max_version, 0))
            != 1) {
        fm_error_set(error, FM_TLS, 0, "cannot set the TLS version: %s",
            tls_words(room, sizeof(room)));
        goto fail;
    }
    status = load_authorities(context, options, error);
    if (status != FM_OK)
        goto fail;
    status = load_certificate(context, options, error);
    if (status != FM_OK)
        goto fail;
    *out = context;
    return FM_OK;

fail:
    SSL_CTX_free(context);
    return status;
}

fm_status
fm_tls_context_new(
    const fm_tls_options *options, SSL_CTX **out, fm_error *error)
{
    fm_status status;

    fm_mutex_lock(&making);
    status = context_new(options, out, error);
    fm_mutex_unlock(&making);
    return status;
}

void
fm_tls_context_free(SSL_CTX *context)
{
    if (context == NULL)
        return;
    fm_mutex_lock(&making);
    SSL_CTX_free(context);
    fm_mutex_unlock(&making);
}

/* Whom we expect: for the certificate's check, and, if it is a name, for the
 * server to choose a certificate by (SNI, which excludes addresses). */
static bool
set_expected_name(SSL *ssl, const char *host, bool verify)
{
    char name[NI_MAXHOST];
    unsigned char address[sizeof(struct in6_addr)];
    size_t len = strcspn(host, "%"); /* fe80::1%eth0: the scope is ours */

    if (len >= sizeof(name))
        return false;
    memcpy(name, host, len);
    name[len] = '\0';
    if (inet_pton(AF_INET, name, address) == 1
        || inet_pton(AF_INET6, name, address) == 1)
        return !verify
            || X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1;

    if (len > 1 && name[len - 1] == '.')
        name[len - 1] = '\0'; /* certificates have no root's dot */
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set_tlsext_host_name(ssl, name) == 1
        && (!verify || SSL_set1_host(ssl, name) == 1);
}

/* --- a session --- */

static fm_status
session_new(SSL_CTX *context, int fd, const char *host, bool verify_host,
    fm_tls **out, fm_error *error)
{
    char room[128];
    fm_tls *tls;
    BIO *bio;

    ERR_clear_error();
    if (CRYPTO_THREAD_run_once(&bio_once, bio_init) != 1 || bio_method == NULL)
        return fm_error_set(error, FM_NO_MEMORY, 0, "out of memory");
    tls = calloc(1, sizeof(*tls));
    if (tls == NULL)
        return fm_error_set(error, FM_NO_MEMORY, 0, "out of memory");
    fm_mutex_init(&tls->lock);
    tls->fd = fd;
    tls->ssl = SSL_new(context);
    if (tls->ssl == NULL || !set_expected_name(tls->ssl, host, verify_host))
        goto fail;
    bio = BIO_new(bio_method);
    if (bio == NULL)
        goto fail;
    BIO_set_data(bio, tls);
    SSL_set_bio(tls->ssl, bio, bio); /* the SSL's now */
    *out = tls;
    return FM_OK;

fail:
    fm_tls_free(tls);
    return fm_error_set(
        error, FM_TLS, 0, "cannot begin: %s", tls_words(room, sizeof(room)));
}

fm_status
fm_tls_new(SSL_CTX *context, int fd, const char *host, bool verify_host,
    fm_tls **out, fm_error *error)
{
    fm_status status;

    fm_mutex_lock(&making);
    status = session_new(context, fd, host, verify_host, out, error);
    fm_mutex_unlock(&making);
    return status;
}

void
fm_tls_end(fm_tls *tls)
{
    if (tls == NULL)
        return;
    fm_mutex_lock(&tls->lock); /* with it, and not in the midst of a fork */
    SSL_free(tls->ssl);        /* sends nothing: only SSL_shutdown() would */
    tls->ssl = NULL;
    fm_mutex_unlock(&tls->lock);
}

void
fm_tls_free(fm_tls *tls)
{
    if (tls == NULL)
        return;
    fm_tls_end(tls);
    fm_mutex_fini(&tls->lock);
    free(tls);
}

fm_status
fm_tls_try_agree(fm_tls *tls, short *want, fm_error *error)
{
    fm_status status = FM_OK;

    fm_mutex_lock(&tls->lock);
    ERR_clear_error();
    errno = 0;
    if (SSL_connect(tls->ssl) != 1)
        status = outcome_locked(tls, errno, want);
    if (status != FM_OK && status != FM_AGAIN && error != NULL)
        *error = tls->failure;
    fm_mutex_unlock(&tls->lock);
    return status;
}

fm_status
fm_tls_try_read(fm_tls *tls, void *buf, size_t cap, size_t *n, fm_error *error)
{
    fm_status status;
    size_t got = 0;
    short want = POLLIN;

    fm_mutex_lock(&tls->lock);
    status = tls->failure.status;
    /* On until poll() would tell of more: what OpenSSL holds, poll() does
     * not see. */
    while (status == FM_OK && got < cap) {
        size_t more;

        ERR_clear_error();
        errno = 0;
        if (SSL_read_ex(tls->ssl, (uint8_t *)buf + got, cap - got, &more) == 1)
            got += more;
        else
            status = outcome_locked(tls, errno, &want);
    }
    tls->has_pending = status == FM_OK;
    tls->read_wants_write = want == POLLOUT;
    if (got > 0)
        status = FM_OK; /* a failure after these bytes is the next call's */
    else if (status != FM_AGAIN && error != NULL)
        *error = tls->failure;
    fm_mutex_unlock(&tls->lock);
    if (status == FM_OK)
        *n = got;
    return status;
}

fm_status
fm_tls_try_write(
    fm_tls *tls, const void *buf, size_t len, size_t *n, fm_error *error)
{
    fm_status status;
    size_t put = 0;
    short want;

    if (len > WRITE_MOST)
        len = WRITE_MOST;
    fm_mutex_lock(&tls->lock);
    status = tls->failure.status;
    while (status == FM_OK && put < len) {
        size_t more;

        ERR_clear_error();
        errno = 0;
        if (SSL_write_ex(tls->ssl, (const uint8_t *)buf + put, len - put, &more)
            == 1)
            put += more;
        else
            status = outcome_locked(tls, errno, &want);
    }
    if (put > 0)
        status = FM_OK;
    else if (status != FM_AGAIN && error != NULL)
        *error = tls->failure;
    fm_mutex_unlock(&tls->lock);
    if (status == FM_OK)
        *n = put;
    return status;
}

bool
fm_tls_has_pending(const fm_tls *tls)
{
    return tls->has_pending;
}

bool
fm_tls_read_wants_write(const fm_tls *tls)
{
    return tls->read_wants_write;
}

/* --- forks --- */

void
fm_tls_fork_prepare(void) FM_NO_LOCK_CHECK
{
    fm_mutex_lock(&making);
}

void
fm_tls_fork_parent(void) FM_NO_LOCK_CHECK
{
    fm_mutex_unlock(&making);
}

void
fm_tls_fork_child(void)
{
    fm_mutex_init(&making);
}

void
fm_tls_hold(fm_tls *tls) FM_NO_LOCK_CHECK
{
    if (tls != NULL)
        fm_mutex_lock(&tls->lock);
}

void
fm_tls_let_go(fm_tls *tls) FM_NO_LOCK_CHECK
{
    if (tls != NULL)
        fm_mutex_unlock(&tls->lock);
}

void
fm_tls_leave_thread(void)
{
    fm_mutex_lock(&making);
    OPENSSL_thread_stop(); /* or it would be done later, by the thread's end */
    fm_mutex_unlock(&making);
}
