"""Services of oslo.service with workers: started, told to end, and drained."""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_peer import SCHEMES
from fix_scenes import Scene

SCRIPT = Path(__file__).with_name("launched_service.py")
WORKERS = 2
BUSY_S = 1.0

BACKENDS = ["eventlet"]
if importlib.util.find_spec("oslo_service.backend") is not None:
    BACKENDS.append("threading")  # needs cotyledon, see tests/requirements.txt


class Service:
    """What a test knows of a running service."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.workers = {scene.expect("up") for _ in range(WORKERS)}

    def end(self, call: Any) -> tuple[float, Any, int]:
        """Tell it to end while it is busy; give time, answer and status."""
        assert self.scene.expect("busy") in self.workers
        told_at = time.monotonic()
        os.kill(self.scene.pid, signal.SIGTERM)
        answer = call.result()
        self.scene.expect("over")
        status, errors = self.scene.end()
        assert "Traceback" not in errors, errors
        return time.monotonic() - told_at, answer, status


@pytest.fixture(params=BACKENDS)
def launch(
    request: pytest.FixtureRequest, broker, topic
) -> Iterator[Callable[[str, str, str], Service]]:
    scenes: list[Scene] = []

    def launch(driver: str, topic: str, where: str) -> Service:
        url = broker.url(SCHEMES[driver])
        scenes.append(Scene(request.param, url, topic, WORKERS, where, script=SCRIPT))
        return Service(scenes[-1])

    yield launch
    for scene in scenes:
        scene.__exit__()


@pytest.mark.parametrize("where", ["children", "both"])
def test_a_service_drains_and_ends_as_with_stock(
    launch, peers, fast, topic, background, where
):
    """A request that runs is answered; the status and the time are stock's."""
    times, statuses = {}, {}
    for driver in ("stock", "fast"):
        name = f"{topic}-{driver}"
        service = launch(driver, name, where)
        client = peers.client("fast", topic=name)
        servers = {client.call({}, "who") for _ in range(8 * WORKERS)}
        assert servers == service.workers
        if where == "both":
            parents = peers.client("fast", topic=f"{name}-parent")
            assert parents.call({}, "who") == service.scene.pid
        call = background(client.call, {}, "last", seconds=BUSY_S)
        times[driver], answer, statuses[driver] = service.end(call)
        assert answer in service.workers
    print(f"\n{where}: seconds from SIGTERM to the end: {times}", file=sys.stderr)
    assert statuses["fast"] == statuses["stock"]
    # Of the request's own second, too; a busy machine takes some time.
    assert times["fast"] < times["stock"] + 1


def test_an_idle_service_ends_with_its_connections_closed(
    launch, peers, broker, fast, topic
):
    service = launch("fast", topic, "children")
    client = peers.client("fast", topic=topic)
    assert client.call({}, "who") in service.workers
    os.kill(service.scene.pid, signal.SIGTERM)
    service.scene.expect("over")
    assert service.scene.end()[0] == 0
    names = [
        str(row["client_properties"].get("connection_name"))
        for row in broker.connections()
    ]
    for pid in service.workers:
        assert not [name for name in names if f":{pid}:" in name]
