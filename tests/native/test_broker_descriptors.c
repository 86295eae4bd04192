/* The core without file descriptors: the limit is lowered until everything
 * fails, and raised again.
 */
#include "rig.h"

#include <fcntl.h>
#include <sys/resource.h>

static struct rlimit usual;

static void
allow_again(void)
{
    CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
}

/* From now on so many more descriptors can be had. */
static void
allow_only(int more)
{
    struct rlimit limit = usual;
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);

    CHECK(lowest >= 0);
    close(lowest);
    limit.rlim_cur = (rlim_t)(lowest + more);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static fm_message *
new_message(void)
{
    fm_message *message = rig_message(FM_LANE_RPC, "", "nobody", NULL, "x");

    message->retry = 0;
    return message;
}

/* FM_OK, or what there was instead, in words. */
static fm_status
cast(fm_bus *bus, fm_error *error)
{
    fm_message *message = new_message();
    fm_status status = fm_bus_submit(bus, message);

    error->text[0] = '\0';
    if (status == FM_OK) {
        status = rig_wait(bus, message, LONG_ENOUGH);
        if (status != FM_OK)
            *error = message->error;
    }
    fm_message_unref(message);
    return status;
}

/* A connection needs some; with each number of them it is there or it is not,
 * and then that is said. */
static void
a_first_use_without_descriptors_fails_and_a_later_one_does_not(void)
{
    int failures = 0;
    int more = 0;
    bool ok = false;

    for (; !ok; more++) {
        fm_bus *bus = rig_open("scarce", (rig_options){ 0 });
        fm_error error;
        fm_status status;

        allow_only(more);
        status = cast(bus, &error);
        allow_again();
        ok = status == FM_OK;
        if (!ok) {
            failures++;
            fprintf(stderr, "  %d: %s: %s\n", more, fm_status_text(status),
                error.text);
            CHECK(status == FM_SYSTEM || status == FM_DISCONNECTED);
            if (status == FM_DISCONNECTED)
                CHECK(strstr(error.text, "descriptor") != NULL
                    || strstr(error.text, "Too many open files") != NULL);
            CHECK_INT(cast(bus, &error), FM_OK);
        }
        (void)rig_show_events(false);
        rig_close(bus);
        expect_nothing_left();
    }
    CHECK(failures >= 3);
}

/* A consumer, whose connection is another one, waits and gets it. */
static void
a_consumer_waits_for_descriptors(void)
{
    fm_bus *bus = rig_open("scarce", (rig_options){ 0 });
    fm_topology *topology = rig_queue("native.scarce", NULL, 0);
    fm_error error;
    fm_consumer *consumer;

    CHECK_INT(cast(bus, &error), FM_OK);
    allow_only(0);
    consumer = rig_join(bus, "native.scarce", topology, 5, false);
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    CHECK_INT(fm_consumer_wait(consumer, fm_deadline_in(300 * MS), &error),
        FM_TIMED_OUT);
    CHECK_INT(cast(bus, &error), FM_OK); /* the other one goes on */
    CHECK(atomic_load(&bus->consuming.seen_rounds) > 0);
    allow_again();
    rig_reach(consumer, FM_GOAL_CONSUMING);
    fm_topology_unref(topology);
    rig_end(consumer);
    rig_close(bus);
    expect_nothing_left();
}

int
main(void)
{
    CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
    note_what_is_there();
    RUN(a_first_use_without_descriptors_fails_and_a_later_one_does_not);
    RUN(a_consumer_waits_for_descriptors);
    return 0;
}
