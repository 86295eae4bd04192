"""What counts as ill, and that looking costs nothing before it is done."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from fix_looking import assert_is_typed, members

import oslo_fastmsg
from oslo_fastmsg import _core, _looking

ROOT = Path(__file__).resolve().parents[2]

CONNECTION = {
    "state": "open",
    "host": "h:5672",
    "since_s": 100.0,
    "heard_s": 10.0,
    "heartbeat": 60,
    "wanted": True,
    "failures": 0,
}
CONSUMER = {
    "queues": ["T", "T.S"],
    "replies": False,
    "state": "consuming",
    "wanted": True,
    "present": True,
    "verified_s": None,
}
BROKER = {
    "hosts": ["h:5672", "other:5672"],
    "virtual_host": "/",
    "publishing": dict(CONNECTION),
    "consuming": dict(CONNECTION),
    "blocked_s": None,
    "consumers": [CONSUMER, {**CONSUMER, "queues": ["R"], "replies": True}],
}


@pytest.fixture
def judged(monkeypatch):
    """Give a function: health() of a broker that differs from a healthy one."""

    def judge(changes=None, **more):
        broker = copy.deepcopy(BROKER) | more
        for path, value in (changes or {}).items():
            at = broker
            *way, last = path.split(".")
            for step in way:
                at = at[int(step) if step.isdigit() else step]
            at[last] = value
        monkeypatch.setattr(_core, "broker_health", lambda: [broker])
        health = oslo_fastmsg.health()
        assert_is_typed(health, _looking.Health)
        assert health["ok"] == (health["reasons"] == [])
        assert health["brokers"][0]["ok"] == health["ok"]
        return health["reasons"]

    return judge


def test_importing_the_package_loads_nothing_more():
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import oslo_fastmsg\n"
        "print(sorted(set(sys.modules) - before - {'__future__'}))\n"
        "assert oslo_fastmsg.health()['ok']\n"
        "print(oslo_fastmsg.stats()['brokers'])\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert said.splitlines() == ["['oslo_fastmsg']", "[]"]


def test_looking_needs_no_oslo_messaging_and_starts_no_thread():
    code = (
        "import os, sys, oslo_fastmsg\n"
        "oslo_fastmsg.stats(), oslo_fastmsg.health()\n"
        "print([n for n in sys.modules if n.startswith('oslo_messaging')])\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert said.splitlines() == ["[]", "1"]


def test_a_healthy_one_has_no_reasons(judged):
    assert judged() == []


WELL = {
    "a login that was refused a while ago": {
        "publishing.state": "idle",
        "publishing.wanted": False,
        "publishing.failures": 1,
    },
    "a connection that nobody wants": {
        "consuming.state": "idle",
        "consuming.wanted": False,
        "consuming.host": None,
        "consuming.heard_s": None,
        "consumers": [],
    },
    "silence without heartbeats": {
        "consuming.heartbeat": 0,
        "consuming.heard_s": 1e6,
    },
    "silence that is not long": {"consuming.heard_s": 89.0},
    "a consumer that was stopped": {
        "consumers.0.state": "stopped",
        "consumers.0.wanted": False,
        "consumers.0.present": False,
    },
    "a consumer that was verified lately": {"consumers.0.verified_s": 60.0},
    "a server's queues that nobody looks for again": {"consumers.0.verified_s": 1e6},
    "a stopped consumer that is verified no more": {
        "consumers.0.wanted": False,
        "consumers.0.verified_s": 1e6,
    },
}


@pytest.mark.parametrize("changes", WELL.values(), ids=WELL)
def test_it_is_well_with(judged, changes):
    assert judged(changes) == []


ILL = {
    "a connection that is being made": (
        {"publishing.state": "connecting", "publishing.since_s": 3.21},
        "the publish connection is not open since 3.2 s (connecting)",
    ),
    "a connection that is given up": (
        {
            "publishing.since_s": 59.9,
            "publishing.state": "idle",
            "publishing.wanted": False,
            "publishing.failures": 1,
        },
        "the publish connection is not open since 59.9 s (idle)",
    ),
    "silence": (
        {"consuming.heard_s": 91.0},
        "nothing heard on the consume connection for 91.0 s (heartbeat 60 s)",
    ),
    "an alarm": ({"blocked_s": 5.0}, "the broker blocks publishers since 5.0 s"),
    "a consumer that is missing": (
        {"consumers.0.state": "declaring", "consumers.0.present": False},
        "the consumer of 'T', 'T.S' is not there (declaring)",
    ),
    "a reply queue that is missing": (
        {"consumers.1.state": "down", "consumers.1.present": False},
        "the reply queue 'R' is not there (down)",
    ),
    "a consumer that is not verified": (
        {"consumers.1.verified_s": 60.5},
        "the reply queue 'R' is not verified since 60 s",
    ),
    "no consuming connection, whose consumers are missing for it": (
        {
            "consuming.state": "waiting",
            "consumers.0.present": False,
            "consumers.1.present": False,
        },
        "the consume connection is not open since 100.0 s (waiting)",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), ILL.values(), ids=ILL)
def test_it_is_ill_with(judged, changes, reason):
    assert judged(changes) == [f"h:5672,other:5672: {reason}"]


def test_all_reasons_are_given(judged):
    changes = {
        "publishing.state": "waiting",
        "blocked_s": 1.0,
        "consumers.0.present": False,
        "consumers.1.present": False,
    }
    assert len(judged(changes)) == 4


def test_one_ill_broker_makes_the_process_ill(monkeypatch):
    ill = BROKER | {"blocked_s": 1.0, "hosts": ["ill:1"]}
    monkeypatch.setattr(_core, "broker_health", lambda: [BROKER, ill])

    health = oslo_fastmsg.health()

    assert not health["ok"]
    assert [broker["ok"] for broker in health["brokers"]] == [True, False]
    assert health["reasons"] == ["ill:1: the broker blocks publishers since 1.0 s"]


def test_a_wrong_type_is_found():
    with pytest.raises(AssertionError):
        assert_is_typed({"ok": 1, "reasons": [], "brokers": []}, _looking.Health)
    with pytest.raises(AssertionError):
        assert_is_typed({"ok": True, "reasons": []}, _looking.Health)
    with pytest.raises(AssertionError):
        assert_is_typed({"ok": True, "reasons": [1], "brokers": []}, _looking.Health)
    assert members(_looking.Health)["brokers"] == "list of dict"
