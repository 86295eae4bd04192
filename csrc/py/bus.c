#include "py/bus.h"

#include "py/call.h"
#include "py/consumer.h"
#include "py/look.h"
#include "py/raise.h"
#include "py/topology.h"

typedef struct {
    PyObject_HEAD
    fm_bus *bus; /* shared; NULL once closed; in critical sections alone */
} BusObject;

#define SELF(op) ((BusObject *)(op))
#define CLOSE_NS (5 * FM_NS_PER_S)

/* A share of the bus; NULL without an exception if it is closed or, in a
 * forked child, the parent's. */
static fm_bus *
share(PyObject *op, bool *is_closed)
{
    fm_bus *bus;

    Py_BEGIN_CRITICAL_SECTION(op);
    bus = SELF(op)->bus;
    *is_closed = bus == NULL;
    if (bus != NULL)
        bus = fm_bus_is_ours(bus) ? fm_bus_ref(bus) : NULL;
    Py_END_CRITICAL_SECTION();
    return bus;
}

static void
raise_closed(fm_state *state)
{
    static const fm_error closed = { .status = FM_CLOSED,
        .text = "this process closed the bus, or did not make it" };

    (void)fm_raise(state, &closed);
}

fm_bus *
fm_bus_acquire(fm_state *state, PyObject *op)
{
    bool is_closed;
    fm_bus *bus = share(op, &is_closed);

    if (bus == NULL)
        raise_closed(state);
    return bus;
}

/* --- parameters --- */

/* A copy of a text, to be freed by the configuration. */
static int
copy_text(PyObject *text, char **to)
{
    const char *utf8 = PyUnicode_AsUTF8(text);

    if (utf8 == NULL)
        return -1;
    *to = strdup(utf8);
    if (*to == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static int
read_hosts(PyObject *hosts, fm_conn_config *config)
{
    PyObject *items = PySequence_Tuple(hosts); /* ours, unlike a list */
    Py_ssize_t count;
    int rc = -1;

    if (items == NULL)
        return -1;
    count = PyTuple_GET_SIZE(items);
    if (count == 0) {
        PyErr_SetString(PyExc_ValueError, "there is no host");
        goto done;
    }
    config->hosts = calloc((size_t)count, sizeof(*config->hosts));
    if (config->hosts == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        fm_host *host = &config->hosts[config->host_count++];
        PyObject *name, *user, *password;
        int port;

        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(items, i), "UiUU:host", &name,
                &port, &user, &password))
            goto done;
        if (port < 1 || port > UINT16_MAX) {
            PyErr_Format(PyExc_ValueError, "port %d does not exist", port);
            goto done;
        }
        host->port = (uint16_t)port;
        if (copy_text(name, &host->name) < 0 || copy_text(user, &host->user) < 0
            || copy_text(password, &host->password) < 0)
            goto done;
    }
    rc = 0;

done:
    Py_DECREF(items);
    return rc;
}

static int
read_mechanism(const char *name, fm_mechanism *out)
{
    static const fm_mechanism all[] = { FM_MECHANISM_PLAIN,
        FM_MECHANISM_AMQPLAIN, FM_MECHANISM_EXTERNAL };

    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (strcmp(fm_amqp_mechanism_name(all[i]), name) == 0) {
            *out = all[i];
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "no login method is called '%s'", name);
    return -1;
}

/* One of tls's texts; absent, None and "" are the same. */
static int
read_tls_text(PyObject *tls, const char *name, char **to, const char **out)
{
    PyObject *value = PyMapping_GetItemString(tls, name);
    int rc = 0;

    if (value == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    if (value != Py_None) {
        rc = copy_text(value, to);
        *out = *to;
    }
    Py_DECREF(value);
    return rc;
}

static int
read_tls_flag(PyObject *tls, const char *name, bool *out)
{
    PyObject *value = PyMapping_GetItemString(tls, name);
    int truth;

    if (value == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    truth = PyObject_IsTrue(value);
    Py_DECREF(value);
    *out = truth > 0;
    return truth < 0 ? -1 : 0;
}

static int
read_tls(PyObject *tls, fm_conn_config *config)
{
    fm_tls_options *to = &config->tls;

    if (tls == Py_None)
        return 0;
    to->enabled = to->verify_peer = true;
    if (read_tls_flag(tls, "verify_peer", &to->verify_peer) < 0
        || read_tls_flag(tls, "verify_host", &to->verify_host) < 0
        || read_tls_flag(tls, "fips", &to->fips) < 0
        || read_tls_text(tls, "ca_file", &config->tls_strings[0], &to->ca_file)
            < 0
        || read_tls_text(
               tls, "cert_file", &config->tls_strings[1], &to->cert_file)
            < 0
        || read_tls_text(
               tls, "key_file", &config->tls_strings[2], &to->key_file)
            < 0)
        return -1;
    return 0;
}

static int64_t
seconds_to_ns(double seconds)
{
    return !(seconds > 0) ? 0 /* nor is it a number of seconds */
        : seconds > 1e6   ? (int64_t)(1e6 * 1e9)
                          : (int64_t)(seconds * 1e9);
}

typedef struct parameters {
    PyObject *hosts, *virtual_host, *name, *tls;
    const char *login_method;
    int heartbeat, shuffle;
    double interval_start, interval_step, interval_max, reconnect_delay,
        reconnect_splay;
} parameters;

static int
fill_config(const parameters *from, fm_conn_config *config)
{
    if (read_hosts(from->hosts, config) < 0
        || read_mechanism(from->login_method, &config->mechanism) < 0
        || copy_text(from->virtual_host, &config->virtual_host) < 0
        || copy_text(from->name, &config->name) < 0
        || read_tls(from->tls, config) < 0)
        return -1;
    config->heartbeat_s = from->heartbeat <= 0 ? 0
        : from->heartbeat > UINT16_MAX         ? UINT16_MAX
                                               : (uint16_t)from->heartbeat;
    config->shuffle = from->shuffle;
    /* The stock driver pauses reconnect_delay and the interval. */
    config->pace.start_ns =
        seconds_to_ns(from->interval_start + from->reconnect_delay);
    config->pace.step_ns = seconds_to_ns(from->interval_step);
    config->pace.max_ns = seconds_to_ns(from->interval_max);
    config->pace.splay_ns = seconds_to_ns(from->reconnect_splay);
    return 0;
}

/* What makes two buses the same: everything but the name. */
static PyObject *
make_key(const parameters *from)
{
    return PyUnicode_FromFormat("%R %R %s %d %d %d %d %d %d %lld %R",
        from->hosts, from->virtual_host, from->login_method, from->heartbeat,
        from->shuffle, (int)(from->interval_start * 1000),
        (int)(from->interval_step * 1000), (int)(from->interval_max * 1000),
        (int)(from->reconnect_delay * 1000),
        (long long)seconds_to_ns(from->reconnect_splay), from->tls);
}

static PyObject *
Bus_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "hosts", "virtual_host", "login_method",
        "heartbeat", "name", "shuffle", "interval_start", "interval_step",
        "interval_max", "reconnect_delay", "reconnect_splay", "tls", NULL };
    fm_state *state = fm_state_of_type(type);
    fm_conn_config *config = NULL;
    PyObject *key = NULL, *op = NULL;
    fm_bus *bus = NULL;
    const char *key_text;
    parameters from;
    fm_status status;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OUsiUpdddddO:Bus", names,
            &from.hosts, &from.virtual_host, &from.login_method,
            &from.heartbeat, &from.name, &from.shuffle, &from.interval_start,
            &from.interval_step, &from.interval_max, &from.reconnect_delay,
            &from.reconnect_splay, &from.tls))
        return NULL;
    status = fm_conn_config_new(&config);
    if (status != FM_OK)
        return fm_raise_status(state, status);
    if (fill_config(&from, config) < 0)
        goto done;
    key = make_key(&from);
    key_text = key == NULL ? NULL : PyUnicode_AsUTF8(key);
    if (key_text == NULL)
        goto done;
    status = fm_bus_open(key_text, config, &bus);
    if (status != FM_OK) {
        (void)fm_raise_status(state, status);
        goto done;
    }
    op = type->tp_alloc(type, 0);
    if (op == NULL)
        fm_bus_close(bus, 0);
    else
        SELF(op)->bus = bus;

done:
    Py_XDECREF(key);
    fm_conn_config_unref(config);
    return op;
}

/* Leave the bus, once. In a forked child the parent's is only forgotten. */
static void
leave(PyObject *op)
{
    fm_bus *bus;

    Py_BEGIN_CRITICAL_SECTION(op);
    bus = SELF(op)->bus;
    SELF(op)->bus = NULL;
    Py_END_CRITICAL_SECTION();
    if (bus == NULL || !fm_bus_is_ours(bus))
        return;
    Py_BEGIN_ALLOW_THREADS
        fm_bus_close(bus, fm_deadline_in(CLOSE_NS));
    Py_END_ALLOW_THREADS
}

static void
Bus_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);

    leave(op);
    type->tp_free(op);
    Py_DECREF(type);
}

/* --- sending --- */

typedef struct request {
    PyObject *topology, *payload, *replies, *timeout;
    const char *exchange, *routing_key, *msg_id;
    int mandatory, retry, lane;
} request;

/* The message of a request, without its body. NULL with an exception set. */
static fm_message *
new_message(fm_state *state, const request *from, fm_lane lane)
{
    fm_message *message;
    fm_status status =
        fm_message_new(lane, from->exchange, from->routing_key, &message);

    if (status == FM_TOO_LARGE)
        PyErr_SetString(PyExc_ValueError,
            "an exchange or routing key is longer than AMQP's 255 bytes");
    else if (status != FM_OK)
        (void)fm_raise_status(state, status);
    if (status != FM_OK)
        return NULL;
    message->mandatory = from->mandatory;
    message->retry = from->retry < 0 ? FM_RETRY_FOREVER : from->retry;
    if (from->topology != NULL && from->topology != Py_None) {
        fm_topology *topology = fm_topology_of(state, from->topology);

        if (topology == NULL) {
            fm_message_unref(message);
            return NULL;
        }
        message->topology = fm_topology_ref(topology);
    }
    return message;
}

/* A dict is enveloped, bytes are the body as they are, and a tuple is either
 * of them with the name of its compression and what to do about envelopes. */
static int
fill_body(fm_state *state, fm_message *message, PyObject *payload)
{
    const char *compression = "";
    int envelope = FM_ENVELOPE_JSON;
    Py_ssize_t len;
    char *data;

    if (PyTuple_Check(payload)
        && !PyArg_ParseTuple(
            payload, "Osi:payload", &payload, &compression, &envelope))
        return -1;
    message->is_msgpack = (envelope & FM_ENVELOPE_MSGPACK) != 0;
    message->reads_msgpack = (envelope & FM_ENVELOPE_READS_MSGPACK) != 0;
    if (PyDict_Check(payload))
        return message->is_msgpack
            ? fm_codec_pack(&state->codec, payload, &message->body)
            : fm_codec_encode(&state->codec, payload, &message->body);
    if (PyBytes_AsStringAndSize(payload, &data, &len) < 0)
        return -1;
    if (strlen(compression) >= sizeof(message->compression)) {
        PyErr_SetString(PyExc_ValueError, "a compression's name is too long");
        return -1;
    }
    memcpy(message->compression, compression, strlen(compression) + 1);
    if (fm_buf_append(&message->body, data, (size_t)len) == FM_OK)
        return 0;
    PyErr_NoMemory();
    return -1;
}

static char *call_names[] = { "topology", "exchange", "routing_key", "payload",
    "msg_id", "replies", "timeout", "mandatory", "retry", NULL };

/* From the arguments of call() and begin_call() to a message ready to be
 * submitted, and its deadline. NULL with an exception set. */
static fm_message *
prepare_call(
    fm_state *state, PyObject *args, PyObject *kwargs, fm_deadline *deadline)
{
    request from = { .lane = FM_LANE_RPC };
    fm_message *message;
    fm_consumer *consumer;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OssO$sOOpi:call",
            call_names, &from.topology, &from.exchange, &from.routing_key,
            &from.payload, &from.msg_id, &from.replies, &from.timeout,
            &from.mandatory, &from.retry)
        || fm_seconds_to_ns(from.timeout, &ns) < 0)
        return NULL;
    if (from.msg_id[0] == '\0' || strlen(from.msg_id) > FM_MSG_ID_MAX) {
        PyErr_Format(PyExc_ValueError, "msg_id has not 1 to %d characters",
            (int)FM_MSG_ID_MAX);
        return NULL;
    }
    *deadline = fm_deadline_in(ns);
    consumer = fm_consumer_of(state, from.replies);
    if (consumer == NULL || fm_consumer_add(state, from.replies) < 0)
        return NULL;
    message = new_message(state, &from, FM_LANE_RPC);
    if (message == NULL)
        return NULL;
    if (fill_body(state, message, from.payload) < 0) {
        fm_message_unref(message);
        return NULL;
    }
    message->gate = fm_gate_ref(consumer->gate);
    memcpy(message->msg_id, from.msg_id, strlen(from.msg_id) + 1);
    /* As the stock driver rounds, from the number that the caller gave. */
    if (from.timeout != Py_None)
        PyOS_snprintf(message->expiration, sizeof(message->expiration), "%lld",
            (long long)(PyFloat_AsDouble(from.timeout) * 1000));
    return message;
}

/* Not submitted, and why. */
static PyObject *
raise_unsubmitted(fm_state *state, fm_status status)
{
    fm_error error;

    (void)fm_error_set(&error, status, 0, "%s",
        status == FM_CLOSED     ? "the transport was closed"
            : status == FM_FULL ? "a call with this id is waiting already"
                                : fm_status_text(status));
    return fm_raise(state, &error);
}

/* Is this reply more than a sign of life? -1 with an exception set. */
static int
has_value(fm_state *state, PyObject *reply)
{
    PyObject *value = PyDict_GetItemWithError(reply, state->str_failure);

    if (value != NULL) {
        int truth = PyObject_IsTrue(value);

        if (truth != 0)
            return truth;
    }
    if (PyErr_Occurred() != NULL)
        return -1;
    value = PyDict_GetItemWithError(reply, state->str_result);
    if (value == NULL && PyErr_Occurred() != NULL)
        return -1;
    return value != NULL && value != Py_None;
}

/* Collect replies until the last; the last one with a value in it is what the
 * caller gets, as old servers send value and end in two parts. */
static PyObject *
collect_replies(
    fm_state *state, fm_bus *bus, fm_message *message, fm_deadline deadline)
{
    PyObject *best = NULL;
    bool ending = false;

    while (!ending) {
        PyObject *reply =
            fm_call_next_reply(state, bus, message, deadline, &ending);
        int counts = 1;

        if (reply == NULL) {
            Py_XDECREF(best);
            return NULL;
        }
        if (best != NULL || !ending)
            counts = has_value(state, reply);
        if (counts > 0 || (counts == 0 && best == NULL && ending))
            Py_XSETREF(best, reply);
        else
            Py_DECREF(reply);
        if (counts < 0) {
            Py_XDECREF(best);
            return NULL;
        }
    }
    return best;
}

PyDoc_STRVAR(call_doc,
    "call($self, topology, exchange, routing_key, payload, *, msg_id,\n"
    "     replies, timeout, mandatory, retry)\n--\n\n"
    "Send a request and sleep until it is answered.\n\n"
    ":param payload: dict; `msg_id` is its `_msg_id`. Or a tuple: this, or a "
    "body\n"
    "    that is written already; the MIME type of its compression, or ''; "
    "and\n"
    "    of JSON, MSGPACK and READS_MSGPACK those that hold.\n"
    ":param replies: the Consumer of the queue that it names as `_reply_q`.\n"
    ":param timeout: seconds for everything together, also the expiration of\n"
    "    the request.\n"
    ":param retry: connection losses and failed rounds it bears; -1: any.\n"
    ":returns: the payload of the reply that counts.\n"
    ":raises Timeout: at the deadline, whatever was missing.\n"
    ":raises Error: another one for the request's failure.\n"
    ":raises TypeError, ValueError: the payload has no JSON form.");

static PyObject *
Bus_call(PyObject *op, PyObject *args, PyObject *kwargs)
{
    fm_state *state = fm_state_of(op);
    PyObject *result = NULL;
    fm_deadline deadline;
    fm_message *message;
    fm_status status;
    fm_bus *bus = fm_bus_acquire(state, op);

    if (bus == NULL)
        return NULL;
    message = prepare_call(state, args, kwargs, &deadline);
    if (message == NULL)
        goto done;
    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_submit(bus, message);
        /* The reply is awaited here already, so that the GIL is taken back
         * once, when there is something to do with it. */
        if (status == FM_OK)
            fm_bus_linger(bus, message, deadline);
    Py_END_ALLOW_THREADS
    if (status == FM_OK) {
        /* A signal ends the sleep above, and it is not told. */
        if (PyErr_CheckSignals() == 0)
            result = collect_replies(state, bus, message, deadline);
        fm_bus_forget(bus, message);
    } else {
        (void)raise_unsubmitted(state, status);
    }
    fm_message_unref(message);

done:
    fm_bus_unref(bus);
    return result;
}

PyDoc_STRVAR(begin_call_doc,
    "begin_call($self, topology, exchange, routing_key, payload, *, msg_id,\n"
    "           replies, timeout, mandatory, retry)\n--\n\n"
    "Send a request as call() does, and return at once.\n\n"
    ":returns: Call, on which to wait for each reply.");

static PyObject *
Bus_begin_call(PyObject *op, PyObject *args, PyObject *kwargs)
{
    fm_state *state = fm_state_of(op);
    fm_deadline deadline;
    fm_message *message;
    fm_status status;
    fm_bus *bus = fm_bus_acquire(state, op);

    if (bus == NULL)
        return NULL;
    message = prepare_call(state, args, kwargs, &deadline);
    if (message == NULL)
        goto fail;
    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_submit(bus, message);
    Py_END_ALLOW_THREADS
    if (status == FM_OK)
        return fm_call_make(state, bus, message);
    (void)raise_unsubmitted(state, status);
    fm_message_unref(message);

fail:
    fm_bus_unref(bus);
    return NULL;
}

PyDoc_STRVAR(publish_doc,
    "publish($self, topology, exchange, routing_key, payload, *, lane,\n"
    "        mandatory, timeout, retry)\n--\n\n"
    "Send a message and sleep until the broker has confirmed it.\n\n"
    ":param payload: dict to be enveloped, or bytes that are the body; or a "
    "tuple\n"
    "    as for call().\n"
    ":param lane: RPC, NOTIFY or FANOUT: the channel; each keeps order.\n"
    ":param timeout: seconds for which a connected broker may not confirm;\n"
    "    None for no limit. Outages are bounded by `retry` alone.\n"
    ":param retry: connection losses and failed rounds it bears; -1: any.\n"
    ":raises Timeout, Error: it was not confirmed.\n"
    ":raises TypeError, ValueError: the payload has no JSON form.");

/* From the arguments of publish() and begin_publish() to a message ready to
 * be submitted. NULL with an exception set. */
static fm_message *
prepare_publication(
    fm_state *state, PyObject *args, PyObject *kwargs, int64_t *timeout_ns)
{
    static char *names[] = { "topology", "exchange", "routing_key", "payload",
        "lane", "mandatory", "timeout", "retry", NULL };
    request from = { 0 };
    fm_message *message;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OssO$ipOi:publish", names,
            &from.topology, &from.exchange, &from.routing_key, &from.payload,
            &from.lane, &from.mandatory, &from.timeout, &from.retry)
        || fm_seconds_to_ns(from.timeout, timeout_ns) < 0)
        return NULL;
    if (from.lane < 0 || from.lane >= FM_LANE_COUNT) {
        PyErr_Format(PyExc_ValueError, "lane %d does not exist", from.lane);
        return NULL;
    }
    message = new_message(state, &from, (fm_lane)from.lane);
    if (message == NULL)
        return NULL;
    if (fill_body(state, message, from.payload) < 0) {
        fm_message_unref(message);
        return NULL;
    }
    return message;
}

static PyObject *
Bus_publish(PyObject *op, PyObject *args, PyObject *kwargs)
{
    fm_state *state = fm_state_of(op);
    fm_message *message;
    fm_status status;
    int64_t timeout_ns;
    int rc = -1;
    fm_bus *bus = fm_bus_acquire(state, op);

    if (bus == NULL)
        return NULL;
    message = prepare_publication(state, args, kwargs, &timeout_ns);
    if (message == NULL)
        goto done;
    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_submit(bus, message);
        if (status == FM_OK) /* the usual case ends here; see Bus_call */
            (void)!fm_bus_wait_confirm(bus, message, timeout_ns);
    Py_END_ALLOW_THREADS
    if (status == FM_OK) {
        if (PyErr_CheckSignals() == 0)
            rc = fm_publication_wait(state, bus, message, timeout_ns);
        fm_bus_forget(bus, message);
    } else {
        (void)raise_unsubmitted(state, status);
    }
    fm_message_unref(message);

done:
    fm_bus_unref(bus);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(begin_publish_doc,
    "begin_publish($self, topology, exchange, routing_key, payload, *, lane,\n"
    "              mandatory, timeout, retry)\n--\n\n"
    "Send a message as publish() does, and return at once.\n\n"
    ":returns: Publication, on which to wait for the confirm.");

static PyObject *
Bus_begin_publish(PyObject *op, PyObject *args, PyObject *kwargs)
{
    fm_state *state = fm_state_of(op);
    fm_message *message;
    fm_status status;
    int64_t timeout_ns;
    fm_bus *bus = fm_bus_acquire(state, op);

    if (bus == NULL)
        return NULL;
    message = prepare_publication(state, args, kwargs, &timeout_ns);
    if (message == NULL)
        goto fail;
    Py_BEGIN_ALLOW_THREADS
        status = fm_bus_submit(bus, message);
    Py_END_ALLOW_THREADS
    if (status == FM_OK)
        return fm_publication_make(state, bus, message, timeout_ns);
    (void)raise_unsubmitted(state, status);
    fm_message_unref(message);

fail:
    fm_bus_unref(bus);
    return NULL;
}

PyDoc_STRVAR(reply_doc,
    "reply($self, routing_key, payload, *, mandatory, patience, "
    "timeout)\n--\n\n"
    "Hand a reply over; the core sends it and resends it after a loss of\n"
    "the connection. Sleeps only while too many replies wait.\n\n"
    ":param routing_key: the queue of the caller.\n"
    ":param mandatory: find out when that queue is gone.\n"
    ":param patience: seconds for which a reply whose queue is gone is tried\n"
    "    again; then it is dropped with a line in the log.\n"
    ":param timeout: seconds for which a connected broker may not confirm it,\n"
    "    and for which to sleep at most while too many replies wait.\n"
    ":raises Timeout: too many wait, for too long.\n"
    ":raises TypeError, ValueError: the payload has no JSON form.");

/* For both: 1 handed over, 0 too many wait; -1 with an exception set. */
static int
hand_over(PyObject *op, PyObject *args, PyObject *kwargs, bool may_sleep)
{
    static char *names[] = { "routing_key", "payload", "mandatory", "patience",
        "timeout", NULL };
    fm_state *state = fm_state_of(op);
    request from = { .exchange = "", .retry = -1 };
    fm_message *message = NULL;
    PyObject *patience;
    fm_status status = FM_CLOSED;
    fm_deadline deadline;
    fm_bus *bus;
    int64_t ns, timeout_ns;
    int rc = -1;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO$pOO:reply", names,
            &from.routing_key, &from.payload, &from.mandatory, &patience,
            &from.timeout)
        || fm_seconds_to_ns(patience, &ns) < 0
        || fm_seconds_to_ns(from.timeout, &timeout_ns) < 0)
        return -1;
    deadline = fm_deadline_in(timeout_ns);
    bus = fm_bus_acquire(state, op);
    if (bus == NULL)
        return -1;
    message = new_message(state, &from, FM_LANE_RPC);
    if (message == NULL || fill_body(state, message, from.payload) < 0)
        goto done;
    message->handed_over = true;
    message->hold_ns = timeout_ns;
    message->give_up = fm_deadline_in(ns);
    /* With the GIL: the submission never waits, and giving the GIL away for
     * some microseconds may cost milliseconds to get it back. */
    while ((status = fm_bus_submit(bus, message)) == FM_FULL && may_sleep) {
        Py_BEGIN_ALLOW_THREADS
            status = fm_publisher_wait_space(&bus->publisher, deadline);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0)
            goto done;
        if (status != FM_OK && status != FM_INTERRUPTED)
            break;
    }
    if (status == FM_OK || status == FM_NOT_FOUND)
        rc = 1; /* not found: its caller is known to be gone */
    else if (status == FM_FULL)
        rc = 0;
    else
        (void)raise_unsubmitted(state, status);

done:
    fm_message_unref(message);
    fm_bus_unref(bus);
    return rc;
}

static PyObject *
Bus_reply(PyObject *op, PyObject *args, PyObject *kwargs)
{
    if (hand_over(op, args, kwargs, true) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(try_reply_doc,
    "try_reply($self, routing_key, payload, *, mandatory, patience, "
    "timeout)\n--\n\n"
    "Hand a reply over as reply() does, without sleeping.\n\n"
    ":returns: False: nothing was done, since too many replies wait.\n"
    ":raises TypeError, ValueError: the payload has no JSON form.");

static PyObject *
Bus_try_reply(PyObject *op, PyObject *args, PyObject *kwargs)
{
    int rc = hand_over(op, args, kwargs, false);

    return rc < 0 ? NULL : PyBool_FromLong(rc);
}

PyDoc_STRVAR(send_acks_doc,
    "send_acks($self, /)\n--\n\n"
    "Send the acknowledgements of what take() gave, unless that is done.");

static PyObject *
Bus_send_acks(PyObject *op, PyObject *Py_UNUSED(unused))
{
    bool is_closed;
    fm_bus *bus = share(op, &is_closed);

    if (bus == NULL)
        Py_RETURN_NONE;
    if (fm_output_has_unsent(&bus->consuming.output)) {
        Py_BEGIN_ALLOW_THREADS
            fm_output_push(&bus->consuming.output);
        Py_END_ALLOW_THREADS
    }
    fm_bus_unref(bus);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(notice_json_doc,
    "notice_json($self, queue, /)\n--\n\n"
    "Say in the log, the first time, that a peer was seen which does not read\n"
    "the binary envelope.\n\n"
    ":param queue: one of that peer's.");

static PyObject *
Bus_notice_json(PyObject *op, PyObject *queue)
{
    const char *text = PyUnicode_AsUTF8(queue);
    bool is_closed;
    fm_bus *bus;

    if (text == NULL)
        return NULL;
    bus = share(op, &is_closed);
    if (bus != NULL) {
        fm_bus_notice_json(bus, text);
        fm_bus_unref(bus);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(flush_doc,
    "flush($self, timeout)\n--\n\n"
    "Sleep until every reply handed over is confirmed or given up.\n\n"
    ":param timeout: seconds, or None for no limit.\n"
    ":returns: False at the timeout.");

static PyObject *
Bus_flush(PyObject *op, PyObject *args, PyObject *kwargs)
{
    static char *names[] = { "timeout", NULL };
    fm_state *state = fm_state_of(op);
    PyObject *timeout;
    fm_deadline deadline;
    fm_status status;
    bool is_closed;
    fm_bus *bus;
    int64_t ns;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:flush", names, &timeout)
        || fm_seconds_to_ns(timeout, &ns) < 0)
        return NULL;
    bus = share(op, &is_closed);
    if (is_closed)
        Py_RETURN_TRUE;
    if (bus == NULL) {
        raise_closed(state);
        return NULL;
    }
    deadline = fm_deadline_in(ns);
    do {
        Py_BEGIN_ALLOW_THREADS
            status = fm_publisher_wait_handed(&bus->publisher, deadline);
        Py_END_ALLOW_THREADS
        if (status == FM_INTERRUPTED && PyErr_CheckSignals() < 0) {
            fm_bus_unref(bus);
            return NULL;
        }
    } while (status == FM_INTERRUPTED);
    fm_bus_unref(bus);
    return PyBool_FromLong(status == FM_OK);
}

/* --- looking --- */

PyDoc_STRVAR(stats_doc,
    "stats($self, /)\n--\n\n"
    "What this bus has done since it was opened: a dict of counts, the one of\n"
    "broker_stats().");

static PyObject *
Bus_stats(PyObject *op, PyObject *Py_UNUSED(unused))
{
    fm_bus *bus = fm_bus_acquire(fm_state_of(op), op);
    PyObject *dict;

    if (bus == NULL)
        return NULL;
    dict = fm_look_bus_stats(bus);
    fm_bus_unref(bus);
    return dict;
}

PyDoc_STRVAR(close_doc,
    "close($self, /)\n--\n\n"
    "Leave the bus; its last user closes the connections. Twice is allowed.");

static PyObject *
Bus_close(PyObject *op, PyObject *Py_UNUSED(unused))
{
    leave(op);
    Py_RETURN_NONE;
}

/* --- the type --- */

static PyMethodDef Bus_methods[] = {
    { "call", (PyCFunction)(void (*)(void))Bus_call,
        METH_VARARGS | METH_KEYWORDS, call_doc },
    { "begin_call", (PyCFunction)(void (*)(void))Bus_begin_call,
        METH_VARARGS | METH_KEYWORDS, begin_call_doc },
    { "publish", (PyCFunction)(void (*)(void))Bus_publish,
        METH_VARARGS | METH_KEYWORDS, publish_doc },
    { "begin_publish", (PyCFunction)(void (*)(void))Bus_begin_publish,
        METH_VARARGS | METH_KEYWORDS, begin_publish_doc },
    { "reply", (PyCFunction)(void (*)(void))Bus_reply,
        METH_VARARGS | METH_KEYWORDS, reply_doc },
    { "try_reply", (PyCFunction)(void (*)(void))Bus_try_reply,
        METH_VARARGS | METH_KEYWORDS, try_reply_doc },
    { "send_acks", Bus_send_acks, METH_NOARGS, send_acks_doc },
    { "notice_json", Bus_notice_json, METH_O, notice_json_doc },
    { "flush", (PyCFunction)(void (*)(void))Bus_flush,
        METH_VARARGS | METH_KEYWORDS, flush_doc },
    { "stats", Bus_stats, METH_NOARGS, stats_doc },
    { "close", Bus_close, METH_NOARGS, close_doc },
    { NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(Bus_doc,
    "Bus(*, hosts, virtual_host, login_method, heartbeat, name, shuffle,\n"
    "    interval_start, interval_step, interval_max, reconnect_delay,\n"
    "    reconnect_splay, tls)\n"
    "--\n\n"
    "A share of the process's two connections to one broker.\n\n"
    "Buses with equal parameters (but for the name) share them. Connects at\n"
    "the first use.\n\n"
    ":param hosts: (host, port, user, password), in the URL's order.\n"
    ":param login_method: 'PLAIN', 'AMQPLAIN' or 'EXTERNAL'.\n"
    ":param heartbeat: seconds; 0 for none.\n"
    ":param name: what the connections' names begin with.\n"
    ":param shuffle: begin with any host, not in turn.\n"
    ":param interval_start, interval_step, interval_max, reconnect_delay:\n"
    "    seconds between rounds of attempts, see the operator's guide.\n"
    ":param reconnect_splay: so many more at most, at random, each time.\n"
    ":param tls: None, or a dict of verify_peer, verify_host, fips, ca_file,\n"
    "    cert_file, key_file.");

static PyType_Slot Bus_slots[] = {
    { Py_tp_doc, (void *)Bus_doc },
    { Py_tp_new, Bus_new },
    { Py_tp_dealloc, Bus_dealloc },
    { Py_tp_methods, Bus_methods },
    { 0, NULL },
};

static PyType_Spec Bus_spec = {
    .name = "oslo_fastmsg._core.Bus",
    .basicsize = sizeof(BusObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Bus_slots,
};

int
fm_bus_type_add(PyObject *module, fm_state *state)
{
    state->bus_type = fm_type_add(module, &Bus_spec);
    return state->bus_type == NULL ? -1 : 0;
}
