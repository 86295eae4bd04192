/* The one status of the core, its texts, and the error that goes with it.
 *
 * Every function of the core that can fail returns an fm_status and writes
 * its outputs only on FM_OK. Where the cause matters to a user, an fm_error
 * is filled as well: what was attempted, on what, what the broker said.
 */
#ifndef FM_BASE_STATUS_H
#define FM_BASE_STATUS_H

#include "base/attrs.h"

#include <stdarg.h>
#include <stdint.h>

typedef enum fm_status {
    FM_OK = 0,
    FM_AGAIN,        /* nothing to read, no room to write: try later */
    FM_TIMED_OUT,    /* the deadline passed */
    FM_INTERRUPTED,  /* a signal ended the wait: look at it, then wait on */
    FM_CLOSED,       /* closed by this process, or the peer ended the stream */
    FM_NOT_FOUND,    /* nobody by that name: an unknown or late reply */
    FM_FULL,         /* a bounded thing is at its bound */
    FM_NO_MEMORY,    /* an allocation failed, or a size overflowed */
    FM_SYSTEM,       /* a system call failed; the text has errno's words */
    FM_TLS,          /* OpenSSL refused; the text has its words */
    FM_BAD_FRAME,    /* the peer does not speak AMQP 0-9-1 as it should */
    FM_BAD_MESSAGE,  /* a body that is not what its consumer can read */
    FM_DISCONNECTED, /* no connection, and no more attempts allowed */
    FM_REFUSED,      /* the broker refused the login, vhost or mechanism */
    FM_REJECTED,     /* the broker closed the channel over an operation */
    FM_NACKED,       /* the broker could not take the message */
    FM_RETURNED,     /* mandatory, and no queue to route it to */
    FM_TOO_LARGE,    /* over a limit of AMQP, the broker or ours */
    FM_STATUS_COUNT
} fm_status;

enum { FM_ERROR_TEXT = 384 };

/* What went wrong, for a person. Lives by value, owns nothing. */
typedef struct fm_error {
    fm_status status;
    uint16_t code; /* AMQP reply code (404, 541, ...), else 0 */
    char text[FM_ERROR_TEXT];
} fm_error;

/* The constant text of a status; "unknown status" outside the enum. */
const char *fm_status_text(fm_status status);

/* Fill `error` (may be NULL) and return `status`, so that failing reads
 * `return fm_error_set(error, FM_REFUSED, 403, "...", ...)`. Texts that do
 * not fit are cut. Never put credentials or message content into a text. */
fm_status fm_error_set(fm_error *error, fm_status status, uint16_t code,
    const char *format, ...) FM_PRINTF(4, 5);

/* The same for a failed system call: appends ": " and errno's text. */
fm_status fm_error_set_errno(
    fm_error *error, int errno_value, const char *format, ...) FM_PRINTF(3, 4);

#endif
