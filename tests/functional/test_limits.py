"""What a broker limits: channels, frames, queues, connections, the size of messages.

Whoever comes too late is told what to raise, within his deadline. Whoever was there
goes on, over the same connections.
"""

import logging
import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint
from private_broker import PrivateBroker

CHANNELS = 7
FRAME = 8192
SIZE = 2_000_000


@pytest.fixture(scope="module")
def narrow_broker():
    config = f"channel_max = {CHANNELS}\nframe_max = {FRAME}\n"
    config += f"max_message_size = {SIZE}\n"
    with PrivateBroker(config=config) as node:
        yield node


@pytest.fixture
def limits(broker):
    """Give a function that limits what a virtual host may have."""

    def limit(**what):
        pairs = ",".join(
            f'{{<<"{name.replace("_", "-")}">>, {number}}}'
            for name, number in what.items()
        )
        broker.evaluate(f'rabbit_vhost_limit:set(<<"/">>, [{pairs}], <<"test">>)')

    yield limit
    broker.evaluate('rabbit_vhost_limit:clear(<<"/">>, <<"test">>)')


# --- channels and frames ---


def test_a_listener_too_many_for_the_channels_is_told_and_alone(
    fast, peers, narrow_broker, topic
):
    transport = peers.transport(fast, via=narrow_broker)
    client = peers.client(fast, topic=f"{topic}-0", transport=transport, timeout=5)
    started = {}

    def start():
        name = f"{topic}-{len(started)}"
        started[name] = peers.server(
            fast, TestEndpoint(), topic=name, transport=transport
        )

    def start_too_many():
        for _ in range(CHANNELS):
            start()

    start()
    assert client.call({}, "echo", arg=1) == 1
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        start_too_many()

    assert f"{CHANNELS} channels" in str(caught.value)
    assert "channel_max" in str(caught.value)
    assert 2 <= len(started) < CHANNELS
    for name in started:
        each = peers.client(fast, topic=name, transport=transport, timeout=5)
        assert each.call({}, "echo", arg=name) == name
    ours = {row["client_properties"]["product"] for row in narrow_broker.connections()}
    assert ours == {"oslo-fastmsg"}
    assert len(narrow_broker.connections()) == 2

    peers.stop(started[f"{topic}-1"])
    start()  # there is room again


def test_large_messages_go_through_small_frames(fast, peers, narrow_broker, topic):
    peers.server(fast, TestEndpoint(), topic=topic, via=narrow_broker)
    client = peers.client(fast, topic=topic, via=narrow_broker)
    text = "x" * 1_000_000
    assert client.call({}, "echo", arg=text) == text
    assert {row["frame_max"] for row in narrow_broker.connections()} == {FRAME}


def test_too_few_channels_to_work_with_are_said_at_once(fast, peers, topic):
    with PrivateBroker(config="channel_max = 3\n") as node:
        client = peers.client(fast, topic=topic, via=node)
        start = time.monotonic()
        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            client.cast({}, "echo")
    assert "channel_max" in str(caught.value)
    assert time.monotonic() - start < 10


# --- queues and connections of a virtual host ---


def test_a_queue_too_many_is_a_delivery_failure(fast, peers, broker, topic, limits):
    transport = peers.transport(fast)
    peers.server(fast, TestEndpoint(), topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport, timeout=5)
    assert client.call({}, "echo", arg=1) == 1
    limits(max_queues=len(broker.queues()))

    acts = {
        "a server": lambda: peers.server(
            fast, TestEndpoint(), topic=f"{topic}-more", transport=transport
        ),
        "a listener": lambda: peers.listener(fast, Notes(), topics=[f"{topic}-notes"]),
    }
    for name, act in acts.items():
        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            act()
        assert "queue limit in vhost '/'" in str(caught.value), name
        assert "max-queues" in str(caught.value), name
    other = peers.transport(fast, query={"heartbeat_timeout_threshold": 33})
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="queue limit"):
        peers.client(fast, topic=topic, transport=other, timeout=5).call({}, "echo")

    assert client.call({}, "echo", arg=2) == 2
    limits(max_queues=1000)
    again = peers.client(fast, topic=topic, transport=other, timeout=5)
    assert again.call({}, "echo", arg=3) == 3


def test_a_connection_too_many_is_a_delivery_failure(
    fast, peers, broker, topic, limits
):
    transport = peers.transport(fast)
    peers.server(fast, TestEndpoint(), topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, transport=transport, timeout=5)
    assert client.call({}, "echo", arg=1) == 1
    limits(max_connections=2)

    other = peers.transport(fast, query={"heartbeat_timeout_threshold": 33})
    late = peers.client(fast, topic=topic, transport=other, timeout=5)
    for act in (
        lambda: late.cast({}, "echo"),
        lambda: late.call({}, "echo"),
        lambda: peers.server(fast, TestEndpoint(), topic="late", transport=other),
    ):
        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            act()
        assert "connection limit" in str(caught.value)
        assert "max-connections" in str(caught.value)
    assert client.call({}, "echo", arg=2) == 2
    limits(max_connections=100)
    assert late.call({}, "echo", arg=3) == 3


# --- the size of messages ---


def test_a_reply_too_large_is_said_by_the_server_which_goes_on(
    fast, peers, narrow_broker, topic, caplog
):
    caplog.set_level(logging.INFO)

    class Generous:
        def give(self, ctxt, size):
            return "x" * size

    peers.server(fast, Generous(), topic=topic, via=narrow_broker)
    client = peers.client(fast, topic=topic, via=narrow_broker, timeout=3)
    assert client.call({}, "give", size=10) == "x" * 10

    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "give", size=SIZE + 1)

    assert "larger than configured max" in caplog.text
    assert client.call({}, "give", size=20) == "x" * 20


@pytest.mark.rabbitmq4
def test_the_default_limit_of_16_mib_is_said_clearly(fast, peers, broker, topic):
    peers.server(fast, TestEndpoint(), topic=topic)
    client = peers.client(fast, topic=topic, timeout=60)
    fits = "x" * (16 * 1024 * 1024 - 2000)
    assert client.call({}, "echo", arg=fits) == fits
    for act in (client.cast, client.call):
        with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
            act({}, "echo", arg="x" * (16 * 1024 * 1024))
        assert "max_message_size" in str(caught.value)
    assert client.call({}, "echo", arg=1) == 1
    wait_until(lambda: len(broker.connections()) == 2)
