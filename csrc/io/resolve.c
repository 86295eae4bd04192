#include "io/resolve.h"

#include "io/wait.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Shared by the thread that asks and the one that waits; the last one out
 * frees it. */
struct query {
    atomic_int users;
    int done_fd;       /* owned; readable once `status` is written */
    char *host;        /* owned. FM_IMMUTABLE */
    uint16_t port;     /* FM_IMMUTABLE */
    atomic_bool ended; /* orders what follows for the one who waits */
    fm_status status;
    fm_error error;
    fm_addresses found;
};

static void
query_unref(struct query *query)
{
    if (atomic_fetch_sub(&query->users, 1) > 1)
        return;
    close(query->done_fd);
    free(query->host);
    free(query);
}

static fm_status
look_up(const char *host, uint16_t port, int flags, fm_addresses *out,
    fm_error *error)
{
    struct addrinfo hints = { .ai_flags = flags | AI_NUMERICSERV,
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM };
    struct addrinfo *found;
    char service[8];
    int rc;

    (void)snprintf(service, sizeof(service), "%u", port);
    rc = getaddrinfo(host, service, &hints, &found);
    if (rc == EAI_MEMORY)
        return fm_error_set(
            error, FM_NO_MEMORY, 0, "name resolution: out of memory");
    if (rc == EAI_SYSTEM)
        return fm_error_set_errno(error, errno, "name resolution");
    if (rc != 0)
        return fm_error_set(
            error, FM_SYSTEM, 0, "name resolution: %s", gai_strerror(rc));

    out->count = 0;
    for (struct addrinfo *info = found; info != NULL; info = info->ai_next) {
        fm_address *address = &out->list[out->count];

        if (out->count == FM_ADDRESSES_MAX
            || info->ai_addrlen > sizeof(address->where))
            break;
        memcpy(&address->where, info->ai_addr, info->ai_addrlen);
        address->len = info->ai_addrlen;
        out->count++;
    }
    freeaddrinfo(found);
    return FM_OK;
}

static void *
answer(void *arg)
{
    struct query *query = arg;

    query->status =
        look_up(query->host, query->port, 0, &query->found, &query->error);
    atomic_store_explicit(&query->ended, true, memory_order_release);
    (void)!eventfd_write(query->done_fd, 1); /* cannot overflow: once only */
    query_unref(query);
    return NULL;
}

/* Its two users are the caller and the thread that is going to answer. */
static struct query *
query_new(const char *host, uint16_t port)
{
    struct query *query = calloc(1, sizeof(*query));

    if (query == NULL)
        return NULL;
    atomic_init(&query->users, 2);
    atomic_init(&query->ended, false);
    query->port = port;
    query->host = strdup(host);
    if (query->host == NULL)
        goto fail;
    query->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (query->done_fd < 0)
        goto fail_host;
    return query;

fail_host:
    free(query->host);
fail:
    free(query);
    return NULL;
}

fm_status
fm_resolve(const char *host, uint16_t port, fm_deadline deadline, int cancel_fd,
    fm_addresses *out, fm_error *error)
{
    struct query *query;
    fm_thread thread;
    fm_status status;

    if (strcasecmp(host, "localhost") == 0)
        host = "127.0.0.1";
    if (look_up(host, port, AI_NUMERICHOST, out, NULL) == FM_OK)
        return FM_OK;

    query = query_new(host, port);
    if (query == NULL)
        return fm_error_set(error, FM_NO_MEMORY, 0,
            "name resolution: no memory or no descriptor");
    status = fm_thread_start(&thread, "fm-resolve", answer, query);
    if (status != FM_OK) {
        atomic_store(&query->users, 1); /* there is no thread */
        fm_error_set(error, status, 0, "name resolution: no thread");
        goto done;
    }
    fm_thread_detach(&thread);

    status = fm_wait_fd(query->done_fd, POLLIN, deadline, cancel_fd);
    if (status != FM_OK) {
        fm_error_set(
            error, status, 0, "name resolution: %s", fm_status_text(status));
        goto done;
    }
    if (!atomic_load_explicit(&query->ended, memory_order_acquire)) {
        status = fm_error_set(
            error, FM_SYSTEM, 0, "name resolution: woken without an answer");
        goto done;
    }
    status = query->status;
    if (status == FM_OK)
        *out = query->found;
    else if (error != NULL)
        *error = query->error;
done:
    query_unref(query);
    return status;
}
