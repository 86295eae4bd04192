"""Forks before and in the midst of everything, by Python and by C.

A child opens connections of its own at its first use. Its parent notices
nothing: it keeps its connections, and the child has none of their sockets.
"""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fix_peer import TestEndpoint
from fix_scenes import Scene
from private_broker import PrivateBroker

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def both_ways() -> Iterator[PrivateBroker]:
    """A broker that speaks plain TCP and TLS."""
    with PrivateBroker(tls=True) as node:
        yield node


@pytest.fixture(params=["plain", pytest.param("tls", marks=pytest.mark.tls)])
def url(request: pytest.FixtureRequest, both_ways: PrivateBroker) -> str:
    if request.param == "tls":
        return both_ways.tls_url("fastmsg")
    return both_ways.url("fastmsg")


@pytest.fixture
def broker(both_ways: PrivateBroker) -> Iterator[PrivateBroker]:
    """The same broker for the peers of the test's own process."""
    yield both_ways
    both_ways.reset()


def connections_of(broker: PrivateBroker, pid: int) -> dict[str, str]:
    """Give each connection of a process: both ends, and the name that it gave."""
    rows = {
        row["name"]: row["client_properties"]["connection_name"]
        for row in broker.connections()
    }
    return {ends: name for ends, name in rows.items() if f":{pid}:" in name}


def assert_children_are_well(children: list[dict[str, Any]]) -> None:
    for child in children:
        assert child["inherited"] == []
        assert child["held"] == []
        assert child["own"] == 2
        assert child["connects"] == [1, 1]


def assert_broker_saw_no_nonsense(log: str, connections: dict[str, str]) -> None:
    """Bytes of another process in the midst of a stream are errors.

    What the broker says of the ends of children, and of earlier tests, which
    may come late, does not count.
    """
    for line in log.splitlines():
        for word in ("bad_header", "frame_error", "unexpected_frame", "TLS server"):
            assert word not in line, log
        if "[warning]" in line or "[error]" in line:
            assert not any(ends in line for ends in connections), log


WAYS = [
    ("os", "before"),
    ("os", "amid"),
    ("multiprocessing", "before"),
    ("multiprocessing", "amid"),
    ("c", "before"),
    ("c", "amid"),
    ("c_unseen", "before"),
    ("c_unseen", "idle"),
]


@pytest.mark.parametrize(
    ("how", "when", "count"),
    [
        *[(*way, 6 if "amid" in way else 2) for way in WAYS],
        *[pytest.param(*way, 60, marks=pytest.mark.slow) for way in WAYS],
    ],
)
def test_a_child_has_its_own_and_the_parent_keeps_its(
    peers, broker, fast, topic, url, how, when, count
):
    peers.server(fast, TestEndpoint(), topic=topic)
    logged = len(broker.whole_log())
    with Scene("forks", url, topic, how, when, count) as it:
        parent = it.expect("ready")
        before = connections_of(broker, parent)
        assert len(before) == (0 if when == "before" else 2)
        it.tell()
        for _ in range(2):
            child = it.expect("child")["pid"]
            assert len(connections_of(broker, child)) == 2
            if when != "before":
                assert connections_of(broker, parent) == before
            it.tell()
        it.expect("over")
        after = connections_of(broker, parent)
        log = broker.whole_log()[logged:]
        it.tell()
        result = it.expect("result")
        assert it.end() == (0, "")

    assert after == before or (when == "before" and len(after) == 2)
    assert result["connects"] == [1, 1]
    assert result["errors"] == []
    assert len(result["children"]) == count
    assert_children_are_well(result["children"])
    if when == "amid":
        assert result["notes"] > 5
        assert result["done"] > count
    assert_broker_saw_no_nonsense(log, after)


def test_a_child_that_runs_no_python_holds_no_connection(
    peers, broker, fast, topic, url
):
    peers.server(fast, TestEndpoint(), topic=topic)
    logged = len(broker.whole_log())
    with Scene("children_in_c", url, topic, 20) as it:
        parent = it.expect("ready")
        before = connections_of(broker, parent)
        it.tell()
        it.expect("over")
        assert connections_of(broker, parent) == before
        assert len(before) == 2
        log = broker.whole_log()[logged:]
        it.tell()
        result = it.expect("result")
        assert it.end() == (0, "")

    assert result["held"] == []
    assert result["errors"] == []
    assert result["connects"] == [1, 1]
    assert_broker_saw_no_nonsense(log, before)


def test_a_child_does_not_hold_what_is_just_being_connected(fast, topic):
    """Its parent's end would not be seen by a broker that waits for two."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"fastmsg://guest:guest@127.0.0.1:{port}/"
        with Scene("connecting", url, topic, port) as it:
            it.expect("calling")
            listener.settimeout(20)
            with listener.accept()[0]:
                it.tell()
                assert it.expect("result") == {"status": 0, "held": []}


@pytest.mark.parametrize(
    "count", [6, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_child_works_that_was_forked_while_others_connect(
    peers, broker, fast, topic, url, count
):
    peers.server(fast, TestEndpoint(), topic=topic)
    with Scene("churn", url, topic, count) as it:
        result = it.expect("result", 110)
        assert it.end() == (0, "")

    assert result["errors"] == []
    assert result["connects"] == [1, 1]
    assert_children_are_well(result["children"])
