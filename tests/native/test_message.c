/* io/message.h, io/lane.h, io/handed.h: messages, their order, the replies
 * that nobody waits for.
 */
#include "io/message.h"

#include "check.h"
#include "io/gate.h"
#include "io/handed.h"
#include "io/lane.h"
#include "io/topology.h"

#include <stdlib.h>

static fm_message *
new_message(const char *key)
{
    fm_message *message;

    CHECK_INT(fm_message_new(FM_LANE_RPC, "", key, &message), FM_OK);
    CHECK_INT(fm_buf_append(&message->body, "body", 4), FM_OK);
    return message;
}

/* --- one message --- */

static void
a_message_ends_once(void)
{
    fm_message *message = new_message("k");
    fm_error error = { .status = FM_NACKED, .text = "no" };
    unsigned seen = fm_wake_read(&message->wake);

    CHECK_INT(fm_message_status(message), FM_AGAIN);
    fm_message_finish(message, &error);
    CHECK(fm_wake_read(&message->wake) != seen);
    fm_message_finish(message, NULL);
    CHECK_INT(fm_message_status(message), FM_NACKED);
    CHECK_TEXT(message->error.text, "no");
    fm_message_unref(message);
}

static void
names_beyond_amqps_limit_are_refused(void)
{
    char name[257];
    fm_message *message;

    memset(name, 'n', 256);
    name[256] = '\0';
    CHECK_INT(fm_message_new(FM_LANE_RPC, name, "", &message), FM_TOO_LARGE);
    CHECK_INT(fm_message_new(FM_LANE_RPC, "", name, &message), FM_TOO_LARGE);
    CHECK_INT(fm_message_new(FM_LANE_RPC, name + 1, name + 1, &message), FM_OK);
    fm_message_unref(message);
}

/* The leak checker looks whether all goes with it. */
static void
the_last_reference_frees_what_it_holds(void)
{
    fm_message *message = new_message("k");

    CHECK_INT(fm_topology_new(&message->topology), FM_OK);
    CHECK_INT(fm_gate_new(&message->gate), FM_OK);
    CHECK(fm_message_ref(message) == message);
    fm_message_unref(message);
    CHECK_TEXT(message->routing_key, "k");
    fm_message_unref(message);
    fm_message_unref(NULL);
}

static void
an_error_names_its_message(void)
{
    fm_error cause = { .status = FM_RETURNED, .code = 312, .text = "why" };
    fm_error out;
    fm_message *message;

    CHECK_INT(fm_message_new(FM_LANE_RPC, "nova", "key", &message), FM_OK);
    fm_message_describe(message, &cause, &out);
    CHECK_INT(out.status, FM_RETURNED);
    CHECK_INT(out.code, 312);
    CHECK_TEXT(
        out.text, "message to exchange 'nova' with routing key 'key': why");
    fm_message_unref(message);
}

/* --- a lane's order --- */

enum { MESSAGES = 300 };

static fm_publisher_lane lane;
static fm_message *messages[MESSAGES];

/* Messages 0, 1, 2, ... of which the first `sent` are in flight. */
static void
fill_lane(int sent)
{
    fm_lane_init(&lane, 1000, 1000 * 1000);
    for (int i = 0; i < MESSAGES; i++) {
        char key[16];

        snprintf(key, sizeof(key), "%d", i);
        messages[i] = new_message(key);
        fm_lane_append(&lane, fm_message_ref(messages[i]));
    }
    for (int i = 0; i < sent; i++) {
        CHECK_INT(fm_lane_reserve(&lane), FM_OK);
        fm_lane_sent(&lane, messages[i]);
    }
    CHECK_INT(lane.in_flight, sent);
    CHECK_INT(lane.unsent, MESSAGES - sent);
}

static bool
say_yes(fm_message *message, const void *arg)
{
    (void)message;
    (void)arg;
    return true;
}

static bool
say_no(fm_message *message, const void *arg)
{
    (void)message;
    (void)arg;
    return false;
}

static bool
has_key(fm_message *message, const void *arg)
{
    return strcmp(message->routing_key, arg) == 0;
}

static void
empty_lane(void)
{
    fm_settled gone = { NULL, NULL };

    (void)fm_lane_recall(&lane, say_yes, NULL, &gone, &gone);
    fm_lane_cull(&lane, say_yes, NULL, &gone);
    fm_settled_drop(&gone);
    CHECK_INT(lane.unsent, 0);
    for (int i = 0; i < MESSAGES; i++) {
        CHECK_INT(messages[i]->place, FM_PLACE_CALLER);
        CHECK_INT(atomic_load(&messages[i]->refs), 1);
        fm_message_unref(messages[i]);
    }
    fm_lane_fini(&lane);
}

static void
take(uint64_t tag)
{
    fm_message *message = fm_lane_take(&lane, tag);

    CHECK(message != NULL);
    message->place = FM_PLACE_CALLER;
    fm_message_unref(message);
}

/* The queue holds these numbers, in this order. */
static void
expect_unsent(int first, int last)
{
    fm_message *message = lane.first_unsent;

    for (int i = first; i <= last; i++) {
        CHECK(message != NULL);
        CHECK_INT(atoi(message->routing_key), i);
        CHECK_INT(message->place, FM_PLACE_UNSENT);
        message = message->next;
    }
    CHECK(message == NULL);
}

static void
confirms_come_in_any_order(void)
{
    fill_lane(200);
    CHECK_INT(lane.low, 1);
    take(2);
    take(200);
    CHECK_INT(lane.low, 1);
    CHECK(fm_lane_take(&lane, 2) == NULL); /* once */
    take(1);
    CHECK_INT(lane.low, 3);
    for (uint64_t tag = 3; tag < 200; tag++)
        take(tag);
    CHECK_INT(lane.low, 201);
    CHECK_INT(lane.in_flight, 0);
    CHECK_INT(lane.in_flight_bytes, 0);
    empty_lane();
}

static void
what_is_recalled_goes_first_and_in_order(void)
{
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };

    fill_lane(100);
    for (uint64_t tag = 1; tag <= 40; tag++)
        take(tag);
    CHECK_INT(fm_lane_recall(&lane, say_no, NULL, &failed, &dropped), 60);
    CHECK(failed.first == NULL && dropped.first == NULL);
    expect_unsent(40, MESSAGES - 1);
    CHECK_INT(lane.low, 1);
    CHECK_INT(lane.next, 1);
    CHECK_INT(lane.in_flight, 0);
    CHECK_INT(lane.in_flight_bytes, 0);
    empty_lane();
}

static void
a_verdict_and_a_caller_that_gave_up_end_a_message(void)
{
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };

    fill_lane(10);
    messages[3]->abandoned = true;
    CHECK_INT(fm_lane_recall(&lane, has_key, "7", &failed, &dropped), 8);
    CHECK(failed.first == messages[7] && failed.last == messages[7]);
    CHECK(dropped.first == messages[3] && dropped.last == messages[3]);
    CHECK_INT(lane.unsent, MESSAGES - 2);
    fm_settled_drop(&failed);
    fm_settled_drop(&dropped);
    empty_lane();
}

/* Sent again it would be done twice, and nobody waits for it any more. */
static void
a_call_that_was_answered_is_not_sent_again(void)
{
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };

    fill_lane(10);
    snprintf(messages[5]->msg_id, sizeof(messages[5]->msg_id), "m5");
    fm_message_finish(messages[5], NULL);
    CHECK_INT(fm_lane_recall(&lane, say_no, NULL, &failed, &dropped), 9);
    CHECK(dropped.first == messages[5]);
    CHECK(failed.first == NULL);
    fm_settled_drop(&dropped);
    empty_lane();
}

static void
suspects_go_one_at_a_time_until_they_are_settled(void)
{
    fm_settled failed = { NULL, NULL }, dropped = { NULL, NULL };

    fill_lane(3);
    lane.suspects = fm_lane_recall(&lane, say_no, NULL, &failed, &dropped);
    CHECK_INT(lane.suspects, 3);
    for (int i = 0; i < 3; i++) {
        CHECK(fm_lane_has_room(&lane));
        CHECK_INT(fm_lane_reserve(&lane), FM_OK);
        fm_lane_sent(&lane, messages[i]);
        CHECK(!fm_lane_has_room(&lane));
        if (i == 1) { /* the guilty one: it closes the channel again */
            CHECK_INT(
                fm_lane_recall(&lane, say_yes, NULL, &failed, &dropped), 0);
            fm_settled_drop(&failed);
        } else {
            take(lane.low);
        }
    }
    CHECK_INT(lane.suspects, 0);
    CHECK_INT(fm_lane_reserve(&lane), FM_OK);
    fm_lane_sent(&lane, messages[3]);
    CHECK(fm_lane_has_room(&lane));
    empty_lane();
}

static void
the_window_counts_messages_and_bytes(void)
{
    fill_lane(0);
    lane.window = 2;
    CHECK(fm_lane_has_room(&lane));
    for (int i = 0; i < 2; i++) {
        CHECK_INT(fm_lane_reserve(&lane), FM_OK);
        fm_lane_sent(&lane, messages[i]);
    }
    CHECK(!fm_lane_has_room(&lane));
    lane.window = 100;
    CHECK(fm_lane_has_room(&lane));
    lane.window_bytes = 8;
    CHECK(!fm_lane_has_room(&lane));
    take(1);
    CHECK(fm_lane_has_room(&lane));
    empty_lane();
}

static void
any_unsent_message_can_be_taken_out(void)
{
    fill_lane(0);
    for (int i = 0; i < 3; i++) {
        int out = i == 0 ? 0 : i == 1 ? 150 : MESSAGES - 1;

        fm_lane_remove(&lane, messages[out]);
        fm_message_unref(messages[out]);
        CHECK_INT(messages[out]->place, FM_PLACE_CALLER);
    }
    CHECK_INT(lane.unsent, MESSAGES - 3);
    CHECK_INT(atoi(lane.first_unsent->routing_key), 1);
    CHECK_INT(atoi(lane.last_unsent->routing_key), MESSAGES - 2);
    empty_lane();
}

/* --- lists of what is done with --- */

static void
a_confirm_ends_all_but_calls(void)
{
    fm_settled list = { NULL, NULL };
    fm_message *cast = new_message("cast"), *call = new_message("call");

    snprintf(call->msg_id, sizeof(call->msg_id), "m1");
    fm_settled_add(&list, fm_message_ref(cast));
    fm_settled_add(&list, fm_message_ref(call));
    fm_settled_finish(&list, NULL);
    CHECK(list.first == NULL && list.last == NULL);
    CHECK_INT(fm_message_status(cast), FM_OK);
    CHECK_INT(fm_message_status(call), FM_AGAIN);
    fm_message_unref(cast);
    fm_message_unref(call);
}

/* --- replies that are handed over --- */

static fm_handed handed;

static fm_message *
new_reply(const char *queue, fm_deadline give_up)
{
    fm_message *reply = new_message(queue);

    reply->handed_over = reply->mandatory = true;
    reply->give_up = give_up;
    return reply;
}

static void
leave(fm_message *reply)
{
    fm_settled list = { NULL, NULL };

    fm_settled_add(&list, reply);
    fm_handed_leave(&handed, &list);
    fm_settled_drop(&list);
}

static void
handed_over_bytes_are_bounded(void)
{
    fm_message *reply = new_reply("q", FM_NEVER);
    fm_message *other = new_reply("q", FM_NEVER);
    fm_message *cast = new_message("q");
    static char block[1000 * 1000];
    unsigned seen;

    fm_handed_init(&handed);
    for (int i = 0; i < 9; i++)
        CHECK_INT(fm_buf_append(&reply->body, block, sizeof(block)), FM_OK);
    CHECK_INT(fm_handed_admit(&handed, reply, 0), FM_OK);
    CHECK(fm_handed_is_full(&handed));
    CHECK_INT(fm_handed_admit(&handed, other, 0), FM_FULL);
    CHECK_INT(fm_handed_admit(&handed, cast, 0), FM_OK);
    seen = fm_wake_read(&handed.space);
    leave(reply);
    CHECK(fm_wake_read(&handed.space) != seen);
    CHECK_INT(handed.count, 0);
    CHECK_INT(handed.bytes, 0);
    CHECK_INT(fm_handed_admit(&handed, other, 0), FM_OK);
    leave(other);
    leave(cast);
    CHECK_INT(handed.count, 0);
    CHECK_INT(handed.bytes, 0);
}

static void
a_returned_reply_is_tried_again_until_its_time_is_over(void)
{
    fm_message *reply = new_reply("q", 3 * FM_NS_PER_S);
    fm_deadline next;
    int64_t now = 0;
    int tries = 0;

    fm_handed_init(&handed);
    CHECK_INT(fm_handed_admit(&handed, reply, now), FM_OK);
    while (fm_handed_try_park(&handed, reply, now)) {
        CHECK_INT(handed.count, 0); /* nobody waits for it in a flush */
        CHECK(handed.bytes > 0);
        CHECK(fm_handed_take_due(&handed, now, &next) == NULL);
        CHECK(next > now && next <= 3 * FM_NS_PER_S);
        now = next;
        CHECK(fm_handed_take_due(&handed, now, &next) == reply);
        CHECK_INT(next, FM_NEVER);
        CHECK_INT(handed.count, 1);
        tries++;
    }
    CHECK_INT(now, 3 * FM_NS_PER_S);
    CHECK_INT(tries, 4); /* at 0.25, 0.75, 1.75 s, and at the end */
    leave(reply);
    CHECK_INT(handed.count, 0);
    CHECK_INT(handed.bytes, 0);
}

static void
the_earliest_parked_reply_is_due_first(void)
{
    fm_message *replies[3];
    fm_deadline next;

    fm_handed_init(&handed);
    for (int i = 0; i < 3; i++) {
        replies[i] = new_reply("q", FM_NEVER);
        CHECK_INT(fm_handed_admit(&handed, replies[i], 0), FM_OK);
        CHECK(fm_handed_try_park(&handed, replies[i], 100 - 10 * i));
    }
    CHECK(fm_handed_take_due(&handed, 0, &next) == NULL);
    CHECK_INT(next, 80 + 250 * FM_NS_PER_MS);
    CHECK(fm_handed_take_due(&handed, next, &next) == replies[2]);
    for (int i = 0; i < 2; i++)
        CHECK(fm_handed_take_due(&handed, FM_NEVER - 1, &next) != NULL);
    for (int i = 0; i < 3; i++)
        leave(replies[i]);
}

static void
a_queue_that_is_gone_is_remembered_for_a_minute(void)
{
    fm_message *reply = new_reply("gone", FM_NEVER);
    fm_message *other = new_reply("other", FM_NEVER);
    fm_message *optional = new_reply("gone", FM_NEVER);

    optional->mandatory = false;
    fm_handed_init(&handed);
    fm_handed_remember_gone(&handed, reply, 0);
    CHECK_INT(fm_handed_admit(&handed, reply, 1), FM_NOT_FOUND);
    CHECK_INT(fm_handed_admit(&handed, other, 1), FM_OK);
    CHECK_INT(fm_handed_admit(&handed, optional, 1), FM_OK);
    CHECK_INT(handed.count, 2);
    CHECK_INT(fm_handed_admit(&handed, reply, 61 * FM_NS_PER_S), FM_OK);
    leave(reply);
    leave(other);
    leave(optional);
}

static void
only_so_many_gone_queues_are_remembered(void)
{
    fm_message *first = new_reply("first", FM_NEVER);

    fm_handed_init(&handed);
    fm_handed_remember_gone(&handed, first, 0);
    for (int i = 0; i < FM_GONE_QUEUES; i++) {
        char queue[16];
        fm_message *reply;

        snprintf(queue, sizeof(queue), "%d", i);
        reply = new_reply(queue, FM_NEVER);
        fm_handed_remember_gone(&handed, reply, 0);
        CHECK_INT(fm_handed_admit(&handed, reply, 1), FM_NOT_FOUND);
        fm_message_unref(reply);
    }
    CHECK_INT(fm_handed_admit(&handed, first, 1), FM_OK);
    leave(first);
}

int
main(void)
{
    RUN(a_message_ends_once);
    RUN(names_beyond_amqps_limit_are_refused);
    RUN(the_last_reference_frees_what_it_holds);
    RUN(an_error_names_its_message);
    RUN(confirms_come_in_any_order);
    RUN(what_is_recalled_goes_first_and_in_order);
    RUN(a_verdict_and_a_caller_that_gave_up_end_a_message);
    RUN(a_call_that_was_answered_is_not_sent_again);
    RUN(suspects_go_one_at_a_time_until_they_are_settled);
    RUN(the_window_counts_messages_and_bytes);
    RUN(any_unsent_message_can_be_taken_out);
    RUN(a_confirm_ends_all_but_calls);
    RUN(handed_over_bytes_are_bounded);
    RUN(a_returned_reply_is_tried_again_until_its_time_is_over);
    RUN(the_earliest_parked_reply_is_due_first);
    RUN(a_queue_that_is_gone_is_remembered_for_a_minute);
    RUN(only_so_many_gone_queues_are_remembered);
    return 0;
}
