/* io/output.h: many writers, one socket, and no frame torn apart. */
#include "io/output.h"

#include "line.h"

#include <stdlib.h>

enum { WRITERS = 8, EACH = 3000 };

static fm_waker waker;
static fm_output output;
static line wire;

static void
set_up(void)
{
    line_open(&wire);
    CHECK_INT(fm_waker_init(&waker), FM_OK);
    fm_output_init(&output, &waker);
    fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, 1);
}

static void
tear_down(void)
{
    CHECK(fm_output_try_quiet(&output));
    fm_output_down(&output);
    fm_output_fini(&output);
    fm_waker_fini(&waker);
    line_close(&wire);
}

static bool
is_signalled(void)
{
    struct pollfd look = { .fd = waker.fd, .events = POLLIN };
    bool is = poll(&look, 1, 0) == 1;

    fm_waker_drain(&waker);
    return is;
}

static void
append(const char *text)
{
    fm_mutex_lock(&output.lock);
    CHECK_INT(fm_buf_append(&output.out, text, strlen(text)), FM_OK);
    fm_output_push_locked(&output);
    fm_mutex_unlock(&output.lock);
}

/* What the I/O thread does before it polls; is there room to be polled for? */
static bool
go_to_sleep(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
    return want_room;
}

static void
expect_bytes(const char *text)
{
    while (wire.got.len < strlen(text))
        CHECK(line_read(&wire, 10 * 1000));
    CHECK_BYTES(wire.got.data, wire.got.len, text, strlen(text));
    wire.got.len = 0;
}

static size_t
pending(void)
{
    size_t bytes;

    fm_mutex_lock(&output.lock);
    bytes = fm_output_pending_locked(&output);
    fm_mutex_unlock(&output.lock);
    return bytes;
}

/* --- who sends --- */

static void
a_writer_sends_itself_while_the_io_thread_sleeps(void)
{
    set_up();
    CHECK(!go_to_sleep());
    append("one");
    expect_bytes("one");
    CHECK(!is_signalled());
    tear_down();
}

static void
a_writer_leaves_it_to_an_io_thread_that_is_awake(void)
{
    set_up();
    append("one");
    append("two");
    CHECK(line_is_silent(&wire));
    CHECK(!go_to_sleep());
    expect_bytes("onetwo");
    fm_output_after_sleep(&output, false);
    append("three");
    CHECK(line_is_silent(&wire));
    CHECK(!go_to_sleep());
    expect_bytes("three");
    tear_down();
}

/* --- a kernel that is full --- */

/* Append until the kernel takes no more; returns how much that was. */
static size_t
fill(void)
{
    char block[4096];
    size_t total = 0;
    bool stuck = false;

    while (!stuck) {
        fm_mutex_lock(&output.lock);
        for (size_t i = 0; i < sizeof(block); i++)
            block[i] = (char)((total + i) % 251);
        CHECK_INT(fm_buf_append(&output.out, block, sizeof(block)), FM_OK);
        total += sizeof(block);
        fm_output_push_locked(&output);
        stuck = output.stuck;
        fm_mutex_unlock(&output.lock);
    }
    return total;
}

static void
expect_filling(size_t total)
{
    size_t seen = 0;

    while (seen < total) {
        if (pending() > 0) {
            go_to_sleep();
            fm_output_after_sleep(&output, true);
        }
        CHECK(line_read(&wire, 10 * 1000));
        for (size_t i = 0; i < wire.got.len; i++)
            CHECK_INT(wire.got.data[i], (uint8_t)((seen + i) % 251));
        seen += wire.got.len;
        wire.got.len = 0;
    }
    CHECK_INT(seen, total);
}

static void
what_the_kernel_refuses_waits_for_room(void)
{
    size_t total;

    set_up();
    CHECK(!go_to_sleep());
    total = fill();
    CHECK(is_signalled()); /* somebody has to poll for room */
    CHECK(go_to_sleep());
    expect_filling(total);
    CHECK_INT(pending(), 0);
    fm_output_after_sleep(&output, true);
    CHECK(!go_to_sleep());
    tear_down();
}

/* The I/O thread looks at a stuck output before each sleep; if that woke it
 * up again, it would spin until the peer reads. */
static void
a_stuck_output_lets_the_io_thread_sleep(void)
{
    set_up();
    CHECK(!go_to_sleep());
    (void)fill();
    CHECK(is_signalled());
    for (int i = 0; i < 3; i++) {
        fm_output_after_sleep(&output, false);
        CHECK(go_to_sleep());
        CHECK(!is_signalled());
        append("more"); /* room is polled for already */
        CHECK(!is_signalled());
    }
    tear_down();
}

/* --- the end --- */

static void
a_failed_write_is_told_to_the_io_thread(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    set_up();
    CHECK(!go_to_sleep());
    close(wire.far);
    wire.far = -1;
    /* The first write may still go, and is answered by a reset. */
    for (int i = 0; i < 100 && !is_signalled(); i++) {
        append("anybody there?");
        usleep(1000);
    }
    CHECK(fm_output_before_sleep(&output, &want_room, &error) != FM_OK);
    CHECK(error.status != FM_OK);
    CHECK_HAS(error.text, "127.0.0.1");
    tear_down();
}

static void
a_connection_begins_without_the_bytes_of_the_last(void)
{
    line second;

    set_up();
    append("for the first"); /* not sent: the I/O thread is awake */
    CHECK(fm_output_try_quiet(&output));
    append("for nobody");
    fm_output_down(&output);
    CHECK_INT(pending(), 0);
    line_open(&second);
    fm_output_up(&output, second.near, FM_FRAME_MAX_MOST, 2);
    append("for the second");
    CHECK(!go_to_sleep());
    CHECK(line_read(&second, 10 * 1000));
    CHECK_BYTES(second.got.data, second.got.len, "for the second", 14);
    CHECK(line_is_silent(&wire));
    tear_down();
    line_close(&second);
}

/* --- many writers --- */

/* A frame: its writer, its number in two bytes, filling, an end. */
static void *
write_frames(void *arg)
{
    uint8_t who = *(uint8_t *)arg;
    uint8_t frame[256];
    unsigned seed = who;

    memset(frame, who, sizeof(frame));
    for (uint16_t i = 0; i < EACH; i++) {
        size_t len = 5 + (size_t)rand_r(&seed) % 250;

        frame[0] = who;
        fm_store_u16(frame + 1, i);
        frame[3] = (uint8_t)len;
        memset(frame + 4, who, len - 5);
        frame[len - 1] = 0xCE;
        fm_mutex_lock(&output.lock);
        CHECK_INT(fm_buf_append(&output.out, frame, len), FM_OK);
        fm_output_push_locked(&output);
        fm_mutex_unlock(&output.lock);
    }
    return NULL;
}

static atomic_bool writers_are_done;

/* The loop, as loop.c and conn.c have it. */
static void *
io_thread(void *arg)
{
    bool done = false;

    while (!done || pending() > 0) {
        fm_error error = { .status = FM_OK };
        struct pollfd polls[2] = { { .fd = waker.fd, .events = POLLIN },
            { .fd = fm_socket_fd(wire.near) } };
        bool want_room;

        done = atomic_load(&writers_are_done);
        CHECK_INT(fm_output_before_sleep(&output, &want_room, &error), FM_OK);
        polls[1].events = want_room ? POLLOUT : 0;
        CHECK(poll(polls, 2, done ? 1 : 20 * 1000) > 0 || done);
        fm_waker_drain(&waker);
        fm_output_after_sleep(&output, (polls[1].revents & POLLOUT) != 0);
    }
    return arg;
}

static void
frames_of_many_writers_stay_whole_and_in_order(void)
{
    uint8_t who[WRITERS];
    int next[WRITERS] = { 0 };
    fm_thread writers[WRITERS], io;
    int left = WRITERS * EACH;

    set_up();
    CHECK_INT(fm_thread_start(&io, "io", io_thread, NULL), FM_OK);
    for (int i = 0; i < WRITERS; i++) {
        who[i] = (uint8_t)i;
        CHECK_INT(fm_thread_start(&writers[i], "writer", write_frames, &who[i]),
            FM_OK);
    }
    while (left > 0) {
        size_t at = 0;

        CHECK(line_read(&wire, 20 * 1000));
        while (wire.got.len - at >= 4
            && wire.got.len - at >= wire.got.data[at + 3]) {
            const uint8_t *frame = wire.got.data + at;
            size_t len = frame[3];

            CHECK(frame[0] < WRITERS && len >= 5);
            CHECK_INT(fm_load_u16(frame + 1), next[frame[0]]);
            next[frame[0]]++;
            for (size_t i = 4; i < len - 1; i++)
                CHECK_INT(frame[i], frame[0]);
            CHECK_INT(frame[len - 1], 0xCE);
            at += len;
            left--;
        }
        fm_buf_consume(&wire.got, at);
        if (left % 7 == 0)
            usleep(200); /* let it fill up now and then */
    }
    for (int i = 0; i < WRITERS; i++)
        fm_thread_join(&writers[i]);
    atomic_store(&writers_are_done, true);
    fm_waker_signal(&waker);
    fm_thread_join(&io);
    CHECK_INT(wire.got.len, 0);
    tear_down();
}

/* The connection goes while writers are in the system call: nobody may use
 * the socket once the output is quiet. */
static void
a_socket_is_left_before_it_is_freed(void)
{
    uint8_t who[WRITERS];
    fm_thread writers[WRITERS];

    set_up();
    CHECK(!go_to_sleep());
    for (int i = 0; i < WRITERS; i++) {
        who[i] = (uint8_t)i;
        CHECK_INT(fm_thread_start(&writers[i], "writer", write_frames, &who[i]),
            FM_OK);
    }
    for (uint64_t epoch = 2; epoch < 60; epoch++) {
        struct pollfd look = { .fd = waker.fd, .events = POLLIN };

        while (line_read(&wire, 1) && wire.got.len < 20000)
            fm_output_after_sleep(&output, true);
        while (!fm_output_try_quiet(&output)) {
            CHECK_INT(poll(&look, 1, 10 * 1000), 1); /* the writer wakes us */
            fm_waker_drain(&waker);
        }
        fm_output_down(&output);
        line_close(&wire);
        line_open(&wire);
        fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, epoch);
        (void)go_to_sleep();
    }
    for (int i = 0; i < WRITERS; i++)
        fm_thread_join(&writers[i]);
    tear_down();
}

/* What could not be appended is the end of the connection, and of that alone.
 */
static void
want_of_memory_is_told_to_the_io_thread(void)
{
    fm_error error = { .status = FM_OK };
    bool want_room;

    set_up();
    CHECK(!fm_output_was_starved(&output));
    fm_output_starve(&output);
    CHECK(fm_output_was_starved(&output));
    CHECK(!fm_output_was_starved(&output));
    fm_mutex_lock(&output.lock);
    fm_output_fail_locked(&output, "a test");
    fm_mutex_unlock(&output.lock);
    CHECK(is_signalled());
    CHECK_INT(
        fm_output_before_sleep(&output, &want_room, &error), FM_NO_MEMORY);
    CHECK_TEXT(error.text, "out of memory for a test");
    fm_output_after_sleep(&output, false);
    CHECK(fm_output_try_quiet(&output));
    fm_output_down(&output);
    fm_mutex_lock(&output.lock);
    fm_output_fail_locked(&output, "nobody");
    fm_mutex_unlock(&output.lock);
    fm_output_up(&output, wire.near, FM_FRAME_MAX_MOST, 2);
    (void)go_to_sleep();
    tear_down();
}

int
main(void)
{
    RUN(a_writer_sends_itself_while_the_io_thread_sleeps);
    RUN(a_writer_leaves_it_to_an_io_thread_that_is_awake);
    RUN(what_the_kernel_refuses_waits_for_room);
    RUN(a_stuck_output_lets_the_io_thread_sleep);
    RUN(a_failed_write_is_told_to_the_io_thread);
    RUN(want_of_memory_is_told_to_the_io_thread);
    RUN(a_connection_begins_without_the_bytes_of_the_last);
    RUN(frames_of_many_writers_stay_whole_and_in_order);
    RUN(a_socket_is_left_before_it_is_freed);
    return 0;
}
