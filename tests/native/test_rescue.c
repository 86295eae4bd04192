/* io/rescue.h without a broker: this thread is the I/O thread, and plays the
 * broker at the other end of the line. Time is what the test says.
 */
#include "io/rescue.h"

#include "base/event.h"
#include "line.h"

#define MS FM_NS_PER_MS
#define S FM_NS_PER_S

enum { OWN_ID = 2, STUCK_ID = 3 };

static fm_waker waker;
static fm_output output;
static fm_rescuer rescuer;
static fm_channel stuck;
static fm_topology *topology;
static line wire;

static const char dead[] =
    "PRECONDITION_FAILED - queue 'two' in vhost '/' not empty";

/* --- the channel that waits --- */

static void
ignore_done(fm_channel *channel)
{
    (void)channel;
}

static void
ignore_closed(fm_channel *channel, const fm_close *why)
{
    (void)channel;
    (void)why;
}

static const fm_channel_ops stuck_ops = { .done = ignore_done,
    .closed = ignore_closed };

static void
flush(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
    fm_output_after_sleep(&output, true);
}

static void
skip_frames(void)
{
    flush();
    while (line_read(&wire, 0))
        continue;
    wire.got.len = 0;
}

static fm_deadline
step_at(int64_t now)
{
    fm_deadline next = fm_rescuer_watch(&rescuer, &stuck, topology, now);
    fm_deadline own = fm_rescuer_step(&rescuer, now);

    flush();
    return own < next ? own : next;
}

/* Queues "one" and "two" are declared; the first is there, the second is not
 * answered. */
static void
set_up(bool durable, bool harden)
{
    fm_script script;

    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_rescuer_init(&rescuer, &output, OWN_ID);
    fm_channel_init(&stuck, &stuck_ops, NULL, &output);
    stuck.id = STUCK_ID;
    line_open(&wire);
    fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, 1);
    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(
        fm_topology_add_queue(topology, &(fm_queue){ .name = "one" }), FM_OK);
    CHECK_INT(fm_topology_add_queue(
                  topology, &(fm_queue){ .name = "two", .durable = durable }),
        FM_OK);
    if (harden)
        fm_topology_harden(topology);
    fm_script_init(&script, STUCK_ID);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    CHECK_INT(fm_channel_run(&stuck, &script), FM_OK);
    fm_script_fini(&script);
    CHECK_INT(feed_method(&stuck, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_method(&stuck, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    skip_frames();
}

static void
tear_down(void)
{
    fm_rescuer_down(&rescuer);
    fm_channel_reset(&stuck);
    CHECK(fm_output_try_quiet(&output));
    fm_output_down(&output);
    line_close(&wire);
    fm_rescuer_fini(&rescuer);
    fm_channel_fini(&stuck);
    fm_topology_unref(topology);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
}

/* --- the broker's part --- */

static void
expect_method(uint32_t id)
{
    uint16_t found = 0;

    CHECK_INT(line_take_method(&wire, &found), id);
    CHECK_INT(found, OWN_ID);
}

/* queue.delete of "two" if it is unused, and `if_empty` */
static void
expect_delete(bool if_empty)
{
    fm_buf payload = { 0 };
    fm_frame frame;
    uint32_t id;

    line_take_frame(&wire, &frame, &payload);
    CHECK_INT(frame.channel, OWN_ID);
    CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
    CHECK_INT(id, FM_METHOD_QUEUE_DELETE);
    CHECK_BYTES(frame.payload + 7, 3, "two", 3);
    CHECK_INT(frame.payload[10] & 3, if_empty ? 3 : 1);
    fm_buf_fini(&payload);
}

static void
refuse(uint16_t code, const char *text)
{
    if (rescuer.channel.script.expect[rescuer.channel.answered]
        == FM_METHOD_CHANNEL_OPEN_OK)
        CHECK_INT(
            feed_method(&rescuer.channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(feed_close(&rescuer.channel, code, text), FM_OK);
    flush();
    expect_method(FM_METHOD_CHANNEL_CLOSE_OK);
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

/* Set up, and have the queue of a declaration that has waited asked for its
 * deletion; the moment of that. */
static int64_t
begin_to_delete(void)
{
    int64_t due;

    set_up(false, true);
    due = step_at(fm_now());
    (void)step_at(due);
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_delete(true);
    return due;
}

static void
expect_left_alone(int64_t due)
{
    CHECK_INT(step_at(due + S), FM_NEVER);
    CHECK(line_is_silent(&wire));
    CHECK_INT(count_events("node that is down"), 0);
}

/* --- the tests --- */

static void
a_dead_queue_is_deleted_when_its_declaration_has_waited(void)
{
    int64_t due;

    set_up(false, true);
    due = step_at(fm_now());
    CHECK(due > fm_now());
    CHECK(due <= stuck.moved_at + S);
    CHECK(line_is_silent(&wire));

    (void)step_at(due);
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_delete(true);
    refuse(406, dead);
    (void)step_at(due);
    expect_method(FM_METHOD_CHANNEL_OPEN);
    expect_delete(false);
    CHECK_INT(feed_method(&rescuer.channel, FM_METHOD_CHANNEL_OPEN_OK), FM_OK);
    CHECK_INT(count_events("node that is down"), 0);
    CHECK_INT(feed_method(&rescuer.channel, FM_METHOD_QUEUE_DELETE_OK), FM_OK);
    CHECK_INT(count_events("'two' was on a node that is down"), 1);

    /* Nothing more while the declaration goes on; the channel is closed. */
    (void)step_at(due + 10 * MS);
    expect_method(FM_METHOD_CHANNEL_CLOSE);
    CHECK_INT(feed_method(&rescuer.channel, FM_METHOD_CHANNEL_CLOSE_OK), FM_OK);
    CHECK_INT(feed_method(&stuck, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    CHECK_INT(stuck.state, FM_CHANNEL_READY);
    CHECK_INT(step_at(due + 10 * S), FM_NEVER);
    CHECK(line_is_silent(&wire));
    tear_down();
}

/* It was busy: the declaration was answered, and its messages are kept. */
static void
a_queue_that_answers_meanwhile_is_left_alone(void)
{
    int64_t due = begin_to_delete();

    CHECK_INT(feed_method(&stuck, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    refuse(406, dead);
    expect_left_alone(due);
    tear_down();
}

/* Two channels of a broker: the answer of one may overtake that of the other.
 */
static void
a_queue_that_answers_a_little_later_is_left_alone(void)
{
    int64_t due = begin_to_delete();

    refuse(406, dead);
    CHECK(step_at(fm_now()) > fm_now());
    CHECK(line_is_silent(&wire));
    CHECK_INT(feed_method(&stuck, FM_METHOD_QUEUE_DECLARE_OK), FM_OK);
    expect_left_alone(due);
    tear_down();
}

static void
what_is_used_or_forbidden_is_asked_for_again_much_later(void)
{
    static const struct {
        uint16_t code;
        const char *text;
    } refusals[] = { { 406, "PRECONDITION_FAILED - queue 'two' in use" },
        { 403, "ACCESS_REFUSED - access to queue 'two' in vhost '/'" } };

    for (size_t i = 0; i < 2; i++) {
        int64_t due, again;

        due = begin_to_delete();
        refuse(refusals[i].code, refusals[i].text);
        again = step_at(fm_now());
        CHECK(again > fm_now() + 3 * S);
        CHECK(line_is_silent(&wire));
        (void)step_at(again);
        expect_method(FM_METHOD_CHANNEL_OPEN);
        expect_delete(true);
        tear_down();
    }
}

static void
what_is_to_be_durable_is_waited_for(void)
{
    set_up(true, true);
    CHECK_INT(step_at(fm_now() + 60 * S), FM_NEVER);
    CHECK(line_is_silent(&wire));
    tear_down();
    set_up(false, false); /* and so it is with a broker that is not strict */
    CHECK_INT(step_at(fm_now() + 60 * S), FM_NEVER);
    CHECK(line_is_silent(&wire));
    tear_down();
}

static void
a_channel_that_goes_is_forgotten(void)
{
    int64_t due = begin_to_delete();

    fm_rescuer_forget(&rescuer, &stuck);
    fm_channel_reset(&stuck);
    refuse(406, dead);
    CHECK_INT(step_at(due + S), FM_NEVER);
    CHECK(line_is_silent(&wire));
    tear_down();
}

int
main(void)
{
    RUN(a_dead_queue_is_deleted_when_its_declaration_has_waited);
    RUN(a_queue_that_answers_meanwhile_is_left_alone);
    RUN(a_queue_that_answers_a_little_later_is_left_alone);
    RUN(what_is_used_or_forbidden_is_asked_for_again_much_later);
    RUN(what_is_to_be_durable_is_waited_for);
    RUN(a_channel_that_goes_is_forgotten);
    return 0;
}
