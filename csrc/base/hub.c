#include "base/hub.h"

#include <stdlib.h>

struct fm_hub {
    atomic_uint refs;
    fm_waker waker;  /* FM_IMMUTABLE */
    fm_watch *fired; /* guarded by watches_lock; oldest first */
    fm_watch *last_fired;
};

/* One for all watches: only processes with greenthreads take it, and those
 * run one thread at a time for the most part. A leaf. */
static fm_mutex watches_lock = { PTHREAD_MUTEX_INITIALIZER };
static atomic_uint watch_count;

fm_status
fm_hub_new(fm_hub **out)
{
    fm_hub *hub = calloc(1, sizeof(*hub));
    fm_status status;

    if (hub == NULL)
        return FM_NO_MEMORY;
    atomic_init(&hub->refs, 1);
    status = fm_waker_init(&hub->waker);
    if (status != FM_OK) {
        free(hub);
        return status;
    }
    *out = hub;
    return FM_OK;
}

fm_hub *
fm_hub_ref(fm_hub *hub)
{
    atomic_fetch_add_explicit(&hub->refs, 1, memory_order_relaxed);
    return hub;
}

void
fm_hub_unref(fm_hub *hub)
{
    if (hub == NULL
        || atomic_fetch_sub_explicit(&hub->refs, 1, memory_order_acq_rel) > 1)
        return;
    fm_waker_fini(&hub->waker);
    free(hub);
}

int
fm_hub_fd(const fm_hub *hub)
{
    return hub->waker.fd;
}

size_t
fm_hub_drain(fm_hub *hub, uint64_t *tokens, size_t max)
{
    size_t count = 0;

    fm_waker_drain(&hub->waker);
    fm_mutex_lock(&watches_lock);
    while (hub->fired != NULL && count < max) {
        fm_watch *watch = hub->fired;

        hub->fired = watch->next_fired;
        watch->fired = false;
        tokens[count++] = watch->token;
    }
    fm_mutex_unlock(&watches_lock);
    return count;
}

void
fm_watch_begin(fm_watch *watch, fm_wake *wake, fm_hub *hub, uint64_t token)
{
    *watch = (fm_watch){ .hub = fm_hub_ref(hub), .wake = wake, .token = token };
    fm_mutex_lock(&watches_lock);
    watch->next = atomic_load(&wake->watches);
    atomic_store(&wake->watches, watch);
    atomic_fetch_add(&watch_count, 1);
    fm_mutex_unlock(&watches_lock);
}

/* Take it out of the hub's list of fired ones. */
static void
unfire_locked(fm_watch *watch) FM_REQUIRES(watches_lock)
{
    fm_hub *hub = watch->hub;
    fm_watch *before = NULL;

    for (fm_watch *each = hub->fired; each != watch; each = each->next_fired)
        before = each;
    if (before == NULL)
        hub->fired = watch->next_fired;
    else
        before->next_fired = watch->next_fired;
    if (hub->last_fired == watch)
        hub->last_fired = before;
}

void
fm_watch_end(fm_watch *watch)
{
    fm_watch *each, *before = NULL;

    if (watch->hub == NULL)
        return;
    fm_mutex_lock(&watches_lock);
    for (each = atomic_load(&watch->wake->watches); each != watch;
         each = each->next)
        before = each;
    if (before == NULL)
        atomic_store(&watch->wake->watches, watch->next);
    else
        before->next = watch->next;
    if (watch->fired)
        unfire_locked(watch);
    atomic_fetch_sub(&watch_count, 1);
    fm_mutex_unlock(&watches_lock);
    fm_hub_unref(watch->hub);
    watch->hub = NULL;
}

void
fm_watch_fire(fm_wake *wake)
{
    fm_mutex_lock(&watches_lock);
    for (fm_watch *each = atomic_load(&wake->watches); each != NULL;
         each = each->next) {
        fm_hub *hub = each->hub;

        if (each->fired)
            continue;
        each->fired = true;
        each->next_fired = NULL;
        if (hub->fired == NULL)
            hub->fired = each;
        else
            hub->last_fired->next_fired = each;
        hub->last_fired = each;
        fm_waker_signal(&hub->waker);
    }
    fm_mutex_unlock(&watches_lock);
}

void
fm_hub_reset_in_child(void)
{
    fm_mutex_init(&watches_lock);
    atomic_store(&watch_count, 0);
}

unsigned
fm_watch_count(void)
{
    return atomic_load(&watch_count);
}
