"""The processes of a measurement, seen from outside: orders, CPU, memory, sockets.

Linux alone. Everything is read from /proc and from the processes' CPU clocks,
so being measured costs a process nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import subprocess
import time
from typing import Any

ESTABLISHED = "01"
LISTENING = "0A"


class PeerFailedError(Exception):
    """A process of the benchmark ended, or did not answer in time."""


class Peer:
    """A child that answers a line for each line; see peer.py and floor.c."""

    def __init__(
        self, command: list[str], environment: dict[str, str], log: pathlib.Path
    ) -> None:
        """Start it; what it logs goes into a file."""
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **environment},
            )
        self.pid = self._process.pid
        self._unread = b""

    def ask(self, line: str, patience_s: float = 60) -> dict[str, Any]:
        """Send an order, wait for its answer."""
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended") from None
        return self.hear(patience_s)

    def ask_json(self, patience_s: float = 60, **order: Any) -> dict[str, Any]:
        """Send an order of a peer.py."""
        return self.ask(json.dumps(order), patience_s)

    def hear(self, patience_s: float = 60) -> dict[str, Any]:
        """Wait for the next line of the child."""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._stdout], [], [], left_s)[0]:
                raise self._failure(f"did not answer within {patience_s:g} s")
            some = os.read(self._stdout.fileno(), 1 << 16)
            if not some:
                raise self._failure("ended")
            self._unread += some
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End its input, which ends it, and do not wait for that."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def close(self, patience_s: float = 15) -> None:
        """End it and wait; kill it if it takes too long."""
        self.end()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def _failure(self, what: str) -> PeerFailedError:
        last_lines = self._log.read_text(errors="replace").splitlines()[-15:]
        command = " ".join(map(str, self._process.args))
        return PeerFailedError("\n  ".join([f"{command} {what}:", *last_lines]))


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, that of ended threads included."""
    # What clock_getcpuclockid(3) returns: the complement of the pid over three
    # bits, of which 2 selects the scheduler's nanoseconds. The figures in
    # /proc/<pid>/stat count in ticks of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def machine_cpu_s() -> float:
    """Return the CPU time of all processes so far, interrupts left out."""
    first = pathlib.Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system = map(int, first.split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int) -> dict[str, int]:
    """Return the resident memory of a process: now, and the most it ever was."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "rss": int(fields["VmRSS"].split()[0]),
        "peak": int(fields["VmHWM"].split()[0]),
    }


def threads(pid: int) -> int:
    """Return the number of threads of a process."""
    return len(list(pathlib.Path(f"/proc/{pid}/task").iterdir()))


def local_ports(pid: int, broker_port: int) -> list[int]:
    """Return the local port of each TCP connection of a process to the broker."""
    sockets = _sockets_of(pid)
    return [
        local_port
        for local_port, remote_port, state, inode in _tcp_table()
        if remote_port == broker_port and state == ESTABLISHED and inode in sockets
    ]


def listener_pid(port: int) -> int | None:
    """Return the process that listens on a port, if it is here and visible."""
    inodes = {
        inode
        for local_port, _, state, inode in _tcp_table()
        if local_port == port and state == LISTENING
    }
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and inodes & _sockets_of(int(entry.name)):
            return int(entry.name)
    return None


def _sockets_of(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open."""
    inodes = set()
    try:
        descriptors = list(pathlib.Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # somebody else's process, or one that ended just now
        return inodes
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # closed just now
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    return inodes


def _tcp_table() -> list[tuple[int, int, str, str]]:
    """Return local port, remote port, state and inode of each TCP socket."""
    table = []
    for name in ("tcp", "tcp6"):
        path = pathlib.Path("/proc/net") / name
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            local_port = int(fields[1].rpartition(":")[2], 16)
            remote_port = int(fields[2].rpartition(":")[2], 16)
            table.append((local_port, remote_port, fields[3], fields[9]))
    return table
