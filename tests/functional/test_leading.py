"""Who waits runs the core's loop in the I/O thread's place (csrc/io/lead.h)."""

import os
import signal
import statistics
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from fix_peer import Log, TestEndpoint, standalone_peers

CALLS = 300
# How often the I/O thread looks whether somebody leads, at the most.
LOOK_S = 0.005


def switches_of_io_thread() -> int:
    """Count how often the I/O thread of this process has slept."""
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "fastmsg-io":
            lines = (task / "status").read_text().splitlines()
            return sum(int(x.split()[1]) for x in lines if x.startswith("voluntary"))
    raise AssertionError("no I/O thread")


def call_alone(pipe: Connection, url: str, directory: str, topic: str) -> None:
    """Make calls from the only thread; tell how often the I/O thread slept, and how
    long they took."""
    with standalone_peers(url, directory) as peers:
        client = peers.client("fast", topic=topic)
        client.call({}, "echo", arg=-1)  # connects, and may meet a busy loop
        before, start = switches_of_io_thread(), time.monotonic()
        for number in range(CALLS):
            assert client.call({}, "echo", arg=number) == number
        pipe.send((switches_of_io_thread() - before, time.monotonic() - start))


def test_a_lone_caller_is_not_woken_by_the_io_thread(
    peers, broker, fast, topic, tmp_path
):
    peers.server(fast, TestEndpoint(), topic=topic)
    child = peers.child(call_alone, broker.url("rabbit"), str(tmp_path), topic)

    sleeps, seconds = child.receive(60)
    # A hand-over would be one for each call.
    assert sleeps - seconds / LOOK_S < CALLS / 2


def test_a_leader_who_does_not_come_back_is_replaced(peers, fast, topic):
    """A listener has the lead, gets its message, and is busy with it for long."""
    transport = peers.transport(fast)
    endpoint = TestEndpoint()
    arrived, release = Log(), threading.Event()

    def block(batch: list[Any]) -> None:
        arrived.add(batch)
        release.wait(60)

    peers.server(fast, endpoint, topic=f"{topic}_other", transport=transport)
    target = oslo_messaging.Target(topic=topic, server="busy")
    listener = transport._driver.listen(target, 1, None)
    listener.start(block)
    try:
        peers.client(fast, topic=topic).cast({}, "anything")
        arrived.wait()
        peers.client(fast, topic=f"{topic}_other").cast({}, "echo", arg="on time")
        assert endpoint.seen.wait() == ["on time"]
    finally:
        release.set()
        listener.stop()
        listener.cleanup()


@pytest.mark.timing
def test_a_server_whose_endpoint_calls_does_not_wait_for_a_leader(
    peers, broker, fast, topic, tmp_path
):
    """Listener and worker take turns to lead; nobody may leave a gap."""
    transport = peers.transport(fast)
    peers.server(fast, TestEndpoint(), topic=f"{topic}_inner")
    inner = peers.client(fast, topic=f"{topic}_inner", transport=transport)

    class Outer:
        def echo(self, ctxt: dict[str, Any], arg: Any) -> Any:
            return inner.call({}, "echo", arg=arg)

    peers.server(fast, Outer(), topic=topic, transport=transport)
    child = peers.child(time_calls, broker.url("rabbit"), str(tmp_path), topic)
    # A gap costs a call the patience of the I/O thread, 5 ms.
    assert statistics.median(child.receive(60)) < 0.004


def time_calls(pipe: Connection, url: str, directory: str, topic: str) -> None:
    """Make calls one after the other, and tell how long each took, in seconds."""
    with standalone_peers(url, directory) as peers:
        client = peers.client("fast", topic=topic)
        times = []
        for number in range(CALLS):
            start = time.monotonic()
            assert client.call({}, "echo", arg=number) == number
            times.append(time.monotonic() - start)
        pipe.send(times)


def test_a_signal_reaches_a_leader(peers, fast, topic):
    """The main thread polls for itself, and still handles a signal at once."""
    handled: list[float] = []
    client = peers.client(fast, topic=topic, timeout=3)
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
    try:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        end_at = time.monotonic() + 3
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.call({}, "nobody_is_there")
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(handled) == 1
    assert handled[0] < end_at - 1


def test_a_request_is_acknowledged_before_it_runs(peers, broker, fast, topic):
    """The endpoint runs in the listener's own thread, so nothing comes after it."""
    seen = Log()

    class Endpoint:
        def look(self, ctxt: dict[str, Any]) -> None:
            end_at = time.monotonic() + 10
            while (queue := broker.queue(topic))["messages_unacknowledged"]:
                if time.monotonic() > end_at:
                    break
            seen.add(queue["messages_unacknowledged"])

    dispatcher = oslo_messaging.RPCDispatcher([Endpoint()], None)

    def run(batch: list[Any]) -> None:
        for incoming in batch:
            incoming.acknowledge()  # as oslo.messaging's servers begin
            dispatcher.dispatch(incoming)

    transport = peers.transport(fast)
    target = oslo_messaging.Target(topic=topic, server="server1")
    listener = transport._driver.listen(target, 1, None)
    listener.start(run)
    try:
        peers.client(fast, topic=topic).cast({}, "look")
        assert seen.wait() == [0]
    finally:
        listener.stop()
        listener.cleanup()
