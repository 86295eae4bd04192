"""Processes whose Python is stuck for longer than the broker waits for a sign.

One holds the GIL in a function of C, another one's eventlet hub is stopped. The
driver's own thread takes neither: it goes on reading, and beats. So the broker
closes nothing, and whoever calls next uses the connections that stand.

All processes are stuck at the same time, once for all tests of a heartbeat.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_objects import wait_until
from fix_peer import Peers, TestEndpoint
from fix_processes import (
    bound_ms,
    connections_of,
    missed_heartbeats,
    settled_connections,
)

SCENES = Path(__file__).with_name("stuck_scenes.py")

# The broker looks once per heartbeat, and closes what was silent two times
# running: a connection that is silent this long is closed at any rate.
SILENT_BEATS = 3.5

SERVERS = ["gil server", "hub server"]
BOTH = ["gil both", "hub both"]
CLIENTS = ["gil idle", "gil client", "gil crowd", "hub client", *BOTH]
STOPPED = "gil server of the control"


class Scene:
    """A process that plays a role, and what the broker saw of it."""

    def __init__(self, role: str, url: str, directory: Path, topic: str, beat: int):
        self.role = role
        self.before: list[tuple[str, int]] = []
        self.after: list[tuple[str, int]] = []
        self.result: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(SCENES), role, url, str(directory), topic, str(beat)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next line it says; it is the test's timeout that ends this."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.role} ended with status {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> int:
        """Close its input, which ends it; give its status."""
        self._process.communicate(timeout=20)
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Held:
    """What came of it: the scenes by role, and what the broker wrote."""

    def __init__(self, beat: int) -> None:
        self.beat = beat
        self.stuck_s = math.ceil(beat * SILENT_BEATS)
        self.scenes: dict[str, Scene] = {}
        self.answers: dict[str, list[Any]] = {}
        self.log = ""

    def missed(self, scene: Scene) -> list[str]:
        """The broker's complaints of a process."""
        return missed_heartbeats(self.log, scene.pid)


def stay_stuck(held: Held, broker: Any, clients: dict[str, Any], gate: Any) -> None:
    """Have all of them stuck at once; ask and answer them meanwhile."""
    asked = {}
    for scene in held.scenes.values():
        assert scene.hear()["up"] == scene.pid
    for role, client in clients.items():
        assert client.call({}, "echo", arg="warm") == "warm"
        held.answers[role] = []

        def ask(client: Any = client, answers: list[Any] = held.answers[role]) -> None:
            answers.append(client.call({}, "echo", arg="asked while stuck"))

        asked[role] = threading.Thread(target=ask)
    for scene in held.scenes.values():
        scene.before = settled_connections(broker, scene.pid)
        scene.tell("go on")
        assert scene.hear() == {"busy": True}
    stopped = held.scenes[STOPPED]
    for scene in held.scenes.values():
        if scene is stopped:
            os.kill(scene.pid, signal.SIGSTOP)
        else:
            scene.tell(str(held.stuck_s))
    for scene in held.scenes.values():
        if scene is not stopped:
            assert scene.hear() == {"stuck": True}
    # Requests to those who are stuck, and replies, arrive in the meantime.
    for thread in asked.values():
        thread.start()
    gate.set()
    wait_until(
        lambda: not connections_of(broker, stopped.pid),
        4 * held.beat + 10,
        "end of the connections of a stopped process",
    )
    for scene in held.scenes.values():
        if scene is not stopped:
            scene.result = scene.hear()
            scene.after = connections_of(broker, scene.pid)
    for thread in asked.values():
        thread.join(20)
    for role, client in clients.items():
        held.answers[role].append(client.call({}, "echo", arg="asked after"))
    for scene in held.scenes.values():
        if scene is not stopped:
            scene.tell("enough")
            scene.result |= scene.hear()
            assert scene.end() == 0
    held.log = broker.log(100_000)


@pytest.fixture(
    scope="module",
    params=[
        2,
        pytest.param(5, marks=pytest.mark.slow),
        pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
    ],
    ids=lambda beat: f"{beat}s",
)
def held(
    request: pytest.FixtureRequest, broker_of_the_run: Any, tmp_path_factory: Any
) -> Iterator[Held]:
    """Let every role be stuck for more than three heartbeats."""
    broker = broker_of_the_run
    held = Held(request.param)
    directory = tmp_path_factory.mktemp("stuck")
    topic = f"stuck-{uuid.uuid4().hex[:8]}"
    peers = Peers(broker, directory)
    endpoint = TestEndpoint()
    try:
        peers.server("fast", endpoint, topic=topic)
        for role in [*CLIENTS, *SERVERS, STOPPED]:
            words = "gil idle" if role == STOPPED else role
            folder = directory / role.replace(" ", "-")
            folder.mkdir()
            held.scenes[role] = Scene(words, broker.url(), folder, topic, held.beat)
        clients = {
            role: peers.client(
                "fast",
                topic=f"{topic}_{role.replace(' ', '_')}",
                timeout=held.stuck_s + 30,
            )
            for role in SERVERS
        }
        stay_stuck(held, broker, clients, endpoint.gate)
        yield held
    finally:
        endpoint.gate.set()
        for scene in held.scenes.values():
            scene.kill()
        peers.close()
        broker.reset()


def test_the_broker_does_close_a_process_that_is_silent(fast, held):
    """The control: without it, all other tests here might prove nothing."""
    assert held.missed(held.scenes[STOPPED])


@pytest.mark.parametrize("role", [*CLIENTS, *SERVERS])
def test_a_process_is_as_stuck_as_the_test_says(fast, held, role):
    result = held.scenes[role].result

    assert result["stuck_s"] > 3 * held.beat
    assert result["calls_while_stuck"] == 0


@pytest.mark.parametrize("role", [*CLIENTS, *SERVERS])
def test_a_stuck_process_keeps_its_connections(fast, held, role):
    scene = held.scenes[role]

    assert scene.after == scene.before
    assert held.missed(scene) == []


@pytest.mark.parametrize("role", ["gil client", "gil crowd", "hub client", *BOTH])
def test_traffic_goes_on_when_the_process_does(fast, held, role):
    result = held.scenes[role].result

    assert result["calls_before"] > 0
    assert result["calls"] > result["calls_before"]


@pytest.mark.parametrize("role", SERVERS)
def test_a_stuck_server_answers_what_came_meanwhile_and_what_comes_next(
    fast, held, role
):
    assert held.answers[role] == ["asked while stuck", "asked after"]


@pytest.mark.timing
@pytest.mark.parametrize("role", CLIENTS)
def test_the_next_call_is_as_quick_as_a_warm_one(fast, held, role):
    result = held.scenes[role].result
    bound = bound_ms(result["warm_ms"])
    print(f"{role}: first {result['first_ms']:.1f} ms, bound {bound:.1f} ms")

    assert result["first_ms"] < bound
