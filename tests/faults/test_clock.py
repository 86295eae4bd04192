"""Row 17: the clock is set by an hour while things wait.

Of one process alone, by Debian's faketime; the monotonic clock goes on.
"""

import glob
import json
import os
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


@pytest.fixture
def library():
    (found,) = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found


def wait_with_a_clock(pipe: Connection, url: str, directory: str, topic: str) -> None:
    """Have a call and a cast wait while the clock is set; tell how long."""
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
        threads = [threading.Thread(target=send) for send in sends]
        for thread in threads:
            thread.start()
        pipe.recv()  # the clock has been set
        pipe.send(time.time())
        for thread in threads:
            thread.join(60)
        times = {
            it.kind: (it.all("raised")[0].detail, it.at("raised") - it.at("sent"))
            for it in account.entries()
        }
        pipe.send(json.dumps(times))
        pipe.recv()  # confirms come again
        pipe.send(client.call({}, "take", arg="number-1000001"))


@pytest.mark.parametrize(
    "hours",
    [
        pytest.param(1, id="forward"),
        pytest.param(-1, id="back", marks=pytest.mark.slow),
    ],
)
@bounds(promised=0.05, generous=2.0)
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
        lambda: sum(map(published_on, proxy._links)) >= published + 2,
        what="a call and a cast",
    )
    file.write_text(f"{hours * HOUR:+d}")
    child.send("set")
    after = child.receive() - time.time()
    assert abs(before) < 60
    assert abs(after - hours * HOUR) < 60, "the clock was not set"
    times = json.loads(child.receive(60))
    proxy.treat_confirms(None)
    child.send("go on")

    assert child.receive() == "number-1000001"
    late = {kind: seconds - LIMIT_S for kind, (_, seconds) in times.items()}
    figure(
        17,
        f"{hours:+d} h",
        ", ".join(f"{kind} {late[kind] * 1000:+.0f} ms" for kind in sorted(late)),
    )
    assert times["call"][0].startswith("MessagingTimeout")
    assert times["cast"][0].startswith("MessageDeliveryFailure")
    assert all(-0.01 < each < bound for each in late.values())
    assert len(proxy.links()) == 2, "a connection was made anew"


def published_on(link):
    return sum(1 for _, frame in link.sent if frame.name == "basic.publish")
