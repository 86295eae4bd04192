"""Changing the driver under a service: the URL's scheme and nothing else.

What one driver left on the broker is there for the other, at any moment.
"""

import pytest
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint


def test_casts_left_in_the_queues_are_served_by_the_other(peers, pairing, topic):
    peers.stop(peers.server(pairing.sender, TestEndpoint(), topic=topic, server="h"))
    client = peers.client(pairing.sender, topic=topic)
    for number in range(20):
        client.cast({"user": "u"}, "echo", arg=number)
        client.prepare(server="h").cast({}, "echo", arg=100 + number)
    endpoint = TestEndpoint()

    peers.server(pairing.receiver, endpoint, topic=topic, server="h", threads=1)

    seen = endpoint.seen.wait(40)
    # Each queue in its order.
    assert [arg for arg in seen if arg < 100] == list(range(20))
    assert [arg for arg in seen if arg >= 100] == list(range(100, 120))


def test_a_call_left_in_the_queue_is_answered_by_the_other(
    peers, pairing, topic, broker, background
):
    peers.stop(peers.server(pairing.sender, TestEndpoint(), topic=topic))
    client = peers.client(pairing.sender, topic=topic)
    pending = background(lambda: client.call({}, "echo", arg="waiting"))
    wait_until(lambda: broker.queue(topic)["messages"] == 1)

    peers.server(pairing.receiver, TestEndpoint(), topic=topic)

    assert pending.result() == "waiting"


@pytest.mark.parametrize("version", [1, 2])
def test_notifications_left_in_the_queues_are_read_by_the_other(
    peers, pairing, topic, version
):
    notifier = peers.notifier(pairing.sender, topic, version=version)
    for number in range(10):
        notifier.info({}, "event", number)
        notifier.error({}, "event", number)
    notes = Notes(["info", "error"])

    peers.listener(pairing.receiver, notes, topics=[topic], threads=1)

    seen = notes.seen.wait(20)
    for priority in ("info", "error"):
        assert [n["payload"] for n in seen if n["priority"] == priority] == list(
            range(10)
        )


def test_messages_left_in_a_pool_are_read_by_the_other(peers, pairing, topic):
    pool = f"{topic}-pool"
    peers.stop(
        peers.listener(pairing.sender, Notes(["info"]), topics=[topic], pool=pool)
    )
    notifier = peers.notifier(pairing.sender, topic)
    for number in range(5):
        notifier.info({}, "event", number)
    notes = Notes(["info"])

    peers.listener(pairing.receiver, notes, topics=[topic], pool=pool, threads=1)

    assert [note["payload"] for note in notes.seen.wait(5)] == list(range(5))


def test_a_server_can_be_replaced_while_clients_go_on(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)
    drivers = (pairing.sender, pairing.receiver, pairing.sender)

    for number, driver in enumerate(drivers):
        server = peers.server(driver, TestEndpoint(str(number)), topic=topic)
        assert client.call({}, "who") == str(number)
        peers.stop(server)


def test_servers_of_both_drivers_share_one_topic(peers, topic, pairing):
    """As during a rolling change: the same queues, the same fanout exchange."""
    endpoints = {
        driver: TestEndpoint(driver) for driver in (pairing.sender, pairing.receiver)
    }
    for driver, endpoint in endpoints.items():
        peers.server(driver, endpoint, topic=topic, server=driver, threads=1)
    client = peers.client(pairing.sender, topic=topic)

    client.prepare(fanout=True).cast({}, "echo", arg="all")
    for driver in endpoints:
        assert client.prepare(server=driver).call({}, "who") == driver

    for endpoint in endpoints.values():
        assert "all" in endpoint.seen.wait(2)


def test_fanouts_cross_over_after_the_last_server_changed(peers, pairing, topic):
    client = peers.client(pairing.sender, topic=topic)
    first, second = TestEndpoint(), TestEndpoint()
    server = peers.server(pairing.sender, first, topic=topic)
    client.prepare(fanout=True).cast({}, "echo", arg=1)
    first.seen.wait()

    peers.server(pairing.receiver, second, topic=topic)
    peers.stop(server)
    client.prepare(fanout=True).cast({}, "echo", arg=2)

    assert second.seen.wait() == [2]


DURABLE = {"amqp_durable_queues": True}
QUORUM = {"rabbit_quorum_queue": True}


@pytest.mark.parametrize("options", [DURABLE, QUORUM], ids=["durable", "quorum"])
def test_options_of_the_configuration_file_keep_their_meaning(
    peers, pairing, topic, options
):
    """One that declares otherwise would get 406 from the broker."""
    exchange = f"{topic}-exchange"
    server = peers.server(
        pairing.sender,
        TestEndpoint("first"),
        topic=topic,
        exchange=exchange,
        rabbit=options,
    )
    client = peers.client(
        pairing.sender, topic=topic, target={"exchange": exchange}, rabbit=options
    )
    assert client.call({}, "who") == "first"
    peers.stop(server)

    peers.server(
        pairing.receiver,
        TestEndpoint("second"),
        topic=topic,
        exchange=exchange,
        rabbit=options,
    )

    assert client.call({}, "who") == "second"
