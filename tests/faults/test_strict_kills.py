"""A node of a strict cluster dies: queues are durable there, but were not asked to be.

RabbitMQ keeps the name of a durable classic queue as long as the queue's node is down,
and lets who declares it wait for more than a minute before it says so.
"""

import time

import oslo_messaging
import pytest
from fix_faults import QUICK, reply_queues
from fix_objects import wait_until
from fix_peer import Notes, TestEndpoint

pytestmark = [pytest.mark.rabbitmq4, pytest.mark.slow, pytest.mark.timeout(300)]

PROMISED_S = 3.0


@pytest.fixture
def cluster(strict_cluster):
    return strict_cluster


@pytest.fixture
def peers(cluster_peers):
    return cluster_peers


def answered_after_kill(cluster, name, client):
    """Kill a node; give how long a call took that was made then."""
    cluster.node(name).kill()
    moment = time.monotonic()
    assert client.call({}, "echo", arg="after") == "after"
    return time.monotonic() - moment


def resumed_after_kill(cluster, name, client, timeout=20):
    """Kill a node; give how long it took until a call was answered. A request that
    comes when its queue is not there is lost, as with queues that are not durable."""
    client = client.prepare(timeout=0.5)
    cluster.node(name).kill()
    moment = time.monotonic()
    while True:
        try:
            assert client.call({}, "echo", arg="after") == "after"
        except oslo_messaging.MessagingTimeout:
            assert time.monotonic() - moment < timeout
        else:
            return time.monotonic() - moment


def test_the_node_of_the_reply_queue_is_killed_and_calls_work_at_once(
    fast, cluster, peers, topic, caplog
):
    client = peers.client(fast, topic=topic, timeout=PROMISED_S, rabbit=QUICK)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=1).call({}, "echo", arg="nobody there")
    (reply,) = reply_queues(cluster.any())
    assert reply["durable"]
    home = cluster.homes()[reply["name"]]
    other = next(node for node in cluster.nodes if node.name != home)
    endpoint = TestEndpoint()
    peers.server(
        fast, endpoint, topic=topic, url=other.url("fastmsg"), server="elsewhere"
    )
    assert client.call({}, "echo", arg="before") == "before"

    seconds = answered_after_kill(cluster, home, client)

    print(f"\n  answered {seconds:.2f} s after the kill", end="")
    assert seconds < PROMISED_S
    assert cluster.homes()[reply["name"]] != home
    wait_until(lambda: f"'{reply['name']}' was on a node that is down" in caplog.text)
    cluster.restore()
    assert client.call({}, "echo", arg="whole again") == "whole again"
    assert cluster.homes()[reply["name"]] != home


def test_whatever_was_on_the_killed_node_is_made_anew_on_another(
    fast, cluster, peers, topic
):
    endpoint, notes = TestEndpoint(), Notes()
    for name in ("one", "two"):
        peers.server(fast, endpoint, topic=topic, server=name, rabbit=QUICK)
    peers.listener(fast, notes, topics=[f"{topic}-notes"], rabbit=QUICK)
    client = peers.client(fast, topic=topic, timeout=20, rabbit=QUICK)
    notifier = peers.notifier(fast, f"{topic}-notes", rabbit=QUICK)
    notifier.info({}, "event", {"n": "before"})
    notes.seen.wait(1)
    assert client.call({}, "echo", arg="before") == "before"
    home = cluster.homes()[topic]

    seconds = resumed_after_kill(cluster, home, client)

    print(f"\n  answered {seconds:.2f} s after the kill", end="")
    for name in ("one", "two"):
        server = client.prepare(server=name)
        assert server.call({}, "echo", arg=name) == name
    wait_until(lambda: home not in cluster.homes().values(), 20, "all queues elsewhere")
    notifier.info({}, "event", {"n": "after"})
    wait_until(
        lambda: "after" in [note["payload"]["n"] for note in notes.seen.items()], 20
    )
    seen = len(endpoint.seen)
    client.prepare(fanout=True).cast({}, "echo", arg="all")
    endpoint.seen.wait(seen + 2)
    cluster.restore()
    for name in ("one", "two"):
        assert client.prepare(server=name).call({}, "echo", arg=name) == name
