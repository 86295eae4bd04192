"""The cluster that fail-overs are tested on: it loses nodes and gets them back."""

import os
from collections.abc import Iterator

import amqp
import kombu
import pytest
from private_broker import BrokerError, PrivateBroker, PrivateCluster, rabbitmq_version


@pytest.fixture
def channel(cluster: PrivateCluster) -> Iterator[object]:
    with kombu.Connection(cluster.nodes[0].url("amqp")) as connection:
        yield connection.channel()


def declare_quorum(channel, name: str) -> None:
    channel.queue_declare(
        name, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
    )


def put(node: PrivateBroker, queue: str, body: str) -> None:
    """Publish through a node, and wait until the queue has it."""
    with kombu.Connection(node.url("amqp")) as connection:
        channel = connection.default_channel.connection.channel()
        channel.confirm_select()
        channel.basic_publish_confirm(amqp.Message(body), "", queue)


def get(node: PrivateBroker, queue: str) -> str | None:
    """Take a message through a node."""
    with kombu.Connection(node.url("amqp")) as connection:
        message = connection.default_channel.basic_get(queue, no_ack=True)
        return None if message is None else message.body


def test_nodes_are_one_cluster(cluster: PrivateCluster) -> None:
    names = {node.name for node in cluster.nodes}
    assert len(names) == 3
    assert [set(node.known()) for node in cluster.nodes] == [names] * 3
    ports = [(node.port, node._dist_port) for node in cluster.nodes]
    assert len({port for pair in ports for port in pair}) == 6
    hosts = ",".join(f"guest:guest@127.0.0.1:{node.port}" for node in cluster.nodes)
    assert cluster.url("fastmsg", a=1) == f"fastmsg://{hosts}/?a=1"


def test_cluster_tells_where_things_are(cluster: PrivateCluster, channel) -> None:
    first = cluster.nodes[0].name
    channel.queue_declare("classic", auto_delete=False)
    declare_quorum(channel, "quorum")
    assert [row["node"] for row in cluster.connections()] == [first]
    assert cluster.homes() == {"classic": first, "quorum": first}
    (queue,) = cluster.quorum_queues()
    assert (queue["name"], queue["leader"]) == ("quorum", first)
    everybody = sorted(node.name for node in cluster.nodes)
    assert sorted(queue["members"]) == sorted(queue["online"]) == everybody


def test_each_test_gets_all_nodes_and_nothing_in_them(cluster: PrivateCluster) -> None:
    assert cluster.running() == cluster.nodes
    assert (cluster.homes(), cluster.connections()) == ({}, [])


@pytest.mark.parametrize(
    "end",
    [PrivateBroker.kill, pytest.param(PrivateBroker.halt, marks=pytest.mark.slow)],
)
def test_a_quorum_queue_survives_its_leaders_node(
    cluster: PrivateCluster, channel, end
) -> None:
    leader, other, third = cluster.nodes
    declare_quorum(channel, "q")
    put(leader, "q", "one")

    end(leader)

    assert cluster.running() == [other, third]
    cluster.wait_until_whole()
    (queue,) = cluster.quorum_queues()
    assert queue["leader"] in (other.name, third.name)
    assert sorted(queue["online"]) == sorted([other.name, third.name])
    put(other, "q", "two")
    leader.start()
    cluster.wait_until_whole()
    (queue,) = cluster.quorum_queues()
    assert len(queue["online"]) == 3
    assert [get(leader, "q"), get(leader, "q")] == ["one", "two"]


@pytest.mark.slow
def test_a_classic_queue_goes_with_its_node(cluster: PrivateCluster, channel) -> None:
    channel.queue_declare("transient", auto_delete=False)
    channel.queue_declare("durable", durable=True, auto_delete=False)
    cluster.nodes[0].kill()
    cluster.wait_until_whole()
    assert set(cluster.homes()) == {"durable"}
    with pytest.raises(amqp.NotFound, match="down or inaccessible"):
        get(cluster.nodes[1], "durable")
    cluster.nodes[0].start()
    cluster.wait_until_whole()
    assert get(cluster.nodes[1], "durable") is None


def test_a_paused_node_answers_again_when_it_is_resumed(
    cluster: PrivateCluster,
) -> None:
    first, second, _ = cluster.nodes
    second.pause()
    assert cluster.running() == [first, cluster.nodes[2]]
    with pytest.raises((OSError, amqp.AMQPError)):
        kombu.Connection(second.url("amqp"), connect_timeout=0.5).connect()
    second.resume()
    cluster.wait_until_whole()
    with kombu.Connection(second.url("amqp")) as connection:
        connection.connect()
        assert [row["node"] for row in cluster.connections()] == [second.name]


def test_waiting_fails_while_the_nodes_do_not_agree(cluster: PrivateCluster) -> None:
    third = cluster.nodes[2]
    third.pause()  # which the others do not notice for a minute
    if rabbitmq_version() < (4,):
        with pytest.raises(BrokerError, match="a cluster of"):
            cluster.wait_until_whole(0.5)
    else:  # it asks each node, and one that does not answer does not run
        cluster.wait_until_whole()
    third.resume()
    cluster.wait_until_whole()


@pytest.mark.slow
def test_stopping_a_cluster_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cluster = PrivateCluster(1)
    cluster.start()
    (home,) = tmp_path.iterdir()
    pid = cluster.nodes[0].pid
    cluster.stop()
    assert not home.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    cluster.stop()
