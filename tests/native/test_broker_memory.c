/* The core without memory: each allocation of a scenario fails once, and then
 * all of them do for a while. What fails says why, and all works afterwards.
 *
 * Linked with: -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup
 * Linked with: -Wl,--wrap=pthread_create
 */
#include "rig.h"

#include <errno.h>
#include <limits.h>

#define SOON (8 * FM_NS_PER_S)

/* --- an allocator that is told when to fail --- */

static atomic_long left = LONG_MAX; /* allocations until one fails */
static int64_t failing_ns;          /* for so long all others do, too */
static atomic_int_fast64_t until;
static atomic_long failed = 0; /* how many did */

static bool
fails(void)
{
    long now;

    if (atomic_load(&left) == LONG_MAX)
        return false;
    now = atomic_fetch_sub(&left, 1);
    if (now == 0)
        atomic_store(&until, fm_now() + failing_ns);
    if (now > 0 || (now < 0 && fm_now() >= atomic_load(&until)))
        return false;
    atomic_fetch_add(&failed, 1);
    return true;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
    void *(*body)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
    void *(*body)(void *), void *arg);

void *
__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

char *
__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

int
__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
    void *(*body)(void *), void *arg)
{
    return fails() ? EAGAIN : __real_pthread_create(thread, attr, body, arg);
}

/* The nth allocation fails, and all that come within `ns` of it. */
static void
arm(long nth, int64_t ns)
{
    atomic_store(&failed, 0);
    failing_ns = ns;
    atomic_store(&until, 0);
    atomic_store(&left, nth);
}

static void
disarm(void)
{
    atomic_store(&left, LONG_MAX);
}

/* --- a scenario whose steps may fail --- */

typedef struct scene {
    fm_conn_config *config;
    fm_bus *bus;
    fm_topology *topologies[2];
    fm_consumer *requests;
    fm_consumer *replies;
    const char *step; /* for texts */
    int refused;      /* steps that ended for want of memory */
} scene;

static const char requests_queue[] = "memory.requests";
static const char replies_queue[] = "memory.replies";

/* A step that ends in time, either way. True: it is to be taken once more. */
static bool
once_more(scene *self, fm_status status, const char *text)
{
    if (status == FM_OK)
        return false;
    if (status != FM_NO_MEMORY && status != FM_SYSTEM) {
        disarm();
        (void)rig_show_events(true);
        CHECK_FAIL("%s: %s: %s", self->step, fm_status_text(status), text);
    }
    /* FM_SYSTEM: no thread. What has a text says it. */
    if (text[0] != '\0' && strstr(text, "memory") == NULL)
        CHECK_FAIL("%s: not clear: %s", self->step, text);
    self->refused++;
    return true;
}

static fm_status
declare(const char *name, fm_topology **out)
{
    fm_queue queue = { .name = name };
    fm_exchange exchange = { .name = "memory.exchange", .type = "fanout" };
    fm_topology *topology = NULL;
    fm_status status = fm_topology_new(&topology);

    if (status == FM_OK)
        status = fm_topology_add_exchange(topology, &exchange);
    if (status == FM_OK)
        status = fm_topology_add_queue(topology, &queue);
    if (status == FM_OK)
        status =
            fm_topology_add_binding(topology, name, "memory.exchange", "k");
    if (status == FM_OK)
        *out = topology;
    else
        fm_topology_unref(topology);
    return status;
}

static fm_status
join(scene *self, const char *queue, fm_topology *topology, bool replies,
    fm_consumer **out)
{
    fm_consumer_config config = { &queue, 1, 5, replies, false };
    fm_consumer *consumer = NULL;
    fm_status status = fm_consumer_new(&config, topology,
        &self->bus->consuming.output, &self->bus->replies, &consumer);

    if (status == FM_OK)
        status = fm_bus_add_consumer(self->bus, consumer);
    if (status == FM_OK)
        *out = consumer;
    else
        fm_consumer_unref(consumer);
    return status;
}

/* Wait until it is where it is to be; the text says why it is not. */
static fm_status
reach(fm_consumer *consumer, fm_consumer_goal goal, fm_error *error)
{
    fm_deadline deadline = fm_deadline_in(SOON);
    fm_status status;

    error->text[0] = '\0';
    fm_consumer_want(consumer, goal);
    do {
        status = fm_consumer_wait(consumer, deadline, error);
    } while (status == FM_INTERRUPTED);
    return status;
}

/* One that failed for want of memory goes, and another one comes. */
static void
consume(scene *self, const char *queue, fm_topology *topology, bool replies,
    fm_consumer **out)
{
    fm_error error = { .text = "" };

    for (;;) {
        while (once_more(self, join(self, queue, topology, replies, out), ""))
            continue;
        if (!once_more(
                self, reach(*out, FM_GOAL_CONSUMING, &error), error.text))
            return;
        CHECK_INT(reach(*out, FM_GOAL_CLOSED, &error), FM_OK);
        fm_consumer_unref(*out);
    }
}

static fm_status
publish(scene *self, const char *queue, const char *body, fm_message **out)
{
    fm_message *message = NULL;
    fm_status status = fm_message_new(FM_LANE_RPC, "", queue, &message);

    if (status == FM_OK)
        status = fm_buf_append(&message->body, body, strlen(body));
    if (status == FM_OK) {
        message->topology = fm_topology_ref(self->topologies[0]);
        message->mandatory = true;
        status = fm_bus_submit(self->bus, message);
    }
    if (status == FM_OK)
        *out = message;
    else
        fm_message_unref(message);
    return status;
}

static fm_status
cast(scene *self, fm_error *error)
{
    fm_message *message;
    fm_status status =
        publish(self, requests_queue, "memory.replies none", &message);

    error->text[0] = '\0';
    if (status != FM_OK)
        return status;
    status = rig_wait(self->bus, message, SOON);
    if (status != FM_OK)
        *error = message->error;
    fm_message_unref(message);
    return status;
}

/* The next request, whoever sent it; there must be one. */
static fm_delivery *
take(scene *self)
{
    fm_delivery *delivery = rig_take(self->requests, SOON);

    if (delivery == NULL) {
        disarm();
        (void)rig_show_events(true);
        CHECK_FAIL("%s: nothing came", self->step);
    }
    return delivery;
}

/* Whether it was a request for a reply, which is handed over. */
static bool
serve(scene *self)
{
    fm_delivery *delivery = take(self);
    char text[100] = "", queue[60], id[40], body[400];
    fm_message *reply;
    fm_status status;

    memcpy(text, delivery->body.data,
        delivery->body.len < 99 ? delivery->body.len : 99);
    fm_consumer_ack(self->requests, delivery->generation,
        delivery->deliver.delivery_tag, false, true);
    fm_delivery_free(delivery);
    CHECK_INT(sscanf(text, "%59s %39s", queue, id), 2);
    if (strcmp(id, "none") == 0)
        return false;
    snprintf(body, sizeof(body),
        "{\"oslo.version\": \"2.0\", \"oslo.message\": \"{\\\"result\\\": 1, "
        "\\\"failure\\\": null, \\\"ending\\\": true, \\\"_msg_id\\\": "
        "\\\"%s\\\", \\\"_unique_id\\\": \\\"%s\\\"}\"}",
        id, id);
    do {
        reply = NULL;
        status = fm_message_new(FM_LANE_RPC, "", queue, &reply);
        if (status == FM_OK)
            status = fm_buf_append(&reply->body, body, strlen(body));
        if (status == FM_OK) {
            reply->handed_over = reply->mandatory = true;
            reply->give_up = fm_deadline_in(SOON);
            status = fm_bus_submit(self->bus, reply);
        }
        fm_message_unref(reply);
    } while (once_more(self, status, ""));
    return true;
}

static fm_status
call(scene *self, const char *id, fm_error *error)
{
    char body[100];
    fm_message *message;
    fm_status status;

    error->text[0] = '\0';
    snprintf(body, sizeof(body), "%s %s", replies_queue, id);
    status = fm_message_new(FM_LANE_RPC, "", requests_queue, &message);
    if (status != FM_OK)
        return status;
    status = fm_buf_append(&message->body, body, strlen(body));
    if (status == FM_OK) {
        message->topology = fm_topology_ref(self->topologies[0]);
        message->gate = fm_gate_ref(self->replies->gate);
        snprintf(message->msg_id, sizeof(message->msg_id), "%s", id);
        status = fm_bus_submit(self->bus, message);
    }
    if (status == FM_OK) {
        while (!serve(self))
            continue;
        status = rig_finish_call(self->bus, message, SOON);
        if (status != FM_OK)
            *error = message->error;
    }
    fm_message_unref(message);
    return status;
}

static void
begin(scene *self)
{
    fm_error error;

    self->step = "open";
    while (once_more(self, fm_bus_open("memory", self->config, &self->bus), ""))
        continue;
    self->step = "declare";
    while (once_more(self, declare(requests_queue, &self->topologies[0]), ""))
        continue;
    while (once_more(self, declare(replies_queue, &self->topologies[1]), ""))
        continue;
    self->step = "cast";
    while (once_more(self, cast(self, &error), error.text))
        continue;
    self->step = "consume";
    consume(self, requests_queue, self->topologies[0], false, &self->requests);
    self->step = "consume replies";
    consume(self, replies_queue, self->topologies[1], true, &self->replies);
}

static void
go_on(scene *self)
{
    fm_error error;

    self->step = "call";
    while (once_more(self, call(self, "m1", &error), error.text))
        continue;
    self->step = "cast";
    while (once_more(self, cast(self, &error), error.text))
        continue;
    self->step = "receive";
    while (serve(self))
        continue;
}

static void
end(scene *self)
{
    fm_error error = { .text = "" };

    self->step = "stop";
    CHECK_INT(reach(self->requests, FM_GOAL_STOPPED, &error), FM_OK);
    self->step = "close";
    while (once_more(
        self, fm_consumer_delete_at_close(self->requests, requests_queue), ""))
        continue;
    while (once_more(
        self, fm_consumer_delete_at_close(self->replies, replies_queue), ""))
        continue;
    CHECK_INT(reach(self->requests, FM_GOAL_CLOSED, &error), FM_OK);
    CHECK_INT(reach(self->replies, FM_GOAL_CLOSED, &error), FM_OK);
    fm_consumer_unref(self->requests);
    fm_consumer_unref(self->replies);
    fm_topology_unref(self->topologies[0]);
    fm_topology_unref(self->topologies[1]);
    rig_close(self->bus);
}

static fm_conn_config *
make_config(void)
{
    return rig_config((rig_options){ 0 });
}

/* --- the tests --- */

static void
each_allocation_may_fail_once(void)
{
    fm_conn_config *config = make_config();
    int failures = 0, refusals = 0;
    int64_t slowest = 0;
    long nth = 0;

    do {
        scene self = { .config = config };
        int64_t began = fm_now();

        arm(nth, 0);
        begin(&self);
        go_on(&self);
        disarm();
        /* Whatever it was, it is over. */
        go_on(&self);
        end(&self);
        (void)rig_show_events(false);
        failures += (int)atomic_load(&failed);
        refusals += self.refused;
        if (fm_now() - began > slowest)
            slowest = fm_now() - began;
        nth++;
    } while (atomic_load(&failed) > 0);
    fm_conn_config_unref(config);
    fprintf(stderr,
        "  %d allocations, %d refusals, the slowest scenario took %.2f s\n",
        failures, refusals, (double)slowest / 1e9);
    CHECK(failures > 100);
    expect_nothing_left();
}

static void
the_end_may_lack_memory_as_well(void)
{
    fm_conn_config *config = make_config();
    int failures = 0;
    long nth = 0;

    do {
        scene self = { .config = config };

        begin(&self);
        go_on(&self);
        arm(nth++, 0);
        end(&self);
        disarm();
        (void)rig_show_events(false);
        failures += (int)atomic_load(&failed);
    } while (atomic_load(&failed) > 0);
    fm_conn_config_unref(config);
    fprintf(stderr, "  %d allocations\n", failures);
    CHECK(failures > 3);
    expect_nothing_left();
}

/* In the middle of what is going on. */
static void
all_allocations_may_fail_for_a_while(void)
{
    fm_conn_config *config = make_config();

    for (long nth = 0; nth < 100; nth += 7) {
        scene self = { .config = config };

        arm(nth, 300 * MS);
        begin(&self);
        go_on(&self);
        disarm();
        go_on(&self);
        end(&self);
        (void)rig_show_events(false);
    }
    fm_conn_config_unref(config);
    expect_nothing_left();
}

int
main(void)
{
    note_what_is_there();
    RUN(each_allocation_may_fail_once);
    RUN(the_end_may_lack_memory_as_well);
    RUN(all_allocations_may_fail_for_a_while);
    return 0;
}
