/* A TCP proxy in front of the broker that a test can cut, freeze and shut.
 *
 * One thread forwards; the test's verbs return once the thread has done what
 * they ask.
 */
#ifndef FM_TESTS_PROXY_H
#define FM_TESTS_PROXY_H

#include "check.h"
#include "peer.h"

#include "base/buf.h"
#include "base/sync.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>

enum { PROXY_LINKS = 32, PROXY_BYTES = 16384 };

/* One direction: what was read from `from` and is not yet in `to`. */
typedef struct proxy_pipe {
    int from, to;
    uint8_t bytes[PROXY_BYTES];
    size_t at, len;
} proxy_pipe;

typedef struct proxy_link {
    int client, broker; /* -1: free */
    proxy_pipe up, down;
} proxy_link;

typedef enum proxy_mode {
    PROXY_FORWARD,
    PROXY_FREEZE, /* forward nothing, accept nothing, say nothing */
    PROXY_SLAM,   /* accept and close at once */
} proxy_mode;

typedef struct proxy {
    uint16_t port, broker_port;
    int listener;
    fm_waker waker;
    fm_wake done;
    pthread_t thread;
    atomic_int mode;   /* a proxy_mode */
    atomic_int acting; /* the one that the thread goes by */
    atomic_bool cut;   /* asks for it; back to false when done */
    atomic_bool stop;
    atomic_int accepted;
    atomic_size_t limit; /* bytes from clients until the next cut; 0: none */
    proxy_link links[PROXY_LINKS]; /* owned by the thread */
} proxy;

static inline void
proxy_drop(proxy_link *each, bool reset)
{
    struct linger now = { .l_onoff = 1, .l_linger = 0 };

    if (each->client < 0)
        return;
    if (reset)
        setsockopt(each->client, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(each->client);
    close(each->broker);
    each->client = each->broker = -1;
}

static inline void
proxy_accept(proxy *self)
{
    struct sockaddr_in where = { .sin_family = AF_INET,
        .sin_port = htons(self->broker_port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int client = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC);
    int one = 1;

    if (client < 0)
        return;
    atomic_fetch_add(&self->accepted, 1);
    if (atomic_load(&self->mode) == PROXY_SLAM) {
        close(client);
        return;
    }
    for (int i = 0; i < PROXY_LINKS; i++) {
        proxy_link *link = &self->links[i];

        if (link->client >= 0)
            continue;
        link->broker = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(link->broker, (struct sockaddr *)&where, sizeof(where))
            == 0);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(link->broker, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        fcntl(client, F_SETFL, O_NONBLOCK);
        fcntl(link->broker, F_SETFL, O_NONBLOCK);
        link->client = client;
        link->up = (proxy_pipe){ .from = client, .to = link->broker };
        link->down = (proxy_pipe){ .from = link->broker, .to = client };
        return;
    }
    CHECK_FAIL("too many connections through the proxy");
}

/* Move what can be moved; false: one end is gone. */
static inline bool
proxy_move(proxy *self, proxy_pipe *pipe, bool is_up)
{
    ssize_t rc;

    if (pipe->len == 0) {
        rc = recv(pipe->from, pipe->bytes, sizeof(pipe->bytes), 0);
        if (rc == 0 || (rc < 0 && errno != EAGAIN))
            return false;
        pipe->at = 0;
        pipe->len = rc < 0 ? 0 : (size_t)rc;
        if (is_up && atomic_load(&self->limit) > 0) {
            size_t limit = atomic_load(&self->limit);

            if (pipe->len >= limit) { /* in mid-frame, most likely */
                pipe->len = limit;
                atomic_store(&self->limit, 0);
                atomic_store(&self->cut, true);
            } else {
                atomic_store(&self->limit, limit - pipe->len);
            }
        }
    }
    if (pipe->len == 0)
        return true;
    rc = send(pipe->to, pipe->bytes + pipe->at, pipe->len, MSG_NOSIGNAL);
    if (rc < 0)
        return errno == EAGAIN;
    pipe->at += (size_t)rc;
    pipe->len -= (size_t)rc;
    return true;
}

static inline void *
proxy_run(void *arg)
{
    proxy *self = arg;

    while (!atomic_load(&self->stop)) {
        struct pollfd polls[2 + 2 * PROXY_LINKS];
        int mode = atomic_load(&self->mode);
        bool frozen = mode == PROXY_FREEZE;

        atomic_store(&self->acting, mode);
        fm_wake_all(&self->done);
        polls[0] = (struct pollfd){ self->waker.fd, POLLIN, 0 };
        polls[1] = (struct pollfd){ frozen ? -1 : self->listener, POLLIN, 0 };
        for (int i = 0; i < PROXY_LINKS; i++) {
            proxy_link *link = &self->links[i];
            bool none = frozen || link->client < 0;

            polls[2 + 2 * i] =
                (struct pollfd){ none ? -1 : link->client, 0, 0 };
            polls[3 + 2 * i] =
                (struct pollfd){ none ? -1 : link->broker, 0, 0 };
            polls[2 + 2 * i].events |= link->up.len == 0 ? POLLIN : 0;
            polls[2 + 2 * i].events |= link->down.len > 0 ? POLLOUT : 0;
            polls[3 + 2 * i].events |= link->down.len == 0 ? POLLIN : 0;
            polls[3 + 2 * i].events |= link->up.len > 0 ? POLLOUT : 0;
        }
        CHECK(poll(polls, 2 + 2 * PROXY_LINKS, -1) > 0);
        fm_waker_drain(&self->waker);
        for (int i = 0; i < PROXY_LINKS; i++) {
            proxy_link *link = &self->links[i];

            if (polls[2 + 2 * i].revents == 0 && polls[3 + 2 * i].revents == 0)
                continue;
            if (!proxy_move(self, &link->up, true)
                || !proxy_move(self, &link->down, false))
                proxy_drop(link, false);
        }
        if ((polls[1].revents & POLLIN) != 0)
            proxy_accept(self);
        if (atomic_load(&self->cut)) {
            for (int i = 0; i < PROXY_LINKS; i++)
                proxy_drop(&self->links[i], true);
            atomic_store(&self->cut, false);
        }
        fm_wake_all(&self->done);
    }
    for (int i = 0; i < PROXY_LINKS; i++)
        proxy_drop(&self->links[i], true);
    return NULL;
}

static inline void
proxy_start(proxy *self, uint16_t broker_port)
{
    *self = (proxy){ .broker_port = broker_port };
    self->listener = peer_listen("127.0.0.1", &self->port, 64);
    for (int i = 0; i < PROXY_LINKS; i++)
        self->links[i].client = self->links[i].broker = -1;
    CHECK_INT(fm_waker_init(&self->waker), FM_OK);
    fm_wake_init(&self->done);
    CHECK(pthread_create(&self->thread, NULL, proxy_run, self) == 0);
}

static inline void
proxy_stop(proxy *self)
{
    atomic_store(&self->stop, true);
    fm_waker_signal(&self->waker);
    pthread_join(self->thread, NULL);
    close(self->listener);
    fm_waker_fini(&self->waker);
}

/* Until the thread has come round once more. */
static inline void
proxy_wait_turn(proxy *self, unsigned seen)
{
    CHECK_INT(fm_wake_wait(&self->done, seen, fm_deadline_in(10 * FM_NS_PER_S)),
        FM_OK);
}

/* Reset every connection. */
static inline void
proxy_cut(proxy *self)
{
    atomic_store(&self->cut, true);
    fm_waker_signal(&self->waker);
    while (atomic_load(&self->cut)) {
        unsigned seen = fm_wake_read(&self->done);

        if (atomic_load(&self->cut))
            proxy_wait_turn(self, seen);
    }
}

/* Returns when it is in force: nothing more slips through as before. */
static inline void
proxy_set_mode(proxy *self, proxy_mode mode)
{
    atomic_store(&self->mode, mode);
    fm_waker_signal(&self->waker);
    while (atomic_load(&self->acting) != (int)mode) {
        unsigned seen = fm_wake_read(&self->done);

        if (atomic_load(&self->acting) != (int)mode)
            proxy_wait_turn(self, seen);
    }
}

#endif
