"""Nothing grows with what a process has done: it is the same after a long time."""

from typing import Any

import pytest
from fix_objects import wait_until
from fix_scenes import Scene

#: Calls, deliveries to a listener, transports, servers.
SHORT = (10**4, 10**3, 10, 10)
FULL = (10**6, 10**5, 1000, 1000)
MEGABYTE = 1 << 20


def of_process(broker: Any, pid: int) -> tuple[int, int]:
    """Count a process's connections at the broker, and their channels."""
    rows = [
        row
        for row in broker.connections()
        if f":{pid}:" in str(row["client_properties"].get("connection_name"))
    ]
    return len(rows), sum(row["channels"] for row in rows)


@pytest.mark.parametrize(
    "counts",
    [
        SHORT,
        pytest.param(FULL, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
    ids=["short", "full"],
)
def test_a_process_is_flat(broker, fast, topic, counts):
    limit = max(60, counts[0] / 100)
    with Scene("flat", broker.url("fastmsg"), topic, *counts) as it:
        seen = {}
        for moment in ("warm", "done"):
            seen[moment] = it.expect(moment, limit)
            # The last of those that were closed may be on their way.
            wait_until(lambda: of_process(broker, it.pid)[0] == 2, 30)
            seen[moment]["at the broker"] = of_process(broker, it.pid)
            seen[moment]["queues"] = sorted(
                row["name"]
                for row in broker.queues()
                # Those of cleaned transports are deleted, or expire.
                if not row["name"].startswith("reply_")
            )
            seen[moment]["messages"] = sum(row["messages"] for row in broker.queues())
            it.tell()
        assert it.end(60) == (0, "")

    warm, done = seen["warm"], seen["done"]
    print(f"\nwarm {warm}\ndone {done}")
    assert done["rss"] - warm["rss"] < 5 * MEGABYTE
    assert done["descriptors"] == warm["descriptors"]
    assert done["threads"] == warm["threads"]
    # Caches and interned texts, not something for each message.
    assert done["objects"] - warm["objects"] < 500
    assert done["references"] - warm["references"] < 2000
    for what in ("at the broker", "queues", "messages"):
        assert done[what] == warm[what]
