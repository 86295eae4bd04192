/* io/conn.h and io/bus.h against a broker that answers whatever it is asked,
 * or misbehaves: what the real one does once in a year.
 */
#include "line.h"

#include "base/event.h"
#include "io/bus.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>

/* --- the broker: one thread, one connection at a time --- */

typedef enum mood {
    MILD,     /* answers */
    CROSSING, /* closes a channel when it is asked to */
    RAVING,   /* answers, then sends what may be anything */
} mood;

static struct {
    int listener;
    uint16_t port;
    atomic_int mood;
    atomic_int accepted;
    atomic_bool stop;
    pthread_t thread;
    unsigned seed;
} broker;

static void
add_method(fm_buf *to, uint16_t channel, const fm_buf *payload)
{
    add_u8(to, FM_FRAME_METHOD);
    add_u16(to, channel);
    add_u32(to, (uint32_t)payload->len);
    CHECK_INT(fm_buf_append(to, payload->data, payload->len), FM_OK);
    add_u8(to, FM_FRAME_END);
}

/* The answer to a method: the next one of its class, nothing in it that
 * anybody would look at. */
static void
add_answer(fm_buf *to, uint16_t channel, uint32_t id)
{
    fm_buf payload = { 0 };

    add_u32(&payload, id + 1);
    add_u64(&payload, 0);
    add_method(to, channel, &payload);
    fm_buf_fini(&payload);
}

static void
add_close(fm_buf *to, uint16_t channel)
{
    fm_buf payload = { 0 };

    add_u32(&payload, FM_METHOD_CHANNEL_CLOSE);
    add_u16(&payload, 406);
    add_text(&payload, "PRECONDITION_FAILED");
    add_u32(&payload, 0);
    add_method(to, channel, &payload);
    fm_buf_fini(&payload);
}

static void
add_start(fm_buf *to)
{
    static const char mechanisms[] = "PLAIN AMQPLAIN", locales[] = "en_US";
    fm_buf payload = { 0 };

    add_u32(&payload, FM_METHOD_CONNECTION_START);
    add_u8(&payload, 0);
    add_u8(&payload, 9);
    add_u32(&payload, 0); /* no properties */
    add_u32(&payload, sizeof(mechanisms) - 1);
    CHECK_INT(
        fm_buf_append(&payload, mechanisms, sizeof(mechanisms) - 1), FM_OK);
    add_u32(&payload, sizeof(locales) - 1);
    CHECK_INT(fm_buf_append(&payload, locales, sizeof(locales) - 1), FM_OK);
    add_method(to, 0, &payload);
    fm_buf_fini(&payload);
}

static void
add_tune(fm_buf *to)
{
    fm_buf payload = { 0 };

    add_u32(&payload, FM_METHOD_CONNECTION_TUNE);
    add_u16(&payload, 2047);
    add_u32(&payload, FM_FRAME_MAX_MOST);
    add_u16(&payload, 60);
    add_method(to, 0, &payload);
    fm_buf_fini(&payload);
}

/* Frames that are nearly right, or bytes that are not even that. */
static void
add_ravings(fm_buf *to)
{
    static const uint32_t ids[] = { FM_METHOD_BASIC_DELIVER,
        FM_METHOD_BASIC_RETURN, FM_METHOD_BASIC_CANCEL, FM_METHOD_BASIC_ACK,
        FM_METHOD_CHANNEL_FLOW, FM_METHOD_CHANNEL_CLOSE,
        FM_METHOD_CHANNEL_CLOSE_OK, FM_METHOD_CONNECTION_CLOSE,
        FM_METHOD_CONNECTION_CLOSE_OK, FM_METHOD_CONNECTION_BLOCKED,
        FM_METHOD_CONNECTION_UNBLOCKED, FM_METHOD_CONNECTION_SECURE };
    unsigned *seed = &broker.seed;
    fm_buf payload = { 0 };
    size_t begin;

    for (int i = rand_r(seed) % 10; i >= 0; i--) {
        uint16_t channel = (uint16_t)(rand_r(seed) % 4);

        begin = to->len;
        payload.len = 0;
        switch (rand_r(seed) % 5) {
        case 0:
            build_deliver(&payload, "1", (uint64_t)rand_r(seed));
            add_method(to, channel, &payload);
            break;
        case 1:
            build_header(&payload, (uint64_t)(rand_r(seed) % 20));
            add_method(to, channel, &payload);
            to->data[begin] = FM_FRAME_HEADER;
            break;
        case 2:
            add_u64(&payload, (uint64_t)rand_r(seed));
            add_method(to, channel, &payload);
            to->data[begin] = FM_FRAME_BODY;
            break;
        default:
            add_u32(&payload, ids[(size_t)rand_r(seed) % 12]);
            for (int k = rand_r(seed) % 30; k > 0; k--)
                add_u8(&payload, (uint8_t)(rand_r(seed) % 8));
            add_method(to, channel, &payload);
            break;
        }
        /* But not in its size: a frame that never ends is only silence. */
        if (rand_r(seed) % 10 == 0)
            to->data[begin + 7 + (size_t)rand_r(seed) % (payload.len + 1)] =
                (uint8_t)rand_r(seed);
    }
    fm_buf_fini(&payload);
}

static void
answer(fm_buf *to, uint16_t channel, uint32_t id)
{
    switch (id) {
    case FM_METHOD_CONNECTION_START_OK:
        add_tune(to);
        return;
    case FM_METHOD_CONNECTION_TUNE_OK:
    case FM_METHOD_BASIC_ACK:
    case FM_METHOD_BASIC_REJECT:
    case FM_METHOD_BASIC_CANCEL_OK:
    case FM_METHOD_CHANNEL_CLOSE_OK:
    case FM_METHOD_CONNECTION_CLOSE_OK:
    case FM_METHOD_BASIC_PUBLISH:
        return;
    default:
        break;
    }
    add_answer(to, channel, id);
    if (id == FM_METHOD_BASIC_CONSUME && atomic_load(&broker.mood) == RAVING)
        add_ravings(to);
}

/* Close a channel that is being closed; the answer to that comes right behind
 * or a moment later, when nobody thinks of the channel any more. */
static void
cross(int fd, uint16_t channel)
{
    fm_buf out = { 0 };

    add_close(&out, channel);
    peer_write(fd, out.data, out.len);
    fm_buf_fini(&out);
    usleep((useconds_t)(rand_r(&broker.seed) % 3 * 3000));
}

/* Serve one connection until it ends. */
static void
serve(int fd)
{
    line self = { .far = fd };
    fm_buf out = { 0 };
    fm_frame frame;
    size_t used;
    char hello[8];
    int one = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    CHECK_INT(fcntl(fd, F_SETFD, FD_CLOEXEC), 0);
    if (!peer_read(fd, hello, sizeof(hello)))
        goto done;
    add_start(&out);
    for (;;) {
        uint32_t id;

        peer_write(fd, out.data, out.len);
        out.len = 0;
        while (fm_frame_split(self.got.data, self.got.len, FM_FRAME_MAX_MOST,
                   &frame, &used)
            != FM_OK)
            if (!line_read(&self, 100)) {
                char byte;

                if (atomic_load(&broker.stop)
                    || recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                    goto done;
            }
        if (frame.type == FM_FRAME_METHOD
            && fm_amqp_method_id(frame.payload, frame.len, &id) == FM_OK) {
            if (id == FM_METHOD_CHANNEL_CLOSE
                && atomic_load(&broker.mood) == CROSSING)
                cross(fd, frame.channel);
            answer(&out, frame.channel, id);
        }
        fm_buf_consume(&self.got, used);
    }

done:
    fm_buf_fini(&self.got);
    fm_buf_fini(&out);
    close(fd);
}

static void *
run_broker(void *arg)
{
    while (!atomic_load(&broker.stop)) {
        int fd = accept(broker.listener, NULL, NULL);

        if (fd < 0)
            break;
        atomic_fetch_add(&broker.accepted, 1);
        serve(fd);
    }
    return arg;
}

static void
start_broker(void)
{
    broker.listener = peer_listen("127.0.0.1", &broker.port, 16);
    CHECK(pthread_create(&broker.thread, NULL, run_broker, NULL) == 0);
}

static void
stop_broker(void)
{
    atomic_store(&broker.stop, true);
    shutdown(broker.listener, SHUT_RDWR);
    pthread_join(broker.thread, NULL);
    close(broker.listener);
}

/* --- our side --- */

static fm_bus *
open_bus(void)
{
    fm_conn_config *config;
    fm_bus *bus;

    CHECK_INT(fm_conn_config_new(&config), FM_OK);
    config->hosts = calloc(1, sizeof(*config->hosts));
    CHECK(config->hosts != NULL);
    config->host_count = 1;
    config->hosts[0].name = strdup("127.0.0.1");
    config->hosts[0].port = broker.port;
    config->hosts[0].user = strdup("user");
    config->hosts[0].password = strdup("password");
    config->virtual_host = strdup("/");
    config->name = strdup("test");
    config->heartbeat_s = 60;
    config->pace.start_ns = 20 * FM_NS_PER_MS;
    CHECK_INT(fm_bus_open("key", config, &bus), FM_OK);
    fm_conn_config_unref(config);
    return bus;
}

static fm_consumer *
join(fm_bus *bus)
{
    static const char *const queues[] = { "q" };
    fm_consumer_config config = { queues, 1, 5, false, false };
    fm_topology *topology;
    fm_consumer *consumer;

    CHECK_INT(fm_topology_new(&topology), FM_OK);
    CHECK_INT(fm_consumer_new(&config, topology, &bus->consuming.output,
                  &bus->replies, &consumer),
        FM_OK);
    fm_topology_unref(topology);
    CHECK_INT(fm_bus_add_consumer(bus, consumer), FM_OK);
    return consumer;
}

static fm_status
reach(fm_consumer *consumer, fm_consumer_goal goal, int64_t ns)
{
    fm_error error;

    fm_consumer_want(consumer, goal);
    return fm_consumer_wait(consumer, fm_deadline_in(ns), &error);
}

/* Both sides close a channel at once, so the broker's answer to our close
 * comes for a channel that nobody has any more. */
static void
closes_that_cross_leave_the_connection_alone(void)
{
    fm_bus *bus = open_bus();

    atomic_store(&broker.mood, CROSSING);
    for (int i = 0; i < 50; i++) {
        fm_consumer *consumer = join(bus);

        CHECK_INT(reach(consumer, FM_GOAL_CONSUMING, 10 * FM_NS_PER_S), FM_OK);
        CHECK_INT(reach(consumer, FM_GOAL_CLOSED, 10 * FM_NS_PER_S), FM_OK);
        fm_consumer_unref(consumer);
    }
    CHECK_INT(atomic_load(&bus->consuming.connects), 1);
    atomic_store(&broker.mood, MILD);
    fm_bus_close(bus, fm_deadline_in(10 * FM_NS_PER_S));
}

static void
a_raving_broker_does_no_harm(void)
{
    int lost = 0;

    atomic_store(&broker.mood, RAVING);
    for (int i = 0; i < 150; i++) {
        fm_bus *bus = open_bus();
        fm_consumer *consumer = join(bus);
        fm_deadline until;
        fm_delivery *delivery;

        (void)reach(consumer, FM_GOAL_CONSUMING, 50 * FM_NS_PER_MS);
        until = fm_deadline_in(5 * FM_NS_PER_MS);
        while (fm_consumer_take(consumer, 1, until, &delivery) == FM_OK) {
            (void)fm_consumer_queue_of(consumer, delivery);
            fm_consumer_ack(consumer, delivery->generation,
                delivery->deliver.delivery_tag, false, true);
            fm_delivery_free(delivery);
        }
        lost += atomic_load(&bus->consuming.connects) > 1
            || atomic_load(&bus->consuming.seen_state) != FM_CONN_OPEN;
        if (i % 2 == 0)
            CHECK_INT(reach(consumer, FM_GOAL_CLOSED, 10 * FM_NS_PER_S), FM_OK);
        fm_bus_close(bus, fm_deadline_in(10 * FM_NS_PER_S));
        fm_consumer_unref(consumer);
    }
    CHECK(lost > 50); /* it did rave */
    atomic_store(&broker.mood, MILD);
}

int
main(void)
{
    start_broker();
    RUN(closes_that_cross_leave_the_connection_alone);
    RUN(a_raving_broker_does_no_harm);
    stop_broker();
    return 0;
}
