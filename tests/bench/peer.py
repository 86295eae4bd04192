"""One process of a measurement: a client or a server over oslo.messaging.

Started by the benchmark, it obeys lines of JSON on its standard input and
answers each with a line of JSON. It ends with its input, so it cannot outlive
the benchmark.

The transport URL comes from the environment, ``BENCH_URL``: an argument would
show its password to every user of the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import blocking_wait
import cases
import null_driver
import oslo_messaging
from oslo_config import cfg

CALL_TIMEOUT_S = 60


class Tally:
    """Counts the handled casts and notifications of one measurement at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._tag: str | None = None
        self._count = 0
        self._last_ns = 0
        self._wanted: int | None = None

    def expect(self, tag: str) -> None:
        """Count from zero, and only what carries this tag."""
        with self._changed:
            self._tag = tag
            self._count = 0
            self._wanted = None

    def add(self, tag: str) -> None:
        """Count one that was handled."""
        with self._changed:
            if tag != self._tag:
                return
            self._count += 1
            self._last_ns = time.monotonic_ns()
            if self._count == self._wanted:
                self._changed.notify_all()

    def wait(self, wanted: int, within_s: float) -> dict[str, int]:
        """Wait until so many were handled; tell how many were, and when the last."""
        with self._changed:
            self._wanted = wanted
            self._changed.wait_for(lambda: self._count >= wanted, timeout=within_s)
            return {"count": self._count, "last_ns": self._last_ns}


class BenchEndpoint:
    """What the RPC server offers."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def echo(self, ctxt: dict[str, Any], arg: Any) -> Any:
        return arg

    def count(self, ctxt: dict[str, Any], tag: str, arg: Any) -> None:
        self._tally.add(tag)


class BenchNotificationEndpoint:
    """What the notification listener does: count."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def info(
        self,
        ctxt: dict[str, Any],
        publisher_id: str,
        event_type: str,
        payload: Any,
        meta: dict[str, Any],
    ) -> None:
        self._tally.add(event_type)


def open_transports(url: str) -> tuple[Any, Any]:
    """Return the RPC transport and the notification transport of this process."""
    conf = cfg.CONF  # 18.3 registers its tracing options there and nowhere else
    conf([])
    if url.startswith("null:"):
        null_driver.register()
        return oslo_messaging.get_rpc_transport(conf, url=url), None
    return (
        oslo_messaging.get_rpc_transport(conf, url=url),
        oslo_messaging.get_notification_transport(conf, url=url),
    )


class Server:
    """The serving process: an RPC server and a notification listener."""

    def __init__(self, transports: tuple[Any, Any], topic: str) -> None:
        rpc, notifications = transports
        self._tally = Tally()
        self._servers = [
            oslo_messaging.get_rpc_server(
                rpc,
                oslo_messaging.Target(topic=topic, server="server1"),
                [BenchEndpoint(self._tally)],
            )
        ]
        if notifications is not None:
            self._servers.append(
                oslo_messaging.get_notification_listener(
                    notifications,
                    [oslo_messaging.Target(topic=f"{topic}_notifications")],
                    [BenchNotificationEndpoint(self._tally)],
                )
            )
        for server in self._servers:
            server.start()

    def expect(self, tag: str) -> dict[str, Any]:
        """Start to count what carries the tag."""
        self._tally.expect(tag)
        return {}

    def handled(self, count: int, within_s: float) -> dict[str, Any]:
        """Wait until so many were handled."""
        return dict(self._tally.wait(count, within_s))

    def close(self) -> None:
        """Stop serving."""
        for server in self._servers:
            server.stop()
        for server in self._servers:
            server.wait()


class Client:
    """The calling process."""

    def __init__(self, transports: tuple[Any, Any], topic: str) -> None:
        rpc, notifications = transports
        target = oslo_messaging.Target(topic=topic)
        # Deprecated since 14.1 in favour of get_rpc_client(), which older
        # releases lack.
        make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
        self._rpc = make(rpc, target, timeout=CALL_TIMEOUT_S)
        if notifications is not None:
            self._notifier = oslo_messaging.Notifier(
                notifications,
                publisher_id="bench",
                driver="messagingv2",
                topics=[f"{topic}_notifications"],
            )

    def measure(
        self, operation: str, threads: int, size: str, seconds: float, tag: str
    ) -> dict[str, Any]:
        """Run an operation in so many threads for so long, and tell the figures."""
        payload = cases.payload(size)

        def call() -> None:
            self._rpc.call(cases.CONTEXT, "echo", arg=payload)

        def cast() -> None:
            self._rpc.cast(cases.CONTEXT, "count", tag=tag, arg=payload)

        def notify() -> None:
            self._notifier.info(cases.CONTEXT, tag, payload)

        if operation == "call":
            answer = self._rpc.call(cases.CONTEXT, "echo", arg=payload)
            if answer != payload:
                raise RuntimeError(f"an echo came back changed: {answer!r:.200}")
        operate = {"call": call, "cast": cast, "notify": notify}[operation]
        return run_threads(operate, threads, seconds)


def run_threads(
    operate: Callable[[], None], threads: int, seconds: float
) -> dict[str, Any]:
    """Call `operate` in so many threads for so long; return the figures.

    Each thread finishes what it began before the time was over, and does it
    once at least.
    """
    started_ns = started_cpu_ns = 0

    def mark() -> None:
        nonlocal started_ns, started_cpu_ns
        started_ns = time.monotonic_ns()
        started_cpu_ns = time.process_time_ns()

    start = threading.Barrier(threads, action=mark)
    latencies_ns: list[list[int]] = [[] for _ in range(threads)]
    errors: list[BaseException] = []

    def work(mine: list[int]) -> None:
        start.wait()
        try:
            now = time.perf_counter_ns()
            deadline = now + int(seconds * 1e9)
            while now < deadline:
                before = now
                operate()
                now = time.perf_counter_ns()
                mine.append(now - before)
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in latencies_ns]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed_ns = time.monotonic_ns() - started_ns
    cpu_ns = time.process_time_ns() - started_cpu_ns
    if errors:
        raise errors[0]
    every_ns = sorted(latency for mine in latencies_ns for latency in mine)
    return {
        "count": len(every_ns),
        "started_ns": started_ns,
        "elapsed_s": elapsed_ns / 1e9,
        "cpu_s": cpu_ns / 1e9,
        "p50_us": every_ns[len(every_ns) // 2] / 1e3,
        "p99_us": every_ns[len(every_ns) * 99 // 100] / 1e3,
        "max_us": every_ns[-1] / 1e3,
    }


def answer(reply: dict[str, Any]) -> None:
    """Write one line to the benchmark."""
    print(json.dumps(reply), flush=True)


def main() -> None:
    """Be the process that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["server", "client", "both"])
    parser.add_argument("topic")
    parser.add_argument("--blocking-wait", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    polls = blocking_wait.stock_polls()
    if options.blocking_wait:
        blocking_wait.install()
    transports = open_transports(os.environ["BENCH_URL"])
    server = client = None
    if options.role != "client":
        server = Server(transports, options.topic)
    if options.role != "server":
        client = Client(transports, options.topic)
    answer({"release": metadata.version("oslo.messaging"), "polls": polls})

    for line in sys.stdin:
        order = json.loads(line)
        actor = server if order["do"] in ("expect", "handled") else client
        answer(getattr(actor, order.pop("do"))(**order))

    if server is not None:
        server.close()
    for transport in transports:
        if transport is not None:
            transport.cleanup()


if __name__ == "__main__":
    main()
