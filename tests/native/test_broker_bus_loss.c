/* io/bus.h when connections break: what was promised holds. */
#include "proxy.h"
#include "rig.h"

enum { THREADS = 16 };

static proxy between;

static fm_bus *
open_through_proxy(const char *key, rig_options with)
{
    with.port = between.port;
    return rig_open(key, with);
}

/* --- traffic while connections are cut --- */

static atomic_bool enough;
static atomic_int numbers;

typedef struct worker {
    fm_bus *bus;
    fm_consumer *replies;
    fm_lane lane;
    int retry;
    int number;
    int done, failed;
    fm_thread thread;
} worker;

static void *
call_until_enough(void *arg)
{
    worker *self = arg;

    while (!atomic_load(&enough)) {
        char msg_id[40];
        fm_status status;

        snprintf(msg_id, sizeof(msg_id), "m%d", atomic_fetch_add(&numbers, 1));
        status = rig_call(self->bus, "native.server", self->replies, msg_id,
            self->retry, LONG_ENOUGH);
        if (status == FM_OK)
            self->done++;
        else if (status == FM_DISCONNECTED && self->retry >= 0)
            self->failed++;
        else
            CHECK_FAIL("a call ended with: %s", fm_status_text(status));
    }
    return NULL;
}

static void
start_workers(worker *workers, void *(*body)(void *), worker like)
{
    atomic_store(&enough, false);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = like;
        workers[i].number = i;
        CHECK_INT(
            fm_thread_start(&workers[i].thread, "worker", body, &workers[i]),
            FM_OK);
    }
}

static int
join_workers(worker *workers)
{
    int done = 0;

    atomic_store(&enough, true);
    for (int i = 0; i < THREADS; i++) {
        fm_thread_join(&workers[i].thread);
        done += workers[i].done;
    }
    return done;
}

/* Cut at random moments, in mid-frame mostly. */
static void
cut_often(int times)
{
    srand(7);
    for (int i = 0; i < times; i++) {
        int accepted = atomic_load(&between.accepted);

        usleep(20 * 1000 + (useconds_t)rand() % 100000);
        if (i % 2 == 0) {
            proxy_cut(&between);
        } else {
            atomic_store(&between.limit, 1 + (size_t)rand() % 5000);
            for (int ms = 0;
                 ms < 2000 && atomic_load(&between.accepted) == accepted; ms++)
                usleep(1000);
        }
    }
    atomic_store(&between.limit, 0);
}

static void
calls_survive_lost_connections(void)
{
    fm_bus *servers = open_through_proxy("servers", (rig_options){ 0 });
    fm_bus *callers = open_through_proxy("callers", (rig_options){ 0 });
    fm_consumer *replies =
        rig_consume(callers, "native.replies", NULL, 0, true);
    worker workers[THREADS];
    rig_server server;

    rig_server_start(&server, servers, "native.server");
    start_workers(workers, call_until_enough,
        (worker){
            .bus = callers, .replies = replies, .retry = FM_RETRY_FOREVER });
    cut_often(5);
    CHECK(join_workers(workers) >= THREADS);
    CHECK_INT(fm_reply_waiting(&callers->replies), 0);
    rig_server_stop(&server);
    rig_end(replies);
    rig_close(callers);
    rig_close(servers);
}

static void
calls_that_bear_no_loss_fail_at_once(void)
{
    fm_bus *servers = rig_open("servers", (rig_options){ 0 });
    fm_bus *callers = open_through_proxy("callers", (rig_options){ 0 });
    fm_consumer *replies =
        rig_consume(callers, "native.replies", NULL, 0, true);
    worker workers[THREADS];
    rig_server server;
    int failed = 0;

    rig_server_start(&server, servers, "native.server");
    start_workers(workers, call_until_enough,
        (worker){ .bus = callers, .replies = replies, .retry = 0 });
    cut_often(4);
    CHECK(join_workers(workers) >= THREADS);
    for (int i = 0; i < THREADS; i++)
        failed += workers[i].failed;
    CHECK(failed > 0);
    CHECK_INT(fm_reply_waiting(&callers->replies), 0);
    rig_server_stop(&server);
    rig_end(replies);
    rig_close(callers);
    rig_close(servers);
}

/* --- casts --- */

enum { CASTS_MAX = 100 * 1000 };
static atomic_uchar arrived[THREADS][CASTS_MAX];

static void *
cast_until_enough(void *arg)
{
    worker *self = arg;

    while (!atomic_load(&enough) && self->done < CASTS_MAX) {
        char body[40];
        fm_message *message;

        snprintf(body, sizeof(body), "%d %d", self->number, self->done);
        message = rig_message(self->lane, "", "native.casts", NULL, body);
        CHECK_INT(fm_bus_submit(self->bus, message), FM_OK);
        CHECK_INT(rig_wait(self->bus, message, LONG_ENOUGH), FM_OK);
        fm_message_unref(message);
        self->done++;
    }
    return NULL;
}

/* Each was confirmed, so each is there; one that comes for the first time
 * comes after those that the same thread sent before. */
static void
expect_casts(fm_consumer *consumer, const worker *workers)
{
    int first[THREADS] = { 0 };
    fm_delivery *delivery;

    memset(arrived, 0, sizeof(arrived));
    while ((delivery = rig_take(consumer, 300 * MS)) != NULL) {
        int who, number;

        CHECK_INT(sscanf(rig_text(delivery), "%d %d", &who, &number), 2);
        if (arrived[who][number]++ == 0) {
            CHECK_INT(number, first[who]);
            first[who]++;
        }
        rig_ack(consumer, delivery);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_INT(first[i], workers[i].done);
}

static void
casts_through_cuts(fm_lane lane)
{
    fm_bus *bus = open_through_proxy("casters", (rig_options){ 0 });
    fm_bus *other = rig_open("other", (rig_options){ 0 });
    fm_topology *topology = rig_queue("native.casts", NULL, 0);
    fm_consumer *consumer =
        rig_join(other, "native.casts", topology, 1000, false);
    worker workers[THREADS];

    rig_reach(consumer, FM_GOAL_DECLARED);
    start_workers(
        workers, cast_until_enough, (worker){ .bus = bus, .lane = lane });
    cut_often(5);
    CHECK(join_workers(workers) >= THREADS);
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    expect_casts(consumer, workers);
    rig_end(consumer);
    fm_topology_unref(topology);
    rig_close(other);
    rig_close(bus);
}

static void
confirmed_casts_are_there_after_cuts_and_in_order(void)
{
    casts_through_cuts(FM_LANE_RPC);
}

static void
confirmed_notifications_are_there_after_cuts_and_in_order(void)
{
    casts_through_cuts(FM_LANE_NOTIFY);
}

/* Many in flight at once, from one thread: their order holds as well. */
static void
what_was_in_flight_is_sent_again_in_order(void)
{
    enum { FLIGHT = 2000 };
    static fm_message *messages[FLIGHT];
    fm_bus *bus = open_through_proxy("casters", (rig_options){ 0 });
    fm_bus *other = rig_open("other", (rig_options){ 0 });
    fm_consumer *consumer = rig_consume(other, "native.casts", NULL, 0, false);
    int next = 0;

    for (int i = 0; i < FLIGHT; i++) {
        char body[40];

        snprintf(body, sizeof(body), "%d", i);
        messages[i] = rig_message(FM_LANE_RPC, "", "native.casts", NULL, body);
        CHECK_INT(fm_bus_submit(bus, messages[i]), FM_OK);
        if (i % 1000 == 250)
            proxy_cut(&between);
    }
    for (int i = 0; i < FLIGHT; i++) {
        CHECK_INT(rig_wait(bus, messages[i], LONG_ENOUGH), FM_OK);
        fm_message_unref(messages[i]);
    }
    while (next < FLIGHT) {
        fm_delivery *delivery = rig_take(consumer, LONG_ENOUGH);
        int number;

        CHECK(delivery != NULL);
        number = atoi(rig_text(delivery));
        CHECK(number <= next); /* earlier ones may come twice */
        next += number == next;
        rig_ack(consumer, delivery);
    }
    rig_end(consumer);
    rig_close(other);
    rig_close(bus);
}

/* --- consumers --- */

static void
a_consumer_goes_on_after_a_cut(void)
{
    fm_bus *bus = open_through_proxy("consumers", (rig_options){ 0 });
    fm_bus *other = rig_open("other", (rig_options){ 0 });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 5, false);

    for (int i = 0; i < 4; i++) {
        fm_delivery *old, *again;

        CHECK_INT(rig_cast(other, "native.q", "x"), FM_OK);
        old = rig_take(consumer, LONG_ENOUGH);
        CHECK(old != NULL);
        proxy_cut(&between);
        again = rig_take(consumer, LONG_ENOUGH);
        CHECK(again != NULL);
        CHECK(again->deliver.redelivered);
        /* The old one's tag means nothing on the new channel, or it would
         * settle the new one, and closing the channel would be the thanks. */
        CHECK(old->generation != again->generation);
        rig_ack(consumer, old);
        rig_ack(consumer, again);
        CHECK(rig_take(consumer, 20 * MS) == NULL);
    }
    rig_end(consumer);
    rig_close(other);
    rig_close(bus);
}

static void
a_consumer_reaches_its_goal_through_cuts(void)
{
    fm_bus *bus = open_through_proxy("consumers", (rig_options){ 0 });

    srand(3);
    for (int i = 0; i < 4; i++) {
        fm_topology *topology = rig_queue("native.q", NULL, 0);
        fm_consumer *consumer = rig_join(bus, "native.q", topology, 5, false);

        atomic_store(&between.limit, 1 + (size_t)rand() % 900);
        rig_reach(consumer, FM_GOAL_CONSUMING);
        atomic_store(&between.limit, 1 + (size_t)rand() % 100);
        rig_reach(consumer, FM_GOAL_STOPPED);
        rig_end(consumer);
        fm_topology_unref(topology);
    }
    atomic_store(&between.limit, 0);
    rig_close(bus);
}

/* --- peers that are silent, or throw us out --- */

static void
a_silent_broker_is_noticed_within_two_heartbeats(void)
{
    fm_bus *bus =
        open_through_proxy("silent", (rig_options){ .heartbeat_s = 1 });
    fm_message *message;
    int64_t begin;

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    proxy_set_mode(&between, PROXY_FREEZE);
    begin = fm_now();
    message = rig_message(FM_LANE_RPC, "", "nobody", NULL, "x");
    message->retry = 0;
    CHECK_INT(fm_bus_submit(bus, message), FM_OK);
    CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_DISCONNECTED);
    CHECK(fm_now() - begin >= 1 * S);
    CHECK(fm_now() - begin < 3 * S);
    fm_message_unref(message);
    proxy_set_mode(&between, PROXY_FORWARD);
    proxy_cut(&between);
    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    rig_close(bus);
}

static void
an_idle_connection_stays(void)
{
    fm_bus *bus = open_through_proxy("idle", (rig_options){ .heartbeat_s = 1 });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 5, false);

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    usleep(3500 * 1000);
    CHECK_INT(atomic_load(&bus->publishing.connects), 1);
    CHECK_INT(atomic_load(&bus->consuming.connects), 1);
    CHECK_INT(atomic_load(&bus->publishing.seen_state), FM_CONN_OPEN);
    rig_end(consumer);
    rig_close(bus);
}

/* A port that accepts and closes must not be stormed, even if the pauses
 * between attempts are set to nothing. */
static void
a_peer_that_slams_the_door_is_not_stormed(void)
{
    fm_bus *bus =
        open_through_proxy("slammed", (rig_options){ .interval_ns = 1 });
    fm_message *message = rig_message(FM_LANE_RPC, "", "nobody", NULL, "x");
    int accepted = atomic_load(&between.accepted);

    proxy_set_mode(&between, PROXY_SLAM);
    CHECK_INT(fm_bus_submit(bus, message), FM_OK);
    usleep(1000 * 1000);
    accepted = atomic_load(&between.accepted) - accepted;
    CHECK(accepted >= 3 && accepted <= 120);
    proxy_set_mode(&between, PROXY_FORWARD);
    CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_OK);
    fm_message_unref(message);
    rig_close(bus);
}

/* Nor one that lets us in and then throws us out. */
static void
a_peer_that_throws_us_out_is_not_stormed(void)
{
    fm_bus *bus =
        open_through_proxy("thrown", (rig_options){ .interval_ns = 200 * MS });
    fm_deadline until;
    int before;

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    before = (int)atomic_load(&bus->publishing.connects);
    until = fm_deadline_in(2 * S);
    while (fm_now() < until) {
        if (atomic_load(&bus->publishing.seen_state) == FM_CONN_OPEN)
            proxy_cut(&between);
        usleep(1000);
    }
    before = (int)atomic_load(&bus->publishing.connects) - before;
    CHECK(before >= 2 && before <= 100);
    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    rig_close(bus);
}

static int
count_lines(const char *text)
{
    fm_event_reader reader = { 0 };
    fm_event event;
    int count = 0;

    while (fm_event_wait(&reader, &event, fm_now()) == FM_OK)
        count += strstr(event.text, text) != NULL;
    return count;
}

static void
wait_for_both(fm_bus *bus)
{
    fm_deadline until = fm_deadline_in(LONG_ENOUGH);

    while (atomic_load(&bus->publishing.seen_state) != FM_CONN_OPEN
        || atomic_load(&bus->consuming.seen_state) != FM_CONN_OPEN) {
        CHECK(fm_now() < until);
        usleep(1000);
    }
}

/* Not each by a pause of its own, nor one at the end of the other's. */
static void
both_connections_wait_together_and_say_so_in_one_line(void)
{
    fm_bus *bus =
        open_through_proxy("both", (rig_options){ .interval_ns = 200 * MS });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 5, false);
    unsigned publishing, consuming;
    fm_deadline until;

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    (void)rig_show_events(false);
    proxy_set_mode(&between, PROXY_SLAM);
    proxy_cut(&between);
    until = fm_deadline_in(2 * S);
    do {
        publishing = atomic_load(&bus->publishing.seen_rounds);
        consuming = atomic_load(&bus->consuming.seen_rounds);
        CHECK(publishing + 2 >= consuming && consuming + 2 >= publishing);
        usleep(1000);
    } while (fm_now() < until);
    /* After the third one a pause is at least 180 ms, but for one. */
    CHECK(publishing >= 3 && publishing <= 16);
    proxy_set_mode(&between, PROXY_FORWARD);
    wait_for_both(bus);
    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    CHECK_INT(count_lines("both connections are back: connected to"), 1);
    rig_end(consumer);
    rig_close(bus);
}

int
main(void)
{
    proxy_start(&between, rig_broker_port());
    RUN(calls_survive_lost_connections);
    RUN(calls_that_bear_no_loss_fail_at_once);
    RUN(confirmed_casts_are_there_after_cuts_and_in_order);
    RUN(confirmed_notifications_are_there_after_cuts_and_in_order);
    RUN(what_was_in_flight_is_sent_again_in_order);
    RUN(a_consumer_goes_on_after_a_cut);
    RUN(a_consumer_reaches_its_goal_through_cuts);
    RUN(a_silent_broker_is_noticed_within_two_heartbeats);
    RUN(an_idle_connection_stays);
    RUN(a_peer_that_slams_the_door_is_not_stormed);
    RUN(a_peer_that_throws_us_out_is_not_stormed);
    RUN(both_connections_wait_together_and_say_so_in_one_line);
    proxy_stop(&between);
    return 0;
}
