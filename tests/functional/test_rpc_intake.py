"""Option rpc_intake: a slow server leaves in the queue what it cannot begin."""

import threading

import pytest
from fix_objects import wait_until
from fix_peer import Log, TestEndpoint
from fix_wire import request


class Slow:
    """Each cast waits until it is let go."""

    def __init__(self):
        self.begun = Log()
        self.go = threading.Semaphore(0)

    def work(self, ctxt, number):
        self.begun.add(number)
        assert self.go.acquire(timeout=30)

    def who(self, ctxt):
        return "slow"


@pytest.fixture
def slow(peers, fast, proxy, topic):
    """A server with one worker that holds three more; behind a proxy."""
    endpoint = Slow()
    query = {"rpc_intake": 3}
    peers.server(fast, endpoint, topic=topic, threads=1, via=proxy, query=query)
    yield endpoint
    endpoint.go.release(1000)


def waiting(broker, queue):
    """How many messages are in a queue and were not delivered."""
    return broker.queue(queue)["messages_ready"]


@pytest.mark.options("rpc_intake")
def test_what_no_worker_can_begin_stays_in_its_queue(peers, fast, broker, topic, slow):
    client = peers.client(fast, topic=topic)
    for number in range(10):
        client.cast({}, "work", number=number)

    assert slow.begun.wait(1) == [0]
    wait_until(lambda: waiting(broker, topic) == 6)  # one runs, three are held
    slow.go.release(2)
    assert slow.begun.wait(3) == [0, 1, 2]
    wait_until(lambda: waiting(broker, topic) == 4)
    slow.go.release(100)
    assert slow.begun.wait(10) == list(range(10))


@pytest.mark.options("rpc_intake")
def test_another_server_gets_what_a_slow_one_cannot_begin(
    peers, fast, broker, topic, slow
):
    client = peers.client(fast, topic=topic)
    for number in range(8):
        client.cast({}, "work", number=number)
    wait_until(lambda: waiting(broker, topic) == 4)

    class Quick(TestEndpoint):
        def work(self, ctxt, number):
            self.seen.add(number)

    quick = Quick()
    peers.server(fast, quick, topic=topic, server="server2")
    # Its workers run side by side.
    assert sorted(quick.seen.wait(4)) == [4, 5, 6, 7]


def test_a_lost_connection_runs_nothing_twice_and_loses_nothing(
    peers, fast, broker, topic, slow, proxy
):
    client = peers.client(fast, topic=topic)
    for number in range(6):
        client.cast({}, "work", number=number)
    assert slow.begun.wait(1) == [0]
    wait_until(lambda: waiting(broker, topic) == 2)

    proxy.cut()
    wait_until(lambda: waiting(broker, topic) == 2)  # held again, on a new channel
    slow.go.release(100)

    wait_until(lambda: len(slow.begun) >= 6)
    assert client.call({}, "who") == "slow"  # behind all of them
    assert sorted(slow.begun.items()) == list(range(6))


def test_what_another_server_got_after_a_lost_connection_is_not_run(
    peers, fast, broker, topic, slow, proxy, caplog
):
    client = peers.client(fast, topic=topic)
    for number in range(3):
        client.cast({}, "work", number=number)
    assert slow.begun.wait(1) == [0]
    wait_until(lambda: broker.queue(topic)["messages_unacknowledged"] == 2)

    proxy.refuse()
    proxy.cut()
    others = Slow()
    others.go.release(100)
    peers.server(fast, others, topic=topic, server="server2", threads=1)
    assert others.begun.wait(2) == [1, 2]
    slow.go.release(100)

    wait_until(lambda: caplog.text.count("Can not acknowledge message") == 2)
    assert slow.begun.items() == [0]


def test_a_copy_of_a_request_that_waits_for_a_worker_is_not_run(
    peers, fast, broker, topic, slow, spy
):
    client = peers.client(fast, topic=topic)
    client.cast({}, "work", number=0)
    assert slow.begun.wait(1) == [0]
    body = request("work", number="once")
    for each in (body, body, request("work", number="after")):
        spy.send("openstack", topic, each)
    wait_until(lambda: broker.queue(topic)["messages_unacknowledged"] == 2)
    slow.go.release(100)

    assert slow.begun.wait(3) == [0, "once", "after"]
    wait_until(lambda: broker.queue(topic)["messages"] == 0)


def test_calls_are_answered(peers, fast, topic, background):
    endpoint = TestEndpoint()
    peers.server(fast, endpoint, topic=topic, threads=4, query={"rpc_intake": 8})
    client = peers.client(fast, topic=topic)

    calls = [background(client.call, {}, "echo", arg=n) for n in range(50)]
    assert [call.result() for call in calls] == list(range(50))
    large = "x" * 300_000
    assert client.call({}, "echo", arg=large) == large


def test_a_stopped_server_gives_back_what_it_had_not_begun(peers, fast, broker, topic):
    endpoint = Slow()
    transport = peers.transport(fast, query={"rpc_intake": 3})
    server = peers.server(fast, endpoint, topic=topic, threads=1, transport=transport)
    client = peers.client(fast, topic=topic)
    for number in range(6):
        client.cast({}, "work", number=number)
    assert endpoint.begun.wait(1) == [0]
    endpoint.go.release(100)
    peers.stop(server)

    begun = endpoint.begun.items()
    assert begun == list(range(len(begun)))
    wait_until(lambda: waiting(broker, topic) == 6 - len(begun))
