"""Nodes of a cluster that die under calls which go on.

What upstream's tests/functional/test_rabbitmq.py expects of the stock driver,
asked of the broker instead of kombu's objects: connections move to a living
node, and calls are answered after each kill without anybody starting again.
With -s each kill prints how long it took until the next call was answered, and
what became of the calls in flight.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import oslo_messaging
import pytest
from fix_objects import wait_until
from fix_peer import Pairing, Peers, TestEndpoint
from private_broker import PrivateBroker, PrivateCluster

# Client and server agree with the broker on different heartbeats: that is how
# its list of connections tells whose is whose, and it keeps two fast peers of
# one process from sharing connections.
HEARTBEAT = {"client": 4, "server": 6}

# The pauses before reconnecting, as short as the options allow.
QUICK = {
    "kombu_reconnect_delay": 0,
    "rabbit_retry_interval": 1,
    "rabbit_retry_backoff": 0,
    "rabbit_interval_max": 1,
}

QUEUES = {
    "quorum": {"rabbit_quorum_queue": True},
    "classic": {},
}

PROBE_S = 1  # a call after a kill may be lost with a queue: then the next one
RECOVERY_S = 40  # until one is answered; the stock driver needs up to 10 s
CALL_S = 8  # of those in flight
CALLERS = 4


class Callers:
    """Threads that call without a pause, and what became of each call."""

    def __init__(self, client: Any, driver: str) -> None:
        self._client = client
        self._losses: tuple[type[Exception], ...] = (oslo_messaging.MessagingTimeout,)
        if driver == "stock":
            # Now and then it lets an error of its socket out.
            self._losses += (OSError,)
        self._is_stopping = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(CALLERS)
        ]
        self.answered = 0
        self.lost = 0
        self.errors: list[Exception] = []  # any others

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.answered >= CALLERS, timeout=30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_stopping = True
        for thread in self._threads:
            thread.join(CALL_S + 20)
            assert not thread.is_alive(), "a call that never ends"

    def _run(self, number: int) -> None:
        calls = 0
        while not self._is_stopping:
            calls += 1
            arg = f"caller {number}, call {calls}"
            try:
                assert self._client.call({}, "echo", arg=arg) == arg
                with self._lock:
                    self.answered += 1
            except self._losses:
                with self._lock:
                    self.lost += 1
            except Exception as error:
                self.errors.append(error)
                return


@dataclasses.dataclass
class Service:
    """A client and a server on the cluster, and where they are connected."""

    cluster: PrivateCluster
    topic: str
    client: Any
    probe: Any
    endpoint: TestEndpoint
    drivers: dict[str, str]
    start_server_again: Callable[[], None]

    def nodes(self, peer: str) -> list[str]:
        """Tell the node of each of a peer's connections."""
        return sorted(
            row["node"]
            for row in self.cluster.connections()
            if row["timeout"] == HEARTBEAT[peer]
        )

    def consuming(self) -> dict[str, str]:
        """Tell which queues are consumed, and the consumer's node.

        A quorum queue keeps the consumers of a node that died until that comes
        back, and delivers nothing to them.
        """
        running = {node.name for node in self.cluster.running()}
        return {
            row["queue_name"]: row["node"]
            for row in self.cluster.consumers()
            if row["node"] in running
        }

    def node_of_server(self) -> str:
        return self.consuming()[self.topic]

    def node_of_replies(self) -> str:
        ((_, node),) = (
            item for item in self.consuming().items() if item[0].startswith("reply_")
        )
        return node

    def busiest_node(self) -> str:
        nodes = self.nodes("client") + self.nodes("server")
        return max(sorted(set(nodes)), key=nodes.count)

    def is_settled(self, without: str = "") -> bool:
        """Tell whether everything is connected and consumed that should be:
        the topic's queue, the server's, its fanouts and the client's replies.

        :param without: the node where nothing of it may be.
        """
        connected = {peer: self.nodes(peer) for peer in HEARTBEAT}
        for peer, driver in self.drivers.items():
            # The fast driver has two; stock's are as many as have been needed.
            count = len(connected[peer])
            if count != 2 if driver == "fast" else count < 1:
                return False
        consuming = self.consuming()
        used = {*connected["client"], *connected["server"], *consuming.values()}
        return len(consuming) == 4 and without not in used

    def wait_until_settled(self, without: str) -> None:
        """Wait until nothing is left of a node that died, and all is back.

        A stock server hears nothing any more if the broker deletes its queues after
        it has declared them anew (*A consumer* in ``docs/architecture.rst``). Then it
        is started again, as operators do.
        """
        deadline = time.monotonic() + RECOVERY_S
        is_new = self.drivers["server"] == "fast"
        while not self.is_settled(without):
            if time.monotonic() > deadline:
                is_deaf = self.topic not in self.consuming()
                assert is_deaf, f"without {without}: {self.state()}"
                assert not is_new, f"without {without}: {self.state()}"
                print("\n  stock's server was deaf: started again", end="")
                self.start_server_again()
                is_new = True
                deadline = time.monotonic() + RECOVERY_S
            time.sleep(0.05)

    def state(self) -> str:
        """Tell what there is, for a test that fails."""
        return (
            f"connected {[*map(self.nodes, HEARTBEAT)]}, "
            f"consuming {self.consuming()}, queues at {self.cluster.homes()}, "
            f"bindings {self.cluster.running()[0].bindings()}, "
            f"routed to {self.routes()}"
        )

    def routes(self) -> Any:
        """Tell to which queues each node's exchange routes the topic, which
        may differ from the bindings that it lists."""
        name = 'rabbit_misc:r(<<"/">>, exchange, <<"openstack">>)'
        message = f'{{basic_message, {name}, [<<"{self.topic}">>], none, none, false}}'
        return {
            node.name: node.query(
                f"rabbit_exchange:route(element(2, rabbit_exchange:lookup({name})), "
                f"{{delivery, false, false, self(), {message}, none, noflow}})"
            )
            for node in self.cluster.running()
        }

    def call_until_answered(self) -> tuple[float, int]:
        """Call until there is an answer: how long that took, what was lost."""
        start = time.monotonic()
        lost = 0
        while True:
            arg = f"probe {start}, {lost}"
            try:
                assert self.probe.call({}, "echo", arg=arg) == arg
                return time.monotonic() - start, lost
            except oslo_messaging.MessagingTimeout:
                lost += 1
                assert time.monotonic() - start < RECOVERY_S, (
                    f"calls do not resume: {self.state()}"
                )

    def kill(self, name: str, callers: Callers) -> PrivateBroker:
        """Kill a node, and see calls answered again and connections moved."""
        node = self.cluster.node(name)
        before = len(self.nodes("client")), len(self.nodes("server"))
        lost = callers.lost

        node.kill()
        seconds, probes = self.call_until_answered()

        self.wait_until_settled(name)
        after = self.nodes("client"), self.nodes("server")
        for number in range(20):
            arg = f"after {name}, {time.monotonic()}, {number}"
            try:
                assert self.client.call({}, "echo", arg=arg) == arg
            except oslo_messaging.MessagingTimeout as error:
                raise AssertionError(f"{arg}: {self.state()}") from error
        print(
            f"\n  killed {name}: next answer after {seconds:.2f} s "
            f"({probes} probes lost), {callers.lost - lost} calls lost so far, "
            f"connections {before} -> {tuple(map(len, after))}",
            end="",
        )
        return node


@contextlib.contextmanager
def service(
    cluster: PrivateCluster,
    peers: Peers,
    pairing: Pairing,
    topic: str,
    rabbit: dict[str, Any],
    query: dict[str, Any],
) -> Iterator[Service]:
    endpoint = TestEndpoint()
    options = {
        peer: {
            "query": query,
            "rabbit": {**QUICK, **rabbit, "heartbeat_timeout_threshold": seconds},
        }
        for peer, seconds in HEARTBEAT.items()
    }

    def start_server() -> Any:
        return peers.server(
            pairing.receiver, endpoint, topic=topic, **options["server"]
        )

    server = start_server()

    def start_server_again() -> None:
        nonlocal server
        server.stop()
        server.wait()
        server = start_server()

    client = peers.client(
        pairing.sender, topic=topic, timeout=CALL_S, **options["client"]
    )
    it = Service(
        cluster,
        topic,
        client,
        client.prepare(timeout=PROBE_S),
        endpoint,
        {"client": pairing.sender, "server": pairing.receiver},
        start_server_again,
    )
    assert client.call({}, "echo", arg="first") == "first"
    wait_until(it.is_settled, timeout=20)
    yield it


@pytest.fixture
def peers(cluster_peers: Peers) -> Peers:
    return cluster_peers


def check_executed_once(endpoint: TestEndpoint) -> None:
    seen = endpoint.seen.items()
    assert len(seen) == len(set(seen))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(QUEUES))
def test_a_call_is_answered_though_its_node_dies_meanwhile(
    cluster, peers, fast, topic, background, kind
):
    """The server has the request; the queue of the reply goes with the node."""
    with service(cluster, peers, Pairing(fast, fast), topic, QUEUES[kind], {}) as it:
        pending = background(it.client.prepare(timeout=30).call, {}, "wait")
        it.endpoint.seen.wait(2)
        name = it.node_of_replies()

        cluster.node(name).kill()
        it.endpoint.gate.set()

        assert pending.result(40) == "opened"
        it.wait_until_settled(name)
        assert it.endpoint.seen.items() == ["first", "wait"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "cancel"),
    # RabbitMQ refuses the option's argument for quorum queues.
    [("quorum", False), ("classic", False), ("classic", True)],
    ids=["quorum", "classic", "classic-cancel"],
)
def test_calls_go_on_while_one_node_after_the_other_dies(
    cluster, peers, pairing, topic, kind, cancel
):
    query = {"enable_cancel_on_failover": cancel} if cancel else {}
    with service(cluster, peers, pairing, topic, QUEUES[kind], query) as it:
        with Callers(it.client, pairing.sender) as callers:
            for choose in (it.node_of_server, it.node_of_replies, it.busiest_node):
                node = it.kill(choose(), callers)
                node.start()
                cluster.wait_until_whole()
        print(f"\n  {callers.answered} calls answered, {callers.lost} lost", end="")
        assert callers.errors == []
        check_executed_once(it.endpoint)


@pytest.fixture
def mirrored(cluster: PrivateCluster, topic: str) -> Iterator[PrivateBroker]:
    """Declare the topic's queue on the first node, with mirrors on the others."""
    home = cluster.nodes[0]
    pattern = f"^{topic}$"
    home.rabbitmqctl("set_policy", "mirrors", pattern, '{"ha-mode": "all"}')
    with kombu.Connection(home.url("amqp")) as connection:
        connection.channel().queue_declare(topic, auto_delete=False)
    wait_until(
        lambda: (
            home.query(
                "[length(amqqueue:get_slave_pids(Q)) || Q <- rabbit_amqqueue:list()]"
            )
            == [2]
        )
    )
    yield home
    cluster.nodes[1].rabbitmqctl("clear_policy", "mirrors")


@pytest.mark.slow
@pytest.mark.parametrize("is_set", [False, True])
def test_a_mirror_that_takes_over_cancels_consumers_if_that_is_wanted(
    cluster, mirrored, peers, fast, topic, caplog, is_set
):
    """The consumer's own node lives on; only the queue moves."""
    endpoint = TestEndpoint()
    query = {"enable_cancel_on_failover": is_set}
    url = cluster.nodes[1].url("fastmsg", **query)
    transport = peers.transport(fast, url=url)
    peers.server(fast, endpoint, topic=topic, transport=transport)
    client = peers.client(fast, topic=topic, timeout=20, transport=transport)
    assert client.call({}, "echo", arg="before") == "before"
    assert cluster.homes()[topic] == mirrored.name

    mirrored.kill()
    wait_until(lambda: cluster.homes()[topic] != mirrored.name, timeout=20)

    assert client.call({}, "echo", arg="after") == "after"
    line = f"the broker cancelled the consumer of '{topic}'"
    if is_set:
        wait_until(lambda: line in caplog.text)
    # An argument of the same call: without the option nothing is cancelled.
    assert (line in caplog.text) is is_set
    assert endpoint.seen.items() == ["before", "after"]
