/* io/topology.h and io/script.h: what is declared, and the answers to it. */
#include "io/topology.h"

#include "check.h"
#include "io/frame.h"

#include <stdlib.h>

/* The methods in a script's bytes, each on its channel; how many. */
static size_t
read_methods(const fm_script *script, uint32_t *ids, size_t max)
{
    size_t at = 0, count = 0;

    while (at < script->frames.len) {
        fm_frame frame;
        size_t used;

        CHECK_INT(
            fm_frame_split(script->frames.data + at, script->frames.len - at,
                FM_FRAME_MAX_LEAST, &frame, &used),
            FM_OK);
        CHECK_INT(frame.channel, script->channel);
        CHECK_INT(frame.type, FM_FRAME_METHOD);
        CHECK(count < max);
        CHECK_INT(
            fm_amqp_method_id(frame.payload, frame.len, &ids[count]), FM_OK);
        count++;
        at += used;
    }
    return count;
}

static fm_topology *
new_topology(void)
{
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    return topology;
}

static void
declarations_are_written_in_order(void)
{
    static const uint32_t sent[] = { FM_METHOD_CHANNEL_OPEN,
        FM_METHOD_EXCHANGE_DECLARE, FM_METHOD_QUEUE_DECLARE,
        FM_METHOD_QUEUE_BIND };
    static const uint32_t answers[] = { FM_METHOD_CHANNEL_OPEN_OK,
        FM_METHOD_EXCHANGE_DECLARE_OK, FM_METHOD_QUEUE_DECLARE_OK,
        FM_METHOD_QUEUE_BIND_OK };
    fm_exchange exchange = { .name = "e", .type = "topic", .durable = true };
    fm_arg arg = { .name = "x-expires", .integer = 60000 };
    fm_queue queue = { .name = "q", .arguments = { &arg, 1 } };
    fm_topology *topology = new_topology();
    fm_script script;
    uint32_t ids[8];

    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, "q", "e", "key"), FM_OK);
    fm_script_init(&script, 7);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    CHECK_INT(read_methods(&script, ids, 8), 4);
    CHECK_BYTES(ids, sizeof(sent), sent, sizeof(sent));
    CHECK_INT(script.count, 4);
    CHECK_BYTES(script.expect, sizeof(answers), answers, sizeof(answers));
    fm_script_fini(&script);
    fm_topology_unref(topology);
}

static void
the_callers_strings_may_go(void)
{
    char name[] = "a queue", arg_name[] = "x-queue-type", text[] = "quorum";
    fm_arg args[] = { { .name = arg_name, .kind = FM_ARG_TEXT, .text = text },
        { .name = "b", .kind = FM_ARG_BOOL, .flag = true } };
    fm_queue queue = { .name = name, .arguments = { args, 2 } };
    fm_topology *topology = new_topology();
    fm_script before, after;

    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    fm_script_init(&before, 1);
    CHECK_INT(fm_script_add_queue(&before, &queue, false), FM_OK);
    memset(name, 'x', sizeof(name) - 1);
    memset(arg_name, 'x', sizeof(arg_name) - 1);
    memset(text, 'x', sizeof(text) - 1);
    memset(args, 0, sizeof(args));
    fm_script_init(&after, 1);
    CHECK_INT(fm_topology_write(topology, &after), FM_OK);
    CHECK_BYTES(after.frames.data, after.frames.len, before.frames.data,
        before.frames.len);
    fm_script_fini(&before);
    fm_script_fini(&after);
    fm_topology_unref(topology);
}

static void
what_amqp_cannot_say_is_refused(void)
{
    char name[257];
    fm_arg args[FM_TABLE_MAX + 1] = { { .name = "a" } };
    fm_queue queue = { .name = name };
    fm_exchange exchange = { .name = name, .type = "topic" };
    fm_topology *topology = new_topology();
    fm_script script;

    memset(name, 'n', 256);
    name[256] = '\0';
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_TOO_LARGE);
    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_TOO_LARGE);
    CHECK_INT(fm_topology_add_binding(topology, "q", name, ""), FM_TOO_LARGE);
    name[255] = '\0';
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    queue.arguments = (fm_table){ args, FM_TABLE_MAX + 1 };
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_TOO_LARGE);
    /* What was refused is not in it. */
    CHECK_INT(topology->count, 1);
    fm_script_init(&script, 1);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    CHECK_INT(script.count, 1);
    fm_script_fini(&script);
    fm_topology_unref(topology);
}

/* Or every attempt to declare it would fail anew, for ever. */
static void
arguments_too_long_for_a_frame_are_refused(void)
{
    static char text[5000];
    fm_arg arg = { .name = "x-long", .kind = FM_ARG_TEXT, .text = text };
    fm_queue queue = { .name = "q", .arguments = { &arg, 1 } };
    fm_topology *topology = new_topology();

    memset(text, 't', sizeof(text) - 1);
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_TOO_LARGE);
    CHECK_INT(topology->count, 0);
    text[100] = '\0';
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    fm_topology_unref(topology);
}

static void
a_topology_grows(void)
{
    fm_topology *topology = new_topology();
    fm_script script;

    for (int i = 0; i < 100; i++) {
        char name[16];
        fm_queue queue = { .name = name };

        snprintf(name, sizeof(name), "q%d", i);
        CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    }
    fm_script_init(&script, 1);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    CHECK_INT(script.count, 100);
    fm_script_fini(&script);
    fm_topology_unref(topology);
}

static void
a_quorum_queue_is_known_by_its_argument(void)
{
    fm_arg args[] = { { .name = "x-expires", .integer = 60000 },
        { .name = "x-queue-type", .kind = FM_ARG_TEXT, .text = "quorum" } };
    fm_exchange exchange = { .name = "quorum", .type = "topic" };
    fm_queue quorum = { .name = "quorum", .arguments = { args, 2 } };
    fm_queue classic = { .name = "classic", .arguments = { args, 1 } };
    fm_topology *topology = new_topology();

    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    CHECK(!fm_topology_is_quorum(topology, "quorum"));
    CHECK_INT(fm_topology_add_queue(topology, &classic), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &quorum), FM_OK);
    args[1].text = "classic";
    quorum.name = "explicit";
    CHECK_INT(fm_topology_add_queue(topology, &quorum), FM_OK);
    CHECK(fm_topology_is_quorum(topology, "quorum"));
    CHECK(!fm_topology_is_quorum(topology, "classic"));
    CHECK(!fm_topology_is_quorum(topology, "explicit"));
    CHECK(!fm_topology_is_quorum(topology, "unknown"));
    fm_topology_unref(topology);
}

/* The names and durable flags of what a topology declares, in order: "+q" is a
 * durable queue, "-q" one that is not; bindings are "b". */
static void
check_written(const fm_topology *topology, const char *expected)
{
    char found[64] = "";
    fm_script script;
    size_t at = 0;

    fm_script_init(&script, 1);
    CHECK_INT(fm_topology_write(topology, &script), FM_OK);
    while (at < script.frames.len) {
        fm_frame frame;
        size_t used, len = strlen(found);
        uint32_t id;

        CHECK_INT(
            fm_frame_split(script.frames.data + at, script.frames.len - at,
                FM_FRAME_MAX_LEAST, &frame, &used),
            FM_OK);
        CHECK_INT(fm_amqp_method_id(frame.payload, frame.len, &id), FM_OK);
        if (id == FM_METHOD_QUEUE_DECLARE) {
            const uint8_t *name = frame.payload + 6;
            bool is_durable = (name[1 + name[0]] & 2) != 0;

            snprintf(found + len, sizeof(found) - len, "%c%.*s ",
                is_durable ? '+' : '-', name[0], (const char *)name + 1);
        } else {
            snprintf(found + len, sizeof(found) - len, "%s",
                id == FM_METHOD_QUEUE_BIND ? "b " : "e ");
        }
        at += used;
    }
    CHECK_TEXT(found, expected);
    fm_script_fini(&script);
}

static void
a_strict_broker_gets_durable_queues(void)
{
    fm_exchange exchange = { .name = "e", .type = "topic" };
    fm_arg expires = { .name = "x-expires", .integer = 60000 };
    fm_queue shared = { .name = "q" }, exclusive = { .name = "x" };
    fm_queue own = { .name = "o", .arguments = { &expires, 1 } };
    fm_queue durable = { .name = "d", .durable = true };
    fm_topology *topology = new_topology();
    fm_strictness strictness = { 0 };
    fm_script script;

    exclusive.exclusive = true;
    CHECK_INT(fm_topology_add_exchange(topology, &exchange), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &shared), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, "q", "e", "q"), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &exclusive), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &durable), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &own), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, "o", "e", "o"), FM_OK);
    fm_script_init(&script, 1);
    CHECK_INT(fm_topology_write_for(topology, &strictness, &script), FM_OK);
    check_written(topology, "e -q b -x +d -o b ");
    /* Who may be strict is given a queue first that only we have. */
    atomic_store(&strictness.may_be, true);
    CHECK_INT(fm_topology_write_for(topology, &strictness, &script), FM_OK);
    check_written(topology, "-o e -q b -x +d b ");
    atomic_store(&strictness.is_strict, true);
    CHECK_INT(fm_topology_write_for(topology, &strictness, &script), FM_OK);
    check_written(topology, "e +q b -x +d +o b ");
    CHECK(fm_topology_is_transient(topology, "o")); /* as it was asked for */
    /* Also where others of the exchange decide that it should not be. */
    fm_topology_follow(topology, (fm_slice){ (const uint8_t *)"e", 1 });
    check_written(topology, "e +q b -x +d +o b ");
    fm_script_fini(&script);
    fm_topology_unref(topology);
}

static void
every_step_of_a_script_has_its_answer(void)
{
    static const uint32_t sent[] = { FM_METHOD_CHANNEL_OPEN,
        FM_METHOD_CONFIRM_SELECT, FM_METHOD_BASIC_QOS, FM_METHOD_BASIC_CONSUME,
        FM_METHOD_BASIC_CANCEL, FM_METHOD_QUEUE_DELETE,
        FM_METHOD_CHANNEL_CLOSE };
    fm_script script;
    uint32_t ids[8];

    fm_script_init(&script, 65535);
    CHECK_INT(fm_script_add_open(&script), FM_OK);
    CHECK_INT(fm_script_add_confirm(&script), FM_OK);
    CHECK_INT(fm_script_add_qos(&script, 100), FM_OK);
    CHECK_INT(fm_script_add_consume(&script, "q", "1", NULL), FM_OK);
    CHECK_INT(fm_script_add_cancel(&script, "1"), FM_OK);
    CHECK_INT(fm_script_add_delete(&script, "q"), FM_OK);
    CHECK_INT(fm_script_add_close(&script), FM_OK);
    CHECK_INT(read_methods(&script, ids, 8), 7);
    CHECK_BYTES(ids, sizeof(sent), sent, sizeof(sent));
    /* Each answer has the number after its method. */
    for (size_t i = 0; i < 7; i++)
        CHECK_INT(script.expect[i], ids[i] + 1);
    fm_script_fini(&script);
    fm_script_fini(&script);
}

int
main(void)
{
    RUN(declarations_are_written_in_order);
    RUN(the_callers_strings_may_go);
    RUN(what_amqp_cannot_say_is_refused);
    RUN(arguments_too_long_for_a_frame_are_refused);
    RUN(a_topology_grows);
    RUN(a_quorum_queue_is_known_by_its_argument);
    RUN(a_strict_broker_gets_durable_queues);
    RUN(every_step_of_a_script_has_its_answer);
    return 0;
}
