/* io/bus.h and io/loop.h: opening, being refused, closing. */
#include "rig.h"

/* A port on which nobody listens. */
static uint16_t
free_port(void)
{
    uint16_t port = 0;

    close(peer_listen("127.0.0.1", &port, 1));
    return port;
}

/* --- opening and closing --- */

static void
an_unused_bus_starts_nothing(void)
{
    fm_bus *bus = rig_open("unused", (rig_options){ 0 });

    expect_nothing_left();
    rig_close(bus);
    expect_nothing_left();
}

static void
a_bus_is_shared_by_its_key(void)
{
    fm_bus *one = rig_open("same", (rig_options){ 0 });
    fm_bus *two = rig_open("same", (rig_options){ 0 });
    fm_bus *three = rig_open("another", (rig_options){ 0 });

    CHECK(one == two);
    CHECK(one != three);
    CHECK_INT(rig_cast(one, "nobody", "x"), FM_OK);
    rig_close(one);
    CHECK_INT(rig_cast(two, "nobody", "x"), FM_OK);
    CHECK_INT(atomic_load(&two->publishing.connects), 1);
    rig_close(two);
    rig_close(three);
    expect_nothing_left();
}

static void
opening_and_closing_leaves_nothing(void)
{
    for (int i = 0; i < 200; i++) {
        fm_bus *bus = rig_open("again", (rig_options){ 0 });

        if (i % 4 == 1)
            CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
        if (i % 8 == 2)
            rig_end(rig_consume(bus, "native.q", NULL, 1, false));
        if (i % 4 == 3) { /* in the middle of connecting */
            fm_message *message =
                rig_message(FM_LANE_RPC, "", "nobody", NULL, "x");

            CHECK_INT(fm_bus_submit(bus, message), FM_OK);
            if (i % 8 == 3)
                usleep((useconds_t)(i * 40));
            rig_close(bus);
            CHECK(fm_message_status(message) == FM_CLOSED
                || fm_message_status(message) == FM_OK);
            fm_message_unref(message);
        } else {
            rig_close(bus);
        }
        expect_nothing_left();
    }
}

static void *
open_and_close(void *arg)
{
    const char *key = arg;

    for (int i = 0; i < 30; i++) {
        fm_bus *bus = rig_open(key, (rig_options){ 0 });

        CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
        rig_close(bus);
    }
    return NULL;
}

static void
many_threads_open_and_close(void)
{
    char keys[3][8] = { "a", "b", "c" };
    fm_thread threads[6];

    for (int i = 0; i < 6; i++)
        CHECK_INT(
            fm_thread_start(&threads[i], "opener", open_and_close, keys[i % 3]),
            FM_OK);
    for (int i = 0; i < 6; i++)
        fm_thread_join(&threads[i]);
    expect_nothing_left();
}

/* --- closing while others are at it --- */

typedef struct caller {
    fm_bus *bus;
    fm_consumer *replies;
    int number;
    fm_status status;
    fm_thread thread;
} caller;

static void *
call_once(void *arg)
{
    caller *self = arg;
    char msg_id[40];

    snprintf(msg_id, sizeof(msg_id), "m%d", self->number);
    self->status = rig_call(self->bus, "native.mute", self->replies, msg_id,
        FM_RETRY_FOREVER, LONG_ENOUGH);
    return NULL;
}

static void
closing_fails_the_calls_that_wait(void)
{
    enum { CALLERS = 16 };
    fm_bus *bus = rig_open("calls", (rig_options){ 0 });
    fm_consumer *mute = rig_consume(bus, "native.mute", NULL, 1, false);
    fm_consumer *replies = rig_consume(bus, "native.replies", NULL, 0, true);
    caller callers[CALLERS];

    fm_bus_ref(bus); /* as every caller does in the binding */
    CHECK_INT(fm_consumer_delete_at_close(mute, "native.mute"), FM_OK);
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){ bus, replies, i, FM_OK, { 0 } };
        CHECK_INT(fm_thread_start(
                      &callers[i].thread, "caller", call_once, &callers[i]),
            FM_OK);
    }
    while (fm_reply_waiting(&bus->replies) < CALLERS)
        usleep(1000);
    rig_close(bus);
    for (int i = 0; i < CALLERS; i++) {
        fm_thread_join(&callers[i].thread);
        CHECK_INT(callers[i].status, FM_CLOSED);
    }
    CHECK_INT(fm_reply_waiting(&bus->replies), 0);
    expect_nothing_left();
    /* From now on nothing begins again. */
    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_CLOSED);
    fm_consumer_want(mute, FM_GOAL_CLOSED);
    expect_nothing_left();
    fm_consumer_unref(mute);
    fm_consumer_unref(replies);
    fm_bus_unref(bus);
}

static void *
cast_until_closed(void *arg)
{
    fm_bus *bus = arg;
    fm_status status;

    do {
        status = rig_cast(bus, "nobody", "x");
    } while (status == FM_OK);
    CHECK_INT(status, FM_CLOSED);
    return NULL;
}

/* A thread that still has the bus in hand must not bring the I/O thread of a
 * closed bus to life, nor write to a descriptor that is gone. */
static void
closing_beats_those_who_submit(void)
{
    for (int i = 0; i < 100; i++) {
        fm_bus *bus = rig_open("race", (rig_options){ 0 });
        fm_thread threads[3];

        fm_bus_ref(bus);
        for (int k = 0; k < 3; k++)
            CHECK_INT(
                fm_thread_start(&threads[k], "caster", cast_until_closed, bus),
                FM_OK);
        if (i % 3 != 0)
            usleep((useconds_t)(i % 10) * 300);
        rig_close(bus);
        for (int k = 0; k < 3; k++)
            fm_thread_join(&threads[k]);
        fm_bus_unref(bus);
        expect_nothing_left();
    }
}

static void
closing_ends_a_consumer_that_takes(void)
{
    fm_bus *bus = rig_open("taken", (rig_options){ 0 });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 5, false);
    fm_delivery *delivery;
    fm_error error;

    fm_bus_ref(bus);
    CHECK_INT(fm_consumer_delete_at_close(consumer, "native.q"), FM_OK);
    rig_close(bus);
    CHECK_INT(fm_consumer_take(consumer, 1, FM_NEVER, &delivery), FM_CLOSED);
    CHECK_INT(fm_consumer_wait(consumer, FM_NEVER, &error), FM_CLOSED);
    fm_consumer_unref(consumer);
    fm_bus_unref(bus);
    expect_nothing_left();
    bus = rig_open("tidy", (rig_options){ 0 });
    rig_end(rig_consume(bus, "native.q", NULL, 5, false));
    rig_close(bus);
}

/* --- no broker there --- */

static void
a_refused_port_fails_after_as_many_retries_as_allowed(void)
{
    rig_options nobody = { .port = free_port(), .interval_ns = 20 * MS };
    fm_bus *bus = rig_open("refused", nobody);

    for (int retry = 0; retry < 3; retry++) {
        fm_message *message = rig_message(FM_LANE_RPC, "", "q", NULL, "x");
        char port[8];

        snprintf(port, sizeof(port), "%u", nobody.port);
        message->retry = retry;
        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_DISCONNECTED);
        CHECK_INT(message->losses, retry + 1);
        CHECK_HAS(message->error.text, port);
        CHECK_HAS(message->error.text, "refused");
        fm_message_unref(message);
    }
    rig_close(bus);
    expect_nothing_left();
}

/* However long the pauses have become. */
static void
no_retry_means_no_long_wait(void)
{
    rig_options nobody = { .port = free_port(), .interval_ns = 30 * S };
    fm_bus *bus = rig_open("refused", nobody);
    int64_t begin = fm_now();

    for (int i = 0; i < 3; i++) {
        fm_message *message = rig_message(FM_LANE_RPC, "", "q", NULL, "x");

        message->retry = 0;
        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_DISCONNECTED);
        fm_message_unref(message);
    }
    CHECK(fm_now() - begin < 6 * S);
    rig_close(bus);
}

static void
a_call_to_a_refused_port_times_out_and_tells_why(void)
{
    rig_options nobody = { .port = free_port(), .interval_ns = 20 * MS };
    fm_bus *bus = rig_open("refused", nobody);
    fm_topology *topology = rig_queue("native.replies", NULL, 0);
    fm_consumer *replies = rig_join(bus, "native.replies", topology, 0, true);
    fm_message *call = rig_new_call("native.server", replies, "m1");
    int64_t begin = fm_now();
    fm_error error;

    CHECK_INT(fm_bus_submit(bus, call), FM_OK);
    CHECK_INT(rig_finish_call(bus, call, 300 * MS), FM_TIMED_OUT);
    CHECK(fm_now() - begin >= 300 * MS && fm_now() - begin < 2 * S);
    fm_publisher_explain(&bus->publisher, call, &error);
    CHECK_INT(error.status, FM_TIMED_OUT);
    CHECK_HAS(error.text, "refused");
    fm_message_unref(call);
    rig_reach(replies, FM_GOAL_CLOSED);
    fm_consumer_unref(replies);
    fm_topology_unref(topology);
    rig_close(bus);
    expect_nothing_left();
}

/* --- a broker that refuses us --- */

static void
expect_refused(rig_options with, int code, const char *words)
{
    fm_bus *bus = rig_open("not let in", with);
    int64_t begin = fm_now();

    /* The second time as well as the first, and without a longer wait. */
    for (int i = 0; i < 3; i++) {
        fm_topology *topology = rig_queue("native.replies", NULL, 0);
        fm_message *message = rig_message(FM_LANE_RPC, "", "q", NULL, "x");
        fm_consumer *consumer =
            rig_join(bus, "native.replies", topology, 0, true);
        fm_error error = { .status = FM_OK };

        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_REFUSED);
        CHECK_INT(message->error.code, code);
        CHECK_HAS(message->error.text, words);
        CHECK(strstr(message->error.text, "wrong password") == NULL);
        CHECK_INT(
            fm_consumer_wait(consumer, fm_deadline_in(LONG_ENOUGH), &error),
            FM_REFUSED);
        CHECK_INT(error.code, code);
        CHECK_HAS(error.text, words);
        fm_message_unref(message);
        rig_reach(consumer, FM_GOAL_CLOSED);
        fm_consumer_unref(consumer);
        fm_topology_unref(topology);
    }
    CHECK(fm_now() - begin < 8 * S);
    rig_close(bus);
    expect_nothing_left();
}

static void
a_wrong_password_is_refused(void)
{
    expect_refused((rig_options){ .password = "the wrong password",
                       .interval_ns = 30 * S },
        403, "403");
}

static void
a_missing_virtual_host_is_refused(void)
{
    expect_refused(
        (rig_options){ .vhost = "no such host", .interval_ns = 30 * S }, 530,
        "no such host");
}

int
main(void)
{
    note_what_is_there();
    RUN(an_unused_bus_starts_nothing);
    RUN(a_bus_is_shared_by_its_key);
    RUN(opening_and_closing_leaves_nothing);
    RUN(many_threads_open_and_close);
    RUN(closing_fails_the_calls_that_wait);
    RUN(closing_beats_those_who_submit);
    RUN(closing_ends_a_consumer_that_takes);
    RUN(a_refused_port_fails_after_as_many_retries_as_allowed);
    RUN(no_retry_means_no_long_wait);
    RUN(a_call_to_a_refused_port_times_out_and_tells_why);
    RUN(a_wrong_password_is_refused);
    RUN(a_missing_virtual_host_is_refused);
    return 0;
}
