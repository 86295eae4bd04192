"""Row 11: a thousand clients lose their broker, and come back to it.

``tests/native/herd.c`` is the clients: each has a bus of its own, as a process of
a service has. What the listener saw, RabbitMQ's log tells.
"""

import collections
import contextlib
import datetime
import os
import re
import resource
import selectors
import subprocess
import threading
import time

import pytest
from fix_native import FOLDER, Build, broker_environment
from fix_objects import wait_until
from private_broker import PrivateBroker

pytestmark = [pytest.mark.slow, pytest.mark.timing, pytest.mark.timeout(600)]

CLIENTS = 1000
OUTAGE_S = 20.0

_LINE = re.compile(
    r"^(\S+ \S+) \[\w+\] \S+ (accepting AMQP connection|started TCP listener)",
    re.MULTILINE,
)


class Herd:
    """The clients' process."""

    def __init__(self, clients, *brokers):
        build = Build("plain")
        build.compile_core()
        program = build.compile_program(FOLDER / "herd.c")
        self._process = subprocess.Popen(
            [program, str(clients), *(str(broker.port) for broker in brokers)],
            env={**os.environ, **broker_environment(brokers[0])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def wait(self, word, timeout):
        assert self._selector.select(timeout), f"not {word} within {timeout} s"
        assert self._process.stdout.readline().strip() == word

    def close(self):
        with self._process as process:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                assert process.wait(60) == 0
            finally:
                process.kill()


@pytest.fixture
def many_descriptors():
    """Let the broker, which inherits it, have a connection for everybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * CLIENTS
    assert hard == resource.RLIM_INFINITY or hard >= needed
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listener_log(text):
    """Tell when the listener began, and when it saw each connection."""
    found = [
        (datetime.datetime.fromisoformat(at).timestamp(), what)
        for at, what in _LINE.findall(text)
    ]
    (began,) = [at for at, what in found if what.startswith("started")]
    return began, [at for at, what in found if what.startswith("accepting")]


def most_in_a_second(moments, began):
    return max(collections.Counter(int(at - began) for at in moments).values())


def test_a_thousand_clients_come_back_without_a_stampede(many_descriptors, figure):
    with (
        PrivateBroker() as broker,
        contextlib.closing(Herd(CLIENTS, broker)) as herd,
    ):
        herd.wait("ready", 240)
        before = len(broker.whole_log())
        broker.kill()
        killed = time.monotonic()
        herd.wait("away", 10)
        threading.Event().wait(OUTAGE_S)  # the outage itself
        broker.start()
        lasted = time.monotonic() - killed
        herd.wait("back", 120)
        back = time.time()
        # Logged in its own time.
        wait_until(
            lambda: broker.whole_log()[before:].count("accepting") >= 2 * CLIENTS, 20
        )
        began, moments = listener_log(broker.whole_log()[before:])
    most = most_in_a_second(moments, began)
    figure(
        11,
        f"{CLIENTS} clients, {lasted:.0f} s away",
        f"{most} connections/s at most, all back after {back - began:.1f} s",
    )
    assert lasted >= OUTAGE_S
    # Nobody was thrown out and came again.
    assert len(moments) == 2 * CLIENTS
    assert back - began <= 45
    assert most <= 100


def test_clients_go_to_a_host_that_lives_at_once(many_descriptors, figure):
    """All in the same moment, and it has to bear that."""
    clients = 100
    with (
        PrivateBroker() as first,
        PrivateBroker() as second,
        contextlib.closing(Herd(clients, first, second)) as herd,
    ):
        herd.wait("ready", 120)
        there = len(second.connections())
        assert 0 < there < 2 * clients, "nobody loses anything"
        first.kill()
        killed = time.monotonic()
        herd.wait("away", 10)
        herd.wait("back", 60)
        seconds = time.monotonic() - killed
    figure(
        11,
        "a second host lives",
        f"{2 * clients - there} connections over there after {seconds:.2f} s",
    )
    assert seconds <= 3
