#include "io/lead.h"

#include <assert.h>

/* For so long after the last change of hands the next one is expected, and
 * the I/O thread looks for itself now and then, which costs a leader nothing;
 * later it has to be called. */
#define LIVELY_NS (50 * FM_NS_PER_MS)

enum { OFF, FREE, TAKEN };

void
fm_lead_reset_in_child(fm_lead *lead)
{
    atomic_store(&lead->state, OFF);
    atomic_store(&lead->hurried, 0);
    atomic_store(&lead->asks_to_be_called, false);
    fm_wake_init(&lead->relief);
    fm_mutex_init(&lead->lock);
    lead->heir = NULL;
}

bool
fm_lead_try(fm_lead *lead)
{
    int state = FREE;

    return atomic_load_explicit(&lead->state, memory_order_relaxed) == FREE
        && atomic_compare_exchange_strong(&lead->state, &state, TAKEN);
}

/* Wake one who is in a hurry: he takes the lead. */
static bool
wake_heir(fm_lead *lead)
{
    bool woken;

    fm_mutex_lock(&lead->lock);
    woken = lead->heir != NULL;
    if (woken)
        fm_wake_all(lead->heir); /* wakes only; lives as long as we lock */
    fm_mutex_unlock(&lead->lock);
    return woken;
}

void
fm_lead_leave(fm_lead *lead, int64_t now, bool urgent)
{
    unsigned hurried;

    assert(atomic_load(&lead->state) == TAKEN);
    atomic_store(&lead->left_at, now);
    /* Sequentially consistent, all of them: who begins to sleep sees that the
     * lead is free, or is seen here. The same goes for the I/O thread. */
    atomic_store(&lead->state, FREE);
    hurried = atomic_load(&lead->hurried);
    if (urgent || hurried > 1 || (hurried == 1 && !wake_heir(lead))) {
        atomic_store(&lead->left_at, 0);
        fm_wake_all(&lead->relief);
    } else if (atomic_load(&lead->asks_to_be_called)) {
        fm_wake_all(&lead->relief);
    }
}

fm_status
fm_lead_wait(fm_lead *lead, fm_wake *wake, unsigned seen, fm_deadline deadline)
{
    fm_status status = FM_OK;
    bool is_heir;

    fm_mutex_lock(&lead->lock);
    is_heir = lead->heir == NULL;
    if (is_heir)
        lead->heir = wake;
    fm_mutex_unlock(&lead->lock);
    atomic_fetch_add(&lead->hurried, 1);
    if (atomic_load(&lead->state) != FREE)
        status = fm_wake_wait(wake, seen, deadline);
    atomic_fetch_sub(&lead->hurried, 1);
    if (is_heir) {
        fm_mutex_lock(&lead->lock);
        lead->heir = NULL;
        fm_mutex_unlock(&lead->lock);
    }
    return status;
}

unsigned
fm_lead_hurried(fm_lead *lead)
{
    return atomic_load(&lead->hurried);
}

void
fm_lead_begin(fm_lead *lead)
{
    assert(atomic_load(&lead->state) == OFF);
    atomic_store(&lead->state, TAKEN);
}

void
fm_lead_end(fm_lead *lead)
{
    assert(atomic_load(&lead->state) == TAKEN);
    atomic_store(&lead->state, OFF);
}

/* Until when the I/O thread may sleep; a time that has passed: it is to
 * lead. */
static fm_deadline
relief_at(fm_lead *lead, int64_t now)
{
    bool is_free = atomic_load(&lead->state) == FREE; /* before left_at */
    int64_t left_at = atomic_load(&lead->left_at);

    if (is_free)
        return left_at + FM_LEAD_PATIENCE_NS;
    return now - left_at < LIVELY_NS ? now + FM_LEAD_PATIENCE_NS : FM_NEVER;
}

void
fm_lead_stand_by(fm_lead *lead, int64_t now)
{
    fm_lead_leave(lead, now, false);
    for (;;) {
        unsigned seen = fm_wake_read(&lead->relief);
        fm_deadline until;

        now = fm_now();
        until = relief_at(lead, now);
        if (until == FM_NEVER) {
            atomic_store(&lead->asks_to_be_called, true);
            if (atomic_load(&lead->state) == FREE)
                until = now + FM_LEAD_PATIENCE_NS; /* he did not see it */
        } else if (until <= now && fm_lead_try(lead)) {
            return;
        }
        if (until > now)
            (void)!fm_wake_wait(&lead->relief, seen, until);
        atomic_store(&lead->asks_to_be_called, false);
    }
}
