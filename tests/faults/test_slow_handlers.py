"""Row 15: a server with slow handlers and a long queue is killed."""

import json
import time
from pathlib import Path

import pytest
from fix_load import MARK, serve_in_child
from fix_objects import wait_until
from fix_processes import connections_of
from fix_wire import request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

WORKERS = 4
INTAKE = 2 * WORKERS
MANY = 100_000
HEARTBEAT_S = 2


def rss_mb(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def serve_a_long_queue(fast, peers, broker, spy, tmp_path, topic, account, intake):
    """Queue casts for a server that is slow, and kill it; give what was taken
    and did not run, by how many MB it grew, and its connections in the end."""
    spec = {"topic": topic, "name": "slow", "journal": str(tmp_path / "slow")}
    spec |= {"threads": WORKERS, "takes_s": 0.2}
    spec["rabbit"] = {"heartbeat_timeout_threshold": HEARTBEAT_S}
    url = broker.url("rabbit", rpc_intake=intake)
    child = peers.child(serve_in_child, fast, url, str(tmp_path), json.dumps(spec))
    assert child.receive() == "serving"
    numbers = [account.new("cast") for _ in range(MANY)]
    before_mb = rss_mb(child.pid)
    connections = connections_of(broker, child.pid)
    padding = "." * 1000
    for start in range(0, MANY, 5000):
        bodies = [
            request("take", arg=f"{MARK}{number}{padding}")
            for number in numbers[start : start + 5000]
        ]
        spy.send_many("openstack", topic, bodies)
    for number in numbers:
        account.note(number, "confirmed")
    # Slow for several heartbeats, and nothing is done about them.
    until = time.monotonic() + 4 * HEARTBEAT_S
    wait_until(lambda: time.monotonic() > until, 5 * HEARTBEAT_S)
    grown_mb = rss_mb(child.pid) - before_mb
    kept = connections_of(broker, child.pid) == connections
    child.kill()
    account.read(tmp_path / "slow")
    wait_until(lambda: not broker.consumers(), 20, "the end of the server's consumers")
    left = broker.queue(topic)["messages"]
    return MANY - left - account.count("executed"), grown_mb, kept


def test_what_a_killed_server_had_taken_is_bounded(
    fast, peers, broker, spy, tmp_path, topic, account, figure
):
    taken, grown_mb, kept = serve_a_long_queue(
        fast, peers, broker, spy, tmp_path, topic, account, INTAKE
    )

    figure(
        15,
        f"{MANY} casts, {WORKERS} workers, rpc_intake {INTAKE}",
        f"{taken} taken and not run, +{grown_mb:.0f} MB",
    )
    assert kept, "heartbeats were missed"
    assert taken <= 2 * WORKERS
    assert grown_mb < 50
