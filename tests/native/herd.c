/* Many clients in one process, each with a bus of its own: one core, two
 * connections, the stock driver's pauses. Not a test: tests/faults/test_herd.py
 * runs it and ends the broker that it is connected to.
 *
 * herd <clients> <port>...: the ports are hosts of the URL, so to say. It says
 * "ready" when all are connected, "away" when one is not, "back" when all are
 * again, and so on, until its input ends.
 */
#include "rig.h"

#include <poll.h>
#include <sys/resource.h>

enum { AT_ONCE = 20 };

typedef struct client {
    fm_bus *bus;
    fm_consumer *consumer;
} client;

static void
allow_descriptors(void)
{
    struct rlimit limit;

    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static fm_conn_config *
configure(char **ports, size_t count)
{
    fm_conn_config *config = rig_config((rig_options){ .heartbeat_s = 60 });

    config->pace = (fm_pace){ 2 * S, 2 * S, 30 * S, 0 };
    config->hosts = realloc(config->hosts, count * sizeof(*config->hosts));
    CHECK(config->hosts != NULL);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            config->hosts[i] =
                (fm_host){ .name = strdup(rig_env("FM_TEST_HOST")),
                    .user = strdup(rig_env("FM_TEST_USER")),
                    .password = strdup(rig_env("FM_TEST_PASSWORD")) };
        config->hosts[i].port = (uint16_t)atoi(ports[i]);
    }
    config->host_count = count;
    return config;
}

static void
open_client(client *self, int number, fm_conn_config *config)
{
    fm_topology *topology = rig_queue("herd", NULL, 0);
    char key[40];

    snprintf(key, sizeof(key), "client %d", number);
    CHECK_INT(fm_bus_open(key, config, &self->bus), FM_OK);
    self->consumer = rig_join(self->bus, "herd", topology, 5, false);
    fm_consumer_want(self->consumer, FM_GOAL_CONSUMING);
    fm_topology_unref(topology);
}

/* A few at a time, as services are not all started in the same moment. */
static void
open_all(client *clients, int count, fm_conn_config *config)
{
    for (int first = 0; first < count; first += AT_ONCE) {
        int end = first + AT_ONCE < count ? first + AT_ONCE : count;

        for (int i = first; i < end; i++)
            open_client(&clients[i], i, config);
        for (int i = first; i < end; i++) {
            rig_reach(clients[i].consumer, FM_GOAL_CONSUMING);
            CHECK_INT(rig_cast(clients[i].bus, "nobody", "x"), FM_OK);
        }
    }
}

static int
count_connected(const client *clients, int count)
{
    int found = 0;

    for (int i = 0; i < count; i++) {
        const fm_bus *bus = clients[i].bus;

        found += atomic_load(&bus->publishing.seen_state) == FM_CONN_OPEN;
        found += atomic_load(&bus->consuming.seen_state) == FM_CONN_OPEN;
    }
    return found;
}

static void
say(const char *what)
{
    puts(what);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    int count = argc < 3 ? 0 : atoi(argv[1]);
    client *clients = calloc((size_t)count, sizeof(*clients));
    struct pollfd input = { .fd = 0, .events = POLLIN };
    bool is_away = false;
    fm_conn_config *config;

    CHECK(count > 0 && clients != NULL);
    allow_descriptors();
    config = configure(argv + 2, (size_t)argc - 2);
    open_all(clients, count, config);
    say("ready");
    while (poll(&input, 1, 10) == 0) {
        int connected = count_connected(clients, count);

        if ((connected < 2 * count) != is_away)
            say(is_away ? "back" : "away");
        is_away = connected < 2 * count;
    }
    for (int i = 0; i < count; i++)
        fm_consumer_want(clients[i].consumer, FM_GOAL_CLOSED);
    for (int i = 0; i < count; i++) {
        rig_close(clients[i].bus);
        fm_consumer_unref(clients[i].consumer);
    }
    fm_conn_config_unref(config);
    free(clients);
    return 0;
}
