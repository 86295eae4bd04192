#include "io/stats.h"

const char *
fm_conn_state_name(fm_conn_state state)
{
    static const char *const names[] = {
        [FM_CONN_IDLE] = "idle",
        [FM_CONN_CONNECTING] = "connecting",
        [FM_CONN_WAITING] = "waiting",
        [FM_CONN_OPEN] = "open",
        [FM_CONN_CLOSING] = "closing",
        [FM_CONN_LEAVING] = "leaving",
    };

    return names[state];
}

const char *
fm_consumer_state_name(fm_consumer_state state)
{
    static const char *const names[] = {
        [FM_CONSUMER_DOWN] = "down",
        [FM_CONSUMER_DECLARING] = "declaring",
        [FM_CONSUMER_DECLARED] = "declared",
        [FM_CONSUMER_STARTING] = "starting",
        [FM_CONSUMER_CONSUMING] = "consuming",
        [FM_CONSUMER_STOPPING] = "stopping",
        [FM_CONSUMER_STOPPED] = "stopped",
        [FM_CONSUMER_CLOSING] = "closing",
        [FM_CONSUMER_CLOSED] = "closed",
        [FM_CONSUMER_FAILED] = "failed",
    };

    return names[state];
}

/* It may have been read after `now` was. */
static int64_t
age(int64_t now, int64_t then)
{
    return now > then ? now - then : 0;
}

void
fm_conn_look_at(fm_conn *conn, int64_t now, fm_conn_look *out)
{
    uint64_t connects = atomic_load(&conn->connects);

    *out = (fm_conn_look){
        .state = (fm_conn_state)atomic_load(&conn->seen_state),
        .wanted = atomic_load(&conn->seen_wanted),
        .since_ns = age(now, atomic_load(&conn->seen_since)),
        .heard_ns = -1,
        .heartbeat_s = atomic_load(&conn->heartbeat_s),
        .failures = atomic_load(&conn->seen_rounds),
        .connects = connects,
        .bytes_sent = atomic_load(&conn->output.bytes),
        .bytes_received = fm_counter_get(&conn->bytes),
    };
    if (connects == 0)
        return;
    out->host = &conn->config->hosts[atomic_load(&conn->seen_host)];
    out->heard_ns = age(now, atomic_load(&conn->seen_read));
}

static fm_presence
presence_of(fm_consumer_goal goal, fm_consumer_state state)
{
    if (goal >= FM_GOAL_STOPPED || state == FM_CONSUMER_CLOSED)
        return FM_PRESENCE_UNWANTED;
    /* One that is only to be declared may be on its way to consuming. */
    if (state == FM_CONSUMER_CONSUMING
        || (goal == FM_GOAL_DECLARED
            && (state == FM_CONSUMER_DECLARED
                || state == FM_CONSUMER_STARTING)))
        return FM_PRESENCE_THERE;
    return FM_PRESENCE_MISSING;
}

void
fm_consumer_look_at(fm_consumer *consumer, int64_t now, fm_consumer_look *out)
{
    int64_t verified_at = atomic_load(&consumer->verified_at);
    fm_consumer_goal goal;

    fm_consumer_states_get(consumer, &goal, &out->state);
    out->presence = presence_of(goal, out->state);
    out->verified_ns = verified_at == 0 ? -1 : age(now, verified_at);
}

int64_t
fm_bus_blocked_ns(fm_bus *bus, int64_t now)
{
    int64_t since = atomic_load(&bus->publisher.counters.blocked_since);

    return since == 0 ? -1 : age(now, since);
}
