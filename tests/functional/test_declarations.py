"""Exchanges, queues and bindings on the broker: flag for flag the stock ones.

The same thing is done with either driver on the same broker, emptied in
between, and what the broker then holds is compared; only random parts of names are
replaced.
"""

import re

import oslo_messaging
import pytest
from fix_held import held_by, named, wait_for_consumers
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint, stock_takes
from fix_proxy import Proxy

# Until 14.2.4 two options had a letter too many elsewhere.
QUORUM = (
    "rabbit_quorum"
    if stock_takes("rabbit_quorum_max_memory_length", 1)
    else "rabbit_quroum"
)
OPTIONS = {
    "durable": {"amqp_durable_queues": True},
    "auto-delete": {"amqp_auto_delete": True},
    "durable auto-delete": {"amqp_durable_queues": True, "amqp_auto_delete": True},
    "ha": {"rabbit_ha_queues": True},
    "quorum": {
        "rabbit_quorum_queue": True,
        "rabbit_quorum_delivery_limit": 3,
        f"{QUORUM}_max_memory_length": 100,
        f"{QUORUM}_max_memory_bytes": 10000,
    },
    "transient quorum": {
        "rabbit_transient_quorum_queue": True,
        "rabbit_quorum_delivery_limit": 3,
    },
    "ttl": {"rabbit_transient_queues_ttl": 77},
    "no ttl": {"rabbit_transient_queues_ttl": 0},
}
if not stock_takes("rabbit_transient_queues_ttl", 0):
    del OPTIONS["no ttl"]  # before 14.6
if not stock_takes("rabbit_transient_quorum_queue", True):
    del OPTIONS["transient quorum"]  # before 14.7


def serve(peers, driver, topic, **options):
    peers.server(driver, TestEndpoint(), topic=topic, server="h.1", **options)


def serve_another_exchange(peers, driver, topic, **options):
    peers.server(driver, TestEndpoint(), topic=topic, exchange="other", **options)


def call(peers, driver, topic, **options):
    client = peers.client(driver, topic=topic, timeout=0.5, **options)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo")


def cast(peers, driver, topic, **options):
    peers.client(driver, topic=topic, **options).cast({}, "echo")


def fanout(peers, driver, topic, **options):
    client = peers.client(driver, topic=topic, **options)
    client.prepare(fanout=True).cast({}, "echo")


def notify(peers, driver, topic, **options):
    peers.notifier(driver, topic, f"{topic}-bis", **options).info({}, "event", {})


def listen(peers, driver, topic, **options):
    peers.listener(
        driver, Notes(["info", "error"]), topics=[topic, f"{topic}-bis"], **options
    )


def listen_in_a_pool(peers, driver, topic, **options):
    listen(peers, driver, topic, pool=f"{topic}-pool", **options)


#: What can be done, and how many consumers it makes; stock makes them later.
ACTIONS = {
    serve: 3,
    serve_another_exchange: 3,
    call: 1,
    cast: 0,
    fanout: 0,
    notify: 0,
    listen: 4,
    listen_in_a_pool: 1,
}


@pytest.fixture
def left_by(peers, broker, topic):
    """Do something with a driver; give what the broker holds while it lasts."""

    def do(driver, action, options):
        action(peers, driver, topic, rabbit=options)
        wait_for_consumers(broker, ACTIONS[action])
        held = held_by(broker)
        peers.close()
        broker.reset()
        return held

    return do


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_what_is_declared_is_what_stock_declares(fast, left_by, action):
    held = left_by(fast, action, {})

    assert held == left_by("stock", action, {})
    assert held["exchanges"]


@pytest.mark.options(
    "amqp_durable_queues",
    "amqp_auto_delete",
    "rabbit_ha_queues",
    "rabbit_quorum_queue",
    "rabbit_quorum_delivery_limit",
    "rabbit_quorum_max_memory_length",
    "rabbit_quorum_max_memory_bytes",
    "rabbit_quroum_max_memory_length",
    "rabbit_quroum_max_memory_bytes",
    "rabbit_transient_quorum_queue",
    "rabbit_transient_queues_ttl",
)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("action", [serve, call, notify], ids=lambda a: a.__name__)
def test_each_option_changes_what_it_changes_in_stock(fast, left_by, action, options):
    held = left_by(fast, action, OPTIONS[options])

    assert held == left_by("stock", action, OPTIONS[options])


def test_an_rpc_server_declares_as_documented(driver, left_by, topic):
    held = left_by(driver, serve, {})

    plain = {"durable": False, "auto_delete": False, "exclusive": False, "consumers": 1}
    assert held["queues"] == [
        {"name": topic, "arguments": {}, **plain},
        {"name": f"{topic}.h.1", "arguments": {}, **plain},
        {
            "name": f"{topic}_fanout_<id>",
            "arguments": {"x-expires": 1800000},
            **plain,
        },
    ]
    flags = {"durable": False, "internal": False, "arguments": {}}
    assert held["exchanges"] == [
        {"name": "openstack", "type": "topic", "auto_delete": False, **flags},
        {"name": f"{topic}_fanout", "type": "fanout", "auto_delete": True, **flags},
    ]
    assert held["bindings"] == [
        ("openstack", topic, topic),
        ("openstack", f"{topic}.h.1", f"{topic}.h.1"),
        (f"{topic}_fanout", f"{topic}_fanout_<id>", topic),
    ]


def test_a_call_declares_a_reply_queue_and_no_other(driver, left_by):
    (queue,) = left_by(driver, call, {})["queues"]

    assert queue == {
        "name": "reply_<id>",
        "durable": False,
        "auto_delete": False,
        "exclusive": False,
        "arguments": {"x-expires": 1800000},
        "consumers": 1,
    }


def test_a_pool_has_many_bindings_and_one_consumer(driver, left_by, topic):
    held = left_by(driver, listen_in_a_pool, {})

    assert [queue["name"] for queue in held["queues"]] == [f"{topic}-pool"]
    assert len(held["bindings"]) == 4
    assert held["queues"][0]["consumers"] == 1


def declared_through(proxy):
    """The declarations on the wire, without order and repetition.

    The arguments are compared with the kinds of their values: 30 is not 30.0.
    """
    found = set()
    for method in proxy.methods(
        "exchange.declare", "queue.declare", "queue.bind", "basic.consume"
    ):
        arguments = list(method.arguments)
        if method.name == "basic.consume":
            arguments[2] = "<tag>"
        found.add((method.name, named(repr(arguments))))
    return found


@pytest.mark.parametrize(
    "action", [serve, call, fanout, notify, listen], ids=lambda action: action.__name__
)
def test_declarations_are_the_same_methods_on_the_wire(
    fast, peers, broker, topic, action
):
    found = {}
    for driver in (fast, "stock"):
        with Proxy(broker) as proxy:
            action(peers, driver, topic, via=proxy)
            proxy.wait_for(
                lambda it=proxy: len(it.methods("basic.consume")) == ACTIONS[action]
            )
            found[driver] = declared_through(proxy)
            peers.close()
        broker.reset()

    assert found[fast] == found["stock"]


# --- removal ---


def test_a_clean_stop_removes_the_fanout_queue_alone(driver, peers, broker, topic, spy):
    spy.queue("bystander")
    server = peers.server(driver, TestEndpoint(), topic=topic, server="h")
    assert len(broker.queues()) == 4

    peers.stop(server)
    peers.clean(server.transport)

    names = [row["name"] for row in broker.queues()]
    assert names == sorted(["bystander", topic, f"{topic}.h"])
    assert [row["name"] for row in broker.exchanges()] == ["openstack"]


def test_a_stop_leaves_other_servers_fanout_queues(driver, peers, broker, topic):
    first = peers.server(driver, TestEndpoint(), topic=topic, server="a")
    endpoint = TestEndpoint()
    peers.server(driver, endpoint, topic=topic, server="b")

    peers.stop(first)

    fanouts = [row for row in broker.queues() if "_fanout_" in row["name"]]
    assert len(fanouts) == 1
    client = peers.client(driver, topic=topic)
    client.prepare(fanout=True).cast({}, "echo", arg=1)
    assert endpoint.seen.wait() == [1]


def test_deletions_on_the_wire_are_unconditional_and_of_fanout_queues(
    driver, peers, topic, proxy
):
    peers.stop(peers.server(driver, TestEndpoint(), topic=topic, via=proxy))

    (delete,) = proxy.methods("queue.delete")
    _, name, if_unused, if_empty, _ = delete.arguments
    assert re.fullmatch(f"{topic}_fanout_[0-9a-f]{{32}}", name)
    assert not if_unused
    assert not if_empty


def test_listeners_leave_their_queues(driver, peers, broker, topic):
    for pool in (None, f"{topic}-pool"):
        peers.stop(peers.listener(driver, Notes(["info"]), topics=[topic], pool=pool))
    peers.close()

    names = [row["name"] for row in broker.queues()]
    assert names == sorted([f"{topic}-pool", f"{topic}.info"])


def test_the_reply_queue_goes_when_all_calls_were_answered(fast, peers, broker, topic):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic)
    client.call({}, "echo")
    assert [row for row in broker.queues() if row["name"].startswith("reply_")]

    peers.clean(client.transport)

    assert not [row for row in broker.queues() if row["name"].startswith("reply_")]


def test_the_reply_queue_stays_when_a_reply_may_still_come(fast, peers, broker, topic):
    """Its server would try for a minute to send to a queue that is gone."""
    client = peers.client(fast, topic=topic, timeout=0.3)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo")

    peers.clean(client.transport)

    assert [row for row in broker.queues() if row["name"].startswith("reply_")]


def test_what_a_stopped_server_had_not_begun_goes_back(fast, peers, broker, topic):
    endpoint = TestEndpoint()
    server = peers.server(fast, endpoint, topic=topic, threads=1)
    client = peers.client(fast, topic=topic)
    client.cast({}, "wait")
    endpoint.seen.wait()
    # Handed over are what the executor has; the rest is only prefetched.
    for _ in range(1000):
        client.cast({}, "echo", arg=1)

    endpoint.gate.set()
    peers.stop(server)

    done = len(endpoint.seen) - 1
    wait_until(lambda: broker.queue(topic)["messages"] == 1000 - done)


@pytest.mark.options("enable_cancel_on_failover")
@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("driver", ["fast", "stock"])
def test_consumers_have_the_argument_that_cancels_them_on_failover(
    driver, broker, peers, topic, is_set
):
    rabbit = {"enable_cancel_on_failover": is_set}
    for do in (call, serve, listen):
        do(peers, driver, topic, rabbit=rabbit)
    expected = {"x-cancel-on-ha-failover": True} if is_set else {}

    wait_until(lambda: len(broker.consumers()) == 8)

    assert [row["arguments"] for row in broker.consumers()] == [expected] * 8
    shown = broker.rabbitmqctl("list_consumers", "queue_name", "arguments")
    assert shown.count("x-cancel-on-ha-failover") == (8 if is_set else 0)


@pytest.mark.options("enable_cancel_on_failover")
def test_quorum_queues_are_consumed_without_that_argument(
    fast, broker, peers, topic, caplog
):
    """RabbitMQ refuses it for them, and stock with both options never listens."""
    rabbit = {"enable_cancel_on_failover": True, "rabbit_quorum_queue": True}
    serve(peers, fast, topic, rabbit=rabbit)
    client = peers.client(fast, topic=topic, rabbit=rabbit)

    assert client.call({}, "echo", arg="a") == "a"

    cancelled = {
        row["queue_name"]: "x-cancel-on-ha-failover" in row["arguments"]
        for row in broker.consumers()
    }
    assert len(cancelled) == 4
    assert [cancelled.pop(queue) for queue in (topic, f"{topic}.h.1")] == [False] * 2
    assert all(cancelled.values())  # fanouts and replies
    assert "closed the channel" not in caplog.text
