"""Row 16: no memory for the core, and no file descriptors for the process."""

import os
import re
import resource
import time

import oslo_messaging
import pytest
from fix_faults import QUICK
from fix_native import FOLDER, Build, broker_environment, run
from fix_peer import TestEndpoint, standalone_peers

LIMIT_S = 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_allocation_of_the_core_may_fail(broker, figure):
    """For the table: the same program runs under AddressSanitizer in tests/native."""
    build = Build("plain")
    build.compile_core()
    program = build.compile_program(FOLDER / "test_broker_memory.c")
    environment = {**os.environ, **broker_environment(broker)}

    printed = run([str(program)], env=environment, cwd=FOLDER, timeout=120)

    found = re.search(r"(\d+) allocations, (\d+) refusals.* took ([\d.]+) s", printed)
    assert found, printed
    failed, refusals, slowest_s = found.groups()
    figure(
        16,
        f"{failed} allocations, each fails once",
        f"{refusals} clear errors, all goes on within {slowest_s} s",
    )
    assert int(failed) > 100


def attempt(action):
    """Tell how it ended, and how long that took."""
    start = time.monotonic()
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", time.monotonic() - start


def live_without_descriptors(pipe, url, directory, topic):
    """Call and serve; lose the connections when no descriptor can be had."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    with standalone_peers(url, directory) as peers:
        transport = peers.transport("fast", rabbit=QUICK)
        peers.server("fast", TestEndpoint(), topic=topic, transport=transport)
        client = peers.client("fast", topic=topic, transport=transport)
        late = peers.client("fast", topic=topic, rabbit={**QUICK, "ssl": False})
        no_retry = client.prepare(retry=0)
        assert client.call({}, "echo", arg=1) == 1
        no_retry.cast({}, "echo", arg=1)
        pipe.send("up")
        assert pipe.recv() == "lower"
        # Those that are open stay; no other one can be had.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, usual[1]))
        pipe.send("low")
        assert pipe.recv() == "cut"
        called = attempt(
            lambda: client.prepare(timeout=LIMIT_S).call({}, "echo", arg=2)
        )
        cast = attempt(lambda: no_retry.cast({}, "echo", arg=3))
        begun = attempt(lambda: late.prepare(timeout=LIMIT_S).call({}, "echo", arg=4))
        pipe.send([called, cast, begun])
        assert pipe.recv() == "raise"
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        pipe.send(
            [attempt(lambda it=it: it.call({}, "echo", arg=5)) for it in (client, late)]
        )
        pipe.recv()


def test_a_process_without_descriptors_says_so_and_recovers(
    peers, proxy, broker, tmp_path, topic, figure
):
    child = peers.child(
        live_without_descriptors, proxy.url("rabbit"), str(tmp_path), topic
    )
    assert child.receive(60) == "up"
    child.send("lower")
    assert child.receive() == "low"
    proxy.cut()
    child.send("cut")
    called, cast, begun = child.receive()
    child.send("raise")
    again = child.receive(60)
    child.send("end")

    for kind, _, seconds in (called, begun):
        assert kind == oslo_messaging.MessagingTimeout.__name__
        assert LIMIT_S <= seconds < LIMIT_S + 5
    assert cast[0] == oslo_messaging.MessageDeliveryFailure.__name__
    for _, text, _ in (called, cast, begun):
        assert "descriptor" in text or "Too many open files" in text, text
    assert [kind for kind, _, _ in again] == ["", ""], again
    slowest = max(seconds for _, _, seconds in again)
    figure(
        16,
        "no descriptors",
        f"timeouts and failures say so, calls go on {slowest:.1f} s after",
    )
    assert slowest < 10
