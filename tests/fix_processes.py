"""What the broker sees of one process, and whether a call was quick."""

import re
import statistics
from typing import Any

from fix_objects import wait_until

__all__ = [
    "Connections",
    "bound_ms",
    "connections_of",
    "missed_heartbeats",
    "settled_connections",
]

#: Connections of one process: (purpose, its local port), in order.
Connections = list[tuple[str, int]]


def connections_of(broker: Any, pid: int) -> Connections:
    """Tell which connections of a process stand, as the broker has it.

    A connection that was made anew has another local port: the kernel gives
    the old one to nobody else for a minute.
    """
    found = []
    for row in broker.connections():
        # Without a name as long as it has not said hello.
        name = row["client_properties"].get("connection_name", "")
        parts = re.fullmatch(r".*:(\d+):[0-9a-f-]{36}:(.*)", name)
        if parts is not None and int(parts[1]) == pid:
            port = re.match(r"[\d.]+:(\d+) -> ", row["name"])
            assert port is not None, row["name"]
            found.append((parts[2], int(port[1])))
    return sorted(found)


def settled_connections(broker: Any, pid: int) -> Connections:
    """Give the two connections of a process that calls or serves."""
    found: Connections = []

    def both() -> bool:
        found[:] = connections_of(broker, pid)
        return len(found) == 2

    wait_until(both, 40, f"two connections of {pid}")
    assert [purpose for purpose, _ in found] == ["fastmsg-consume", "fastmsg-publish"]
    return found


def missed_heartbeats(log: str, pid: int) -> list[str]:
    """Give the lines of a broker's log that say so of a process's connections."""
    lines = re.findall(r"^(.*)\n.*missed heartbeats from client", log, re.MULTILINE)
    return [line for line in lines if f":{pid}:" in line]


def bound_ms(warm_ms: list[float]) -> float:
    """How long a call may take that was not to connect: generous."""
    return 10 * statistics.median(warm_ms) + 50
