/* A peer on loopback for tests: one thread that accepts and plays a script.
 *
 * The script gets the accepted descriptor, which is closed after it.
 */
#ifndef FM_TESTS_PEER_H
#define FM_TESTS_PEER_H

#include "check.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct peer {
    int listener;
    uint16_t port;
    void (*script)(int fd, void *arg);
    void *arg;
    pthread_t thread;
} peer;

/* A listening socket; *port 0 leaves the choice to the kernel. */
static inline int
peer_listen(const char *address, uint16_t *port, int backlog)
{
    struct sockaddr_in where = { .sin_family = AF_INET,
        .sin_port = htons(*port) };
    socklen_t len = sizeof(where);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    CHECK(inet_pton(AF_INET, address, &where.sin_addr) == 1);
    CHECK(bind(fd, (struct sockaddr *)&where, len) == 0);
    CHECK(listen(fd, backlog) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&where, &len) == 0);
    *port = ntohs(where.sin_port);
    return fd;
}

static inline void *
peer_body(void *arg)
{
    peer *self = arg;
    int fd = accept(self->listener, NULL, NULL);

    CHECK(fd >= 0);
    self->script(fd, self->arg);
    close(fd);
    return NULL;
}

static inline void
peer_start_at(peer *self, const char *address,
    void (*script)(int fd, void *arg), void *arg)
{
    self->port = 0;
    self->listener = peer_listen(address, &self->port, 8);
    self->script = script;
    self->arg = arg;
    CHECK(pthread_create(&self->thread, NULL, peer_body, self) == 0);
}

static inline void
peer_start(peer *self, void (*script)(int fd, void *arg), void *arg)
{
    peer_start_at(self, "127.0.0.1", script, arg);
}

static inline void
peer_join(peer *self)
{
    pthread_join(self->thread, NULL);
    close(self->listener);
}

/* Read exactly `len` bytes; false at the end of the stream. */
static inline bool
peer_read(int fd, void *buf, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t rc = recv(fd, (char *)buf + got, len - got, 0);

        if (rc <= 0)
            return false;
        got += (size_t)rc;
    }
    return true;
}

static inline void
peer_write(int fd, const void *buf, size_t len)
{
    for (size_t put = 0; put < len;) {
        ssize_t rc = send(fd, (const char *)buf + put, len - put, MSG_NOSIGNAL);

        if (rc <= 0)
            return; /* the other side has seen enough */
        put += (size_t)rc;
    }
}

/* Wait until the other side closes. */
static inline void
peer_drain(int fd)
{
    char room[4096];

    while (recv(fd, room, sizeof(room), 0) > 0) {
    }
}

/* How many descriptors this process has. */
static inline int
count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    CHECK(dir != NULL);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

#endif
