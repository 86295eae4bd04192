/* io/bus.h with a broker and without trouble: calls, casts, notifications,
 * fanouts, consumers, from many threads at once.
 */
#include "rig.h"

enum { CALLERS = 32, CALLS = 60, CASTERS = 8, CASTS = 400 };

static fm_bus *bus;

/* --- calls --- */

typedef struct caller {
    fm_bus *bus;
    fm_consumer *replies;
    const char *queue;
    int number;
    fm_thread thread;
} caller;

static void *
call_often(void *arg)
{
    caller *self = arg;

    for (int i = 0; i < CALLS; i++) {
        char msg_id[40];

        snprintf(msg_id, sizeof(msg_id), "%d-%d", self->number, i);
        CHECK_INT(rig_call(self->bus, self->queue, self->replies, msg_id,
                      FM_RETRY_FOREVER, LONG_ENOUGH),
            FM_OK);
    }
    return NULL;
}

static void
call_from_many_threads(fm_bus *from, fm_bus *to)
{
    fm_consumer *replies = rig_consume(from, "native.replies", NULL, 0, true);
    caller callers[CALLERS];
    rig_server server;

    rig_server_start(&server, to, "native.server");
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){ from, replies, "native.server", i, { 0 } };
        CHECK_INT(fm_thread_start(
                      &callers[i].thread, "caller", call_often, &callers[i]),
            FM_OK);
    }
    for (int i = 0; i < CALLERS; i++)
        fm_thread_join(&callers[i].thread);
    CHECK_INT(atomic_load(&server.served), CALLERS * CALLS);
    CHECK_INT(fm_reply_waiting(&from->replies), 0);
    CHECK_INT(atomic_load(&from->replies.late), 0);
    CHECK_INT(
        fm_publisher_wait_handed(&to->publisher, fm_deadline_in(LONG_ENOUGH)),
        FM_OK);
    rig_server_stop(&server);
    rig_end(replies);
}

static void
every_call_gets_its_own_reply(void)
{
    call_from_many_threads(bus, bus);
}

static void
calls_pass_between_two_buses(void)
{
    fm_bus *other = rig_open("other", (rig_options){ 0 });

    CHECK(other != bus);
    call_from_many_threads(bus, other);
    rig_close(other);
}

static void
a_call_to_nobody_is_returned(void)
{
    fm_consumer *replies = rig_consume(bus, "native.replies", NULL, 0, true);
    fm_message *call = rig_new_call("native.nobody", replies, "m1");

    CHECK_INT(fm_bus_submit(bus, call), FM_OK);
    CHECK_INT(rig_finish_call(bus, call, LONG_ENOUGH), FM_RETURNED);
    CHECK_INT(call->error.code, 312);
    CHECK_HAS(call->error.text, "native.nobody");
    fm_message_unref(call);
    rig_end(replies);
}

static void
a_call_that_nobody_answers_times_out_and_its_reply_is_late(void)
{
    fm_consumer *replies = rig_consume(bus, "native.replies", NULL, 0, true);
    fm_consumer *server = rig_consume(bus, "native.slow", NULL, 1, false);
    uint64_t late = atomic_load(&bus->replies.late);
    fm_delivery *request;

    CHECK_INT(
        rig_call(bus, "native.slow", replies, "m1", FM_RETRY_FOREVER, 100 * MS),
        FM_TIMED_OUT);
    CHECK_INT(fm_reply_waiting(&bus->replies), 0);
    request = rig_take(server, LONG_ENOUGH);
    CHECK(request != NULL);
    rig_answer(bus, rig_text(request));
    rig_ack(server, request);
    while (atomic_load(&bus->replies.late) == late)
        usleep(1000);
    rig_end(server);
    rig_end(replies);
}

/* Nothing may go before its reply queue is consumed, then it goes at once. */
static void
a_call_waits_for_its_reply_queue(void)
{
    fm_topology *topology = rig_queue("native.replies", NULL, 0);
    fm_consumer *replies = rig_join(bus, "native.replies", topology, 0, true);
    rig_server server;
    fm_message *call;

    rig_server_start(&server, bus, "native.server");
    rig_reach(replies, FM_GOAL_DECLARED);
    call = rig_new_call("native.server", replies, "m1");
    CHECK_INT(fm_bus_submit(bus, call), FM_OK);
    usleep(50 * 1000);
    CHECK_INT(atomic_load(&server.served), 0);
    fm_consumer_want(replies, FM_GOAL_CONSUMING);
    CHECK_INT(rig_finish_call(bus, call, LONG_ENOUGH), FM_OK);
    fm_message_unref(call);
    rig_server_stop(&server);
    rig_end(replies);
    fm_topology_unref(topology);
}

static void
a_call_fails_when_its_reply_queue_is_closed(void)
{
    fm_topology *topology = rig_queue("native.replies", NULL, 0);
    fm_consumer *replies = rig_join(bus, "native.replies", topology, 0, true);
    fm_message *call;

    rig_reach(replies, FM_GOAL_DECLARED);
    call = rig_new_call("native.server", replies, "m1");
    CHECK_INT(fm_bus_submit(bus, call), FM_OK);
    rig_end(replies);
    CHECK_INT(rig_finish_call(bus, call, LONG_ENOUGH), FM_CLOSED);
    CHECK(call->error.text[0] != '\0');
    fm_message_unref(call);
    fm_topology_unref(topology);
}

/* --- casts --- */

typedef struct caster {
    fm_lane lane;
    int number;
    fm_topology *topology;
    fm_thread thread;
} caster;

static void *
cast_often(void *arg)
{
    caster *self = arg;

    for (int i = 0; i < CASTS; i++) {
        char body[40];
        fm_message *message;

        snprintf(body, sizeof(body), "%d %d", self->number, i);
        message =
            rig_message(self->lane, "", "native.casts", self->topology, body);
        message->mandatory = true; /* declared before it goes, or returned */
        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_OK);
        fm_message_unref(message);
    }
    return NULL;
}

static void
cast_from_many_threads(fm_lane lane)
{
    fm_topology *topology = rig_queue("native.casts", NULL, 0);
    caster casters[CASTERS];
    int next[CASTERS] = { 0 };
    fm_consumer *consumer;

    for (int i = 0; i < CASTERS; i++) {
        casters[i] = (caster){ lane, i, topology, { 0 } };
        CHECK_INT(fm_thread_start(
                      &casters[i].thread, "caster", cast_often, &casters[i]),
            FM_OK);
    }
    for (int i = 0; i < CASTERS; i++)
        fm_thread_join(&casters[i].thread);
    consumer = rig_consume(bus, "native.casts", topology, 100, false);
    for (int i = 0; i < CASTERS * CASTS; i++) {
        fm_delivery *delivery = rig_take(consumer, LONG_ENOUGH);
        int who, number;

        CHECK(delivery != NULL);
        CHECK_INT(sscanf(rig_text(delivery), "%d %d", &who, &number), 2);
        CHECK_INT(number, next[who]);
        next[who]++;
        CHECK_TEXT(fm_consumer_queue_of(consumer, delivery), "native.casts");
        rig_ack(consumer, delivery);
    }
    CHECK(rig_take(consumer, 50 * MS) == NULL);
    rig_end(consumer);
    fm_topology_unref(topology);
}

static void
confirmed_casts_have_arrived_in_order(void)
{
    cast_from_many_threads(FM_LANE_RPC);
}

static void
confirmed_notifications_have_arrived_in_order(void)
{
    cast_from_many_threads(FM_LANE_NOTIFY);
}

/* More than the window of the lane, without waiting for any confirm. */
static void
a_flood_is_confirmed_in_full(void)
{
    enum { FLOOD = 3000 };
    static fm_message *messages[FLOOD];
    fm_topology *topology = rig_queue("native.flood", NULL, 0);
    fm_consumer *consumer;

    for (int i = 0; i < FLOOD; i++) {
        char body[8000];

        memset(body, 'x', sizeof(body));
        snprintf(body, sizeof(body), "%d", i);
        body[strlen(body)] = ' ';
        body[i % 20 == 0 ? sizeof(body) - 1 : 100] = '\0';
        messages[i] =
            rig_message(FM_LANE_NOTIFY, "", "native.flood", topology, body);
        CHECK_INT(fm_bus_submit(bus, messages[i]), FM_OK);
    }
    for (int i = 0; i < FLOOD; i++) {
        CHECK_INT(rig_wait(bus, messages[i], LONG_ENOUGH), FM_OK);
        fm_message_unref(messages[i]);
    }
    consumer = rig_consume(bus, "native.flood", topology, 500, false);
    for (int i = 0; i < FLOOD; i++) {
        fm_delivery *delivery = rig_take(consumer, LONG_ENOUGH);

        CHECK(delivery != NULL);
        CHECK_INT(atoi(rig_text(delivery)), i);
        rig_ack(consumer, delivery);
    }
    rig_end(consumer);
    fm_topology_unref(topology);
}

static void
a_body_of_many_frames_arrives_whole(void)
{
    enum { SIZE = 3 * 1000 * 1000 };
    fm_consumer *consumer = rig_consume(bus, "native.big", NULL, 1, false);
    char *body = malloc(SIZE + 1);
    fm_delivery *delivery;

    CHECK(body != NULL);
    for (int i = 0; i < SIZE; i++)
        body[i] = (char)('a' + i % 23);
    body[SIZE] = '\0';
    CHECK_INT(rig_cast(bus, "native.big", body), FM_OK);
    delivery = rig_take(consumer, LONG_ENOUGH);
    CHECK(delivery != NULL);
    CHECK_BYTES(delivery->body.data, delivery->body.len, body, SIZE);
    rig_ack(consumer, delivery);
    free(body);
    rig_end(consumer);
}

static void
a_full_queue_nacks(void)
{
    const fm_arg args[] = {
        { .name = "x-max-length", .integer = 1 },
        { .name = "x-overflow", .kind = FM_ARG_TEXT, .text = "reject-publish" }
    };
    fm_topology *topology = rig_queue("native.full", args, 2);
    fm_consumer *consumer = rig_join(bus, "native.full", topology, 1, false);
    fm_status status = FM_OK;
    fm_message *message = NULL;

    rig_reach(consumer, FM_GOAL_DECLARED);
    for (int i = 0; i < 10 && status == FM_OK; i++) {
        fm_message_unref(message);
        message = rig_message(FM_LANE_RPC, "", "native.full", topology, "x");
        message->retry = 0; /* else it is tried again */
        CHECK_INT(fm_bus_submit(bus, message), FM_OK);
        status = rig_wait(bus, message, LONG_ENOUGH);
    }
    CHECK_INT(status, FM_NACKED);
    CHECK_HAS(message->error.text, "native.full");
    fm_message_unref(message);
    rig_end(consumer);
    fm_topology_unref(topology);
}

/* It exists and has another type. */
static fm_topology *
declare_amq_fanout(void)
{
    fm_exchange exchange = {
        .name = "amq.fanout", .type = "direct", .durable = true
    };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    return topology;
}

static void
a_refused_declaration_fails_what_needs_it_and_nothing_else(void)
{
    fm_consumer *consumer = rig_consume(bus, "native.taken", NULL, 1, false);
    fm_topology *wrong = declare_amq_fanout();
    fm_message *message =
        rig_message(FM_LANE_RPC, "", "native.taken", wrong, "x");

    CHECK_INT(fm_bus_submit(bus, message), FM_OK);
    CHECK_INT(rig_cast(bus, "native.taken", "fine"), FM_OK);
    CHECK_INT(rig_wait(bus, message, LONG_ENOUGH), FM_REJECTED);
    CHECK_INT(message->error.code, 406);
    CHECK_HAS(message->error.text, "amq.fanout");
    fm_message_unref(message);
    fm_topology_unref(wrong);
    rig_end(consumer);
}

/* --- fanouts --- */

/* The exchange goes with its last queue. */
static fm_topology *
vanishing(const char *queue)
{
    fm_exchange fanout = {
        .name = "native.fanout", .type = "fanout", .auto_delete = true
    };
    fm_queue bound = { .name = queue };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(topology, &fanout), FM_OK);
    if (queue != NULL) {
        CHECK_INT(fm_topology_add_queue(topology, &bound), FM_OK);
        CHECK_INT(fm_topology_add_binding(topology, queue, "native.fanout", ""),
            FM_OK);
    }
    return topology;
}

static fm_message *
start_fanout(fm_topology *topology, const char *body)
{
    fm_message *message =
        rig_message(FM_LANE_FANOUT, "native.fanout", "", topology, body);

    CHECK_INT(fm_bus_submit(bus, message), FM_OK);
    return message;
}

static void
finish_fanout(fm_message *message)
{
    fm_status status = rig_wait(bus, message, LONG_ENOUGH);

    if (status != FM_OK)
        CHECK_FAIL("a fanout failed: %s", message->error.text);
    fm_message_unref(message);
}

static void
a_vanished_fanout_exchange_is_declared_again(void)
{
    enum { FANOUTS = 50 };
    fm_topology *publishers = vanishing(NULL);
    fm_topology *topology = vanishing("native.heard");
    fm_message *messages[FANOUTS];
    uint64_t connects;

    finish_fanout(start_fanout(publishers, "first"));
    connects = atomic_load(&bus->publishing.connects);
    for (int round = 0; round < 5; round++) {
        fm_consumer *consumer =
            rig_consume(bus, "native.heard", topology, 0, false);

        rig_end(consumer); /* and the exchange with it */
        for (int i = 0; i < FANOUTS; i++)
            messages[i] = start_fanout(publishers, "to nobody");
        /* Other lanes go on meanwhile. */
        CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
        for (int i = 0; i < FANOUTS; i++)
            finish_fanout(messages[i]);
    }
    CHECK_INT(atomic_load(&bus->publishing.connects), connects);
    fm_topology_unref(publishers);
    fm_topology_unref(topology);
}

static void
an_exchange_that_nobody_declares_is_an_error_of_its_message(void)
{
    fm_topology *topology = vanishing(NULL);
    fm_message *wrong, *right;

    for (int i = 0; i < 10; i++) {
        wrong = rig_message(FM_LANE_FANOUT, "native.missing", "", NULL, "x");
        right = start_fanout(topology, "x");
        CHECK_INT(fm_bus_submit(bus, wrong), FM_OK);
        CHECK_INT(rig_wait(bus, wrong, LONG_ENOUGH), FM_REJECTED);
        CHECK_INT(wrong->error.code, 404);
        CHECK_HAS(wrong->error.text, "native.missing");
        finish_fanout(right);
        fm_message_unref(wrong);
    }
    fm_topology_unref(topology);
}

/* A reply needs no exchange, so a missing one is not its fault. */
static void
a_missing_exchange_does_not_hurt_what_goes_beside_it(void)
{
    enum { BESIDE = 40 };
    fm_consumer *consumer = rig_consume(bus, "native.beside", NULL, 0, false);

    for (int round = 0; round < 5; round++) {
        fm_message *messages[BESIDE];
        fm_message *wrong =
            rig_message(FM_LANE_RPC, "native.missing", "k", NULL, "x");

        for (int i = 0; i < BESIDE; i++) {
            if (i == BESIDE / 2)
                CHECK_INT(fm_bus_submit(bus, wrong), FM_OK);
            messages[i] =
                rig_message(FM_LANE_RPC, "", "native.beside", NULL, "x");
            CHECK_INT(fm_bus_submit(bus, messages[i]), FM_OK);
        }
        CHECK_INT(rig_wait(bus, wrong, LONG_ENOUGH), FM_REJECTED);
        fm_message_unref(wrong);
        for (int i = 0; i < BESIDE; i++) {
            CHECK_INT(rig_wait(bus, messages[i], LONG_ENOUGH), FM_OK);
            fm_message_unref(messages[i]);
        }
    }
    rig_end(consumer);
}

/* --- replies that are handed over --- */

static void
a_reply_waits_for_its_queue_to_come_back(void)
{
    fm_consumer *consumer;
    fm_delivery *delivery;

    rig_answer(bus, "native.later m1");
    CHECK_INT(
        fm_publisher_wait_handed(&bus->publisher, fm_deadline_in(LONG_ENOUGH)),
        FM_OK);
    consumer = rig_consume(bus, "native.later", NULL, 0, false);
    delivery = rig_take(consumer, LONG_ENOUGH);
    CHECK(delivery != NULL);
    CHECK_HAS(rig_text(delivery), "m1");
    rig_ack(consumer, delivery);
    rig_end(consumer);
}

static void
a_reply_to_nobody_is_given_up(void)
{
    fm_publisher_stats stats;
    int64_t begin = fm_now();
    fm_message *reply;

    (void)rig_show_events(false);
    rig_answer(bus, "native.gone m1");
    do {
        usleep(10 * 1000);
        fm_publisher_stats_get(&bus->publisher, &stats);
    } while (stats.parked + stats.in_flight + stats.unsent > 0);
    CHECK(fm_now() - begin >= 2 * S);
    CHECK_INT(rig_show_events(false), 1);
    /* The next one for that queue does not even try. */
    reply = rig_message(FM_LANE_RPC, "", "native.gone", NULL, "x");
    reply->handed_over = true;
    reply->mandatory = true;
    CHECK_INT(fm_bus_submit(bus, reply), FM_NOT_FOUND);
    fm_message_unref(reply);
}

/* --- consumers --- */

static void
a_delivery_that_is_rejected_comes_again_if_asked_for(void)
{
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 10, false);
    fm_delivery *delivery;

    CHECK_INT(rig_cast(bus, "native.q", "one"), FM_OK);
    delivery = rig_take(consumer, LONG_ENOUGH);
    CHECK(delivery != NULL && !delivery->deliver.redelivered);
    fm_consumer_reject(
        consumer, delivery->generation, delivery->deliver.delivery_tag, true);
    fm_delivery_free(delivery);
    delivery = rig_take(consumer, LONG_ENOUGH);
    CHECK(delivery != NULL && delivery->deliver.redelivered);
    fm_consumer_reject(
        consumer, delivery->generation, delivery->deliver.delivery_tag, false);
    fm_delivery_free(delivery);
    CHECK(rig_take(consumer, 100 * MS) == NULL);
    rig_end(consumer);
}

static void
no_more_is_delivered_than_was_asked_for(void)
{
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 3, false);
    fm_delivery *first, *each;
    int count = 0;

    for (int i = 0; i < 10; i++)
        CHECK_INT(rig_cast(bus, "native.q", "x"), FM_OK);
    usleep(100 * 1000);
    CHECK_INT(fm_consumer_take(consumer, 10, fm_now(), &first), FM_OK);
    for (each = first; each != NULL; each = each->next)
        count++;
    CHECK_INT(count, 3);
    /* One ack for all three, then three more come. */
    for (each = first; each->next != NULL; each = each->next) {
    }
    fm_consumer_ack(
        consumer, each->generation, each->deliver.delivery_tag, true, true);
    while (first != NULL) {
        each = first->next;
        fm_delivery_free(first);
        first = each;
    }
    for (int i = 0; i < 7; i++) {
        first = rig_take(consumer, LONG_ENOUGH);
        CHECK(first != NULL);
        rig_ack(consumer, first);
    }
    rig_end(consumer);
}

static void
a_stopped_consumer_gives_back_what_was_not_taken(void)
{
    fm_consumer *first = rig_consume(bus, "native.q", NULL, 10, false);
    fm_delivery *taken, *delivery;
    fm_consumer *second;

    for (int i = 0; i < 6; i++) {
        char body[] = { (char)('0' + i), '\0' };

        CHECK_INT(rig_cast(bus, "native.q", body), FM_OK);
    }
    taken = rig_take(first, LONG_ENOUGH);
    CHECK(taken != NULL);
    rig_reach(first, FM_GOAL_STOPPED);
    CHECK_INT(fm_consumer_take(first, 1, fm_now(), &delivery), FM_CLOSED);
    second = rig_consume(bus, "native.q", NULL, 10, false);
    for (int i = 1; i < 6; i++) {
        delivery = rig_take(second, LONG_ENOUGH);
        CHECK(delivery != NULL);
        CHECK_INT(atoi(rig_text(delivery)), i);
        rig_ack(second, delivery);
    }
    CHECK(rig_take(second, 50 * MS) == NULL);
    /* What was taken may still be settled. */
    CHECK_TEXT(rig_text(taken), "0");
    rig_ack(first, taken);
    rig_reach(first, FM_GOAL_CLOSED);
    fm_consumer_unref(first);
    CHECK(rig_take(second, 50 * MS) == NULL);
    rig_end(second);
}

static void
closing_gives_back_what_was_taken_and_not_acked(void)
{
    fm_consumer *first = rig_consume(bus, "native.q", NULL, 10, false);
    fm_delivery *taken, *again;
    fm_consumer *second;

    CHECK_INT(rig_cast(bus, "native.q", "one"), FM_OK);
    taken = rig_take(first, LONG_ENOUGH);
    CHECK(taken != NULL);
    rig_reach(first, FM_GOAL_CLOSED);
    second = rig_consume(bus, "native.q", NULL, 10, false);
    again = rig_take(second, LONG_ENOUGH);
    CHECK(again != NULL && again->deliver.redelivered);
    /* Too late, and without effect on the other: its tag is the same. */
    rig_ack(first, taken);
    fm_consumer_unref(first);
    rig_ack(second, again);
    rig_end(second);
}

static void
a_take_ends_when_the_consumer_is_stopped(void)
{
    rig_server server;

    rig_server_start(&server, bus, "native.q");
    usleep(20 * 1000);
    rig_server_stop(&server);
    CHECK_INT(atomic_load(&server.served), 0);
}

static void
a_consumer_of_a_queue_that_is_deleted_declares_it_again(void)
{
    fm_bus *other = rig_open("other", (rig_options){ 0 });
    fm_consumer *consumer = rig_consume(bus, "native.q", NULL, 10, false);
    uint64_t connects = atomic_load(&bus->consuming.connects);

    for (int i = 0; i < 10; i++) {
        fm_topology *topology = rig_queue("native.q", NULL, 0);
        fm_consumer *stranger = rig_join(other, "native.q", topology, 0, false);
        fm_delivery *delivery;
        fm_message *message;
        fm_status status;

        rig_reach(stranger, FM_GOAL_DECLARED);
        rig_end(stranger); /* deletes it: basic.cancel for the others */
        do {               /* returned until it is there again */
            message = rig_message(FM_LANE_RPC, "", "native.q", NULL, "after");
            message->mandatory = true;
            CHECK_INT(fm_bus_submit(bus, message), FM_OK);
            status = rig_wait(bus, message, LONG_ENOUGH);
            fm_message_unref(message);
        } while (status == FM_RETURNED);
        CHECK_INT(status, FM_OK);
        delivery = rig_take(consumer, LONG_ENOUGH);
        CHECK(delivery != NULL);
        rig_ack(consumer, delivery);
        fm_topology_unref(topology);
    }
    CHECK_INT(atomic_load(&bus->consuming.connects), connects);
    rig_end(consumer);
    rig_close(other);
}

static void
a_refused_consumer_says_why(void)
{
    fm_consumer *consumer = rig_consume(bus, "native.taken", NULL, 1, false);
    fm_topology *wrong = declare_amq_fanout();
    fm_consumer *refused = rig_join(bus, "native.taken", wrong, 1, false);
    fm_error error;

    CHECK_INT(fm_consumer_wait(refused, fm_deadline_in(LONG_ENOUGH), &error),
        FM_REJECTED);
    CHECK_INT(error.code, 406);
    CHECK_HAS(error.text, "native.taken");
    rig_reach(refused, FM_GOAL_CLOSED);
    fm_consumer_unref(refused);
    fm_topology_unref(wrong);
    CHECK_INT(rig_cast(bus, "native.taken", "x"), FM_OK);
    rig_ack(consumer, rig_take(consumer, LONG_ENOUGH));
    rig_end(consumer);
}

/* Channel numbers are used again, while others consume. */
static void *
come_and_go(void *arg)
{
    int number = *(int *)arg;
    char queue[40];

    snprintf(queue, sizeof(queue), "native.visit.%d", number);
    for (int i = 0; i < 25; i++) {
        fm_consumer *consumer = rig_consume(bus, queue, NULL, 10, false);
        fm_delivery *delivery;

        CHECK_INT(rig_cast(bus, queue, "x"), FM_OK);
        if (i % 3 != 0) {
            delivery = rig_take(consumer, LONG_ENOUGH);
            CHECK(delivery != NULL);
            rig_ack(consumer, delivery);
        }
        if (i % 2 == 0)
            rig_reach(consumer, FM_GOAL_STOPPED);
        rig_end(consumer);
    }
    return NULL;
}

static void
consumers_come_and_go(void)
{
    fm_thread threads[6];
    int numbers[6];

    for (int i = 0; i < 6; i++) {
        numbers[i] = i;
        CHECK_INT(
            fm_thread_start(&threads[i], "visitor", come_and_go, &numbers[i]),
            FM_OK);
    }
    for (int i = 0; i < 6; i++)
        fm_thread_join(&threads[i]);
}

int
main(void)
{
    bus = rig_open("one", (rig_options){ 0 });
    RUN(every_call_gets_its_own_reply);
    RUN(calls_pass_between_two_buses);
    RUN(a_call_to_nobody_is_returned);
    RUN(a_call_that_nobody_answers_times_out_and_its_reply_is_late);
    RUN(a_call_waits_for_its_reply_queue);
    RUN(a_call_fails_when_its_reply_queue_is_closed);
    RUN(confirmed_casts_have_arrived_in_order);
    RUN(confirmed_notifications_have_arrived_in_order);
    RUN(a_flood_is_confirmed_in_full);
    RUN(a_body_of_many_frames_arrives_whole);
    RUN(a_full_queue_nacks);
    RUN(a_refused_declaration_fails_what_needs_it_and_nothing_else);
    RUN(a_vanished_fanout_exchange_is_declared_again);
    RUN(an_exchange_that_nobody_declares_is_an_error_of_its_message);
    RUN(a_missing_exchange_does_not_hurt_what_goes_beside_it);
    RUN(a_reply_waits_for_its_queue_to_come_back);
    RUN(a_reply_to_nobody_is_given_up);
    RUN(a_delivery_that_is_rejected_comes_again_if_asked_for);
    RUN(no_more_is_delivered_than_was_asked_for);
    RUN(a_stopped_consumer_gives_back_what_was_not_taken);
    RUN(closing_gives_back_what_was_taken_and_not_acked);
    RUN(a_take_ends_when_the_consumer_is_stopped);
    RUN(a_consumer_of_a_queue_that_is_deleted_declares_it_again);
    RUN(a_refused_consumer_says_why);
    RUN(consumers_come_and_go);
    rig_close(bus);
    return 0;
}
