#include "io/lead.h"

#include <assert.h>

/* For so long after the last change of hands the next one is expected, and
 * the I/O thread looks for itself now and then, which costs a leader nothing;
 * later it has to be called. */
#define LIVELY_NS (50 * FM_NS_PER_MS)

enum { OFF, FREE, TAKEN };

typedef struct fm_sleeper {
    fm_wake *wake; /* borrowed */
    unsigned seen;
    fm_errand errand;
    struct fm_sleeper *prev;
    struct fm_sleeper *next;
} fm_sleeper;

void
fm_lead_reset_in_child(fm_lead *lead)
{
    atomic_store(&lead->state, OFF);
    atomic_store(&lead->asks_to_be_called, false);
    fm_wake_init(&lead->relief);
    fm_mutex_init(&lead->lock);
    lead->sleepers = NULL;
}

bool
fm_lead_try(fm_lead *lead)
{
    int state = FREE;

    return atomic_load_explicit(&lead->state, memory_order_relaxed) == FREE
        && atomic_compare_exchange_strong(&lead->state, &state, TAKEN);
}

/* --- sleepers --- */

static bool
is_woken(const fm_sleeper *sleeper)
{
    return fm_wake_read(sleeper->wake) != sleeper->seen;
}

static fm_sleepers
count_locked(fm_lead *lead) FM_REQUIRES(lead->lock)
{
    fm_sleepers count = { { 0 }, { 0 } };

    for (fm_sleeper *each = lead->sleepers; each != NULL; each = each->next)
        if (is_woken(each))
            count.woken[each->errand]++;
        else
            count.waiting[each->errand]++;
    return count;
}

fm_sleepers
fm_lead_count(fm_lead *lead)
{
    fm_sleepers count;

    fm_mutex_lock(&lead->lock);
    count = count_locked(lead);
    fm_mutex_unlock(&lead->lock);
    return count;
}

/* Wake one who is still waiting, so that it takes the lead. */
static void
wake_heir_locked(fm_lead *lead, fm_errand errand) FM_REQUIRES(lead->lock)
{
    fm_sleeper *heir = lead->sleepers;

    while (heir->errand != errand || is_woken(heir))
        heir = heir->next;
    fm_wake_all(heir->wake); /* wakes only; stays as long as we lock */
}

void
fm_lead_leave(fm_lead *lead, fm_errand errand, bool urgent)
{
    fm_sleepers count;
    bool calls;

    assert(atomic_load(&lead->state) == TAKEN);
    atomic_store(&lead->left_at, fm_now());
    /* Sequentially consistent: who is not counted below registers later, and
     * sees then that the lead is free. The same goes for the I/O thread. */
    atomic_store(&lead->state, FREE);
    fm_mutex_lock(&lead->lock);
    count = count_locked(lead);
    calls = urgent || count.waiting[FM_ERRAND_CALLER] > 1;
    if (calls)
        atomic_store(&lead->left_at, 0);
    else if (count.waiting[FM_ERRAND_CALLER] == 1)
        wake_heir_locked(lead, FM_ERRAND_CALLER);
    else if (errand == FM_ERRAND_CALLER
        && count.waiting[FM_ERRAND_LISTENER] > 0)
        wake_heir_locked(lead, FM_ERRAND_LISTENER);
    fm_mutex_unlock(&lead->lock);
    if (calls || atomic_load(&lead->asks_to_be_called))
        fm_wake_all(&lead->relief);
}

static void
register_sleeper(fm_lead *lead, fm_sleeper *me)
{
    fm_mutex_lock(&lead->lock);
    me->next = lead->sleepers;
    if (me->next != NULL)
        me->next->prev = me;
    lead->sleepers = me;
    fm_mutex_unlock(&lead->lock);
}

static void
remove_sleeper(fm_lead *lead, fm_sleeper *me)
{
    fm_mutex_lock(&lead->lock);
    if (me->prev != NULL)
        me->prev->next = me->next;
    else
        lead->sleepers = me->next;
    if (me->next != NULL)
        me->next->prev = me->prev;
    fm_mutex_unlock(&lead->lock);
}

fm_status
fm_lead_wait(fm_lead *lead, fm_errand errand, fm_wake *wake, unsigned seen,
    fm_deadline deadline)
{
    fm_sleeper me = { .wake = wake, .seen = seen, .errand = errand };
    fm_status status = FM_OK;

    register_sleeper(lead, &me);
    if (atomic_load(&lead->state) != FREE)
        status = fm_wake_wait(wake, seen, deadline);
    remove_sleeper(lead, &me);
    return status;
}

fm_status
fm_lead_leave_and_wait(fm_lead *lead, fm_errand errand, bool urgent,
    fm_wake *wake, unsigned seen, fm_deadline deadline)
{
    fm_sleeper me = { .wake = wake, .seen = seen, .errand = errand };
    fm_status status;

    /* Before it leaves: who leads and leaves after it finds it here. */
    register_sleeper(lead, &me);
    fm_lead_leave(lead, errand, urgent);
    status = fm_wake_wait(wake, seen, deadline);
    remove_sleeper(lead, &me);
    return status;
}

/* --- the I/O thread --- */

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
fm_lead_stand_by(fm_lead *lead)
{
    fm_lead_leave(lead, FM_ERRAND_LISTENER, false);
    for (;;) {
        unsigned seen = fm_wake_read(&lead->relief);
        int64_t now = fm_now();
        fm_deadline until = relief_at(lead, now);

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
