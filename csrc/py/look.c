#include "py/look.h"

#include "io/stats.h"
#include "py/raise.h"

#include <stdlib.h>
#include <time.h>

static PyObject *
seconds(int64_t ns)
{
    if (ns < 0)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)ns / 1e9);
}

/* Now, as seconds since 1970. */
static double
wall_clock(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static PyObject *
host_text(const fm_host *host)
{
    if (host == NULL)
        Py_RETURN_NONE;
    return PyUnicode_FromFormat("%s:%d", host->name, (int)host->port);
}

/* Append to a list, which is given up with `item` if that fails. */
static PyObject *
append(PyObject *list, PyObject *item)
{
    if (list == NULL || item == NULL || PyList_Append(list, item) < 0)
        Py_CLEAR(list);
    Py_XDECREF(item);
    return list;
}

/* Whoever logged in, where is told and with what is not. */
static PyObject *
all_hosts(const fm_bus *bus)
{
    const fm_conn_config *config = bus->publishing.config;
    PyObject *list = PyList_New(0);

    for (size_t i = 0; i < config->host_count && list != NULL; i++)
        list = append(list, host_text(&config->hosts[i]));
    return list;
}

/* --- counts --- */

static PyObject *
conn_stats(fm_conn *conn)
{
    int64_t now = fm_now();
    fm_conn_look look;

    fm_conn_look_at(conn, now, &look);
    return Py_BuildValue("{sssNsdsNsKsKsKsKsi}", "state",
        fm_conn_state_name(look.state), "host", host_text(look.host), "since",
        wall_clock() - (double)look.since_ns / 1e9, "since_s",
        seconds(look.since_ns), "connects", (unsigned long long)look.connects,
        "reconnects",
        (unsigned long long)(look.connects > 0 ? look.connects - 1 : 0),
        "bytes_sent", (unsigned long long)look.bytes_sent, "bytes_received",
        (unsigned long long)look.bytes_received, "heartbeat", look.heartbeat_s);
}

static PyObject *
round_trips(const fm_histogram *from)
{
    PyObject *buckets = PyList_New(0);
    unsigned long long count = 0;

    for (size_t i = 0; i < FM_HISTOGRAM_BUCKETS && buckets != NULL; i++) {
        uint64_t n = fm_counter_get(&from->buckets[i]);

        count += n;
        buckets = append(buckets, PyLong_FromUnsignedLongLong(n));
    }
    return Py_BuildValue("{sKsdsN}", "count", count, "sum_s",
        (double)fm_counter_get(&from->sum_us) / 1e6, "buckets", buckets);
}

PyObject *
fm_look_bus_stats(fm_bus *bus)
{
    fm_publisher_stats sent;
    fm_consumed got;

    fm_publisher_stats_get(&bus->publisher, &sent);
    fm_bus_consumed_get(bus, &got);
    return Py_BuildValue("{sNsssNsNsKsKsKsKsKsKsKsKsKsdsKsKsKsnsKsN}", "hosts",
        all_hosts(bus), "virtual_host", bus->publishing.config->virtual_host,
        "publishing", conn_stats(&bus->publishing), "consuming",
        conn_stats(&bus->consuming), "published",
        (unsigned long long)sent.published, "confirmed",
        (unsigned long long)sent.confirmed, "nacked",
        (unsigned long long)sent.nacked, "returned",
        (unsigned long long)sent.returned, "resent",
        (unsigned long long)sent.resent, "failed",
        (unsigned long long)sent.failed, "in_flight",
        (unsigned long long)sent.in_flight, "unsent",
        (unsigned long long)sent.unsent, "parked",
        (unsigned long long)sent.parked, "blocked_s",
        (double)sent.blocked_ns / 1e9, "delivered",
        (unsigned long long)got.delivered, "duplicates",
        (unsigned long long)got.duplicates, "rejected",
        (unsigned long long)got.rejected, "waiting_calls",
        (Py_ssize_t)fm_reply_waiting(&bus->replies), "late_replies",
        (unsigned long long)fm_counter_get(&bus->replies.late), "round_trips",
        round_trips(&bus->replies.round_trips));
}

/* --- health --- */

static PyObject *
conn_health(fm_conn *conn, int64_t now)
{
    fm_conn_look look;

    fm_conn_look_at(conn, now, &look);
    return Py_BuildValue("{sssNsNsNsisNsI}", "state",
        fm_conn_state_name(look.state), "host", host_text(look.host), "since_s",
        seconds(look.since_ns), "heard_s", seconds(look.heard_ns), "heartbeat",
        look.heartbeat_s, "wanted", PyBool_FromLong(look.wanted), "failures",
        look.failures);
}

static PyObject *
queues_of(const fm_consumer *consumer)
{
    PyObject *list = PyList_New(0);

    for (size_t i = 0; i < consumer->queue_count && list != NULL; i++)
        list = append(list,
            PyUnicode_DecodeUTF8(consumer->queues[i],
                (Py_ssize_t)strlen(consumer->queues[i]), "replace"));
    return list;
}

static PyObject *
consumer_health(fm_consumer *consumer, int64_t now)
{
    fm_consumer_look look;

    fm_consumer_look_at(consumer, now, &look);
    return Py_BuildValue("{sNsNsssNsNsN}", "queues", queues_of(consumer),
        "replies", PyBool_FromLong(consumer->table != NULL), "state",
        fm_consumer_state_name(look.state), "wanted",
        PyBool_FromLong(look.presence != FM_PRESENCE_UNWANTED), "present",
        PyBool_FromLong(look.presence == FM_PRESENCE_THERE), "verified_s",
        seconds(look.verified_ns));
}

static PyObject *
consumers_health(fm_state *state, fm_bus *bus, int64_t now)
{
    PyObject *list = PyList_New(0);
    fm_consumer **consumers = NULL;
    size_t count = 0;
    fm_status status = fm_bus_list_consumers(bus, &consumers, &count);

    if (status != FM_OK) {
        Py_XDECREF(list);
        return fm_raise_status(state, status);
    }
    for (size_t i = 0; i < count; i++) {
        if (list != NULL)
            list = append(list, consumer_health(consumers[i], now));
        fm_consumer_unref(consumers[i]);
    }
    free(consumers);
    return list;
}

static PyObject *
bus_health(fm_state *state, fm_bus *bus)
{
    int64_t now = fm_now();

    return Py_BuildValue("{sNsssNsNsNsN}", "hosts", all_hosts(bus),
        "virtual_host", bus->publishing.config->virtual_host, "publishing",
        conn_health(&bus->publishing, now), "consuming",
        conn_health(&bus->consuming, now), "blocked_s",
        seconds(fm_bus_blocked_ns(bus, now)), "consumers",
        consumers_health(state, bus, now));
}

/* --- functions of the module --- */

static PyObject *
stats_of(fm_state *Py_UNUSED(state), fm_bus *bus)
{
    return fm_look_bus_stats(bus);
}

/* A list of what `look` gives for each open bus. */
static PyObject *
for_each_bus(PyObject *module, PyObject *(*look)(fm_state *, fm_bus *))
{
    fm_state *state = fm_state_of_module(module);
    PyObject *list = PyList_New(0);
    fm_bus **buses = NULL;
    size_t count = 0;
    fm_status status = fm_bus_list(&buses, &count);

    if (status != FM_OK) {
        Py_XDECREF(list);
        return fm_raise_status(state, status);
    }
    for (size_t i = 0; i < count; i++) {
        if (list != NULL)
            list = append(list, look(state, buses[i]));
        fm_bus_unref(buses[i]);
    }
    free(buses);
    return list;
}

PyObject *
fm_py_broker_stats(PyObject *module, PyObject *Py_UNUSED(unused))
{
    return for_each_bus(module, stats_of);
}

PyObject *
fm_py_broker_health(PyObject *module, PyObject *Py_UNUSED(unused))
{
    return for_each_bus(module, bus_health);
}

PyObject *
fm_py_events_lost(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(fm_event_lost());
}
