/* io/lead.h: who leads, who inherits, and when the I/O thread takes over. */
#include "io/lead.h"

#include "check.h"

#include <unistd.h>

enum { THREADS = 4, ROUNDS = 5 * 1000 };

#define LONG_ENOUGH (60 * FM_NS_PER_S)

static void
start(fm_thread *thread, void *(*body)(void *), void *arg)
{
    CHECK_INT(fm_thread_start(thread, "fm-test", body, arg), FM_OK);
}

/* What the I/O thread does, without a loop: it leads once, and ends. */
typedef struct io_thread {
    fm_lead *lead;
    fm_thread thread;
    int64_t left_at;
    int64_t leads_at;
    atomic_bool leads;
} io_thread;

static void *
stand_by_once(void *arg)
{
    io_thread *self = arg;

    self->left_at = fm_now();
    fm_lead_stand_by(self->lead);
    self->leads_at = fm_now();
    atomic_store(&self->leads, true);
    return NULL;
}

/* Leading at first; stands by as soon as it runs. */
static void
io_thread_start(io_thread *self, fm_lead *lead)
{
    *self = (io_thread){ .lead = lead };
    fm_lead_begin(lead);
    start(&self->thread, stand_by_once, self);
}

static void
io_thread_join(io_thread *self)
{
    fm_thread_join(&self->thread);
    fm_lead_end(self->lead);
}

static void
lead_it(fm_lead *lead)
{
    while (!fm_lead_try(lead))
        usleep(100);
}

/* --- */

static void
nobody_leads_before_the_io_thread_begins_or_after_its_end(void)
{
    fm_lead lead = FM_LEAD_INITIAL;

    CHECK(!fm_lead_try(&lead));
    fm_lead_begin(&lead);
    CHECK(!fm_lead_try(&lead));
    fm_lead_end(&lead);
    CHECK(!fm_lead_try(&lead));
}

static void
a_lead_that_nobody_takes_is_the_io_threads_after_its_patience(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    io_thread io;

    io_thread_start(&io, &lead);
    io_thread_join(&io);
    CHECK(io.leads_at - io.left_at >= FM_LEAD_PATIENCE_NS);
}

static void
the_io_thread_takes_over_from_a_leader_who_led_for_long(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    io_thread io;

    io_thread_start(&io, &lead);
    lead_it(&lead);
    /* Until it has stopped to look for itself and asks to be called. */
    while (!atomic_load(&lead.asks_to_be_called))
        usleep(1000);
    CHECK(!atomic_load(&io.leads));
    fm_lead_leave(&lead, FM_ERRAND_LISTENER, false);
    io_thread_join(&io);
}

static void
an_urgent_leave_calls_the_io_thread(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    io_thread io;

    io_thread_start(&io, &lead);
    lead_it(&lead);
    fm_lead_leave(&lead, FM_ERRAND_LISTENER, true);
    io_thread_join(&io);
}

/* --- sleepers --- */

typedef struct sleeper {
    fm_lead *lead;
    fm_errand errand;
    fm_wake wake;
    fm_thread thread;
    fm_status status;
    bool led;
} sleeper;

static void
lead_as_an_heir(sleeper *self)
{
    self->led = fm_lead_try(self->lead);
    if (self->led)
        fm_lead_leave(self->lead, FM_ERRAND_LISTENER, false);
}

/* Leads already, as the loop's beginner. */
static void *
leave_and_sleep_for_long(void *arg)
{
    sleeper *self = arg;

    self->status = fm_lead_leave_and_wait(self->lead, self->errand, false,
        &self->wake, fm_wake_read(&self->wake), fm_deadline_in(LONG_ENOUGH));
    lead_as_an_heir(self);
    return NULL;
}

static void *
sleep_for_long(void *arg)
{
    sleeper *self = arg;

    self->status = fm_lead_wait(self->lead, self->errand, &self->wake,
        fm_wake_read(&self->wake), fm_deadline_in(LONG_ENOUGH));
    lead_as_an_heir(self);
    return NULL;
}

static void
sleeper_start(sleeper *self, fm_lead *lead, fm_errand errand)
{
    *self = (sleeper){ .lead = lead, .errand = errand };
    fm_wake_init(&self->wake);
    start(&self->thread, sleep_for_long, self);
}

static void
await_waiting(fm_lead *lead, fm_errand errand, unsigned count)
{
    while (fm_lead_count(lead).waiting[errand] != count)
        usleep(100);
}

static void
expect_heir(sleeper *self)
{
    fm_thread_join(&self->thread);
    CHECK_INT(self->status, FM_OK);
    CHECK(self->led);
}

static void
the_only_caller_who_waits_inherits(fm_errand from)
{
    fm_lead lead = FM_LEAD_INITIAL;
    sleeper caller, listener;

    fm_lead_begin(&lead);
    sleeper_start(&listener, &lead, FM_ERRAND_LISTENER);
    await_waiting(&lead, FM_ERRAND_LISTENER, 1);
    sleeper_start(&caller, &lead, FM_ERRAND_CALLER);
    await_waiting(&lead, FM_ERRAND_CALLER, 1);
    fm_lead_leave(&lead, from, false);
    expect_heir(&caller);
    CHECK_INT(fm_lead_count(&lead).waiting[FM_ERRAND_CALLER], 0);
    CHECK_INT(fm_lead_count(&lead).waiting[FM_ERRAND_LISTENER], 1);
    fm_wake_all(&listener.wake);
    fm_thread_join(&listener.thread);
    CHECK(lead.sleepers == NULL);
}

static void
the_only_caller_who_waits_inherits_from_anybody(void)
{
    the_only_caller_who_waits_inherits(FM_ERRAND_CALLER);
    the_only_caller_who_waits_inherits(FM_ERRAND_LISTENER);
}

static void
a_listener_inherits_from_a_caller_only(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    sleeper listener;

    fm_lead_begin(&lead);
    sleeper_start(&listener, &lead, FM_ERRAND_LISTENER);
    await_waiting(&lead, FM_ERRAND_LISTENER, 1);
    fm_lead_leave(&lead, FM_ERRAND_LISTENER, false);
    CHECK_INT(fm_lead_count(&lead).woken[FM_ERRAND_LISTENER], 0);
    CHECK(fm_lead_try(&lead));
    fm_lead_leave(&lead, FM_ERRAND_CALLER, false);
    expect_heir(&listener);
}

/* The other may be stuck, and callers come and go meanwhile. */
static void
a_listener_who_left_the_lead_to_another_inherits_too(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    sleeper listener = { .lead = &lead, .errand = FM_ERRAND_LISTENER };

    fm_lead_begin(&lead);
    fm_wake_init(&listener.wake);
    start(&listener.thread, leave_and_sleep_for_long, &listener);
    lead_it(&lead); /* the caller: it has left */
    fm_lead_leave(&lead, FM_ERRAND_CALLER, false);
    expect_heir(&listener);
}

static void
who_leaves_the_lead_to_others_does_not_take_it_again(void)
{
    for (int errand = 0; errand < 2; errand++) {
        fm_lead lead = FM_LEAD_INITIAL;
        fm_wake wake;

        fm_wake_init(&wake);
        fm_lead_begin(&lead);
        /* Urgent, as a caller leaves so only to an I/O thread that ends. */
        CHECK_INT(fm_lead_leave_and_wait(&lead, (fm_errand)errand, true, &wake,
                      fm_wake_read(&wake), fm_deadline_in(FM_NS_PER_MS)),
            FM_TIMED_OUT);
        CHECK(lead.sleepers == NULL);
        CHECK(fm_lead_try(&lead));
    }
}

/* One that has what it waits for is no heir: it may go anywhere. */
static void
who_is_woken_already_does_not_inherit(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    sleeper satisfied, waiting;

    fm_lead_begin(&lead);
    sleeper_start(&waiting, &lead, FM_ERRAND_CALLER);
    await_waiting(&lead, FM_ERRAND_CALLER, 1);
    sleeper_start(&satisfied, &lead, FM_ERRAND_CALLER);
    await_waiting(&lead, FM_ERRAND_CALLER, 2);
    fm_wake_all(&satisfied.wake);
    fm_lead_leave(&lead, FM_ERRAND_CALLER, false);
    fm_thread_join(&waiting.thread);
    CHECK_INT(waiting.status, FM_OK);
    fm_thread_join(&satisfied.thread);
}

static void
for_several_callers_the_io_thread_is_called(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    sleeper sleepers[THREADS];
    io_thread io;

    io_thread_start(&io, &lead);
    lead_it(&lead);
    for (int i = 0; i < THREADS; i++)
        sleeper_start(&sleepers[i], &lead, FM_ERRAND_CALLER);
    await_waiting(&lead, FM_ERRAND_CALLER, THREADS);
    fm_lead_leave(&lead, FM_ERRAND_CALLER, false);
    io_thread_join(&io);
    for (int i = 0; i < THREADS; i++) {
        fm_wake_all(&sleepers[i].wake);
        fm_thread_join(&sleepers[i].thread);
        CHECK_INT(sleepers[i].status, FM_OK);
    }
}

static void
a_free_lead_lets_nobody_sleep(void)
{
    for (int errand = 0; errand < 2; errand++) {
        fm_lead lead = FM_LEAD_INITIAL;
        sleeper late;

        fm_lead_begin(&lead);
        fm_lead_leave(&lead, FM_ERRAND_LISTENER, false);
        sleeper_start(&late, &lead, (fm_errand)errand);
        expect_heir(&late);
    }
}

static void
a_sleep_ends_at_its_deadline(void)
{
    fm_lead lead = FM_LEAD_INITIAL;
    fm_wake wake;

    fm_wake_init(&wake);
    fm_lead_begin(&lead);
    CHECK_INT(fm_lead_wait(&lead, FM_ERRAND_CALLER, &wake, fm_wake_read(&wake),
                  fm_deadline_in(FM_NS_PER_MS)),
        FM_TIMED_OUT);
    CHECK(lead.sleepers == NULL);
}

/* --- all at once: what the leader owns has one owner --- */

static struct {
    fm_lead lead;
    long turns FM_OWNED_BY_THREAD(leader);
    atomic_int running;
} race = { .lead = FM_LEAD_INITIAL };

static void *
lead_now_and_then(void *arg)
{
    fm_wake *wake = arg;

    for (int done = 0; done < ROUNDS;) {
        if (fm_lead_try(&race.lead)) {
            race.turns++;
            done++;
            if (done % 3 == 0)
                (void)!fm_lead_leave_and_wait(&race.lead, FM_ERRAND_LISTENER,
                    false, wake, fm_wake_read(wake),
                    fm_deadline_in(FM_NS_PER_MS));
            else
                fm_lead_leave(&race.lead, (fm_errand)(done % 2), false);
        } else {
            (void)!fm_lead_wait(&race.lead, (fm_errand)(done % 2), wake,
                fm_wake_read(wake), fm_deadline_in(FM_NS_PER_MS));
        }
    }
    atomic_fetch_sub(&race.running, 1);
    return NULL;
}

static void
leaders_take_turns(void)
{
    fm_thread threads[THREADS];
    fm_wake wakes[THREADS];
    long own = 0;

    fm_lead_begin(&race.lead);
    atomic_store(&race.running, THREADS);
    for (int i = 0; i < THREADS; i++) {
        fm_wake_init(&wakes[i]);
        start(&threads[i], lead_now_and_then, &wakes[i]);
    }
    while (atomic_load(&race.running) > 0) { /* the I/O thread */
        race.turns++;
        own++;
        fm_lead_stand_by(&race.lead);
    }
    for (int i = 0; i < THREADS; i++)
        fm_thread_join(&threads[i]);
    CHECK_INT(race.turns, (long)THREADS * ROUNDS + own);
    fm_lead_end(&race.lead);
}

int
main(void)
{
    RUN(nobody_leads_before_the_io_thread_begins_or_after_its_end);
    RUN(a_lead_that_nobody_takes_is_the_io_threads_after_its_patience);
    RUN(the_io_thread_takes_over_from_a_leader_who_led_for_long);
    RUN(an_urgent_leave_calls_the_io_thread);
    RUN(the_only_caller_who_waits_inherits_from_anybody);
    RUN(a_listener_inherits_from_a_caller_only);
    RUN(a_listener_who_left_the_lead_to_another_inherits_too);
    RUN(who_leaves_the_lead_to_others_does_not_take_it_again);
    RUN(who_is_woken_already_does_not_inherit);
    RUN(for_several_callers_the_io_thread_is_called);
    RUN(a_free_lead_lets_nobody_sleep);
    RUN(a_sleep_ends_at_its_deadline);
    RUN(leaders_take_turns);
    return 0;
}
