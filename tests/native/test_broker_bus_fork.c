/* Forks while the core is at work. The child leaks what it inherits, and its
 * own buses work; the parent notices nothing.
 */
#include "rig.h"

#include <sys/wait.h>

static void
work_in_child(const char *key)
{
    fm_bus *bus = rig_open(key, (rig_options){ 0 });
    fm_consumer *consumer;
    fm_delivery *delivery;
    char queue[40];

    snprintf(queue, sizeof(queue), "native.child.%d", (int)getpid());
    consumer = rig_consume(bus, queue, NULL, 5, false);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(rig_cast(bus, queue, "x"), FM_OK);
        delivery = rig_take(consumer, LONG_ENOUGH);
        CHECK(delivery != NULL);
        rig_ack(consumer, delivery);
    }
    rig_end(consumer);
    rig_close(bus);
}

static void
fork_and_work(const char *key)
{
    pid_t pid = fork();
    int status;

    CHECK(pid >= 0);
    if (pid == 0) {
        work_in_child(key);
        _exit(0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
}

typedef struct caller {
    fm_bus *bus;
    fm_consumer *replies;
    int number;
    fm_thread thread;
} caller;

static atomic_bool enough;

static void *
call_until_enough(void *arg)
{
    caller *self = arg;

    for (int i = 0; !atomic_load(&enough); i++) {
        char msg_id[40];

        snprintf(msg_id, sizeof(msg_id), "m%d-%d", self->number, i);
        CHECK_INT(rig_call(self->bus, "native.server", self->replies, msg_id, 0,
                      LONG_ENOUGH),
            FM_OK);
    }
    return NULL;
}

/* The child has its own connections under the same key; the parent's calls
 * bear no loss, and need not. */
static void
a_fork_in_mid_traffic_disturbs_nobody(void)
{
    enum { CALLERS = 4 };
    fm_bus *bus = rig_open("forked", (rig_options){ 0 });
    fm_consumer *replies = rig_consume(bus, "native.replies", NULL, 0, true);
    caller callers[CALLERS];
    rig_server server;

    rig_server_start(&server, bus, "native.server");
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){ bus, replies, i, { 0 } };
        CHECK_INT(fm_thread_start(&callers[i].thread, "caller",
                      call_until_enough, &callers[i]),
            FM_OK);
    }
    for (int i = 0; i < 30; i++)
        fork_and_work("forked");
    atomic_store(&enough, true);
    for (int i = 0; i < CALLERS; i++)
        fm_thread_join(&callers[i].thread);
    CHECK_INT(atomic_load(&bus->publishing.connects), 1);
    CHECK_INT(atomic_load(&bus->consuming.connects), 1);
    rig_server_stop(&server);
    rig_end(replies);
    rig_close(bus);
    expect_nothing_left();
}

/* While a thread opens, connects and closes. */
static atomic_bool churning;

static void *
churn(void *arg)
{
    while (atomic_load(&churning)) {
        fm_bus *bus = rig_open("churned", (rig_options){ 0 });
        fm_message *message = rig_message(FM_LANE_RPC, "", "nobody", NULL, "x");

        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        rig_close(bus);
        fm_message_unref(message);
    }
    return arg;
}

static void
a_fork_while_buses_come_and_go_disturbs_nobody(void)
{
    fm_thread threads[2];

    atomic_store(&churning, true);
    for (int i = 0; i < 2; i++)
        CHECK_INT(fm_thread_start(&threads[i], "churn", churn, NULL), FM_OK);
    for (int i = 0; i < 40; i++)
        fork_and_work("churned");
    atomic_store(&churning, false);
    for (int i = 0; i < 2; i++)
        fm_thread_join(&threads[i]);
    expect_nothing_left();
}

static void
a_child_has_no_descriptor_of_its_parent(void)
{
    fm_bus *bus = rig_open("parent", (rig_options){ 0 });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 5, false);
    int status;
    pid_t pid;

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_INT(count_descriptors(), idle_descriptors);
        CHECK(bus->generation != fm_fork_generation());
        work_in_child("parent");
        CHECK_INT(count_descriptors(), idle_descriptors);
        fork_and_work("parent"); /* a grandchild */
        _exit(0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    rig_end(consumer);
    rig_close(bus);
    expect_nothing_left();
}

int
main(void)
{
    note_what_is_there();
    RUN(a_fork_in_mid_traffic_disturbs_nobody);
    RUN(a_fork_while_buses_come_and_go_disturbs_nobody);
    RUN(a_child_has_no_descriptor_of_its_parent);
    return 0;
}
