/* io/stats.h: what others see of a bus, by a thread that does nothing else. */
#include "rig.h"

#include "io/stats.h"

enum { COMINGS = 30 };

static atomic_bool over;
static atomic_ulong looks;

static uint64_t
at_least(uint64_t last, uint64_t found)
{
    CHECK(found >= last); /* counts never go back */
    return found;
}

/* Everything there is to look at, again and again. */
static void *
look_at_all(void *arg)
{
    uint64_t published = 0, delivered = 0, sent = 0, received = 0;
    fm_bus *watched = arg;

    while (!atomic_load(&over)) {
        fm_bus **buses;
        size_t count;

        CHECK_INT(fm_bus_list(&buses, &count), FM_OK);
        for (size_t i = 0; i < count; i++) {
            fm_bus *bus = buses[i];
            fm_consumer **consumers;
            fm_publisher_stats stats;
            fm_consumed consumed;
            fm_conn_look look;
            size_t consumer_count;

            fm_publisher_stats_get(&bus->publisher, &stats);
            fm_bus_consumed_get(bus, &consumed);
            fm_conn_look_at(&bus->publishing, fm_now(), &look);
            CHECK(look.since_ns >= 0);
            CHECK(look.host == NULL || look.heard_ns >= 0);
            if (bus == watched) {
                published = at_least(published, stats.published);
                delivered = at_least(delivered, consumed.delivered);
                sent = at_least(sent, look.bytes_sent);
                received = at_least(received, look.bytes_received);
            }
            (void)fm_bus_blocked_ns(bus, fm_now());
            CHECK_INT(
                fm_bus_list_consumers(bus, &consumers, &consumer_count), FM_OK);
            for (size_t j = 0; j < consumer_count; j++) {
                fm_consumer_look seen;

                fm_consumer_look_at(consumers[j], fm_now(), &seen);
                CHECK(*fm_consumer_state_name(seen.state) != '\0');
                fm_consumer_unref(consumers[j]);
            }
            free(consumers);
            fm_bus_unref(bus);
        }
        free(buses);
        atomic_fetch_add(&looks, 1);
    }
    return NULL;
}

static void
looking_disturbs_nobody_who_comes_and_goes(void)
{
    fm_bus *bus = rig_open("watched", (rig_options){ 0 });
    fm_bus *other;
    rig_server server;
    fm_consumer *replies;
    fm_thread looker;
    fm_consumed consumed;
    char id[16];

    rig_server_start(&server, bus, "native.looked");
    CHECK_INT(fm_thread_start(&looker, "looks", look_at_all, bus), FM_OK);
    for (int i = 0; i < COMINGS; i++) {
        snprintf(id, sizeof(id), "m%d", i);
        other = rig_open("comes", (rig_options){ 0 });
        replies = rig_consume(bus, "native.replies", NULL, 0, true);
        CHECK_INT(
            rig_call(bus, "native.looked", replies, id, 0, LONG_ENOUGH), FM_OK);
        CHECK_INT(rig_cast(other, "nobody", "x"), FM_OK);
        rig_end(replies);
        rig_close(other);
    }
    atomic_store(&over, true);
    fm_thread_join(&looker);
    CHECK(atomic_load(&looks) > 0);
    rig_server_stop(&server);
    /* What consumers got stays when they go: requests and replies. */
    fm_bus_consumed_get(bus, &consumed);
    CHECK_INT(consumed.delivered, 2 * COMINGS);
    rig_close(bus);
    expect_nothing_left();
}

static void
a_consumer_is_there_on_the_brokers_word_alone(void)
{
    fm_bus *bus = rig_open("states", (rig_options){ 0 });
    fm_topology *topology = rig_queue("native.seen", NULL, 0);
    fm_consumer *consumer = rig_join(bus, "native.seen", topology, 1, false);
    fm_consumer_look look;

    rig_reach(consumer, FM_GOAL_DECLARED);
    fm_consumer_look_at(consumer, fm_now(), &look);
    CHECK_INT(look.presence, FM_PRESENCE_THERE);
    fm_consumer_want(consumer, FM_GOAL_CONSUMING);
    fm_consumer_look_at(consumer, fm_now(), &look);
    CHECK_INT(look.presence,
        look.state == FM_CONSUMER_CONSUMING ? FM_PRESENCE_THERE
                                            : FM_PRESENCE_MISSING);
    rig_reach(consumer, FM_GOAL_CONSUMING);
    fm_consumer_look_at(consumer, fm_now(), &look);
    CHECK_INT(look.state, FM_CONSUMER_CONSUMING);
    CHECK_INT(look.presence, FM_PRESENCE_THERE);
    CHECK(look.verified_ns >= 0 && look.verified_ns < 60 * FM_NS_PER_S);
    fm_consumer_want(consumer, FM_GOAL_STOPPED);
    fm_consumer_look_at(consumer, fm_now(), &look);
    CHECK_INT(look.presence, FM_PRESENCE_UNWANTED);
    rig_end(consumer);
    fm_topology_unref(topology);
    rig_close(bus);
    expect_nothing_left();
}

int
main(void)
{
    note_what_is_there();
    RUN(a_consumer_is_there_on_the_brokers_word_alone);
    RUN(looking_disturbs_nobody_who_comes_and_goes);
    return 0;
}
