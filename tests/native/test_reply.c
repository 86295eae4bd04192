/* io/reply.h: who waits for which reply. */
#include "io/reply.h"

#include "check.h"
#include "io/gate.h"

#include <stdlib.h>

enum { CALLERS = 8, CALLS = 2000 };

static fm_reply_table table;

static fm_message *
new_call(const char *msg_id)
{
    fm_message *call;

    CHECK_INT(fm_message_new(FM_LANE_RPC, "", "a queue", &call), FM_OK);
    snprintf(call->msg_id, sizeof(call->msg_id), "%s", msg_id);
    return call;
}

static fm_status
deliver(const char *msg_id, const char *text, bool ending)
{
    fm_reply_head head = { .ending = ending };
    fm_buf body = { 0 };
    fm_status status;

    snprintf(head.msg_id, sizeof(head.msg_id), "%s", msg_id);
    CHECK_INT(fm_buf_append(&body, text, strlen(text)), FM_OK);
    status = fm_reply_deliver(&table, &head, false, &body);
    CHECK_INT(body.len, status == FM_OK ? 0 : strlen(text));
    fm_buf_fini(&body);
    return status;
}

static void
expect_reply(fm_message *call, const char *text, bool ending)
{
    fm_reply *reply;

    CHECK(fm_reply_is_there(&table, call));
    reply = fm_reply_try_take(&table, call);
    CHECK(reply != NULL);
    CHECK_BYTES(reply->body.data, reply->body.len, text, strlen(text));
    CHECK_INT(reply->ending, ending);
    fm_reply_free(reply);
}

static void
a_reply_wakes_its_call_and_no_other(void)
{
    fm_message *one = new_call("1"), *two = new_call("2");
    unsigned before = fm_wake_read(&two->wake);

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, one), FM_OK);
    CHECK_INT(fm_reply_expect(&table, two), FM_OK);
    CHECK_INT(fm_reply_waiting(&table), 2);
    CHECK(fm_reply_try_take(&table, one) == NULL);
    CHECK_INT(deliver("1", "hello", true), FM_OK);
    CHECK_INT(fm_message_status(one), FM_OK);
    CHECK_INT(fm_message_status(two), FM_AGAIN);
    CHECK_INT(fm_wake_read(&two->wake), before);
    CHECK(!fm_reply_is_there(&table, two));
    expect_reply(one, "hello", true);
    CHECK(fm_reply_try_take(&table, one) == NULL);
    fm_reply_forget(&table, one);
    fm_reply_forget(&table, two);
    fm_reply_forget(&table, two); /* twice is once */
    CHECK_INT(fm_reply_waiting(&table), 0);
    fm_message_unref(one);
    fm_message_unref(two);
    fm_reply_table_fini(&table);
}

static void
replies_before_the_last_keep_the_call_open(void)
{
    fm_message *call = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    CHECK_INT(deliver("1", "alive", false), FM_OK);
    CHECK_INT(deliver("1", "still", false), FM_OK);
    CHECK_INT(fm_message_status(call), FM_AGAIN);
    expect_reply(call, "alive", false);
    CHECK_INT(deliver("1", "done", true), FM_OK);
    CHECK_INT(fm_message_status(call), FM_OK);
    expect_reply(call, "still", false);
    expect_reply(call, "done", true);
    fm_reply_forget(&table, call);
    fm_message_unref(call);
    fm_reply_table_fini(&table);
}

static uint64_t
round_trips(void)
{
    uint64_t count = 0;

    for (int i = 0; i < FM_HISTOGRAM_BUCKETS; i++)
        count += fm_counter_get(&table.round_trips.buckets[i]);
    return count;
}

static void
a_round_trip_ends_with_the_last_reply(void)
{
    fm_message *call = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    call->asked -= 3 * FM_NS_PER_S; /* as if it had been so long ago */
    CHECK_INT(deliver("1", "alive", false), FM_OK);
    CHECK_INT(deliver("2", "unknown", true), FM_NOT_FOUND);
    CHECK_INT(round_trips(), 0);
    CHECK_INT(deliver("1", "done", true), FM_OK);
    CHECK_INT(deliver("1", "again", true), FM_NOT_FOUND);
    CHECK_INT(round_trips(), 1);
    CHECK(fm_counter_get(&table.round_trips.sum_us) >= 3000000);
    CHECK_INT(fm_counter_get(&table.round_trips.buckets[22]), 1);
    expect_reply(call, "alive", false);
    expect_reply(call, "done", true);
    fm_reply_forget(&table, call);
    fm_message_unref(call);
    fm_reply_table_fini(&table);
}

static void
late_and_unknown_replies_are_counted(void)
{
    fm_message *call = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(deliver("1", "early", true), FM_NOT_FOUND);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    fm_reply_forget(&table, call);
    CHECK_INT(deliver("1", "late", true), FM_NOT_FOUND);
    CHECK_INT(deliver("", "to nobody", true), FM_NOT_FOUND);
    CHECK_INT(atomic_load(&table.late), 3);
    fm_message_unref(call);
    fm_reply_table_fini(&table);
}

/* What comes after the end is nobody's, though the caller may not have taken
 * the reply yet. */
static void
a_second_last_reply_is_late(void)
{
    fm_message *call = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    CHECK_INT(deliver("1", "one", true), FM_OK);
    CHECK_INT(deliver("1", "two", true), FM_NOT_FOUND);
    CHECK_INT(atomic_load(&table.late), 1);
    expect_reply(call, "one", true);
    CHECK(!fm_reply_is_there(&table, call));
    fm_reply_forget(&table, call);
    fm_message_unref(call);
    fm_reply_table_fini(&table);
}

static void
an_id_waits_once(void)
{
    fm_message *one = new_call("1"), *two = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, one), FM_OK);
    CHECK_INT(fm_reply_expect(&table, two), FM_FULL);
    fm_reply_forget(&table, two); /* was never in, and leaves the other */
    CHECK_INT(fm_reply_waiting(&table), 1);
    CHECK_INT(deliver("1", "x", true), FM_OK);
    expect_reply(one, "x", true);
    fm_reply_forget(&table, one);
    CHECK_INT(fm_reply_expect(&table, two), FM_OK);
    fm_reply_forget(&table, two);
    fm_message_unref(one);
    fm_message_unref(two);
    fm_reply_table_fini(&table);
}

static void
replies_that_nobody_took_go_with_the_call(void)
{
    fm_message *call = new_call("1");

    fm_reply_table_init(&table);
    CHECK_INT(fm_reply_expect(&table, call), FM_OK);
    CHECK_INT(deliver("1", "alive", false), FM_OK);
    CHECK_INT(deliver("1", "done", true), FM_OK);
    fm_reply_forget(&table, call);
    fm_message_unref(call); /* and the leak checker looks */
    fm_reply_table_fini(&table);
}

static void
all_waiting_calls_can_be_failed(void)
{
    fm_message *calls[3];
    fm_error error = { .status = FM_CLOSED, .text = "closed" };

    fm_reply_table_init(&table);
    for (int i = 0; i < 3; i++) {
        char id[16];

        snprintf(id, sizeof(id), "%d", i);
        calls[i] = new_call(id);
        CHECK_INT(fm_reply_expect(&table, calls[i]), FM_OK);
    }
    CHECK_INT(deliver("1", "in time", true), FM_OK);
    fm_reply_fail_all(&table, NULL, &error);
    CHECK_INT(fm_message_status(calls[0]), FM_CLOSED);
    CHECK_TEXT(calls[0]->error.text, "closed");
    CHECK_INT(fm_message_status(calls[1]), FM_OK);
    expect_reply(calls[1], "in time", true);
    for (int i = 0; i < 3; i++) {
        fm_reply_forget(&table, calls[i]);
        fm_message_unref(calls[i]);
    }
    fm_reply_table_fini(&table);
}

static void
the_calls_of_one_reply_queue_can_be_failed(void)
{
    fm_message *one = new_call("1"), *two = new_call("2"),
               *none = new_call("3");
    fm_error error = { .status = FM_CLOSED, .text = "closed" };

    fm_reply_table_init(&table);
    CHECK_INT(fm_gate_new(&one->gate), FM_OK);
    CHECK_INT(fm_gate_new(&two->gate), FM_OK);
    CHECK_INT(fm_reply_expect(&table, one), FM_OK);
    CHECK_INT(fm_reply_expect(&table, two), FM_OK);
    CHECK_INT(fm_reply_expect(&table, none), FM_OK);
    fm_reply_fail_all(&table, one->gate, &error);
    CHECK_INT(fm_message_status(one), FM_CLOSED);
    CHECK_INT(fm_message_status(two), FM_AGAIN);
    CHECK_INT(fm_message_status(none), FM_AGAIN);
    fm_reply_forget(&table, one);
    fm_reply_forget(&table, two);
    fm_reply_forget(&table, none);
    fm_message_unref(one);
    fm_message_unref(two);
    fm_message_unref(none);
    fm_reply_table_fini(&table);
}

/* --- callers that come and go while replies arrive --- */

static atomic_bool done;
static atomic_int answered;

static void *
call_often(void *arg)
{
    int who = *(int *)arg;
    unsigned seed = (unsigned)who;

    for (int i = 0; i < CALLS; i++) {
        char id[16];
        fm_message *call;
        fm_reply *reply = NULL;

        snprintf(id, sizeof(id), "%d", who);
        call = new_call(id);
        CHECK_INT(fm_reply_expect(&table, call), FM_OK);
        while (rand_r(&seed) % 4 != 0) { /* or give up */
            unsigned seen = fm_wake_read(&call->wake);

            reply = fm_reply_try_take(&table, call);
            if (reply != NULL)
                break;
            (void)!fm_wake_wait(&call->wake, seen, fm_deadline_in(20 * 1000));
        }
        if (reply != NULL) {
            CHECK_BYTES(reply->body.data, reply->body.len, id, strlen(id));
            atomic_fetch_add(&answered, 1);
            fm_reply_free(reply);
        }
        fm_reply_forget(&table, call);
        CHECK(!call->expected);
        fm_message_unref(call);
    }
    return NULL;
}

static void *
answer_often(void *arg)
{
    for (unsigned i = 0; !atomic_load(&done); i++) {
        char id[16];
        fm_status status;

        snprintf(id, sizeof(id), "%d", (int)(i % CALLERS));
        status = deliver(id, id, i % 3 == 0);
        CHECK(status == FM_OK || status == FM_NOT_FOUND);
    }
    return arg;
}

static void
callers_may_give_up_while_replies_arrive(void)
{
    fm_thread callers[CALLERS], io;
    int who[CALLERS];

    fm_reply_table_init(&table);
    CHECK_INT(fm_thread_start(&io, "io", answer_often, NULL), FM_OK);
    for (int i = 0; i < CALLERS; i++) {
        who[i] = i;
        CHECK_INT(
            fm_thread_start(&callers[i], "caller", call_often, &who[i]), FM_OK);
    }
    for (int i = 0; i < CALLERS; i++)
        fm_thread_join(&callers[i]);
    atomic_store(&done, true);
    fm_thread_join(&io);
    CHECK_INT(fm_reply_waiting(&table), 0);
    CHECK(atomic_load(&answered) > 0);
    fm_reply_table_fini(&table);
}

int
main(void)
{
    RUN(a_reply_wakes_its_call_and_no_other);
    RUN(replies_before_the_last_keep_the_call_open);
    RUN(a_round_trip_ends_with_the_last_reply);
    RUN(late_and_unknown_replies_are_counted);
    RUN(a_second_last_reply_is_late);
    RUN(an_id_waits_once);
    RUN(replies_that_nobody_took_go_with_the_call);
    RUN(all_waiting_calls_can_be_failed);
    RUN(the_calls_of_one_reply_queue_can_be_failed);
    RUN(callers_may_give_up_while_replies_arrive);
    return 0;
}
