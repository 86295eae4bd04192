"""Row 17: the clock is set by an hour while things wait.

Of one process alone, by Debian's faketime; the monotonic clock goes on.
"""

import glob
import json
import os
import statistics
import threading
import time
from multiprocessing.connection import Connection

import pytest
from fix_account import Account
from fix_faults import bounds
from fix_load import Accounting, sender
from fix_peer import standalone_peers

HOUR = 3600
LIMIT_S = 3
#: Calls that wait, and casts; of each kind the median is bounded.
WAITING = 3
GENEROUS_S = 2.0


@pytest.fixture
def library():
    (found,) = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found


def wait_with_a_clock(pipe: Connection, url: str, directory: str, topic: str) -> None:
    """Have calls and casts wait while the clock is set; tell how long each did."""
    account = Account()
    with standalone_peers(url, directory) as peers:
        transport = peers.transport("fast", rpc_response_timeout=LIMIT_S)
        client = peers.client("fast", topic=topic, transport=transport)
        client.cast({}, "take", arg="number-1000000")
        sends = [
            sender(account, "call", client, topic=f"{topic}-nobody", timeout=LIMIT_S),
            sender(account, "cast", client),
        ]
        pipe.send(time.time())
        pipe.recv()  # confirms are withheld from now on
        threads = [threading.Thread(target=send) for send in sends * WAITING]
        for thread in threads:
            thread.start()
        pipe.recv()  # the clock has been set
        pipe.send(time.time())
        for thread in threads:
            thread.join(60)
        ends: dict[str, list[tuple[str, float]]] = {"call": [], "cast": []}
        for it in account.entries():
            (raised,) = it.all("raised")
            ends[it.kind].append((raised.detail, raised.at - it.at("sent")))
        pipe.send(json.dumps(ends))
        pipe.recv()  # confirms come again
        pipe.send(client.call({}, "take", arg="number-1000001"))


@pytest.mark.parametrize(
    "hours",
    [
        pytest.param(1, id="forward"),
        pytest.param(-1, id="back", marks=pytest.mark.slow),
    ],
)
@bounds(promised=0.05, generous=GENEROUS_S)
def test_setting_the_clock_moves_no_timeout(
    fast, peers, proxy, topic, tmp_path, monkeypatch, library, figure, hours, bound
):
    file = tmp_path / "clock"
    file.write_text("+0")
    account = Account()
    peers.server(fast, Accounting(account, "server"), topic=topic)
    for name, value in {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": file,
        "FAKETIME_NO_CACHE": 1,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        "DONT_FAKE_MONOTONIC": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    url = proxy.url("rabbit")
    child = peers.child(wait_with_a_clock, url, str(tmp_path), topic)
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        monkeypatch.delenv(name)
    assert "LD_PRELOAD" not in os.environ

    before = child.receive() - time.time()
    proxy.treat_confirms(b"number-")
    published = len(proxy.publications())
    child.send("go on")
    proxy.wait_for(
        lambda: sum(map(published_on, proxy._links)) >= published + 2 * WAITING,
        what="the calls and the casts",
    )
    file.write_text(f"{hours * HOUR:+d}")
    child.send("set")
    after = child.receive() - time.time()
    assert abs(before) < 60
    assert abs(after - hours * HOUR) < 60, "the clock was not set"
    ends = json.loads(child.receive(60))
    proxy.treat_confirms(None)
    child.send("go on")

    assert child.receive() == "number-1000001"
    late = {
        kind: [seconds - LIMIT_S for _, seconds in each] for kind, each in ends.items()
    }
    median = {kind: statistics.median(each) for kind, each in late.items()}
    figure(
        17,
        f"{hours:+d} h",
        ", ".join(f"{kind} {median[kind] * 1000:+.0f} ms" for kind in median),
    )
    assert all(len(each) == WAITING for each in late.values())
    assert all(text.startswith("MessagingTimeout") for text, _ in ends["call"])
    assert all(text.startswith("MessageDeliveryFailure") for text, _ in ends["cast"])
    assert all(each < bound for each in median.values())
    assert all(-0.01 < each < GENEROUS_S for both in late.values() for each in both)
    assert len(proxy.links()) == 2, "a connection was made anew"


def published_on(link):
    return sum(1 for _, frame in link.sent if frame.name == "basic.publish")
