/* Buses, consumers and calls for tests with a broker, as a few verbs that
 * check what they do.
 *
 * The broker is that of FM_TEST_HOST, FM_TEST_PORT, FM_TEST_USER,
 * FM_TEST_PASSWORD and FM_TEST_VHOST.
 */
#ifndef FM_TESTS_RIG_H
#define FM_TESTS_RIG_H

#include "check.h"
#include "peer.h"

#include "base/event.h"
#include "io/bus.h"
#include "io/loop.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#define S FM_NS_PER_S
#define MS FM_NS_PER_MS
#define LONG_ENOUGH (60 * FM_NS_PER_S)

static inline const char *
rig_env(const char *name)
{
    const char *value = getenv(name);

    if (value == NULL)
        CHECK_FAIL("%s is not set", name);
    return value;
}

static inline uint16_t
rig_broker_port(void)
{
    return (uint16_t)atoi(rig_env("FM_TEST_PORT"));
}

/* What differs from a plain connection to the broker; zeroed: nothing. */
typedef struct rig_options {
    uint16_t port;        /* 0: the broker's */
    const char *password; /* NULL: the right one */
    const char *vhost;    /* NULL: the right one */
    uint16_t heartbeat_s; /* 0: 30 */
    int64_t interval_ns;  /* 0: 50 ms, for ever the same */
} rig_options;

static inline fm_conn_config *
rig_config(rig_options with)
{
    fm_conn_config *config;

    CHECK_INT(fm_conn_config_new(&config), FM_OK);
    config->hosts = calloc(1, sizeof(*config->hosts));
    CHECK(config->hosts != NULL);
    config->host_count = 1;
    config->hosts[0].name = strdup(rig_env("FM_TEST_HOST"));
    config->hosts[0].port = with.port != 0 ? with.port : rig_broker_port();
    config->hosts[0].user = strdup(rig_env("FM_TEST_USER"));
    config->hosts[0].password = strdup(
        with.password != NULL ? with.password : rig_env("FM_TEST_PASSWORD"));
    config->virtual_host =
        strdup(with.vhost != NULL ? with.vhost : rig_env("FM_TEST_VHOST"));
    config->name = strdup("native test");
    config->heartbeat_s = with.heartbeat_s != 0 ? with.heartbeat_s : 30;
    config->pace.start_ns = with.interval_ns != 0 ? with.interval_ns : 50 * MS;
    return config;
}

static inline fm_bus *
rig_open(const char *key, rig_options with)
{
    fm_conn_config *config = rig_config(with);
    fm_bus *bus;

    CHECK_INT(fm_bus_open(key, config, &bus), FM_OK);
    fm_conn_config_unref(config);
    return bus;
}

static inline void
rig_close(fm_bus *bus)
{
    fm_bus_close(bus, fm_deadline_in(LONG_ENOUGH));
}

/* Print events, so that a failed test tells what happened. */
static inline int
rig_show_events(bool show)
{
    fm_event_reader reader = { 0 };
    fm_event event;
    int count = 0;

    while (fm_event_wait(&reader, &event, fm_now()) == FM_OK) {
        count++;
        if (show)
            fprintf(stderr, "  event %d: %s\n", event.level, event.text);
    }
    return count;
}

/* --- declarations --- */

/* A queue on the default exchange. */
static inline fm_topology *
rig_queue(const char *name, const fm_arg *args, size_t arg_count)
{
    fm_queue queue = { .name = name, .arguments = { args, arg_count } };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_queue(topology, &queue), FM_OK);
    return topology;
}

/* A fanout exchange, and a queue bound to it unless `queue` is NULL. */
static inline fm_topology *
rig_fanout(const char *exchange, const char *queue)
{
    fm_exchange fanout = { .name = exchange, .type = "fanout" };
    fm_queue bound = { .name = queue };
    fm_topology *topology;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_topology_add_exchange(topology, &fanout), FM_OK);
    if (queue == NULL)
        return topology;
    CHECK_INT(fm_topology_add_queue(topology, &bound), FM_OK);
    CHECK_INT(fm_topology_add_binding(topology, queue, exchange, ""), FM_OK);
    return topology;
}

/* --- consumers --- */

static inline fm_consumer *
rig_join(fm_bus *bus, const char *queue, fm_topology *topology,
    uint16_t prefetch, bool replies)
{
    fm_consumer_config config = { &queue, 1, prefetch, replies, false };
    fm_consumer *consumer;

    CHECK_INT(fm_consumer_new(&config, topology, &bus->consuming.output,
                  &bus->replies, &consumer),
        FM_OK);
    CHECK_INT(fm_bus_add_consumer(bus, consumer), FM_OK);
    return consumer;
}

static inline void
rig_reach(fm_consumer *consumer, fm_consumer_goal goal)
{
    fm_error error = { .text = "" };
    fm_status status;

    fm_consumer_want(consumer, goal);
    do {
        status =
            fm_consumer_wait(consumer, fm_deadline_in(LONG_ENOUGH), &error);
    } while (status == FM_INTERRUPTED);
    if (status != FM_OK)
        (void)rig_show_events(true);
    if (status != FM_OK)
        CHECK_FAIL("a consumer did not get to %d: %s: %s", (int)goal,
            fm_status_text(status), error.text);
}

/* A consumer that consumes. `topology` NULL: a plain queue of that name. */
static inline fm_consumer *
rig_consume(fm_bus *bus, const char *queue, fm_topology *topology,
    uint16_t prefetch, bool replies)
{
    fm_topology *own = topology == NULL ? rig_queue(queue, NULL, 0)
                                        : fm_topology_ref(topology);
    fm_consumer *consumer = rig_join(bus, queue, own, prefetch, replies);

    fm_topology_unref(own);
    rig_reach(consumer, FM_GOAL_CONSUMING);
    return consumer;
}

/* Close it and delete its queue. */
static inline void
rig_end(fm_consumer *consumer)
{
    CHECK_INT(
        fm_consumer_delete_at_close(consumer, consumer->queues[0]), FM_OK);
    rig_reach(consumer, FM_GOAL_CLOSED);
    fm_consumer_unref(consumer);
}

/* The next delivery; NULL: none within `ns`. */
static inline fm_delivery *
rig_take(fm_consumer *consumer, int64_t ns)
{
    fm_delivery *delivery = NULL;
    fm_status status;

    do {
        status = fm_consumer_take(consumer, 1, fm_deadline_in(ns), &delivery);
    } while (status == FM_INTERRUPTED);
    return status == FM_OK ? delivery : NULL;
}

static inline void
rig_ack(fm_consumer *consumer, fm_delivery *delivery)
{
    fm_consumer_ack(consumer, delivery->generation,
        delivery->deliver.delivery_tag, false, true);
    fm_delivery_free(delivery);
}

/* The text of a delivery, as long as it lives. */
static inline const char *
rig_text(fm_delivery *delivery)
{
    CHECK_INT(fm_buf_append(&delivery->body, "", 1), FM_OK);
    return (const char *)delivery->body.data;
}

/* --- messages --- */

static inline fm_message *
rig_message(fm_lane lane, const char *exchange, const char *key,
    fm_topology *topology, const char *body)
{
    fm_message *message;

    CHECK_INT(fm_message_new(lane, exchange, key, &message), FM_OK);
    CHECK_INT(fm_buf_append(&message->body, body, strlen(body)), FM_OK);
    if (topology != NULL)
        message->topology = fm_topology_ref(topology);
    return message;
}

/* What becomes of a message, within `timeout_ns` of what the broker could
 * have done. FM_TIMED_OUT gives up on it. */
static inline fm_status
rig_wait(fm_bus *bus, fm_message *message, int64_t timeout_ns)
{
    fm_status status;

    do {
        status = fm_bus_wait_confirm(bus, message, timeout_ns);
    } while (status == FM_INTERRUPTED);
    if (status == FM_OK)
        status = fm_message_status(message);
    fm_bus_forget(bus, message);
    return status;
}

/* Publish to a queue by the default exchange and wait for the confirm. */
static inline fm_status
rig_cast(fm_bus *bus, const char *queue, const char *body)
{
    fm_message *message = rig_message(FM_LANE_RPC, "", queue, NULL, body);
    fm_status status = fm_bus_submit(bus, message);

    if (status == FM_OK)
        status = rig_wait(bus, message, LONG_ENOUGH);
    fm_message_unref(message);
    return status;
}

/* --- calls --- */

/* A call carries `<reply queue> <msg_id>`; its reply is an envelope. */
static inline fm_message *
rig_new_call(const char *queue, fm_consumer *replies, const char *msg_id)
{
    char body[300];
    fm_message *call;

    snprintf(body, sizeof(body), "%s %s", replies->queues[0], msg_id);
    call = rig_message(FM_LANE_RPC, "", queue, NULL, body);
    call->mandatory = true;
    call->gate = fm_gate_ref(replies->gate);
    snprintf(call->msg_id, sizeof(call->msg_id), "%s", msg_id);
    return call;
}

/* FM_OK: it was answered, and with its own id. */
static inline fm_status
rig_finish_call(fm_bus *bus, fm_message *call, int64_t timeout_ns)
{
    fm_deadline deadline = fm_deadline_in(timeout_ns);
    fm_reply *reply = NULL;
    fm_status status;

    do {
        status = fm_bus_wait_reply(bus, call, deadline, &reply);
    } while (status == FM_INTERRUPTED);
    if (status == FM_OK && reply == NULL)
        status = fm_message_status(call);
    if (reply != NULL) {
        CHECK(memmem(reply->body.data, reply->body.len, call->msg_id,
                  strlen(call->msg_id))
            != NULL);
        fm_reply_free(reply);
    }
    fm_bus_forget(bus, call);
    return status;
}

static inline fm_status
rig_call(fm_bus *bus, const char *queue, fm_consumer *replies,
    const char *msg_id, int retry, int64_t timeout_ns)
{
    fm_message *call = rig_new_call(queue, replies, msg_id);
    fm_status status;

    call->retry = retry;
    status = fm_bus_submit(bus, call);
    if (status == FM_OK)
        status = rig_finish_call(bus, call, timeout_ns);
    fm_message_unref(call);
    return status;
}

/* Hand over the reply that a call asks for. */
static inline void
rig_answer(fm_bus *bus, const char *request)
{
    char queue[200], msg_id[FM_MSG_ID_MAX + 1], body[600];
    fm_message *reply;

    CHECK_INT(sscanf(request, "%199s %64s", queue, msg_id), 2);
    snprintf(body, sizeof(body),
        "{\"oslo.version\": \"2.0\", \"oslo.message\": \"{\\\"result\\\": 1, "
        "\\\"failure\\\": null, \\\"ending\\\": true, \\\"_msg_id\\\": "
        "\\\"%s\\\", \\\"_unique_id\\\": \\\"%s\\\"}\"}",
        msg_id, msg_id);
    reply = rig_message(FM_LANE_RPC, "", queue, NULL, body);
    reply->handed_over = true;
    reply->mandatory = true;
    reply->give_up = fm_deadline_in(2 * S);
    CHECK_INT(fm_bus_submit(bus, reply), FM_OK);
    fm_message_unref(reply);
}

/* A server: answers what comes until its consumer is stopped. */
typedef struct rig_server {
    fm_bus *bus;
    fm_consumer *consumer;
    fm_thread thread;
    atomic_int served;
} rig_server;

static inline void *
rig_serve(void *arg)
{
    rig_server *self = arg;

    for (;;) {
        fm_delivery *delivery = NULL;
        fm_status status = fm_consumer_take(
            self->consumer, 1, fm_deadline_in(LONG_ENOUGH), &delivery);

        if (status == FM_CLOSED)
            return NULL;
        if (status != FM_OK)
            continue;
        fm_consumer_ack(self->consumer, delivery->generation,
            delivery->deliver.delivery_tag, false, true);
        rig_answer(self->bus, rig_text(delivery));
        fm_delivery_free(delivery);
        atomic_fetch_add(&self->served, 1);
    }
}

static inline void
rig_server_start(rig_server *self, fm_bus *bus, const char *queue)
{
    self->bus = bus;
    atomic_init(&self->served, 0);
    self->consumer = rig_consume(bus, queue, NULL, 64, false);
    CHECK_INT(fm_thread_start(&self->thread, "server", rig_serve, self), FM_OK);
}

static inline void
rig_server_stop(rig_server *self)
{
    rig_reach(self->consumer, FM_GOAL_STOPPED);
    fm_thread_join(&self->thread);
    rig_end(self->consumer);
}

/* --- what the process has --- */

static inline int
rig_count(const char *folder)
{
    DIR *dir = opendir(folder);
    int count = 0;

    CHECK(dir != NULL);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* The threads and descriptors of this process without a bus: what the first
 * one leaves, for libraries keep something. */
static int idle_threads, idle_descriptors;

static inline void
note_what_is_there(void)
{
    fm_bus *bus = rig_open("first", (rig_options){ 0 });

    CHECK_INT(rig_cast(bus, "nobody", "x"), FM_OK);
    rig_close(bus);
    idle_threads = rig_count("/proc/self/task");
    idle_descriptors = count_descriptors();
}

/* No bus, so neither thread nor descriptor of the core. */
static inline void
expect_nothing_left(void)
{
    /* A joined thread may be in /proc for a moment longer. */
    for (int ms = 0; ms < 2000; ms++) {
        if (rig_count("/proc/self/task") == idle_threads)
            break;
        usleep(1000);
    }
    CHECK_INT(rig_count("/proc/self/task"), idle_threads);
    CHECK_INT(count_descriptors(), idle_descriptors);
}

#endif
