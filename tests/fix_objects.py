"""Counts what a process holds: threads, descriptors, TCP connections.

All of it as the kernel sees it (procfs), so that native threads and sockets
of C code count too.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["connections_to", "descriptors", "threads", "wait_until"]


def wait_until(
    condition: Callable[[], object], timeout: float = 10.0, what: str = "condition"
) -> None:
    """Look until something outside of this thread's reach has become true.

    :raises AssertionError: it has not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.01)


def threads(pid: int | None = None) -> list[str]:
    """Name each thread of a process, native ones included."""
    names = []
    tasks = Path(f"/proc/{pid or 'self'}/task")
    for task in os.listdir(tasks):
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.append((tasks / task / "comm").read_text().strip())
    return sorted(names)


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Tell what each open descriptor of a process refers to."""
    found = {}
    folder = f"/proc/{pid or 'self'}/fd"
    for number in os.listdir(folder):
        # The one that lists the folder is gone by now.
        with contextlib.suppress(OSError):
            found[int(number)] = os.readlink(f"{folder}/{number}")
    return found


def connections_to(port: int, pid: int | None = None) -> int:
    """Count a process's established connections to a port of 127.0.0.1."""
    sockets = set(descriptors(pid).values())
    count = 0
    lines = Path(f"/proc/{pid or 'self'}/net/tcp").read_text().splitlines()[1:]
    for line in lines:
        fields = line.split()
        remote_port = int(fields[2].rpartition(":")[2], 16)
        is_established = fields[3] == "01"
        if remote_port == port and is_established:
            count += f"socket:[{fields[9]}]" in sockets
    return count
