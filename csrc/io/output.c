#include "io/output.h"

#include <limits.h>

enum {
    KEEP_BYTES = 256 * 1024, /* what an empty buffer may keep */
    CALLER_ROUNDS = 4,       /* system calls that a caller makes for others */
};

void
fm_output_init(fm_output *output, fm_waker *waker)
{
    memset(output, 0, sizeof(*output));
    fm_mutex_init(&output->lock);
    output->waker = waker;
    output->channel_max = UINT16_MAX;
    output->strictness = fm_strictness_get(0); /* until the hosts are known */
    atomic_init(&output->last_write, 0);
    atomic_init(&output->bytes, 0);
}

void
fm_output_fini(fm_output *output)
{
    fm_buf_fini(&output->out);
    fm_buf_fini(&output->sending);
    fm_mutex_fini(&output->lock);
}

void
fm_output_up(
    fm_output *output, fm_socket *socket, uint32_t frame_max, uint64_t epoch)
{
    atomic_store(&output->last_write, fm_now());
    fm_mutex_lock(&output->lock);
    output->socket = socket;
    output->frame_max = frame_max;
    output->epoch = epoch;
    fm_mutex_unlock(&output->lock);
}

bool
fm_output_try_quiet(fm_output *output)
{
    bool quiet;

    fm_mutex_lock(&output->lock);
    output->socket = NULL;
    quiet = !output->flushing;
    fm_mutex_unlock(&output->lock);
    return quiet;
}

void
fm_output_down(fm_output *output)
{
    fm_mutex_lock(&output->lock);
    output->out.len = 0;
    output->sending.len = 0;
    output->sent = 0;
    output->backlog = 0;
    output->stuck = false;
    output->failure.status = FM_OK;
    fm_buf_shrink(&output->out, KEEP_BYTES);
    fm_buf_shrink(&output->sending, KEEP_BYTES);
    fm_mutex_unlock(&output->lock);
}

/* Send `sending` from `sent` on. For the flusher, without the lock. */
static fm_status
send_some(fm_output *output, fm_socket *socket, fm_error *error)
{
    while (output->sent < output->sending.len) {
        size_t n = 0;
        fm_status status =
            fm_socket_try_write(socket, output->sending.data + output->sent,
                output->sending.len - output->sent, &n, error);

        if (status != FM_OK)
            return status;
        output->sent += n;
        atomic_fetch_add_explicit(&output->bytes, n, memory_order_relaxed);
    }
    output->sending.len = 0;
    output->sent = 0;
    fm_buf_shrink(&output->sending, KEEP_BYTES);
    return FM_OK;
}

/* Be the flusher until nothing is left, or nothing more goes, or `rounds`
 * are over: then the I/O thread goes on. */
static void
flush_locked(fm_output *output, int rounds) FM_REQUIRES(output->lock)
{
    if (output->flushing)
        return;
    output->flushing = true;
    while (output->socket != NULL && !output->stuck
        && output->failure.status == FM_OK
        && fm_output_pending_locked(output) > 0 && rounds-- > 0) {
        fm_socket *socket = output->socket;
        fm_error error = { .status = FM_OK };
        fm_status status;

        if (output->sending.len == 0) { /* swap: the writers go on in out */
            fm_buf sending = output->sending;

            output->sending = output->out;
            output->out = sending;
        }
        output->backlog = output->sending.len - output->sent;
        fm_mutex_unlock(&output->lock);
        status = send_some(output, socket, &error);
        atomic_store_explicit(
            &output->last_write, fm_now(), memory_order_relaxed);
        fm_mutex_lock(&output->lock);
        output->backlog = output->sending.len - output->sent;
        if (status == FM_AGAIN) {
            output->stuck = true;
        } else if (status != FM_OK) {
            output->failure = error;
            output->failure.status = status;
        }
    }
    output->flushing = false;
}

void
fm_output_push_locked(fm_output *output)
{
    if (!output->asleep || output->flushing || output->stuck
        || fm_output_pending_locked(output) == 0)
        return;
    flush_locked(output, CALLER_ROUNDS);
    /* The I/O thread has to go on, poll for room, take the failure, or
     * close. It never tells itself: while stuck it would not sleep. */
    if (fm_output_pending_locked(output) > 0 || output->failure.status != FM_OK
        || output->socket == NULL)
        fm_waker_signal(output->waker);
}

void
fm_output_starve_locked(fm_output *output)
{
    output->starved = true;
}

void
fm_output_starve(fm_output *output)
{
    fm_mutex_lock(&output->lock);
    fm_output_starve_locked(output);
    fm_mutex_unlock(&output->lock);
}

bool
fm_output_was_starved(fm_output *output)
{
    bool was;

    fm_mutex_lock(&output->lock);
    was = output->starved;
    output->starved = false;
    fm_mutex_unlock(&output->lock);
    return was;
}

void
fm_output_fail_locked(fm_output *output, const char *what)
{
    if (output->socket == NULL || output->failure.status != FM_OK)
        return;
    (void)fm_error_set(
        &output->failure, FM_NO_MEMORY, 0, "out of memory for %s", what);
    fm_waker_signal(output->waker);
}

bool
fm_output_has_unsent(fm_output *output)
{
    bool has;

    fm_mutex_lock(&output->lock);
    has = output->out.len > 0 && !output->flushing;
    fm_mutex_unlock(&output->lock);
    return has;
}

void
fm_output_push(fm_output *output)
{
    fm_mutex_lock(&output->lock);
    fm_output_push_locked(output);
    fm_mutex_unlock(&output->lock);
}

void
fm_output_flush_locked(fm_output *output)
{
    flush_locked(output, INT_MAX);
}

fm_status
fm_output_before_sleep(fm_output *output, bool *want_room, fm_error *error)
{
    fm_status status;

    fm_mutex_lock(&output->lock);
    if (fm_output_pending_locked(output) > 0)
        flush_locked(output, INT_MAX);
    output->asleep = true;
    *want_room = output->stuck && output->socket != NULL;
    status = output->failure.status;
    if (status != FM_OK)
        *error = output->failure;
    fm_mutex_unlock(&output->lock);
    return status;
}

void
fm_output_after_sleep(fm_output *output, bool room)
{
    fm_mutex_lock(&output->lock);
    output->asleep = false;
    if (room)
        output->stuck = false;
    fm_mutex_unlock(&output->lock);
}
