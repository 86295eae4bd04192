"""Option rabbit_stream_fanout: one stream per topic instead of a queue per server.

Each server reads the stream by itself, from an offset that it names. So it is up to
the driver that a fanout is neither missed nor run twice when a connection is lost.
"""

import itertools

import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint
from fix_streams import STREAMS, needs_streams

pytestmark = [pytest.mark.options("rabbit_stream_fanout"), needs_streams]

QUICK = {
    **STREAMS,
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}


def fanout(client, arg):
    client.prepare(fanout=True).cast({}, "echo", arg=arg)


def offsets(proxy):
    """Give what each basic.consume has said of its offset, in order."""
    consumes = [dict(m.arguments[-1]) for m in proxy.methods("basic.consume")]
    return [each["x-stream-offset"] for each in consumes if "x-stream-offset" in each]


def looks(proxy, topic):
    """Give the passive declarations of the stream."""
    declared = [method.arguments for method in proxy.methods("queue.declare")]
    return [each for each in declared if each[1:3] == (f"{topic}_fanout", True)]


def is_consumed(broker, topic, count=1):
    rows = [row["queue_name"] for row in broker.consumers()]
    return rows.count(f"{topic}_fanout") == count


def consumed_at(broker, topic):
    """Give the offset at which the only consumer of the stream began."""
    rows = [r for r in broker.consumers() if r["queue_name"] == f"{topic}_fanout"]
    return rows[0]["arguments"]["x-stream-offset"] if len(rows) == 1 else None


def seen_by(client, endpoint):
    """Give what has run, when everything that was sent before has."""
    fanout(client, "the end")
    wait_until(lambda: "the end" in endpoint.seen.items())
    return [item for item in endpoint.seen.items() if item != "the end"]


# --- what a fanout does ---


def test_a_fanout_reaches_each_server_of_a_process_once(peers, pairing, broker, topic):
    endpoints = [TestEndpoint() for _ in range(3)]
    transport = peers.transport(pairing.receiver, rabbit=STREAMS)
    for number, endpoint in enumerate(endpoints):
        peers.server(
            pairing.receiver,
            endpoint,
            topic=topic,
            server=f"server{number}",
            transport=transport,
        )
    client = peers.client(pairing.sender, topic=topic, rabbit=STREAMS)
    # What a stock server was sent before, it gets the last chunk of.
    wait_until(lambda: is_consumed(broker, topic, 3))

    for number in range(20):
        fanout(client, number)

    for endpoint in endpoints:
        assert sorted(endpoint.seen.wait(20)) == list(range(20))
    # Beside it, calls and casts.
    assert client.call({}, "echo", arg="call") == "call"
    client.cast({}, "echo", arg="cast")
    wait_until(lambda: sum(len(endpoint.seen) for endpoint in endpoints) == 62)


def test_the_stream_is_there_after_its_servers(driver, peers, broker, topic):
    server = peers.server(driver, TestEndpoint(), topic=topic, rabbit=STREAMS)

    peers.stop(server)
    peers.close()

    stream = broker.queue(f"{topic}_fanout")
    assert stream["arguments"] == {"x-queue-type": "stream", "x-max-age": "1800s"}
    assert stream["durable"]


# --- where it goes on ---


def test_a_lost_connection_goes_on_after_the_last_one(
    fast, peers, broker, topic, proxy
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, rabbit=QUICK)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))
    for number in range(3):
        fanout(client, number)
    endpoint.seen.wait(3)

    proxy.refuse()
    proxy.cut()
    for number in range(3, 40):
        fanout(client, number)
    proxy.accept()

    assert sorted(endpoint.seen.wait(40)) == list(range(40))
    assert sorted(seen_by(client, endpoint)) == list(range(40))
    assert offsets(proxy) == ["last", 3]


def test_what_was_not_taken_yet_is_delivered_again(fast, peers, broker, topic, proxy):
    """And what was taken, and waits for a worker, runs, with rpc_intake as well."""
    endpoint = TestEndpoint()
    peers.server(
        fast,
        endpoint,
        topic=topic,
        threads=1,
        via=proxy,
        rabbit=QUICK,
        query={"rpc_intake": 2},
    )
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))
    client.prepare(fanout=True).cast({}, "wait")
    endpoint.seen.wait()
    for number in range(30):
        fanout(client, number)

    for times in (2, 3):
        proxy.cut()
        proxy.wait_for(lambda times=times: len(offsets(proxy)) == times)
    endpoint.gate.set()

    seen = seen_by(client, endpoint)
    assert [item for item in seen if item != "wait"] == list(range(30))
    assert seen.count("wait") == 1


def test_a_server_that_has_heard_nothing_yet_misses_nothing(
    fast, peers, broker, topic, proxy
):
    """The last chunk of a stream is not all that came while nobody listened."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, rabbit=QUICK)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))

    proxy.refuse()
    proxy.cut()
    for number in range(10):
        fanout(client, number)
    proxy.accept()

    assert sorted(endpoint.seen.wait(10)) == list(range(10))
    assert sorted(seen_by(client, endpoint)) == list(range(10))
    first, second = offsets(proxy)
    assert first == "last"
    assert second.endswith("s")  # so many seconds ago


def test_a_stream_that_was_deleted_begins_anew(fast, peers, broker, topic):
    """Offsets of the old one would be beyond the end of the new one for long."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))
    for number in range(10):
        fanout(client, number)
    endpoint.seen.wait(10)
    connections = {row["pid"] for row in broker.connections()}

    broker.delete_queue(f"{topic}_fanout")
    wait_until(lambda: consumed_at(broker, topic) not in (None, "last"))
    for number in range(10, 15):
        fanout(client, number)

    assert sorted(endpoint.seen.wait(15)) == list(range(15))
    assert sorted(seen_by(client, endpoint)) == list(range(15))
    assert {row["pid"] for row in broker.connections()} == connections


@pytest.mark.slow
def test_a_stream_that_was_made_anew_meanwhile_is_heard(
    fast, peers, broker, topic, proxy, caplog
):
    """Nobody tells, and the offset that is asked for is one of the old stream."""
    endpoint, other = TestEndpoint(), TestEndpoint()
    peers.server(fast, endpoint, topic=topic, via=proxy, rabbit=QUICK)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))
    for number in range(30):
        fanout(client, number)
    endpoint.seen.wait(30)
    # Its length is known: it was looked at when it was consumed, and some ten
    # seconds later. (The broker's count is up to five seconds old.)
    proxy.wait_for(lambda: len(looks(proxy, topic)) == 2, 30)
    proxy.wait_for(lambda: len(proxy.methods("channel.close")) == 2)

    proxy.refuse()
    proxy.cut()
    broker.delete_queue(f"{topic}_fanout")
    peers.server(fast, other, topic=topic, server="other", rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic))
    for number in range(30, 35):
        fanout(client, number)
    other.seen.wait(5)
    proxy.accept()

    assert sorted(endpoint.seen.wait(35, timeout=30)) == list(range(35))
    assert sorted(seen_by(client, endpoint)) == list(range(35))
    assert "is shorter than it was" in caplog.text


# --- what streams cannot do ---


def test_a_fanout_that_nobody_can_read_is_passed_over(
    fast, peers, broker, topic, spy, caplog
):
    """To refuse it would end the connection: streams know no basic.reject."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    fanout(client, "before")
    endpoint.seen.wait()
    connections = {row["pid"] for row in broker.connections()}

    for _ in range(12):  # more than the prefetch
        spy.send(f"{topic}_fanout", "", b"no JSON")
    fanout(client, "after")

    assert endpoint.seen.wait(2) == ["before", "after"]
    assert "Rejected a message" in caplog.text
    assert {row["pid"] for row in broker.connections()} == connections


def test_a_server_that_stops_leaves_the_connection_to_others(
    fast, peers, broker, topic
):
    """It gives back what it has not begun, but not to a stream."""
    slow, other = TestEndpoint(), TestEndpoint()
    transport = peers.transport(fast, rabbit=QUICK, query={"rpc_intake": 5})
    stopped = peers.server(
        fast, slow, topic=topic, server="slow", threads=1, transport=transport
    )
    peers.server(fast, other, topic=topic, server="other", transport=transport)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic, 2))
    client.prepare(fanout=True, server=None).cast({}, "wait")
    slow.seen.wait()
    other.seen.wait()
    other.gate.set()
    for number in range(30):
        fanout(client, number)
    connections = {row["pid"] for row in broker.connections()}

    slow.gate.set()
    peers.stop(stopped)

    assert sorted(map(str, other.seen.wait(31))) == sorted(
        ["wait", *map(str, range(30))]
    )
    assert client.call({}, "echo", arg="call") == "call"
    assert {row["pid"] for row in broker.connections()} == connections


@pytest.mark.options("enable_cancel_on_failover")
@pytest.mark.parametrize("driver", ["fast", "stock"])
def test_cancel_on_failover_is_not_said_of_a_stream(driver, peers, broker, topic):
    """The argument of the stream replaces it."""
    rabbit = {**STREAMS, "enable_cancel_on_failover": True}
    peers.server(driver, TestEndpoint(), topic=topic, rabbit=rabbit)
    wait_until(lambda: is_consumed(broker, topic))

    arguments = {row["queue_name"]: row["arguments"] for row in broker.consumers()}

    assert arguments == {
        topic: {"x-cancel-on-ha-failover": True},
        f"{topic}.server1": {"x-cancel-on-ha-failover": True},
        f"{topic}_fanout": {"x-stream-offset": "last"},
    }


def test_an_exchange_of_before_is_used_with_a_durable_stream(
    fast, peers, broker, topic, caplog
):
    """A stream is durable, whatever the exchange is that it is bound to."""
    old, new = TestEndpoint(), TestEndpoint()
    peers.server(fast, old, topic=topic, server="old")
    peers.server(fast, new, topic=topic, server="new", rabbit=STREAMS)
    clients = [peers.client(fast, topic=topic, rabbit=each) for each in ({}, STREAMS)]

    for number, client in zip(itertools.count(), clients, strict=False):
        fanout(client, number)

    assert sorted(old.seen.wait(2)) == [0, 1]
    assert sorted(new.seen.wait(2)) == [0, 1]
    assert f"exchange '{topic}_fanout' exists with another 'durable'" in caplog.text


@pytest.mark.options("rabbit_transient_queues_ttl")
def test_a_stream_that_keeps_messages_for_another_time_is_used_as_it_is(
    fast, peers, broker, topic, caplog
):
    endpoints = [TestEndpoint(), TestEndpoint()]
    for endpoint, ttl in zip(endpoints, (1800, 60), strict=True):
        rabbit = {**QUICK, "rabbit_transient_queues_ttl": ttl}
        name = f"keeps-{ttl}"
        peers.server(fast, endpoint, topic=topic, server=name, rabbit=rabbit)
    client = peers.client(fast, topic=topic, rabbit=QUICK)
    wait_until(lambda: is_consumed(broker, topic, 2))

    fanout(client, "all")

    for endpoint in endpoints:
        assert endpoint.seen.wait() == ["all"]
    assert f"queue '{topic}_fanout' exists with another 'x-max-age'" in caplog.text
    assert broker.queue(f"{topic}_fanout")["arguments"]["x-max-age"] == "1800s"
