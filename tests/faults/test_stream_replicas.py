"""Streams in a cluster: nodes that have no replica, and replicas that die.

A stream is read from the node that the consumer is connected to, or not at all.
"""

import time

import pytest
from fix_objects import wait_until
from fix_peer import TestEndpoint
from fix_streams import STREAMS, needs_streams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.options("rabbit_stream_fanout"),
    pytest.mark.timeout(300),
    needs_streams,
]

QUICK = {
    **STREAMS,
    "kombu_reconnect_delay": 0,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}

NO_REPLICA = "this node has no replica of the stream"
MEMBERS = "maps:get(nodes, amqqueue:get_type_state(Q))"
CHANNELS = (
    "[Channel || Node <- [node() | nodes()], "
    "{_, Channel} <- rpc:call(Node, ets, tab2list, [channel_created])]"
)


class Service:
    """A server that reads a stream, and a client that sends fanouts."""

    def __init__(self, cluster, peers, topic, **options):
        self.cluster = cluster
        self.name = f"{topic}_fanout"
        self.endpoint = TestEndpoint()
        self.sent = 0
        # The server first: it makes the stream, on all nodes.
        peers.server("fast", self.endpoint, topic=topic, rabbit=QUICK, **options)
        client = peers.client("fast", topic=topic, rabbit=QUICK)
        self._fanout = client.prepare(fanout=True)
        wait_until(self.nodes)
        wait_until(lambda: self.members() == {n.name for n in cluster.nodes}, 30)

    def send(self, count=1):
        for _ in range(count):
            self._fanout.cast({}, "echo", arg=self.sent)
            self.sent += 1

    def check(self):
        """See that all that was sent has run, once each."""
        self.send()
        wait_until(lambda: self.sent - 1 in self.endpoint.seen.items(), 30)
        assert sorted(self.endpoint.seen.items()) == list(range(self.sent))

    def rows(self):
        return [r for r in self.cluster.consumers() if r["queue_name"] == self.name]

    def nodes(self):
        """Name the nodes that it is read from."""
        return [row["node"] for row in self.rows()]

    def ask(self, what):
        vhost = '<<"/">>'
        return self.cluster.any().query(
            f"begin {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, "
            f'<<"{self.name}">>)), {what} end'
        )

    def members(self):
        """Name the nodes where a replica runs."""
        return set(self.ask("rabbit_stream_queue:info(Q, [online])")["online"])

    def change(self, verb, node):
        """Have a replica added to a node, or deleted there."""
        any_other = next(each for each in self.cluster.nodes if each.name != node)
        any_other.evaluate(
            f'rabbit_stream_queue:{verb}_replica(<<"/">>, <<"{self.name}">>, \'{node}\')'
        )
        wait_until(lambda: (node in self.members()) == (verb == "add"), 30)
        wait_until(lambda: len(self.members()) == len(self.ask(MEMBERS)), 30)

    def drop(self):
        """End the connection that reads; the driver may come back at once."""
        pids = {row["channel_pid"] for row in self.rows()}
        broker = self.cluster.any()
        # Not by channels(): one whose replica was deleted may not answer for a minute.
        for row in broker.query(CHANNELS):
            if row["pid"] in pids:
                broker.close_connection(row["connection"])


@pytest.fixture
def service(cluster, cluster_peers, topic):
    return Service(cluster, cluster_peers, topic)


def test_a_node_without_a_replica_is_left_within_a_second(service):
    service.send(3)
    service.endpoint.seen.wait(3)
    (node,) = service.nodes()
    service.change("delete", node)
    service.send(4)

    service.drop()
    began = time.monotonic()
    service.endpoint.seen.wait(7)
    took = time.monotonic() - began

    service.check()
    (row,) = service.rows()
    assert row["node"] != node
    assert row["arguments"] == {"x-stream-offset": 3}
    print(f"\n  no replica on the node: fanouts come again after {took:.3f} s")
    assert took < 1


def test_a_replica_that_is_deleted_under_its_reader_is_missed(service, caplog):
    """The broker says nothing, and delivers nothing: that the stream grows shows it."""
    service.send(3)
    service.endpoint.seen.wait(3)
    (node,) = service.nodes()

    service.change("delete", node)
    service.send(4)
    wait_until(lambda: len(service.endpoint.seen) == 7, 120)

    service.check()
    assert node not in service.nodes()
    assert "which has grown: consuming it again" in caplog.text


def test_with_no_other_host_it_waits_for_a_replica(
    cluster, cluster_peers, topic, caplog
):
    """The one host is asked again, with pauses."""
    host = cluster.nodes[0]
    service = Service(cluster, cluster_peers, topic, via=host)
    service.send(3)
    service.endpoint.seen.wait(3)
    service.change("delete", host.name)
    service.drop()
    wait_until(lambda: NO_REPLICA in caplog.text)
    service.send(4)
    assert len(service.endpoint.seen) == 3

    service.change("add", host.name)

    service.check()
    assert service.nodes() == [host.name]
    assert caplog.text.count(NO_REPLICA) < 10


def test_a_replica_that_dies_is_none_of_our_business(service, cluster):
    """The broker starts another one, and goes on reading."""
    service.send(3)
    service.endpoint.seen.wait(3)
    (node,) = service.nodes()

    cluster.node(node).evaluate(
        '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"'
        f'{service.name}">>)), #{{name := S}} = amqqueue:get_type_state(Q), '
        "{ok, P} = rabbit_stream_coordinator:local_pid(S), exit(P, kill)"
    )
    service.send(4)

    service.check()
    assert service.nodes() == [node]


@pytest.mark.parametrize("again", range(2))
def test_a_node_that_dies_is_left_and_nothing_missed(service, cluster, again):
    service.send(3)
    service.endpoint.seen.wait(3)
    (node,) = service.nodes()

    cluster.node(node).kill()
    service.send(20)

    service.check()
    (other,) = service.nodes()
    assert other != node
