/* io/publish.h without a broker: this thread is the I/O thread, and plays
 * the broker at the other end of the line.
 */
#include "io/publish.h"

#include "io/gate.h"
#include "line.h"

#include <stdlib.h>

static fm_waker waker;
static fm_output output;
static fm_publisher publisher;
static line wire;
static uint64_t epoch;

static const fm_error lost = { .status = FM_DISCONNECTED, .text = "lost" };

/* --- the I/O thread's part --- */

static void
flush(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
    fm_output_after_sleep(&output, true);
}

static void
step(void)
{
    (void)fm_publisher_step(&publisher, fm_now());
    flush();
}

static void
go_up(void)
{
    line_open(&wire);
    fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, ++epoch);
    fm_publisher_up(&publisher, fm_now());
    step();
}

static void
go_down(const fm_error *why)
{
    struct pollfd look = { .fd = waker.fd, .events = POLLIN };

    fm_publisher_down(&publisher, why);
    while (!fm_output_try_quiet(&output)) { /* the last writer wakes us */
        CHECK_INT(poll(&look, 1, 10 * 1000), 1);
        fm_waker_drain(&waker);
    }
    fm_output_down(&output);
    line_close(&wire);
}

static void
set_up(void)
{
    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_publisher_init(&publisher, &output);
    go_up();
}

static void
tear_down(void)
{
    fm_publisher_close(&publisher);
    go_down(&lost);
    fm_publisher_fini(&publisher);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
}

/* --- the broker's part --- */

static fm_channel *
channel_of(fm_lane lane)
{
    return fm_publisher_channel(&publisher, (uint16_t)(lane + 1));
}

static void
expect_method(uint32_t id, uint16_t channel)
{
    uint16_t on = 0;

    CHECK_INT(line_take_method(&wire, &on), id);
    CHECK_INT(on, channel);
}

/* Let a lane have its channel. */
static void
grant_lane(fm_lane lane)
{
    fm_channel *channel = channel_of(lane);

    step();
    expect_method(FM_METHOD_CHANNEL_OPEN, channel->id);
    expect_method(FM_METHOD_CONFIRM_SELECT, channel->id);
    CHECK_INT(feed_method(channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_method(channel, FM_METHOD_CONFIRM_SELECT_OK), FM_OK);
    flush();
}

/* The body of the next message that was published on a channel. */
static void
expect_published(fm_lane lane, const char *body)
{
    fm_buf payload = { 0 };
    fm_frame frame;

    expect_method(FM_METHOD_BASIC_PUBLISH, (uint16_t)(lane + 1));
    do {
        line_take_frame(&wire, &frame, &payload);
    } while (frame.type != FM_FRAME_BODY);
    CHECK_BYTES(frame.payload, frame.len, body, strlen(body));
    fm_buf_fini(&payload);
}

static void
confirm(fm_lane lane, uint64_t tag, bool multiple)
{
    CHECK_INT(
        feed_confirm(channel_of(lane), FM_METHOD_BASIC_ACK, tag, multiple),
        FM_OK);
    flush();
}

/* --- messages --- */

static fm_message *
new_message(fm_lane lane, const char *exchange, const char *body)
{
    fm_message *message;

    CHECK_INT(fm_message_new(lane, exchange, "key", &message), FM_OK);
    CHECK_INT(fm_buf_append(&message->body, body, strlen(body)), FM_OK);
    return message;
}

static fm_message *
submit(fm_message *message)
{
    CHECK_INT(fm_publisher_submit(&publisher, message), FM_OK);
    return message;
}

static fm_message *
submit_new(const char *body)
{
    return submit(new_message(FM_LANE_RPC, "", body));
}

static void
expect_end(fm_message *message, fm_status status)
{
    CHECK_INT(fm_message_status(message), status);
    CHECK_INT(message->place, FM_PLACE_CALLER);
    CHECK_INT(atomic_load(&message->refs), 1);
    fm_message_unref(message);
}

/* --- sending and confirms --- */

static void
the_first_message_opens_its_lane(void)
{
    fm_message *one, *two;

    set_up();
    CHECK(line_is_silent(&wire));
    CHECK(!fm_publisher_is_wanted(&publisher));
    one = submit_new("one");
    two = submit_new("two");
    CHECK(fm_publisher_is_wanted(&publisher));
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "one");
    expect_published(FM_LANE_RPC, "two");
    CHECK(line_is_silent(&wire));
    confirm(FM_LANE_RPC, 1, false);
    expect_end(one, FM_OK);
    CHECK_INT(fm_message_status(two), FM_AGAIN);
    confirm(FM_LANE_RPC, 2, false);
    expect_end(two, FM_OK);
    tear_down();
}

static void
one_confirm_may_settle_many(void)
{
    fm_message *messages[10];

    set_up();
    for (int i = 0; i < 10; i++)
        messages[i] = submit_new("x");
    grant_lane(FM_LANE_RPC);
    confirm(FM_LANE_RPC, 3, false);
    confirm(FM_LANE_RPC, 5, true);
    for (int i = 0; i < 5; i++)
        expect_end(messages[i], FM_OK);
    CHECK_INT(fm_message_status(messages[5]), FM_AGAIN);
    confirm(FM_LANE_RPC, 3, true); /* again: nothing more */
    confirm(FM_LANE_RPC, 0, true); /* all there are */
    for (int i = 5; i < 10; i++)
        expect_end(messages[i], FM_OK);
    tear_down();
}

static void
a_confirm_of_what_was_never_sent_ends_the_connection(void)
{
    fm_message *message;

    set_up();
    message = submit_new("x");
    grant_lane(FM_LANE_RPC);
    CHECK_INT(
        feed_confirm(channel_of(FM_LANE_RPC), FM_METHOD_BASIC_ACK, 2, false),
        FM_BAD_FRAME);
    CHECK_INT(feed_confirm(channel_of(FM_LANE_RPC), FM_METHOD_BASIC_NACK,
                  UINT64_MAX, true),
        FM_BAD_FRAME);
    CHECK_INT(feed_method(channel_of(FM_LANE_RPC), FM_METHOD_BASIC_QOS_OK),
        FM_BAD_FRAME);
    CHECK_INT(fm_message_status(message), FM_AGAIN);
    fm_publisher_close(&publisher);
    expect_end(message, FM_CLOSED);
    tear_down();
}

static void
nack(uint64_t tag)
{
    CHECK_INT(
        feed_confirm(channel_of(FM_LANE_RPC), FM_METHOD_BASIC_NACK, tag, false),
        FM_OK);
}

/* Let the pause of the one that is parked be over. */
static void
end_pause(void)
{
    CHECK(publisher.handed.parked != NULL);
    CHECK(publisher.handed.parked->due > fm_now());
    CHECK(fm_publisher_step(&publisher, fm_now())
        == publisher.handed.parked->due);
    publisher.handed.parked->due = 0;
    step();
}

static void
a_nack_fails_what_may_not_be_tried_again(void)
{
    fm_message *message = new_message(FM_LANE_RPC, "", "x");

    message->retry = 1;
    set_up();
    submit(message);
    grant_lane(FM_LANE_RPC);
    nack(1);
    end_pause();
    CHECK_INT(fm_message_status(message), FM_AGAIN);
    nack(2);
    CHECK_HAS(message->error.text, "nack");
    expect_end(message, FM_NACKED);
    tear_down();
}

/* A quorum queue refuses until it has a leader again. */
static void
a_nacked_message_is_sent_again_while_its_sender_waits(void)
{
    fm_message *message;
    fm_error error;

    set_up();
    message = submit_new("refused");
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "refused");
    for (uint64_t tag = 1; tag <= 3; tag++) {
        nack(tag);
        CHECK_INT(message->place, FM_PLACE_PARKED);
        fm_publisher_explain(&publisher, message, &error);
        CHECK_HAS(error.text, "nack");
        end_pause();
        expect_published(FM_LANE_RPC, "refused");
    }
    confirm(FM_LANE_RPC, 4, false);
    expect_end(message, FM_OK);

    /* For as long as its sender waits, and at most four seconds apart. */
    message = submit_new("refused for good");
    for (uint64_t tag = 5; tag <= 30; tag++) {
        nack(tag);
        CHECK_INT(message->place, FM_PLACE_PARKED);
        CHECK(message->due - fm_now() <= 4 * FM_NS_PER_S);
        end_pause();
        expect_published(FM_LANE_RPC, "refused for good");
        fm_publisher_explain(&publisher, message, &error);
        CHECK_HAS(error.text, "nack");
    }
    fm_publisher_cancel(&publisher, message);
    nack(31);
    CHECK_INT(message->place, FM_PLACE_CALLER);
    fm_message_unref(message);
    tear_down();
}

/* A lane that has got its channel, and has refused `body` there for so long
 * that it wants another one. */
static fm_message *
submit_refused(const char *body)
{
    fm_message *message = submit_new(body);

    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, body);
    nack(1);
    publisher.lanes[FM_LANE_RPC].refuses_since -= 250 * FM_NS_PER_MS;
    end_pause();
    expect_published(FM_LANE_RPC, body);
    return message;
}

static void
a_channel_that_goes_on_refusing_is_opened_anew(void)
{
    fm_channel *channel = channel_of(FM_LANE_RPC);
    fm_message *refused, *other, *later;

    set_up();
    refused = submit_refused("refused");
    other = submit_new("other");
    flush();
    expect_published(FM_LANE_RPC, "other");
    nack(2);
    later = submit_new("later");
    step();
    CHECK(line_is_silent(&wire)); /* until the other one is settled */
    confirm(FM_LANE_RPC, 3, false);
    expect_end(other, FM_OK);
    step();
    expect_method(FM_METHOD_CHANNEL_CLOSE, channel->id);
    step();
    CHECK(line_is_silent(&wire));
    CHECK_INT(feed_method(channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "later");
    end_pause();
    expect_published(FM_LANE_RPC, "refused");
    confirm(FM_LANE_RPC, 2, true);
    expect_end(later, FM_OK);
    expect_end(refused, FM_OK);

    /* Not more than once a second. */
    refused = submit_new("again");
    flush();
    expect_published(FM_LANE_RPC, "again");
    nack(3);
    publisher.lanes[FM_LANE_RPC].refuses_since -= 250 * FM_NS_PER_MS;
    end_pause();
    expect_published(FM_LANE_RPC, "again");
    nack(4);
    end_pause();
    expect_published(FM_LANE_RPC, "again");
    publisher.lanes[FM_LANE_RPC].renewed -= 2 * FM_NS_PER_S;
    nack(5);
    step();
    expect_method(FM_METHOD_CHANNEL_CLOSE, channel->id);
    fm_publisher_close(&publisher);
    expect_end(refused, FM_CLOSED);
    tear_down();
}

static void
what_is_not_confirmed_there_is_sent_a_second_time(void)
{
    fm_channel *channel = channel_of(FM_LANE_RPC);
    fm_message *refused, *stuck;
    fm_deadline by;

    set_up();
    refused = submit_refused("refused");
    stuck = submit_new("stuck");
    flush();
    expect_published(FM_LANE_RPC, "stuck");
    nack(2);
    by = publisher.lanes[FM_LANE_RPC].renew_by;
    CHECK(by - fm_now() <= FM_NS_PER_S);
    refused->due = FM_NEVER; /* out of the way */
    CHECK(fm_publisher_step(&publisher, by - 1) == by);
    flush();
    CHECK(line_is_silent(&wire));
    (void)fm_publisher_step(&publisher, by);
    flush();
    expect_method(FM_METHOD_CHANNEL_CLOSE, channel->id);
    CHECK_INT(feed_method(channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "stuck");
    confirm(FM_LANE_RPC, 1, false);
    expect_end(stuck, FM_OK);
    fm_publisher_close(&publisher);
    expect_end(refused, FM_CLOSED);
    tear_down();
}

/* Both sides close at once, or the connection goes meanwhile. */
static void
a_renewal_may_be_overtaken(void)
{
    fm_channel *channel = channel_of(FM_LANE_RPC);
    fm_message *refused;

    for (int i = 0; i < 2; i++) {
        set_up();
        refused = submit_refused("refused");
        nack(2);
        step();
        expect_method(FM_METHOD_CHANNEL_CLOSE, channel->id);
        if (i == 0) {
            CHECK_INT(feed_close(channel, 406, "x"), FM_OK);
            flush();
            expect_method(FM_METHOD_CHANNEL_CLOSE_OK, channel->id);
            CHECK_INT(feed_method(channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
        } else {
            go_down(&lost);
            go_up();
        }
        refused->due = 0;
        grant_lane(FM_LANE_RPC);
        expect_published(FM_LANE_RPC, "refused");
        confirm(FM_LANE_RPC, 1, false);
        expect_end(refused, FM_OK);
        tear_down();
    }
}

static void
a_nacked_reply_is_tried_again_like_a_returned_one(void)
{
    fm_message *reply = new_message(FM_LANE_RPC, "", "reply");

    reply->handed_over = true;
    reply->give_up = fm_deadline_in(60 * FM_NS_PER_S);
    set_up();
    submit(reply);
    grant_lane(FM_LANE_RPC);
    nack(1);
    CHECK_INT(publisher.handed.count, 0);
    end_pause();
    CHECK_INT(publisher.handed.count, 1);
    confirm(FM_LANE_RPC, 2, false);
    CHECK_INT(publisher.handed.count, 0);
    expect_end(reply, FM_OK);
    tear_down();
}

static void
a_nacked_message_can_be_given_up(void)
{
    fm_message *message, *other;

    set_up();
    message = submit_new("x");
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "x");
    nack(1);
    fm_publisher_cancel(&publisher, message);
    end_pause();
    CHECK(line_is_silent(&wire));
    expect_end(message, FM_AGAIN); /* its caller knows */

    other = submit_new("other");
    nack(2);
    fm_publisher_close(&publisher);
    expect_end(other, FM_CLOSED);
    CHECK_INT(publisher.handed.bytes, 0);
    tear_down();
}

static void
a_return_finds_its_message_by_names_and_body(void)
{
    fm_message *messages[4];
    fm_buf method = { 0 };

    set_up();
    for (int i = 0; i < 4; i++) {
        /* 0 differs in its key, 1 may be dropped, 2 is the one. */
        CHECK_INT(fm_message_new(
                      FM_LANE_RPC, "e", i == 0 ? "other" : "key", &messages[i]),
            FM_OK);
        CHECK_INT(fm_buf_append(&messages[i]->body, "same", 4), FM_OK);
        messages[i]->mandatory = i != 1;
        submit(messages[i]);
    }
    grant_lane(FM_LANE_RPC);
    build_return(&method, "e", "key");
    CHECK_INT(feed_content(channel_of(FM_LANE_RPC), &method, "same"), FM_OK);
    CHECK_INT(feed_content(channel_of(FM_LANE_RPC), &method, "unknown"), FM_OK);
    confirm(FM_LANE_RPC, 4, true);
    CHECK_INT(messages[2]->error.code, 312);
    for (int i = 0; i < 4; i++)
        expect_end(messages[i], i == 2 ? FM_RETURNED : FM_OK);
    fm_buf_fini(&method);
    tear_down();
}

static void
an_empty_message_can_be_returned(void)
{
    fm_message *message = new_message(FM_LANE_RPC, "e", "");
    fm_buf method = { 0 };

    set_up();
    message->mandatory = true;
    submit(message);
    grant_lane(FM_LANE_RPC);
    build_return(&method, "e", "key");
    CHECK_INT(feed_content(channel_of(FM_LANE_RPC), &method, ""), FM_OK);
    confirm(FM_LANE_RPC, 1, false);
    expect_end(message, FM_RETURNED);
    fm_buf_fini(&method);
    tear_down();
}

static void
a_message_that_was_given_up_is_not_sent(void)
{
    fm_message *one, *two;

    set_up();
    one = submit_new("one");
    two = submit_new("two");
    fm_publisher_cancel(&publisher, one);
    fm_publisher_cancel(&publisher, one); /* twice is once */
    expect_end(one, FM_AGAIN);
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "two");
    fm_publisher_cancel(&publisher, two); /* too late */
    CHECK_INT(atomic_load(&two->refs), 2);
    confirm(FM_LANE_RPC, 1, false);
    expect_end(two, FM_AGAIN);
    tear_down();
}

static void
the_window_of_notifications_is_bounded(void)
{
    fm_message *messages[300];

    set_up();
    for (int i = 0; i < 300; i++)
        messages[i] = submit(new_message(FM_LANE_NOTIFY, "", "n"));
    grant_lane(FM_LANE_NOTIFY);
    CHECK_INT(publisher.lanes[FM_LANE_NOTIFY].in_flight, 256);
    confirm(FM_LANE_NOTIFY, 10, true);
    CHECK_INT(publisher.lanes[FM_LANE_NOTIFY].in_flight, 256);
    CHECK_INT(publisher.lanes[FM_LANE_NOTIFY].unsent, 34);
    confirm(FM_LANE_NOTIFY, 0, true);
    confirm(FM_LANE_NOTIFY, 0, true);
    for (int i = 0; i < 300; i++)
        expect_end(messages[i], FM_OK);
    tear_down();
}

static void
an_alarm_holds_what_is_not_sent_yet(void)
{
    static const uint8_t why[] = "low on memory";
    fm_message *one, *two;

    set_up();
    one = submit_new("one");
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "one");
    fm_publisher_set_blocked(&publisher, true, (fm_slice){ why, 13 });
    two = submit_new("two");
    step();
    CHECK(line_is_silent(&wire));
    confirm(FM_LANE_RPC, 1, false);
    expect_end(one, FM_OK);
    fm_publisher_set_blocked(&publisher, false, (fm_slice){ NULL, 0 });
    flush();
    expect_published(FM_LANE_RPC, "two");
    confirm(FM_LANE_RPC, 2, false);
    expect_end(two, FM_OK);
    tear_down();
}

/* --- declarations and gates --- */

static fm_topology *
new_topology(const char *queue)
{
    fm_queue declared = { .name = queue };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &declared), FM_OK);
    return topology;
}

static fm_message *
submit_with(fm_topology *topology, const char *body)
{
    fm_message *message = new_message(FM_LANE_RPC, "", body);

    message->topology = fm_topology_ref(topology);
    return submit(message);
}

static void
what_needs_a_declaration_waits_for_it(void)
{
    fm_topology *topology = new_topology("q");
    fm_channel *declarer;
    fm_message *needy, *other;

    set_up();
    declarer = fm_publisher_channel(&publisher, FM_DECLARER_ID);
    needy = submit_with(topology, "needy");
    other = submit_new("other");
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "other");
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN, FM_DECLARER_ID);
    expect_method(FM_METHOD_QUEUE_DECLARE, FM_DECLARER_ID);
    CHECK(line_is_silent(&wire));
    CHECK_INT(feed_method(declarer, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_method(declarer, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    flush();
    expect_published(FM_LANE_RPC, "needy");
    confirm(FM_LANE_RPC, 2, true);
    expect_end(needy, FM_OK);
    expect_end(other, FM_OK);
    /* Once for each connection. */
    needy = submit_with(topology, "again");
    flush();
    expect_published(FM_LANE_RPC, "again");
    go_down(&lost);
    go_up();
    grant_lane(FM_LANE_RPC);
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN, FM_DECLARER_ID);
    expect_method(FM_METHOD_QUEUE_DECLARE, FM_DECLARER_ID);
    fm_publisher_close(&publisher);
    expect_end(needy, FM_CLOSED);
    tear_down();
    fm_topology_unref(topology);
}

static void
a_refused_declaration_fails_what_needs_it(void)
{
    fm_topology *topology = new_topology("q"), *second = new_topology("r");
    fm_channel *declarer;
    fm_message *one, *two;

    set_up();
    declarer = fm_publisher_channel(&publisher, FM_DECLARER_ID);
    one = submit_with(topology, "one");
    two = submit_with(second, "two");
    grant_lane(FM_LANE_RPC);
    step();
    expect_method(FM_METHOD_CHANNEL_OPEN, FM_DECLARER_ID);
    expect_method(FM_METHOD_QUEUE_DECLARE, FM_DECLARER_ID);
    CHECK_INT(feed_method(declarer, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_close(declarer, 406, "PRECONDITION_FAILED"), FM_OK);
    CHECK_INT(one->error.code, 406);
    CHECK_HAS(one->error.text, "PRECONDITION_FAILED");
    expect_end(one, FM_REJECTED);
    step(); /* the next one, on a new channel */
    expect_method(FM_METHOD_CHANNEL_CLOSE_OK, FM_DECLARER_ID);
    expect_method(FM_METHOD_CHANNEL_OPEN, FM_DECLARER_ID);
    expect_method(FM_METHOD_QUEUE_DECLARE, FM_DECLARER_ID);
    CHECK_INT(feed_method(declarer, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_method(declarer, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    flush();
    expect_published(FM_LANE_RPC, "two");
    confirm(FM_LANE_RPC, 1, true);
    expect_end(two, FM_OK);
    tear_down();
    fm_topology_unref(topology);
    fm_topology_unref(second);
}

static void
a_gate_holds_its_messages_only(void)
{
    fm_message *held = new_message(FM_LANE_RPC, "", "held");
    fm_message *hopeless = new_message(FM_LANE_RPC, "", "hopeless");
    fm_message *free_one;

    set_up();
    CHECK_INT(fm_gate_new(&held->gate), FM_OK);
    CHECK_INT(fm_gate_new(&hopeless->gate), FM_OK);
    submit(held);
    submit(hopeless);
    free_one = submit_new("free");
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "free");
    CHECK(line_is_silent(&wire));
    (void)fm_error_set(&hopeless->gate->error, FM_REJECTED, 404, "gone");
    fm_gate_set(hopeless->gate, FM_GATE_BROKEN);
    fm_gate_set(held->gate, FM_GATE_OPEN);
    step();
    expect_published(FM_LANE_RPC, "held");
    CHECK_HAS(hopeless->error.text, "gone");
    expect_end(hopeless, FM_REJECTED);
    confirm(FM_LANE_RPC, 0, true);
    expect_end(held, FM_OK);
    expect_end(free_one, FM_OK);
    tear_down();
}

/* --- order, while what is waited for comes true --- */

enum { RACES = 400, IN_A_RACE = 60 };

static fm_message *racers[IN_A_RACE];

/* Whatever came true in the middle: they arrive as they were submitted. */
static void
expect_racers_in_order(void)
{
    step();
    for (int i = 0; i < IN_A_RACE; i++) {
        char body[16];

        snprintf(body, sizeof(body), "%d", i);
        expect_published(FM_LANE_RPC, body);
    }
    confirm(FM_LANE_RPC, 0, true);
    for (int i = 0; i < IN_A_RACE; i++)
        expect_end(racers[i], FM_OK);
}

static void
submit_racer(int number, fm_gate *gate, fm_topology *topology)
{
    char body[16];

    snprintf(body, sizeof(body), "%d", number);
    racers[number] = new_message(FM_LANE_RPC, "", body);
    if (gate != NULL)
        racers[number]->gate = fm_gate_ref(gate);
    if (topology != NULL)
        racers[number]->topology = fm_topology_ref(topology);
    submit(racers[number]);
}

/* Have the lane open before the race. */
static void
open_lane(void)
{
    fm_message *first = submit_new("first");

    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "first");
    confirm(FM_LANE_RPC, 1, false);
    expect_end(first, FM_OK);
}

static void *
open_gate(void *arg)
{
    for (int spin = rand() % 3000; spin > 0; spin--)
        (void)fm_now();
    fm_gate_set(arg, FM_GATE_OPEN);
    return NULL;
}

static void
a_gate_that_opens_lets_nobody_overtake(void)
{
    fm_thread io;
    fm_gate *gate;

    set_up();
    open_lane();
    for (int race = 0; race < RACES; race++) {
        CHECK_INT(fm_gate_new(&gate), FM_OK);
        CHECK_INT(fm_thread_start(&io, "io", open_gate, gate), FM_OK);
        for (int i = 0; i < IN_A_RACE; i++)
            submit_racer(i, gate, NULL);
        fm_thread_join(&io);
        expect_racers_in_order();
        fm_gate_unref(gate);
    }
    tear_down();
}

static void *
declare(void *arg)
{
    for (int spin = rand() % 3000; spin > 0; spin--)
        (void)fm_now();
    CHECK_INT(feed_method(arg, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    return NULL;
}

static void
a_declaration_that_is_made_lets_nobody_overtake(void)
{
    fm_channel *declarer;
    fm_thread io;

    set_up();
    declarer = fm_publisher_channel(&publisher, FM_DECLARER_ID);
    open_lane();
    for (int race = 0; race < RACES; race++) {
        fm_topology *topology = new_topology("q");

        submit_racer(0, NULL, topology);
        step();
        if (race == 0) {
            expect_method(FM_METHOD_CHANNEL_OPEN, FM_DECLARER_ID);
            CHECK_INT(feed_method(declarer, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
        }
        expect_method(FM_METHOD_QUEUE_DECLARE, FM_DECLARER_ID);
        CHECK_INT(fm_thread_start(&io, "io", declare, declarer), FM_OK);
        for (int i = 1; i < IN_A_RACE; i++)
            submit_racer(i, NULL, topology);
        fm_thread_join(&io);
        expect_racers_in_order();
        fm_topology_unref(topology);
    }
    tear_down();
}

/* --- losses --- */

static void
a_lost_connection_is_borne_as_often_as_allowed(void)
{
    fm_message *none = new_message(FM_LANE_RPC, "", "none");
    fm_message *one = new_message(FM_LANE_RPC, "", "one");
    fm_message *ever = new_message(FM_LANE_RPC, "", "ever");

    set_up();
    none->retry = 0;
    one->retry = 1;
    submit(none);
    submit(one);
    submit(ever);
    grant_lane(FM_LANE_RPC);
    go_down(&lost);
    CHECK_HAS(none->error.text, "lost");
    expect_end(none, FM_DISCONNECTED);
    go_up();
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "one");
    expect_published(FM_LANE_RPC, "ever");
    go_down(&lost);
    expect_end(one, FM_DISCONNECTED);
    for (int i = 0; i < 5; i++)
        fm_publisher_round_failed(&publisher, &lost);
    go_up();
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "ever");
    confirm(FM_LANE_RPC, 1, false);
    expect_end(ever, FM_OK);
    tear_down();
}

static void
what_was_in_flight_goes_first_when_the_connection_is_back(void)
{
    fm_message *messages[6];
    char body[2] = "0";

    set_up();
    for (int i = 0; i < 4; i++) {
        body[0] = (char)('0' + i);
        messages[i] = submit_new(body);
    }
    grant_lane(FM_LANE_RPC);
    confirm(FM_LANE_RPC, 2, false);
    expect_end(messages[1], FM_OK);
    fm_publisher_cancel(&publisher, messages[2]);
    go_down(&lost);
    expect_end(messages[2], FM_AGAIN);
    for (int i = 4; i < 6; i++) {
        body[0] = (char)('0' + i);
        messages[i] = submit_new(body);
    }
    go_up();
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "0");
    expect_published(FM_LANE_RPC, "3");
    expect_published(FM_LANE_RPC, "4");
    expect_published(FM_LANE_RPC, "5");
    confirm(FM_LANE_RPC, 0, true);
    expect_end(messages[0], FM_OK);
    for (int i = 3; i < 6; i++)
        expect_end(messages[i], FM_OK);
    tear_down();
}

/* A message that makes the broker throw us out each time (501, say) may not
 * do so for ever. */
static void
a_message_that_ends_connections_is_given_up(void)
{
    fm_error hard = {
        .status = FM_DISCONNECTED, .code = 501, .text = "FRAME_ERROR"
    };
    fm_message *innocent, *guilty;
    int rounds = 0;

    set_up();
    innocent = submit_new("innocent");
    guilty = submit_new("guilty");
    while (fm_message_status(guilty) == FM_AGAIN) {
        CHECK(++rounds < 10);
        grant_lane(FM_LANE_RPC);
        if (fm_message_status(innocent) == FM_AGAIN) {
            expect_published(FM_LANE_RPC, "innocent");
            if (rounds > 1) { /* alone this time, and it gets through */
                confirm(FM_LANE_RPC, 1, false);
                CHECK_INT(fm_message_status(innocent), FM_OK);
            }
        }
        expect_published(FM_LANE_RPC, "guilty");
        go_down(&hard);
        go_up();
    }
    CHECK_INT(rounds, 3);
    expect_end(innocent, FM_OK);
    expect_end(guilty, FM_DISCONNECTED);
    tear_down();
}

/* The connection is made again for a reason that is nobody's fault. */
static void
a_connection_that_is_made_anew_counts_as_no_retry(void)
{
    fm_error anew = { .status = FM_AGAIN, .code = 541, .text = "anew" };
    fm_message *sent = new_message(FM_LANE_RPC, "", "sent");
    fm_message *unsent = new_message(FM_LANE_RPC, "", "unsent");

    set_up();
    sent->retry = unsent->retry = 0;
    submit(sent);
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "sent");
    for (int i = 0; i < 5; i++) {
        go_down(&anew);
        if (i == 0)
            submit(unsent);
        CHECK_INT(fm_message_status(sent), FM_AGAIN);
        CHECK_INT(fm_message_status(unsent), FM_AGAIN);
        go_up();
        grant_lane(FM_LANE_RPC);
        expect_published(FM_LANE_RPC, "sent");
        expect_published(FM_LANE_RPC, "unsent");
    }
    confirm(FM_LANE_RPC, 0, true);
    expect_end(sent, FM_OK);
    expect_end(unsent, FM_OK);
    tear_down();
}

static void
a_closed_channel_fails_the_guilty_message_only(void)
{
    fm_message *messages[3];
    char body[2] = "0";

    set_up();
    for (int i = 0; i < 3; i++) {
        body[0] = (char)('0' + i);
        messages[i] = submit_new(body);
    }
    grant_lane(FM_LANE_RPC);
    for (int i = 0; i < 3; i++)
        CHECK_INT(line_take_method(&wire, NULL), FM_METHOD_BASIC_PUBLISH);
    CHECK_INT(feed_close(channel_of(FM_LANE_RPC), 406, "too large"), FM_OK);
    flush();
    expect_method(FM_METHOD_CHANNEL_CLOSE_OK, 1);
    grant_lane(FM_LANE_RPC); /* now one at a time */
    expect_published(FM_LANE_RPC, "0");
    CHECK(line_is_silent(&wire));
    confirm(FM_LANE_RPC, 1, false);
    expect_end(messages[0], FM_OK);
    expect_published(FM_LANE_RPC, "1");
    CHECK_INT(feed_close(channel_of(FM_LANE_RPC), 406, "too large"), FM_OK);
    CHECK_HAS(messages[1]->error.text, "too large");
    expect_end(messages[1], FM_REJECTED);
    flush();
    expect_method(FM_METHOD_CHANNEL_CLOSE_OK, 1);
    grant_lane(FM_LANE_RPC);
    expect_published(FM_LANE_RPC, "2");
    confirm(FM_LANE_RPC, 1, false);
    expect_end(messages[2], FM_OK);
    CHECK_INT(publisher.lanes[FM_LANE_RPC].suspects, 0);
    tear_down();
}

static void
a_vanished_exchange_is_declared_again_but_not_for_ever(void)
{
    fm_exchange fanout = { .name = "gone", .type = "fanout" };
    fm_channel *declarer, *lane;
    fm_message *message = new_message(FM_LANE_FANOUT, "gone", "x");
    fm_message *beside = new_message(FM_LANE_FANOUT, "stays", "y");
    int rounds = 0;

    set_up();
    declarer = fm_publisher_channel(&publisher, FM_DECLARER_ID);
    lane = channel_of(FM_LANE_FANOUT);
    CHECK_INT(fm_topology_new(&message->topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(message->topology, &fanout), FM_OK);
    submit(beside);
    submit(message);
    while (fm_message_status(message) == FM_AGAIN) {
        CHECK(++rounds < 10);
        step();
        CHECK_INT(feed_method(lane, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
        CHECK_INT(feed_method(lane, FM_METHOD_CONFIRM_SELECT_OK), FM_OK);
        step();
        if (rounds == 1)
            CHECK_INT(feed_method(declarer, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
        CHECK_INT(feed_method(declarer, FM_METHOD_EXCHANGE_DECLARE_OK), FM_OK);
        CHECK_INT(publisher.lanes[FM_LANE_FANOUT].in_flight, 2);
        CHECK_INT(
            feed_close(lane, 404, "NOT_FOUND - no exchange 'gone' in ..."),
            FM_OK);
        /* At once they count as one; the others come a while later. */
        CHECK_INT(message->strikes, rounds == 1 ? 1 : rounds - 1);
        if (rounds > 1)
            message->struck_at -= FM_NS_PER_S;
    }
    CHECK_INT(rounds, 4);
    CHECK_INT(message->error.code, 404);
    expect_end(message, FM_REJECTED);
    CHECK_INT(fm_message_status(beside), FM_AGAIN);
    CHECK_INT(beside->strikes, 0);
    fm_publisher_close(&publisher);
    expect_end(beside, FM_CLOSED);
    tear_down();
}

static void
a_refused_login_fails_all_at_once(void)
{
    fm_error refused = { .status = FM_REFUSED, .code = 403, .text = "no" };
    fm_message *message;
    int64_t begin = fm_now();

    set_up();
    go_down(&lost);
    message = submit_new("x");
    CHECK(!fm_publisher_is_impatient(&publisher, begin));
    fm_publisher_round_failed(&publisher, &refused);
    CHECK_INT(message->error.code, 403);
    expect_end(message, FM_REFUSED);
    CHECK(!fm_publisher_is_wanted(&publisher));
    /* Who comes now wants to know, and soon. */
    message = submit_new("y");
    CHECK(fm_publisher_is_wanted(&publisher));
    CHECK(fm_publisher_is_impatient(&publisher, begin));
    CHECK(!fm_publisher_is_impatient(&publisher, fm_now()));
    fm_publisher_close(&publisher);
    expect_end(message, FM_CLOSED);
    message = new_message(FM_LANE_RPC, "", "z");
    CHECK_INT(fm_publisher_submit(&publisher, message), FM_CLOSED);
    expect_end(message, FM_AGAIN);
    go_up();
    tear_down();
}

/* Nobody waits for it, so nobody could be told, and the login may be mended
 * yet. */
static void
a_refused_login_keeps_replies(void)
{
    fm_error refused = { .status = FM_REFUSED, .code = 403, .text = "no" };
    fm_message *reply;

    set_up();
    go_down(&lost);
    reply = new_message(FM_LANE_RPC, "", "reply");
    reply->handed_over = true;
    reply->hold_ns = FM_NS_PER_S;
    submit(reply);
    fm_publisher_round_failed(&publisher, &refused);
    CHECK_INT(fm_message_status(reply), FM_AGAIN);
    CHECK_INT(reply->place, FM_PLACE_UNSENT);
    CHECK(fm_publisher_is_wanted(&publisher));
    fm_publisher_close(&publisher);
    expect_end(reply, FM_CLOSED);
    go_up();
    tear_down();
}

static void
a_timeout_says_what_was_waited_for(void)
{
    fm_message *message;
    fm_error error;

    set_up();
    message = submit_new("x");
    fm_publisher_explain(&publisher, message, &error);
    CHECK_INT(error.status, FM_TIMED_OUT);
    CHECK_HAS(error.text, "could not be sent yet");
    grant_lane(FM_LANE_RPC);
    fm_publisher_explain(&publisher, message, &error);
    CHECK_HAS(error.text, "did not confirm");
    fm_publisher_set_blocked(&publisher, true, (fm_slice){ NULL, 0 });
    fm_publisher_explain(&publisher, message, &error);
    CHECK_HAS(error.text, "did not confirm");
    go_down(&lost);
    fm_publisher_explain(&publisher, message, &error);
    CHECK_HAS(error.text, "not connected");
    CHECK_HAS(error.text, "lost");
    CHECK_INT(fm_publisher_pending_since(&publisher, message), FM_NEVER);
    go_up();
    CHECK(fm_publisher_pending_since(&publisher, message) > message->submitted);
    fm_publisher_close(&publisher);
    expect_end(message, FM_CLOSED);
    tear_down();
}

/* --- whatever comes --- */

enum { CALLERS = 4, ROUNDS = 4000 };

static atomic_bool done;
static atomic_int ended;
static fm_topology *stress_topology;

static void *
submit_often(void *arg)
{
    unsigned seed = *(unsigned *)arg;

    for (int i = 0; i < ROUNDS; i++) {
        int kind = rand_r(&seed) % 6;
        fm_message *message = new_message(kind == 0 ? FM_LANE_NOTIFY
                : kind == 1                         ? FM_LANE_FANOUT
                                                    : FM_LANE_RPC,
            kind == 1 ? "fanout" : "", kind == 2 ? "" : "some body");
        fm_status status;

        if (kind == 1 || kind == 3)
            message->topology = fm_topology_ref(stress_topology);
        message->mandatory = kind == 4;
        message->handed_over = kind == 4;
        message->give_up = fm_deadline_in(2 * FM_NS_PER_MS);
        message->retry = kind == 5 ? 1 : FM_RETRY_FOREVER;
        if (kind == 2)
            snprintf(message->msg_id, sizeof(message->msg_id), "m");
        status = fm_publisher_submit(&publisher, message);
        CHECK(status == FM_OK || status == FM_FULL || status == FM_NOT_FOUND);
        if (status == FM_OK && kind != 4 && rand_r(&seed) % 4 != 0) {
            fm_deadline until = fm_deadline_in(3 * FM_NS_PER_MS);

            while (fm_message_status(message) == FM_AGAIN && fm_now() < until) {
                unsigned seen = fm_wake_read(&message->wake);

                if (fm_message_status(message) == FM_AGAIN)
                    (void)!fm_wake_wait(&message->wake, seen, until);
            }
            if (fm_message_status(message) != FM_AGAIN)
                atomic_fetch_add(&ended, 1);
        }
        if (kind != 4)
            fm_publisher_cancel(&publisher, message);
        fm_message_unref(message);
    }
    return NULL;
}

/* A broker that does as it likes, within what is sane and beyond. */
static void
behave_at_random(unsigned *seed)
{
    uint16_t id = (uint16_t)(1 + rand_r(seed) % 4);
    fm_channel *channel = fm_publisher_channel(&publisher, id);
    fm_buf method = { 0 };
    uint64_t tag = 0;

    fm_mutex_lock(&output.lock);
    if (id != FM_DECLARER_ID)
        tag = (uint64_t)rand_r(seed) % publisher.lanes[id - 1].next;
    fm_mutex_unlock(&output.lock);

    switch (rand_r(seed) % 12) {
    case 0:
        (void)!feed_close(
            channel, rand_r(seed) % 2 == 0 ? 404 : 406, "no exchange 'fanout'");
        break;
    case 1:
        (void)!feed_confirm(channel, FM_METHOD_BASIC_NACK, tag, false);
        break;
    case 2:
        build_return(&method, "", "key");
        (void)!feed_content(channel, &method, "some body");
        break;
    case 3:
        fm_publisher_set_blocked(
            &publisher, rand_r(seed) % 2 == 0, (fm_slice){ NULL, 0 });
        break;
    case 4:
        if (rand_r(seed) % 10 == 0) {
            fm_error why = lost;

            why.code = rand_r(seed) % 2 == 0 ? 501 : 320;
            go_down(&why);
            if (rand_r(seed) % 2 == 0)
                fm_publisher_round_failed(&publisher, &why);
            go_up();
        }
        break;
    default:
        if (channel->state == FM_CHANNEL_BUSY)
            CHECK_INT(
                feed_method(channel, channel->script.expect[channel->answered]),
                FM_OK);
        else
            (void)!feed_confirm(
                channel, FM_METHOD_BASIC_ACK, tag, rand_r(seed) % 3 != 0);
        break;
    }
    fm_buf_fini(&method);
}

static void *
wait_for_callers(void *arg)
{
    fm_thread *callers = arg;

    for (int i = 0; i < CALLERS; i++)
        fm_thread_join(&callers[i]);
    atomic_store(&done, true);
    return NULL;
}

static void
no_message_is_lost_or_ended_twice_whatever_comes(void)
{
    fm_thread callers[CALLERS], waiter;
    unsigned seeds[CALLERS], seed = 99;
    fm_publisher_stats stats;

    set_up();
    stress_topology = new_topology("q");
    for (int i = 0; i < CALLERS; i++) {
        seeds[i] = (unsigned)i;
        CHECK_INT(
            fm_thread_start(&callers[i], "caller", submit_often, &seeds[i]),
            FM_OK);
    }
    CHECK_INT(
        fm_thread_start(&waiter, "waiter", wait_for_callers, callers), FM_OK);
    while (!atomic_load(&done)) {
        fm_error error = { .status = FM_OK };
        bool want_room;

        behave_at_random(&seed);
        (void)fm_publisher_step(&publisher, fm_now());
        CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
        (void)line_read(&wire, 0);
        wire.got.len = 0;
        fm_output_after_sleep(&output, true);
    }
    fm_thread_join(&waiter);
    CHECK(atomic_load(&ended) > ROUNDS / 4);
    fm_publisher_close(&publisher);
    fm_publisher_stats_get(&publisher, &stats);
    CHECK_INT(stats.in_flight, 0);
    CHECK_INT(stats.unsent, 0);
    CHECK_INT(stats.parked, 0);
    CHECK_INT(publisher.handed.count, 0);
    CHECK_INT(publisher.handed.bytes, 0);
    fm_topology_unref(stress_topology);
    tear_down(); /* and the leak checker looks for what is left */
}

int
main(void)
{
    RUN(the_first_message_opens_its_lane);
    RUN(one_confirm_may_settle_many);
    RUN(a_confirm_of_what_was_never_sent_ends_the_connection);
    RUN(a_nack_fails_what_may_not_be_tried_again);
    RUN(a_nacked_message_is_sent_again_while_its_sender_waits);
    RUN(a_channel_that_goes_on_refusing_is_opened_anew);
    RUN(what_is_not_confirmed_there_is_sent_a_second_time);
    RUN(a_renewal_may_be_overtaken);
    RUN(a_nacked_reply_is_tried_again_like_a_returned_one);
    RUN(a_nacked_message_can_be_given_up);
    RUN(a_return_finds_its_message_by_names_and_body);
    RUN(an_empty_message_can_be_returned);
    RUN(a_message_that_was_given_up_is_not_sent);
    RUN(the_window_of_notifications_is_bounded);
    RUN(an_alarm_holds_what_is_not_sent_yet);
    RUN(what_needs_a_declaration_waits_for_it);
    RUN(a_refused_declaration_fails_what_needs_it);
    RUN(a_gate_holds_its_messages_only);
    RUN(a_gate_that_opens_lets_nobody_overtake);
    RUN(a_declaration_that_is_made_lets_nobody_overtake);
    RUN(a_lost_connection_is_borne_as_often_as_allowed);
    RUN(what_was_in_flight_goes_first_when_the_connection_is_back);
    RUN(a_message_that_ends_connections_is_given_up);
    RUN(a_connection_that_is_made_anew_counts_as_no_retry);
    RUN(a_closed_channel_fails_the_guilty_message_only);
    RUN(a_vanished_exchange_is_declared_again_but_not_for_ever);
    RUN(a_refused_login_fails_all_at_once);
    RUN(a_refused_login_keeps_replies);
    RUN(a_timeout_says_what_was_waited_for);
    RUN(no_message_is_lost_or_ended_twice_whatever_comes);
    return 0;
}
