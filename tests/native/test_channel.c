/* io/channel.h: scripts and content, from a broker that may be hostile. */
#include "io/channel.h"

#include "line.h"

#include <stdlib.h>

static fm_waker waker;
static fm_output output;
static fm_channel channel;

/* What the owner was told. */
static struct {
    int done, closed, methods, contents;
    uint16_t code;
    uint32_t method;
    fm_status answer;  /* to methods */
    fm_delivery *last; /* owned */
} told;

static void
on_done(fm_channel *from)
{
    CHECK(from == &channel);
    told.done++;
}

static void
on_closed(fm_channel *from, const fm_close *why)
{
    CHECK(from == &channel);
    CHECK_INT(channel.state, FM_CHANNEL_CLOSED);
    told.closed++;
    told.code = why->code;
}

static fm_status
on_method(fm_channel *from, uint32_t id, fm_slice payload)
{
    CHECK(from == &channel && payload.len >= 4);
    told.methods++;
    told.method = id;
    return told.answer;
}

static void
on_content(fm_channel *from, fm_delivery *delivery)
{
    CHECK(from == &channel);
    told.contents++;
    fm_delivery_free(told.last);
    told.last = delivery;
}

static const fm_channel_ops ops = {
    .done = on_done,
    .closed = on_closed,
    .method = on_method,
    .content = on_content,
};
static const fm_channel_ops return_ops = {
    .done = on_done,
    .closed = on_closed,
    .method = on_method,
    .content = on_content,
    .returns = true,
};

static void
set_up(const fm_channel_ops *which)
{
    memset(&told, 0, sizeof(told));
    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_channel_init(&channel, which, NULL, &output);
    channel.id = 7;
}

static void
tear_down(void)
{
    fm_delivery_free(told.last);
    fm_channel_fini(&channel);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
}

/* Run a script and answer it in full. */
static void
open_channel(void)
{
    fm_script script;

    fm_script_init(&script, channel.id);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_script_add_qos(&script, 10), FM_OK);
    CHECK_INT(fm_channel_run(&channel, &script), FM_OK);
    CHECK_INT(feed_method(&channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(told.done, 0);
    CHECK_INT(channel.state, FM_CHANNEL_BUSY);
    CHECK_INT(feed_method(&channel, FM_METHOD_BASIC_QOS_OK), FM_OK);
    CHECK_INT(told.done, 1);
    CHECK_INT(channel.state, FM_CHANNEL_READY);
    output.out.len = 0;
}

static void
close_channel(void)
{
    fm_script script;

    fm_script_init(&script, channel.id);
    CHECK_INT(fm_script_add_close(&script), FM_OK);
    CHECK_INT(fm_channel_run(&channel, &script), FM_OK);
}

/* The only method in the output. */
static uint32_t
sent_method(void)
{
    fm_frame frame;
    size_t used;
    uint32_t id;

    CHECK_INT(fm_frame_split(output.out.data, output.out.len,
                  FM_FRAME_MAX_LEAST, &frame, &used),
        FM_OK);
    CHECK_INT(used, output.out.len);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
    return id;
}

/* --- scripts --- */

static void
a_script_is_done_with_its_last_answer(void)
{
    set_up(&ops);
    open_channel();
    CHECK_INT(told.methods, 0);
    tear_down();
}

static void
answers_out_of_order_are_the_owners_business(void)
{
    fm_script script;

    set_up(&ops);
    fm_script_init(&script, channel.id);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_script_add_qos(&script, 10), FM_OK);
    CHECK_INT(fm_channel_run(&channel, &script), FM_OK);
    told.answer = FM_BAD_FRAME;
    CHECK_INT(feed_method(&channel, FM_METHOD_BASIC_QOS_OK), FM_BAD_FRAME);
    CHECK_INT(told.method, FM_METHOD_BASIC_QOS_OK);
    CHECK_INT(told.done, 0);
    tear_down();
}

static void
each_opening_is_a_generation(void)
{
    uint64_t first;

    set_up(&ops);
    CHECK_INT(channel.generation, 0);
    open_channel();
    first = channel.generation;
    CHECK(first != 0);
    close_channel();
    CHECK_INT(channel.generation, 0); /* no ack may follow the close */
    CHECK_INT(feed_method(&channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
    CHECK_INT(channel.state, FM_CHANNEL_CLOSED);
    CHECK_INT(told.done, 2);
    told.done = 0;
    open_channel();
    CHECK(channel.generation > first);
    tear_down();
}

static void
a_close_by_the_broker_is_answered_and_told(void)
{
    set_up(&ops);
    open_channel();
    CHECK_INT(feed_close(&channel, 404, "NOT_FOUND"), FM_OK);
    CHECK_INT(told.closed, 1);
    CHECK_INT(told.code, 404);
    CHECK_INT(channel.generation, 0);
    CHECK_INT(sent_method(), FM_METHOD_CHANNEL_CLOSE_OK);
    tear_down();
}

/* Both sides close at once: the broker answers our close all the same, even
 * when we have the channel's number in use again. */
static void
closes_that_cross_leave_the_channel_usable(void)
{
    fm_script script;

    set_up(&ops);
    open_channel();
    close_channel();
    CHECK_INT(feed_close(&channel, 406, "PRECONDITION_FAILED"), FM_OK);
    CHECK_INT(told.closed, 1);
    told.answer = FM_BAD_FRAME;
    fm_script_init(&script, channel.id);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_channel_run(&channel, &script), FM_OK);
    CHECK_INT(feed_method(&channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
    CHECK_INT(feed_method(&channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(channel.state, FM_CHANNEL_READY);
    CHECK_INT(told.methods, 0);
    tear_down();
}

static void
a_malformed_method_ends_the_connection(void)
{
    fm_buf payload = { 0 };

    set_up(&ops);
    open_channel();
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &payload), FM_BAD_FRAME);
    add_u16(&payload, 60);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &payload), FM_BAD_FRAME);
    payload.len = 0;
    add_u32(&payload, FM_METHOD_CHANNEL_CLOSE);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &payload), FM_BAD_FRAME);
    CHECK_INT(told.closed, 0);
    CHECK_INT(feed(&channel, FM_FRAME_HEARTBEAT, &payload), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, 77, &payload), FM_BAD_FRAME);
    fm_buf_fini(&payload);
    tear_down();
}

/* --- content --- */

static void
a_delivery_is_put_together(void)
{
    fm_buf method = { 0 }, header = { 0 }, body = { 0 };

    set_up(&ops);
    open_channel();
    build_deliver(&method, "1", 42);
    build_header(&header, 10);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &method), FM_OK);
    CHECK_INT(feed(&channel, FM_FRAME_HEADER, &header), FM_OK);
    CHECK_INT(fm_buf_append(&body, "hello", 5), FM_OK);
    CHECK_INT(feed(&channel, FM_FRAME_BODY, &body), FM_OK);
    CHECK_INT(told.contents, 0);
    CHECK_INT(feed(&channel, FM_FRAME_BODY, &body), FM_OK);
    CHECK_INT(told.contents, 1);
    /* The frames may go: the receive buffer moves on. */
    memset(method.data, 0xff, method.len);
    memset(body.data, 0xff, body.len);
    CHECK_BYTES(told.last->body.data, told.last->body.len, "hellohello", 10);
    CHECK_INT(told.last->deliver.delivery_tag, 42);
    CHECK_BYTES(told.last->deliver.consumer_tag.data,
        told.last->deliver.consumer_tag.len, "1", 1);
    CHECK_BYTES(told.last->deliver.exchange.data,
        told.last->deliver.exchange.len, "an exchange", 11);
    CHECK_INT(told.last->return_code, 0);
    CHECK_INT(told.last->generation, channel.generation);
    fm_buf_fini(&method);
    fm_buf_fini(&header);
    fm_buf_fini(&body);
    tear_down();
}

static void
an_empty_body_has_no_frame(void)
{
    set_up(&ops);
    open_channel();
    CHECK_INT(feed_delivery(&channel, "1", 1, ""), FM_OK);
    CHECK_INT(told.contents, 1);
    CHECK_INT(told.last->body.len, 0);
    CHECK_INT(feed_delivery(&channel, "1", 2, "x"), FM_OK);
    CHECK_INT(told.contents, 2);
    tear_down();
}

static void
a_returned_message_has_a_code(void)
{
    fm_buf method = { 0 };

    set_up(&return_ops);
    open_channel();
    build_return(&method, "e", "k");
    CHECK_INT(feed_content(&channel, &method, "body"), FM_OK);
    CHECK_INT(told.last->return_code, 312);
    CHECK_BYTES(told.last->deliver.routing_key.data,
        told.last->deliver.routing_key.len, "k", 1);
    fm_buf_fini(&method);
    tear_down();
}

/* A consumer has nothing that could be returned, and a publisher consumes
 * nothing: neither would know what to do with it. */
static void
content_of_the_wrong_kind_ends_the_connection(void)
{
    fm_buf method = { 0 };

    set_up(&ops);
    open_channel();
    build_return(&method, "e", "k");
    CHECK_INT(feed_content(&channel, &method, "body"), FM_BAD_FRAME);
    tear_down();
    set_up(&return_ops);
    open_channel();
    CHECK_INT(feed_delivery(&channel, "1", 1, "body"), FM_BAD_FRAME);
    CHECK_INT(told.contents, 0);
    fm_buf_fini(&method);
    tear_down();
}

static void
content_out_of_order_ends_the_connection(void)
{
    fm_buf method = { 0 }, header = { 0 }, body = { 0 };

    build_deliver(&method, "1", 1);
    build_header(&header, 4);
    CHECK_INT(fm_buf_append(&body, "12345", 5), FM_OK);

    set_up(&ops);
    open_channel();
    CHECK_INT(feed(&channel, FM_FRAME_HEADER, &header), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, FM_FRAME_BODY, &body), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &method), FM_OK);
    CHECK_INT(feed(&channel, FM_FRAME_BODY, &body), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &method), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, FM_FRAME_HEADER, &header), FM_OK);
    CHECK_INT(feed(&channel, FM_FRAME_HEADER, &header), FM_BAD_FRAME);
    CHECK_INT(feed(&channel, FM_FRAME_BODY, &body), FM_BAD_FRAME); /* 5 > 4 */
    CHECK_INT(told.contents, 0);
    tear_down();
    fm_buf_fini(&method);
    fm_buf_fini(&header);
    fm_buf_fini(&body);
}

static void
a_claimed_size_takes_no_memory(void)
{
    fm_buf method = { 0 }, header = { 0 };

    set_up(&ops);
    open_channel();
    build_deliver(&method, "1", 1);
    build_header(&header, UINT64_MAX);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &method), FM_OK);
    CHECK_INT(feed(&channel, FM_FRAME_HEADER, &header), FM_OK);
    CHECK(channel.partial->body.cap <= 2 * 1024 * 1024);
    fm_buf_fini(&method);
    fm_buf_fini(&header);
    tear_down();
}

static void
a_lost_connection_forgets_what_was_under_way(void)
{
    fm_buf method = { 0 };

    set_up(&ops);
    open_channel();
    build_deliver(&method, "1", 1);
    CHECK_INT(feed(&channel, FM_FRAME_METHOD, &method), FM_OK);
    close_channel();
    fm_channel_reset(&channel);
    CHECK_INT(channel.state, FM_CHANNEL_CLOSED);
    CHECK_INT(channel.generation, 0);
    told.done = 0;
    open_channel();
    CHECK_INT(feed_delivery(&channel, "1", 1, "whole"), FM_OK);
    CHECK_INT(told.contents, 1);
    fm_buf_fini(&method);
    tear_down();
}

/* --- anything at all --- */

/* Frames at random, many of them nearly right, and what is right among them
 * has the right size. The sanitizers see whether a byte too many is read. */
static void
random_frames_do_no_harm(void)
{
    static const uint8_t types[] = { FM_FRAME_METHOD, FM_FRAME_HEADER,
        FM_FRAME_BODY, FM_FRAME_METHOD, FM_FRAME_HEADER, FM_FRAME_BODY,
        FM_FRAME_HEARTBEAT, 0 };
    fm_buf payload = { 0 };
    int whole = 0, turns = 0;

    srand(20);
    for (int round = 0; round < 20000; round++) {
        bool alive = true;

        set_up(round % 2 == 0 ? &ops : &return_ops);
        told.answer = round % 3 == 0 ? FM_BAD_FRAME : FM_OK;
        open_channel();
        while (alive && turns++ < 2000 * 1000) {
            /* Mostly what should come next, for otherwise most rounds would
             * end with the first frame. */
            int next = channel.partial == NULL ? 0
                : !channel.has_header          ? 1
                                               : 2;
            int kind = rand() % 10 < 9 ? next : rand() % 8;
            size_t size = (size_t)(rand() % 40);

            if (channel.has_header && rand() % 20 != 0) { /* what is missing */
                uint64_t left = channel.partial->content.body_size
                    - channel.partial->body.len;

                size = left < 40 ? (size_t)left : 40;
            }
            payload.len = 0;
            if (kind == 0 || kind == 3) {
                if (rand() % 8 == 0)
                    build_return(&payload, "e", "k");
                else if (round % 2 == 1)
                    build_return(&payload, "some exchange", "some key");
                else
                    build_deliver(&payload, "1", (uint64_t)rand());
            } else if (kind == 1) {
                build_header(&payload,
                    rand() % 5 == 0 ? (uint64_t)rand() << (rand() % 40) : size);
            } else {
                for (size_t i = 0; i < size; i++)
                    add_u8(&payload, (uint8_t)rand());
            }
            if (payload.len > 0 && rand() % 6 == 0)
                payload.data[(size_t)rand() % payload.len] = (uint8_t)rand();
            if (payload.len > 0 && rand() % 10 == 0)
                payload.len = (size_t)rand() % payload.len;
            if (payload.len > 0) { /* right at the end of an allocation */
                uint8_t *exact = malloc(payload.len);
                fm_frame frame = { types[kind % 8], channel.id, exact,
                    payload.len };
                fm_error error = { .status = FM_OK };

                CHECK(exact != NULL);
                memcpy(exact, payload.data, payload.len);
                alive =
                    fm_channel_take_frame(&channel, &frame, &error) == FM_OK;
                free(exact);
            }
            if (told.closed > 0)
                alive = false;
        }
        if (told.last != NULL) {
            CHECK_INT(told.last->body.len, told.last->content.body_size);
            whole += told.contents;
        }
        tear_down();
    }
    CHECK(whole > 10000);
    fm_buf_fini(&payload);
}

int
main(void)
{
    RUN(a_script_is_done_with_its_last_answer);
    RUN(answers_out_of_order_are_the_owners_business);
    RUN(each_opening_is_a_generation);
    RUN(a_close_by_the_broker_is_answered_and_told);
    RUN(closes_that_cross_leave_the_channel_usable);
    RUN(a_malformed_method_ends_the_connection);
    RUN(a_delivery_is_put_together);
    RUN(an_empty_body_has_no_frame);
    RUN(a_returned_message_has_a_code);
    RUN(content_of_the_wrong_kind_ends_the_connection);
    RUN(content_out_of_order_ends_the_connection);
    RUN(a_claimed_size_takes_no_memory);
    RUN(a_lost_connection_forgets_what_was_under_way);
    RUN(random_frames_do_no_harm);
    return 0;
}
