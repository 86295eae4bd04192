"""Queues that the broker forgets without telling who consumes from them.

When a node of a cluster dies, RabbitMQ lists the queues that went with it and
deletes them by name in a second step. One that was declared again in between
is gone then, too; its process lives on, with its consumer, and nobody is sent
a basic.cancel. Here a queue is forgotten as that second step does it.
"""

import time

import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint
from private_broker import rabbitmq_version

QUICK = {
    "kombu_reconnect_delay": 0.05,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}
LINE = "is gone, and the broker did not say so"
#: The driver looks one second after it came back, and then nine.
HEALED_S = 15
PERIOD_S = 60


def forget(broker, *queues):
    """Do what rabbit_amqqueue:on_node_down/1 does, once it has their names."""
    remove = "rabbit_binding:remove_transient_for_destination"
    if rabbitmq_version() >= (4,):
        remove = "rabbit_db_binding:delete_transient_for_destination_in_mnesia"
    for queue in queues:
        name = f'rabbit_misc:r(<<"{broker.virtual_host}">>, queue, <<"{queue}">>)'
        broker.evaluate(
            "{atomic, _} = mnesia:sync_transaction(fun() -> "
            f"ok = mnesia:delete({{rabbit_queue, {name}}}), {remove}({name}) end)"
        )
        assert broker.queue(queue) is None


def is_answered(client, arg):
    try:
        return client.call({}, "echo", arg=arg) == arg
    except oslo_messaging.MessagingTimeout:
        return False


def consumed(broker):
    return sorted(row["queue_name"] for row in broker.consumers())


def all_channels_consume(broker):
    """Tell it of the connections on which anybody does."""
    channels = broker.channels()
    consuming = {row["connection"] for row in channels if row["consumer_count"]}
    return all(
        row["consumer_count"] for row in channels if row["connection"] in consuming
    )


def reconnect(broker, queues):
    """Have all connections made anew, and see everything consumed again."""
    before = {row["pid"] for row in broker.connections()}
    broker.close_connections()
    wait_until(
        lambda: (
            not before & {row["pid"] for row in broker.connections()}
            and consumed(broker) == queues
        ),
        20,
    )


@pytest.mark.parametrize("which", ["server", "replies", "all"])
def test_a_queue_forgotten_as_its_consumer_comes_back_is_there_again_soon(
    fast, peers, broker, topic, caplog, which
):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, rabbit=QUICK)
    client = peers.client(fast, topic=topic, timeout=20, rabbit=QUICK)
    assert client.call({}, "echo", arg="first") == "first"
    queues = consumed(broker)
    (replies,) = [each for each in queues if each.startswith("reply_")]
    lost = {"server": [topic], "replies": [replies], "all": queues}[which]

    reconnect(broker, queues)
    connections = {row["pid"] for row in broker.connections()}
    forget(broker, *lost)
    start = time.monotonic()
    probe = client.prepare(timeout=1)
    tries = 1
    while not is_answered(probe, f"probe {tries}"):
        tries += 1
        assert time.monotonic() < start + HEALED_S

    assert LINE in caplog.text
    assert "the broker cancelled the consumer" not in caplog.text
    wait_until(lambda: consumed(broker) == queues)
    # Neither a lost connection nor basic.cancel has done it. (RabbitMQ 4.0 stumbles
    # when a consumer of what it has forgotten is cancelled, and closes the
    # connection with a true 541: then that has done it.)
    if rabbitmq_version() < (4,):
        assert {row["pid"] for row in broker.connections()} == connections
    # More than the prefetch: what comes is acknowledged to the queue that it
    # came from, not to the one before.
    for number in range(300):
        assert client.call({}, "echo", arg=number) == number
    wait_until(
        lambda: all(row["messages_unacknowledged"] == 0 for row in broker.queues())
    )
    # Looking for queues leaves no channel.
    wait_until(lambda: all_channels_consume(broker))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_queue_of_replies_forgotten_at_any_time_is_there_again_within_a_minute(
    fast, peers, broker, topic, background, caplog
):
    """As long as calls are made. The one in flight gets its reply."""
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic)
    client = peers.client(fast, topic=topic, timeout=100)
    assert client.call({}, "echo", arg="first") == "first"
    (replies,) = [each for each in consumed(broker) if each.startswith("reply_")]
    pending = background(client.call, {}, "last", seconds=PERIOD_S / 2)
    endpoint.seen.wait(2)

    forget(broker, replies)
    start = time.monotonic()
    assert not is_answered(client.prepare(timeout=1), "in vain")
    wait_until(lambda: broker.queue(replies) is not None, PERIOD_S + 5)

    # Sent while the queue was gone, and tried again by the server.
    assert pending.result(20) == "done"
    assert LINE in caplog.text
    assert time.monotonic() - start < PERIOD_S + 10
    assert is_answered(client, "last")
