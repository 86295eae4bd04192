/* io/adopt.h: what the broker refuses to declare is used as it is. */
#include "io/adopt.h"

#include "base/event.h"
#include "check.h"

static fm_close
say(uint16_t code, const char *text)
{
    return (fm_close){ .code = code,
        .text = { (const uint8_t *)text, strlen(text) } };
}

static void
check_slice(fm_slice slice, const char *text)
{
    CHECK_BYTES(slice.data, slice.len, text, strlen(text));
}

static fm_slice
slice_of(const char *text)
{
    return (fm_slice){ (const uint8_t *)text, strlen(text) };
}

static void
refusals_are_read(void)
{
    fm_refusal it;
    fm_close why = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'a' in "
        "vhost '/': received 'true' but current is 'false'");

    CHECK(fm_refusal_read(&why, &it));
    CHECK(it.is_queue);
    check_slice(it.name, "a");
    check_slice(it.virtual_host, "/");
    check_slice(it.argument, "durable");
    check_slice(it.details, "received 'true' but current is 'false'");

    why = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue "
        "'o' in vhost 'x' in vhost 'v': received none but current is the "
        "value 'quorum' of type 'longstr'");
    CHECK(fm_refusal_read(&why, &it));
    check_slice(it.name, "o' in vhost 'x");
    check_slice(it.virtual_host, "v");

    why = say(403,
        "ACCESS_REFUSED - configure access to exchange 'e' in vhost '/' "
        "refused for user 'u'");
    CHECK(fm_refusal_read(&why, &it));
    CHECK(!it.is_queue);
    check_slice(it.name, "e");
    CHECK_INT(it.argument.len, 0);
}

static void
other_texts_are_not(void)
{
    static const char *const texts[] = { "", "inequivalent arg '",
        "inequivalent arg 'durable' for ", "access to queue 'q",
        "inequivalent arg 'a' for queue 'q' in vhost '",
        "inequivalent arg 'a' for binding 'q' in vhost '/': ",
        "access to vhost '/' refused for user 'u'",
        "PRECONDITION_FAILED - unknown delivery tag 7" };
    fm_refusal it;

    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        fm_close why = say(406, texts[i]);

        CHECK(!fm_refusal_read(&why, &it));
        why.code = 403;
        CHECK(!fm_refusal_read(&why, &it));
    }
}

/* Is the n-th frame of what a topology sends a passive declaration? */
static void
check_flags(const fm_topology *topology, const char *expected)
{
    fm_script script;
    size_t at = 0;

    fm_script_init(&script, 1);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    CHECK_INT(script.count, strlen(expected));
    for (size_t i = 0; i < script.count; i++) {
        const uint8_t *frame = script.frames.data + at;
        size_t len = (size_t)frame[5] << 8 | frame[6];
        const uint8_t *name = frame + 7 + 6;
        const uint8_t *bits = name + 1 + name[0];

        switch (expected[i]) {
        case 'e': /* of an exchange the type comes before the bits */
        case 'E':
            bits += 1 + bits[0];
            CHECK_INT(bits[0] & 1, expected[i] == 'E');
            break;
        case 'q': /* durable */
        case 't': /* transient */
            CHECK_INT(bits[0] & 3, expected[i] == 'q' ? 2 : 0);
            break;
        case 'Q':
            CHECK_INT(bits[0] & 1, 1);
            break;
        default:
            CHECK_INT(expected[i], 'b');
        }
        at += 7 + len + 1;
    }
    CHECK_INT(at, script.frames.len);
    fm_script_fini(&script);
}

static fm_topology *
make(void)
{
    fm_exchange exchange = { .name = "e", .type = "topic", .durable = true };
    fm_arg quorum = {
        .name = "x-queue-type", .kind = FM_ARG_TEXT, .text = "quorum"
    };
    fm_queue one = { .name = "one", .durable = true };
    fm_queue two = {
        .name = "two", .durable = true, .arguments = { &quorum, 1 }
    };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &one), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, "one", "e", "k"), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &two), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, "two", "e", "k"), FM_OK);
    return topology;
}

static void
what_differs_is_looked_for_until_it_is_gone(void)
{
    fm_topology *topology = make();
    fm_close why = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'one' in "
        "vhost '/': received 'true' but current is 'false'");
    fm_close gone = say(404, "NOT_FOUND - no queue 'one' in vhost '/'");
    fm_close another = say(404, "NOT_FOUND - no queue 'two' in vhost '/'");
    fm_close down = say(404,
        "NOT_FOUND - home node 'r@h' of durable queue 'one' in vhost '/' is "
        "down or inaccessible");

    check_flags(topology, "eqbqb");
    CHECK(!fm_adopt(topology, &gone)); /* nothing was adopted */
    CHECK(fm_adopt(topology, &why));
    check_flags(topology, "eQbqb");
    CHECK(!fm_adopt(topology, &why));  /* no news: give up */
    CHECK(!fm_adopt(topology, &down)); /* it is there, but away */
    CHECK(!fm_adopt(topology, &another));
    check_flags(topology, "eQbqb");
    CHECK(fm_adopt(topology, &gone));
    check_flags(topology, "eqbqb");
    fm_topology_unref(topology);
}

static void
classic_queues_follow_an_exchange_that_is_not_durable(void)
{
    fm_topology *topology = make();
    fm_close why = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'e' in "
        "vhost '/': received 'true' but current is 'false'");

    CHECK(fm_adopt(topology, &why));
    check_flags(topology, "Etbqb"); /* a quorum queue cannot */
    fm_topology_unref(topology);
}

static void
bindings_that_are_refused_are_trusted(void)
{
    fm_topology *topology = make();
    fm_close why = say(403,
        "ACCESS_REFUSED - configure access to queue 'one' in vhost '/' refused "
        "for user 'u'");

    CHECK(fm_adopt(topology, &why));
    check_flags(topology, "eQbqb");
    CHECK(fm_adopt(topology, &why));
    check_flags(topology, "eQqb");
    CHECK(!fm_adopt(topology, &why));
    fm_topology_unref(topology);
}

/* A user who may not declare it, and nobody has. */
static void
what_is_refused_and_not_there_is_given_up(void)
{
    fm_topology *topology = make();
    fm_close refused = say(403,
        "ACCESS_REFUSED - access to queue 'one' in vhost '/' refused for user "
        "'u'");
    fm_close gone = say(404, "NOT_FOUND - no queue 'one' in vhost '/'");

    for (int round = 0; round < 2; round++) { /* and tried again later */
        int tries = 0;

        while (fm_adopt(topology, &refused)) {
            tries++;
            CHECK(tries < 10);
            CHECK(fm_adopt(topology, &gone));
        }
        CHECK_INT(tries, 3);
    }
    fm_topology_unref(topology);
}

static void
some_things_are_errors(void)
{
    fm_topology *topology = make();
    fm_close type = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in "
        "vhost '/': received 'topic' but current is 'direct'");
    fm_close other = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'x' in "
        "vhost '/': received 'true' but current is 'false'");
    fm_close locked = say(405,
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue "
        "'one' in vhost '/'");

    CHECK(!fm_adopt(topology, &type));
    CHECK(!fm_adopt(topology, &other));
    CHECK(!fm_adopt(topology, &locked));
    check_flags(topology, "eqbqb");
    CHECK(!fm_topology_adopt(topology, true, slice_of("e")));
    fm_topology_unref(topology);
}

static void
each_is_said_once(void)
{
    fm_event_reader reader = { 0 };
    fm_close why = say(406,
        "PRECONDITION_FAILED - inequivalent arg 'auto_delete' for exchange "
        "'e' in vhost 'v': received 'true' but current is 'false'");
    fm_event event;
    int count = 0;

    while (fm_event_wait(&reader, &event, fm_now()) == FM_OK)
        ;
    for (int i = 0; i < 3; i++) {
        fm_topology *topology = make();

        CHECK(fm_adopt(topology, &why));
        fm_topology_unref(topology);
    }
    while (fm_event_wait(&reader, &event, fm_now()) == FM_OK) {
        CHECK_INT(event.level, FM_WARNING);
        CHECK_TEXT(event.text,
            "exchange 'e' exists with another 'auto_delete' than configured "
            "and is used as it is (received 'true' but current is 'false'); to "
            "have it made anew, stop who uses it and run: rabbitmqadmin delete "
            "exchange '--vhost=v' 'name=e'");
        count++;
    }
    CHECK_INT(count, 1);
}

/* Nor is one that would do something else when it is pasted. */
static void
a_command_that_does_not_fit_is_left_out(void)
{
    static const char *const names[] = { "it's",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" };
    fm_event_reader reader = { 0 };
    fm_event event;

    for (size_t i = 0; i < 2; i++) {
        fm_queue queue = { .name = names[i] };
        fm_topology *topology;
        char text[512];
        fm_close why;

        snprintf(text, sizeof(text),
            "inequivalent arg 'durable' for queue '%s' in vhost '/': received "
            "'true' but current is 'false'",
            names[i]);
        why = say(406, text);
        CHECK_INT(fm_topology_new(&topology), FM_OK);
        CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
        while (fm_event_wait(&reader, &event, fm_now()) == FM_OK)
            ;
        CHECK(fm_adopt(topology, &why));
        CHECK_INT(fm_event_wait(&reader, &event, fm_now()), FM_OK);
        CHECK_HAS(event.text, names[i]);
        CHECK_HAS(event.text, "but current is 'false')");
        CHECK(strstr(event.text, "run:") == NULL);
        fm_topology_unref(topology);
    }
}

int
main(void)
{
    RUN(refusals_are_read);
    RUN(other_texts_are_not);
    RUN(what_differs_is_looked_for_until_it_is_gone);
    RUN(classic_queues_follow_an_exchange_that_is_not_durable);
    RUN(bindings_that_are_refused_are_trusted);
    RUN(what_is_refused_and_not_there_is_given_up);
    RUN(some_things_are_errors);
    RUN(a_command_that_does_not_fit_is_left_out);
    RUN(each_is_said_once);
    return 0;
}
