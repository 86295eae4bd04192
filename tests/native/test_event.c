/* base/event.h: the ring of what native threads have to say. */
#include "base/event.h"

#include "check.h"

#include <stdlib.h>
#include <sys/wait.h>

enum { WRITERS = 4, EACH = 5000 };

static fm_event_reader reader;

static fm_status
next(fm_event *event)
{
    return fm_event_wait(&reader, event, fm_now());
}

static void
events_come_in_order(void)
{
    fm_event event;

    CHECK_INT(next(&event), FM_TIMED_OUT);
    fm_event_post(FM_WARNING, "%d %s", 1, "one");
    fm_event_post(FM_ERROR, "two");
    CHECK_INT(next(&event), FM_OK);
    CHECK_INT(event.level, FM_WARNING);
    CHECK_TEXT(event.text, "1 one");
    CHECK_INT(next(&event), FM_OK);
    CHECK_INT(event.level, FM_ERROR);
    CHECK_TEXT(event.text, "two");
    CHECK_INT(next(&event), FM_TIMED_OUT);
}

static void
a_long_text_is_cut(void)
{
    char text[2 * FM_EVENT_TEXT];
    fm_event event;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    fm_event_post(FM_INFO, "%s", text);
    CHECK_INT(next(&event), FM_OK);
    CHECK_INT(strlen(event.text), FM_EVENT_TEXT - 1);
}

static void
what_does_not_fit_is_counted(void)
{
    fm_event event;
    int kept = 0;

    for (int i = 0; i < 1000; i++)
        fm_event_post(FM_INFO, "%d", i);
    /* The oldest are kept: they tell how it began. */
    for (;;) {
        CHECK_INT(next(&event), FM_OK);
        if (strstr(event.text, "lost") != NULL)
            break;
        CHECK_INT(atoi(event.text), kept);
        kept++;
    }
    CHECK_INT(event.level, FM_WARNING);
    CHECK(kept >= 1);
    CHECK_INT(atoi(event.text), 1000 - 128);
    CHECK_INT(fm_event_lost(), 1000 - 128);
    while (next(&event) == FM_OK) {
        CHECK_INT(atoi(event.text), kept);
        kept++;
    }
    CHECK_INT(kept, 128);
    /* Told once. */
    fm_event_post(FM_INFO, "after");
    CHECK_INT(next(&event), FM_OK);
    CHECK_TEXT(event.text, "after");
}

static void *
read_one(void *arg)
{
    fm_event event;

    *(fm_status *)arg = fm_event_wait(&reader, &event, FM_NEVER);
    return NULL;
}

static void
stopping_wakes_every_thread_of_a_reader(void)
{
    fm_status found[3] = { FM_OK, FM_OK, FM_OK };
    fm_thread readers[3];
    fm_event event;

    for (int i = 0; i < 3; i++)
        CHECK_INT(
            fm_thread_start(&readers[i], "reader", read_one, &found[i]), FM_OK);
    fm_event_stop(&reader);
    for (int i = 0; i < 3; i++) {
        fm_thread_join(&readers[i]);
        CHECK_INT(found[i], FM_CLOSED);
    }
    /* What is left is still to be had. */
    fm_event_post(FM_INFO, "late");
    CHECK_INT(fm_event_wait(&reader, &event, FM_NEVER), FM_OK);
    CHECK_TEXT(event.text, "late");
    CHECK_INT(fm_event_wait(&reader, &event, FM_NEVER), FM_CLOSED);
    fm_event_resume(&reader);
    CHECK_INT(next(&event), FM_TIMED_OUT);
}

static void *
read_next_of_another(void *arg)
{
    static fm_event_reader another;
    fm_event event;

    *(fm_status *)arg = fm_event_wait(&another, &event, FM_NEVER);
    return NULL;
}

/* Another interpreter of the process goes on. */
static void
stopping_one_reader_leaves_the_others(void)
{
    fm_status found = FM_CLOSED;
    fm_thread other;

    CHECK_INT(
        fm_thread_start(&other, "other", read_next_of_another, &found), FM_OK);
    fm_event_stop(&reader);
    CHECK(fm_event_is_over(&reader));
    CHECK_INT(next(&(fm_event){ 0 }), FM_CLOSED);
    fm_event_resume(&reader);
    fm_event_post(FM_INFO, "for the other");
    fm_thread_join(&other);
    CHECK_INT(found, FM_OK);
}

static void
a_call_reaches_every_reader_once(void)
{
    fm_event_reader another = { 0 };
    fm_event event;

    (void)!fm_event_wait(&another, &event, fm_now());
    fm_event_call();
    fm_event_call();
    CHECK_INT(next(&event), FM_OK);
    CHECK_INT(event.level, FM_CALLED);
    CHECK_INT(next(&event), FM_TIMED_OUT);
    CHECK_INT(fm_event_wait(&another, &event, fm_now()), FM_OK);
    CHECK_INT(event.level, FM_CALLED);
    CHECK_INT(fm_event_wait(&another, &event, fm_now()), FM_TIMED_OUT);
}

static void *
post_many(void *arg)
{
    for (int i = 0; i < EACH; i++)
        fm_event_post(FM_INFO, "%d %d", *(int *)arg, i);
    return NULL;
}

/* Nothing is lost but what is counted, and each writer's order holds. */
static void
many_writers_lose_nothing_uncounted(void)
{
    int numbers[WRITERS], last[WRITERS];
    fm_thread writers[WRITERS];
    uint64_t before = fm_event_lost();
    long got = 0, lost = 0;
    fm_event event;

    for (int i = 0; i < WRITERS; i++) {
        numbers[i] = i;
        last[i] = -1;
        CHECK_INT(
            fm_thread_start(&writers[i], "writer", post_many, &numbers[i]),
            FM_OK);
    }
    while (got + lost < WRITERS * EACH) {
        int who, number;

        CHECK_INT(
            fm_event_wait(&reader, &event, fm_deadline_in(30 * FM_NS_PER_S)),
            FM_OK);
        if (event.level == FM_WARNING) {
            lost += atol(event.text);
            continue;
        }
        CHECK_INT(sscanf(event.text, "%d %d", &who, &number), 2);
        CHECK(number > last[who]);
        last[who] = number;
        got++;
    }
    for (int i = 0; i < WRITERS; i++)
        fm_thread_join(&writers[i]);
    CHECK_INT(got + lost, WRITERS * EACH);
    CHECK_INT(fm_event_lost() - before, lost);
    CHECK_INT(next(&event), FM_TIMED_OUT);
}

static void
a_child_begins_with_nothing(void)
{
    fm_event event;
    int status;
    pid_t pid;

    fm_event_post(FM_INFO, "the parent's");
    fm_event_stop(&reader);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        fm_event_reset_in_child();
        fm_event_resume(&reader); /* as whoever begins to read does */
        CHECK_INT(next(&event), FM_TIMED_OUT);
        CHECK_INT(fm_event_lost(), 0);
        fm_event_post(FM_INFO, "the child's");
        CHECK_INT(next(&event), FM_OK);
        CHECK_TEXT(event.text, "the child's");
        _exit(0);
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK_INT(next(&event), FM_OK);
    CHECK_TEXT(event.text, "the parent's");
    fm_event_resume(&reader);
}

int
main(void)
{
    RUN(events_come_in_order);
    RUN(a_long_text_is_cut);
    RUN(what_does_not_fit_is_counted);
    RUN(stopping_wakes_every_thread_of_a_reader);
    RUN(stopping_one_reader_leaves_the_others);
    RUN(a_call_reaches_every_reader_once);
    RUN(many_writers_lose_nothing_uncounted);
    RUN(a_child_begins_with_nothing);
    return 0;
}
