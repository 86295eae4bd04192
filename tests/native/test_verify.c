/* io/verify.h without a broker: this thread is the I/O thread, and plays the
 * broker at the other end of the line. Time is what the test says.
 */
#include "io/verify.h"

#include "base/event.h"
#include "line.h"

#include <stdlib.h>

#define S FM_NS_PER_S

enum { OWN_ID = 1, FIRST_ID = 3, SECOND_ID = 4 };

static fm_waker waker;
static fm_output output;
static fm_reply_table table;
static fm_verifier verifier;
static fm_consumer *members;
static line wire;
static uint64_t epoch;
static bool is_up;

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
    fm_deadline next = FM_NEVER, each;

    for (fm_consumer *member = members; member != NULL; member = member->next) {
        each = fm_consumer_step(member, now, is_up);
        next = each < next ? each : next;
    }
    each = fm_verifier_step(&verifier, members, now, is_up);
    if (is_up)
        flush();
    return each < next ? each : next;
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
    is_up = false;
    fm_verifier_down(&verifier);
    for (fm_consumer *member = members; member != NULL; member = member->next)
        fm_consumer_down(member);
    CHECK(fm_output_try_quiet(&output));
    fm_output_down(&output);
    line_close(&wire);
}

static fm_topology *
declare(const char *const *queues, size_t count, bool durable)
{
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    for (size_t i = 0; i < count; i++) {
        fm_queue queue = { .name = queues[i], .durable = durable };

        CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    }
    return topology;
}

static fm_consumer *
join(uint16_t id, const char *const *queues, size_t count,
    fm_topology *declares, bool replies)
{
    fm_consumer_config config = { queues, count, 5, replies, false };
    fm_consumer *consumer;

    CHECK_INT(
        fm_consumer_new(&config, declares, &output, &table, &consumer), FM_OK);
    fm_topology_unref(declares);
    consumer->channel.id = id;
    consumer->next = members;
    members = consumer;
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    return consumer;
}

static const char *const one_and_two[] = { "one", "two" };
static const char *const replies_queue[] = { "replies" };

static fm_consumer *
join_listener(uint16_t id)
{
    return join(id, one_and_two, 2, declare(one_and_two, 2, false), false);
}

static fm_consumer *
join_replies(uint16_t id)
{
    return join(id, replies_queue, 1, declare(replies_queue, 1, false), true);
}

static void
set_up(void)
{
    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_reply_table_init(&table);
    fm_verifier_init(&verifier, &output, OWN_ID);
    go_up();
}

static void
tear_down(void)
{
    go_down();
    while (members != NULL) {
        fm_consumer *consumer = members;

        members = consumer->next;
        fm_consumer_abandon(consumer);
        fm_verifier_forget(&verifier, consumer);
        fm_consumer_unref(consumer);
    }
    fm_verifier_fini(&verifier);
    fm_reply_table_fini(&table);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
}

/* --- the broker's part --- */

static void
answer(fm_channel *channel)
{
    CHECK_INT(channel->state, FM_CHANNEL_BUSY);
    while (channel->state == FM_CHANNEL_BUSY) {
        fm_script *script = &channel->script;

        CHECK_INT(
            feed_method(channel, script->expect[channel->answered]), FM_OK);
        if (channel->answered == 0)
            break; /* that was the last one, or the next script began */
    }
}

/* What was sent, and is of no interest. */
static void
skip_frames(void)
{
    while (line_read(&wire, 0))
        continue;
    wire.got.len = 0;
}

static void
consume(fm_consumer *consumer, int64_t now)
{
    (void)step_at(now);
    while (consumer->channel.state == FM_CHANNEL_BUSY)
        answer(&consumer->channel);
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    skip_frames();
}

static void
expect_method(uint16_t channel, uint32_t id)
{
    uint16_t found = 0;

    CHECK_INT(line_take_method(&wire, &found), id);
    CHECK_INT(found, channel);
}

/* A passive declaration, on the verifier's channel. */
static void
expect_look(const char *queue)
{
    size_t len = strlen(queue);
    fm_buf payload = { 0 };
    fm_frame frame;
    uint32_t id;

    line_take_frame(&wire, &frame, &payload);
    CHECK_INT(frame.channel, OWN_ID);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
    CHECK_INT(id, FM_METHOD_QUEUE_DECLARE);
    CHECK_INT(frame.payload[6], len); /* after id and ticket */
    CHECK_BYTES(frame.payload + 7, len, queue, len);
    CHECK_INT(frame.payload[7 + len] & 1, 1);
    fm_buf_fini(&payload);
}

static void
refuse(uint16_t code, const char *text)
{
    CHECK_INT(verifier.channel.state, FM_CHANNEL_BUSY);
    if (verifier.channel.script.expect[verifier.channel.answered]
        == FM_METHOD_CHANNEL_OPEN_OK)
        CHECK_INT(
            feed_method(&verifier.channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_close(&verifier.channel, code, text), FM_OK);
}

/* From nothing to consuming, with a connection lost in between. */
static void
come_back(fm_consumer *consumer)
{
    consume(consumer, fm_now());
    go_down();
    go_up();
    consume(consumer, fm_now());
}

static int
count_events(const char *text)
{
    fm_event_reader reader = { 0 };
    fm_event event;
    int count = 0;

    while (fm_event_wait(&reader, &event, fm_now()) == FM_OK)
        count += strstr(event.text, text) != NULL;
    return count;
}

static const char gone[] = "is gone, and the broker did not say so";

/* --- after a consumer came back --- */

static void
who_consumes_for_the_first_time_is_not_looked_after(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_listener(FIRST_ID);
    consume(consumer, fm_now());
    CHECK(atomic_load(&consumer->verified_at) > 0);
    (void)step_at(fm_now() + 30 * S);
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
queues_are_looked_for_twice_after_their_consumer_came_back(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    now = atomic_load(&consumer->verified_at);
    CHECK_INT(step_at(now), now + S);
    CHECK(line_is_silent(&wire));
    for (int look = 0; look < 2; look++) {
        now = consumer->verify_at;
        (void)step_at(now);
        expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
        expect_look("one");
        CHECK(line_is_silent(&wire));
        answer(&verifier.channel);
        (void)step_at(now + 1);
        expect_look("two");
        answer(&verifier.channel);
        CHECK(atomic_load(&consumer->verified_at) < now);
        (void)step_at(now + 2);
        CHECK_INT(atomic_load(&consumer->verified_at), now + 2);
        expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE);
        answer(&verifier.channel);
        CHECK_INT(verifier.channel.state, FM_CHANNEL_CLOSED);
    }
    CHECK_INT(consumer->verify_at, FM_NEVER);
    (void)step_at(now + 50 * S);
    CHECK(line_is_silent(&wire));
    CHECK_INT(count_events(gone), 0);
    tear_down();
}

/* cancel-ok is waited for: it is not the channel's own answer. */
static void
what_is_missing_is_declared_and_consumed_again(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    now = consumer->verify_at;
    (void)step_at(now);
    skip_frames();
    answer(&verifier.channel); /* "one" is there */
    (void)step_at(now);
    expect_look("two");
    refuse(404, "NOT_FOUND");
    CHECK_INT(count_events(gone), 1);
    (void)step_at(now);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    CHECK(line_is_silent(&wire));
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
    answer(&consumer->channel);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_SHUT);
    flush();
    expect_method(FIRST_ID, FM_METHOD_QUEUE_DECLARE);
    expect_method(FIRST_ID, FM_METHOD_QUEUE_DECLARE);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CONSUME);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CONSUME);
    answer(&consumer->channel);
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    CHECK_INT(fm_gate_state_get(consumer->gate), FM_GATE_OPEN);
    CHECK(consumer->verify_at <= fm_now() + S); /* and looked for again */
    tear_down();
}

/* What the broker has left of it may delete the new one, much later. */
static void
who_lost_a_queue_once_is_looked_after_from_then_on(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    (void)step_at(consumer->verify_at);
    refuse(404, "NOT_FOUND");
    (void)step_at(fm_now());
    while (consumer->channel.state == FM_CHANNEL_BUSY)
        answer(&consumer->channel);
    for (int look = 0; look < 5; look++) {
        now = consumer->verify_at;
        CHECK(now != FM_NEVER);
        for (int queue = 0; queue < 2; queue++) {
            (void)step_at(now);
            answer(&verifier.channel);
        }
        (void)step_at(now);
        answer(&verifier.channel);
        CHECK_INT(atomic_load(&consumer->verified_at), now);
        CHECK(consumer->verify_at - now <= 60 * S);
    }
    CHECK_INT(count_events(gone), 1);
    tear_down();
}

static void
a_cancelled_consumer_that_recovered_is_looked_after(void)
{
    fm_consumer *consumer;
    fm_buf payload = { 0 };

    set_up();
    consumer = join_listener(FIRST_ID);
    consume(consumer, fm_now());
    CHECK_INT(consumer->verify_at, FM_NEVER);
    add_u32(&payload, FM_METHOD_BASIC_CANCEL);
    add_text(&payload, "2");
    add_u8(&payload, 1);
    CHECK_INT(feed(&consumer->channel, FM_FRAME_METHOD, &payload), FM_OK);
    fm_buf_fini(&payload);
    (void)step_at(fm_now());
    answer(&consumer->channel);
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    CHECK(consumer->verify_at <= fm_now() + S);
    (void)count_events("");
    tear_down();
}

/* They are away with their node, and declaring them again is refused. */
static void
durable_queues_are_not_looked_for(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer =
        join(FIRST_ID, one_and_two, 2, declare(one_and_two, 2, true), false);
    come_back(consumer);
    now = consumer->verify_at;
    (void)step_at(now);
    CHECK(line_is_silent(&wire));
    CHECK_INT(atomic_load(&consumer->verified_at), now);
    tear_down();
}

static void
a_look_that_is_not_allowed_is_not_repeated(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    (void)step_at(consumer->verify_at);
    skip_frames();
    refuse(403, "ACCESS_REFUSED");
    CHECK_INT(count_events("ACCESS_REFUSED"), 1);
    (void)step_at(fm_now() + 50 * S);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    CHECK(line_is_silent(&wire));
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    tear_down();
}

static fm_message *begin_call(const char *msg_id);
static void end_call(fm_message *call);

static void
another_refusal_is_said_once_and_the_look_repeated(void)
{
    fm_message *call;
    int64_t now;

    set_up();
    consume(join_replies(FIRST_ID), fm_now());
    call = begin_call("m1");
    now = members->verify_at;
    (void)step_at(now);
    refuse(405, "RESOURCE_LOCKED");
    (void)step_at(now);
    skip_frames();
    CHECK_INT(count_events("RESOURCE_LOCKED"), 1);
    (void)step_at(now + 40 * S);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("replies");
    refuse(405, "RESOURCE_LOCKED");
    CHECK_INT(count_events("RESOURCE_LOCKED"), 0);
    CHECK_INT(atomic_load(&members->verified_at), 0);
    skip_frames();
    go_down();
    go_up();
    consume(members, fm_now());
    (void)step_at(members->verify_at);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("replies");
    end_call(call);
    tear_down();
}

/* --- what comes in between --- */

static void
a_connection_that_is_lost_ends_the_look(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    (void)step_at(consumer->verify_at);
    CHECK_INT(verifier.channel.state, FM_CHANNEL_BUSY);
    go_down();
    CHECK_INT(step_at(fm_now() + 50 * S), FM_NEVER);
    go_up();
    consume(consumer, fm_now());
    (void)step_at(consumer->verify_at);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("one");
    tear_down();
}

static void
a_consumer_that_leaves_ends_the_look_at_it(void)
{
    fm_consumer *first, *second;

    set_up();
    second = join_listener(SECOND_ID);
    first = join_replies(FIRST_ID);
    come_back(first);
    consume(second, fm_now());
    second->verify_at = first->verify_at = fm_now();
    (void)step_at(fm_now());
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("replies");
    members = second;
    fm_consumer_abandon(first);
    fm_verifier_forget(&verifier, first);
    fm_consumer_unref(first);
    refuse(404, "NOT_FOUND");
    CHECK_INT(count_events(gone), 0);
    (void)step_at(fm_now());
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("one");
    tear_down();
}

static void
a_consumer_that_is_stopped_is_not_set_up_again(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    (void)step_at(consumer->verify_at);
    skip_frames();
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    (void)step_at(fm_now());
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    refuse(404, "NOT_FOUND");
    answer(&consumer->channel);
    (void)step_at(fm_now());
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    CHECK(line_is_silent(&wire));
    CHECK_INT(consumer->state, FM_CONSUMER_STOPPED);
    CHECK_INT(count_events(gone), 0);
    tear_down();
}

/* Also between the two halves of setting it up again. */
static void
a_consumer_can_be_stopped_while_it_is_set_up_again(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_listener(FIRST_ID);
    come_back(consumer);
    (void)step_at(consumer->verify_at);
    refuse(404, "NOT_FOUND");
    (void)step_at(fm_now());
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    answer(&consumer->channel); /* the cancels */
    (void)step_at(fm_now());
    skip_frames();
    answer(&consumer->channel); /* declared and consumed */
    (void)step_at(fm_now());
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    expect_method(FIRST_ID, FM_METHOD_BASIC_CANCEL);
    answer(&consumer->channel);
    CHECK_INT(consumer->state, FM_CONSUMER_STOPPED);
    (void)count_events("");
    tear_down();
}

/* --- queues of replies --- */

static fm_message *
begin_call(const char *msg_id)
{
    fm_message *call;

    CHECK_INT(fm_message_new(FM_LANE_RPC, "", "q", &call), FM_OK);
    snprintf(call->msg_id, sizeof(call->msg_id), "%s", msg_id);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    return call;
}

static void
end_call(fm_message *call)
{
    fm_reply_forget(&table, call);
    fm_message_unref(call);
}

/* Have it looked for, and found. */
static void
expect_one_look(int64_t now)
{
    (void)step_at(now);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("replies");
    answer(&verifier.channel);
    (void)step_at(now);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE);
    answer(&verifier.channel);
    CHECK_INT(atomic_load(&members->verified_at), now);
}

static void
a_queue_of_replies_is_looked_for_again_and_again(void)
{
    int64_t now;

    set_up();
    consume(join_replies(FIRST_ID), fm_now());
    now = atomic_load(&members->verified_at);
    for (int i = 0; i < 3; i++) {
        CHECK_INT(step_at(now + 44 * S), now + 45 * S);
        CHECK(line_is_silent(&wire));
        expect_one_look(now += 45 * S);
    }
    tear_down();
}

static void
a_reply_shows_that_its_queue_is_there(void)
{
    fm_consumer *consumer;
    fm_message *call;

    set_up();
    consumer = join_replies(FIRST_ID);
    consume(consumer, fm_now());
    call = begin_call("m1");
    atomic_store(&consumer->verified_at, 1);
    CHECK_INT(feed_delivery(&consumer->channel, "1", 1,
                  "{\"oslo.version\": \"2.0\", \"oslo.message\": "
                  "\"{\\\"result\\\": 1, \\\"ending\\\": true, "
                  "\\\"_msg_id\\\": \\\"m1\\\"}\"}"),
        FM_OK);
    CHECK(fm_reply_is_there(&table, call));
    CHECK(atomic_load(&consumer->verified_at) > 1);
    end_call(call);
    tear_down();
}

static void
queues_of_listeners_are_not_looked_for_now_and_then(void)
{
    fm_message *call;

    set_up();
    consume(join_listener(FIRST_ID), fm_now());
    call = begin_call("m1");
    (void)step_at(fm_now() + 61 * S);
    (void)step_at(fm_now() + 122 * S);
    CHECK(line_is_silent(&wire));
    end_call(call);
    tear_down();
}

/* --- bindings --- */

static fm_consumer *
join_bound(uint16_t id, bool durable)
{
    fm_exchange exchange = { .name = "e", .type = "fanout" };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    for (size_t i = 0; i < 2; i++) {
        fm_queue queue = { .name = one_and_two[i], .durable = durable };

        CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
        CHECK_INT(
            fm_topology_add_binding(topology, one_and_two[i], "e", "k"), FM_OK);
    }
    return join(id, one_and_two, 2, topology, false);
}

/* What is sent to have all bound, queues left as they are. */
static void
expect_bindings(void)
{
    expect_method(OWN_ID, FM_METHOD_EXCHANGE_DECLARE);
    expect_method(OWN_ID, FM_METHOD_QUEUE_BIND);
    expect_method(OWN_ID, FM_METHOD_QUEUE_BIND);
    CHECK(line_is_silent(&wire));
}

static void
queues_are_bound_again_within_each_minute(void)
{
    fm_consumer *consumer;
    int64_t now, next;

    set_up();
    consumer = join_bound(FIRST_ID, true);
    consume(consumer, fm_now());
    for (int i = 0; i < 3; i++) {
        now = atomic_load(&consumer->verified_at);
        next = consumer->verify_at;
        CHECK(next > now + 45 * S && next <= now + 60 * S);
        (void)step_at(next - 1);
        CHECK(line_is_silent(&wire));
        (void)step_at(next);
        expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
        expect_bindings();
        answer(&verifier.channel);
        (void)step_at(next);
        expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE);
        answer(&verifier.channel);
        CHECK_INT(atomic_load(&consumer->verified_at), next);
    }
    tear_down();
}

static void
queues_that_are_there_are_bound_with_each_look(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer = join_bound(FIRST_ID, false);
    come_back(consumer);
    now = consumer->verify_at;
    (void)step_at(now);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_look("one");
    answer(&verifier.channel);
    (void)step_at(now);
    expect_look("two");
    answer(&verifier.channel);
    (void)step_at(now);
    expect_bindings();
    answer(&verifier.channel);
    (void)step_at(now);
    CHECK_INT(consumer->verify_at, now + 9 * S);
    tear_down();
}

/* The node of a durable queue is away, say: it comes back bound. */
static void
a_queue_that_cannot_be_bound_now_is_bound_later(void)
{
    fm_consumer *consumer;
    int64_t now;

    set_up();
    consumer = join_bound(FIRST_ID, true);
    consume(consumer, fm_now());
    (void)step_at(consumer->verify_at);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_bindings();
    refuse(404, "NOT_FOUND - no queue 'one' in vhost '/'");
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    now = fm_now();
    CHECK(consumer->verify_at > now + 40 * S);
    CHECK(consumer->verify_at <= now + 45 * S);
    (void)step_at(consumer->verify_at);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_bindings();
    CHECK_INT(count_events("cannot be bound"), 0);
    tear_down();
}

static void
another_exchange_of_that_name_is_used_as_it_is(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_bound(FIRST_ID, true);
    consume(consumer, fm_now());
    (void)step_at(consumer->verify_at);
    skip_frames();
    refuse(406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'e' in "
        "vhost '/': received 'false' but current is 'true'");
    CHECK(consumer->verify_at <= fm_now());
    (void)step_at(consumer->verify_at);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_CLOSE_OK);
    expect_method(OWN_ID, FM_METHOD_CHANNEL_OPEN);
    expect_bindings();
    answer(&verifier.channel);
    (void)step_at(consumer->verify_at);
    CHECK(consumer->verify_at > fm_now() + 40 * S);
    tear_down();
}

static void
who_may_not_bind_is_not_asked_to_again(void)
{
    fm_consumer *consumer;

    set_up();
    consumer = join_bound(FIRST_ID, true);
    consume(consumer, fm_now());
    (void)step_at(consumer->verify_at);
    skip_frames();
    refuse(540, "NOT_IMPLEMENTED");
    CHECK_INT(count_events("cannot be bound again"), 1);
    (void)step_at(consumer->verify_at);
    CHECK_INT(consumer->verify_at, FM_NEVER);
    CHECK_INT(consumer->state, FM_CONSUMER_CONSUMING);
    tear_down();
}

int
main(void)
{
    RUN(who_consumes_for_the_first_time_is_not_looked_after);
    RUN(queues_are_looked_for_twice_after_their_consumer_came_back);
    RUN(what_is_missing_is_declared_and_consumed_again);
    RUN(who_lost_a_queue_once_is_looked_after_from_then_on);
    RUN(a_cancelled_consumer_that_recovered_is_looked_after);
    RUN(durable_queues_are_not_looked_for);
    RUN(a_look_that_is_not_allowed_is_not_repeated);
    RUN(another_refusal_is_said_once_and_the_look_repeated);
    RUN(a_connection_that_is_lost_ends_the_look);
    RUN(a_consumer_that_leaves_ends_the_look_at_it);
    RUN(a_consumer_that_is_stopped_is_not_set_up_again);
    RUN(a_consumer_can_be_stopped_while_it_is_set_up_again);
    RUN(a_queue_of_replies_is_looked_for_again_and_again);
    RUN(a_reply_shows_that_its_queue_is_there);
    RUN(queues_of_listeners_are_not_looked_for_now_and_then);
    RUN(queues_are_bound_again_within_each_minute);
    RUN(queues_that_are_there_are_bound_with_each_look);
    RUN(a_queue_that_cannot_be_bound_now_is_bound_later);
    RUN(another_exchange_of_that_name_is_used_as_it_is);
    RUN(who_may_not_bind_is_not_asked_to_again);
    return 0;
}
