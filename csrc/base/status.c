#include "base/status.h"

#include <stdio.h>
#include <string.h>

static const char *const texts[FM_STATUS_COUNT] = {
    [FM_OK] = "ok",
    [FM_AGAIN] = "try again later",
    [FM_TIMED_OUT] = "timed out",
    [FM_INTERRUPTED] = "interrupted by a signal",
    [FM_CLOSED] = "closed",
    [FM_NOT_FOUND] = "not found",
    [FM_FULL] = "full",
    [FM_NO_MEMORY] = "out of memory",
    [FM_SYSTEM] = "system call failed",
    [FM_TLS] = "TLS failed",
    [FM_BAD_FRAME] = "not AMQP 0-9-1",
    [FM_BAD_MESSAGE] = "malformed message",
    [FM_DISCONNECTED] = "not connected to the broker",
    [FM_REFUSED] = "the broker refused the connection",
    [FM_REJECTED] = "the broker refused the operation",
    [FM_NACKED] = "the broker did not take the message",
    [FM_RETURNED] = "no queue for this message",
    [FM_TOO_LARGE] = "too large",
};

const char *
fm_status_text(fm_status status)
{
    if ((unsigned)status >= FM_STATUS_COUNT)
        return "unknown status";
    return texts[status];
}

static void set(fm_error *error, fm_status status, uint16_t code,
    const char *format, va_list args) FM_PRINTF(4, 0);

static void
set(fm_error *error, fm_status status, uint16_t code, const char *format,
    va_list args)
{
    error->status = status;
    error->code = code;
    if (vsnprintf(error->text, sizeof(error->text), format, args) < 0)
        error->text[0] = '\0';
}

fm_status
fm_error_set(
    fm_error *error, fm_status status, uint16_t code, const char *format, ...)
{
    va_list args;

    if (error == NULL)
        return status;
    va_start(args, format);
    set(error, status, code, format, args);
    va_end(args);
    return status;
}

fm_status
fm_error_set_errno(fm_error *error, int errno_value, const char *format, ...)
{
    char words[128];
    size_t used;
    va_list args;

    if (error == NULL)
        return FM_SYSTEM;
    va_start(args, format);
    set(error, FM_SYSTEM, 0, format, args);
    va_end(args);
    used = strlen(error->text);
    snprintf(error->text + used, sizeof(error->text) - used, ": %s",
        strerror_r(errno_value, words, sizeof(words)));
    return FM_SYSTEM;
}
