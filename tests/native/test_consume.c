/* io/consume.h without a broker: this thread is the I/O thread, and plays
 * the broker at the other end of the line.
 */
#include "io/consume.h"

#include "line.h"

#include <stdlib.h>

static fm_waker waker;
static fm_output output;
static fm_reply_table table;
static fm_consumer *consumer;
static line wire;
static uint64_t epoch;
static bool is_up;

static const char *const queues[] = { "one", "two" };

/* --- the I/O thread's part --- */

static void
flush(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
    fm_output_after_sleep(&output, true);
}

static fm_deadline
step_at(int64_t now)
{
    fm_deadline next = fm_consumer_step(consumer, now, is_up);

    if (is_up)
        flush();
    return next;
}

static void
step(void)
{
    (void)step_at(fm_now());
}

static void
go_up(void)
{
    line_open(&wire);
    fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, ++epoch);
    is_up = true;
}

static void
go_down(void)
{
    struct pollfd look = { .fd = waker.fd, .events = POLLIN };

    is_up = false;
    fm_consumer_down(consumer);
    while (!fm_output_try_quiet(&output)) { /* the last writer wakes us */
        CHECK_INT(poll(&look, 1, 10 * 1000), 1);
        fm_waker_drain(&waker);
    }
    fm_output_down(&output);
    line_close(&wire);
}

static void
set_up_queue(bool replies, const fm_queue *queue)
{
    fm_consumer_config config = { queues, 2, 5, replies, false };
    fm_topology *topology;

    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_reply_table_init(&table);
    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, queue), FM_OK);
    CHECK_INT(
        fm_consumer_new(&config, topology, &output, &table, &consumer), FM_OK);
    fm_topology_unref(topology);
    fm_consumer_set_served(consumer, true);
    consumer->channel.id = 3;
    go_up();
}

static void
set_up(bool replies)
{
    set_up_queue(replies, &(fm_queue){ .name = "one" });
}

/* The first of its queues is one. */
static void
set_up_stream(void)
{
    static const fm_arg type = {
        .name = "x-queue-type", .kind = FM_ARG_TEXT, .text = "stream"
    };

    set_up_queue(false,
        &(fm_queue){
            .name = "one", .durable = true, .arguments = { &type, 1 } });
}

static void
tear_down(void)
{
    if (is_up)
        go_down();
    fm_consumer_abandon(consumer);
    fm_consumer_unref(consumer);
    fm_reply_table_fini(&table);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
}

/* --- the broker's part --- */

static void
expect_method(uint32_t id)
{
    uint16_t channel = 0;

    CHECK_INT(line_take_method(&wire, &channel), id);
    CHECK_INT(channel, 3);
}

/* Answer the script under way, in full. */
static void
answer_all(void)
{
    CHECK_INT(consumer->channel.state, FM_CHANNEL_BUSY);
    while (consumer->channel.state == FM_CHANNEL_BUSY)
        CHECK_INT(
            feed_method(&consumer->channel,
                consumer->channel.script.expect[consumer->channel.answered]),
            FM_OK);
}

static void
expect_wait(fm_status status)
{
    fm_error error;

    CHECK_INT(fm_consumer_wait(consumer, fm_now(), &error), status);
}

/* From nothing to consuming, in one go. */
static void
start(void)
{
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_method(FM_METHOD_BASIC_QOS);
    expect_method(FM_METHOD_QUEUE_DECLARE);
    expect_method(FM_METHOD_BASIC_CONSUME);
    expect_method(FM_METHOD_BASIC_CONSUME);
    expect_wait(FM_TIMED_OUT);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
    answer_all();
    expect_wait(FM_OK);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_OPEN);
}

static fm_delivery *
take(void)
{
    fm_delivery *delivery = NULL;
    fm_status status = fm_consumer_take(consumer, 1, fm_now(), &delivery);

    CHECK(status == FM_OK || status == FM_TIMED_OUT);
    return status == FM_OK ? delivery : NULL;
}

static void
deliver(uint64_t tag, const char *body)
{
    CHECK_INT(feed_delivery(&consumer->channel, "1", tag, body), FM_OK);
}

/* basic.cancel of a queue's consumer, as when the queue was deleted. */
static fm_status
feed_cancel(const char *tag, bool nowait)
{
    fm_buf payload = { 0 };
    fm_status status;

    add_u32(&payload, FM_METHOD_BASIC_CANCEL);
    add_text(&payload, tag);
    add_u8(&payload, nowait);
    status = feed(&consumer->channel, FM_FRAME_METHOD, &payload);
    fm_buf_fini(&payload);
    return status;
}

/* --- goals --- */

static void
it_declares_first_and_consumes_when_asked(void)
{
    set_up(false);
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_method(FM_METHOD_BASIC_QOS);
    expect_method(FM_METHOD_QUEUE_DECLARE);
    CHECK(line_is_silent(&wire));
    expect_wait(FM_TIMED_OUT);
    answer_all();
    expect_wait(FM_OK);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    expect_wait(FM_TIMED_OUT);
    step();
    expect_method(FM_METHOD_BASIC_CONSUME);
    expect_method(FM_METHOD_BASIC_CONSUME);
    answer_all();
    expect_wait(FM_OK);
    fm_consumer_want(consumer, FM_GOAL_DECLARED); /* no way back */
    expect_wait(FM_OK);
    step();
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
stopping_gives_back_what_was_not_taken(void)
{
    fm_delivery *delivery;

    set_up(false);
    start();
    for (uint64_t tag = 1; tag <= 3; tag++)
        deliver(tag, "x");
    delivery = take();
    CHECK(delivery != NULL);
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    CHECK_INT(fm_consumer_take(consumer, 1, FM_NEVER, &delivery), FM_CLOSED);
    step();
    expect_method(FM_METHOD_BASIC_CANCEL);
    expect_method(FM_METHOD_BASIC_CANCEL);
    deliver(4, "crossed the cancel");
    answer_all();
    expect_wait(FM_OK);
    flush();
    for (int i = 0; i < 3; i++)
        expect_method(FM_METHOD_BASIC_REJECT);
    /* What was taken can still be acked. */
    fm_consumer_ack(consumer, delivery->generation, 1, false, true);
    flush();
    expect_method(FM_METHOD_BASIC_ACK);
    fm_delivery_free(delivery);
    CHECK(line_is_silent(&wire));
    tear_down();
}

/* RabbitMQ closes the connection when a delivery of a stream is rejected. */
static void
what_a_stream_delivered_is_never_rejected(void)
{
    fm_delivery *delivery;

    set_up_stream();
    start();
    for (uint64_t tag = 1; tag <= 3; tag++)
        deliver(tag, "x");
    delivery = take();
    CHECK(delivery != NULL);
    fm_consumer_refuse(consumer, delivery->generation,
        delivery->deliver.delivery_tag, delivery->is_of_stream, true);
    flush();
    expect_method(FM_METHOD_BASIC_ACK);
    fm_delivery_free(delivery);
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    step();
    expect_method(FM_METHOD_BASIC_CANCEL);
    expect_method(FM_METHOD_BASIC_CANCEL);
    answer_all();
    expect_wait(FM_OK);
    flush();
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
closing_deletes_what_it_was_told_to(void)
{
    set_up(false);
    start();
    CHECK_INT(fm_consumer_delete_at_close(consumer, "one"), FM_OK);
    CHECK_INT(fm_consumer_delete_at_close(consumer, "else"), FM_OK);
    fm_consumer_want(consumer, FM_GOAL_CLOSED);
    step();
    expect_method(FM_METHOD_QUEUE_DELETE);
    expect_method(FM_METHOD_QUEUE_DELETE);
    expect_method(FM_METHOD_CHANNEL_CLOSE);
    deliver(1, "crossed the close"); /* and is the broker's again */
    /* No ack may follow the close: it would end the connection. */
    fm_consumer_ack(consumer, consumer->channel.generation, 1, false, true);
    flush();
    CHECK(line_is_silent(&wire));
    answer_all();
    expect_wait(FM_OK);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_BROKEN);
    CHECK_INT(consumer->intake_len, 0);
    tear_down();
}

/* The connection went after it was stopped, and with it the channel. */
static void
queues_are_deleted_on_a_new_channel_if_need_be(void)
{
    set_up(false);
    start();
    CHECK_INT(fm_consumer_delete_at_close(consumer, "one"), FM_OK);
    go_down();
    go_up();
    fm_consumer_want(consumer, FM_GOAL_CLOSED);
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_method(FM_METHOD_QUEUE_DELETE);
    expect_method(FM_METHOD_CHANNEL_CLOSE);
    expect_wait(FM_TIMED_OUT);
    answer_all();
    expect_wait(FM_OK);
    tear_down();
}

static void
goals_are_reached_without_a_connection(void)
{
    set_up(false);
    go_down();
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    step();
    expect_wait(FM_OK);
    fm_consumer_want(consumer, FM_GOAL_CLOSED);
    step();
    expect_wait(FM_OK);
    tear_down();
}

static void
a_first_refusal_is_an_error(void)
{
    fm_error error;

    set_up(false);
    step();
    CHECK_INT(
        feed_method(&consumer->channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_close(&consumer->channel, 403, "ACCESS_REFUSED"), FM_OK);
    CHECK_INT(fm_consumer_wait(consumer, fm_now(), &error), FM_REJECTED);
    CHECK_INT(error.code, 403);
    CHECK_HAS(error.text, "ACCESS_REFUSED");
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_BROKEN);
    CHECK_HAS(consumer->gate->error.text, "ACCESS_REFUSED");
    fm_consumer_want(consumer, FM_GOAL_CLOSED);
    step();
    expect_wait(FM_OK);
    tear_down();
}

/* Later the same is a mishap to be got over, with pauses that grow. */
static void
a_later_refusal_is_tried_again(void)
{
    int64_t now = fm_now(), pause = 0;

    set_up(false);
    start();
    for (int i = 0; i < 6; i++) {
        fm_deadline next;

        CHECK_INT(feed_close(&consumer->channel, 404, "NOT_FOUND"), FM_OK);
        CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
        expect_wait(FM_TIMED_OUT);
        consumer->stands_since = 0; /* it is long ago that it stood */
        now = fm_now();
        next = step_at(now);
        if (i == 0) {
            CHECK_INT(consumer->channel.state, FM_CHANNEL_BUSY); /* at once */
        } else {
            CHECK_INT(consumer->channel.state, FM_CHANNEL_CLOSED);
            CHECK(next > now && next - now <= 5 * FM_NS_PER_S);
            CHECK(next - now + FM_NS_PER_MS > pause);
            pause = next - now;
            (void)step_at(next);
            CHECK_INT(consumer->channel.state, FM_CHANNEL_BUSY);
        }
    }
    answer_all();
    expect_wait(FM_OK);
    tear_down();
}

/* Also when the broker takes it first and throws it out then. */
static void
a_consumer_that_does_not_stand_pauses_longer_and_longer(void)
{
    int64_t pause = -FM_NS_PER_S;

    set_up(false);
    for (int i = 0; i < 6; i++) {
        start();
        step();
        if (i == 5) /* it stood for a while */
            consumer->stands_since = 0;
        CHECK_INT(feed_close(&consumer->channel, 406, "x"), FM_OK);
        flush();
        expect_method(FM_METHOD_CHANNEL_CLOSE_OK);
        if (i < 5)
            CHECK(consumer->retry_at - fm_now() > pause);
        else
            CHECK(consumer->retry_at <= fm_now()); /* at once */
        pause = consumer->retry_at - fm_now();
        consumer->retry_at = 0; /* let it pass */
    }
    tear_down();
}

/* The next method is basic.consume, and its arguments end like this. */
static void
expect_arguments(const char *arguments, size_t len)
{
    fm_buf payload = { 0 };
    fm_frame frame;
    uint32_t id;

    line_take_frame(&wire, &frame, &payload);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
    CHECK_INT(id, FM_METHOD_BASIC_CONSUME);
    CHECK(frame.len > len);
    CHECK_BYTES(frame.payload + frame.len - len, len, arguments, len);
    fm_buf_fini(&payload);
}

/* Its consumer may have begun even so, and what came then is not to be missed:
 * "last", which is said at first, is no more than the last chunk. */
static void
where_a_stream_goes_on_is_known_without_an_answer(void)
{
    static const char last[] = "\x0fx-stream-offsetS\0\0\0\x04last";
    static const char since[] = "\x0fx-stream-offsetS\0\0\0\x02"
                                "2s";

    set_up_stream();
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    for (int attempt = 0; attempt <= 1; attempt++) {
        step();
        expect_method(FM_METHOD_CHANNEL_OPEN);
        expect_method(FM_METHOD_BASIC_QOS);
        expect_method(FM_METHOD_QUEUE_DECLARE);
        if (attempt == 0)
            expect_arguments(last, sizeof(last) - 1);
        else
            expect_arguments(since, sizeof(since) - 1);
        expect_method(FM_METHOD_BASIC_CONSUME);
        go_down();
        go_up();
    }
    tear_down();
}

/* Each time that it consumes: at first, and after it was cancelled. */
static void
failover_cancels_it_if_that_is_wanted(void)
{
    static const char none[] = "\0\0\0\0"; /* an empty table */
    static const char cancel[] = "\0\0\0\x1a\x17x-cancel-on-ha-failovert\1";

    for (int wanted = 0; wanted <= 1; wanted++) {
        const char *arguments = wanted ? cancel : none;
        size_t len = (wanted ? sizeof(cancel) : sizeof(none)) - 1;

        set_up(false);
        consumer->cancel_on_failover = wanted;
        fm_consumer_want(consumer, FM_GOAL_CONSUMING);
        step();
        expect_method(FM_METHOD_CHANNEL_OPEN);
        expect_method(FM_METHOD_BASIC_QOS);
        expect_method(FM_METHOD_QUEUE_DECLARE);
        expect_arguments(arguments, len);
        expect_arguments(arguments, len);
        answer_all();
        CHECK_INT(feed_cancel("2", true), FM_OK);
        step();
        expect_method(FM_METHOD_QUEUE_DECLARE);
        expect_arguments(arguments, len);
        answer_all();
        expect_wait(FM_OK);
        tear_down();
    }
}

static void
it_comes_back_with_the_connection(void)
{
    fm_delivery *old, *again;

    set_up(false);
    start();
    deliver(1, "taken");
    deliver(2, "not taken");
    old = take();
    go_down();
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
    CHECK(take() == NULL); /* it comes again */
    go_up();
    start();
    deliver(1, "again");
    again = take();
    CHECK(again != NULL && again->generation != old->generation);
    /* The same tag, but of a channel that is gone. */
    fm_consumer_ack(consumer, old->generation, 1, false, true);
    fm_consumer_reject(consumer, old->generation, 1, true);
    flush();
    CHECK(line_is_silent(&wire));
    fm_consumer_ack(consumer, again->generation, 1, false, true);
    flush();
    expect_method(FM_METHOD_BASIC_ACK);
    fm_delivery_free(old);
    fm_delivery_free(again);
    tear_down();
}

static void
a_cancelled_queue_is_declared_and_consumed_again(void)
{
    set_up(false);
    start();
    CHECK_INT(feed_cancel("2", true), FM_OK);
    step();
    expect_method(FM_METHOD_QUEUE_DECLARE);
    expect_method(FM_METHOD_BASIC_CONSUME); /* of one queue only */
    CHECK(line_is_silent(&wire));
    CHECK_INT(feed_cancel("1", false), FM_OK); /* the other, meanwhile */
    answer_all();
    step();
    expect_method(FM_METHOD_BASIC_CANCEL_OK);
    expect_method(FM_METHOD_QUEUE_DECLARE);
    expect_method(FM_METHOD_BASIC_CONSUME);
    answer_all();
    expect_wait(FM_OK);
    CHECK_INT(feed_cancel("3", true), FM_OK); /* none of ours */
    CHECK_INT(feed_cancel("", true), FM_OK);
    step();
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
a_cancelled_consumer_can_be_stopped(void)
{
    set_up(false);
    start();
    deliver(1, "x");
    CHECK_INT(feed_cancel("1", true), FM_OK);
    CHECK_INT(feed_cancel("2", true), FM_OK);
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    step();
    expect_wait(FM_OK);
    expect_method(FM_METHOD_BASIC_REJECT);
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
a_refused_login_fails_who_was_never_served(void)
{
    fm_error why = { .status = FM_REFUSED, .code = 403, .text = "no entry" };
    fm_error error;

    set_up(false);
    go_down();
    fm_consumer_refused(consumer, &why);
    CHECK_INT(fm_consumer_wait(consumer, fm_now(), &error), FM_REFUSED);
    CHECK_TEXT(error.text, "no entry");
    tear_down();
    set_up(false);
    start();
    go_down();
    fm_consumer_refused(consumer, &why); /* it waits for better times */
    expect_wait(FM_TIMED_OUT);
    go_up();
    start();
    tear_down();
}

static void
a_closed_bus_ends_every_wait(void)
{
    fm_delivery *delivery;

    set_up(false);
    start();
    deliver(1, "x");
    go_down();
    fm_consumer_abandon(consumer);
    expect_wait(FM_CLOSED);
    CHECK_INT(fm_consumer_take(consumer, 1, FM_NEVER, &delivery), FM_CLOSED);
    tear_down();
}

/* --- deliveries --- */

static void
deliveries_are_taken_in_order_and_in_batches(void)
{
    fm_delivery *first = NULL, *next;

    set_up(false);
    start();
    CHECK_INT(fm_consumer_take(consumer, 10, fm_now(), &first), FM_TIMED_OUT);
    for (uint64_t tag = 1; tag <= 5; tag++)
        deliver(tag, "x");
    CHECK_INT(fm_consumer_take(consumer, 3, fm_now(), &first), FM_OK);
    for (uint64_t tag = 1; tag <= 3; tag++) {
        CHECK_INT(first->deliver.delivery_tag, tag);
        CHECK_TEXT(fm_consumer_queue_of(consumer, first), "one");
        next = first->next;
        fm_delivery_free(first);
        first = next;
    }
    CHECK(first == NULL);
    CHECK_INT(consumer->intake_len, 2);
    CHECK_INT(fm_consumer_take(consumer, 10, fm_now(), &first), FM_OK);
    CHECK_INT(first->deliver.delivery_tag, 4);
    CHECK_INT(first->next->deliver.delivery_tag, 5);
    CHECK(first->next->next == NULL);
    fm_delivery_free(first->next);
    fm_delivery_free(first);
    CHECK_INT(consumer->intake_len, 0);
    deliver(6, "after the intake was empty");
    first = take();
    CHECK(first != NULL);
    fm_delivery_free(first);
    tear_down();
}

static void
duplicates_are_known_by_their_id(void)
{
    set_up(false);
    CHECK(!fm_consumer_has_seen(consumer, "a", 1));
    fm_consumer_remember(consumer, "a", 1);
    CHECK(fm_consumer_has_seen(consumer, "a", 1));
    CHECK(!fm_consumer_has_seen(consumer, "b", 1));
    CHECK_INT(consumer->duplicates, 1);
    tear_down();
}

static void
a_tag_of_no_queue_has_no_name(void)
{
    fm_delivery *delivery;

    set_up(false);
    start();
    CHECK_INT(feed_delivery(&consumer->channel, "2", 1, "x"), FM_OK);
    CHECK_INT(feed_delivery(&consumer->channel, "3", 2, "x"), FM_OK);
    CHECK_INT(feed_delivery(&consumer->channel, "", 3, "x"), FM_OK);
    CHECK_INT(feed_delivery(&consumer->channel, "0", 4, "x"), FM_OK);
    CHECK_INT(feed_delivery(&consumer->channel, "1x", 5, "x"), FM_OK);
    CHECK_INT(feed_delivery(&consumer->channel, "4294967297", 6, "x"), FM_OK);
    delivery = take();
    CHECK_TEXT(fm_consumer_queue_of(consumer, delivery), "two");
    fm_delivery_free(delivery);
    while ((delivery = take()) != NULL) {
        CHECK(fm_consumer_queue_of(consumer, delivery) == NULL);
        fm_delivery_free(delivery);
    }
    tear_down();
}

/* --- replies --- */

static void
print_reply(char *to, size_t size, const char *msg_id)
{
    snprintf(to, size,
        "{\"oslo.version\": \"2.0\", \"oslo.message\": \"{\\\"result\\\": 1, "
        "\\\"ending\\\": true, \\\"_msg_id\\\": \\\"%s\\\"}\"}",
        msg_id);
}

static void
replies_go_to_their_calls_and_are_acked_together(void)
{
    int64_t now = fm_now();
    fm_message *call;
    fm_deadline due;
    char body[300];

    set_up(true);
    start();
    CHECK_INT(fm_message_new(FM_LANE_RPC, "", "q", &call), FM_OK);
    snprintf(call->msg_id, sizeof(call->msg_id), "m1");
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    print_reply(body, sizeof(body), "m1");
    deliver(1, body);
    CHECK_INT(fm_message_status(call), FM_OK);
    CHECK(fm_reply_is_there(&table, call));
    due = step_at(now);
    CHECK(due > now && due < now + FM_NS_PER_S);
    CHECK(line_is_silent(&wire));
    print_reply(body, sizeof(body), "late");
    deliver(2, body);
    CHECK_INT(atomic_load(&table.late), 1);
    CHECK_INT(step_at(due), FM_NEVER);
    expect_method(FM_METHOD_BASIC_ACK);
    CHECK(line_is_silent(&wire)); /* one for both */
    for (uint64_t tag = 3; tag < 3 + 64; tag++)
        deliver(tag, body);
    flush();
    expect_method(FM_METHOD_BASIC_ACK);
    expect_method(FM_METHOD_BASIC_ACK);
    CHECK(line_is_silent(&wire));
    fm_reply_forget(&table, call);
    fm_message_unref(call);
    tear_down();
}

static void
what_cannot_be_read_waits_for_python(void)
{
    static const char *const odd[] = { "", "x", "{}", "[]", "null",
        "{\"oslo.version\": \"2.0\"}",
        "{\"oslo.version\": \"2.0\", \"oslo.message\": \"{}\"}",
        "{\"oslo.version\": \"3.0\", \"oslo.message\": \"{\\\"_msg_id\\\": "
        "\\\"a\\\"}\"}" };
    size_t count = sizeof(odd) / sizeof(*odd);
    int64_t now = fm_now();
    fm_delivery *first, *next;

    set_up(true);
    start();
    for (size_t i = 0; i < count; i++)
        deliver(i + 1, odd[i]);
    CHECK(step_at(now) < now + FM_NS_PER_S);
    CHECK_INT(step_at(now + FM_NS_PER_S), FM_NEVER);
    expect_method(FM_METHOD_BASIC_ACK);
    CHECK(line_is_silent(&wire)); /* acked like the others */

    /* The broker has them no more, so they outlive the connection. */
    go_down();
    CHECK_INT(fm_consumer_take(consumer, count + 1, now, &first), FM_OK);
    for (size_t i = 0; i < count; i++, first = next) {
        CHECK(first != NULL);
        CHECK_INT(first->generation, 0);
        CHECK_BYTES(first->body.data, first->body.len, odd[i], strlen(odd[i]));
        CHECK_INT(
            fm_consumer_deliver_reply(consumer, &first->body), FM_BAD_MESSAGE);
        next = first->next;
        fm_delivery_free(first);
    }
    CHECK(first == NULL);
    CHECK_INT(fm_counter_get(&consumer->rejected), 0);
    tear_down();
}

static void
a_reply_that_was_read_elsewhere_ends_its_call(void)
{
    /* In the binary envelope, whatever it was read from. */
    static const char first[] = "\x82\xa6"
                                "ending\xc3\xa7_msg_id\xa2m1";
    static const char late[] = "\x82\xa6"
                               "ending\xc3\xa7_msg_id\xa4late";
    fm_buf body = { 0 };
    fm_message *call;
    fm_reply *reply;

    set_up(true);
    start();
    CHECK_INT(fm_message_new(FM_LANE_RPC, "", "q", &call), FM_OK);
    snprintf(call->msg_id, sizeof(call->msg_id), "m1");
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    CHECK_INT(fm_buf_append(&body, first, sizeof(first) - 1), FM_OK);
    CHECK_INT(fm_consumer_deliver_reply(consumer, &body), FM_OK);
    CHECK_INT(fm_message_status(call), FM_OK);
    reply = fm_reply_try_take(&table, call);
    CHECK(reply != NULL && reply->is_msgpack && reply->ending);
    fm_reply_free(reply);
    fm_buf_fini(&body);
    body = (fm_buf){ 0 };
    CHECK_INT(fm_buf_append(&body, late, sizeof(late) - 1), FM_OK);
    CHECK_INT(fm_consumer_deliver_reply(consumer, &body), FM_NOT_FOUND);
    fm_buf_fini(&body);
    fm_reply_forget(&table, call);
    fm_message_unref(call);
    tear_down();
}

static void
too_many_that_cannot_be_read_are_dropped(void)
{
    set_up(true);
    start();
    for (uint64_t tag = 1; tag <= 1024 + 3; tag++)
        deliver(tag, "x");
    CHECK_INT(fm_counter_get(&consumer->rejected), 3);
    tear_down();
}

/* --- takers and settlers beside an I/O thread whose connection goes --- */

enum { TAKERS = 4 };

static atomic_bool enough;
static atomic_int taken;

static void *
take_often(void *arg)
{
    while (!atomic_load(&enough)) {
        fm_delivery *first = NULL, *next;

        if (fm_consumer_take(
                consumer, 3, fm_deadline_in(10 * FM_NS_PER_MS), &first)
            != FM_OK)
            continue;
        for (; first != NULL; first = next) {
            next = first->next;
            if (first->deliver.delivery_tag % 5 == 0)
                fm_consumer_reject(consumer, first->generation,
                    first->deliver.delivery_tag, true);
            else
                fm_consumer_ack(consumer, first->generation,
                    first->deliver.delivery_tag, false, true);
            fm_delivery_free(first);
            atomic_fetch_add(&taken, 1);
        }
    }
    return arg;
}

/* Everything that is acked was delivered on this very channel, and is acked
 * once: a real broker would end the connection. */
static void
check_settled(uint64_t delivered)
{
    static bool settled[1000];
    fm_buf payload = { 0 };

    memset(settled, 0, sizeof(settled));
    while (wire.got.len > 0 || line_read(&wire, 0)) {
        fm_frame frame;
        uint32_t id;
        uint64_t tag;
        size_t used;

        if (fm_frame_split(
                wire.got.data, wire.got.len, FM_FRAME_MAX_MOST, &frame, &used)
            != FM_OK) {
            if (!line_read(&wire, 0))
                break; /* the rest was not sent, and never will be */
            continue;
        }
        CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
        if (id == FM_METHOD_BASIC_ACK || id == FM_METHOD_BASIC_REJECT) {
            tag = fm_load_u64(frame.payload + 4);
            CHECK(tag >= 1 && tag <= delivered && !settled[tag]);
            settled[tag] = true;
        }
        fm_buf_consume(&wire.got, used);
    }
    fm_buf_fini(&payload);
}

/* A taker that sends for itself may not be through with it. */
static void
await_takers_who_send(void)
{
    bool sending;

    do {
        fm_mutex_lock(&output.lock);
        sending = output.flushing;
        fm_mutex_unlock(&output.lock);
    } while (sending);
}

static void
nothing_is_settled_on_the_wrong_channel(void)
{
    fm_thread takers[TAKERS];

    set_up(false);
    for (int i = 0; i < TAKERS; i++)
        CHECK_INT(
            fm_thread_start(&takers[i], "taker", take_often, NULL), FM_OK);
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    srand(5);
    for (int round = 0; round < 300; round++) {
        uint64_t tag = 0;

        step();
        answer_all();
        for (int turn = rand() % 20; turn >= 0; turn--) {
            fm_error error = { .status = FM_OK };
            bool want_room;

            for (int i = rand() % 30; i >= 0; i--)
                deliver(++tag, "x");
            CHECK_INT(
                fm_output_before_sleep(&output, &want_room, &error), FM_OK);
            usleep((useconds_t)(rand() % 200)); /* now they send themselves */
            fm_output_after_sleep(&output, true);
        }
        check_settled(tag);
        if (round % 3 == 0) { /* the channel alone */
            CHECK_INT(feed_close(&consumer->channel, 406, "x"), FM_OK);
            await_takers_who_send();
            flush();
            await_takers_who_send();
            consumer->retry_at = 0;
            check_settled(tag); /* those that were on their way */
        } else {
            go_down();
            go_up();
        }
    }
    atomic_store(&enough, true);
    for (int i = 0; i < TAKERS; i++)
        fm_thread_join(&takers[i]);
    CHECK(atomic_load(&taken) > 1000);
    tear_down();
}

int
main(void)
{
    RUN(it_declares_first_and_consumes_when_asked);
    RUN(stopping_gives_back_what_was_not_taken);
    RUN(what_a_stream_delivered_is_never_rejected);
    RUN(where_a_stream_goes_on_is_known_without_an_answer);
    RUN(closing_deletes_what_it_was_told_to);
    RUN(queues_are_deleted_on_a_new_channel_if_need_be);
    RUN(goals_are_reached_without_a_connection);
    RUN(a_first_refusal_is_an_error);
    RUN(a_later_refusal_is_tried_again);
    RUN(a_consumer_that_does_not_stand_pauses_longer_and_longer);
    RUN(failover_cancels_it_if_that_is_wanted);
    RUN(it_comes_back_with_the_connection);
    RUN(a_cancelled_queue_is_declared_and_consumed_again);
    RUN(a_cancelled_consumer_can_be_stopped);
    RUN(a_refused_login_fails_who_was_never_served);
    RUN(a_closed_bus_ends_every_wait);
    RUN(deliveries_are_taken_in_order_and_in_batches);
    RUN(duplicates_are_known_by_their_id);
    RUN(a_tag_of_no_queue_has_no_name);
    RUN(replies_go_to_their_calls_and_are_acked_together);
    RUN(what_cannot_be_read_waits_for_python);
    RUN(a_reply_that_was_read_elsewhere_ends_its_call);
    RUN(too_many_that_cannot_be_read_are_dropped);
    RUN(nothing_is_settled_on_the_wrong_channel);
    return 0;
}
