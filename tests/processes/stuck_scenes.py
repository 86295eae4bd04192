"""What test_stuck.py has done by processes of their own: to be stuck.

``python stuck_scenes.py ROLE URL DIRECTORY TOPIC HEARTBEAT``; ROLE is two words,
such as ``gil client`` or ``hub both``. Answers are lines of JSON, orders lines of
text. A process of ``gil`` is stuck in a function of C that keeps the GIL; one of
``hub`` is patched by eventlet, and stops its hub in the native ``time.sleep``.
"""
# ruff: noqa: E402

import sys

HOW, WHAT = sys.argv[1].split()

if HOW == "hub":
    import eventlet

    eventlet.monkey_patch()

import ctypes
import json
import os
import threading
import time
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging

sys.path.insert(0, str(Path(__file__).parents[1]))

from fix_peer import TestEndpoint, standalone_peers

WARM_CALLS = 50
# How many threads call all the time, by the second word of the role.
CALLERS = {"idle": 0, "client": 1, "crowd": 8, "server": 0, "both": 2}


def say(**answer):
    print(json.dumps(answer), flush=True)


def hear():
    """Wait for a line from the test; others run meanwhile."""
    if HOW == "hub":
        eventlet.hubs.trampoline(0, read=True)
    return os.read(0, 1000).decode().strip()


def be_stuck(seconds):
    """Let no other Python run; gives from when until when.

    The others are quick: before the clock can be read they may have run.
    """
    begin = time.monotonic()
    if HOW == "hub":
        eventlet.patcher.original("time").sleep(seconds)
    else:
        # PyDLL, unlike CDLL, keeps the GIL. A signal would end the sleep.
        sleep = ctypes.PyDLL(None).sleep
        assert seconds == int(seconds)
        left = int(seconds)
        while left > 0:
            left = sleep(left)
    assert time.monotonic() >= begin + seconds
    return begin, begin + seconds


class Traffic:
    """Threads that make one call after the other, and when each one ended."""

    def __init__(self, client, count):
        self.ended_at = []
        self._client = client
        self._is_over = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self):
        number = 0
        while not self._is_over:
            assert self._client.call({}, "echo", arg=number) == number
            self.ended_at.append(time.monotonic())
            number += 1

    def end(self):
        self._is_over = True
        for thread in self._threads:
            thread.join()


def timed_ms(client, number):
    begin = time.monotonic()
    assert client.call({}, "echo", arg=number) == number
    return (time.monotonic() - begin) * 1e3


def start_server(peers, topic, options):
    server = oslo_messaging.get_rpc_server(
        peers.transport("fast", **options),
        oslo_messaging.Target(topic=topic, server="stuck"),
        [TestEndpoint("stuck")],
        executor="eventlet" if HOW == "hub" else "threading",
    )
    server.start()
    return server


def play(peers, topic, heartbeat):
    """A server answers on its own topic, a client calls the test's, both both."""
    options = {"rabbit": {"heartbeat_timeout_threshold": heartbeat}}
    server = client = None
    own_topic = f"{topic}_{HOW}_{WHAT}"
    if WHAT in ("server", "both"):
        server = start_server(peers, own_topic, options)
    if WHAT != "server":
        topic = own_topic if WHAT == "both" else topic
        # A call to ourselves has to outlive the time that we are stuck.
        timeout = 60 + 5 * heartbeat
        client = peers.client("fast", topic=topic, timeout=timeout, **options)
        warm_ms = [timed_ms(client, number) for number in range(WARM_CALLS)]
    say(up=os.getpid(), topic=own_topic)

    hear()  # it looked at our connections
    traffic = Traffic(client, CALLERS[WHAT])
    pending, gated = [], None
    if WHAT in ("client", "crowd"):
        # Its reply comes while we are stuck.
        gated = threading.Thread(
            target=lambda: pending.append(client.call({}, "wait", limit=600)),
            daemon=True,
        )
        gated.start()
    say(busy=True)

    seconds = float(hear())
    say(stuck=True)
    begin, end = be_stuck(seconds)
    result = {"stuck_s": end - begin}
    if client is not None:
        result["warm_ms"] = warm_ms
        result["first_ms"] = timed_ms(client, -1)
    # A tenth of a second for those who had their reply in hand.
    during = [at for at in traffic.ended_at if begin + 0.1 < at < end]
    result["calls_before"] = sum(at < begin for at in traffic.ended_at)
    result["calls_while_stuck"] = len(during)
    say(**result)

    hear()  # it has seen enough
    traffic.end()
    if gated is not None:
        gated.join()
        assert pending == ["opened"], pending
    if server is not None:
        peers.stop(server)
    say(calls=len(traffic.ended_at))


if __name__ == "__main__":
    _, url, directory, topic, heartbeat = sys.argv[1:]
    folder = Path(directory, f"{HOW}-{WHAT}")
    folder.mkdir()
    with standalone_peers(url, str(folder)) as peers:
        play(peers, topic, int(heartbeat))
