/* From a host's name to addresses, with a deadline.
 *
 * getaddrinfo() cannot be interrupted and may take half a minute when name
 * servers are silent. So it runs on a thread of its own, which is left behind
 * (and frees what it has) when the deadline comes first.
 */
#ifndef FM_IO_RESOLVE_H
#define FM_IO_RESOLVE_H

#include "base/attrs.h"
#include "base/status.h"
#include "base/sync.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { FM_ADDRESSES_MAX = 16 };

typedef struct fm_address {
    struct sockaddr_storage where;
    socklen_t len;
} fm_address;

typedef struct fm_addresses {
    size_t count;
    fm_address list[FM_ADDRESSES_MAX]; /* in the system's order */
} fm_addresses;

/* Blocks. `localhost` is 127.0.0.1, as for the stock driver, whatever the
 * system's files say; addresses need no resolver and no thread. FM_TIMED_OUT,
 * FM_CLOSED by `cancel_fd` (see wait.h), FM_NO_MEMORY, FM_SYSTEM: the name
 * does not resolve. `error` has the cause; the caller knows what for. */
FM_MUST_CHECK fm_status fm_resolve(const char *host, uint16_t port,
    fm_deadline deadline, int cancel_fd, fm_addresses *out, fm_error *error);

#endif
