/* The byte stream against peers on loopback: plain, TLS, silent, hostile. */
#include "check.h"
#include "peer.h"

#include "base/buf.h"
#include "io/resolve.h"
#include "io/socket.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/provider.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { BIG = 8 * 1024 * 1024 };

/* --- a resolver that the tests direct ---
 *
 * Names of the tests end in .test; the C library answers for all others. */

static uint16_t closed_port;
static int slow_answers; /* written before, read after a join */
static pthread_mutex_t slow_lock = PTHREAD_MUTEX_INITIALIZER;

int
getaddrinfo(const char *restrict node, const char *restrict service,
    const struct addrinfo *restrict hints, struct addrinfo **restrict out)
{
    static int (*real)(const char *, const char *, const struct addrinfo *,
        struct addrinfo **);
    struct addrinfo *second;
    int rc;

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if ((hints->ai_flags & AI_NUMERICHOST) != 0)
        return real(node, service, hints, out);
    if (strcmp(node, "slow.test") == 0) {
        usleep(2500 * 1000);
        pthread_mutex_lock(&slow_lock);
        slow_answers++;
        pthread_mutex_unlock(&slow_lock);
        return EAI_AGAIN;
    }
    if (strcmp(node, "unknown.test") == 0)
        return EAI_NONAME;
    /* Two addresses, the first of which refuses. */
    if (strcmp(node, "two.test") == 0) {
        rc = real("127.0.0.2", service, hints, out);
        if (rc != 0)
            return rc;
        rc = real("127.0.0.1", service, hints, &second);
        (*out)->ai_next = rc == 0 ? second : NULL;
        return rc;
    }
    /* broker.test, for certificates. */
    if (strstr(node, ".test") != NULL)
        return real("127.0.0.1", service, hints, out);
    return real(node, service, hints, out);
}

/* --- a kernel that gives a socket the port that it connects to --- */

static bool same_port;

int
connect(int fd, const struct sockaddr *where, socklen_t len)
{
    static int (*real)(int, const struct sockaddr *, socklen_t);

    if (real == NULL)
        *(void **)&real = dlsym(RTLD_NEXT, "connect");
    if (same_port)
        CHECK(bind(fd, where, len) == 0);
    return real(fd, where, len);
}

/* --- helpers --- */

static fm_deadline
in_ms(int64_t ms)
{
    return fm_deadline_in(ms * FM_NS_PER_MS);
}

static fm_socket *
connect_to(const char *host, uint16_t port, const fm_tls_options *tls)
{
    fm_endpoint endpoint = { host, port };
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    fm_status status =
        fm_socket_connect(&endpoint, tls, in_ms(10000), -1, &sock, &error);

    if (status != FM_OK)
        CHECK_FAIL("connect: %s", error.text);
    CHECK(sock != NULL);
    return sock;
}

static void
write_all(fm_socket *sock, const void *data, size_t len)
{
    fm_error error;

    for (size_t put = 0; put < len;) {
        size_t n = 0;
        fm_status status = fm_socket_try_write(
            sock, (const char *)data + put, len - put, &n, &error);

        if (status == FM_AGAIN)
            status = fm_socket_wait(sock, POLLOUT, in_ms(20000), -1);
        CHECK_INT(status, FM_OK);
        put += n;
    }
}

/* Poll as the I/O thread does: only if nothing is pending. */
static fm_status
read_some(fm_socket *sock, void *buf, size_t cap, size_t *n, fm_error *error)
{
    for (;;) {
        fm_status status;

        if (!fm_socket_has_pending(sock))
            CHECK_INT(fm_socket_wait(sock, fm_socket_poll_events(sock, false),
                          in_ms(20000), -1),
                FM_OK);
        status = fm_socket_try_read(sock, buf, cap, n, error);
        if (status != FM_AGAIN)
            return status;
    }
}

static void
read_all(fm_socket *sock, void *data, size_t len, size_t cap)
{
    fm_error error;

    for (size_t got = 0; got < len;) {
        size_t n = 0;
        size_t room = len - got < cap ? len - got : cap;

        CHECK_INT(read_some(sock, (char *)data + got, room, &n, &error), FM_OK);
        CHECK(n > 0 && n <= room);
        got += n;
    }
}

static void
echo_script(int fd, void *arg)
{
    char room[4096];
    ssize_t rc;

    (void)arg;
    while ((rc = recv(fd, room, sizeof(room), 0)) > 0)
        peer_write(fd, room, (size_t)rc);
}

/* --- plain --- */

static int
option_of(const fm_socket *sock, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof(value);

    CHECK(getsockopt(fm_socket_fd(sock), level, name, &value, &len) == 0);
    return value;
}

static void
test_plain_bytes_go_both_ways(void)
{
    char back[5];
    char byte;
    size_t n;
    fm_error error;
    fm_socket *sock;
    peer echo;

    peer_start(&echo, echo_script, NULL);
    sock = connect_to("127.0.0.1", echo.port, NULL);
    CHECK(!fm_socket_is_tls(sock));
    CHECK_INT(fm_socket_try_read(sock, &byte, 1, &n, &error), FM_AGAIN);
    write_all(sock, "hello", 5);
    read_all(sock, back, 5, 5);
    CHECK_BYTES(back, 5, "hello", 5);
    CHECK(!fm_socket_has_pending(sock));
    CHECK_INT(fm_socket_poll_events(sock, false), POLLIN);
    CHECK_INT(fm_socket_poll_events(sock, true), POLLIN | POLLOUT);
    fm_socket_free(sock);
    peer_join(&echo);
}

static void
test_the_socket_is_set_up_like_stock_s(void)
{
    int flags;
    fm_socket *sock;
    peer echo;

    peer_start(&echo, echo_script, NULL);
    sock = connect_to("localhost", echo.port, NULL);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_NODELAY), 1);
    CHECK_INT(option_of(sock, SOL_SOCKET, SO_KEEPALIVE), 1);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_KEEPIDLE), 60);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_KEEPINTVL), 10);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_KEEPCNT), 9);
    flags = fcntl(fm_socket_fd(sock), F_GETFD);
    CHECK((flags & FD_CLOEXEC) != 0);
    flags = fcntl(fm_socket_fd(sock), F_GETFL);
    CHECK((flags & O_NONBLOCK) != 0);
    fm_socket_set_user_timeout(sock, 30000);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_USER_TIMEOUT), 30000);
    fm_socket_set_user_timeout(sock, 0);
    CHECK_INT(option_of(sock, IPPROTO_TCP, TCP_USER_TIMEOUT), 0);
    fm_socket_free(sock);
    peer_join(&echo);
}

static void
connect_fails(const char *host, uint16_t port, const fm_tls_options *tls,
    fm_status expected, const char *words)
{
    fm_endpoint endpoint = { host, port };
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    char where[64];

    CHECK_INT(
        fm_socket_connect(&endpoint, tls, in_ms(10000), -1, &sock, &error),
        expected);
    CHECK(sock == NULL);
    CHECK_INT(error.status, expected);
    snprintf(where, sizeof(where), "%s:%u", host, port);
    CHECK_HAS(error.text, where);
    CHECK_HAS(error.text, words);
    /* The thread may be Python's: nothing of ours in OpenSSL's queue. */
    CHECK_INT(ERR_peek_error(), 0);
    CHECK_INT(fm_socket_connect(&endpoint, tls, in_ms(10000), -1, &sock, NULL),
        expected);
}

static void
test_refused_and_unknown_hosts_are_named(void)
{
    connect_fails("127.0.0.1", closed_port, NULL, FM_SYSTEM,
        "connect to 127.0.0.1: Connection refused");
    connect_fails("::1", closed_port, NULL, FM_SYSTEM, "");
    connect_fails("unknown.test", 5672, NULL, FM_SYSTEM,
        "name resolution: Name or service not known");
    connect_fails("", 5672, NULL, FM_SYSTEM, "name resolution");
}

/* Else nobody could start a broker on that port, and we would wait for what
 * we say ourselves. */
static void
test_connected_to_itself_is_refused(void)
{
    fm_endpoint endpoint = { "127.0.0.1", closed_port };
    fm_socket *sock = NULL;
    fm_error error = { 0 };

    same_port = true;
    CHECK_INT(
        fm_socket_connect(&endpoint, NULL, in_ms(10000), -1, &sock, &error),
        FM_SYSTEM);
    CHECK_HAS(error.text, "Connection refused");
    same_port = false;
}

static void
test_the_next_address_is_tried(void)
{
    char back[2];
    fm_socket *sock;
    peer echo;

    peer_start(&echo, echo_script, NULL);
    sock = connect_to("two.test", echo.port, NULL);
    write_all(sock, "hi", 2);
    read_all(sock, back, 2, 2);
    fm_socket_free(sock);
    peer_join(&echo);
    connect_fails("two.test", closed_port, NULL, FM_SYSTEM, "127.0.0.1");
}

/* A listener on `address` whose queue is full: it answers nobody. */
typedef struct crowd {
    int listener;
    int fillers[4];
} crowd;

static void
crowd_init(crowd *self, const char *address, uint16_t *port)
{
    struct sockaddr_in where = { .sin_family = AF_INET };

    self->listener = peer_listen(address, port, 0);
    CHECK(inet_pton(AF_INET, address, &where.sin_addr) == 1);
    where.sin_port = htons(*port);
    for (int i = 0; i < 4; i++) {
        self->fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(self->fillers[i] >= 0);
        (void)!connect(
            self->fillers[i], (struct sockaddr *)&where, sizeof(where));
    }
    usleep(50 * 1000);
}

static void
crowd_fini(crowd *self)
{
    for (int i = 0; i < 4; i++)
        close(self->fillers[i]);
    close(self->listener);
}

static void *
cancel_later(void *arg)
{
    usleep(100 * 1000);
    CHECK(eventfd_write(*(int *)arg, 1) == 0);
    return NULL;
}

/* Connect with 300 ms, or until called off after 100 ms. */
static void
check_gives_up(const char *host, uint16_t port, const fm_tls_options *tls,
    const char *step)
{
    fm_endpoint endpoint = { host, port };
    int cancel_fd = eventfd(0, EFD_CLOEXEC);
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    pthread_t canceller;
    int64_t start = fm_now();

    CHECK(cancel_fd >= 0);
    CHECK_INT(
        fm_socket_connect(&endpoint, tls, in_ms(300), cancel_fd, &sock, &error),
        FM_TIMED_OUT);
    CHECK(fm_now() - start >= 300 * FM_NS_PER_MS);
    CHECK(fm_now() - start < 2 * FM_NS_PER_S);
    CHECK_HAS(error.text, step);
    CHECK_HAS(error.text, "timed out");

    start = fm_now();
    CHECK(pthread_create(&canceller, NULL, cancel_later, &cancel_fd) == 0);
    CHECK_INT(fm_socket_connect(
                  &endpoint, tls, in_ms(10000), cancel_fd, &sock, &error),
        FM_CLOSED);
    CHECK(fm_now() - start < 2 * FM_NS_PER_S);
    pthread_join(canceller, NULL);
    /* It stays called off. */
    CHECK_INT(fm_socket_connect(
                  &endpoint, tls, in_ms(10000), cancel_fd, &sock, &error),
        FM_CLOSED);
    CHECK(sock == NULL);
    close(cancel_fd);
}

static void
test_connecting_gives_up_in_time(void)
{
    uint16_t port = 0;
    crowd silent;

    crowd_init(&silent, "127.0.0.1", &port);
    check_gives_up("127.0.0.1", port, NULL, "connect to 127.0.0.1");
    crowd_fini(&silent);
}

static void
test_an_address_gets_its_share_of_the_time_only(void)
{
    fm_endpoint endpoint = { .host = "two.test" };
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    crowd silent;
    peer echo;
    int64_t start;

    peer_start(&echo, echo_script, NULL);
    endpoint.port = echo.port;
    crowd_init(&silent, "127.0.0.2", &echo.port);
    start = fm_now();
    CHECK_INT(
        fm_socket_connect(&endpoint, NULL, in_ms(1000), -1, &sock, &error),
        FM_OK);
    CHECK(fm_now() - start >= 450 * FM_NS_PER_MS);
    fm_socket_free(sock);
    peer_join(&echo);
    crowd_fini(&silent);
}

static void
test_a_silent_name_server_does_not_hold_us(void)
{
    int answers = 0;

    check_gives_up("slow.test", 5672, NULL, "name resolution");
    /* The threads that were left behind end and free what they have. */
    while (answers < 3) {
        usleep(20 * 1000);
        pthread_mutex_lock(&slow_lock);
        answers = slow_answers;
        pthread_mutex_unlock(&slow_lock);
    }
    usleep(100 * 1000);
}

static void
test_localhost_and_addresses_need_no_resolver(void)
{
    fm_addresses found = { 0 };
    fm_error error = { 0 };

    CHECK_INT(
        fm_resolve("two.test", 5672, in_ms(1000), -1, &found, &error), FM_OK);
    CHECK_INT(found.count, 2);
    CHECK_INT(
        ((struct sockaddr_in *)&found.list[1].where)->sin_port, htons(5672));
    /* localhost never asks, and is never ::1. */
    CHECK_INT(
        fm_resolve("LocalHost", 1, in_ms(1000), -1, &found, &error), FM_OK);
    CHECK_INT(found.count, 1);
    CHECK_INT(found.list[0].where.ss_family, AF_INET);
    CHECK_INT(fm_resolve("::1", 1, in_ms(1000), -1, &found, &error), FM_OK);
    CHECK_INT(found.list[0].where.ss_family, AF_INET6);
}

static void
close_script(int fd, void *arg)
{
    (void)fd;
    (void)arg;
}

/* SIGPIPE would end the test. */
static void
check_peer_that_closed(fm_socket *sock)
{
    static char block[65536];
    fm_error error = { 0 };
    fm_status status;
    size_t n;

    CHECK_INT(read_some(sock, block, sizeof(block), &n, &error), FM_CLOSED);
    CHECK_HAS(error.text, "closed the connection");
    do {
        status = fm_socket_try_write(sock, block, sizeof(block), &n, &error);
        if (status == FM_AGAIN)
            CHECK_INT(fm_socket_wait(sock, POLLOUT, in_ms(5000), -1), FM_OK);
    } while (status == FM_OK || status == FM_AGAIN);
    CHECK(status == FM_CLOSED || status == FM_SYSTEM);
    CHECK(error.text[0] != '\0');
    CHECK_INT(ERR_peek_error(), 0);
    status = fm_socket_try_write(sock, block, 1, &n, NULL);
    CHECK(status == FM_CLOSED || status == FM_SYSTEM);
}

static void
test_a_plain_peer_that_closes(void)
{
    fm_socket *sock;
    peer closer;

    peer_start(&closer, close_script, NULL);
    sock = connect_to("127.0.0.1", closer.port, NULL);
    check_peer_that_closed(sock);
    fm_socket_free(sock);
    peer_join(&closer);
}

static void
test_waiting_has_a_deadline_and_can_be_called_off(void)
{
    int cancel_fd = eventfd(0, EFD_CLOEXEC);
    fm_socket *sock;
    peer echo;
    int64_t start;

    peer_start(&echo, echo_script, NULL);
    sock = connect_to("127.0.0.1", echo.port, NULL);
    start = fm_now();
    CHECK_INT(fm_socket_wait(sock, POLLIN, in_ms(50), cancel_fd), FM_TIMED_OUT);
    CHECK(fm_now() - start >= 50 * FM_NS_PER_MS);
    CHECK_INT(fm_socket_wait(sock, POLLOUT, in_ms(50), cancel_fd), FM_OK);
    CHECK(eventfd_write(cancel_fd, 1) == 0);
    CHECK_INT(fm_socket_wait(sock, POLLIN, in_ms(5000), cancel_fd), FM_CLOSED);
    CHECK_INT(fm_socket_wait(sock, POLLOUT, in_ms(5000), cancel_fd), FM_CLOSED);
    fm_socket_free(sock);
    peer_join(&echo);
    close(cancel_fd);
}

/* --- certificates --- */

typedef struct identity {
    EVP_PKEY *key;
    X509 *cert;
} identity;

static char folder[] = "/tmp/fm-test-socket-XXXXXX";

static const char *
path_of(const char *name)
{
    static char paths[8][96];
    static int next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static void
add_extension(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    CHECK(extension != NULL);
    CHECK(X509_add_ext(cert, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

/* Signed by `issuer`, by itself if that is NULL. `names`: as in a subject
 * alternative name, NULL for a CA. */
static identity
make_identity(
    const char *common_name, const char *names, const identity *issuer)
{
    static long serial = 1;
    identity made = { EVP_EC_gen("P-256"), X509_new() };
    X509_NAME *name;

    CHECK(made.key != NULL && made.cert != NULL);
    CHECK(X509_set_version(made.cert, X509_VERSION_3) == 1);
    CHECK(ASN1_INTEGER_set(X509_get_serialNumber(made.cert), serial++) == 1);
    X509_gmtime_adj(X509_getm_notBefore(made.cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(made.cert), 3600);
    CHECK(X509_set_pubkey(made.cert, made.key) == 1);
    name = X509_get_subject_name(made.cert);
    CHECK(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
              (const unsigned char *)common_name, -1, -1, 0)
        == 1);
    CHECK(X509_set_issuer_name(made.cert,
              issuer == NULL ? name : X509_get_subject_name(issuer->cert))
        == 1);
    if (names != NULL)
        add_extension(made.cert, NID_subject_alt_name, names);
    else
        add_extension(made.cert, NID_basic_constraints, "critical,CA:TRUE");
    CHECK(X509_sign(
              made.cert, issuer == NULL ? made.key : issuer->key, EVP_sha256())
        > 0);
    return made;
}

static void
identity_fini(identity *self)
{
    EVP_PKEY_free(self->key);
    X509_free(self->cert);
}

static void
write_cert(const char *name, X509 *cert)
{
    FILE *file = fopen(path_of(name), "w");

    CHECK(file != NULL);
    CHECK(PEM_write_X509(file, cert) == 1);
    fclose(file);
}

static void
write_key(const char *name, EVP_PKEY *key, const char *passphrase)
{
    FILE *file = fopen(path_of(name), "w");

    CHECK(file != NULL);
    CHECK(PEM_write_PrivateKey(file, key,
              passphrase == NULL ? NULL : EVP_aes_128_cbc(),
              (const unsigned char *)passphrase,
              passphrase == NULL ? 0 : (int)strlen(passphrase), NULL, NULL)
        == 1);
    fclose(file);
}

static identity ca, other_ca, server, client;

static void
make_certificates(void)
{
    CHECK(mkdtemp(folder) != NULL);
    ca = make_identity("test CA", NULL, NULL);
    other_ca = make_identity("other CA", NULL, NULL);
    server = make_identity(
        "unused.test", "DNS:broker.test,DNS:*.wild.test,IP:127.0.0.1", &ca);
    client = make_identity("nova", "DNS:nova", &ca);
    write_cert("ca.pem", ca.cert);
    write_cert("other.pem", other_ca.cert);
    write_cert("client.pem", client.cert);
    write_key("client.key", client.key, NULL);
    write_key("secret.key", client.key, "passphrase");
    write_key("other.key", other_ca.key, NULL);
}

static void
remove_certificates(void)
{
    static const char *const names[] = { "ca.pem", "other.pem", "client.pem",
        "client.key", "secret.key", "other.key" };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlink(path_of(names[i]));
    rmdir(folder);
    identity_fini(&ca);
    identity_fini(&other_ca);
    identity_fini(&server);
    identity_fini(&client);
}

/* --- TLS peers --- */

typedef struct tls_script {
    int max_version;
    bool wants_client;
    void (*play)(SSL *ssl); /* after the handshake */
    /* What the peer saw; read after peer_join(). */
    bool agreed;
    int version;
    char sni[64];
    char client_name[64];
} tls_script;

static void
serve_tls(int fd, void *arg)
{
    tls_script *script = arg;
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    SSL *ssl;
    const char *sni;

    CHECK(context != NULL);
    CHECK(SSL_CTX_use_certificate(context, server.cert) == 1);
    CHECK(SSL_CTX_use_PrivateKey(context, server.key) == 1);
    if (script->max_version != 0)
        SSL_CTX_set_max_proto_version(context, script->max_version);
    if (script->wants_client) {
        SSL_CTX_set_verify(
            context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
        X509_STORE_add_cert(SSL_CTX_get_cert_store(context), ca.cert);
    }
    ssl = SSL_new(context);
    CHECK(ssl != NULL);
    SSL_set_fd(ssl, fd);
    script->agreed = SSL_accept(ssl) == 1;
    if (script->agreed) {
        X509 *theirs = SSL_get0_peer_certificate(ssl);

        script->version = SSL_version(ssl);
        sni = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
        snprintf(script->sni, sizeof(script->sni), "%s", sni ? sni : "");
        if (theirs != NULL)
            X509_NAME_get_text_by_NID(X509_get_subject_name(theirs),
                NID_commonName, script->client_name,
                sizeof(script->client_name));
        if (script->play != NULL)
            script->play(ssl);
    } else {
        peer_drain(fd);
    }
    ERR_clear_error();
    SSL_free(ssl);
    SSL_CTX_free(context);
}

/* SSL_write() and SSL_read() use write() and read(): a reset must not kill
 * the test through its own peer. */
static void
play_echo(SSL *ssl)
{
    char room[16384];
    int n;

    while ((n = SSL_read(ssl, room, sizeof(room))) > 0) {
        if (SSL_write(ssl, room, n) != n)
            break;
    }
}

static const fm_tls_options strict = {
    .enabled = true, .verify_peer = true, .verify_host = true
};

static fm_tls_options
with_ca(const char *name)
{
    fm_tls_options options = strict;

    options.ca_file = path_of(name);
    return options;
}

static void
check_tls_works(
    const char *host, const fm_tls_options *options, tls_script *script)
{
    char back[5];
    fm_socket *sock;
    peer echo;

    script->play = play_echo;
    peer_start(&echo, serve_tls, script);
    sock = connect_to(host, echo.port, options);
    CHECK(fm_socket_is_tls(sock));
    write_all(sock, "hello", 5);
    read_all(sock, back, 5, 5);
    CHECK_BYTES(back, 5, "hello", 5);
    fm_socket_free(sock);
    peer_join(&echo);
    CHECK(script->agreed);
}

/* `words` are in the error; every attempt gets a peer of its own. */
static void
check_tls_fails(const char *host, const fm_tls_options *options,
    tls_script *script, const char *words)
{
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    peer server_peer;
    fm_endpoint endpoint = { .host = host };

    script->play = play_echo;
    peer_start_at(&server_peer,
        strcmp(host, "127.0.0.2") == 0 ? host : "127.0.0.1", serve_tls, script);
    endpoint.port = server_peer.port;
    CHECK_INT(
        fm_socket_connect(&endpoint, options, in_ms(10000), -1, &sock, &error),
        FM_TLS);
    CHECK(sock == NULL);
    CHECK_HAS(error.text, host);
    CHECK_HAS(error.text, "TLS: ");
    CHECK_HAS(error.text, words);
    CHECK_INT(ERR_peek_error(), 0);
    peer_join(&server_peer);
}

static void
test_tls_with_the_right_name(void)
{
    tls_script script = { 0 };
    fm_tls_options options = with_ca("ca.pem");

    check_tls_works("broker.test", &options, &script);
    CHECK_TEXT(script.sni, "broker.test");
    CHECK_INT(script.version, TLS1_3_VERSION);
    check_tls_works("rabbit1.wild.test", &options, &script);
    check_tls_works("broker.test.", &options, &script);
    CHECK_TEXT(script.sni, "broker.test");
}

static void
test_tls_with_an_address_in_the_certificate(void)
{
    tls_script script = { 0 };
    fm_tls_options options = with_ca("ca.pem");

    check_tls_works("127.0.0.1", &options, &script);
    CHECK_TEXT(script.sni, ""); /* an address is no server name */
}

static void
test_tls_with_the_wrong_name(void)
{
    tls_script script = { 0 };
    fm_tls_options options = with_ca("ca.pem");

    check_tls_fails("other.test", &options, &script, "ostname mismatch");
    check_tls_fails("a.b.wild.test", &options, &script, "ostname mismatch");
    /* The common name counts for nothing beside alternative names. */
    check_tls_fails("unused.test", &options, &script, "ostname mismatch");
    check_tls_fails("127.0.0.2", &options, &script, "IP address mismatch");
    options.verify_host = false;
    check_tls_works("other.test", &options, &script);
    CHECK_TEXT(script.sni, "other.test");
}

static void
test_tls_with_an_authority_that_we_do_not_trust(void)
{
    tls_script script = { 0 };
    fm_tls_options options = with_ca("other.pem");

    check_tls_fails("broker.test", &options, &script, "certificate refused");
    check_tls_fails("broker.test", &strict, &script, "certificate refused");
    options = strict;
    options.verify_peer = false; /* then the name counts for nothing either */
    check_tls_works("other.test", &options, &script);
}

static void
test_tls_with_a_client_certificate(void)
{
    tls_script script = { .wants_client = true };
    fm_tls_options options = with_ca("ca.pem");

    options.cert_file = path_of("client.pem");
    options.key_file = path_of("client.key");
    check_tls_works("broker.test", &options, &script);
    CHECK_TEXT(script.client_name, "nova");
}

static void
test_tls_versions(void)
{
    tls_script script = { 0 };
    tls_script old = { .max_version = TLS1_2_VERSION };
    fm_tls_options options = with_ca("ca.pem");

    check_tls_works("broker.test", &options, &old);
    CHECK_INT(old.version, TLS1_2_VERSION);
    options.max_version = FM_TLS_1_2;
    check_tls_works("broker.test", &options, &script);
    CHECK_INT(script.version, TLS1_2_VERSION);
    options.max_version = FM_TLS_ANY;
    options.min_version = FM_TLS_1_3;
    check_tls_fails("broker.test", &options, &old, "version");
}

static void
test_tls_files_that_are_not_there_or_not_usable(void)
{
    fm_tls_options options = with_ca("none.pem");

    connect_fails("127.0.0.1", closed_port, &options, FM_TLS,
        "none.pem: No such file or directory");
    options = with_ca("client.key");
    connect_fails(
        "127.0.0.1", closed_port, &options, FM_TLS, "cannot load the CA");
    options = with_ca("ca.pem");
    options.cert_file = path_of("none.pem");
    connect_fails("127.0.0.1", closed_port, &options, FM_TLS,
        "cannot load the certificate");
    options.cert_file = path_of("client.pem");
    connect_fails(/* holds no key */
        "127.0.0.1", closed_port, &options, FM_TLS, "cannot load the key");
    options.key_file = path_of("other.key"); /* another's */
    connect_fails(
        "127.0.0.1", closed_port, &options, FM_TLS, "key values mismatch");
    /* Encrypted: an error, and no question on the terminal. */
    options.key_file = path_of("secret.key");
    connect_fails(
        "127.0.0.1", closed_port, &options, FM_TLS, "cannot load the key");
    options = with_ca("ca.pem");
    /* Not weaker algorithms in silence where there is no FIPS provider. */
    options.fips = true;
    if (OSSL_PROVIDER_available(NULL, "fips"))
        connect_fails("127.0.0.1", closed_port, &options, FM_SYSTEM, "refused");
    else
        connect_fails("127.0.0.1", closed_port, &options, FM_TLS, "FIPS");
}

static void
amqp_header_script(int fd, void *arg)
{
    (void)arg;
    peer_write(fd, "AMQP\0\0\x09\1", 8);
    peer_drain(fd);
}

static void
test_tls_to_a_port_without_tls(void)
{
    fm_tls_options options = with_ca("ca.pem");
    fm_socket *sock = NULL;
    fm_error error = { 0 };
    fm_endpoint endpoint = { .host = "broker.test" };
    fm_status status;
    peer plain;

    peer_start(&plain, amqp_header_script, NULL);
    endpoint.port = plain.port;
    CHECK_INT(
        fm_socket_connect(&endpoint, &options, in_ms(10000), -1, &sock, &error),
        FM_TLS);
    CHECK_HAS(error.text, "does this port speak TLS?");
    peer_join(&plain);

    peer_start(&plain, close_script, NULL);
    endpoint.port = plain.port;
    status =
        fm_socket_connect(&endpoint, &options, in_ms(10000), -1, &sock, &error);
    CHECK(status == FM_TLS || status == FM_SYSTEM); /* closed, or reset */
    CHECK_HAS(error.text, "TLS: ");
    peer_join(&plain);
}

static void
test_tls_with_a_silent_peer_gives_up_in_time(void)
{
    fm_tls_options options = with_ca("ca.pem");
    uint16_t port = 0;
    /* The kernel accepts, and nobody else. */
    int listener = peer_listen("127.0.0.1", &port, 8);

    check_gives_up("127.0.0.1", port, &options, "TLS");
    close(listener);
}

static void
play_close(SSL *ssl)
{
    SSL_shutdown(ssl);
}

static void
test_a_tls_peer_that_closes(void)
{
    void (*const plays[])(SSL *) = { play_close, NULL }; /* with a farewell
                                                            or without */
    fm_tls_options options = with_ca("ca.pem");

    for (int i = 0; i < 2; i++) {
        tls_script script = { .play = plays[i] };
        fm_socket *sock;
        peer closer;

        peer_start(&closer, serve_tls, &script);
        sock = connect_to("broker.test", closer.port, &options);
        check_peer_that_closed(sock);
        fm_socket_free(sock);
        peer_join(&closer);
    }
}

static void
play_records(SSL *ssl)
{
    char block[40000];

    for (size_t i = 0; i < sizeof(block); i++)
        block[i] = (char)i;
    CHECK(SSL_write(ssl, block, sizeof(block)) == sizeof(block));
    play_echo(ssl);
}

/* All of it arrives although poll() sees none of what OpenSSL has read. */
static void
test_tls_bytes_that_poll_does_not_see(void)
{
    fm_tls_options options = with_ca("ca.pem");
    tls_script script = { .play = play_records };
    char block[40000];
    fm_error error;
    fm_socket *sock;
    peer sender;
    size_t n;

    peer_start(&sender, serve_tls, &script);
    sock = connect_to("broker.test", sender.port, &options);
    CHECK_INT(read_some(sock, block, 100, &n, &error), FM_OK);
    CHECK_INT(n, 100);
    CHECK(fm_socket_has_pending(sock));
    read_all(sock, block + 100, sizeof(block) - 100, 999);
    for (size_t i = 0; i < sizeof(block); i++)
        CHECK_INT((unsigned char)block[i], i & 0xFF);
    CHECK_INT(fm_socket_try_read(sock, block, 1, &n, &error), FM_AGAIN);
    CHECK(!fm_socket_has_pending(sock));
    fm_socket_free(sock);
    peer_join(&sender);
}

static void
play_key_updates(SSL *ssl)
{
    char room[64];
    int n;

    /* The answer to each request has to be written by our reader. */
    while ((n = SSL_read(ssl, room, sizeof(room))) > 0) {
        CHECK(SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED) == 1);
        if (SSL_write(ssl, room, n) != n)
            break;
    }
}

static void
test_tls_key_updates(void)
{
    fm_tls_options options = with_ca("ca.pem");
    tls_script script = { .play = play_key_updates };
    char back[5];
    fm_socket *sock;
    peer updater;

    peer_start(&updater, serve_tls, &script);
    sock = connect_to("broker.test", updater.port, &options);
    for (int i = 0; i < 50; i++) {
        write_all(sock, "hello", 5);
        read_all(sock, back, 5, 5);
        CHECK_BYTES(back, 5, "hello", 5);
    }
    fm_socket_free(sock);
    peer_join(&updater);
}

/* --- one thread reads while another writes --- */

typedef struct pump {
    fm_socket *sock;
    uint8_t *data;
} pump;

/* From a buffer that moves after each partial write, as the flusher's does. */
static void *
pump_out(void *arg)
{
    pump *self = arg;
    fm_buf buf = { 0 };
    fm_error error;

    for (size_t put = 0; put < BIG || buf.len > 0;) {
        size_t chunk = BIG - put < 50000 ? BIG - put : 50000;
        size_t n = 0;
        fm_status status;

        CHECK_INT(fm_buf_append(&buf, self->data + put, chunk), FM_OK);
        put += chunk;
        status = fm_socket_try_write(self->sock, buf.data, buf.len, &n, &error);
        if (status == FM_AGAIN) {
            fm_buf moved = { 0 };

            CHECK_INT(fm_buf_append(&moved, buf.data, buf.len), FM_OK);
            fm_buf_fini(&buf);
            buf = moved;
            status = fm_socket_wait(self->sock, POLLOUT, in_ms(60000), -1);
        }
        CHECK_INT(status, FM_OK);
        fm_buf_consume(&buf, n);
    }
    fm_buf_fini(&buf);
    return NULL;
}

static void
check_both_directions(fm_socket *sock)
{
    uint8_t *sent = malloc(BIG);
    uint8_t *back = malloc(BIG);
    pump writer = { sock, sent };
    pthread_t thread;

    CHECK(sent != NULL && back != NULL);
    for (size_t i = 0; i < BIG; i++)
        sent[i] = (uint8_t)(i * 7 + i / 1000);
    CHECK(pthread_create(&thread, NULL, pump_out, &writer) == 0);
    read_all(sock, back, BIG, 100000);
    pthread_join(thread, NULL);
    CHECK(memcmp(sent, back, BIG) == 0);
    free(sent);
    free(back);
}

static void
test_reading_while_another_thread_writes(void)
{
    fm_tls_options options = with_ca("ca.pem");
    tls_script script = { .play = play_echo };
    fm_socket *sock;
    peer echo;

    peer_start(&echo, echo_script, NULL);
    sock = connect_to("127.0.0.1", echo.port, NULL);
    check_both_directions(sock);
    fm_socket_free(sock);
    peer_join(&echo);

    peer_start(&echo, serve_tls, &script);
    sock = connect_to("broker.test", echo.port, &options);
    check_both_directions(sock);
    fm_socket_free(sock);
    peer_join(&echo);
}

/* --- forks --- */

static void
test_a_child_closes_its_descriptor_and_nothing_else(void)
{
    fm_tls_options options = with_ca("ca.pem");
    tls_script script = { .play = play_echo };
    char back[5];
    int child_status;
    fm_socket *sock;
    peer echo;
    pid_t child;

    peer_start(&echo, serve_tls, &script);
    sock = connect_to("broker.test", echo.port, &options);
    fm_socket_fork_prepare();
    child = fork();
    if (child == 0) {
        int fd = fm_socket_fd(sock);

        fm_socket_fork_child();
        _exit(fcntl(fd, F_GETFD) == -1 && errno == EBADF ? 0 : 1);
    }
    fm_socket_fork_parent();
    CHECK(child > 0);
    CHECK(waitpid(child, &child_status, 0) == child);
    CHECK(WIFEXITED(child_status) && WEXITSTATUS(child_status) == 0);
    write_all(sock, "hello", 5);
    read_all(sock, back, 5, 5);
    fm_socket_free(sock);
    peer_join(&echo);
    fm_socket_free(NULL);
}

int
main(void)
{
    int descriptors;

    signal(SIGPIPE, SIG_DFL);
    close(peer_listen("127.0.0.1", &closed_port, 1));
    make_certificates();
    descriptors = count_descriptors();
    RUN(test_plain_bytes_go_both_ways);
    RUN(test_the_socket_is_set_up_like_stock_s);
    RUN(test_refused_and_unknown_hosts_are_named);
    RUN(test_connected_to_itself_is_refused);
    RUN(test_the_next_address_is_tried);
    RUN(test_connecting_gives_up_in_time);
    RUN(test_a_silent_name_server_does_not_hold_us);
    RUN(test_localhost_and_addresses_need_no_resolver);
    RUN(test_an_address_gets_its_share_of_the_time_only);
    RUN(test_a_plain_peer_that_closes);
    RUN(test_waiting_has_a_deadline_and_can_be_called_off);
    RUN(test_tls_with_the_right_name);
    RUN(test_tls_with_an_address_in_the_certificate);
    RUN(test_tls_with_the_wrong_name);
    RUN(test_tls_with_an_authority_that_we_do_not_trust);
    RUN(test_tls_with_a_client_certificate);
    RUN(test_tls_versions);
    RUN(test_tls_files_that_are_not_there_or_not_usable);
    RUN(test_tls_to_a_port_without_tls);
    RUN(test_tls_with_a_silent_peer_gives_up_in_time);
    RUN(test_a_tls_peer_that_closes);
    RUN(test_tls_bytes_that_poll_does_not_see);
    RUN(test_tls_key_updates);
    RUN(test_reading_while_another_thread_writes);
    RUN(test_a_child_closes_its_descriptor_and_nothing_else);
    CHECK_INT(count_descriptors(), descriptors);
    remove_certificates();
    return 0;
}
