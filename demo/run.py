#!/usr/bin/env python3
"""Show oslo-fastmsg at work: classic oslo.messaging programs over fastmsg://.

Every scene runs the scripts of this directory as processes of their own,
prints what they print, and checks it. The last one compares speeds. Exit
status 0 if everything was as it should be.

Without TRANSPORT_URL a private RabbitMQ is started, and stopped at the end. With
it, name a broker or virtual host on which nobody else uses the topics test,
conductor, notification and notification_bis; their queues are removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

import plain_amqp  # noqa: E402 - the path is known only now
from private_broker import NamedBroker, PrivateBroker  # noqa: E402

PATIENCE_S = 20
BENCH_PATIENCE_S = 90
# Apart from that of services, whose exchange may have other flags.
EXCHANGE = "fastmsg_demo"
QUEUES = [
    "test",
    *(f"test.server{number}" for number in (1, 2, 3)),
    "conductor",
    "conductor.conductor1",
    *(
        f"{topic}.{priority}"
        for topic in ("notification", "notification_bis")
        for priority in ("warn", "error")
    ),
]


class SceneError(Exception):
    """Something was not as it should be."""


def say(text: str = "") -> None:
    """Print at once, so that a pipe shows progress as well."""
    print(text, flush=True)


def check(is_right: bool, claim: str) -> None:
    """Print a claim that holds; raise if it does not."""
    if not is_right:
        raise SceneError(f"not so: {claim}")
    say(f"  ok: {claim}")


class Program:
    """One script of this directory as a process; prints and keeps its lines."""

    def __init__(self, name: str, script: str, *arguments: str, url: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._new_lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        environment = {
            **os.environ,
            "TRANSPORT_URL": url,
            "OS_DEFAULT__CONTROL_EXCHANGE": EXCHANGE,
            # Of oslo.messaging's dependencies, about each other.
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                say(f"  [{self.name}] {line.rstrip()}")
                self._new_lines.put(line.rstrip())
        self._new_lines.put(None)

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until so many of its lines hold a text."""
        deadline = time.monotonic() + PATIENCE_S
        while sum(text in line for line in self.lines) < count:
            try:
                line = self._new_lines.get(timeout=deadline - time.monotonic())
            except (queue.Empty, ValueError):  # ValueError: the time is over
                raise SceneError(f"{self.name} did not print {text!r}") from None
            if line is None:
                raise SceneError(f"{self.name} ended without printing {text!r}")
            self.lines.append(line)

    def finish(self) -> list[str]:
        """Wait for its end; return all that it printed."""
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise SceneError(f"{self.name} does not end") from None
        self._reader.join()
        while (line := self._new_lines.get()) is not None:
            self.lines.append(line)
        if status != 0:
            raise SceneError(f"{self.name} ended with status {status}")
        return self.lines

    def terminate(self) -> list[str]:
        """Ask it to end, wait, and return all that it printed."""
        self._process.send_signal(signal.SIGTERM)
        return self.finish()

    def kill(self) -> None:
        """End it if it still runs."""
        self._process.kill()
        self._process.wait()
        self._reader.join()


class Stage:
    """The broker, the two schemes, and the programs that a scene has started."""

    def __init__(
        self, node: PrivateBroker | NamedBroker, fast_scheme: str, is_quick: bool
    ) -> None:
        self.node = node
        self.fast = node.url(fast_scheme)
        self.stock = node.url("rabbit")
        self.fast_scheme = fast_scheme
        self.is_quick = is_quick
        self._programs: list[Program] = []

    def start(self, name: str, script: str, *arguments: str, url: str = "") -> Program:
        """Start a program, over the fast driver unless told otherwise."""
        program = Program(name, script, *arguments, url=url or self.fast)
        self._programs.append(program)
        return program

    def serve(self, name: str, script: str, *arguments: str, url: str = "") -> Program:
        """Start a program that listens, and wait until it does."""
        program = self.start(name, script, *arguments, url=url)
        program.wait_for("listening")
        return program

    def run(self, name: str, script: str, *arguments: str, url: str = "") -> list[str]:
        """Run a program to its end; return its lines."""
        return self.start(name, script, *arguments, url=url).finish()

    def clear(self) -> None:
        """End what a failed scene left running."""
        for program in self._programs:
            program.kill()
        self._programs.clear()


def scene_rpc(stage: Stage) -> None:
    """RPC: a server, a client, and what the broker sees of them."""
    server = stage.serve("server1", "server.py", "--server", "server1")
    stage.run("client", "client.py", "--arg", "hello over C")
    show_broker(stage)
    stage.run("client", "client.py", "--arg", "and good-bye", "--stop")
    server.wait_for("stop()")
    server.finish()
    check("test(arg='hello over C')" in server.lines, "the server saw the call")
    check("stopped" in server.lines, "cast control.stop() stopped it")


def show_broker(stage: Stage) -> None:
    """Print the broker's consumers and connections while a server listens."""
    if isinstance(stage.node, NamedBroker):
        show_queues_by_amqp(stage.stock)
        return
    consumers = sorted(each["queue_name"] for each in stage.node.consumers())
    for name in consumers:
        say(f"  [broker] consumer of {name}")
    wanted = ["test", "test.server1", "test_fanout_"]
    found = [re.sub(r"^(test_fanout_)[0-9a-f]{32}$", r"\1", name) for name in consumers]
    check(found == wanted, "one consumer each: test, test.server1, test_fanout_<hex>")

    connections = stage.node.connections()
    for each in connections:
        name = each["client_properties"].get("connection_name", "no name")
        say(f"  [broker] connection {name}: {each['channels']} channels")
    check(len(connections) <= 2, f"the server has {len(connections)} connections")


def show_queues_by_amqp(url: str) -> None:
    """Print what any AMQP client may ask: who consumes from a known queue."""
    counts = []
    with plain_amqp.connect(url) as connection:
        for name in ("test", "test.server1"):
            counts.append(plain_amqp.consumers(connection, name))
            say(f"  [broker] queue {name}: {counts[-1]} consumers")
    say("  (AMQP tells nobody the fanout queue's random name or the connections:")
    say("  these are shown with a private broker)")
    check(counts == [1, 1], "one consumer each: test, test.server1")


def scene_fanout(stage: Stage) -> None:
    """A fanout: one cast, three servers."""
    names = ("server1", "server2", "server3")
    servers = [stage.start(name, "server.py", "--server", name) for name in names]
    for server in servers:
        server.wait_for("listening")
    stage.run("fanout", "fanout.py", "--arg", "to all", "--stop")
    for server in servers:
        lines = server.finish()
        count = lines.count("test(arg='to all')")
        check(count == 1, f"{server.name} received the fanout once")


def scene_notifications(stage: Stage) -> None:
    """Notifications: two topics, a warn endpoint with a filter, an error one."""
    listener = stage.serve("listener", "notification_listener.py")
    stage.run("notifier", "notifier.py")
    listener.wait_for("error: compute.instance.create.error", count=2)
    listener.wait_for("warn: disk.low", count=2)
    lines = listener.terminate()
    errors = [line for line in lines if line.startswith("error: ")]
    check(
        len(errors) == 2 and all("'display_name': 'web-1'" in line for line in errors),
        "the error came with its instance, once for each topic",
    )
    check(
        sum("disk.low" in line for line in lines) == 2,
        "so did the warning of compute.host1",
    )
    check(
        not any("port.slow" in line for line in lines),
        "the filter kept the warning of network.host1 away",
    )


def scene_conductor(stage: Stage) -> None:
    """A conductor: objects in a cast, and an exception that keeps its class."""
    conductor = stage.serve("conductor", "conductor.py")
    lines = stage.run("api", "compute_api.py")
    check(
        any(line.startswith("except faults.InstanceNotFound:") for line in lines),
        "the remote exception arrived as its class",
    )
    conductor.wait_for("build_instances: web-1")
    built = [line for line in conductor.terminate() if "build_instances" in line]
    size = int(re.search(r"(\d+) B of arguments", built[0]).group(1))
    check(len(built) == 1 and size > 1900, f"the cast brought objects of {size} B")


def scene_interop(stage: Stage) -> None:
    """Stock and fast peers: the same exchange, both ways."""
    pairs = [
        ("fast", stage.fast, "stock", stage.stock),
        ("stock", stage.stock, "fast", stage.fast),
    ]
    for server_kind, server_url, client_kind, client_url in pairs:
        server = stage.serve(f"{server_kind} server", "server.py", url=server_url)
        client = f"{client_kind} client"
        stage.run(client, "client.py", "--arg", "one wire", "--stop", url=client_url)
        lines = server.finish()
        check(
            "test(arg='one wire')" in lines and "stopped" in lines,
            f"a {client_kind} client called and stopped a {server_kind} server",
        )


def scene_speed(stage: Stage) -> None:
    """Speed: stock as installed, stock with a blocking wait, fastmsg."""
    rows = (
        ["call-1-200"] if stage.is_quick else ["call-1-200", "call-16-2k", "call-64-2k"]
    )
    drivers = ["stock", "stock-blocking", "fastmsg"]
    with tempfile.TemporaryDirectory(prefix="oslo-fastmsg-") as directory:
        command = [sys.executable, str(ROOT / "tests" / "bench" / "run.py")]
        command += ["--url", stage.fast, "--fast-scheme", stage.fast_scheme]
        command += ["--rows", ",".join(rows), "--drivers", ",".join(drivers)]
        command += ["--rounds", "1" if stage.is_quick else "3"]
        command += ["--seconds", "0.3" if stage.is_quick else "1.0"]
        command += ["--no-codec", "--brief", "--out", directory]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        ) as bench:
            timer = threading.Timer(BENCH_PATIENCE_S, bench.kill)
            timer.start()
            assert bench.stdout is not None
            for line in bench.stdout:
                if not line.startswith("note: "):  # shown with the table
                    say(f"  [bench] {line.rstrip()}")
            timer.cancel()
        if bench.returncode != 0:
            raise SceneError(f"the benchmark ended with status {bench.returncode}")
        result = json.loads((Path(directory) / "bench.json").read_text())
    print_speeds(result, rows)


def print_speeds(result: dict[str, Any], rows: list[str]) -> None:
    """Print the table, and check that fast is fast."""
    titles = {
        "call-1-200": "1 thread, 200 B",
        "call-16-2k": "16 threads, 2 kB",
        "call-64-2k": "64 threads, 2 kB",
    }
    labels = result["labels"]
    width = max(map(len, labels.values())) + 2
    say()
    say(f"  {'':{width}}{'calls/s':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for row in rows:
        say(f"  {titles[row]}")
        for name, label in labels.items():
            figures = result["medians"][row][name]
            say(
                f"    {label:{width - 2}}{figures['rate']:>10,.0f}"
                f"{figures['p50_us'] / 1000:>10.2f}{figures['p99_us'] / 1000:>10.2f}"
            )
    say()
    for name, by_role in result["resources"].items():
        counts = ", ".join(f"{role} {by_role[role]['tcp']}" for role in by_role)
        say(f"  TCP connections, {labels[name]}: {counts}")
    for note in result["notes"]:
        say(f"  note: {note}")
    say()
    for row in rows:
        figures = result["medians"][row]
        ratio = figures["fastmsg"]["rate"] / figures[result["reference"]]["rate"]
        check(ratio > 1, f"{titles[row]}: {ratio:.1f} times as many calls as stock")


SCENES: list[Callable[[Stage], None]] = [
    scene_rpc,
    scene_fanout,
    scene_notifications,
    scene_conductor,
    scene_interop,
    scene_speed,
]


def main() -> int:
    """Play all scenes; return the exit status: 0, 1 wrong, 2 not even begun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a shorter comparison")
    parser.add_argument("--fast-scheme", default="fastmsg", help="driver to show")
    options = parser.parse_args()
    # By way of an exception, so that the programs and the broker end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started_s = time.monotonic()

    url = os.environ.get("TRANSPORT_URL")
    say("Using your broker." if url else "Starting a private RabbitMQ ...")
    results = {}
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(NamedBroker(url) if url else PrivateBroker())
        if isinstance(node, NamedBroker):
            try:
                with plain_amqp.connect(node.url()) as connection:
                    in_use = plain_amqp.queues_in_use(connection, QUEUES)
            except plain_amqp.ERRORS as error:
                say(f"Your broker does not let us in: {error}")
                return 2
            if in_use:
                say(f"Somebody else uses {', '.join(in_use)}: name another broker")
                return 2
            stack.callback(remove_queues, node)
        stage = Stage(node, options.fast_scheme, options.quick)
        stack.callback(stage.clear)
        for number, scene in enumerate(SCENES, 1):
            title = str(scene.__doc__).rstrip(".")
            elapsed_s = time.monotonic() - started_s
            say(f"\n{number}/{len(SCENES)}  {title}  ({elapsed_s:.0f} s)")
            results[title] = play(scene, stage)

    say()
    for title, result in results.items():
        say(f"{result:>6}  {title}")
    say(f"{time.monotonic() - started_s:.0f} s in all")
    return 0 if set(results.values()) == {"ok"} else 1


def play(scene: Callable[[Stage], None], stage: Stage) -> str:
    """Play one scene; tell how it went."""
    try:
        scene(stage)
    except SceneError as error:
        say(f"  FAILED: {error}")
        return "FAILED"
    finally:
        stage.clear()
    return "ok"


def remove_queues(node: NamedBroker) -> None:
    """Leave nothing on somebody's broker."""
    with plain_amqp.connect(node.url()) as connection:
        plain_amqp.remove(connection, QUEUES, EXCHANGE)


if __name__ == "__main__":
    sys.exit(main())
