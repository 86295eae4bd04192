"""Who takes part: drivers as pairs of processes, the floor, and the null driver.

Every contender keeps its processes, and so its connections, for the whole run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import urllib.parse
import uuid
from typing import Any

import cases
import plain_amqp
import processes
from private_broker import NamedBroker, PrivateBroker

HERE = pathlib.Path(__file__).resolve().parent
EXCHANGE = "fastmsg_bench"  # that of services may have other flags
HANDLING_PATIENCE_S = 120

# A measurement's figures by name, as in the JSON: count, rate, p50_us, p99_us,
# max_us, and CPU microseconds per message of client, server and broker.
Sample = dict[str, float]


class MissingError(Exception):
    """Something that a contender needs is not installed."""


class Broker:
    """The broker as the benchmark sees it."""

    def __init__(self, node: PrivateBroker | NamedBroker) -> None:
        self._node = node
        host = _first_host(node.url())
        self.port = host.port or 5672
        self.pid: int | None = None  # None: elsewhere, or not ours to look at
        if host.hostname in ("127.0.0.1", "localhost", "::1"):
            pid = processes.listener_pid(self.port)
            self.pid = pid if pid is not None and _is_erlang(pid) else None

    def url(self, scheme: str) -> str:
        """Return the transport URL with a scheme."""
        return self._node.url(scheme)

    def cpu_s(self) -> float | None:
        """Return the broker's CPU time so far."""
        return None if self.pid is None else processes.cpu_s(self.pid)

    def remove(self, queues: list[str]) -> None:
        """Leave nothing on somebody else's broker."""
        if isinstance(self._node, NamedBroker):
            with plain_amqp.connect(self._node.url()) as connection:
                plain_amqp.remove(connection, queues, EXCHANGE)

    def channels(self) -> dict[int, int] | None:
        """Return the number of channels by the client's port; None: not told."""
        if isinstance(self._node, NamedBroker):
            return None
        # A connection's name is "<client>:<port> -> <broker>:<port>".
        return {
            int(each["name"].partition(" ")[0].rpartition(":")[2]): each["channels"]
            for each in self._node.connections()
        }


def _first_host(url: str) -> urllib.parse.SplitResult:
    """Return the first host of a transport URL, with its login, split."""
    rest = url.partition("://")[2]
    return urllib.parse.urlsplit(f"//{rest.partition('/')[0].split(',')[0]}")


def _is_erlang(pid: int) -> bool:
    return "beam" in pathlib.Path(f"/proc/{pid}/comm").read_text()


class Contender:
    """A way to make calls. Subclasses start processes and give them orders."""

    operations: tuple[str, ...] = ("call",)

    def __init__(self, name: str, label: str) -> None:
        self.name = name  # on the command line and in the JSON
        self.label = label  # in tables
        self.client: processes.Peer | None = None
        self.server: processes.Peer | None = None

    def takes(self, row: cases.Row) -> bool:
        """Tell whether this row makes sense here."""
        return row.operation in self.operations

    def start(self, broker: Broker, logs: pathlib.Path) -> None:
        """Start the processes; they are ready when this returns."""
        raise NotImplementedError

    def measure(self, row: cases.Row, seconds: float, broker: Broker) -> Sample:
        """Run a row once."""
        server_before_s = self._server_cpu_s()
        broker_before_s = broker.cpu_s()
        result = self._order(row, seconds)
        server_after_s = self._server_cpu_s()
        broker_after_s = broker.cpu_s()

        count = result["count"]
        sample = {
            "count": count,
            "rate": count / result["elapsed_s"],
            "client_cpu_us": result["cpu_s"] / count * 1e6,
            **{key: result[key] for key in ("p50_us", "p99_us", "max_us")},
        }
        if server_before_s is not None and server_after_s is not None:
            used_s = server_after_s - server_before_s
            sample["server_cpu_us"] = used_s / count * 1e6
        if broker_before_s is not None and broker_after_s is not None:
            used_s = broker_after_s - broker_before_s
            sample["broker_cpu_us"] = used_s / count * 1e6
        return sample

    def _order(self, row: cases.Row, seconds: float) -> dict[str, Any]:
        """Have the row run; `elapsed_s` ends when the last message was handled."""
        raise NotImplementedError

    def _server_cpu_s(self) -> float | None:
        return None if self.server is None else processes.cpu_s(self.server.pid)

    def peers(self) -> dict[str, processes.Peer]:
        """Return the processes by role."""
        both = {"client": self.client, "server": self.server}
        return {role: peer for role, peer in both.items() if peer is not None}

    def queues(self) -> list[str]:
        """Return the names of the queues that stay when the processes are gone."""
        return []


class OsloContender(Contender):
    """A transport driver: a client process and a server process."""

    operations = ("call", "cast", "notify")

    def __init__(
        self,
        name: str,
        label: str,
        scheme: str,
        *,
        python: str = sys.executable,
        blocking_wait: bool = False,
    ) -> None:
        super().__init__(name, label)
        self._scheme = scheme
        self._python = python
        self._options = ["--blocking-wait"] if blocking_wait else []
        self._environment: dict[str, str] = {}
        self._topic = f"bench_{name.replace('-', '_')}_{uuid.uuid4().hex[:8]}"
        self.release = ""  # of oslo.messaging
        self.polls = False  # whether that release's stock driver polls for replies

    def start(self, broker: Broker, logs: pathlib.Path) -> None:
        topic = self._topic
        environment = {
            "BENCH_URL": broker.url(self._scheme),
            "OS_DEFAULT__CONTROL_EXCHANGE": EXCHANGE,
            **self._environment,
        }
        peers = {}
        for role in ("server", "client"):
            script = str(HERE / "peer.py")
            peers[role] = processes.Peer(
                [self._python, script, role, topic, *self._options],
                environment,
                logs / f"{self.name}-{role}.log",
            )
        self.server, self.client = peers["server"], peers["client"]
        for peer in peers.values():
            hello = peer.hear()
        self.release, self.polls = hello["release"], hello["polls"]

    def _order(self, row: cases.Row, seconds: float) -> dict[str, Any]:
        assert self.client is not None
        assert self.server is not None
        tag = uuid.uuid4().hex
        if row.operation != "call":
            self.server.ask_json(do="expect", tag=tag)
        result = self.client.ask_json(
            do="measure", seconds=seconds, tag=tag, **dataclasses.asdict(row)
        )
        if row.operation != "call":
            handled = self.server.ask_json(
                patience_s=HANDLING_PATIENCE_S + 5,
                do="handled",
                count=result["count"],
                within_s=HANDLING_PATIENCE_S,
            )
            if handled["count"] != result["count"]:
                raise processes.PeerFailedError(
                    f"{self.name}, {row.name}: {result['count']} messages were sent"
                    f" and {handled['count']} were handled"
                )
            result["elapsed_s"] = (handled["last_ns"] - result["started_ns"]) / 1e9
        return result

    def queues(self) -> list[str]:
        topic = self._topic
        return [topic, f"{topic}.server1", f"{topic}_notifications.info"]


class EnvelopeContender(OsloContender):
    """The driver on trial with another envelope: calls alone."""

    operations = ("call",)

    def __init__(self, name: str, scheme: str, envelope: str) -> None:
        super().__init__(name, f"fastmsg, envelope {envelope}", scheme)
        self._environment = {"OS_OSLO_MESSAGING_FASTMSG__ENVELOPE": envelope}

    def takes(self, row: cases.Row) -> bool:
        return super().takes(row) and row.threads in (1, 16)


class LayerContender(Contender):
    """oslo.messaging over the null driver, in one process."""

    def __init__(self, name: str, label: str, url: str) -> None:
        super().__init__(name, label)
        self._url = url  # see null_driver.py
        if url == "null://client":  # a server would fall behind its casts
            self.operations = ("call", "cast")

    def start(self, broker: Broker, logs: pathlib.Path) -> None:
        script = str(HERE / "peer.py")
        command = [sys.executable, script, "both", "null"]
        environment = {"BENCH_URL": self._url}
        self.client = processes.Peer(command, environment, logs / f"{self.name}.log")
        self.client.hear()

    def _order(self, row: cases.Row, seconds: float) -> dict[str, Any]:
        assert self.client is not None
        # Nobody else is measured here, so a shorter time gives as good a figure.
        return self.client.ask_json(
            do="measure", seconds=seconds / 2, tag="", **dataclasses.asdict(row)
        )


class FloorContender(Contender):
    """floor.c, sending bodies of the same length as the drivers' requests."""

    def __init__(self, name: str, label: str, *, safe: bool = False) -> None:
        super().__init__(name, label)
        self._options = ["safe"] if safe else []
        if safe:  # a cast is over when it is confirmed
            self.operations = ("call", "cast")

    def start(self, broker: Broker, logs: pathlib.Path) -> None:
        program = str(compile_floor(logs))
        queue = f"bench_floor_{uuid.uuid4().hex[:8]}"
        environment = {"FLOOR_URL": _amqp_url(broker.url("amqp"))}
        for role in ("server", "client"):
            peer = processes.Peer(
                [program, role, queue, *self._options],
                environment,
                logs / f"{self.name}-{role}.log",
            )
            setattr(self, role, peer)
            peer.hear()

    def _order(self, row: cases.Row, seconds: float) -> dict[str, Any]:
        assert self.client is not None
        body_len = len(cases.envelope(cases.request(row.size)))
        return self.client.ask(
            f"{row.operation} {row.threads} {body_len} {int(seconds * 1000)}"
        )


def compile_floor(directory: pathlib.Path) -> pathlib.Path:
    """Compile floor.c against the system's rabbitmq-c."""
    program = directory / "floor"
    source = HERE / "floor.c"
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "librabbitmq"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run(
            [
                *compiler,
                *("-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread"),
                *("-Wall", "-Wextra", "-Werror"),
                *(str(source), "-o", str(program)),
                *shlex.split(flags),
            ],
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingError(
            "the floor was not compiled: it needs a C compiler, pkg-config and"
            f" librabbitmq-dev ({error})"
        ) from error
    return program


def _amqp_url(url: str) -> str:
    """Return a transport URL's first host in the form that rabbitmq-c reads."""
    rest, _, query = url.partition("://")[2].partition("?")
    if "ssl" in query:
        raise MissingError("the floor is not measured: it knows no TLS")
    vhost = urllib.parse.unquote(rest.partition("/")[2]) or "/"
    return f"amqp://{_first_host(url).netloc}/{urllib.parse.quote(vhost, safe='')}"


def close_all(contenders: list[Contender], broker: Broker) -> None:
    """End every contender's processes and remove their queues."""
    peers = [peer for each in contenders for peer in each.peers().values()]
    with contextlib.ExitStack() as stack:  # whatever becomes of one of them
        stack.callback(broker.remove, [q for each in contenders for q in each.queues()])
        for peer in peers:
            peer.end()  # all at once: each may take seconds
            stack.callback(peer.close)
