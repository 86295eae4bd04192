"""Processes that eventlet has patched: their greenthreads wait in their hub.

Each test is a scene of eventlet_scenes.py, in a process of its own, since
monkey_patch() is for all of it and for good.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fix_peer import TestEndpoint
from private_broker import free_port

# Only newer versions have one for asyncio.
HUBS = [
    name
    for name in ("poll", "selects", "asyncio")
    if importlib.util.find_spec(f"eventlet.hubs.{name}")
]

SCENES = Path(__file__).with_name("eventlet_scenes.py")


class Scene:
    """A process that plays one."""

    def __init__(self, name, broker, directory, topic, argument="", **environment):
        self._process = subprocess.Popen(
            [sys.executable, str(SCENES), name, broker.url(), str(directory), topic]
            + [str(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )

    def tell(self, text):
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def hear(self):
        """The next line it says; it is the test's timeout that ends this."""
        line = self._process.stdout.readline()
        assert line, f"it ended with status {self._process.wait()}"
        return json.loads(line)

    def end(self, timeout=20, status=0):
        """Wait for its end; give its result."""
        answer = self.hear()
        assert self._process.wait(timeout) == status
        return answer["result"]

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def scene(broker, tmp_path, topic):
    """Play a scene to its end; gives its result."""

    def play(name, argument="", timeout=60, status=0, **environment):
        with Scene(name, broker, tmp_path, topic, argument, **environment) as it:
            return it.end(timeout, status)

    return play


@pytest.fixture
def endpoint(peers, topic):
    """A native server in the test's own process."""
    endpoint = TestEndpoint("native")
    peers.server("fast", endpoint, topic=topic)
    yield endpoint
    endpoint.gate.set()


def keeps_ticking(report):
    """Nobody who waited stopped the hub: ten would be a tenth of a second.

    How even the ticks are says a test that is marked `timing`.
    """
    return report["ticks"] >= 10 and report["ticks"] >= report["seconds"] * 20


@pytest.mark.parametrize("executor", ["eventlet", "threading"])
def test_client_and_server_live_in_one_hub(scene, fast, executor):
    assert keeps_ticking(scene("every_kind", executor))


@pytest.mark.parametrize("hub", HUBS)
def test_every_hub_will_do(scene, fast, hub):
    assert keeps_ticking(scene("every_kind", "eventlet", EVENTLET_HUB=hub))


def test_a_hundred_callers_leave_others_their_turn(scene, fast, endpoint):
    for report in scene("in_step", 2000):
        assert keeps_ticking(report)


@pytest.mark.timing
def test_a_ticker_is_never_late_by_more_than_its_period(scene, fast, endpoint):
    reports = scene("in_step", 10000)
    # The best of three: the others may be the machine's doing.
    assert min(report["longest_ms"] for report in reports) < 20, reports


@pytest.mark.parametrize(
    "count", [10**4, pytest.param(10**5, marks=[pytest.mark.slow])]
)
def test_no_call_hangs_beside_blocking_helpers(scene, fast, endpoint, count):
    report = scene("crowd", count, timeout=110)
    assert report["done"] == count
    assert report["blocked"] > 10


def test_who_is_interrupted_leaves_nothing_behind(scene, fast, endpoint):
    assert scene("interrupted") == 0


def test_who_waits_for_a_broker_can_be_interrupted(scene, fast):
    url = f"fastmsg://guest:guest@127.0.0.1:{free_port()}/"
    assert keeps_ticking(scene("nowhere", url))


def test_an_alarm_stops_no_hub(broker, tmp_path, topic, fast, peers, background):
    """Whether it is a publisher who waits, or too many replies."""
    client = peers.client("fast", topic=topic, timeout=60)
    with Scene("alarm", broker, tmp_path, topic) as it:
        assert it.hear() == {"up": True}
        calls = [background(client.call, {}, "size", count=10**6) for _ in range(24)]
        it.tell("asked")
        assert it.hear() == {"asked": True}
        broker.set_alarm()
        it.tell("alarm")
        # Who waits for space does so elsewhere.
        assert "fastmsg-wait" in it.hear()["threads"]
        broker.clear_alarm()
        it.tell("clear")
        assert [len(call.result()) for call in calls] == [10**6] * 24
        assert keeps_ticking(it.end())


def test_a_native_thread_calls_beside_greenthreads(scene, fast, endpoint):
    assert keeps_ticking(scene("native_beside"))


def test_a_native_thread_may_be_the_first(scene, fast, endpoint):
    assert scene("native_first") is None


def test_the_hub_itself_may_call(scene, fast, endpoint):
    assert scene("in_the_hub") == ["native", "clean"]


def test_events_are_logged_by_a_greenthread(scene, fast, endpoint):
    assert scene("events") == 1


def test_children_have_hubs_of_their_own(scene, fast, endpoint):
    assert scene("fork") > 0


@pytest.mark.parametrize(
    ("how", "status"), [("exit", 0), ("greenthread", 0), ("signal", -2)]
)
def test_a_process_may_end_without_a_cleanup(scene, fast, how, status):
    assert scene("no_cleanup", how, timeout=15, status=status) == "left"


def test_a_greenthread_looks_at_counts_and_health(scene, fast):
    assert keeps_ticking(scene("looking"))


@pytest.mark.parametrize("driver", ["fast", "stock"])
@pytest.mark.parametrize("executor", ["eventlet", "threading"])
def test_a_green_server_serves_natives(
    broker, tmp_path, topic, fast, peers, driver, executor
):
    with Scene("serve", broker, tmp_path, topic, executor) as it:
        assert it.hear() == {"up": True}
        client = peers.client(driver, topic=topic)
        assert [client.call({}, "echo", arg=i) for i in range(10)] == list(range(10))
        client.cast({}, "echo", arg="cast")
        with pytest.raises(Exception, match="bad 7"):
            client.call({}, "fail", arg=7)
        assert client.call({}, "echo", arg="last") == "last"
        it.tell("stop")
        assert sorted(it.end(), key=str) == sorted(
            [*range(10), 7, "cast", "last"], key=str
        )


@pytest.mark.envelopes("json", "auto")
def test_a_green_client_calls_a_native_stock_server(scene, fast, peers, topic):
    endpoint = TestEndpoint("native")
    peers.server("stock", endpoint, topic=topic)
    try:
        assert scene("interrupted") == 0
        for report in scene("in_step", 200):
            assert report["ticks"] > 0
    finally:
        endpoint.gate.set()
