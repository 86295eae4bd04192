#include "io/wait.h"

#include <errno.h>
#include <poll.h>

fm_status
fm_wait_fd(int fd, short events, fm_deadline deadline, int cancel_fd)
{
    struct pollfd polled[] = { { .fd = fd, .events = events },
        { .fd = cancel_fd, .events = POLLIN } }; /* poll skips -1 */

    for (;;) {
        int64_t now = fm_now();
        int rc = poll(polled, 2, fm_deadline_poll_ms(deadline, now));

        if (rc < 0 && errno != EINTR)
            return FM_SYSTEM;
        if (rc > 0)
            return polled[1].revents != 0 ? FM_CLOSED : FM_OK;
        if (deadline <= now)
            return FM_TIMED_OUT;
    }
}
